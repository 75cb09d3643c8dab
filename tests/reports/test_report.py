"""The report has the numbers of the evaluations and complete replies, in three consistent files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, evaluate, summarize
from mini_chat_gpt.evaluation.prompt_suite import ask, read_prompts
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.reports.before_after import before_after
from mini_chat_gpt.reports.report import Subject, build, write
from mini_chat_gpt.sft_dataloader import InstructDataset, find_instruct_file
from mini_chat_gpt.tinystories.word_forms import uses

DATA = {"file": "valid.txt", "why": "as requested", "n": 3, "seed": 1, "seconds": 2.0}


@pytest.fixture(scope="module")
def tasks(sample):
    source = InstructDataset(find_instruct_file(sample, "valid"), tokenizer(), DataSection(seq_len=512), 1)
    return {"seen": [task for kind in source.mixture.kinds for task in source.eval_tasks(kind, 3)]}


def tokenizer(chat: bool = True):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat() if chat else None
    return tokenizer


def subject(name: str, tasks, seed: int, replies=None, **more) -> Subject:
    model = lively_model(tokenizer().vocab_size, seed, context_length=512)
    if replies is None:
        evaluation = evaluate(model, tokenizer(), tasks)
    else:
        items = [
            Item(t, replies(t), "stop", score(t, replies(t)), group)
            for group, of_group in tasks.items()
            for t in of_group
        ]
        items = [item for item in items if item.scores]
        evaluation = Evaluation(summarize(items), items, {group: summarize(items) for group in tasks})
    return Subject(name, Path("runs") / name, model, tokenizer(name != "base"), evaluation, **more)


@pytest.fixture(scope="module")
def report(tasks, tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    file.write_text("compare: [{shows: facts, prompts: [Say it], contains: [Tokyo]}]\nrefuse: [Do harm]")
    prompts = read_prompts(file)
    subjects = [subject("base", tasks, 1), subject("perfect", tasks, 2, replies=lambda task: task.target)]
    own = [ask(s.name, s.model, s.tokenizer, prompts) for s in subjects]
    bits = {"base": np.array([2.25, 2.5, 1.75]), "perfect": np.array([2.25, 2.5, 2.75])}
    texts = {name: BitsPerByte(2.5, 2.25, 2.75, 1.7, 900, 300, 3, per_text) for name, per_text in bits.items()}
    subjects = [replace(s, own=o, bits_per_byte=texts[s.name]) for s, o in zip(subjects, own, strict=True)]
    return build(subjects, DATA, prompts)


def test_the_numbers_are_those_of_the_evaluations(report):
    moral = next(kind for kind in report["kinds"] if kind["kind"] == "moral")
    assert moral["values"]["seen"]["perfect"]["value"] == 1.0
    assert moral["n"] == {"seen": 3}
    assert (moral["measure"], moral["label"]) == ("exact", "exact")
    pair = next(pair for pair in report["paired"] if pair["kind"] == "moral")
    assert (pair["before"], pair["after"]) == ("base", "perfect")
    assert pair["difference"] == pytest.approx(1.0 - moral["values"]["seen"]["base"]["value"])
    assert 0 < pair["p"] <= 1
    assert report["title"] == "perfect against base"
    assert [model["kind"] for model in report["models"]] == ["base", "chat"]
    assert {row["measure"] for row in report["measures"] if row["kind"] == "moral"} >= {"rouge_l", "verbatim", "stops"}
    assert json.loads(json.dumps(report)) == report
    [text] = report["paired_bits_per_byte"]
    assert (text["before"], text["after"], text["difference"]) == ("base", "perfect", pytest.approx(1 / 3))


def test_replies_are_complete_and_their_missing_words_are_listed(report):
    for each in report["side_by_side"]:
        right = each["replies"]["perfect"]
        assert "".join(text for text, _ in right["parts"]) == each["target"]
        assert right["missing"] == []
        assert {kind for text, kind in right["parts"] if text.strip()} <= {"right", "required", "plain"}
        incomplete = each["replies"]["base"]
        text = "".join(text for text, _ in incomplete["parts"])
        assert incomplete["missing"] == [word for word in each["required"] if not uses(text, word)]


def test_the_three_files(report, tmp_path):
    files = write(tmp_path / "report", report)
    assert [file.name for file in files] == ["report.json", "before_after.md", "report.html"]
    assert json.loads(files[0].read_text()) == report
    text = files[1].read_text()
    assert "| moral | plots of the train file | exact | 3 |" in text
    assert "| 3 | 0.0 (0 to 56) | 100.0 (44 to 100) |" in text
    assert "Bits per byte of held-out stories: base 2.500 (2.250 to 2.750)" in text
    assert "facts: contains “Tokyo” (“Say it”) | no | no |" in text
    tables = [line.count("|") for line in text.split("\n") if line.startswith("| kind | group")]
    rows = [line for line in text.split("\n") if line.startswith("| moral | plots")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == tables[0] for row in rows)
    assert "perfect against base" in files[2].read_text()


def test_one_model_alone(tasks):
    alone = build([subject("sft", tasks, 1)], DATA)
    assert alone["paired_bits_per_byte"] == []
    assert (alone["title"], alone["paired"], alone["own"], alone["losses"], alone["bits_per_byte"]) == (
        "sft",
        [],
        None,
        {},
        {},
    )
    assert "# sft\n" in before_after(alone)

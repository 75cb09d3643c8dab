"""The questions for lm-evaluation-harness fit the task files, and produce the same ids as our chat format."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import lively_model, tiny_model

from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.held_out import held_out_tasks
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

FOLDER = Path(__file__).parent.parent / "benchmarks/lm_eval"
VALID = "TinyStoriesInstruct-valid.txt"
CHAT, BASE = "chat", "base"


def load_script():
    spec = importlib.util.spec_from_file_location("make_task", FOLDER / "make_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_task = load_script()


def tasks_in(name: str) -> list[dict]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["task"]


def lines_of(file: Path) -> list[dict]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def rows_in(folder: Path) -> dict[str, list[dict]]:
    return {kind: lines_of(folder / f"{kind}.jsonl") for kind in make_task.KINDS}


@pytest.fixture(scope="module")
def work(sample, tmp_path_factory) -> Path:
    """A folder with a chat model, a base model, and the questions at the paths of the task files."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = ChatTokenizer.train(stories(sample / VALID), 600)
    save_checkpoint(folder / BASE, lively_model(tokenizer.vocab_size, context_length=400), tokenizer)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    save_checkpoint(folder / CHAT, lively_model(tokenizer.vocab_size, context_length=400), tokenizer)
    command = ["--checkpoint", str(folder / CHAT), "--against", str(folder / BASE), "--data", str(sample / VALID)]
    make_task.main([*command, "--n", "6", "--out", str(folder / make_task.FOLDER)])
    return folder


@pytest.fixture
def rows(work) -> dict[str, list[dict]]:
    return rows_in(work / make_task.FOLDER)


@pytest.mark.parametrize("name", ["story_yes_no.yaml", "story_yes_no_reply.yaml"])
def test_the_rows_have_the_fields_that_the_task_files_name(rows, name):
    tasks = tasks_in(name)
    files = [task["dataset_kwargs"]["data_files"]["test"] for task in tasks]
    assert files == [(make_task.FOLDER / f"{kind}.jsonl").as_posix() for kind in make_task.KINDS]
    named = {"prompt", "choices", "label"}
    for task in tasks:
        fields = [task[key] for key in ("doc_to_text", "doc_to_choice", "doc_to_target") if key in task]
        assert set(fields) <= named | {"{{choices[label]}}"}
    assert all(named <= set(row) for of_kind in rows.values() for row in of_kind)


def test_the_right_choice_is_the_tasks_answer(rows, work, sample):
    models = [load_checkpoint(work / name, "cpu") for name in (CHAT, BASE)]
    tasks = held_out_tasks(sample / VALID, models, 6, kinds=make_task.KINDS)
    expected = {
        (task.kind, task.prompt): (task.answer, group) for group, of_group in tasks.items() for task in of_group
    }
    by_prompt = {(kind, row["prompt"]): row for kind, of_kind in rows.items() for row in of_kind}
    assert {key: (row["choices"][row["label"]].lower(), row["group"]) for key, row in by_prompt.items()} == expected


def test_there_are_as_many_yes_as_no_of_each_kind_and_group(rows):
    for of_kind in rows.values():
        for group in ("seen", "unseen"):
            labels = [row["label"] for row in of_kind if row["group"] == group]
            assert labels
            assert 2 * sum(labels) == len(labels)


def test_a_kind_without_questions_is_named(tmp_path, sample):
    tokenizer = ChatTokenizer.train(stories(sample / VALID), 600)
    models = [(tiny_model(tokenizer.vocab_size, context_length=400), tokenizer)]
    tasks = held_out_tasks(sample / VALID, models, 2, kinds=["dialogue"])
    with pytest.raises(UserError, match="no question of the kind ending"):
        make_task.write_questions(tasks, tmp_path)


def test_the_system_message_of_the_training_is_printed(tmp_path, sample, capsys):
    tokenizer = ChatTokenizer.train(stories(sample / VALID), 600)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    folder = save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size, context_length=400), tokenizer)
    command = ["--checkpoint", str(folder), "--data", str(sample / VALID), "--n", "2", "--out", str(tmp_path)]
    make_task.main(command)
    assert "--system_instruction 'Be kind.'" in capsys.readouterr().out


def test_templated_prompt_and_choice_have_the_ids_of_render(rows, work):
    transformers = pytest.importorskip("transformers")
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(work / CHAT)
    tokenizer = load_checkpoint(work / CHAT, "cpu")[1]
    for row in [row for of_kind in rows.values() for row in of_kind]:
        ids = render([Message("user", row["prompt"])], tokenizer, add_generation_prompt=True)[0]
        chat = [{"role": "user", "content": row["prompt"]}]
        # The harness applies the template to get a string, appends the choice, and tokenizes both together.
        text = hf_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert hf_tokenizer.encode(text) == ids
        for choice in row["choices"]:
            assert hf_tokenizer.encode(text + choice) == ids + tokenizer.encode(choice)


def test_a_base_models_prompt_and_choice_have_the_ids_of_a_document(rows, work):
    transformers = pytest.importorskip("transformers")
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(work / BASE, add_bos_token=True)
    tokenizer = load_checkpoint(work / BASE, "cpu")[1]
    delimiter = tasks_in("story_yes_no.yaml")[0]["target_delimiter"]
    for row in [row for of_kind in rows.values() for row in of_kind]:
        for choice in row["choices"]:
            text = row["prompt"] + delimiter + choice
            assert hf_tokenizer.encode(text) == [tokenizer.document_id, *tokenizer.encode(text)]


def log_likelihood(work: Path, name: str, prompt: str, choice: str) -> float:
    model, tokenizer = load_checkpoint(work / name, "cpu")
    if name == CHAT:
        prompt_ids, answer = render([Message("user", prompt)], tokenizer, add_generation_prompt=True)[0], choice
    else:
        prompt_ids, answer = [tokenizer.document_id, *tokenizer.encode(prompt)], f" {choice}"
    answer_ids = tokenizer.encode(answer)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + answer_ids]))[0, len(prompt_ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer_ids)[:, None]).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "extra"), [(CHAT, "", ["--apply_chat_template"]), (BASE, ",add_bos_token=True", [])]
)
def test_lm_eval_computes_the_same_likelihoods_as_our_model(work, tmp_path, name, options, extra):
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={name}{options}", "--include_path", str(FOLDER), *extra]
    command += ["--tasks", "story_yes_no,story_yes_no_reply", "--log_samples", "--output_path", str(tmp_path)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run(command, cwd=work, env=os.environ | offline, check=True)
    replies = [reply for file in tmp_path.rglob("samples_*reply*.jsonl") for reply in lines_of(file)]
    assert len(replies) == sum(map(len, rows_in(work / make_task.FOLDER).values()))
    choice_files = [file for file in tmp_path.rglob("samples_*.jsonl") if "reply" not in file.name]
    assert len(choice_files) == 2
    for sample in [sample for file in choice_files for sample in lines_of(file)]:
        row = sample["doc"]
        expected = [log_likelihood(work, name, row["prompt"], choice) for choice in row["choices"]]
        computed = [float(response[0]) for response in sample["filtered_resps"]]
        assert computed == pytest.approx(expected, abs=1e-3)
        assert sample["acc"] == float(expected.index(max(expected)) == row["label"])

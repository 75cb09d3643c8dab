"""The chats that a run held out are found again, and nothing that it was trained on is among them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import chat_tokenizer, tiny_model

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import load_config, parse_config, to_yaml
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.evaluation.chat_tasks import make_tasks, reply_losses
from mini_chat_gpt.evaluation.held_out_chats import find_held_out_chats
from mini_chat_gpt.evaluation.plan import make_plan
from mini_chat_gpt.training.provenance import collect_provenance
from mini_chat_gpt.training.sft_data import make_examples

QUESTIONS = {f"Question {number}?": f"Answer {number}." for number in range(40)}


def write_chats(file: Path, pairs=QUESTIONS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs.items()))
    return file


def models(context_length=128):
    tokenizer = chat_tokenizer()
    return tiny_model(tokenizer.vocab_size, context_length=context_length), tokenizer


def make_run(home: Path, job: str = "sft", **chats) -> Path:
    """A run that has been started in `home`, with its checkpoint."""
    run = home / "runs" / "chats"
    shutil.rmtree(run, ignore_errors=True)
    model, tokenizer = models()
    save_checkpoint(run / "step-1", model, tokenizer, info={"job": job})
    values = {"chats": chats, "sft": {"save_dir": "runs/chats"}, "system": {"seed": 7}}
    (run / "config.yaml").write_text(to_yaml(parse_config(values, "test")))
    files = [home / path for path in chats.get("files", {})]
    provenance = collect_provenance([file for file in files if file.is_file()], "", run)
    (run / "run.json").write_text(json.dumps({"began": provenance}))
    return run


def prompts_of(found, n=1000):
    return {task.prompt for task in found.tasks([models()], n, 1)}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_chats(tmp_path / "data/mine.jsonl")
    return tmp_path


@pytest.mark.parametrize("data", [None, "data/mine.jsonl", "elsewhere/copy.jsonl"])
def test_the_part_that_the_run_held_out_is_found_again(home, data):
    run = make_run(home, files={"data/mine.jsonl": 1}, valid_share=0.2)
    write_chats(home / "elsewhere/copy.jsonl")
    found = find_held_out_chats(data, {run: models()})
    assert found is not None
    assert found.why == f"held out of the chats of {run}"
    model, tokenizer = models()
    examples = make_examples(load_config(run / "config.yaml"), tokenizer, model.config.context_length)
    trained = {tokenizer.decode(examples.source[number].ids.tolist()) for number in range(len(examples.source))}
    held_out = prompts_of(found)
    assert len(held_out) == 8
    assert not any(question in text for question in held_out for text in trained)
    assert list(found.sources) == ["chats"]


def test_a_file_of_other_chats_is_used_as_it_is(home):
    run = make_run(home, files={"data/mine.jsonl": 1})
    other = {f"Other {number}?": "Yes." for number in range(5)}
    found = find_held_out_chats(str(write_chats(home / "test.jsonl", other)), {run: models()})
    assert (prompts_of(found), found.why) == (set(other), "as requested")


def test_a_moved_project_finds_its_chats_and_a_changed_file_is_said(home, tmp_path_factory, monkeypatch):
    before = prompts_of(find_held_out_chats(None, {make_run(home, files={"data/mine.jsonl": 1}): models()}))
    moved = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(home, moved)
    shutil.rmtree(home / "data")
    found = find_held_out_chats(None, {moved / "runs/chats": models()})
    assert prompts_of(found) == before
    write_chats(moved / "data/mine.jsonl", QUESTIONS | {"New?": "New."})
    assert "has changed since" in find_held_out_chats(None, {moved / "runs/chats": models()}).why
    shutil.rmtree(moved / "data")
    with pytest.raises(UserError, match=r"data/mine.jsonl, the chats of .*name chats to evaluate on with --data"):
        find_held_out_chats(None, {moved / "runs/chats": models()})


def test_several_files_are_kinds_of_their_own(home):
    write_chats(home / "data/yours.jsonl", {f"Yours {number}?": "Mine." for number in range(20)})
    run = make_run(home, files={"data/mine.jsonl": 1, "data/yours.jsonl": 2})
    found = find_held_out_chats(None, {run: models()})
    assert list(found.sources) == ["chats/mine", "chats/yours"]
    assert all(
        task.prompt.startswith("Yours") == (task.kind == "chats/yours") for task in found.tasks([models()], 9, 1)
    )
    only = find_held_out_chats("data/yours.jsonl", {run: models()})
    assert all(prompt.startswith("Yours") for prompt in prompts_of(only))


def test_if_nothing_was_held_out_the_reason_says_so(home):
    run = make_run(home, files={"data/mine.jsonl": 1}, valid_share=0)
    found = find_held_out_chats(None, {run: models()})
    assert "was trained on, as it held out none" in found.why
    assert prompts_of(found) == set(QUESTIONS)


def test_a_run_of_pretraining_with_chats_in_its_settings_has_none(home):
    assert find_held_out_chats(None, {make_run(home, job="pretrain", files={"data/mine.jsonl": 1}): models()}) is None


def test_stories_are_evaluated_only_where_they_were_trained(home, sample):
    shutil.copytree(sample, home / "stories")
    (home / "runs/base").mkdir(parents=True)
    only_chats = make_run(home, files={"data/mine.jsonl": 1})
    plan = make_plan(None, {home / "runs/base": models(900), only_chats: models(900)}, 2, 1)
    assert plan.chats
    assert plan.file is None
    run = make_run(home, files={"data/mine.jsonl": 1}, stories=0.5)
    text = (run / "config.yaml").read_text().replace("./TinyStories", "stories")
    (run / "config.yaml").write_text(text)
    plan = make_plan(None, {run: models(900)}, 2, 1, kinds=())
    assert plan.chats
    assert plan.file is not None
    assert plan.stories
    assert not make_plan(None, {run: models(900)}, 2, 1, kinds=("moral",)).chats
    assert make_plan(None, {run: models(900)}, 2, 1, kinds=("chats",)).file is None


def test_a_model_of_unknown_data_needs_data_or_prompts(home):
    nothing = {home / "imported": models()}
    with pytest.raises(UserError, match=r"imported doesn't say what it was trained on.*--data chats.jsonl.*--prompts"):
        make_plan(None, nothing, 2, 1)
    plan = make_plan(None, nothing, 2, 1, has_prompts=True)
    assert (plan.chats, plan.stories, plan.sources) == ([], {}, [])
    assert make_plan("data/mine.jsonl", nothing, 2, 1).chats


# Tasks


def chat(*turns: str) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    messages = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    return Conversation(tuple(messages), "messages", "chats.jsonl", "line 1")


def test_one_reply_of_each_chat_is_written_from_the_turns_before_it():
    chats = [chat(f"A{n}", f"B{n}", f"C{n}", f"D{n}") for n in range(30)]
    tasks = make_tasks(chats, [models()], 100, 1)
    assert len(tasks) == 30
    for task in tasks:
        n = task.target[1:]
        turns = [f"A{n}", f"B{n}", f"C{n}"] if task.target.startswith("D") else [f"A{n}"]
        assert [message.content for message in task.messages] == turns
    assert {task.target[0] for task in tasks} == {"B", "D"}
    assert {task.target[0] for task in make_tasks(chats, [models()], 100, 1, only_last=True)} == {"D"}
    assert tasks == make_tasks(reversed(chats), [models()], 100, 1)
    assert tasks != make_tasks(chats, [models()], 100, 2)
    assert make_tasks([*chats, *chats], [models()], 100, 1) == tasks


def test_a_chat_that_does_not_fit_gives_an_earlier_reply_or_none():
    long = chat("A", "B", "C " * 200, "D")
    assert [task.target for task in make_tasks([long], [models()], 5, 1)] == ["B"]
    assert make_tasks([chat("A " * 200, "B")], [models()], 5, 1) == []


def test_the_loss_is_that_of_the_expected_reply_alone():
    model, tokenizer = models()
    one, other = (make_tasks([chat(question, "Yes.")], [(model, tokenizer)], 1, 1)[0] for question in ("A?", "B? B?"))
    losses = reply_losses(model, tokenizer, [one, other, one])
    assert losses[:, 1].tolist() == [len(tokenizer.encode("Yes.")) + 1] * 3  # and the token that ends it
    assert losses[0].tolist() == pytest.approx(losses[2].tolist())
    ids, mask = render([Message("user", "A?"), Message("assistant", "Yes.")], tokenizer)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).float().log_softmax(-1)[0]
    expected = -sum(logits[at - 1, ids[at]].item() for at in range(len(ids)) if mask[at])
    assert losses[0, 0] == pytest.approx(expected, rel=1e-4)


def test_a_base_model_reads_the_turns_as_a_text():
    model, tokenizer = models()
    tokenizer.chat_format = None
    [task] = make_tasks([chat("A?", "B.", "C?", "D.")], [(model, tokenizer)], 1, 1, only_last=True)
    assert task.prompt_for(tokenizer) == "A?\n\nB.\n\nC?"
    assert task.prompt == "User: A?\n\nAssistant: B.\n\nUser: C?"
    assert reply_losses(model, tokenizer, [task])[0, 0] > 0

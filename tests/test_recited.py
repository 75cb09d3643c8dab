"""What stories share with training stories, by model, beside real stories of the same length."""

import io
import json
import math

import pytest
from rich.console import Console
from tiny import about, writing

from mini_chat_gpt import recited as module
from mini_chat_gpt.capabilities import Evaluation, Item, summarise
from mini_chat_gpt.recited import in_words, recited, training_files
from mini_chat_gpt.scoring import score

TRAINING = ["Once upon a time a red cat sat on a big warm stone and slept all day.", "Sue had a dog."]
REAL = "One day a small bird flew over the sea, and on a big warm stone it rested for the night."


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("\n<|endoftext|>\n".join(TRAINING) + "\n<|endoftext|>\n")
    return file


def told(*replies: str, kind: str = "words") -> Evaluation:
    task = writing("cat", target=REAL) if kind == "words" else about(kind, REAL)
    items = [Item(task, reply, "stop", score(task, reply)) for reply in replies]
    return Evaluation(summarise(items), items)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_recited_story_is_told_from_one_that_only_shares_phrases(file):
    found = recited(
        {"parrot": told(TRAINING[0]), "poet": told("The moon told a cat of cheese.")}, [file], 10**6, quiet()
    )
    assert found is not None
    parrot, poet = found["models"].values()
    assert (parrot["told"]["value"], parrot["told"]["longest"]) == (1, 17)
    assert (parrot["real"]["value"], parrot["real"]["longest"]) == (0, 5)
    assert parrot["difference"]["difference"] == 1
    assert parrot["passage"]["text"] == TRAINING[0][:-1]
    assert parrot["passage"]["source"] == TRAINING[0]
    assert (poet["told"]["value"], poet["real"]["value"], poet["difference"]) == (None, None, None)  # seven words
    assert json.loads(json.dumps(found)) == found
    assert (found["files"], found["complete"], found["n_training_texts"]) == (["train.txt"], True, 2)
    lines = in_words(found)
    assert lines[0] == "Runs of 8 words that also stand in train.txt:"
    assert lines[1] == "  parrot: 100.0 % of its stories, 0.0 % of real unseen ones; longest shared run 17 and 5 words"
    assert "shorter than that" in lines[2]


def test_both_are_as_long_as_the_shorter_one(file):
    found = recited({"brief": told("on a big warm stone it rested")}, [file], 10**6, quiet())
    assert found is not None
    assert found["models"]["brief"]["real"]["longest"] == 1  # "One day a small bird flew over"


def test_only_so_many_bytes_are_looked_through(file):
    found = recited({"a": told(TRAINING[1])}, [file], 10, quiet())
    assert found is not None
    assert (found["complete"], found["n_training_texts"]) == (False, 1)
    assert in_words(found)[0].endswith("stand in the first 1 stories of train.txt:")


def test_there_is_nothing_to_say_without_stories_or_training_files(file):
    assert recited({"a": told("x", kind="moral")}, [file], 10**6, quiet()) is None
    assert recited({"a": told("x")}, [], 10**6, quiet()) is None
    assert recited({"a": told("x")}, [file], 0, quiet()) is None


def test_the_share_is_a_mean_over_stories_with_an_interval(file):
    found = recited({"a": told(TRAINING[0], "A cat " * 9, TRAINING[0])}, [file], 10**6, quiet())
    assert found is not None
    share = found["models"]["a"]["told"]
    assert math.isclose(share["value"], 2 / 3)
    assert share["low"] < 2 / 3 < share["high"]


def test_training_files_are_those_that_the_run_noted_and_that_are_still_the_same(tmp_path, file):
    (run := tmp_path / "runs/sft/step-1").mkdir(parents=True)
    other = tmp_path / "changed.txt"
    other.write_text("x")
    (tmp_path / "chats.jsonl").write_text("{}")
    facts = [
        {"path": str(file), "size": file.stat().st_size},
        {"path": str(other), "size": 77},
        {"path": str(tmp_path / "gone.txt"), "size": 1},
        {"path": str(tmp_path / "chats.jsonl"), "size": 2},
        {"path": str(tmp_path / "stories-valid.txt"), "size": 2},
    ]
    (run.parent / "run.json").write_text(json.dumps({"began": {"data": facts}}))
    assert training_files([run, run.parent], tmp_path / "held.txt") == [file]


@pytest.mark.parametrize("note", ["{", "[]", '{"began": null}', '{"began": {"data": 3}}', '{"began": {"data": [3]}}'])
def test_without_a_note_it_is_the_file_beside_the_held_out_one(tmp_path, note):
    (tmp_path / "run.json").write_text(note)
    (tmp_path / "my-train.txt").write_text("x")
    assert training_files([tmp_path], tmp_path / "my-valid.txt") == [tmp_path / "my-train.txt"]
    assert training_files([tmp_path], tmp_path / "held.txt") == []
    assert training_files([tmp_path], tmp_path / "other-valid.txt") == []


def test_progress_is_told(file, monkeypatch):
    monkeypatch.setattr(module, "stories", lambda path: iter(["word " * 200_000] * 3))
    monkeypatch.setattr(
        module.StepProgress, "update", lambda self, done, facts, share=None: steps.append((done, facts))
    )
    steps: list[tuple[int, str]] = []
    recited({"a": told(TRAINING[0])}, [file], 3 * 10**6, quiet())
    assert steps
    assert all("MB/s" in facts for _, facts in steps)

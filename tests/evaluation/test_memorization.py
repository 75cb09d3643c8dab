"""What stories share with training stories, by model, beside real stories of the same length."""

import io
import json
import math

import pytest
from rich.console import Console
from tiny import about, writing

from mini_chat_gpt.evaluation import memorization as module
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, summarise
from mini_chat_gpt.evaluation.memorization import Training, in_words, recited, training_of
from mini_chat_gpt.evaluation.task_metrics import score

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


def known(evaluations, *files, most_bytes=10**6, noted=True, same_source=True):
    return recited(evaluations, dict.fromkeys(evaluations, Training(files, noted, same_source)), most_bytes, quiet())


def test_a_recited_story_is_told_from_one_that_only_shares_phrases(file):
    found = known({"parrot": told(TRAINING[0]), "poet": told("The moon told a cat of cheese.")}, file)
    assert found is not None
    parrot, poet = found["models"].values()
    assert (parrot["told"]["value"], parrot["told"]["longest"]) == (1, 17)
    assert (parrot["real"]["value"], parrot["real"]["longest"]) == (0, 5)
    assert parrot["difference"]["difference"] == 1
    assert parrot["passage"]["text"] == TRAINING[0][:-1]
    assert parrot["passage"]["source"] == TRAINING[0]
    assert (poet["told"]["value"], poet["real"]["value"], poet["difference"]) == (None, None, None)  # seven words
    assert json.loads(json.dumps(found)) == found
    assert (parrot["complete"], parrot["n_training_texts"]) == (True, 2)
    lines = in_words(found)
    assert lines[0] == "Runs of 8 words that also stand in the training stories:"
    place = f"all 2 stories of {file.parent.name}/train.txt"
    assert lines[1] == (
        f"  parrot: 100.0 % of its stories, 0.0 % of real unseen ones; longest shared run 17 and 5 words ({place})"
    )
    assert lines[2] == f"  poet: its stories are shorter than 8 words ({place})"


def test_each_model_is_looked_up_in_its_own_training_stories(file, tmp_path):
    (other := tmp_path / "other.txt").write_text("Nothing of that.\n<|endoftext|>\n")
    models = {name: told(TRAINING[0]) for name in ("one", "two", "nobody")}
    training = {
        "one": Training((file,), True, True),
        "two": Training((other,), True, True),
        "nobody": Training((), True, False),
    }
    found = recited(models, training, 10**6, quiet())
    assert found is not None
    assert [found["models"][name]["told"]["value"] for name in ("one", "two")] == [1, 0]
    assert found["models"]["nobody"] is None
    assert in_words(found)[-1] == "  nobody: its training stories are not here"


def test_stories_of_another_source_are_no_yardstick(file):
    found = known({"parrot": told(TRAINING[0])}, file, noted=False, same_source=False)
    assert found is not None
    assert (found["models"]["parrot"]["real"], found["models"]["parrot"]["difference"]) == (None, None)
    line = in_words(found)[1]
    assert "100.0 % of its stories; longest shared run 17 words" in line
    assert "its own training data are not noted; the held-out stories are of another source and no yardstick" in line


def test_both_are_as_long_as_the_shorter_one(file):
    found = known({"brief": told("on a big warm stone it rested")}, file)
    assert found is not None
    assert found["models"]["brief"]["real"]["longest"] == 1  # "One day a small bird flew over"


def test_only_so_many_bytes_are_looked_through(file):
    found = known({"a": told(TRAINING[1] * 9)}, file, most_bytes=10)
    assert found is not None
    assert (found["models"]["a"]["complete"], found["models"]["a"]["n_training_texts"]) == (False, 1)
    assert f"the first 1 stories of {file.parent.name}/train.txt" in in_words(found)[1]


def test_there_is_nothing_to_say_without_stories_or_training_files(file):
    assert known({"a": told("x", kind="moral")}, file) is None
    assert known({"a": told("x")}) is None
    assert known({"a": told("x")}, file, most_bytes=0) is None


def test_the_share_is_a_mean_over_stories_with_an_interval(file):
    found = known({"a": told(TRAINING[0], "A cat " * 9, TRAINING[0])}, file)
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
    for place in (run, run.parent):
        assert training_of(place, tmp_path / "held.txt") == Training((file,), True, True)
        assert training_of(place, tmp_path / "elsewhere" / "held.txt") == Training((file,), True, False)
    (run.parent / "run.json").write_text(json.dumps({"began": {"data": facts[1:]}}))
    (tmp_path / "some-train.txt").write_text("x")  # nothing says that it was trained on this
    assert training_of(run, tmp_path / "some-valid.txt") == Training((), True, False)


@pytest.mark.parametrize("note", ["{", "[]", '{"began": null}', '{"began": {"data": 3}}', '{"began": {"data": [3]}}'])
def test_without_a_note_it_is_the_file_beside_the_held_out_one(tmp_path, note):
    (tmp_path / "run.json").write_text(note)
    (tmp_path / "my-train.txt").write_text("x")
    (tmp_path / "empty-train.txt").touch()
    assert training_of(tmp_path, tmp_path / "my-valid.txt") == Training((tmp_path / "my-train.txt",), False, True)
    for name in ("held.txt", "other-valid.txt", "empty-valid.txt"):
        assert training_of(tmp_path, tmp_path / name) == Training((), False, False)


def test_progress_is_told(file, monkeypatch):
    monkeypatch.setattr(module, "stories", lambda path: iter(["word " * 200_000] * 3))
    monkeypatch.setattr(
        module.StepProgress, "update", lambda self, done, facts, fraction=None: steps.append((done, facts))
    )
    steps: list[tuple[int, str]] = []
    known({"a": told(TRAINING[0])}, file, most_bytes=3 * 10**6)
    assert steps
    assert all("MB/s" in facts for _, facts in steps)

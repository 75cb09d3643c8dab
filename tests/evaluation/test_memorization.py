"""The overlap of generated stories with training stories, by model, compared with real stories of the same length."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from tiny import about, writing

from mini_chat_gpt.evaluation import memorization as module
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, summarize
from mini_chat_gpt.evaluation.memorization import TrainingFiles, describe, find_training_files, memorization
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.training.provenance import file_fingerprint

TRAINING = ["Once upon a time a red cat sat on a big warm stone and slept all day.", "Sue had a dog."]
REFERENCE = "One day a small bird flew over the sea, and on a big warm stone it rested for the night."


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("\n<|endoftext|>\n".join(TRAINING) + "\n<|endoftext|>\n")
    return file


def replied(*replies: str, kind: str = "words") -> Evaluation:
    task = writing("cat", target=REFERENCE) if kind == "words" else about(kind, REFERENCE)
    items = [Item(task, reply, "stop", score(task, reply)) for reply in replies]
    return Evaluation(summarize(items), items)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def measured(evaluations, *files, max_bytes=10**6, recorded=True, same_source=True):
    training = dict.fromkeys(evaluations, TrainingFiles(files, recorded, same_source))
    return memorization(evaluations, training, max_bytes, quiet())


def test_a_memorized_story_differs_from_one_that_only_shares_phrases(file):
    result = measured({"parrot": replied(TRAINING[0]), "poet": replied("The moon told a cat of cheese.")}, file)
    assert result is not None
    parrot, poet = result["models"].values()
    assert (parrot["generated"]["value"], parrot["generated"]["longest"]) == (1, 17)
    assert (parrot["reference"]["value"], parrot["reference"]["longest"]) == (0, 5)
    assert parrot["difference"]["difference"] == 1
    assert parrot["passage"]["text"] == TRAINING[0][:-1]
    assert parrot["passage"]["source"] == TRAINING[0]
    values = (poet["generated"]["value"], poet["reference"]["value"], poet["difference"])
    assert values == (None, None, None)  # seven words
    assert json.loads(json.dumps(result)) == result
    assert (parrot["complete"], parrot["n_training_texts"]) == (True, 2)
    lines = describe(result)
    assert lines[0] == "Memorization: 8-grams (runs of 8 words) that also occur in the training stories:"
    searched = f"all 2 stories of {file.parent.name}/train.txt"
    assert lines[1] == (
        "  parrot: 100.0 % in its stories, 0.0 % in real held-out stories; longest shared run 17 and 5 words "
        f"({searched})"
    )
    assert lines[2] == f"  poet: its stories are shorter than 8 words ({searched})"


def test_each_model_is_compared_with_its_own_training_stories(file, tmp_path):
    (other := tmp_path / "other.txt").write_text("Nothing of that.\n<|endoftext|>\n")
    models = {name: replied(TRAINING[0]) for name in ("one", "two", "unknown")}
    training = {
        "one": TrainingFiles((file,), True, True),
        "two": TrainingFiles((other,), True, True),
        "unknown": TrainingFiles((), True, False),
    }
    result = memorization(models, training, 10**6, quiet())
    assert result is not None
    assert [result["models"][name]["generated"]["value"] for name in ("one", "two")] == [1, 0]
    assert result["models"]["unknown"] is None
    assert describe(result)[-1] == "  unknown: its training stories were not found on this machine"


def test_stories_of_another_source_are_not_a_baseline(file):
    result = measured({"parrot": replied(TRAINING[0])}, file, recorded=False, same_source=False)
    assert result is not None
    assert (result["models"]["parrot"]["reference"], result["models"]["parrot"]["difference"]) == (None, None)
    line = describe(result)[1]
    assert "100.0 % in its stories; longest shared run 17 words" in line
    assert "because the run did not record its training data; the held-out stories come from another source" in line


def test_both_stories_are_cut_to_the_length_of_the_shorter_one(file):
    result = measured({"brief": replied("on a big warm stone it rested")}, file)
    assert result is not None
    assert result["models"]["brief"]["reference"]["longest"] == 1  # "One day a small bird flew over"


def test_the_search_ends_after_max_bytes(file):
    result = measured({"a": replied(TRAINING[1] * 9)}, file, max_bytes=10)
    assert result is not None
    assert (result["models"]["a"]["complete"], result["models"]["a"]["n_training_texts"]) == (False, 1)
    assert f"the first 1 stories of {file.parent.name}/train.txt" in describe(result)[1]


def test_without_stories_or_training_files_there_is_no_result(file):
    assert measured({"a": replied("x", kind="moral")}, file) is None
    assert measured({"a": replied("x")}) is None
    assert measured({"a": replied("x")}, file, max_bytes=0) is None


def test_the_share_is_a_mean_over_stories_with_an_interval(file):
    result = measured({"a": replied(TRAINING[0], "A cat " * 9, TRAINING[0])}, file)
    assert result is not None
    share = result["models"]["a"]["generated"]
    assert math.isclose(share["value"], 2 / 3)
    assert share["low"] < 2 / 3 < share["high"]


def test_training_files_are_those_that_the_run_recorded_if_they_are_unchanged(tmp_path, file):
    (run := tmp_path / "runs/sft/step-1").mkdir(parents=True)
    other = tmp_path / "changed.txt"
    other.write_text("x")
    (tmp_path / "chats.jsonl").write_text("{}")
    records = [
        {"path": str(file), "size": file.stat().st_size},
        {"path": str(other), "size": 77},
        {"path": str(tmp_path / "gone.txt"), "size": 1},
        {"path": str(tmp_path / "chats.jsonl"), "size": 2},
        {"path": str(tmp_path / "stories-valid.txt"), "size": 2},
    ]
    (run.parent / "run.json").write_text(json.dumps({"began": {"data": records}}))
    for checkpoint in (run, run.parent):
        assert find_training_files(checkpoint, tmp_path / "held.txt") == TrainingFiles((file,), True, True)
        assert find_training_files(checkpoint, tmp_path / "other" / "held.txt") == TrainingFiles((file,), True, False)
    (run.parent / "run.json").write_text(json.dumps({"began": {"data": records[1:]}}))
    (tmp_path / "some-train.txt").write_text("x")  # no record says that the model was trained on this file
    assert find_training_files(run, tmp_path / "some-valid.txt") == TrainingFiles((), True, False)


def test_the_training_files_of_a_moved_project_are_found_by_hash(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (run := project / "runs" / "sft").mkdir(parents=True)
    (project / "stories.txt").write_text("Tom ran.")
    (tmp_path / "stories.txt").write_text("Tom ran.")  # the same file somewhere else
    monkeypatch.chdir(project)
    (run / "run.json").write_text(json.dumps({"began": {"data": [file_fingerprint(Path("stories.txt"), run)]}}))
    moved = project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    found = find_training_files(moved / "runs" / "sft" / "step-0000001", tmp_path / "x-valid.txt")
    assert found.files == (moved / "stories.txt",)
    (moved / "stories.txt").write_text("Sue ran.")  # the same size
    assert find_training_files(moved / "runs" / "sft", tmp_path / "x-valid.txt").files == (tmp_path / "stories.txt",)
    (tmp_path / "stories.txt").unlink()
    assert find_training_files(moved / "runs" / "sft", tmp_path / "x-valid.txt") == TrainingFiles((), True, False)


@pytest.mark.filterwarnings("ignore:.*run.json is damaged")
@pytest.mark.parametrize(
    "record",
    ["{", "[]", '{"began": null}', '{"began": {"data": 3}}', '{"began": {"data": [3]}}', "[" * 10_000, "9" * 5000],
)
def test_without_a_record_it_is_the_train_file_next_to_the_held_out_file(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "my-train.txt").write_text("x")
    (tmp_path / "empty-train.txt").touch()
    training = find_training_files(tmp_path, tmp_path / "my-valid.txt")
    assert training == TrainingFiles((tmp_path / "my-train.txt",), False, True)
    for name in ("held.txt", "other-valid.txt", "empty-valid.txt"):
        assert find_training_files(tmp_path, tmp_path / name) == TrainingFiles((), False, False)


def test_a_damaged_record_is_reported(tmp_path):
    (tmp_path / "run.json").write_text('{"began": {"data": [{"path": 3, "size": 1}]}}')
    with pytest.warns(
        UserWarning, match=r"began.data.0.path must be text, not 3; what it says about the run is not used"
    ):
        find_training_files(tmp_path, tmp_path / "held.txt")


def test_progress_is_shown(file, monkeypatch):
    monkeypatch.setattr(module, "read_documents", lambda path: iter(["word " * 200_000] * 3))
    monkeypatch.setattr(
        module.StepProgress, "update", lambda self, done, status="", fraction=None: steps.append((done, status))
    )
    steps: list[tuple[int, str]] = []
    measured({"a": replied(TRAINING[0])}, file, max_bytes=3 * 10**6)
    assert steps
    assert all("MB/s" in status for _, status in steps)

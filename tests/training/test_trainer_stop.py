"""A run that is stopped anywhere saves first, and after a resume equals an uninterrupted one."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_trainer import SFT, TOKENIZER, make_trainer, resumed_from
from tiny import CountingDataset

from mini_chat_gpt.checkpoints.find import find_checkpoint, read_meta, steps_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training import run
from mini_chat_gpt.training.monitor import keep_metrics_until

EVERY_TWO = {**SFT, "eval_interval": 2, "save_interval": 3, "patience": 4}
SCORES = {2: 0.3, 4: 0.9, 6: 0.1, 8: 0.5, 10: 0.2, 12: 0.4}


def stop_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def trainer_with_scores(folder, at_step=None, part="", **more):
    """A trainer with scores; at the evaluation of `at_step` it gets SIGTERM in this part of it."""
    holder = SimpleNamespace(trainer=None)

    def reached(here: str) -> None:
        if (holder.trainer.progress.step, here) == (at_step, part):
            stop_now()

    def measure(_model):
        reached("scores")
        return {"eval/moral/exact": SCORES[holder.trainer.progress.step]}

    def show(_model):
        reached("samples")
        return "a sample"

    def logged(trainer, step, metrics):
        if "sft/train_loss" in metrics:
            reached("before")

    sections = {"training": {"batch_size": 4, "ema": 0.9, "keep_checkpoints": 2}} | more
    sft = {**EVERY_TWO, "best_metric": "eval/moral/exact"}
    trainer = holder.trainer = make_trainer(folder, [logged], measure=measure, sft=sft, **sections)
    trainer.job = trainer.validation.job = replace(trainer.job, show=show)
    forward = trainer.engine._forward

    def watched(net, batch):
        if net is trainer.model and not net.training:
            reached("losses")
        return forward(net, batch)

    trainer.engine._forward = watched
    return trainer


def state(trainer) -> dict:
    return trainer.engine.snapshot(TOKENIZER, {}, {}).tensors


def assert_equal(one, other):
    zero = {"seconds": 0.0}
    progress = [
        replace(t.progress, window=replace(t.progress.window, **zero, waiting=0.0), **zero) for t in (one, other)
    ]
    assert progress[0] == progress[1]
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[file][name]) for file in ours for name, tensor in ours[file].items())


def checkpoints(folder) -> dict:
    """What is known of the run's checkpoints, by name."""
    return {step.name: read_meta(step)["info"] for step in steps_of(folder)}


def metrics(folder) -> list:
    timed = {
        "time",
        "sft/tokens_per_second",
        "sft/trained_tokens_per_second",
        "sft/data_wait_share",
        "sft/memory_bytes",
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = trainer_with_scores(tmp_path_factory.mktemp("runs") / "whole")
    trainer.run()
    return trainer


def resume(folder, **more):
    checkpoint = find_checkpoint(folder / "last")
    trainer = resumed_from(trainer_with_scores(folder, **more), checkpoint)
    keep_metrics_until(folder, trainer.progress.step, evaluated=not trainer.progress.evaluation_due)
    return trainer


@pytest.mark.parametrize(
    ("step", "part"),
    [(4, "before"), (4, "losses"), (4, "scores"), (4, "samples"), (6, "scores"), (12, "before"), (12, "losses")],
)
def test_an_evaluation_that_a_stop_prevents_is_made_when_the_run_is_resumed(tmp_path, whole, step, part):
    """The best evaluation of this run is that of step 4, and its patience ends it at step 12."""
    folder = tmp_path / "run"
    result = trainer_with_scores(folder, step, part).run()
    assert (result.stopped, result.steps) == ("SIGTERM", step)
    saved = find_checkpoint(folder / "last")
    assert saved.name == f"step-{step:07d}"
    assert read_meta(saved)["info"]["val_loss"] is None
    again = resume(folder)
    assert again.run().stopped == ""
    assert_equal(again, whole)
    assert checkpoints(folder).items() >= checkpoints(whole.folder).items()
    assert find_checkpoint(folder).name == find_checkpoint(whole.folder).name == "step-0000004"
    assert metrics(folder) == metrics(whole.folder)
    assert not list(folder.glob(".*tmp"))


def test_a_run_that_is_killed_after_the_evaluation_it_owed_makes_it_again(tmp_path, whole):
    folder = tmp_path / "run"
    trainer_with_scores(folder, 2, "losses").run()
    killed = resume(folder, at_step=3, part="before")
    killed.save = lambda: None
    killed.run()
    assert [line["step"] for line in metrics(folder) if "sft/val_loss" in line] == [2]
    again = resume(folder)
    again.run()
    assert_equal(again, whole)
    assert metrics(folder) == metrics(whole.folder)


def test_a_stop_during_the_evaluation_that_a_resumed_run_begins_with_leaves_it_due(tmp_path, whole):
    folder = tmp_path / "run"
    trainer_with_scores(folder, 4, "before").run()
    before = checkpoints(folder)
    assert resume(folder, at_step=4, part="scores").run().stopped == "SIGTERM"
    assert checkpoints(folder) == before
    again = resume(folder)
    again.run()
    assert_equal(again, whole)


def test_a_stop_before_the_first_step_saves_nothing_and_changes_nothing(tmp_path):
    class Stops(CountingDataset):
        running = False

        def __getitem__(self, index):
            if self.running:
                stop_now()
                time.sleep(60)
            return super().__getitem__(index)

    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, source=Stops())
    Stops.running = True
    started = time.monotonic()
    result = trainer.run()
    assert time.monotonic() - started < 30
    assert (result.stopped, result.steps, steps_of(tmp_path / "run")) == ("SIGTERM", 0, [])


class Stuck(CountingDataset):
    """Examples that take forever from the second chunk of a worker on."""

    def __getitem__(self, index):
        if index >= 32:
            time.sleep(60)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_does_not_wait_for_slow_examples(tmp_path, workers):
    def logged(_trainer, step, _metrics):
        if step == 8:
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGHUP]).start()

    trainer = make_trainer(tmp_path / "run", [logged], data={"num_workers": workers}, sft={**SFT, "eval_interval": 5})
    trainer.job = replace(trainer.job, source=Stuck())
    started = time.monotonic()
    result = trainer.run()
    assert time.monotonic() - started < 30
    assert (result.stopped, result.steps) == ("SIGHUP", 8)
    assert find_checkpoint(tmp_path / "run" / "last").name == "step-0000008"
    assert not multiprocessing.active_children()


def test_an_evaluation_that_the_time_limit_leaves_no_time_for_is_left_to_the_resumed_run(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "time_limit": "1000s"})

    def logged(_trainer, step, _metrics):
        if step == 7:
            trainer._evaluation_seconds = 2000.0

    trainer.callbacks = [logged]
    result = trainer.run()
    assert (result.stopped, result.steps) == ("time limit", 8)
    assert read_meta(find_checkpoint(tmp_path / "run" / "last"))["info"]["val_loss"] is None


def test_the_time_limit_abandons_the_first_evaluation_whose_duration_is_unknown(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "time_limit": "1000s"})

    def logged(_trainer, step, _metrics):
        if step == 4:
            trainer.stop.deadline = time.monotonic() + trainer.stop.saving_time + 1

    trainer.callbacks = [logged]
    trainer.validation.losses = lambda: time.sleep(60)
    started = time.monotonic()
    result = trainer.run()
    assert time.monotonic() - started < 30
    assert (result.stopped, result.steps) == ("time limit", 4)
    assert find_checkpoint(tmp_path / "run" / "last").name == "step-0000004"


def test_every_start_advances_however_short_the_time_limit(tmp_path):
    """Each start makes the evaluation that is due or one step, and the run reaches its end."""
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    training = {"batch_size": 4, "keep_checkpoints": 20, "time_limit": "0.000001s"}
    starts, stopped = 0, "time limit"
    while stopped:
        trainer = make_trainer(tmp_path / "run", training=training)
        if steps_of(tmp_path / "run"):
            resumed_from(trainer, find_checkpoint(tmp_path / "run" / "last"))
        stopped, starts = trainer.run().stopped, starts + 1
        assert starts < 20
    assert_equal(trainer, whole)


class KillsItsWorker(CountingDataset):
    """A dataset whose worker process is killed at an example, as by the system when memory is short."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.trainer = index, os.getpid()

    def __getitem__(self, index):
        if index == self.index and os.getpid() != self.trainer:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("index", [0, 37])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_worker_that_dies_ends_the_run_with_a_sentence_after_a_save(tmp_path, index, workers):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    trainer = make_trainer(tmp_path / "run", data={"num_workers": workers})
    trainer.job = replace(trainer.job, source=KillsItsWorker(index))
    with pytest.raises(
        UserError, match=r"(?s)data worker.*killed.*memory.*data.num_workers.*saved.*sft.resume_from="
    ) as raised:
        trainer.run()
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()
    saved = find_checkpoint(tmp_path / "run" / "last")
    again = resumed_from(make_trainer(tmp_path / "run"), saved)
    again.run()
    assert_equal(again, whole)


@pytest.mark.parametrize(("name", "urgent"), [("SIGTERM", True), ("SIGHUP", True), ("SIGINT", False)])
def test_after_a_save_that_a_scheduler_asked_for_nothing_can_take_long(tmp_path, monkeypatch, name, urgent):
    """No picture is drawn, and whatever a library waits for, the process ends within seconds."""
    ends = []

    def leave_within(seconds, code):
        ends.append((seconds <= 10, code, find_checkpoint(tmp_path / "run" / "last").name))

    def logged(_trainer, step, _metrics):
        if step == 3:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr("mini_chat_gpt.training.trainer.leave_within", leave_within)
    trainer = make_trainer(tmp_path / "run", [logged])
    result = trainer.run()
    assert ends == ([(True, 128 + getattr(signal, name), f"step-{result.steps:07d}")] if urgent else [])
    drawn = []
    monkeypatch.setattr("mini_chat_gpt.training.run.draw_losses", drawn.append)
    run._finish(result, trainer, SimpleNamespace(out=Console(quiet=True)))
    assert bool(drawn) != urgent


def test_a_run_that_is_resumed_at_its_end_reports_its_losses_again(tmp_path):
    """Killed after the last save and before result.json, or a recipe that was interrupted in its comparison."""
    whole = make_trainer(tmp_path / "run").run()
    again = resumed_from(make_trainer(tmp_path / "run"), find_checkpoint(tmp_path / "run" / "last")).run()
    assert (again.val_losses, again.train_loss, again.steps) == (whole.val_losses, whole.train_loss, whole.steps)

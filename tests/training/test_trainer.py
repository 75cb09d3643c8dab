"""A resumed run equals an uninterrupted one; metrics and checkpoints record what happened."""

import errno
import io
import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny import CountingDataset, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import best_of, find_checkpoint, steps_of
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.checkpoints.save import Snapshot
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.data.batch_dump import read_ids
from mini_chat_gpt.training.job import Job, Progress, Stage
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until, read_metrics
from mini_chat_gpt.training.optim import lr_fraction
from mini_chat_gpt.training.time_budget import time_run
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Trainer
from mini_chat_gpt.training.validation import Validation

TOKENIZER = tiny_tokenizer()


SFT = {"max_steps": 12, "eval_interval": 4, "save_interval": 3, "learning_rate": 1e-2, "warmup_steps": 2}


def make_trainer(
    folder, callbacks=(), tokenizer=TOKENIZER, validation=4, stages=(), measure=None, **sections
) -> Trainer:
    config = tiny_config(**{"sft": SFT, "training": {"batch_size": 4, "keep_checkpoints": 20}} | sections)
    folder.mkdir(exist_ok=True)
    source = CountingDataset()
    job = Job("sft", config.sft, source, [source[i + 1000] for i in range(validation)], stages=stages, measure=measure)
    model = tiny_model(tokenizer.vocab_size)
    monitor = Monitor(folder, config.wandb, {}, Console(quiet=True))
    engine = TrainStep(model, config, job.phase, pick_precision(config.system.mixed_precision, torch.device("cpu")))
    return Trainer(job, engine, tokenizer, config, folder, monitor, callbacks)


def resumed_from(trainer: Trainer, checkpoint) -> Trainer:
    """Resume a checkpoint with this trainer."""
    trainer.model.load_state_dict(load_model(checkpoint).state_dict())
    trainer.resume(trainer.engine.restore(checkpoint))
    return trainer


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"optimizer": "muon", "tokens_per_step": 60, "keep_checkpoints": 9, "ema": 0.9}},
        {"system": {"mixed_precision": "fp16", "device": "cpu"}, "data": {"num_workers": 1}},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, sections):
    whole = make_trainer(tmp_path / "whole", **sections)
    whole.run()
    make_trainer(tmp_path / "broken", **sections).run()
    checkpoint = tmp_path / "broken" / "step-0000006"
    for later in steps_of(tmp_path / "broken"):
        if later > checkpoint:
            later.rename(tmp_path / f"gone-{later.name}")
    again = resumed_from(make_trainer(tmp_path / "broken", **sections), checkpoint)
    again.run()
    assert replace(again.progress, seconds=0.0) == replace(whole.progress, seconds=0.0)
    assert again.engine.loss_scale == whole.engine.loss_scale
    states = [trainer.engine.snapshot(TOKENIZER, {}, {}).tensors for trainer in (whole, again)]
    assert states[0].keys() == states[1].keys()
    for file, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][file][name]), f"{file}: {name}"


class SlowSource(CountingDataset):
    """Examples that take longer to create than a step takes."""

    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_the_share_of_time_spent_waiting_for_examples_is_logged(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, source=SlowSource())
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["sft/data_wait_share"] for line in lines if "sft/train_loss" in line]
    assert len(shares) == 12
    assert all(0 < share <= 1 for share in shares)


class EasySource(CountingDataset):
    """Examples of another kind than the others."""

    def __getitem__(self, index):
        return replace(super().__getitem__(index), kind="easy")


@pytest.mark.parametrize("workers", [0, 1])
def test_curriculum_stages_come_first_with_their_own_examples_and_step_size(tmp_path, workers):
    stages = [Stage(0.25, EasySource(), tokens_per_step=30), Stage(1 / 6, EasySource(), weight_decay=0.3)]
    trainer = make_trainer(tmp_path / "run", stages=stages, data={"num_workers": workers})
    taken, decays, step = [], [], trainer.engine.train_step

    def watched(examples, fraction, decay, *others):
        taken.append(examples)
        decays.append(decay)
        return step(examples, fraction, decay, *others)

    trainer.engine.train_step = watched
    trainer.run()
    assert [{example.kind for example in examples} == {"easy"} for examples in taken] == [True] * 5 + [False] * 7
    assert all(sum(len(example.ids) for example in examples) >= 30 for examples in taken[:3])
    assert all(len(examples) == 4 for examples in taken[3:])
    assert decays == [None] * 3 + [0.3] * 2 + [None] * 7
    assert trainer.progress.cursor == sum(map(len, taken))  # no example is used twice or left out


def test_a_run_stopped_between_stages_resumes_where_it_stopped(tmp_path):
    stages = [Stage(0.4, EasySource(), tokens_per_step=30)]
    whole = make_trainer(tmp_path / "whole", stages=stages)
    whole.run()
    for step in (3, 6):  # within the stage, and after it
        again = resumed_from(
            make_trainer(tmp_path / f"again-{step}", stages=stages), tmp_path / "whole" / f"step-{step:07d}"
        )
        again.run()
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_the_time_left_counts_tokens_where_stages_have_steps_of_different_sizes(tmp_path, monkeypatch):
    shares = []
    update = StepProgress.update
    monkeypatch.setattr(StepProgress, "update", lambda bar, *rest: shares.append(rest[2]) or update(bar, *rest))
    stages = [Stage(0.25, EasySource(), tokens_per_step=30), Stage(1 / 6, EasySource())]
    settings = {"stages": stages, "training": {"tokens_per_step": 90, "keep_checkpoints": 9}}
    make_trainer(tmp_path / "run", **settings).run()
    tokens = [*range(30, 91, 30), *range(180, 901, 90)]
    assert shares == [each / 900 for each in tokens]
    shares.clear()
    resumed_from(make_trainer(tmp_path / "run", **settings), tmp_path / "run" / "step-0000006").run()
    assert shares == [each / 540 for each in range(90, 541, 90)]
    shares.clear()
    make_trainer(tmp_path / "examples", stages=stages).run()
    assert shares == [None] * 12  # of the tokens of most steps nothing is known


def test_metrics_contain_the_optimized_loss_and_no_line_twice_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    make_trainer(folder).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "sft/train_loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "sft/val_loss" in line] == [4, 8, 12]
    assert {"sft/lr", "sft/tokens_per_second", "sft/grad_norm"} <= set(lines[0])
    keep_metrics_until(folder, 6)
    assert max(json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()) == 6


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path):
    folder = tmp_path / "run"
    losses = iter([3.0, 1.0, 2.0])
    trainer = make_trainer(folder, training={"keep_checkpoints": 1})
    trainer.validation.losses = lambda: {"val_loss": next(losses)}
    trainer.run()
    assert [step.name for step in steps_of(folder)] == ["step-0000008", "step-0000012"]
    assert find_checkpoint(folder).name == "step-0000008"
    assert find_checkpoint(folder / "last").name == "step-0000012"
    assert best_of([folder / "step-0000012"]) == folder / "step-0000012"


def test_an_interrupted_run_saves_its_last_step(tmp_path):
    def interrupt(_trainer, step, _metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    result = make_trainer(tmp_path / "run", callbacks=[interrupt]).run()
    assert result.stopped == "SIGINT"
    assert steps_of(tmp_path / "run")[-1].name == f"step-{result.steps:07d}"
    assert result.steps in (5, 6)


def test_a_small_model_learns_its_examples(tmp_path):
    config = SFTSection(max_steps=150, learning_rate=1e-2, warmup_steps=5, eval_interval=150, save_interval=150)
    trainer = make_trainer(
        tmp_path / "run", sft=config.model_dump(), training={"examples_per_step": 16, "batch_size": 16}
    )
    before = trainer.validation.losses()["val_loss"]
    result = trainer.run()
    assert before > 5
    assert result.val_losses["val_loss"] < 0.5


class PoisonedSource(CountingDataset):
    """Examples whose loss is NaN, from index 12 on by default."""

    def __init__(self, first: int = 12, last: int = 10**9) -> None:
        super().__init__()
        self.first, self.last = first, last

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return replace(example, weight=float("nan")) if self.first <= index <= self.last else example


def test_non_finite_steps_in_a_row_end_the_run_and_their_examples_are_saved(tmp_path):
    sft = {"max_steps": 12, "eval_interval": 12, "save_interval": 3}
    training = {"batch_size": 4, "max_nonfinite_steps": 3, "keep_checkpoints": 9}
    trainer = make_trainer(tmp_path / "run", sft=sft, training=training)
    trainer.job = replace(trainer.job, source=PoisonedSource())
    messages: list[str] = []
    trainer.monitor.message = messages.append
    with pytest.raises(UserError, match=r"step 6: loss nan.*3 non-finite steps in a row") as raised:
        trainer.run()
    assert str(tmp_path / "run" / "nonfinite_steps") in str(raised.value)
    assert messages[0].startswith("step 4: loss nan, gradient norm nan: not finite, the weights are unchanged")
    texts = sorted((tmp_path / "run" / "nonfinite_steps").iterdir())
    assert [text.name for text in texts] == [f"step-000000{step}-rank-0.txt" for step in (4, 5, 6)]
    expected = [trainer.job.source[index].ids.tolist() for index in range(12, 16)]
    assert sorted(read_ids(texts[0].read_text())) == sorted(expected)
    assert steps_of(tmp_path / "run")[-1].name == "step-0000003"


def test_a_single_non_finite_step_is_counted_and_the_run_continues(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, source=PoisonedSource(12, 12))
    assert trainer.run().steps == 12
    assert trainer.progress.nonfinite_steps == 1
    assert trainer.progress.nonfinite_steps_in_a_row == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["sft/nonfinite_steps"] for line in lines if "sft/nonfinite_steps" in line] == [0] * 3 + [1] * 9


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    sft = {"max_steps": 100, "eval_interval": 2, "save_interval": 50, "patience": 2}
    trainer = make_trainer(tmp_path / "run", sft=sft)
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    trainer.validation.losses = lambda: {"val_loss": next(losses)}
    result = trainer.run()
    assert result.steps == 8
    assert not result.stopped
    assert find_checkpoint(tmp_path / "run").name == "step-0000004"
    assert find_checkpoint(tmp_path / "run" / "last").name == "step-0000008"


def test_a_time_limit_saves_and_stops(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "time_limit": "0.001s"})
    result = trainer.run()
    assert result.stopped == "time limit"
    assert steps_of(tmp_path / "run")[-1].name == f"step-{result.steps:07d}"


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "ema": 0.9})
    result = trainer.run()
    saved = load_model(steps_of(tmp_path / "run")[-1])
    for name, average in trainer.engine.average.averages.items():
        assert torch.equal(saved.state_dict()[name], average)
    assert any(not torch.equal(p, saved.state_dict()[name]) for name, p in trainer.model.named_parameters())
    trainer.model.load_state_dict(saved.state_dict())
    assert trainer.validation.losses()["val_loss"] == pytest.approx(result.val_losses["val_loss"])


def test_a_full_disk_ends_the_run_with_a_clear_error(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr(
        "mini_chat_gpt.checkpoints.save.write_tensors",
        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(UserError, match="no space left on device"):
        trainer.run()
    assert not list((tmp_path / "run").glob("*step-*"))


def test_timing_steps_for_a_budget_leaves_the_run_unchanged(tmp_path):
    trainer, fresh = (make_trainer(tmp_path / name, training={"batch_size": 4, "ema": 0.9}) for name in "ab")
    plan = time_run(trainer, seconds=0.1)
    assert plan.step > 0
    assert plan.steps_in(plan.evaluation + 50 * plan.step, eval_interval=1000) in (49, 50)
    for ours, theirs in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for one in (trainer, fresh):
        one.set_total_steps(7)
        one.run()
    for ours, theirs in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again = resumed_from(make_trainer(tmp_path / "a"), tmp_path / "a" / "step-0000006")
    assert again.total_steps == 7


def test_the_best_evaluation_can_be_chosen_by_a_score(tmp_path):
    scores = iter([0.2, 0.9, 0.4])
    trainer = make_trainer(
        tmp_path / "run",
        sft={**SFT, "best_metric": "eval/moral/exact"},
        measure=lambda _: {"eval/moral/exact": next(scores)},
    )
    result = trainer.run()
    assert result.scores == {"eval/moral/exact": 0.4}
    assert find_checkpoint(tmp_path / "run").name == "step-0000008"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["sft/eval/moral/exact"] for line in lines if "sft/eval/moral/exact" in line] == [0.2, 0.9, 0.4]
    with pytest.raises(UserError, match=r"sft.best_metric is 'eval/x', but this run has no scores; use val_loss"):
        make_trainer(tmp_path / "other", sft={**SFT, "best_metric": "eval/x"})


def test_a_checkpoint_of_an_earlier_version_keeps_its_best(tmp_path):
    sft = {**SFT, "best_metric": "eval/moral/exact"}

    def measure(_model):
        return {"eval/moral/exact": 0.5}

    make_trainer(tmp_path / "run", sft=sft, measure=measure).run()
    checkpoint = tmp_path / "run" / "step-0000012"
    state = json.loads((checkpoint / "training_state.json").read_text())
    progress = state["progress"]
    expected = Progress.from_json(progress, "state")
    assert expected.best_metric == "eval/moral/exact"
    progress["accidents"] = progress.pop("nonfinite_steps")  # old name
    progress["accidents_in_a_row"] = progress.pop("nonfinite_steps_in_a_row")  # old name
    progress["best_by"] = progress.pop("best_metric").replace("eval/", "suite/")
    (checkpoint / "training_state.json").write_text(json.dumps(state))
    resumed = resumed_from(make_trainer(tmp_path / "run", sft=sft, measure=measure), checkpoint)
    assert resumed.progress == expected


def test_checkpoints_of_an_earlier_version_are_ranked_with_new_ones(tmp_path):
    scores, run = iter([0.2, 0.9, 0.4]), tmp_path / "run"
    sft = {**SFT, "best_metric": "eval/moral/exact"}
    make_trainer(run, sft=sft, measure=lambda _: {"eval/moral/exact": next(scores)}).run()
    old = run / "step-0000008" / "mini_chat_gpt.json"
    meta = json.loads(old.read_text())
    meta["info"]["goodness"] = meta["info"].pop("score")
    meta["info"]["best_by"] = meta["info"].pop("best_metric").replace("eval/", "suite/")
    old.write_text(json.dumps(meta))
    assert best_of(steps_of(run)).name == "step-0000008"


def test_between_equal_scores_the_loss_decides_and_non_finite_scores_rank_last(tmp_path):
    scores, losses = iter([float("nan"), 0.5, 0.5]), iter([1.0, 3.0, 2.0])
    by_score = {**SFT, "best_metric": "eval/moral/exact"}
    run = tmp_path / "run"
    trainer = make_trainer(
        run, sft=by_score, measure=lambda _: {"eval/moral/exact": next(scores)}, training={"keep_checkpoints": 9}
    )
    trainer.validation.losses = lambda: {"val_loss": next(losses)}
    trainer.run()
    assert find_checkpoint(run).name == "step-0000012"
    assert trainer.progress.best == [0.5, -2.0]
    assert best_of([run / "step-0000004"]) is None


def test_a_run_resumed_with_another_best_metric_compares_by_that_one(tmp_path):
    run, scores = tmp_path / "run", iter([0.9, 0.2])
    losses = iter([4.0, 3.5, 3.0])
    by_score = {**SFT, "best_metric": "eval/moral/exact"}
    first = make_trainer(
        run, sft=by_score, measure=lambda _: {"eval/moral/exact": next(scores)}, training={"keep_checkpoints": 9}
    )
    first.validation.losses = lambda: {"val_loss": next(losses)}
    first.total_steps = 8
    first.run()
    assert find_checkpoint(run).name == "step-0000004"
    again = resumed_from(make_trainer(run, training={"keep_checkpoints": 9}), run / "step-0000008")
    again.validation.losses = lambda: {"val_loss": next(losses)}
    again.total_steps = 12
    again.run()
    assert find_checkpoint(run).name == "step-0000012"  # by the loss, although the first one has the best score
    assert (again.progress.best, again.progress.best_metric) == ([-3.0, -3.0], "val_loss")


def test_nothing_that_only_shows_ends_a_run(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def scores(_model):
        raise KeyError("no reply")

    run = tmp_path / "run"
    sft = {**SFT, "best_metric": "eval/moral/exact"}
    trainer = make_trainer(run, callbacks=[fail], measure=scores, sft=sft)
    trainer.monitor.console = Console(record=True, file=io.StringIO(), width=200)
    trainer.job = replace(trainer.job, show=fail)
    trainer.validation = Validation(trainer.job, trainer.engine, attempt=trainer.monitor.attempt)
    monkeypatch.setattr("mini_chat_gpt.training.trainer.describe", fail)
    assert trainer.run().steps == 12
    assert steps_of(run)[-1].name == "step-0000012"
    assert json.loads((run / "step-0000012" / "mini_chat_gpt.json").read_text())["info"]["score"] is None
    text = trainer.monitor.console.export_text()
    for what in ("A callback", "Writing first_batch.txt", "Scoring the eval tasks", "Generating samples"):
        assert text.count(f"{what} failed (") == 1


def test_samples_of_any_text_are_written(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, show=lambda _: "a\ud800b")
    trainer.validation = Validation(trainer.job, trainer.engine, attempt=trainer.monitor.attempt)
    trainer.run()
    assert (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8").count("a\ufffdb") == 3


def test_a_checkpoint_that_is_being_written_when_training_fails_is_completed(tmp_path, monkeypatch):
    class DamagedRecord(CountingDataset):
        def __getitem__(self, index):
            if index > 20:
                raise UserError("record 20 is damaged")
            return super().__getitem__(index)

    write = Snapshot.write

    def write_slowly(self, *arguments, **options):
        time.sleep(0.3)
        return write(self, *arguments, **options)

    monkeypatch.setattr(Snapshot, "write", write_slowly)
    trainer = make_trainer(tmp_path, sft={"save_interval": 1}, training={"examples_per_step": 8})
    trainer.job = replace(trainer.job, source=DamagedRecord())
    with pytest.raises(UserError, match="record 20 is damaged"):
        trainer.run()
    assert find_checkpoint(tmp_path, "last").name == "step-0000002"


class PartlyWeightless(CountingDataset):
    """Examples of which those with these indices have a loss weight of 0."""

    def __init__(self, *weightless: int) -> None:
        super().__init__()
        self.weightless = weightless

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return replace(example, weight=0.0) if index in self.weightless else example


def test_a_step_without_weight_is_skipped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path / "run", sft={**SFT, "max_steps": 4})
    trainer.job = replace(trainer.job, source=PartlyWeightless(*range(4, 8), *range(12, 16)))
    result = trainer.run()
    assert (result.steps, trainer.progress.cursor, trainer.progress.nonfinite_steps) == (4, 16, 0)
    assert math.isfinite(result.train_loss)
    assert math.isfinite(trainer.progress.smoothed_loss)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "sft/train_loss" in line] == [1, 3]
    assert [line["step"] for line in lines if "sft/trained_tokens" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["source", "stage"])
def test_examples_without_any_weight_are_refused_at_the_start(tmp_path, where):
    source = PartlyWeightless(*range(1000))
    stages = [Stage(0.5, source)] if where == "stage" else []
    trainer = make_trainer(tmp_path / "run")
    with pytest.raises(UserError, match="There is nothing to train on: the loss weights of the examples are 0"):
        replace(trainer.job, stages=stages, source=trainer.job.source if stages else source)


def test_the_last_step_of_a_long_run_is_logged_whatever_its_number(tmp_path):
    sft = {"max_steps": 203, "eval_interval": 500, "save_interval": 500, "warmup_steps": 2}
    trainer = make_trainer(tmp_path / "run", sft=sft, training={"batch_size": 1})
    trainer.run()
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if "sft/train_loss" in line]
    assert steps == [*range(10, 201, 10), 203]


def test_the_time_of_a_step_is_the_mean_over_all_steps(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    assert trainer._seconds_per_step() == 0
    trainer.progress.step, trainer.progress.seconds = 4, 10.0
    assert trainer._seconds_per_step() == 2.5


def test_the_learning_rate_of_a_step_that_changes_nothing_is_that_of_the_schedule(tmp_path):
    """A resumed run, whose optimizer has made no step yet, logs the same."""
    trainer = make_trainer(tmp_path / "run", sft=SFT | {"max_steps": 4, "schedule": "linear"})
    trainer.job = replace(trainer.job, source=PoisonedSource(0, 3))
    trainer.run()
    rates = [line["sft/lr"] for line in read_metrics(tmp_path / "run") if "sft/lr" in line]
    phase = trainer.job.phase
    expected = [lr_fraction(n, 4, phase.warmup_steps, "linear", phase.final_lr_fraction) for n in range(4)]
    assert rates == [phase.learning_rate * fraction for fraction in expected]

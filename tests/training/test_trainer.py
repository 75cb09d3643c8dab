"""A resumed run equals an unbroken one; what is logged is what happened."""

import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from tiny import CountingDataset, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import best_of, find_checkpoint, steps_of
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.data.batch_dump import read_ids
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until
from mini_chat_gpt.training.run_state import run_snapshot
from mini_chat_gpt.training.time_budget import time_run
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Job, Stage, Trainer

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


def go_on(trainer: Trainer, checkpoint) -> Trainer:
    """The trainer as a resumed run has it."""
    trainer.model.load_state_dict(load_model(checkpoint).state_dict())
    trainer.resume(checkpoint)
    return trainer


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"optimizer": "muon", "tokens_per_step": 60, "keep_checkpoints": 9, "ema": 0.9}},
        {"system": {"mixed_precision": "fp16", "device": "cpu"}, "data": {"num_workers": 1}},
    ],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, sections):
    whole = make_trainer(tmp_path / "whole", **sections)
    whole.run()
    make_trainer(tmp_path / "broken", **sections).run()
    checkpoint = tmp_path / "broken" / "step-0000006"
    for later in steps_of(tmp_path / "broken"):
        if later > checkpoint:
            later.rename(tmp_path / f"gone-{later.name}")
    again = go_on(make_trainer(tmp_path / "broken", **sections), checkpoint)
    again.run()
    assert replace(again.progress, seconds=0.0) == replace(whole.progress, seconds=0.0)
    assert again.engine.loss_scale == whole.engine.loss_scale
    states = [run_snapshot(trainer.engine, TOKENIZER, {}, {}).tensors for trainer in (whole, again)]
    assert states[0].keys() == states[1].keys()
    for file, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][file][name]), f"{file}: {name}"


def test_a_checkpoint_from_before_waiting_was_counted_can_be_continued(tmp_path):
    make_trainer(tmp_path / "run").run()
    checkpoint = tmp_path / "run" / "step-0000006"
    state = json.loads((checkpoint / "training_state.json").read_text())
    del state["progress"]["window"]["waiting"]
    (checkpoint / "training_state.json").write_text(json.dumps(state))
    assert go_on(make_trainer(tmp_path / "run"), checkpoint).progress.step == 6


class SlowSource(CountingDataset):
    """Examples that take longer to make than a step takes."""

    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_the_share_of_waiting_for_examples_is_recorded(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, source=SlowSource())
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["sft/data_wait_share"] for line in lines if "sft/train_loss" in line]
    assert len(shares) == 12
    assert all(0 < share <= 1 for share in shares)


class OneLetterSource(CountingDataset):
    """Examples that can be told from the others by their kind."""

    def __getitem__(self, index):
        return replace(super().__getitem__(index), kind="easy")


@pytest.mark.parametrize("workers", [0, 1])
def test_stages_come_first_with_their_own_examples_and_step_size(tmp_path, workers):
    stages = [Stage(0.25, OneLetterSource(), tokens_per_step=30), Stage(1 / 6, OneLetterSource(), weight_decay=0.3)]
    trainer = make_trainer(tmp_path / "run", stages=stages, data={"num_workers": workers})
    taken, decays, step = [], [], trainer.engine.step

    def watched(examples, fraction, decay, *others):
        taken.append(examples)
        decays.append(decay)
        return step(examples, fraction, decay, *others)

    trainer.engine.step = watched
    trainer.run()
    assert [{example.kind for example in examples} == {"easy"} for examples in taken] == [True] * 5 + [False] * 7
    assert all(sum(len(example.ids) for example in examples) >= 30 for examples in taken[:3])
    assert all(len(examples) == 4 for examples in taken[3:])
    assert decays == [None] * 3 + [0.3] * 2 + [None] * 7
    assert trainer.progress.cursor == sum(map(len, taken))  # no example index is used twice or left out


def test_a_run_stopped_between_stages_goes_on_where_it_was(tmp_path):
    stages = [Stage(0.4, OneLetterSource(), tokens_per_step=30)]
    whole = make_trainer(tmp_path / "whole", stages=stages)
    whole.run()
    for step in (3, 6):  # within the stage, and after it
        again = go_on(make_trainer(tmp_path / f"again-{step}", stages=stages), tmp_path / "whole" / f"step-{step:07d}")
        again.run()
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_metrics_hold_what_was_optimised_and_no_line_twice_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    make_trainer(folder).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "sft/train_loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "sft/val_loss" in line] == [4, 8, 12]
    assert {"sft/lr", "sft/tokens_per_second", "sft/grad_norm"} <= set(lines[0])
    keep_metrics_until(folder, 6)
    assert max(json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()) == 6


def test_the_best_and_the_newest_checkpoints_stay(tmp_path):
    folder = tmp_path / "run"
    losses = iter([3.0, 1.0, 2.0])
    trainer = make_trainer(folder, training={"keep_checkpoints": 1})
    trainer.validate = lambda: {"val_loss": next(losses)}
    trainer.run()
    assert [step.name for step in steps_of(folder)] == ["step-0000008", "step-0000012"]
    assert find_checkpoint(folder).name == "step-0000008"
    assert find_checkpoint(folder / "last").name == "step-0000012"
    assert best_of([folder / "step-0000012"]) == folder / "step-0000012"


def test_an_interrupt_saves_the_step_it_stopped_at(tmp_path):
    def interrupt(_trainer, step, _metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    result = make_trainer(tmp_path / "run", callbacks=[interrupt]).run()
    assert result.stopped == "SIGINT"
    assert steps_of(tmp_path / "run")[-1].name == f"step-{result.steps:07d}"
    assert result.steps in (5, 6)


def test_a_small_model_learns_what_it_is_shown(tmp_path):
    config = SFTSection(max_steps=150, learning_rate=1e-2, warmup_steps=5, eval_interval=150, save_interval=150)
    trainer = make_trainer(
        tmp_path / "run", sft=config.model_dump(), training={"examples_per_step": 16, "batch_size": 16}
    )
    before = trainer.validate()["val_loss"]
    result = trainer.run()
    assert before > 5
    assert result.val_losses["val_loss"] < 0.5


class PoisonedSource(CountingDataset):
    """From index 12 on, examples whose loss is not a number."""

    def __init__(self, first: int = 12, last: int = 10**9) -> None:
        super().__init__()
        self.first, self.last = first, last

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return replace(example, weight=float("nan")) if self.first <= index <= self.last else example


def test_accidents_in_a_row_end_the_run_and_their_examples_are_kept(tmp_path):
    sft = {"max_steps": 12, "eval_interval": 12, "save_interval": 3}
    training = {"batch_size": 4, "max_nonfinite_steps": 3, "keep_checkpoints": 9}
    trainer = make_trainer(tmp_path / "run", sft=sft, training=training)
    trainer.job = replace(trainer.job, source=PoisonedSource())
    with pytest.raises(UserError, match=r"step 6: loss nan.*3 steps in a row were not finite") as raised:
        trainer.run()
    assert str(tmp_path / "run" / "accidents") in str(raised.value)
    texts = sorted((tmp_path / "run" / "accidents").iterdir())
    assert [text.name for text in texts] == [f"step-000000{step}-rank-0.txt" for step in (4, 5, 6)]
    expected = [trainer.job.source[index].ids.tolist() for index in range(12, 16)]
    assert sorted(read_ids(texts[0].read_text())) == sorted(expected)
    assert steps_of(tmp_path / "run")[-1].name == "step-0000003"


def test_a_single_accident_is_counted_and_the_run_goes_on(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.job = replace(trainer.job, source=PoisonedSource(12, 12))
    assert trainer.run().steps == 12
    assert trainer.progress.accidents == 1
    assert trainer.progress.accidents_in_a_row == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["sft/accidents"] for line in lines if "sft/accidents" in line] == [0] * 3 + [1] * 9


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    sft = {"max_steps": 100, "eval_interval": 2, "save_interval": 50, "patience": 2}
    trainer = make_trainer(tmp_path / "run", sft=sft)
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    trainer.validate = lambda: {"val_loss": next(losses)}
    result = trainer.run()
    assert result.steps == 8
    assert not result.stopped
    assert find_checkpoint(tmp_path / "run").name == "step-0000004"
    assert find_checkpoint(tmp_path / "run" / "last").name == "step-0000008"


def test_a_time_limit_saves_and_leaves(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "time_limit": "0.001s"})
    result = trainer.run()
    assert result.stopped == "time limit"
    assert steps_of(tmp_path / "run")[-1].name == f"step-{result.steps:07d}"


def test_averaged_weights_are_what_is_evaluated_and_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 4, "ema": 0.9})
    result = trainer.run()
    saved = load_model(steps_of(tmp_path / "run")[-1])
    for name, average in trainer.engine.average.averages.items():
        assert torch.equal(saved.state_dict()[name], average)
    assert any(not torch.equal(p, saved.state_dict()[name]) for name, p in trainer.model.named_parameters())
    trainer.model.load_state_dict(saved.state_dict())
    assert trainer.validate()["val_loss"] == pytest.approx(result.val_losses["val_loss"])


def test_what_the_disk_refuses_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr(
        "mini_chat_gpt.checkpoints.save.save_file",
        lambda *_, **__: (_ for _ in ()).throw(SafetensorError("IoError(Os { code: 28, kind: StorageFull })")),
    )
    with pytest.raises(UserError, match="no space left on device"):
        trainer.run()
    assert not list((tmp_path / "run").glob("*step-*"))


def test_planning_by_time_leaves_no_trace(tmp_path):
    trainer, fresh = (make_trainer(tmp_path / name, training={"batch_size": 4, "ema": 0.9}) for name in "ab")
    plan = time_run(trainer, seconds=0.1)
    assert plan.step > 0
    assert plan.steps_in(plan.evaluation + 50 * plan.step, eval_interval=1000) in (49, 50)
    for ours, theirs in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for one in (trainer, fresh):
        one.plan(7)
        one.run()
    for ours, theirs in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again = go_on(make_trainer(tmp_path / "a"), tmp_path / "a" / "step-0000006")
    assert again.total_steps == 7


def test_the_best_may_be_chosen_by_a_score(tmp_path):
    scores = iter([0.2, 0.9, 0.4])
    trainer = make_trainer(
        tmp_path / "run",
        sft={**SFT, "best_metric": "suite/moral/exact"},
        measure=lambda _: {"suite/moral/exact": next(scores)},
    )
    result = trainer.run()
    assert result.scores == {"suite/moral/exact": 0.4}
    assert find_checkpoint(tmp_path / "run").name == "step-0000008"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["sft/suite/moral/exact"] for line in lines if "sft/suite/moral/exact" in line] == [0.2, 0.9, 0.4]
    with pytest.raises(UserError, match=r"sft.best_metric is 'suite/x', but nothing is scored here; take val_loss"):
        make_trainer(tmp_path / "other", sft={**SFT, "best_metric": "suite/x"})


def test_a_checkpoint_of_an_earlier_version_keeps_its_best(tmp_path):
    make_trainer(tmp_path / "run").run()
    state = tmp_path / "run" / "step-0000012" / "training_state.json"
    facts = json.loads(state.read_text())
    best, _ = facts["progress"].pop("best")
    del facts["progress"]["best_by"]
    for earlier in ({"best_val_loss": -best}, {"best": best}):
        state.write_text(json.dumps(facts | {"progress": facts["progress"] | earlier}))
        again = go_on(make_trainer(tmp_path / "run"), tmp_path / "run" / "step-0000012")
        assert again.progress.best == [best, -math.inf]
        again.val_losses = {"val_loss": 1.0}
        assert again.standing() == [-1, -1]


def test_between_equal_scores_the_loss_decides_and_what_is_not_finite_is_worst(tmp_path):
    scores, losses = iter([float("nan"), 0.5, 0.5]), iter([1.0, 3.0, 2.0])
    by_score = {**SFT, "best_metric": "suite/moral/exact"}
    run = tmp_path / "run"
    trainer = make_trainer(
        run, sft=by_score, measure=lambda _: {"suite/moral/exact": next(scores)}, training={"keep_checkpoints": 9}
    )
    trainer.validate = lambda: {"val_loss": next(losses)}
    trainer.run()
    assert find_checkpoint(run).name == "step-0000012"
    assert trainer.progress.best == [0.5, -2.0]
    assert best_of([run / "step-0000004"]) is None


def test_a_run_that_goes_on_by_another_measure_judges_by_that_one(tmp_path):
    run, scores = tmp_path / "run", iter([0.9, 0.2])
    losses = iter([4.0, 3.5, 3.0])
    by_score = {**SFT, "best_metric": "suite/moral/exact"}
    first = make_trainer(
        run, sft=by_score, measure=lambda _: {"suite/moral/exact": next(scores)}, training={"keep_checkpoints": 9}
    )
    first.validate = lambda: {"val_loss": next(losses)}
    first.total_steps = 8
    first.run()
    assert find_checkpoint(run).name == "step-0000004"
    again = go_on(make_trainer(run, training={"keep_checkpoints": 9}), run / "step-0000008")
    again.validate = lambda: {"val_loss": next(losses)}
    again.total_steps = 12
    again.run()
    assert find_checkpoint(run).name == "step-0000012"  # by the loss, though the first had the best score
    assert (again.progress.best, again.progress.best_by) == ([-3.0, -3.0], "val_loss")

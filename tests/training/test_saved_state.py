"""A resume uses the optimizer state, averages and position of a checkpoint only if each value is one that the run can have."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CountingDataset, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import OPTIMIZER, RAW, STATE, read_state
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training.job import Progress
from mini_chat_gpt.training.saved_state import read_progress
from mini_chat_gpt.training.train_step import TrainStep

TOKENIZER = tiny_tokenizer()
STEPS = 2
NAME = "layers.1.mlp.up_proj.weight"


def make_engine(model=None, **training) -> TrainStep:
    config = tiny_config(training=training, sft={"learning_rate": 1e-2})
    model = model or tiny_model(TOKENIZER.vocab_size)
    return TrainStep(model, config, config.sft, pick_precision(False, torch.device("cpu")))


def save(folder: Path, steps: int = STEPS, **training) -> Path:
    """A checkpoint of a run of some steps."""
    engine, source = make_engine(**training), CountingDataset()
    for step in range(steps):
        engine.train_step([source[step], source[step + 9]], step=step)
    progress = Progress(STEPS, nonfinite_steps=STEPS - steps)
    return engine.snapshot(TOKENIZER, {"job": "sft", "step": STEPS}, asdict(progress)).write(folder)


def resume(checkpoint: Path, reset_optimizer: bool = False, **training) -> TrainStep:
    engine = make_engine(load_model(checkpoint), **training)
    engine.restore(checkpoint, reset_optimizer)
    return engine


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def replace(field: str, make):
    """A change of the tensor `field` of one parameter."""
    return lambda tensors: tensors.update({f"{NAME}/{field}": make(tensors[f"{NAME}/{field}"]).contiguous()})


MUTANTS = {
    "another shape": (replace("exp_avg", lambda t: t[:4]), "shape [4, 32] instead of [96, 32]"),
    "a scalar": (replace("exp_avg_sq", lambda t: t.sum()), "shape [] instead of"),
    "transposed": (replace("exp_avg", lambda t: t.T), "shape [32, 96] instead of"),
    "empty": (replace("exp_avg", lambda t: t[:0]), "shape [0, 32] instead of"),
    "another type": (replace("exp_avg", lambda t: t.double()), "as float64 instead of float32"),
    "half precision": (replace("exp_avg_sq", lambda t: t.bfloat16()), "as bfloat16 instead of float32"),
    "a step as an integer": (replace("step", lambda t: t.long()), "as int64 instead of float32"),
    "a step as a vector": (replace("step", lambda t: t[None]), "shape [1] instead of []"),
    "missing": (lambda tensors: tensors.pop(f"{NAME}/exp_avg_sq"), f"lacks the tensor '{NAME}/exp_avg_sq'"),
    "no parameter at all": (lambda tensors: tensors.clear(), "lacks"),
    "foreign": (lambda tensors: tensors.update(x=torch.zeros(3)), "has the tensor 'x' that should not be there"),
    "NaN": (replace("exp_avg", lambda t: t * torch.nan), f"{NAME}/exp_avg in {OPTIMIZER} has an impossible value"),
    "infinite": (replace("exp_avg_sq", lambda t: t + torch.inf), "exp_avg_sq in"),
    "negative squares": (replace("exp_avg_sq", lambda t: -t - 1), "exp_avg_sq in"),
    "a step that is NaN": (replace("step", lambda t: t * torch.nan), "step in"),
    "a negative step": (replace("step", lambda t: -t), "step in"),
    "a step beyond the run's": (replace("step", lambda t: t + 1), "step in"),
    "half a step": (replace("step", lambda t: t - 0.5), "step in"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_optimizer_state_that_the_run_can_not_have_is_named_and_nothing_is_assigned(tmp_path, mutant):
    change, words = MUTANTS[mutant]
    checkpoint = save(tmp_path / "c")
    change_tensors(checkpoint / OPTIMIZER, change)
    engine = make_engine(load_model(checkpoint))
    with pytest.raises(UserError) as caught:
        engine.restore(checkpoint)
    for part in (words, str(checkpoint), "training.reset_optimizer=true"):
        assert part in str(caught.value)
    assert engine.optimizer.state_tensors() == {}
    resume(checkpoint, reset_optimizer=True).train_step([CountingDataset()[0]])


def test_momentum_of_another_shape_is_named(tmp_path):
    checkpoint = save(tmp_path / "c", optimizer="muon")
    change_tensors(checkpoint / OPTIMIZER, replace("momentum_buffer", lambda t: t[:, :3]))
    with pytest.raises(UserError, match=r"momentum_buffer' with the shape \[96, 3\] instead of \[96, 32\]"):
        resume(checkpoint, optimizer="muon")


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_needs_the_explicit_choice_to_discard_its_state(tmp_path, before, now):
    checkpoint = save(tmp_path / "c", optimizer=before)
    with pytest.raises(UserError, match=rf"training.optimizer={before}, but it is {now} now; .*reset_optimizer=true"):
        resume(checkpoint, optimizer=now)
    engine = resume(checkpoint, reset_optimizer=True, optimizer=now)
    assert engine.optimizer.state_tensors() == {}
    engine.train_step([CountingDataset()[0]])
    assert engine.optimizer.state_tensors().keys() == engine.optimizer.state_shapes().keys()


def test_a_run_without_a_single_update_has_no_state_yet(tmp_path):
    checkpoint = save(tmp_path / "c", steps=0)
    assert resume(checkpoint).optimizer.state_tensors() == {}


RAW_MUTANTS = {
    "another shape": (lambda tensors: tensors.update({NAME: tensors[NAME][:1]}), r"\[1, 32\] instead of \[96, 32\]"),
    "missing": (lambda tensors: tensors.pop(NAME), f"lacks the tensor '{NAME}'"),
    "another type": (lambda tensors: tensors.update({NAME: tensors[NAME].int()}), "as int32 instead of float32"),
    "NaN": (lambda tensors: tensors[NAME].fill_(torch.nan), f"{NAME} in {RAW} has an impossible value"),
}


@pytest.mark.parametrize("mutant", RAW_MUTANTS)
def test_weights_beside_the_average_that_do_not_fit_are_named(tmp_path, mutant):
    change, words = RAW_MUTANTS[mutant]
    checkpoint = save(tmp_path / "c", ema=0.5)
    change_tensors(checkpoint / RAW, change)
    with pytest.raises(UserError, match=words):
        resume(checkpoint, ema=0.5)


def test_weights_beside_an_average_that_nothing_mentions_are_not_ignored(tmp_path):
    """Without its mention, training would continue with the average."""
    checkpoint = save(tmp_path / "c", ema=0.5)
    state = json.loads((checkpoint / STATE).read_text())
    state["averaged_stepz"] = state.pop("averaged_steps")
    (checkpoint / STATE).write_text(json.dumps(state))
    with pytest.raises(UserError, match="averaged_steps is missing"):
        resume(checkpoint, ema=0.5)


def test_weights_that_are_not_finite_are_not_trained_on(tmp_path):
    checkpoint = save(tmp_path / "c")
    change_tensors(checkpoint / "model.safetensors", lambda tensors: tensors[f"model.{NAME}"].fill_(torch.inf))
    with pytest.raises(UserError, match=f"{NAME} in the weights has an impossible value; use another checkpoint"):
        resume(checkpoint)


def test_an_average_that_begins_or_ends_at_a_resume_is_said(tmp_path):
    without, averaged = save(tmp_path / "a"), save(tmp_path / "b", ema=0.5)
    engine = make_engine(load_model(without), ema=0.5)
    (begins,) = engine.restore(without).changes
    assert "the average of the weights begins with those of step 2" in begins
    assert engine.average.steps == 0
    engine = make_engine(load_model(averaged))
    (ends,) = engine.restore(averaged).changes
    assert "training continues with the weights of step 2; their average ends here" in ends
    assert torch.equal(engine.model.state_dict()[NAME], load_file(averaged / RAW)[NAME])
    assert make_engine(load_model(averaged), ema=0.9).restore(averaged).changes == []
    (reset,) = make_engine(load_model(without)).restore(without, reset_optimizer=True).changes
    assert "starts without state" in reset


JSON_MUTANTS = {
    "a missing step": lambda state: state["progress"].pop("step"),
    "a missing cursor": lambda state: state["progress"].pop("cursor"),
    "a missing window": lambda state: state["progress"].pop("window"),
    "a window without its sums": lambda state: state["progress"]["window"].pop("loss_sum"),
    "a negative step": lambda state: state["progress"].update(step=-1),
    "negative seconds": lambda state: state["progress"].update(seconds=-0.5),
    "a negative weight": lambda state: state["progress"]["window"].update(weight=-0.5),
    "a count as text": lambda state: state["progress"].update(trained_tokens="5"),
    "a sum as text": lambda state: state["progress"]["window"].update(loss_sum="1.0"),
    "a step as text": lambda state: state["progress"].update(step="2"),
    "half a step": lambda state: state["progress"].update(step=2.5),
    "a step of 30 digits": lambda state: state["progress"].update(step=10**30),
    "another step than the checkpoint's": lambda state: state["progress"].update(step=1),
    "a loss that is text": lambda state: state["progress"].update(smoothed_loss="low"),
    "a best that is a number": lambda state: state["progress"].update(best=3),
    "a window that is a list": lambda state: state["progress"].update(window=[1]),
    "no progress": lambda state: state.pop("progress"),
    "progress as a list": lambda state: state.update(progress=[]),
    "a negative count of averages": lambda state: state.update(averaged_steps=-1),
    "more averages than steps": lambda state: state.update(averaged_steps=3),
    "more non-finite steps than steps": lambda state: state["progress"].update(nonfinite_steps=3),
    "a loss scale of zero": lambda state: state.update(loss_scale={"value": 0.0, "good_steps": 0}),
    "a loss scale that is NaN": lambda state: state.update(loss_scale={"value": float("nan"), "good_steps": 0}),
    "a loss scale that is a number": lambda state: state.update(loss_scale=65536.0),
}


@pytest.mark.parametrize("mutant", JSON_MUTANTS)
def test_a_position_that_no_run_can_have_is_one_sentence(tmp_path, mutant):
    checkpoint = save(tmp_path / "c")
    state = json.loads((checkpoint / STATE).read_text())
    JSON_MUTANTS[mutant](state)
    (checkpoint / STATE).write_text(json.dumps(state))
    with pytest.raises(UserError, match=rf"{STATE} .*; use another checkpoint"):
        read_progress(checkpoint)


def test_a_loss_scale_just_after_an_overflow_is_read(tmp_path):
    checkpoint = save(tmp_path / "c")
    state = json.loads((checkpoint / STATE).read_text())
    (checkpoint / STATE).write_text(json.dumps(state | {"loss_scale": {"value": 32768.0, "good_steps": 0}}))
    assert read_state(checkpoint).loss_scale.good_steps == 0

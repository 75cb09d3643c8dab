"""The state of a run as files of its checkpoints: what `training/train_step.py` holds, out and in again, to the bit.

With averaged weights (`training.ema`) the folder's model is the average, which is what was evaluated and what people want;
the weights that training goes on with lie beside it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.find import OPTIMIZER, RAW, read_state
from mini_chat_gpt.checkpoints.load import read_tensors
from mini_chat_gpt.checkpoints.save import Snapshot, take_snapshot
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.train_step import LossScale, TrainStep


def run_snapshot(
    engine: TrainStep, tokenizer: ChatTokenizer, info: dict[str, Any], progress: dict[str, Any]
) -> Snapshot:
    """Copies of all that a resume needs, and of the model as it would be used."""
    state: dict[str, Any] = {"progress": progress}
    files = {OPTIMIZER: engine.optimizer.state_tensors()}
    if engine.loss_scale is not None:
        state["loss_scale"] = asdict(engine.loss_scale)
    if engine.average is not None:
        state["averaged_steps"] = engine.average.steps
        files[RAW] = {name: parameter.detach().clone() for name, parameter in engine.average.parameters.items()}
    with engine.averaged():
        return take_snapshot(engine.model, tokenizer, info, files, state)


@torch.no_grad()
def read_run_state(checkpoint: Path, engine: TrainStep) -> dict[str, Any]:
    """Put a checkpoint's state into an engine whose model has the checkpoint's weights already; returns training_state.json.

    Raises UserError where it doesn't fit this run's settings.
    """
    state = read_state(checkpoint)
    if engine.average is not None:
        averages = {name: parameter.clone() for name, parameter in engine.average.parameters.items()}
        engine.average.load(averages, state.get("averaged_steps", 0))
    if "averaged_steps" in state:  # the model's own file holds the average
        parameters = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
        raw = read_tensors(checkpoint, RAW, parameters.get)
        for name, parameter in parameters.items():
            parameter.copy_(raw[name])
    if engine.loss_scale is not None and "loss_scale" in state:
        engine.loss_scale = LossScale(**state["loss_scale"])
    try:
        engine.optimizer.load_state_tensors(read_tensors(checkpoint, OPTIMIZER, engine.optimizer.parameter_of))
    except KeyError as error:
        raise UserError(
            f"{checkpoint}: the optimizer's state does not fit this run ({error}); is training.optimizer the same?"
        ) from None
    return state

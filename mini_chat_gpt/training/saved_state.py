"""What a checkpoint holds for a resume: optimizer state, weights besides the average, loss scale and position.

Everything is read and compared with what this run expects before anything of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mini_chat_gpt.checkpoints.find import META, OPTIMIZER, RAW, STATE, SavedLossScale, read_meta, read_state
from mini_chat_gpt.checkpoints.load import read_tensors, tensors_exist, tensors_in
from mini_chat_gpt.common.distributed import World, local_shard
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.training.job import Progress
from mini_chat_gpt.training.optim import Optimizer

Tensors = dict[str, torch.Tensor]
REMEDY = "use another checkpoint of the run"
RESET = "discard the optimizer's state with training.reset_optimizer=true"


@dataclass(frozen=True)
class SavedState:
    """The state of a run in a checkpoint."""

    progress: Progress
    optimizer: Tensors
    raw_weights: Tensors | None  # those that training continues with, if the checkpoint's model is their average
    averaged_steps: int
    loss_scale: SavedLossScale | None


@dataclass(frozen=True)
class Resumed:
    """Where a run continues."""

    progress: Progress
    changes: list[str]
    """Sentences about the parts of its state that begin or end there."""


def read_progress(checkpoint: Path) -> Progress:
    """The position of the run in a checkpoint. Raises UserError if it is damaged."""
    state = read_state(checkpoint)
    progress = Progress.from_json(state.progress.model_dump(), str(checkpoint / STATE))
    if (step := read_meta(checkpoint)["info"].get("step", progress.step)) != progress.step:
        raise UserError(f"{checkpoint / STATE} is of step {progress.step}, but {META} of step {short(step)}; {REMEDY}.")
    if max(progress.nonfinite_steps, state.averaged_steps or 0) > progress.step:
        raise UserError(f"{checkpoint / STATE} is damaged: it counts more steps than {progress.step}; {REMEDY}.")
    return progress


def read_saved_state(checkpoint: Path, optimizer: Optimizer, world: World, reset_optimizer: bool) -> SavedState:
    """Read the state that a run with this optimizer resumes from, on the CPU or sharded like the optimizer's parameters.

    With `reset_optimizer` the optimizer's state is not read, and the result has none. All ranks must call this together.
    Raises UserError for any tensor or number that this run can't have.
    """
    state, progress = read_state(checkpoint), read_progress(checkpoint)
    parameters, raw = optimizer.parameters, None
    if state.averaged_steps is None and tensors_exist(checkpoint, RAW):
        raise UserError(f"{checkpoint / STATE} is damaged: averaged_steps is missing; {REMEDY}.")
    if state.averaged_steps is not None:
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        raw = read_tensors(checkpoint, RAW, shapes, parameters.get, REMEDY)
    tensors = {}
    if not reset_optimizer:
        may_be_empty = state.loss_scale is not None or progress.step <= progress.nonfinite_steps
        tensors = _read_optimizer(checkpoint, optimizer, may_be_empty)
    _require_valid(checkpoint, {"the weights": dict(parameters), RAW: raw or {}, OPTIMIZER: tensors}, progress, world)
    return SavedState(progress, tensors, raw, state.averaged_steps or 0, state.loss_scale)


def _read_optimizer(checkpoint: Path, optimizer: Optimizer, may_be_empty: bool) -> Tensors:
    """The optimizer's state. A run whose steps were all non-finite, or overflows of float16, has none yet."""
    remedy, expected = f"{REMEDY}, or {RESET}", optimizer.state_shapes()
    saved = tensors_in(checkpoint, OPTIMIZER, remedy)
    if saved and (before := _name_of(saved)) != (now := _name_of(expected)):
        raise UserError(
            f"{checkpoint} was trained with training.optimizer={before}, but it is {now} now; set it back, or {RESET}."
        )
    if not saved and may_be_empty:
        return {}
    return read_tensors(checkpoint, OPTIMIZER, expected, optimizer.parameter_of, remedy)


def _name_of(state: Mapping[str, object]) -> str:
    """The optimizer that this state belongs to, as in training.optimizer."""
    return "muon" if any(name.endswith("/momentum_buffer") for name in state) else "adamw"


def _require_valid(checkpoint: Path, files: Mapping[str, Tensors], progress: Progress, world: World) -> None:
    """Raise UserError on all ranks if a tensor has a value on one of them that training can't have produced."""
    tensors = [(file, name, tensor) for file, tensors in files.items() for name, tensor in tensors.items()]
    invalid = (
        number for number, (_, name, tensor) in enumerate(tensors) if not _valid(name, tensor.detach(), progress.step)
    )
    # A sharded tensor may be invalid in the rows of one rank only.
    first = min(number for (number,) in world.gather([next(invalid, len(tensors))]))
    if first < len(tensors):
        file, name, _ = tensors[int(first)]
        remedy = f"{REMEDY}, or {RESET}" if file == OPTIMIZER else REMEDY
        raise UserError(f"{checkpoint}: {name} in {file} has an impossible value; {remedy}.")


def _valid(name: str, tensor: torch.Tensor, steps: int) -> bool:
    values, field = local_shard(tensor), name.rpartition("/")[2]
    if field == "step":
        return 1 <= float(values) <= steps and float(values).is_integer()
    return bool(values.isfinite().all()) and not (field == "exp_avg_sq" and bool((values < 0).any()))


def state_changes(saved: SavedState, averaging: bool, reset_optimizer: bool) -> list[str]:
    """Sentences about the parts of a run's state that begin or end where it is resumed; `averaging` by this run."""
    step, changes = saved.progress.step, []
    if reset_optimizer:
        changes.append(f"training.reset_optimizer: the optimizer starts without state at step {step}.")
    if averaging and saved.raw_weights is None:
        changes.append(f"training.ema is set now: the average of the weights begins with those of step {step}.")
    if not averaging and saved.raw_weights is not None:
        changes.append(
            f"training.ema is not set any more: training continues with the weights of step {step}; their average ends here."
        )
    return changes

"""Checkpoint folders on disk: what is in them, which one a path means, which one of a run is best, and which to delete.

A checkpoint folder of the native family is also a Hugging Face folder. Everything in it is safetensors or JSON; nothing is
pickled. A folder gets its final name only when it is complete, and its manifest reveals later damage.

    config.json model.safetensors tokenizer.json …   what `transformers` reads
    mini_chat_gpt.json                               GPTConfig and metadata of the run
    optimizer.safetensors training_state.json        what is needed to resume training
    raw_weights.safetensors                          the weights being trained, if the model is their moving average
    manifest.json                                    sizes and hashes, and when the folder was written

A checkpoint of an adapter holds the adapter only, see `adapters`. A checkpoint of a sharded model (FSDP2) has the folders
model/, optimizer/ and raw_weights/ instead of the files with these names, see `sharded`.

Checkpoints are ranked by their metadata, which is small. Only the chosen one is verified (`verify`); if it is damaged, the
next one is used, with a warning.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.verify import META, STATE, damage_of, require_metadata
from mini_chat_gpt.checkpoints.verify import MODEL as MODEL  # for those who import the names from here
from mini_chat_gpt.checkpoints.verify import OPTIMIZER as OPTIMIZER
from mini_chat_gpt.checkpoints.verify import RAW as RAW
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name, readable_disk_errors, temporary_name
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json
from mini_chat_gpt.common.manifest import MANIFEST, Damage, read_manifest
from mini_chat_gpt.common.user_paths import nearest_path
from mini_chat_gpt.config import current_metric_name
from mini_chat_gpt.tokenizer.chat_tokenizer import META_FILE

FORMAT = 1
ASIDE = "set-aside-"
ADAPTER_BASE = "adapter-base"
"""Folder within a run for the base of its adapters, if the original base is not a complete checkpoint folder."""
KEEP = ".keep"
"""A file in a checkpoint folder that exempts it from pruning."""


class _Format(JSONRecord):
    format: int


class Meta(JSONRecord):
    """The contents of mini_chat_gpt.json."""

    format: int
    gpt_config: dict[str, Any]
    info: dict[str, Any]
    tokenizer: str | None = None
    adapter: dict[str, Any] | None = None
    sharded: bool = False
    layout: str = ""
    """The model_type of the family in whose form the tensors are; "" for Llama's names."""
    origin: Origin | None = None


class _Progress(JSONRecord):
    model_config = ConfigDict(extra="allow")
    step: Annotated[int, Field(ge=0)]


class SavedLossScale(JSONRecord):
    """The fields of `LossScale`."""

    value: float = Field(gt=0, allow_inf_nan=False)
    good_steps: int = Field(ge=0)


class TrainingState(JSONRecord):
    """The contents of training_state.json."""

    progress: _Progress  # the fields of `Progress`, which checks the others
    averaged_steps: Annotated[int, Field(ge=0)] | None = None
    """Updates of the average, if the checkpoint's model is one."""
    loss_scale: SavedLossScale | None = None


class _Began(JSONRecord):
    time: datetime


class _Run(JSONRecord):
    """What is read of run.json here."""

    began: _Began


class _TokenizerMeta(JSONRecord):
    chat_format: dict[str, Any] | None


def is_checkpoint(folder: Path) -> bool:
    """Whether this is one of our folders, also if its metadata are lost: the rest of it is not a model of another project."""
    if os.path.isfile(folder / META):  # unlike Path.is_file, it never raises
        return True
    with suppress(Damage, OSError):
        return os.path.isfile(folder / MANIFEST) and META in read_manifest(folder).files
    return False


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the contents of mini_chat_gpt.json. Raises UserError if `folder` is not a checkpoint."""
    remedy = "use another checkpoint"
    try:
        if (version := read_json(folder / META, _Format, remedy).format) != FORMAT:
            raise UserError(f"{folder}: unknown checkpoint format {version}; update mini_chat_gpt.")
        return read_json(folder / META, Meta, remedy).model_dump(exclude_unset=True)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a checkpoint: it has no {META}; {remedy}.") from None
    except DamagedJSON as error:
        raise UserError(f"{folder} is not a checkpoint: {error}") from None


def read_state(folder: Path) -> TrainingState:
    """Return what a resume needs besides tensors. Raises UserError for a checkpoint that holds a model only."""
    try:
        return read_json(folder / STATE, TrainingState, "use another checkpoint of the run")
    except FileNotFoundError:
        raise UserError(f"{folder} holds a model but no training state, so training can't resume from it.") from None


def can_chat(folder: Path) -> bool:
    """Whether the model of a checkpoint folder has a chat format. Raises UserError if that can't be read."""
    try:
        return read_json(folder / META_FILE, _TokenizerMeta, "use another checkpoint").chat_format is not None
    except FileNotFoundError:
        raise UserError(f"{folder} has no tokenizer: {META_FILE} is missing; use another checkpoint.") from None


def step_of(folder: Path) -> int | None:
    """The step in the name of a run's checkpoint folder; None for other names."""
    prefix, _, digits = folder.name.partition("step-")
    return int(digits) if not prefix and digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def steps_of(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first. Raises UserError if the folder can't be listed."""
    return [folder for folder in _step_names(run) if folder.is_dir()]


def _step_names(run: Path) -> list[Path]:
    """What has the name of a checkpoint in the run's folder, whether it is a folder or not, oldest first."""
    try:
        paths = [run / name for name in os.listdir(run)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{run} can't be read ({(error.strerror or str(error)).lower()}); check the path.") from None
    steps = {path: step for path in paths if (step := step_of(path)) is not None}
    return sorted(steps, key=lambda path: (steps[path], path.name))


def find_checkpoint(path: Path | str, prefer: str = "best", recheck: bool = False) -> Path:
    """Return the checkpoint folder that `path` means: itself, or the best (else the newest) undamaged one of a run folder.

    "RUN/best" and "RUN/last" choose within a run. Damaged checkpoints of a run are skipped with a warning. A file that has been
    verified before is only read again with `recheck`. Raises UserError.
    """
    path = Path(path)
    try:
        if is_checkpoint(path):
            read_meta(path)
            if reason := damage_of(path, recheck):
                raise UserError(f"The checkpoint {path} is damaged: {reason}. Use another checkpoint of the run.")
            return path
        if path.name in ("best", "last") and not path.exists():
            path, prefer = path.parent, path.name
        if not path.is_dir():
            hint = nearest_path(path) or "; give a checkpoint folder, a run folder such as runs/sft, or a model file."
            raise UserError(f"There is no checkpoint at {path}{hint}")
    except OSError as error:  # a name that is too long, a folder of someone else
        raise UserError(f"{path} can't be read ({(error.strerror or str(error)).lower()}); check the path.") from None
    chosen, damaged = _choose(path, prefer, recheck)
    for folder, reason in damaged.items():
        warnings.warn(f"skipping {folder}: {reason}", stacklevel=1)
    if chosen is None:
        reasons = "".join(f" ({folder.name}: {reason})" for folder, reason in list(damaged.items())[-1:])
        raise UserError(
            f"{path}: no complete checkpoint{reasons}; give a checkpoint folder, or a run folder with step-* folders in it."
        )
    return chosen


def _choose(run: Path, prefer: str, recheck: bool = False) -> tuple[Path | None, dict[Path, str]]:
    """The best or the newest undamaged checkpoint of a run, and the damaged ones that were found, with the reasons.

    The metadata of all checkpoints are read; weights only until an undamaged checkpoint is found.
    """
    readable, damaged = [], {}
    for folder in steps_of(run):
        try:
            require_metadata(folder)
            read_meta(folder)
            readable.append(folder)
        except (UserError, OSError) as error:
            damaged[folder] = str(error)
    best_first = [] if prefer == "last" else _evaluated(readable)
    for folder in dict.fromkeys([*best_first, *reversed(readable)]):
        if reason := damage_of(folder, recheck):
            damaged[folder] = reason
        else:
            return folder, damaged
    return None, damaged


def best_of(folders: Sequence[Path]) -> Path | None:
    """The best of these checkpoints by the best_metric of the newest one; None if none was evaluated by it.

    Of equally good checkpoints it is the one with the lowest validation loss, and of those the newest.
    """
    return next(iter(_evaluated(folders)), None)


def _evaluated(folders: Sequence[Path]) -> list[Path]:
    """Those of these checkpoints (oldest first) that were evaluated by the best_metric of the newest one, the best first."""
    infos = [_with_new_keys(read_meta(folder)["info"]) for folder in folders]
    best_metric = infos[-1].get("best_metric") if infos else None  # a resumed run may use another one than before
    keys = [_rank_key(info, best_metric) for info in infos]
    ranked = [(key, number) for number, key in enumerate(keys) if key is not None]
    return [folders[number] for _, number in sorted(ranked, reverse=True)]


def _with_new_keys(info: dict[str, Any]) -> dict[str, Any]:
    """Replace the keys of runs of November 2026: "goodness" and "best_by"."""
    renamed = {"goodness": "score", "best_by": "best_metric"}
    info = {renamed.get(key, key): value for key, value in info.items()}
    metric = info.get("best_metric")
    return info | {"best_metric": current_metric_name(metric) if isinstance(metric, str) else None}


def _rank_key(info: Mapping[str, Any], best_metric: str | None) -> tuple[float, float] | None:
    """Sort key of checkpoints, higher is better; None if the checkpoint was not evaluated by this metric."""
    loss, score = _finite(info.get("val_loss")), _finite(info.get("score"))
    if best_metric in (None, "val_loss"):
        score = None if loss is None else -loss
    elif info.get("best_metric") != best_metric:
        score = None
    return None if score is None else (score, -math.inf if loss is None else -loss)


def _finite(value: object) -> float | None:
    """A value of the metadata as a number, None if it is not a finite one."""
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def newest_checkpoint(runs: Path | str = "runs", base: bool | None = None) -> Path | None:
    """The most recently written checkpoint or run under `runs`; with `base` only models without (or only with) a chat format.

    Damaged checkpoints, and those of a later version, are passed over with a warning.
    """
    newest: dict[Path, tuple[float, Path]] = {}
    for checkpoint in _checkpoints_under(Path(runs)):
        model = checkpoint if step_of(checkpoint) is None else checkpoint.parent
        try:
            newest[model] = max(newest.get(model, (0.0, checkpoint)), (_written(checkpoint), checkpoint))
        except (Damage, OSError) as error:
            warnings.warn(f"passing over {checkpoint}: {error}", stacklevel=1)
    for model in sorted(newest, key=lambda model: newest[model], reverse=True):
        try:
            if base is not None and _can_chat(newest[model][1]) == base:
                continue  # before anything large is read
            if can_chat(find_checkpoint(model)) != base:  # None differs from both
                return model
        except UserError as error:
            warnings.warn(f"passing over {model}: {error}", stacklevel=1)
    return None


def _can_chat(folder: Path) -> bool | None:
    """`can_chat` of a checkpoint that has not been verified; None if it is damaged."""
    try:
        return can_chat(folder)
    except UserError:
        return None


def _checkpoints_under(runs: Path) -> Iterator[Path]:
    """The checkpoint folders under `runs`.

    Leaves out what is incomplete or being deleted, what an abandoned continuation left, and copies. Links to folders are not
    followed further than one level.
    """

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # there may be no runs yet
            warnings.warn(f"passing over {error.filename}: {(error.strerror or str(error)).lower()}", stacklevel=1)

    for parent, names, _ in os.walk(runs, onerror=unreadable):
        skipped = (".", ASIDE)
        names[:] = [n for n in names if not n.startswith(skipped) and n != ADAPTER_BASE and step_of(Path(n)) is None]
        for folder in [*([runs] if parent == str(runs) else []), *(Path(parent, name) for name in names)]:
            with suppress(OSError, UserError):  # os.walk reports it
                yield from [folder] if is_checkpoint(folder) else filter(is_checkpoint, steps_of(folder))


def _written(folder: Path) -> float:
    """When a checkpoint was written, according to its manifest.

    In November 2026 manifests did not say it. Then it is the beginning of the run (run.json), or else the time of the file.
    """
    if (written := read_manifest(folder).written) is not None:
        return written
    with suppress(FileNotFoundError, DamagedJSON):
        return read_json(folder.parent / "run.json", _Run, "").began.time.timestamp()
    return (folder / META).stat().st_mtime


def prune(run: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best undamaged one. Nothing is deleted if all are damaged.

    Never raises: what can't be deleted stays, with a warning. So does a checkpoint that would be the best if it were not damaged.
    """
    try:
        old = steps_of(run)[:-keep]
        best, damaged = _choose(run, "best") if old else (None, {})
    except UserError as error:
        warnings.warn(f"old checkpoints are not deleted: {error}", stacklevel=1)
        return
    for folder, reason in damaged.items():
        warnings.warn(f"{folder} is damaged, so it is not used: {reason}", stacklevel=1)
    for folder in old if best is not None else []:
        if folder != best and folder not in damaged and not os.path.exists(folder / KEEP):
            _delete(folder)


def _delete(folder: Path) -> None:
    """Delete a checkpoint folder. It is renamed first, so that a half-deleted folder is never mistaken for a checkpoint."""
    try:
        doomed = folder.rename(temporary_name(folder))
        shutil.rmtree(doomed)
    except OSError as error:
        warnings.warn(f"{folder} is not deleted completely ({(error.strerror or str(error)).lower()})", stacklevel=1)


def protect(folder: Path) -> None:
    """Exempt a run's checkpoint from pruning, because an adapter needs it as its base. Raises UserError if the disk refuses."""
    if step_of(folder) is not None:
        with readable_disk_errors(folder):
            (folder / KEEP).touch()


def move_aside(run: Path, step: int) -> list[Path]:
    """Rename what has the name of a step after `step`, so that a run resumed from it does not collide with its checkpoints.

    Returns the new paths. Raises UserError if the disk refuses.
    """
    moved = []
    for path in _step_names(run):
        if (step_of(path) or 0) > step:
            with readable_disk_errors(path):
                moved.append(path.rename(free_name(path.with_name(f"{ASIDE}{path.name}"))))
    return moved

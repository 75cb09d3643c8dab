"""Checkpoint folders on disk: what is in them, which one a path means, which one of a run is best, and which to delete.

A checkpoint folder of the native family is also a Hugging Face folder. Everything in it is safetensors or JSON; nothing is
pickled. A folder gets its final name only when it is complete, and its manifest reveals later damage.

    config.json model.safetensors tokenizer.json …   what `transformers` reads
    mini_chat_gpt.json                               GPTConfig and metadata of the run
    optimizer.safetensors training_state.json        what is needed to resume training
    raw_weights.safetensors                          the weights being trained, if the model is their moving average
    manifest.json                                    sizes and hashes

A checkpoint of an adapter holds the adapter only, see `adapters`. A checkpoint of a sharded model (FSDP2) has the folders
model/, optimizer/ and raw_weights/ instead of the files with these names, see `sharded`.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import find_damage, free_name, temporary_name
from mini_chat_gpt.config import current_metric_name

META, MODEL, OPTIMIZER = "mini_chat_gpt.json", "model.safetensors", "optimizer.safetensors"
STATE = "training_state.json"
RAW = "raw_weights.safetensors"
FORMAT = 1
ASIDE = "set-aside-"
ADAPTER_BASE = "adapter-base"
"""Folder within a run for the base of its adapters, if the original base is not a complete checkpoint folder."""


def is_checkpoint(folder: Path) -> bool:
    return (folder / META).is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the contents of mini_chat_gpt.json. Raises UserError if `folder` is not a checkpoint."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a checkpoint: {META} can't be read ({error}).") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{folder}: unknown checkpoint format {meta.get('format')}; update mini_chat_gpt.")
    return meta


def read_state(folder: Path) -> dict[str, Any]:
    """Return what a resume needs besides tensors. Raises UserError for a checkpoint that holds a model only."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds a model but no training state, so training can't resume from it.") from None


def steps_of(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    return sorted(folder for folder in run.glob("step-*") if folder.is_dir() and folder.name[5:].isdigit())


def find_checkpoint(path: Path | str, prefer: str = "best") -> Path:
    """Return the checkpoint folder that `path` means: itself, or the best (else the newest) undamaged one of a run folder.

    "RUN/best" and "RUN/last" choose within a run. Damaged checkpoints of a run are skipped with a warning. Raises UserError.
    """
    path = Path(path)
    if is_checkpoint(path):
        if reason := find_damage(path):
            raise UserError(f"The checkpoint {path} is damaged: {reason}. Use another checkpoint of the run.")
        return path
    if path.name in ("best", "last") and not path.exists():
        path, prefer = path.parent, path.name
    if not path.is_dir():
        raise UserError(
            f"There is no checkpoint at {path}; give a checkpoint folder, a run folder such as runs/sft, or a model file."
        )
    undamaged = []
    for folder in steps_of(path):
        if reason := find_damage(folder):
            warnings.warn(f"skipping {folder}: {reason}", stacklevel=2)
        else:
            undamaged.append(folder)
    if not undamaged:
        raise UserError(
            f"{path} has no complete checkpoint; give a checkpoint folder, or a run folder with step-* folders in it."
        )
    if prefer == "last":
        return undamaged[-1]
    return best_of(undamaged) or undamaged[-1]


def best_of(folders: list[Path]) -> Path | None:
    """The best of these checkpoints by the best_metric of the newest one; None if none was evaluated by it.

    Of equally good checkpoints it is the one with the lowest validation loss, and of those the newest.
    """
    infos = [_with_new_keys(read_meta(folder)["info"]) for folder in folders]
    best_metric = infos[-1].get("best_metric") if infos else None  # a resumed run may use another one than before
    ranked = [
        (rank_key, folder)
        for info, folder in zip(infos, folders, strict=True)
        if (rank_key := _rank_key(info, best_metric)) is not None
    ]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _with_new_keys(info: dict[str, Any]) -> dict[str, Any]:
    """Replace the keys of runs of November 2026: "goodness" and "best_by"."""
    renamed = {"goodness": "score", "best_by": "best_metric"}
    info = {renamed.get(key, key): value for key, value in info.items()}
    return info | {"best_metric": current_metric_name(info.get("best_metric"))}


def _rank_key(info: Mapping[str, Any], best_metric: str | None) -> tuple[float, float, int] | None:
    """Sort key of checkpoints, higher is better; None if the checkpoint was not evaluated by this metric."""
    loss, score = info.get("val_loss"), info.get("score")
    if best_metric in (None, "val_loss"):
        score = None if loss is None else -loss
    elif info.get("best_metric") != best_metric:
        score = None
    if score is None or not math.isfinite(score):
        return None
    return score, -loss if loss is not None and math.isfinite(loss) else -math.inf, info.get("step", 0)


def newest_checkpoint(runs: Path | str = "runs", base: bool | None = None) -> Path | None:
    """The most recently written checkpoint or run under `runs`; with `base` only plain-text (or only chat) models."""
    candidates = []
    for meta in Path(runs).rglob(META):
        if any(part.startswith((".", ASIDE)) or part == ADAPTER_BASE for part in meta.parts):
            continue  # incomplete, being deleted, from an abandoned continuation, or a copy
        job = read_meta(meta.parent)["info"].get("job")
        if base is None or base == (job != "sft"):
            candidates.append((meta.stat().st_mtime, meta.parent))
    if not candidates:
        return None
    newest = max(candidates)[1]
    return newest.parent if newest.name.startswith("step-") else newest


def prune(run: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best one."""
    folders = steps_of(run)
    best = best_of(folders)
    for folder in folders[:-keep]:
        if folder != best:
            # Rename first, so that a half-deleted folder is never mistaken for a checkpoint.
            doomed = temporary_name(folder)
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def move_aside(run: Path, step: int) -> list[Path]:
    """Rename the run's checkpoints of steps after `step`, so that a run resumed from it does not collide with them.

    Returns the new paths.
    """
    moved = []
    for folder in steps_of(run):
        if int(folder.name.removeprefix("step-")) > step:
            moved.append(folder.rename(free_name(folder.with_name(f"{ASIDE}{folder.name}"))))
    return moved

"""Checkpoints: a model, its tokenizer and, for training, its optimizer, in one self-contained folder.

For the native family the folder is a Hugging Face folder at the same time. Everything is safetensors or JSON: nothing is
unpickled. A folder appears under its name only when it is complete, and its manifest shows later damage.

    config.json model.safetensors tokenizer.json …   what `transformers` reads
    mini_chat_gpt.json                               our GPTConfig and facts about the run
    optimizer.safetensors training_state.json        to go on training
    manifest.json                                    sizes and hashes
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.device import pick_device
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.files import atomic_folder, damage
from mini_chat_gpt.hf_llama import from_hf_state, to_hf_config, to_hf_state, why_not_llama
from mini_chat_gpt.model import GPT, model_of
from mini_chat_gpt.optim import Optimizer
from mini_chat_gpt.tokenizer import ChatTokenizer

META = "mini_chat_gpt.json"
FORMAT = 1


def save_checkpoint(
    folder: Path | str,
    model: GPT,
    tokenizer: ChatTokenizer,
    info: dict[str, Any] | None = None,
    optimizer: Optimizer | None = None,
    state: dict[str, Any] | None = None,
) -> Path:
    """Write a new checkpoint folder, whole or not at all. `info` says where it comes from; `state` is what a resume needs.

    Raises UserError if the folder exists or the disk refuses.
    """
    folder = Path(folder)
    config = model.config
    if why_not_llama(config) is None:
        hf_config = to_hf_config(config, tokenizer)
    else:  # a name that `transformers` doesn't know, so that it says so instead of loading something else
        hf_config = {"model_type": "mini_chat_gpt", "vocab_size": config.vocab_size}
    with atomic_folder(folder) as draft:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        _write_tensors(draft / "model.safetensors", to_hf_state(weights, config))
        tokenizer.save(draft)
        _write_json(draft / "config.json", hf_config)
        _write_json(draft / META, {"format": FORMAT, "gpt_config": config.model_dump(), "info": info or {}})
        if optimizer is not None:
            moments = {name: tensor.detach().cpu().contiguous() for name, tensor in optimizer.state_tensors().items()}
            _write_tensors(draft / "optimizer.safetensors", moments)
        if state is not None:
            _write_json(draft / "training_state.json", state)
    return folder


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.write_bytes(to_bytes(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checkpoint(path: Path | str, device: str | torch.device = "auto") -> tuple[GPT, ChatTokenizer]:
    """Model (in eval mode) and tokenizer from a checkpoint or run folder, a llama2.c .bin or nanoGPT's ckpt.pt.

    Raises UserError with the reason if there is none, or if it is damaged.
    """
    target = device if isinstance(device, torch.device) else pick_device(device)
    if Path(path).is_file():
        from mini_chat_gpt.interop import import_model

        model, tokenizer = import_model(Path(path))
    else:
        folder = find_checkpoint(path)
        model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
    return model.to(target).eval(), tokenizer


def load_model(folder: Path) -> GPT:
    """The model of one checkpoint folder, on the CPU."""
    meta = read_meta(folder)
    try:
        config = GPTConfig(**meta["gpt_config"])
        return model_of(config, from_hf_state(load_file(folder / "model.safetensors"), config))
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} holds no model that can be read: {str(error).splitlines()[0]}") from None


def read_meta(folder: Path) -> dict[str, Any]:
    """Our JSON of a checkpoint folder."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no checkpoint: {META} can't be read ({error}).") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{folder}: checkpoint format {meta.get('format')} is not known here; update mini_chat_gpt.")
    return meta


def read_state(folder: Path) -> dict[str, Any]:
    """What a resume needs to know. Raises UserError for a checkpoint that holds a model only."""
    try:
        return json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds a model but no training state, so training can't go on from it.") from None


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Put a checkpoint's moments back into an optimizer of the same kind over the same parameters."""
    try:
        optimizer.load_state_tensors(load_file(folder / "optimizer.safetensors"))
    except (KeyError, OSError) as error:
        raise UserError(f"{folder}: the optimizer's state does not fit this run ({error}).") from None


def steps_of(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    return sorted(folder for folder in run.glob("step-*") if folder.is_dir())


def is_checkpoint(folder: Path) -> bool:
    return (folder / META).is_file()


def find_checkpoint(path: Path | str, prefer: str = "best") -> Path:
    """The checkpoint folder that `path` means: itself, or the best (else newest) whole one of a run folder.

    "RUN/best" and "RUN/last" choose within a run. A damaged one is named in a warning and passed over. Raises UserError.
    """
    path = Path(path)
    if is_checkpoint(path):
        if reason := damage(path):
            raise UserError(f"The checkpoint {path} is damaged: {reason}. Take another one of the run.")
        return path
    if path.name in ("best", "last") and not path.exists():
        path, prefer = path.parent, path.name
    if not path.is_dir():
        raise UserError(
            f"There is no checkpoint at {path}; give a checkpoint folder, a run folder such as runs/sft, or a model file."
        )
    whole = []
    for folder in steps_of(path):
        if reason := damage(folder):
            warnings.warn(f"passing over {folder}: {reason}", stacklevel=2)
        else:
            whole.append(folder)
    if not whole:
        raise UserError(
            f"{path} holds no whole checkpoint; give a checkpoint folder, or a run folder with step-* inside."
        )
    if prefer == "last":
        return whole[-1]
    return best_of(whole) or whole[-1]


def best_of(folders: list[Path]) -> Path | None:
    """The checkpoint with the lowest validation loss, None if none was evaluated."""
    scored = [(value, folder) for folder in folders if (value := validation_loss(folder)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def validation_loss(folder: Path) -> float | None:
    """Validation loss recorded in a checkpoint, if it was evaluated."""
    return read_meta(folder)["info"].get("val_loss")


def newest_checkpoint(runs: Path | str = "runs", base: bool | None = None) -> Path | None:
    """The most recently written checkpoint or run under `runs`; with `base` only plain-text (or only chat) models."""
    found = []
    for meta in Path(runs).rglob(META):
        if any(part.startswith(".") for part in meta.parts):
            continue  # being written, or being deleted
        job = read_meta(meta.parent)["info"].get("job")
        if base is None or base == (job != "sft"):
            found.append((meta.stat().st_mtime, meta.parent))
    if not found:
        return None
    newest = max(found)[1]
    return newest.parent if newest.name.startswith("step-") else newest


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    folders = steps_of(run)
    best = best_of(folders)
    for folder in folders[:-keep]:
        if folder != best:
            # Renamed first, so that a half-deleted folder is never taken for a checkpoint.
            doomed = folder.with_name(f".{folder.name}.old")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

"""Checkpoints: a model, its tokenizer and, for training, its optimizer, in one self-contained folder.

For the native family the folder is a Hugging Face folder at the same time. Everything is safetensors or JSON: nothing is
unpickled. A folder appears under its name only when it is complete, and its manifest shows later damage.

    config.json model.safetensors tokenizer.json …   what `transformers` reads
    mini_chat_gpt.json                               our GPTConfig and facts about the run
    optimizer.safetensors training_state.json        to go on training
    raw_weights.safetensors                          the weights being trained, where the model is their average
    manifest.json                                    sizes and hashes

Of a model of which an adapter is trained only the adapter is written, see adapter_files.py; loaded, the two are one again.
A run whose model is in shards (FSDP2) writes folders model/, optimizer/ and raw_weights/ instead of these files, see sharding.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mini_chat_gpt.checkpoints.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    adapter_facts,
    find_base,
    load_adapter,
    peft_config,
    read_adapter,
    trained_parameters,
)
from mini_chat_gpt.checkpoints.hf import from_hf_state, to_hf_config, to_hf_state, why_not_llama
from mini_chat_gpt.checkpoints.sharded import Like, read_file, read_shards, shards_of, write_together
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.distributed import ALONE, World, is_dtensor
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, damage, free_name
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import Adapter, Frozen, add_lora, merge_lora
from mini_chat_gpt.model import GPT, model_of
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

META, MODEL, OPTIMIZER = "mini_chat_gpt.json", "model.safetensors", "optimizer.safetensors"
STATE = "training_state.json"
RAW = "raw_weights.safetensors"
FORMAT = 1
ASIDE = "set-aside-"
ADAPTER_BASE = "adapter-base"
"""In a run's folder: the base of its adapters, where that isn't a checkpoint that has all it needs."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a checkpoint folder will hold, copied off the model, so that training can go on while it is written."""

    model_config: GPTConfig
    tokenizer: ChatTokenizer
    tensors: dict[str, dict[str, torch.Tensor]]  # by file: model.safetensors, optimizer.safetensors, …
    info: dict[str, Any]  # where it comes from
    state: dict[str, Any] | None  # what a resume needs beside tensors
    adapter: Adapter | None = None  # what the tensors are, where they are no whole model

    def write(self, folder: Path | str, world: World = ALONE) -> Path:
        """Write the folder, whole or not at all. Raises UserError if it exists or the disk refuses.

        Of a model in shards all processes of `world` have a snapshot, and write it together.
        """
        folder = Path(folder)
        if world.size > 1:
            write_together(folder, self.tensors, self._write_rest, world)
            return folder
        with atomic_folder(folder) as draft:
            for name, tensors in self.tensors.items():
                _write_tensors(draft / name, tensors)
            self._write_rest(draft)
        return folder

    def _write_rest(self, draft: Path) -> None:
        """All but the tensors."""
        config = self.model_config
        self.tokenizer.save(draft)
        meta = {"format": FORMAT, "gpt_config": config.model_dump(), "info": self.info}
        if self.adapter is not None:
            _write_json(draft / ADAPTER_CONFIG, peft_config(self.adapter, config))
            meta["adapter"] = adapter_facts(self.adapter, draft)
        elif why_not_llama(config) is None:
            _write_json(draft / "config.json", to_hf_config(config, self.tokenizer))
        else:  # a name that `transformers` doesn't know, so that it says so instead of loading something else
            _write_json(draft / "config.json", {"model_type": "mini_chat_gpt", "vocab_size": config.vocab_size})
        if any(is_dtensor(tensor) for tensors in self.tensors.values() for tensor in tensors.values()):
            meta["sharded"] = True
        _write_json(draft / META, meta)
        if self.state is not None:
            _write_json(draft / STATE, self.state)


def take_snapshot(
    model: GPT,
    tokenizer: ChatTokenizer,
    info: dict[str, Any] | None = None,
    tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    state: dict[str, Any] | None = None,
) -> Snapshot:
    """Copies of the model's weights and of further `tensors` (by file name), as they are now."""
    if model.adapter is not None:
        files = {ADAPTER: _copied(trained_parameters(model))}
    else:
        files = {MODEL: to_hf_state(_copied(model.state_dict()), model.config)}
    files |= {name: _copied(those) for name, those in (tensors or {}).items()}
    return Snapshot(model.config, tokenizer, files, info or {}, state, model.adapter)


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, and nobody else's."""
    return {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }


def save_checkpoint(
    folder: Path | str, model: GPT, tokenizer: ChatTokenizer, info: dict[str, Any] | None = None
) -> Path:
    """Write a model and its tokenizer into a new folder. Raises UserError if the folder exists or the disk refuses."""
    return take_snapshot(model, tokenizer, info).write(folder)


class CheckpointWriter:
    """Writes snapshots behind training's back, one at a time, and deletes the checkpoints of the run that need not stay.

    Of a model in shards each process has a writer, in a world `apart`: what these say to each other may not come between
    what training says.
    """

    def __init__(self, run: Path, keep: int, world: World = ALONE) -> None:
        self.run, self.keep, self.world = run, keep, world
        self.seconds = 0.0  # that the last one took
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def write(self, name: str, snapshot: Snapshot) -> None:
        """Begin to write the run's checkpoint `name`, once the one before is done. Raises what went wrong with that one."""
        self.wait()
        # A daemon: a second Ctrl-C leaves at once, and a checkpoint half written is never seen.
        self._thread = threading.Thread(target=self._write, args=(name, snapshot), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written any more. Raises UserError if the disk refused."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, name: str, snapshot: Snapshot) -> None:
        started = time.monotonic()
        try:
            snapshot.write(self.run / name, self.world)
            if self.world.is_main:
                prune(self.run, self.keep)
        except BaseException as error:
            self._failure = error
        self.seconds = time.monotonic() - started


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As safetensors, straight from the tensors' memory. Raises OSError, as any other way of writing does."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library lets nobody but the owner read what it writes
    except SafetensorError as error:
        code = re.search(r"code: (\d+)", str(error))  # "IoError(Os { code: 28, … })"
        raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checkpoint(path: Path | str, device: str | torch.device = "auto") -> tuple[GPT, ChatTokenizer]:
    """Model (in eval mode) and tokenizer from a checkpoint or run folder, a llama2.c .bin or nanoGPT's ckpt.pt.

    Raises UserError with the reason if there is none, or if it is damaged.
    """
    target = device if isinstance(device, torch.device) else pick_device(device)
    if Path(path).is_file():
        from mini_chat_gpt.checkpoints.foreign import import_model

        model, tokenizer = import_model(Path(path))
    else:
        folder = find_checkpoint(path)
        model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
    return model.to(target).eval(), tokenizer


def load_model(folder: Path) -> GPT:
    """The model of one checkpoint folder, on the CPU; an adapter's is merged into its base."""
    meta = read_meta(folder)
    if "adapter" in meta:
        model = load_adapted(folder)
        merge_lora(model)
        return model
    with _readable(folder):
        config = GPTConfig(**meta["gpt_config"])
        return model_of(config, from_hf_state(_read(folder, MODEL), config))


def load_adapted(folder: Path, base: Path | None = None, frozen: Frozen | None = None) -> GPT:
    """The base of the adapter in `folder` (default: where it says), and the adapter beside it, ready to be trained further.

    The base is kept as `frozen` says; by default as precisely as the adapter knew it: weights that it met in 4 bits are
    rounded to them again, so that what is used is what was trained.
    """
    meta = read_meta(folder)
    with _readable(folder):
        adapter, wanted = read_adapter(meta["adapter"]), GPTConfig(**meta["gpt_config"])
    model = load_model(base or find_base(folder, meta["adapter"]))
    if model.config != wanted:
        fields = [name for name, value in wanted if getattr(model.config, name) != value]
        raise UserError(f"{base} is no base for the adapter {folder}: it differs in {', '.join(fields)}.")
    frozen = frozen or ("nf4" if adapter.frozen == "nf4" else "float32")
    with _readable(folder):
        add_lora(model, adapter.settings, frozen, adapter.token_ids)
        load_adapter(model, _read(folder, ADAPTER))
    model.adapter = replace(adapter, frozen=frozen)
    return model


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Whatever is wrong with a folder's contents in one sentence."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, OSError, SafetensorError) as error:
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
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds a model but no training state, so training can't go on from it.") from None


def read_tensors(folder: Path, name: str, like: Like = lambda _: None) -> dict[str, torch.Tensor]:
    """The tensors of one file of a checkpoint, on the CPU; in shards where `like` gives a tensor in shards for the name.

    Raises UserError if it can't be read.
    """
    try:
        return _read(folder, name, like)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder / name} can't be read ({error}), so training can't go on from there.") from None


def _read(folder: Path, name: str, like: Like = lambda _: None) -> dict[str, torch.Tensor]:
    if read_meta(folder).get("sharded"):
        return read_shards(shards_of(folder, name), like)
    return read_file(folder / name, like)


def steps_of(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    return sorted(folder for folder in run.glob("step-*") if folder.is_dir() and folder.name[5:].isdigit())


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


def require_finite(model: GPT, path: Path) -> None:
    """Raises UserError for weights that are NaN or infinite, of which every number and reply would be nonsense."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{path}: {name} is not finite (NaN or infinite); training has failed there, take an earlier checkpoint."
            )


def best_of(folders: list[Path]) -> Path | None:
    """The best one by what its run looks at now (`best_by`: the validation loss or a score), None if none was evaluated.

    Of several that are as good it is the one with the lowest validation loss, and of those the newest.
    """
    found = [(read_meta(folder)["info"], folder) for folder in folders]
    by = found[-1][0].get("best_by") if found else None  # a run that went on may look at something else than before
    ranked = [(*rank, folder) for info, folder in found if (rank := _rank(info, by)) is not None]
    return max(ranked, key=lambda one: one[:-1])[-1] if ranked else None


def _rank(info: Mapping[str, Any], by: str | None) -> tuple[float, float, int] | None:
    """By what checkpoints are compared, the higher the better; None for one that was not evaluated by this measure."""
    loss, value = info.get("val_loss"), info.get("goodness")
    if by in (None, "val_loss"):
        value = None if loss is None else -loss
    elif info.get("best_by") != by:
        value = None
    if value is None or not math.isfinite(value):
        return None
    return value, -loss if loss is not None and math.isfinite(loss) else -math.inf, info.get("step", 0)


def newest_checkpoint(runs: Path | str = "runs", base: bool | None = None) -> Path | None:
    """The most recently written checkpoint or run under `runs`; with `base` only plain-text (or only chat) models."""
    found = []
    for meta in Path(runs).rglob(META):
        if any(part.startswith((".", ASIDE)) or part == ADAPTER_BASE for part in meta.parts):
            continue  # being written, being deleted, of a branch that was left, or a copy
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


def remove_partial(run: Path) -> None:
    """Delete what a killed process left of checkpoints that it was writing or deleting. Nobody else may be training here."""
    for pattern in (".step-*.tmp", ".step-*.old"):
        for leftover in run.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def move_aside(run: Path, step: int) -> list[Path]:
    """Rename the run's checkpoints of later steps, so that a run going on from `step` meets none of them; returns them."""
    moved = []
    for folder in steps_of(run):
        if int(folder.name.removeprefix("step-")) > step:
            moved.append(folder.rename(free_name(folder.with_name(f"{ASIDE}{folder.name}"))))
    return moved

"""Write checkpoint folders: a snapshot of the model in memory, and a thread that writes snapshots during training."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    adapter_metadata,
    adapter_tensors,
    peft_config,
)
from mini_chat_gpt.checkpoints.build import StoredModel
from mini_chat_gpt.checkpoints.families import Family, family_of_model, plain_part
from mini_chat_gpt.checkpoints.find import FORMAT, META, MODEL, OPTIMIZER, STATE, prune, steps_of
from mini_chat_gpt.checkpoints.hf import HEAD, to_hf_state
from mini_chat_gpt.checkpoints.origin import Origin, write_origin
from mini_chat_gpt.checkpoints.sharded import write_together
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.checkpoints.tensor_parts import join, sources
from mini_chat_gpt.common.distributed import ALONE, World, is_dtensor, local_shard
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, is_disk_full
from mini_chat_gpt.common.rank_failures import WRITER
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint folder, copied from the model, so that training can continue during the write."""

    model_config: GPTConfig
    tokenizer: ChatTokenizer
    tensors: dict[str, dict[str, torch.Tensor]]  # by file: model.safetensors, optimizer.safetensors, …
    info: dict[str, Any]  # metadata of the run
    state: dict[str, Any] | None  # what a resume needs besides tensors
    adapter: Adapter | None = None  # set if the tensors are an adapter instead of a complete model
    origin: Origin | None = None  # of an imported model
    family: Family | None = None  # in whose form it is written, None: in our own
    read: Callable[[str], torch.Tensor] | None = None  # see `write_tensors`

    def write(self, folder: Path | str, world: World = ALONE, replace: bool = False) -> Path:
        """Write the folder atomically. Raises UserError if it exists and is not to be replaced, or the disk refuses.

        For a sharded model every process of `world` has a snapshot, and all of them must call this.
        """
        folder = Path(folder)
        if world.size > 1:
            write_together(folder, self.tensors, self._write_rest, world, replace)
            return folder
        with atomic_folder(folder, replace) as draft:
            for name, tensors in self.tensors.items():
                write_tensors(draft / name, tensors, self.read)
            self._write_rest(draft)
        return folder

    def has_nonfinite_weights(self) -> bool:
        """Whether a weight of the model, or one that training continues with, is NaN or infinite."""
        return not all(
            bool(torch.isfinite(local_shard(tensor)).all())
            for file, tensors in self.tensors.items()
            if file != OPTIMIZER
            for tensor in tensors.values()
        )

    def _write_rest(self, draft: Path) -> None:
        """Write everything but the tensors."""
        config = self.model_config
        self.tokenizer.save(draft)
        meta = {"format": FORMAT, "gpt_config": config.model_dump(), "info": self.info}
        meta["tokenizer"] = self.tokenizer.fingerprint()
        if self.adapter is not None:
            _write_json(draft / ADAPTER_CONFIG, peft_config(self.adapter, config))
            meta["adapter"] = adapter_metadata(self.adapter, draft)
        elif self.family is not None:
            _write_json(draft / "config.json", self.family.config_to_hf(config, self.tokenizer) | self._dtype())
        else:  # a type that `transformers` doesn't know, so that it fails instead of loading a different model
            _write_json(draft / "config.json", {"model_type": "mini_chat_gpt", "vocab_size": config.vocab_size})
        if any(is_dtensor(tensor) for tensors in self.tensors.values() for tensor in tensors.values()):
            meta["sharded"] = True
        elif self.adapter is None and self.family is not None:
            meta["layout"] = self.family.model_type
        if self.origin is not None:
            meta["origin"] = self.origin.model_dump()
            write_origin(draft, self.origin, self.info)
        _write_json(draft / META, meta)
        if self.state is not None:
            _write_json(draft / STATE, self.state)

    def _dtype(self) -> dict[str, str]:
        """The precision of most weights in the terms of config.json; `transformers` loads a model in it."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.get(MODEL, {}).values():
            sizes[tensor.dtype] += tensor.numel()
        if not sizes:
            return {}
        return {"torch_dtype": str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")}


def take_snapshot(
    model: GPT,
    tokenizer: ChatTokenizer,
    info: dict[str, Any] | None = None,
    tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    state: dict[str, Any] | None = None,
    copy: bool = True,
) -> Snapshot:
    """Copy the model's weights and further `tensors` (by file name) as they are now.

    Without `copy` the weights that are on the CPU are the model's own: it must not change before the snapshot is written.
    """
    family, read = family_of_model(model.config, model.origin), None
    if model.adapter is not None:
        files = {ADAPTER: _on_cpu(adapter_tensors(model), copy)}
    else:
        files, read = _model_tensors(model, family, copy)
    files |= {name: _on_cpu(tensors_of_file, copy) for name, tensors_of_file in (tensors or {}).items()}
    return Snapshot(model.config, tokenizer, files, info or {}, state, model.adapter, model.origin, family, read)


def _model_tensors(
    model: GPT, family: Family | None, copy: bool, stored: StoredModel | None = None
) -> tuple[dict[str, dict[str, torch.Tensor]], Callable[[str], torch.Tensor]]:
    """The model's tensors in the form of its family, by file, and a function that returns those that have no data yet.

    Without `copy`, a tensor of the file that is joined of ours is made when it is written. Those that the model itself lacks
    are read from `stored`.
    """
    config, state = model.config, model.state_dict()
    if any(is_dtensor(tensor) for tensor in state.values()):  # processes write their own rows of our tensors
        return {MODEL: to_hf_state(_on_cpu(state, copy), config)}, state.__getitem__
    names = [name for name in state if not (name == HEAD and config.tie_embeddings)]
    held = sources(names, plain_part if family is None else family.hf_part, config)

    def ours(name: str) -> torch.Tensor:
        tensor = state[name].detach()
        return stored.read(name) if tensor.is_meta and stored is not None else tensor

    def read(source: str) -> torch.Tensor:
        part = held[source][0][1]
        tensors = [ours(name) for name, _ in held[source]]
        return tensors[0] if part.is_whole else join(tensors, part.transposed)

    tensors: dict[str, torch.Tensor] = {}
    for source, parts in held.items():
        name, part = parts[0]
        if part.is_whole:
            tensors |= _on_cpu({source: state[name]}, copy)
        elif copy:
            tensors |= _on_cpu({source: read(source)}, copy=False)
        else:
            shape = part.stored_shape(state[name].shape)
            tensors[source] = torch.empty(shape, dtype=state[name].dtype, device="meta")
    return {MODEL: tensors}, read


def _on_cpu(tensors: Mapping[str, torch.Tensor], copy: bool) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU; copies share no memory with anything else."""
    form = torch.contiguous_format
    return {
        name: tensor.detach() if tensor.is_meta else tensor.detach().to("cpu", memory_format=form, copy=copy)
        for name, tensor in tensors.items()
    }


def require_new(folder: Path, source: Path) -> None:
    """Raise UserError if `folder`, to which a command is to write what it makes of `source`, exists already."""
    if folder.exists():
        if not os.path.lexists(source) and source.name not in ("best", "last"):
            raise UserError(
                f"There is no {source}, but there is {folder}: the existing model comes first, then the new folder."
            )
        raise UserError(f"{folder} exists already and is not overwritten; choose another name or move it away.")


def save_checkpoint(
    folder: Path | str,
    model: GPT,
    tokenizer: ChatTokenizer,
    info: dict[str, Any] | None = None,
    stored: StoredModel | None = None,
) -> Path:
    """Write a model and its tokenizer into a new folder. Raises UserError if the folder exists or the disk refuses.

    Weights that a skeleton lacks are read from the `stored` model, one by one.
    """
    snapshot = take_snapshot(model, tokenizer, info, copy=False)
    if stored is not None:
        tensors, read = _model_tensors(model, snapshot.family, False, stored)
        snapshot = replace(snapshot, tensors=tensors, read=read)
    return snapshot.write(folder)


class CheckpointWriter:
    """Writes snapshots in a background thread, one at a time, and prunes the run's older checkpoints.

    For a sharded model every process has a writer. `world` must then have a process group of its own (`World.new_group`),
    because the writer's collectives run concurrently with those of training.
    """

    def __init__(self, run: Path, keep: int, world: World = ALONE) -> None:
        self.run, self.keep, self.world = run, keep, world
        self.seconds = 0.0  # duration of the last write
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def write(self, name: str, snapshot: Snapshot, replace: bool = False) -> None:
        """Start writing the run's checkpoint `name`, or replacing it, after the previous one is done.

        Raises the previous one's error, if any.
        """
        self.wait()
        # A daemon thread: a second Ctrl-C exits at once, and an incomplete checkpoint is never visible.
        self._thread = threading.Thread(target=self._write, name=WRITER, args=(name, snapshot, replace), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread left
            self._thread = None
            self._write(name, snapshot, replace)

    def wait(self) -> None:
        """Wait for the write in progress. Raises UserError if the disk refused."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, name: str, snapshot: Snapshot, replace: bool) -> None:
        started = time.monotonic()
        try:
            try:
                snapshot.write(self.run / name, self.world, replace)
            except UserError as error:
                if self.world.size > 1 or not is_disk_full(error):
                    raise
                # Make room by what would be deleted afterwards anyway.
                n_before = len(steps_of(self.run))
                prune(self.run, max(1, self.keep - 1))
                if len(steps_of(self.run)) == n_before:
                    raise
                snapshot.write(self.run / name, self.world, replace)
            if self.world.is_main:
                prune(self.run, self.keep)
        except BaseException as error:
            self._failure = error
        self.seconds = time.monotonic() - started


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

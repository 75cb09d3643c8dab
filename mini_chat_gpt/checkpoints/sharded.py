"""A model in shards: over the processes of a run (FSDP2), and in the files of its checkpoints.

Each process keeps its rows of every weight, gradient and optimizer state. What a block computes with comes together from all
of them when it computes, and goes again. In a checkpoint each process writes its rows, and nobody ever holds them all:

    model/shard-00001-model-00001-of-00001.safetensors   the rows of the first process, and where they belong
    optimizer/…  raw_weights/…                           as the files of the same names in other checkpoints

These are `torch.distributed.checkpoint`'s files in its safetensors form: nothing in them is unpickled. They are read on any
number of processes, in shards or whole.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from mini_chat_gpt.common.distributed import World, is_dtensor
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import complete, draft_of, readable_disk_errors

Tensors = dict[str, torch.Tensor]
Like = Callable[[str], torch.Tensor | None]
"""The tensor of this run that a saved one of that name is meant for, if there is one."""


def write_together(
    folder: Path, files: Mapping[str, Tensors], write_rest: Callable[[Path], None], world: World
) -> None:
    """Write a checkpoint folder, whole or not at all: each process its shards of `files`, the first one what is left.

    All processes of `world` call this together, and all of them raise UserError if one of their disks refuses.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    if world.broadcast(folder.exists):
        raise UserError(f"{folder} exists already and is not overwritten; choose another name or move it away.")
    draft = world.broadcast(lambda: draft_of(folder))
    try:
        with readable_disk_errors(folder):
            for name, tensors in files.items():
                writer = HuggingFaceStorageWriter(str(shards_of(draft, name)), save_distributed=True)
                writer.per_thread_copy_ahead = (
                    0  # all is on the CPU already; a GPU's stream would be the first GPU's here
                )
                try:
                    save(tensors, storage_writer=writer, process_group=world.group)
                except CheckpointException as error:
                    raise _first_failure(error) from None
        own = len(list(draft.glob(f"*/shard-{world.rank + 1:05d}-*")))
        n_files = int(world.sum([own])[0])
        if problem := world.broadcast(lambda: _complete(draft, folder, write_rest, n_files)):
            raise UserError(problem)
    finally:
        if world.is_main:
            shutil.rmtree(draft, ignore_errors=True)


def _complete(draft: Path, folder: Path, write_rest: Callable[[Path], None], n_files: int) -> str:
    """Add what isn't in shards and give the folder its name; returns what went wrong."""
    try:
        with readable_disk_errors(folder):
            _await_shards(draft, n_files)
            write_rest(draft)
            complete(draft, folder)
    except UserError as error:
        return str(error)
    return ""


PATIENCE = 60.0  # seconds; a network's file system may show what other machines wrote a little later


def _await_shards(draft: Path, n_files: int) -> None:
    """Until the files of all processes are seen here. Raises UserError if they don't come."""
    deadline = time.monotonic() + PATIENCE
    while (seen := len(list(draft.glob("*/shard-*")))) < n_files:
        if time.monotonic() > deadline:
            raise UserError(
                f"Only {seen} of the {n_files} files that the processes wrote are seen in {draft.parent}: a model in shards "
                "needs its run folder on a disk that all machines share; set save_dir to one."
            )
        time.sleep(0.5)


def shards_of(folder: Path, name: str) -> Path:
    """Where the shards of what is elsewhere the file `name` of a checkpoint lie."""
    return folder / Path(name).stem


def read_shards(folder: Path, like: Like) -> Tensors:
    """The tensors whose shards lie in `folder`: each process reads for itself, and only what it needs.

    Where `like` gives a tensor in shards the result is in shards like it, else whole and on the CPU. Raises ValueError if
    rows are missing.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, TensorStorageMetadata, load

    reader = HuggingFaceStorageReader(str(folder))
    found: Tensors = {}
    for name, facts in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(facts, TensorStorageMetadata)
        if sum(prod(chunk.sizes) for chunk in facts.chunks) != prod(facts.size):
            raise ValueError(f"rows of {name} are missing")
        found[name] = _room_for(facts.size, facts.properties.dtype, like(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each for itself is what is meant
        try:
            load(found, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise _first_failure(error) from None
    return found


def _first_failure(error: BaseException) -> BaseException:
    """What happened to one of the processes (to say so `torch.distributed.checkpoint` has an exception of its own)."""
    failures: dict[int, tuple[BaseException, object]] = error.failures  # type: ignore[attr-defined]
    return failures[min(failures)][0]


def read_file(path: Path, like: Like) -> Tensors:
    """The same from an ordinary safetensors file."""
    found: Tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            whole, target = file.get_tensor(name), like(name)
            found[name] = whole if target is None else _distributed(whole, target)
    return found


def _distributed(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """In shards as `like` is, if it is and has the same shape."""
    room = _room_for(whole.shape, whole.dtype, like)
    if not is_dtensor(room):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return room.copy_(distribute_tensor(whole, room.device_mesh, room.placements, src_data_rank=None))  # type: ignore[attr-defined]


def _room_for(shape: torch.Size, dtype: torch.dtype, like: torch.Tensor | None) -> torch.Tensor:
    if like is not None and is_dtensor(like) and like.shape == shape:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype)

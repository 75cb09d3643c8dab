"""Sharded checkpoints (FSDP2): each process writes its rows of every tensor, and no process ever holds all of them.

    model/shard-00001-model-00001-of-00001.safetensors   the rows of the first process, and their offsets
    optimizer/…  raw_weights/…                           like the files of the same names in other checkpoints

The files are those of `torch.distributed.checkpoint` in its safetensors format; nothing in them is pickled. They can be read
on any number of processes, sharded or unsharded.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from mini_chat_gpt.checkpoints.tensor_files import TensorInfo, read_header
from mini_chat_gpt.common.distributed import World, is_dtensor
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import complete, readable_disk_errors, temporary_name
from mini_chat_gpt.common.json_files import JSONRecord, parse_json

Tensors = dict[str, torch.Tensor]
Like = Callable[[str], torch.Tensor | None]
"""Returns the current tensor with the given name, if there is one; a sharded one decides how the saved one is loaded."""


def write_together(
    folder: Path,
    files: Mapping[str, Tensors],
    write_rest: Callable[[Path], None],
    world: World,
    replace: bool = False,
) -> None:
    """Write a checkpoint folder atomically. Each process writes its shards of `files`, the first one also everything else.

    All processes of `world` must call this, and all of them raise UserError if one of their disks refuses.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    if not replace and world.broadcast(folder.exists):
        raise UserError(f"{folder} exists already and is not overwritten; choose another name or move it away.")
    draft = world.broadcast(lambda: temporary_name(folder))
    try:
        with readable_disk_errors(folder):
            for name, tensors in files.items():
                writer = HuggingFaceStorageWriter(str(shards_of(draft, name)), save_distributed=True)
                # All tensors are on the CPU already. Copying ahead would use a stream of the first GPU.
                writer.per_thread_copy_ahead = 0
                try:
                    save(tensors, storage_writer=writer, process_group=world.group)
                except CheckpointException as error:
                    raise _first_failure(error) from None
        n_own = len(list(draft.glob(f"*/shard-{world.rank + 1:05d}-*")))
        n_files = int(world.sum([n_own])[0])
        if problem := world.broadcast(lambda: _complete(draft, folder, write_rest, n_files, replace)):
            raise UserError(problem)
    finally:
        if world.is_main:
            shutil.rmtree(draft, ignore_errors=True)


def _complete(draft: Path, folder: Path, write_rest: Callable[[Path], None], n_files: int, replace: bool) -> str:
    """Add the files that are not sharded and give the folder its final name. Returns the error message, or "" on success."""
    try:
        with readable_disk_errors(folder):
            _await_shards(draft, n_files)
            write_rest(draft)
            complete(draft, folder, replace)
    except UserError as error:
        return str(error)
    return ""


TIMEOUT = 60.0  # seconds; on a network file system, files of other machines may appear with a delay


def _await_shards(draft: Path, n_files: int) -> None:
    """Wait until the files of all processes are visible here. Raises UserError after a timeout."""
    deadline = time.monotonic() + TIMEOUT
    while (n_visible := len(list(draft.glob("*/shard-*")))) < n_files:
        if time.monotonic() > deadline:
            raise UserError(
                f"Only {n_visible} of the {n_files} files that the processes wrote are visible in {draft.parent}: a sharded "
                "model needs its run folder on a disk that all machines share; set save_dir to one."
            )
        time.sleep(0.5)


def shards_of(folder: Path, name: str) -> Path:
    """The folder with the shards of what is the file `name` in an unsharded checkpoint."""
    return folder / Path(name).stem


class _Place(JSONRecord):
    """Where a shard belongs in its tensor."""

    saved_offsets: tuple[int, ...]


def read_shards_header(folder: Path) -> dict[str, TensorInfo]:
    """The complete tensors whose shards are in `folder`, without reading them.

    Raises ValueError or OSError for a damaged file, and if the shards of a tensor do not cover each of its rows once.
    """
    chunks: dict[str, list[tuple[int, TensorInfo]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        infos, metadata = read_header(path)
        text = metadata.get(CUSTOM_METADATA_KEY, "")
        places = parse_json(text, dict[str, _Place], str(path), "use another checkpoint of the run")
        for name, info in infos.items():
            offsets = places[name].saved_offsets if name in places else ()
            if len(offsets) != len(info.shape) or any(offsets[1:]):
                raise ValueError(f"{path.name} has no valid offsets for {name}")
            chunks.setdefault(name, []).append((offsets[0] if offsets else 0, info))
    return {name: _joined(name, parts) for name, parts in chunks.items()}


CUSTOM_METADATA_KEY = "DCP_SHARDING_INFO"


def _joined(name: str, chunks: list[tuple[int, TensorInfo]]) -> TensorInfo:
    """The tensor that consists of chunks with these first rows. Raises ValueError unless each row occurs once."""
    chunks.sort(key=lambda chunk: chunk[0])
    first = chunks[0][1]
    if not first.shape:
        if len(chunks) > 1:
            raise ValueError(f"{name} occurs in several shards")
        return first
    n_rows = 0
    for start, info in chunks:
        if start != n_rows or info.shape[1:] != first.shape[1:] or info.dtype != first.dtype:
            raise ValueError(f"rows of {name} are missing or occur twice")
        n_rows += info.shape[0]
    return TensorInfo((n_rows, *first.shape[1:]), first.dtype)


def read_shards(folder: Path, like: Like) -> Tensors:
    """Read the tensors whose shards are in `folder`. Each process reads independently, and only what it needs.

    If `like` returns a sharded tensor for a name, the result is sharded like it, otherwise it is a complete tensor on the CPU.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

    infos = read_shards_header(folder)
    tensors = {name: _empty_like(torch.Size(info.shape), torch.float32, like(name)) for name, info in infos.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # reading independently is intended
        try:
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:
            raise _first_failure(error) from None
    return tensors


def _first_failure(error: BaseException) -> BaseException:
    """The original exception of one process, which `torch.distributed.checkpoint` wraps in its own."""
    failures: dict[int, tuple[BaseException, object]] = error.failures  # type: ignore[attr-defined]
    return failures[min(failures)][0]


def read_file(path: Path, like: Like) -> Tensors:
    """Like `read_shards`, from an unsharded safetensors file."""
    tensors: Tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor, target = file.get_tensor(name), like(name)
            tensors[name] = tensor if target is None else _distributed(tensor, target)
    return tensors


def _distributed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard `tensor` like `like`, if that is sharded and has the same shape."""
    result = _empty_like(tensor.shape, tensor.dtype, like)
    if not is_dtensor(result):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return result.copy_(distribute_tensor(tensor, result.device_mesh, result.placements, src_data_rank=None))  # type: ignore[attr-defined]


def _empty_like(shape: torch.Size, dtype: torch.dtype, like: torch.Tensor | None) -> torch.Tensor:
    """An uninitialized tensor to load into: sharded like `like` if that is sharded and has this shape, else on the CPU."""
    if like is not None and is_dtensor(like) and like.shape == shape:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype)

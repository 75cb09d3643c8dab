"""Read and write safetensors files. Tensors are compared with the expected ones before anything is allocated or used.

Weights and optimizer state are tensors with known names and shapes, float32 unless a model was imported in 16 bits. A file
that holds anything else is damaged or belongs to another model or run. PyTorch's kernels trust their arguments, so such a
tensor must never reach one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short

Shapes = Mapping[str, Sequence[int]]
"""Name and shape of the tensors that a file should have."""

MAX_HEADER = 16 * 2**20
"""Limit on the header, which names all tensors: about 100,000 of them. A parsed header takes many times its size."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions in which weights are stored."""

_TYPES = {
    "F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class TensorInfo(NamedTuple):
    """What a header says about a tensor."""

    shape: tuple[int, ...]
    dtype: object  # a torch.dtype, or the name of a type that no checkpoint of ours has


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file, without reading them, and its metadata.

    Raises ValueError or OSError for a damaged or missing file.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header claims {size:,} bytes")
    try:
        with safe_open(path, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
            infos = {
                name: TensorInfo(tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
            return infos, tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(short(str(error).splitlines()[0], 200)[1:-1]) from None


def read_one(path: Path, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """One tensor of a safetensors file, on the CPU.

    If `dtype` is that of the file or None, it is a private mapping of the file: it takes no memory until it is written to.
    The file is opened for this tensor alone, so that nothing else keeps the pages that were read in memory.
    """
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor if dtype is None else tensor.to(dtype)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor] | None = None
) -> None:
    """Write contiguous tensors on the CPU to a new safetensors file, the same bytes as `safetensors.torch.save_file`.

    For a tensor on the device "meta", `read` returns the tensor of this name when it is written, so that a model need not be
    in memory as a whole. Raises OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name]
            if tensor.is_meta:
                assert read is not None, "a tensor without data needs `read`"
                tensor = read(name)
            assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype)
            data = tensor.detach().reshape(-1).view(torch.uint8).numpy()
            file.write(data.data)


def compare_tensors(
    actual: Mapping[str, TensorInfo] | Mapping[str, torch.Tensor],
    expected: Shapes,
    source: str,
    remedy: str,
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> None:
    """Check that there are exactly the expected tensors, all of them of one of the `dtypes` and of the expected shapes.

    Raises UserError that names the first one that is missing, unexpected, or has another shape or type.
    """
    problem = None
    if missing := [name for name in expected if name not in actual]:
        problem = f"lacks {_listed(missing)}"
    elif foreign := [name for name in actual if name not in expected]:
        problem = f"has {_listed(foreign)} that should not be there"
    for name in expected if problem is None else ():
        shape, wanted, dtype = tuple(actual[name].shape), tuple(expected[name]), actual[name].dtype
        if shape != wanted:
            problem = f"has {short(name)} with the shape {short(list(shape))} instead of {list(wanted)}"
        elif dtype not in dtypes:
            allowed = " or ".join(str(one).removeprefix("torch.") for one in dtypes)
            problem = f"has {short(name)} as {str(dtype).removeprefix('torch.')} instead of {allowed}"
        if problem:
            break
    if problem:
        raise UserError(f"{source} {problem}; {remedy}.")


def _listed(names: Sequence[str]) -> str:
    first = short(names[0], 100)
    return f"the tensor {first}" if len(names) == 1 else f"{len(names):,} tensors ({first}, …)"


def first_nonfinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a value that is NaN or infinite."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. Takes little memory, as it reads a part at a time."""
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(2**16))

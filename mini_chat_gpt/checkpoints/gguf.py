"""Read GGUF files, llama.cpp's format of a model in one file: metadata, tensor descriptions, tensors.

    "GGUF", version, number of tensors, number of metadata keys
    metadata      key, type, value; values are numbers, booleans, strings and lists of them
    descriptions  name, dimensions (the fastest first), type, offset
    data          each tensor at a multiple of general.alignment

(The specification: ggml-org/ggml, docs/gguf.md.) The header is parsed here, with limits on every count and length. What it
says is compared with the size of the file before any tensor is read. Tensors are read one by one from a mapping of the file;
quantized ones are dequantized by the library `gguf`, a few rows at a time.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_chat_gpt.checkpoints.tensor_files import TensorInfo
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.json_files import open_regular

MAGIC = b"GGUF"
REMEDY = "download it again"
MAX_HEADER = 64 * 2**20
"""Limit on metadata and descriptions in bytes. A vocabulary of 256,000 tokens takes about 10 MB."""
MAX_TENSORS, MAX_KEYS, MAX_ITEMS = 2**16, 2**16, 2**22
"""Limits on the tensors, the metadata keys, and the items in all lists together."""
MAX_DEPTH = 3
"""Limit on lists within lists."""
ROWS_AT_ONCE = 2**20
"""Weights that are dequantized at a time."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a metadata value -> its format in the module `struct`."""
_STRING, _LIST = 8, 9
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are read as they are."""


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor is in the file, in bytes."""

    type_name: str
    shape: tuple[int, ...]  # the slowest dimension first, as in PyTorch
    start: int
    size: int


class GGUFFile:
    """A GGUF file whose header has been read and checked.

    `metadata` maps keys to numbers, booleans, strings and lists. `infos` describes the tensors as they will be read. Raises
    UserError for a file that is damaged or truncated, and for a type of tensors that can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.metadata, self._tensors = _read(path)
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror or error}); check the path.") from None
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.shape, _PLAIN.get(tensor.type_name, torch.float32))
            for name, tensor in self._tensors.items()
        }

    @property
    def types(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        names = [tensor.type_name for tensor in self._tensors.values()]
        return dict(sorted(((name, names.count(name)) for name in set(names)), key=lambda pair: (-pair[1], pair[0])))

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor on the CPU, in `dtype`; by default in the type of the file, or float32 if that is quantized.

        A tensor that needs no conversion is a private mapping of the file: it takes no memory until it is written to.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        data = np.memmap(self.path, np.uint8, "c", tensor.start, (tensor.size,))
        if (plain := _PLAIN.get(tensor.type_name)) is not None:
            whole = torch.from_numpy(data).view(plain).view(tensor.shape)
            return whole if dtype is None else whole.to(dtype)
        columns = tensor.shape[-1]
        rows = data.reshape(math.prod(tensor.shape[:-1]), -1)  # bytes
        result = torch.empty(len(rows), columns, dtype=dtype or torch.float32)
        n_rows = max(1, ROWS_AT_ONCE // columns)
        for at in range(0, len(rows), n_rows):
            part = dequantize(np.ascontiguousarray(rows[at : at + n_rows]), GGMLQuantizationType[tensor.type_name])
            result[at : at + n_rows] = torch.from_numpy(part)
        return result.view(tensor.shape)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    with open(path, "rb", opener=open_regular) as file:
        size = file.seek(0, 2)
        if size < 24:
            raise UserError(f"{path} is truncated: it has {size} bytes; {REMEDY}.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read_header(path, data, size)
            except struct.error:
                raise UserError(f"{path} is truncated within its header; {REMEDY}.") from None


def _read_header(path: Path, data: mmap.mmap, size: int) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", data)
    if magic != MAGIC:
        raise UserError(f"{path} is not a GGUF file; give one that begins with GGUF.")
    if version not in (2, 3):
        kind = "was written for big-endian machines" if version & 0xFFFF == 0 else f"has version {version} of GGUF"
        raise UserError(f"{path} {kind}; convert the model again with a current llama.cpp (version 3, little-endian).")
    for number, limit, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "metadata keys")):
        if number > limit:
            raise UserError(f"{path} is damaged: its header claims {number:,} {what}; {REMEDY}.")
    header = _Header(path, data, min(size, MAX_HEADER))
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = header.name()
        if key in metadata:
            raise UserError(f"{path} is damaged: the metadata key {short(key)} occurs twice; {REMEDY}.")
        metadata[key] = header.value(header.number("I"), 0)
    if metadata.get("split.count", 0) not in (0, 1):  # a part of few tensors would only be "incomplete" otherwise
        raise UserError(
            f"{path} is one of {short(metadata['split.count'])} parts of a split model; join them with "
            "`llama-gguf-split --merge FIRST_PART OUT.gguf` and give OUT.gguf."
        )
    return metadata, _descriptions(header, n_tensors, metadata, size)


class _Header:
    """Reads values from the header, at a position that moves on. Raises struct.error at its end."""

    def __init__(self, path: Path, data: mmap.mmap, end: int) -> None:
        self.path, self.position, self.items = path, 24, 0
        self._data, self._end = data, end

    def take(self, size: int) -> bytes:
        if size > self._end - self.position:
            if self._end == MAX_HEADER:
                raise UserError(f"{self.path} is damaged: its header is larger than {MAX_HEADER >> 20} MB; {REMEDY}.")
            raise struct.error
        start = self.position
        self.position += size
        return self._data[start : self.position]

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def string(self) -> str:
        # A description or a token may be cut within a character.
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def name(self) -> str:
        """A key or the name of a tensor; an unknown one could mean that a default applies."""
        name = self.take(self.number("Q"))
        if not name.isascii() or not name.decode("ascii").isprintable():
            raise UserError(f"{self.path} is damaged: its header has the name {short(name)}; {REMEDY}.")
        return name.decode("ascii")

    def value(self, kind: int, depth: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _LIST or depth == MAX_DEPTH:
            raise UserError(f"{self.path} is damaged: its metadata has a value of the type {kind}; {REMEDY}.")
        item_kind, length = self.number("I"), self.number("Q")
        self.items += length
        if self.items > MAX_ITEMS:
            raise UserError(f"{self.path} is damaged: its metadata has lists of {self.items:,} items; {REMEDY}.")
        if item_kind in _NUMBERS:
            form = f"<{length}{_NUMBERS[item_kind]}"
            return list(struct.unpack(form, self.take(struct.calcsize(form))))
        return [self.value(item_kind, depth + 1) for _ in range(length)]


def _descriptions(header: _Header, n_tensors: int, metadata: Mapping[str, Any], size: int) -> dict[str, _Tensor]:
    """The tensors by name, inside the file and apart from each other."""
    path = header.path
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 2**20:
        raise UserError(f"{path} is damaged: general.alignment is {short(alignment)}; {REMEDY}.")
    found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        name, n_dimensions = header.name(), header.number("I")
        if n_dimensions > 4 or name in found:
            raise UserError(f"{path} is damaged: the description of the tensor {short(name)} is wrong; {REMEDY}.")
        shape = tuple(header.number("Q") for _ in range(n_dimensions))[::-1]
        type_name, n_bytes = _size_of(path, name, shape, header.number("I"))
        found[name] = (type_name, shape, header.number("Q"), n_bytes)
    start = -(-header.position // alignment) * alignment
    for name, (_, _, offset, n_bytes) in found.items():
        if offset % alignment:
            raise UserError(f"{path} is damaged: the tensor {short(name)} has the offset {offset}; {REMEDY}.")
        if start + offset + n_bytes > size:
            raise UserError(
                f"{path} is truncated: the tensor {short(name)} ends at byte {start + offset + n_bytes:,}, but the file has "
                f"{size:,}; {REMEDY}."
            )
    # Several tensors in the same bytes could together take any multiple of the file's size.
    for (first, one), (second, other) in pairwise(sorted(found.items(), key=lambda item: item[1][2])):
        if one[2] + one[3] > other[2]:
            raise UserError(f"{path} is damaged: the tensors {short(first)} and {short(second)} overlap; {REMEDY}.")
    return {name: _Tensor(kind, shape, start + at, n_bytes) for name, (kind, shape, at, n_bytes) in found.items()}


def _size_of(path: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """The name of a type, and the bytes of a tensor of that type and shape."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise UserError(
            f"{path} can't be read: the tensor {short(name)} has the type {kind}, which the library gguf doesn't know; "
            "take a file in another quantization, such as Q8_0."
        ) from None
    if known.name not in _PLAIN and not _can_dequantize(known.name):
        raise UserError(
            f"{path} can't be read: the tensor {short(name)} has the type {known.name}, which the library gguf can't "
            "dequantize; take a file in another quantization, such as Q8_0."
        )
    per_block, block_bytes = GGML_QUANT_SIZES[known]
    if not shape or min(shape) < 1 or shape[-1] % per_block:
        raise UserError(
            f"{path} is damaged: the tensor {short(name)} has the shape {list(shape)} and the type {known.name}; {REMEDY}."
        )
    return known.name, math.prod(shape) // per_block * block_bytes


@lru_cache
def _can_dequantize(type_name: str) -> bool:
    """Whether the library can read this type; it tells only by trying, here with one block of zeros."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[type_name]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

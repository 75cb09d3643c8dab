"""Write a GGUF file: metadata, tensor descriptions, and tensors that are rounded to their type a few rows at a time.

The format is described in checkpoints/gguf.py, which reads it. The library `gguf` rounds; it does so in numpy, without llama.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from mini_chat_gpt.checkpoints.gguf import MAGIC, ROWS_AT_ONCE
from mini_chat_gpt.common.errors import UserError

ALIGNMENT = 32
VERSION = 3
LARGEST_F16 = 65504.0
_BOOL, _U32, _F32, _I32, _STRING, _LIST = 7, 4, 6, 5, 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of the file. `read` returns its values, (rows, columns) or (columns,), when it is written."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """Its type as in `GGMLQuantizationType`, for example Q8_0."""
    read: Callable[[], torch.Tensor]

    @property
    def n_bytes(self) -> int:
        per_block, block_bytes = block_of(self.kind)
        return math.prod(self.shape) // per_block * block_bytes

    def parts(self) -> Iterator[bytes]:
        """The bytes of the tensor, some rows at a time. Raises UserError for values that the type can't hold."""
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        values = self.read()
        assert tuple(values.shape) == self.shape
        rows = values.reshape(-1, self.shape[-1])
        n_rows = max(1, ROWS_AT_ONCE // self.shape[-1])
        for start in range(0, len(rows), n_rows):
            part = rows[start : start + n_rows].float().contiguous()
            if self.kind not in ("F32", "BF16") and float(part.abs().max()) > LARGEST_F16:
                raise UserError(
                    f"The tensor {self.name} has values above {LARGEST_F16:.0f}, which {self.kind} can't hold; use --type bf16 or f32."
                )
            yield quantize(part.numpy(), GGMLQuantizationType[self.kind]).tobytes()


def block_of(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block of a type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(per_block), int(block_bytes)


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[GGUFTensor]) -> None:
    """Write a new file. Raises OSError, and UserError for values that a type can't hold."""
    from gguf import GGMLQuantizationType

    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [_string(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        header.append(_string(tensor.name) + struct.pack("<I", len(tensor.shape)))
        header.append(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        header.append(struct.pack("<IQ", GGMLQuantizationType[tensor.kind].value, offset))
        offset += aligned(tensor.n_bytes)
    with open(path, "xb") as file:
        file.write(b"".join(header))
        _pad(file)
        for tensor in tensors:
            start = file.tell()
            for part in tensor.parts():
                file.write(part)
            assert file.tell() - start == tensor.n_bytes
            _pad(file)


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value with its type. Numbers are unsigned or floats of 32 bits, those in lists signed."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    kind = {bool: _BOOL, int: _I32, float: _F32, str: _STRING}[type(value[0])]
    head = struct.pack("<IIQ", _LIST, kind, len(value))
    if kind == _STRING:
        return head + b"".join(map(_string, value))
    return head + np.array(value, {_BOOL: "?", _I32: "<i4", _F32: "<f4"}[kind]).tobytes()

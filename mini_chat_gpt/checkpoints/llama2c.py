"""Read llama2.c's `.bin` files: seven int32 sizes, then the float32 tensors.

The original format ("version 0") and version 1 are supported. Version 1 has the magic "ak42" before the same sizes and a
different order of tensors. The sizes are checked against each other and against the file size before anything is built.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from mini_chat_gpt.checkpoints.build import IMPORTABLE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
MAGIC = 0x616B3432  # "ak42", from version 1 on
HEADER_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
LARGEST = (
    2**17,
    2**20,
    2**12,
    2**12,
    2**12,
    2**24,
    2**24,
)  # no such model has more: larger sizes mean another kind of file
LEGACY_BYTES, VERSION_1_BYTES = 28, 256  # sizes of the headers

# Order of the tensors after the header; those of all layers are stacked.
_MATRICES = ("wq", "wk", "wv", "wo")
_MLP = ("w1", "w2", "w3")
LEGACY_ORDER = ("embedding", "rms_att", *_MATRICES, "rms_ffn", *_MLP, "rms_final", "freq_cis", "classifier")
VERSION_1_ORDER = ("rms_att", "rms_ffn", "rms_final", "embedding", *_MATRICES, *_MLP, "classifier")


@dataclass(frozen=True)
class Llama2cFile:
    """The contents of the header: the model, and where its tensors are."""

    config: GPTConfig
    offset: int  # of the first tensor, in bytes
    parts: tuple[tuple[str, tuple[int, ...]], ...]  # our name ("" = skipped, {} = layer index) and shape

    def repeats(self, name: str) -> int:
        return self.config.n_layer if "{}" in name else 1

    @property
    def size(self) -> int:
        """Size of the complete file in bytes."""
        return self.offset + 4 * sum(math.prod(shape) * self.repeats(name) for name, shape in self.parts)


def read_llama2c(
    source: Path, tokenizer: str | Path | None
) -> tuple[GPTConfig, dict[str, torch.Tensor], ChatTokenizer]:
    """Read the architecture, our state_dict (without a tied head) and the tokenizer of a llama2.c `.bin`.

    `tokenizer` is anything that `ChatTokenizer.load` accepts, or None for the one in the model's folder. Raises UserError.
    """
    with open(source, "rb") as file:
        layout = _read_header(source, file)
        size = source.stat().st_size
        if size < layout.size:
            raise UserError(
                f"{source} is truncated: its header requires {layout.size:,} bytes, it has {size:,}; download it again."
            )
        if size > layout.size:
            raise UserError(
                f"{source} has {size:,} bytes, but its header requires {layout.size:,}; it is damaged or has another "
                "format; download it again."
            )
        loaded_tokenizer = _llama2c_tokenizer(source, layout.config.vocab_size, tokenizer)
        file.seek(layout.offset)
        return layout.config, _read_tensors(file, layout), loaded_tokenizer


def _read_header(source: Path, file: BinaryIO) -> Llama2cFile:
    start = file.read(VERSION_1_BYTES)
    if len(start) < LEGACY_BYTES:
        raise UserError(f"{source} is not a model, it has only {len(start)} bytes; give {IMPORTABLE}.")
    magic, version = struct.unpack_from("<Ii", start)
    if magic != MAGIC:
        if TEXT.issuperset(start[:LEGACY_BYTES]):
            raise UserError(f"{source} is a text, not a model; give {IMPORTABLE}.")
        values = struct.unpack_from("<7i", start)
        # A negative vocabulary size means that the classifier is a separate table.
        sizes, tied = (*values[:5], abs(values[5]), values[6]), values[5] > 0
        return _layout(source, sizes, tied, LEGACY_BYTES, LEGACY_ORDER)
    if version != 1:
        kind = "quantized to 8 bits" if version == 2 else "unknown"
        raise UserError(
            f"{source} has llama2.c's format version {version}, which is {kind}; export the model with "
            "`export.py --version 0` (float32) and import that."
        )
    if len(start) < VERSION_1_BYTES:
        raise UserError(f"{source} is truncated within its header ({len(start)} of 256 bytes); download it again.")
    return _layout(source, struct.unpack_from("<7i", start, 8), start[36] != 0, VERSION_1_BYTES, VERSION_1_ORDER)


def _layout(source: Path, sizes: tuple[int, ...], tied: bool, offset: int, order: tuple[str, ...]) -> Llama2cFile:
    for field, value, largest in zip(HEADER_FIELDS, sizes, LARGEST, strict=True):
        if not 1 <= value <= largest:
            raise UserError(
                f"{source} can't be imported: read as a llama2.c file, its header says {field} = {value}; give {IMPORTABLE}."
            )
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = sizes
    config = GPTConfig(
        vocab_size=vocab_size,
        context_length=seq_len,
        n_layer=n_layers,
        n_head=n_heads,
        n_kv_head=n_kv_heads,
        n_embd=dim,
        intermediate_size=hidden_dim,
        tie_embeddings=tied,
        norm_eps=1e-5,
    )
    parts = _llama2c_parts(config)
    present = [part for part in order if not (tied and part == "classifier")]
    return Llama2cFile(config, offset, tuple(parts[part] for part in present))


def _llama2c_parts(config: GPTConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name and the shape of each of llama2.c's tensors."""
    width, inner, kv = config.n_embd, config.mlp_size, config.kv_heads * config.head_size
    return {
        "embedding": ("embed_tokens.weight", (config.vocab_size, width)),
        "rms_att": ("layers.{}.input_layernorm.weight", (width,)),
        "wq": ("layers.{}.self_attn.q_proj.weight", (width, width)),
        "wk": ("layers.{}.self_attn.k_proj.weight", (kv, width)),
        "wv": ("layers.{}.self_attn.v_proj.weight", (kv, width)),
        "wo": ("layers.{}.self_attn.o_proj.weight", (width, width)),
        "rms_ffn": ("layers.{}.post_attention_layernorm.weight", (width,)),
        "w1": ("layers.{}.mlp.gate_proj.weight", (inner, width)),
        "w2": ("layers.{}.mlp.down_proj.weight", (width, inner)),
        "w3": ("layers.{}.mlp.up_proj.weight", (inner, width)),
        "rms_final": ("norm.weight", (width,)),
        # Cosines and sines for RoPE. llama2.c ignores them as well, because its theta is always 10,000.
        "freq_cis": ("", (config.context_length, config.head_size)),
        "classifier": ("lm_head.weight", (config.vocab_size, width)),
    }


def _read_tensors(file: BinaryIO, layout: Llama2cFile) -> dict[str, torch.Tensor]:
    state = {}
    for name, shape in layout.parts:
        for layer in range(layout.repeats(name)):
            values = np.fromfile(file, dtype="<f4", count=math.prod(shape)).astype(np.float32, copy=False)
            tensor = torch.from_numpy(values).reshape(shape)
            if "q_proj" in name or "k_proj" in name:
                tensor = halves_from_pairs(tensor, layout.config.head_size)
            if name:
                state[name.format(layer)] = tensor
    return state


def halves_from_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of each head of a query or key projection, or its bias, for our RoPE. (H·D, ...) -> (H·D, ...).

    llama2.c (like Meta's code) rotates the pairs (2i, 2i + 1) of a head; we and Hugging Face rotate (i, i + D/2). The
    product q·k does not change, because both are reordered in the same way.
    """
    pairs = weight.view(-1, head_dim // 2, 2, *weight.shape[1:])  # (H, D/2, 2, ...)
    return pairs.transpose(1, 2).reshape(weight.shape)


def pairs_from_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of `halves_from_pairs`. (H·D, ...) -> (H·D, ...)."""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])  # (H, 2, D/2, ...)
    return halves.transpose(1, 2).reshape(weight.shape)


def _llama2c_tokenizer(source: Path, vocab_size: int, path: str | Path | None) -> ChatTokenizer:
    if path is None:
        return _tokenizer_next_to(source, vocab_size)
    tokenizer = ChatTokenizer.load(path)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"The tokenizer {path} has {tokenizer.vocab_size} entries, but {source} was trained with one that has "
            f"{vocab_size}; give that one."
        )
    return tokenizer


def _tokenizer_next_to(source: Path, vocab_size: int) -> ChatTokenizer:
    """The `tok*.bin` in the model's folder that has the right size. Raises UserError if it is missing or ambiguous."""
    matching: dict[str, ChatTokenizer] = {}
    others = []
    for path in sorted(path for path in source.parent.glob("tok*.bin") if path != source):
        try:
            tokenizer = ChatTokenizer.from_llama2c(path)
        except UserError:
            others.append(f"{path.name} can't be read")
            continue
        if tokenizer.vocab_size == vocab_size:
            matching[path.name] = tokenizer
        else:
            others.append(f"{path.name} has {tokenizer.vocab_size}")
    if len({tokenizer.fingerprint() for tokenizer in matching.values()}) == 1:
        return next(iter(matching.values()))
    if matching:
        problem = f"{' and '.join(matching)} in its folder have that size and differ"
    elif others:
        problem = f"none in its folder has that size ({', '.join(others)})"
    else:
        problem = "there is no tok*.bin in its folder"
    raise UserError(
        f"{source} needs its tokenizer with {vocab_size} entries, but {problem}; name it with "
        f"`mini-chat-gpt import {source} FOLDER --tokenizer FILE`."
    )

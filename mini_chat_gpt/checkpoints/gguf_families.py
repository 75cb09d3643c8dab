"""Gemma 3, Phi-3 and GPT-2 in GGUF files: metadata to `GPTConfig`, and where our tensors are.

Files don't say what llama.cpp has built in for an architecture: Gemma 3's embedding factor, activation and
scale in attention, which of its layers have windows and the rotary base in them, and GPT-2's activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mini_chat_gpt.checkpoints import gemma, gpt2
from mini_chat_gpt.checkpoints.build import TensorReader
from mini_chat_gpt.checkpoints.llama_gguf import (
    EMBEDDING,
    OUTPUT,
    Metadata,
    part_of,
    shared_fields,
    sizes,
    stored_name,
)
from mini_chat_gpt.checkpoints.tensor_parts import Part
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.config import GPTConfig

_REFUSED = {"expert_count": "a mixture of experts"}
_CAPPED = {
    "attn_logit_softcapping": "capped attention",
    "final_logit_softcapping": "capped logits",
}
_LAYERS_OF_27B = 62
_GPT2_NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_QKV = ("q_proj", "k_proj", "v_proj")


# Gemma 3


def gemma3_config(metadata: Mapping[str, Any], reader: TensorReader) -> GPTConfig:
    """The architecture of a Gemma 3. Raises UserError."""
    given = Metadata(metadata, "gemma3")
    given.refuse(_REFUSED | _CAPPED)
    fields = shared_fields(given, reader, theta=None)
    width, head_dim = fields["n_embd"], fields["head_dim"]
    # Only the largest model has another scale than its heads' width says: that of heads that share the model's width.
    per_head = width / max(1, fields["n_head"]) if fields["n_layer"] == _LAYERS_OF_27B else head_dim
    windows = _windows(given, fields["n_layer"], fields["context_length"])
    return given.config(
        **fields | gemma.ALWAYS,
        embedding_factor=max(0, width) ** 0.5,
        attention_scale=given.number("attention.scale", max(1, per_head) ** -0.5),
        windows=windows,
        window_rope_theta=given.number("rope.freq_base_swa", 10000.0) if windows else None,
    )


def _windows(given: Metadata, n_layer: int, context: int) -> tuple[int | None, ...] | None:
    """The window of each layer: all but every sixth have one, unless the file says otherwise."""
    window, pattern = given.get("attention.sliding_window", int), given.raw("attention.sliding_window_pattern", 6)
    n_layer = min(max(0, n_layer), 1024)
    if type(pattern) is int and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(n_layer)]
    if not isinstance(pattern, list) or len(pattern) != n_layer or not all(type(one) is bool for one in pattern):
        raise UserError(
            f"its metadata has gemma3.attention.sliding_window_pattern = {short(pattern)}; that is not supported."
        )
    if window >= context or not any(pattern):
        return None
    return tuple(window if has_window else None for has_window in pattern)


def gemma3_part(name: str, config: GPTConfig) -> Part:
    """Where one of our tensors is. The factors of norms are stored as they are, ours are the weights that 1 is added to."""
    return Part(part_of(name, config, "gemma3").source, convert=_minus_one if name.endswith("norm.weight") else None)


def _minus_one(factors: torch.Tensor) -> torch.Tensor:
    """(C,) -> (C,)"""
    return factors - 1


# Phi-3


def phi3_config(metadata: Mapping[str, Any], reader: TensorReader) -> GPTConfig:
    """The architecture of a Phi-3. Raises UserError."""
    given = Metadata(metadata, "phi3")
    given.refuse(_REFUSED)
    if "rope_factors_long.weight" in reader.infos:
        raise UserError("its rotary frequencies are scaled by a table (longrope); that is not supported.")
    fields = shared_fields(given, reader)
    context, n_layer = fields["context_length"], fields["n_layer"]
    # The first files of the models with 4,096 tokens don't say that they have windows.
    of_first_files = 2047 if context == 4096 and n_layer in (32, 40) else 0
    window = given.get("attention.sliding_window", int, of_first_files)
    windows = (window,) * min(max(0, n_layer), 1024) if 0 < window < context else None
    return given.config(**fields, windows=windows)


def phi3_part(name: str, config: GPTConfig) -> Part:
    """Where one of our tensors is: queries, keys and values are joined, and so are the MLP's gate and input."""
    layer, _, module = name.removeprefix("layers.").removesuffix(".weight").partition(".")
    inner, kv_inner, mlp = config.n_head * config.head_size, config.kv_heads * config.head_size, config.mlp_size
    last = module.rpartition(".")[2]
    if last in _QKV:
        first = {"q_proj": 0, "k_proj": inner, "v_proj": inner + kv_inner}[last]
        return Part(
            f"blk.{layer}.attn_qkv.weight", first, inner if last == "q_proj" else kv_inner, inner + 2 * kv_inner
        )
    if last in ("gate_proj", "up_proj"):
        return Part(f"blk.{layer}.ffn_up.weight", mlp * (last == "up_proj"), mlp, 2 * mlp)
    return part_of(name, config, "phi3")


# GPT-2


def gpt2_config(metadata: Mapping[str, Any], reader: TensorReader) -> GPTConfig:
    """The architecture of a GPT-2. Raises UserError."""
    given, tied = Metadata(metadata, "gpt2"), True
    given.refuse(_REFUSED)
    if OUTPUT in reader.infos and EMBEDDING in reader.infos:  # early files repeat the table, maybe in other bits
        tied = torch.equal(reader.read(OUTPUT), reader.read(EMBEDDING))
    return given.config(
        **gpt2.FIXED | sizes(given, reader),
        activation="gelu_tanh",
        norm_eps=given.number("attention.layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        tie_embeddings=tied,
    )


def gpt2_part(name: str, config: GPTConfig) -> Part:
    """Where one of our tensors is: queries, keys and values are joined; no matrix is transposed here."""
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    if last in _QKV:
        width, layer = config.n_embd, module.split(".")[1]
        return Part(f"blk.{layer}.attn_qkv.{kind}", _QKV.index(last) * width, width, 3 * width)
    return Part(stored_name(name, _GPT2_NAMES))

"""Gemma 3 (text) in `transformers`: config.json both ways. The names of its parameters are in hf.py.

It differs from Llama in norms before and after each sublayer with factors of 1 + weight, norms of queries and keys, GELU instead
of SiLU, an embedding that is multiplied by the root of the width, and attention within a window in most layers, where the
rotary frequencies have another base (Gemma Team 2025, arXiv:2503.19786).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mini_chat_gpt.checkpoints.hf import HFConfig, impossible, layer_types, rope_of, shared_keys, window_of, windows_of
from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, why_not_expressible
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import check_json, short
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

ALWAYS: dict[str, Any] = {
    "norm_placement": "both",
    "norm_offset": True,
    "qk_norm": True,
    "activation": "geglu",
}
IMPLEMENTED: Implemented = SIZES | dict.fromkeys(
    (
        "norm_eps", "rope_theta", "rope_scaling", "bias", "qkv_bias", "mlp_bias", "tie_embeddings", "attention_scale",
        "embedding_factor", "windows", "window_rope_theta",
    ),
    ANY,
)  # fmt: skip


class _Config(HFConfig):
    """The keys of config.json. Missing keys have the defaults of `transformers`."""

    hidden_size: int = Field(ge=1, le=2**17)  # its root is needed
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = Field(256, gt=0)
    sliding_window: int | None = 4096
    sliding_window_pattern: int | None = None
    rope_theta: float | None = 1e6
    rope_local_base_freq: float = 10000.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = None
    tie_word_embeddings: bool | None = True


def why_not(config: GPTConfig) -> str | None:
    """Why Gemma 3 can't express an architecture, or None if it can."""
    if reason := why_not_expressible(config, "Gemma 3", IMPLEMENTED, ALWAYS):
        return reason
    if config.embedding_factor is None or not math.isclose(config.embedding_factor, config.n_embd**0.5, rel_tol=1e-6):
        return "Gemma 3 always has embedding_factor=√n_embd"
    if config.bias != config.qkv_bias or config.mlp_has_bias:
        return "Gemma 3 has biases on all four attention projections or on none, and none in the MLP"
    if not math.isclose(_query_scalar(config), round(_query_scalar(config)), rel_tol=1e-9):
        return "Gemma 3's attention_scale is 1 / √n of a whole number n"
    if len({*(config.windows or ())} - {None}) > 1:
        return "Gemma 3 has windows of one size"
    return None


def _query_scalar(config: GPTConfig) -> float:
    return config.head_size if config.attention_scale is None else config.attention_scale**-2


def to_hf_config(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The contents of config.json. Raises ValueError for a model that Gemma 3 can't express (see `why_not`)."""
    if reason := why_not(config):
        raise ValueError(f"this model can't be written as a Hugging Face Gemma 3: {reason}")
    return shared_keys(config, tokenizer) | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(_query_scalar(config)),
        "sliding_window": window_of(config) or config.context_length,
        "layer_types": layer_types(config),
        "rope_local_base_freq": config.window_rope_theta or config.rope_theta,
        "attention_bias": config.qkv_bias,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def from_hf_config(hf_config: Mapping[str, Any]) -> GPTConfig:
    """Read the architecture from a config.json of Gemma 3's text models. Raises UserError for what is not supported."""
    remedy = "use another copy of it"
    given = check_json(hf_config, _Config, "config.json", remedy)
    if given.hidden_activation != "gelu_pytorch_tanh":
        raise UserError(
            f"config.json has hidden_activation {short(given.hidden_activation)}; only 'gelu_pytorch_tanh' can be read."
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if getattr(given, key):
            raise UserError(f"config.json has {key}: {short(getattr(given, key))}, which is not supported.")
    by_type = given.rope_parameters or {}
    if "full_attention" in by_type or "sliding_attention" in by_type:  # transformers 5
        (theta, scaling), (window_theta, window_scaling) = (
            rope_of(
                given.model_copy(update={"rope_parameters": by_type.get(f"{kind}_attention"), "rope_scaling": None})
            )
            for kind in ("full", "sliding")
        )
        if window_scaling is not None:
            raise UserError("config.json scales the positions of layers with a window; that is not supported.")
    else:
        (theta, scaling), window_theta = rope_of(given), given.rope_local_base_freq
    attention_bias = bool(given.attention_bias)
    with impossible():
        windows = windows_of(given, _layer_types(given))
        return GPTConfig(
            **given.sizes(),
            **ALWAYS,
            embedding_factor=given.hidden_size**0.5,
            rope_theta=theta,
            rope_scaling=scaling,
            window_rope_theta=window_theta if windows else None,
            bias=attention_bias,
            qkv_bias=attention_bias,
            mlp_bias=False if attention_bias else None,
            attention_scale=given.query_pre_attn_scalar**-0.5,
            windows=windows,
            tie_embeddings=bool(given.tie_word_embeddings),
        )


def _layer_types(given: _Config) -> list[str]:
    """The kind of each layer. Older files give a number n: every n-th layer is without a window."""
    if given.layer_types is not None:
        return given.layer_types
    pattern = given.sliding_window_pattern or 6
    n_layer = min(given.num_hidden_layers, 1024)
    return ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(n_layer)]

"""Mappings between our native family and Hugging Face's `LlamaForCausalLM`: config.json and parameter names, both ways.

`transformers` (4.56 and later) loads the results of `to_hf_config` and `to_hf_state` as the same model.
`from_hf_config(to_hf_config(config, tokenizer))` is the same architecture with explicit defaults. No files are involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import ValidationError

from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, unsupported_fields
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

V = TypeVar("V")
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
IMPLEMENTED: Implemented = SIZES | dict.fromkeys(
    ("norm_eps", "rope_theta", "rope_scaling", "bias", "qkv_bias", "tie_embeddings"), ANY
)
"""Fields of `GPTConfig` that Llama's config.json can express; every other field must have its default value."""


def why_not_llama(config: GPTConfig) -> str | None:
    """Why `transformers`' Llama can't express this architecture, or None if it can."""
    if fields := unsupported_fields(config, IMPLEMENTED):
        return f"Llama does not support {', '.join(fields)}"
    if config.bias != config.qkv_bias:
        return "Llama has biases on all four attention projections or on none (bias and qkv_bias must be equal)"
    if config.n_embd % config.n_head:
        return f"Llama's width must be a multiple of its heads ({config.n_embd}, {config.n_head})"
    return None


def to_hf_config(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The contents of config.json. Raises ValueError for a model that Llama can't express (see `why_not_llama`)."""
    if reason := why_not_llama(config):
        raise ValueError(f"this model can't be written as a Hugging Face Llama: {reason}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        # transformers 5 converts these two to `rope_parameters`; older versions know only these.
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "torch_dtype": "float32",
        **_special_ids(tokenizer),
    }


def _special_ids(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """BOS, EOS and padding. Several stop ids become a list that begins with the one that ends a reply."""
    declared = tokenizer.declared
    # Without a BOS token, the token that ends a document also begins the next one, as in GPT-2.
    bos = eos = tokenizer.control.get("<|endoftext|>")
    if declared is not None:
        bos, eos = declared.bos_id, declared.eos_id
    stops = sorted(tokenizer.stop_ids, key=lambda stop: (stop != eos, stop))
    return {
        "bos_token_id": bos if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        # A padding id would exclude that row of the embedding from training. The tokenizer's files name one.
        "pad_token_id": None,
    }


def from_hf_config(hf_config: Mapping[str, Any]) -> GPTConfig:
    """Read the architecture from a Llama's config.json, written by any version of `transformers` or by us.

    Missing keys have the defaults of `transformers`. Raises UserError for another model type.
    """
    model_type = hf_config.get("model_type")
    if model_type != "llama":
        raise UserError(f"config.json describes a model of type {model_type!r}; only 'llama' can be read.")
    if (activation := hf_config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json has hidden_act {activation!r}; only 'silu' can be read.")
    biased = bool(hf_config.get("attention_bias", False))
    if biased != bool(hf_config.get("mlp_bias", False)):
        raise UserError(
            "config.json has different values of attention_bias and mlp_bias; only equal values can be read."
        )
    theta, scaling = _rope(hf_config)
    try:
        return GPTConfig(
            vocab_size=hf_config["vocab_size"],
            context_length=hf_config["max_position_embeddings"],
            n_layer=hf_config["num_hidden_layers"],
            n_head=hf_config["num_attention_heads"],
            n_kv_head=hf_config.get("num_key_value_heads"),
            n_embd=hf_config["hidden_size"],
            head_dim=hf_config.get("head_dim"),
            intermediate_size=hf_config["intermediate_size"],
            norm_eps=hf_config.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            bias=biased,
            qkv_bias=biased,
            tie_embeddings=hf_config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"config.json lacks {error.args[0]!r}, which is required.") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = "".join(f"{part}: " for part in first["loc"]) + first["msg"].removeprefix("Value error, ")
        raise UserError(f"config.json describes an impossible model ({what}).") from None


def _rope(hf_config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
    parameters = dict(hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {})
    theta = parameters.pop("rope_theta", hf_config.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"config.json has rope_type {kind!r}; only 'linear' and 'llama3' can be read.")
    if parameters.pop("partial_rotary_factor", hf_config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("config.json rotates only a part of each head (partial_rotary_factor); that is not supported.")
    return theta, None if kind == "default" else parameters


def to_hf_state(values: Mapping[str, V], config: GPTConfig) -> dict[str, V]:
    """Rename our parameters, or anything else by their names, to Hugging Face's: `model.` before all but the head.

    A tied head is omitted.
    """
    return {
        name if name == HEAD else f"model.{name}": value
        for name, value in values.items()
        if not (name == HEAD and config.tie_embeddings)
    }


def from_hf_state(state: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Rename Hugging Face's parameters to ours; a tied head is the embedding itself.

    This does not check for missing or unexpected parameters; `load_state_dict(strict=True)` does.
    """
    ours = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq")  # a constant that old versions of transformers saved
    }
    if config.tie_embeddings and EMBEDDING in ours:
        ours[HEAD] = ours[EMBEDDING]
    return ours

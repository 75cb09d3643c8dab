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
from mini_chat_gpt.common.json_files import JSONRecord, check_json, short
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

V = TypeVar("V")
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
IMPLEMENTED: Implemented = SIZES | dict.fromkeys(
    ("norm_eps", "rope_theta", "rope_scaling", "bias", "qkv_bias", "mlp_bias", "tie_embeddings"), ANY
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
        "mlp_bias": config.mlp_has_bias,
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


class _LlamaConfig(JSONRecord):
    """A Llama's config.json. Missing keys have the defaults of `transformers`; those that change nothing are not read.

    `torch_dtype` or `dtype` is not among them: the tensors say it themselves, and in some files it is wrong.
    """

    vocab_size: int
    max_position_embeddings: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    hidden_size: int
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_interleaved: bool | None = None
    partial_rotary_factor: float | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None


def from_hf_config(hf_config: Mapping[str, Any]) -> GPTConfig:
    """Read the architecture from a Llama's config.json, written by any version of `transformers` or by us.

    Missing keys have the defaults of `transformers`. Raises UserError for what is not a Llama, or one that is not supported.
    """
    if (model_type := hf_config.get("model_type")) != "llama":
        raise UserError(f"config.json describes a model of type {short(model_type)}; only 'llama' can be read.")
    given = check_json(hf_config, _LlamaConfig, "config.json", "use another copy of it")
    if given.hidden_act != "silu":
        raise UserError(f"config.json has hidden_act {short(given.hidden_act)}; only 'silu' can be read.")
    if given.rope_interleaved:
        raise UserError("config.json has rope_interleaved: true; only false can be read.")
    attention_bias, mlp_bias = bool(given.attention_bias), bool(given.mlp_bias)
    theta, scaling = _rope(given)
    try:
        return GPTConfig(
            vocab_size=given.vocab_size,
            context_length=given.max_position_embeddings,
            n_layer=given.num_hidden_layers,
            n_head=given.num_attention_heads,
            n_kv_head=given.num_key_value_heads,
            n_embd=given.hidden_size,
            head_dim=given.head_dim,
            intermediate_size=given.intermediate_size,
            norm_eps=given.rms_norm_eps,
            rope_theta=theta,
            rope_scaling=scaling,
            bias=attention_bias,
            qkv_bias=attention_bias,
            mlp_bias=None if mlp_bias == attention_bias else mlp_bias,
            tie_embeddings=bool(given.tie_word_embeddings),
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = "".join(f"{part}: " for part in first["loc"]) + first["msg"].removeprefix("Value error, ")
        raise UserError(f"config.json describes an impossible model ({what}).") from None


def _rope(given: _LlamaConfig) -> tuple[Any, dict[str, Any] | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
    parameters = dict(given.rope_scaling or given.rope_parameters or {})
    theta = parameters.pop("rope_theta", given.rope_theta or 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"config.json has rope_type {short(kind)}; only 'linear' and 'llama3' can be read.")
    if parameters.pop("partial_rotary_factor", given.partial_rotary_factor or 1.0) != 1.0:
        raise UserError("config.json rotates only a part of each head (partial_rotary_factor); that is not supported.")
    return theta, None if kind == "default" else parameters


def to_hf_state(values: Mapping[str, V], config: GPTConfig) -> dict[str, V]:
    """Rename our parameters, or anything else by their names, to Hugging Face's: `model.` before all but the head.

    A tied head is omitted.
    """
    return {hf_name(name): value for name, value in values.items() if not (name == HEAD and config.tie_embeddings)}


def hf_name(name: str) -> str:
    """Hugging Face's name of one of our parameters."""
    return name if name == HEAD else f"model.{name}"


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

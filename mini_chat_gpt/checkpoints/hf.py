"""Our native family in Hugging Face's words: config.json and parameter names of `LlamaForCausalLM`, both ways.

Pure mappings without files. The promise: what `to_hf_config` and `to_hf_state` give is what `transformers` (4.56 on,
and 5) loads as this very model, and `from_hf_config(to_hf_config(c, t))` is the same architecture with its defaults
spelled out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"


def why_not_llama(config: GPTConfig) -> str | None:
    """What `transformers`' Llama can't express of this architecture, or None when it holds it as it is."""
    if not config.is_llama:
        return "it is not RMSNorm, rotary positions and SwiGLU alone"
    if config.bias != config.qkv_bias:
        return "Llama has biases on all four attention projections or on none (bias and qkv_bias must be equal)"
    if config.n_embd % config.n_head:
        return f"Llama's width must be a multiple of its heads ({config.n_embd}, {config.n_head})"
    return None


def to_hf_config(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """`config.json` of this model. Raises ValueError for one that Llama can't hold (see `why_not_llama`)."""
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
        # transformers 5 turns these two into its `rope_parameters`; older readers know nothing else.
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
    """Begin, end and padding; several stop ids become a list, the one that ends a reply first."""
    ends_reply = tokenizer.control.get("<|endoftext|>")
    stops = sorted(tokenizer.stop_ids, key=lambda stop: (stop != ends_reply, stop))
    return {
        # As in GPT-2, the token that ends a document begins the next one where there is no BOS.
        "bos_token_id": ends_reply if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        # A padding id would make PyTorch's embedding leave that row out of training; the tokenizer's files name one.
        "pad_token_id": None,
    }


def from_hf_config(given: Mapping[str, Any]) -> GPTConfig:
    """The architecture of a Llama's `config.json`, written by any version of `transformers` or by us.

    Keys that are absent mean what `transformers` takes them to mean. Raises UserError for another kind of model.
    """
    kind = given.get("model_type")
    if kind != "llama":
        raise UserError(f"config.json describes a model of type {kind!r}; only 'llama' can be read.")
    if (activation := given.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json has hidden_act {activation!r}; only 'silu' can be read.")
    biased = bool(given.get("attention_bias", False))
    if biased != bool(given.get("mlp_bias", False)):
        raise UserError("config.json has attention_bias and mlp_bias unequal; only both or neither can be read.")
    theta, scaling = _rope(given)
    try:
        return GPTConfig(
            vocab_size=given["vocab_size"],
            context_length=given["max_position_embeddings"],
            n_layer=given["num_hidden_layers"],
            n_head=given["num_attention_heads"],
            n_kv_head=given.get("num_key_value_heads"),
            n_embd=given["hidden_size"],
            head_dim=given.get("head_dim"),
            intermediate_size=given["intermediate_size"],
            norm_eps=given.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            bias=biased,
            qkv_bias=biased,
            tie_embeddings=given.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"config.json lacks {error.args[0]!r}, without which a Llama can't be built.") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = "".join(f"{part}: " for part in first["loc"]) + first["msg"].removeprefix("Value error, ")
        raise UserError(f"config.json describes no possible model ({what}).") from None


def _rope(given: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Theta and scaling from transformers 5's `rope_parameters`, or from `rope_theta` and `rope_scaling` before it."""
    parameters = dict(given.get("rope_scaling") or given.get("rope_parameters") or {})
    theta = parameters.pop("rope_theta", given.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"config.json scales rotary positions by {kind!r}; only 'linear' and 'llama3' can be read.")
    if parameters.pop("partial_rotary_factor", given.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("config.json turns only a part of each head (partial_rotary_factor); that is not supported.")
    return theta, None if kind == "default" else parameters


def to_hf_state(state: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Our parameter names to Hugging Face's: `model.` before all but the head, which a tied model leaves out."""
    return {
        name if name == HEAD else f"model.{name}": tensor
        for name, tensor in state.items()
        if not (name == HEAD and config.tie_embeddings)
    }


def from_hf_state(state: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Hugging Face's parameter names to ours; a tied head is the embedding itself.

    Only names change: what is missing or superfluous is for `load_state_dict(strict=True)` to find.
    """
    ours = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq")  # a constant that old versions saved
    }
    if config.tie_embeddings and EMBEDDING in ours:
        ours[HEAD] = ours[EMBEDDING]
    return ours

"""GPT-2 and GPT-Neo in `transformers`: config.json both ways, and where our tensors are.

GPT-2 keeps the projections of queries, keys and values in one matrix, and all matrices transposed, (in, out). GPT-Neo has the same
names in its MLP, but ordinary matrices, and attention without a scale, within a window in some layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

from mini_chat_gpt.checkpoints.hf import HEAD, impossible, special_ids, window_of
from mini_chat_gpt.checkpoints.tensor_parts import Part
from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, why_not_expressible
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord, check_json, short
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

PREFIX = "transformer."
"""Before the names of all tensors but the head. The files of the first GPT-2 don't have it."""
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of the names of causal masks, which old files have among their tensors."""
MAX_LAYERS = 1024
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
"""Names in config.json -> ours. The first of several for the same function is written."""
FIXED: dict[str, Any] = {"norm": "layernorm", "position": "learned", "bias": True}

IMPLEMENTED: Implemented = SIZES | {
    "norm_eps": ANY,
    "activation": {*ACTIVATIONS.values()},
    "tie_embeddings": ANY,
}

_TABLES = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}
_NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
_MLP = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_NEO = {name: name.replace("self_attn", "attn.attention") for name in _QKV} | {
    "self_attn.o_proj": "attn.attention.out_proj"
}


class _Config(JSONRecord):
    """The keys that both have. Missing keys have the defaults of `transformers`."""

    vocab_size: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool | None = True

    def fields(self) -> dict[str, Any]:
        """The fields of `GPTConfig` that follow from them. Raises UserError for an unknown activation."""
        if self.activation_function not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(
                f"config.json has activation_function {short(self.activation_function)}; only {known} can be read."
            )
        return FIXED | {
            "vocab_size": self.vocab_size,
            "activation": ACTIVATIONS[self.activation_function],
            "norm_eps": self.layer_norm_epsilon,
            "tie_embeddings": self.tie_word_embeddings is not False,
        }


class _GPT2Config(_Config):
    n_positions: int = 1024
    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int | None = None
    scale_attn_weights: bool | None = True
    scale_attn_by_inverse_layer_idx: bool | None = None
    add_cross_attention: bool | None = None


class _NeoConfig(_Config):
    max_position_embeddings: int = 2048
    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int | None = None
    window_size: int = 256
    attention_layers: list[str] | None = None
    attention_types: list[Any] | None = None


def gpt2_config(hf_config: Mapping[str, Any]) -> GPTConfig:
    """Read a GPT-2's architecture from config.json. Raises UserError for what is not supported."""
    given = check_json(hf_config, _GPT2Config, "config.json", "use another copy of it")
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if getattr(given, key):
            raise UserError(f"config.json has {key}: true, which is not supported.")
    with impossible():
        return GPTConfig(
            **given.fields(),
            context_length=given.n_positions,
            n_layer=given.n_layer,
            n_head=given.n_head,
            n_embd=given.n_embd,
            intermediate_size=given.n_inner,
            qkv_bias=True,
            attention_scale=1.0 if given.scale_attn_weights is False else None,
        )


def neo_config(hf_config: Mapping[str, Any]) -> GPTConfig:
    """Read a GPT-Neo's architecture from config.json. Raises UserError for what is not supported."""
    given = check_json(hf_config, _NeoConfig, "config.json", "use another copy of it")
    layers = given.attention_layers
    if layers is None:
        layers = _expanded(given.attention_types)
    if unknown := sorted({*layers} - {"global", "local"}):
        raise UserError(f"config.json has attention of type {short(unknown[0])}, which is not supported.")
    if len(layers) != given.num_layers:
        raise UserError(
            f"config.json describes an impossible model (attention for {len(layers)} of {given.num_layers} layers)."
        )
    windows = tuple(given.window_size if kind == "local" else None for kind in layers)
    with impossible():
        return GPTConfig(
            **given.fields(),
            context_length=given.max_position_embeddings,
            n_layer=given.num_layers,
            n_head=given.num_heads,
            n_embd=given.hidden_size,
            intermediate_size=given.intermediate_size,
            attention_scale=1.0,
            windows=windows if any(windows) and given.window_size < given.max_position_embeddings else None,
        )


def gpt2_to_hf(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The contents of a GPT-2's config.json. Raises ValueError for a model that it can't express (see `why_not_gpt2`)."""
    if reason := why_not_gpt2(config):
        raise ValueError(f"this model can't be written as a Hugging Face GPT-2: {reason}")
    return _shared_keys(config, tokenizer) | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.context_length,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_size,
        "scale_attn_weights": config.attention_scale is None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def neo_to_hf(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The contents of a GPT-Neo's config.json. Raises ValueError for a model that it can't express (see `why_not_neo`)."""
    if reason := why_not_neo(config):
        raise ValueError(f"this model can't be written as a Hugging Face GPT-Neo: {reason}")
    layers = ["global" if window is None else "local" for window in config.windows or (None,) * config.n_layer]
    return _shared_keys(config, tokenizer) | {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "max_position_embeddings": config.context_length,
        "hidden_size": config.n_embd,
        "num_layers": config.n_layer,
        "num_heads": config.n_head,
        "intermediate_size": config.mlp_size,
        "attention_types": [[layers, 1]],
        "attention_layers": layers,
        "window_size": window_of(config) or config.context_length,
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _shared_keys(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The keys of config.json that both have."""
    return {
        "vocab_size": config.vocab_size,
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "torch_dtype": "float32",
        **special_ids(tokenizer),
    }


def why_not_gpt2(config: GPTConfig) -> str | None:
    """Why GPT-2 can't express an architecture, or None if it can."""
    return _why_not(config, "GPT-2", {"qkv_bias": True}, {"attention_scale": {1.0}})


def why_not_neo(config: GPTConfig) -> str | None:
    """Why GPT-Neo can't express an architecture, or None if it can."""
    if reason := _why_not(config, "GPT-Neo", {"qkv_bias": False, "attention_scale": 1.0}, {"windows": ANY}):
        return reason
    return "GPT-Neo has windows of one size" if len({*(config.windows or ())} - {None}) > 1 else None


def _why_not(config: GPTConfig, name: str, always: Mapping[str, Any], more: Implemented) -> str | None:
    if reason := why_not_expressible(config, name, IMPLEMENTED | more, FIXED | dict(always)):
        return reason
    if config.kv_heads != config.n_head or config.n_head * config.head_size != config.n_embd:
        return f"{name}'s heads are as many for keys as for queries, and together as wide as the model"
    return None


def _expanded(types: list[Any] | None) -> list[str]:
    """[[["global", "local"], 12]] -> the type of each of 24 layers."""
    layers: list[str] = []
    try:
        for kinds, times in types or [[["global", "local"], 12]]:
            repeated = chain.from_iterable(repeat(kinds, int(times)))
            layers += [str(kind) for kind in islice(repeated, MAX_LAYERS + 1 - len(layers))]
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"config.json has attention_types {short(types)}, which can't be read.") from None
    return layers


def _split(name: str) -> tuple[str, str, str]:
    """("layers.3.mlp.up_proj.weight") -> ("transformer.h.3.", "mlp.up_proj", "weight")"""
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return PREFIX, module, kind
    _, layer, module = module.split(".", 2)
    return f"{PREFIX}h.{layer}.", module, kind


def gpt2_part(name: str, config: GPTConfig) -> Part:
    """Where one of our tensors is in a GPT-2."""
    if name == HEAD:
        return Part(HEAD)
    start, module, kind = _split(name)
    if module in _TABLES or module in _NORMS:
        return Part(f"{start}{(_TABLES | _NORMS)[module]}.{kind}")
    transposed, width = kind == "weight", config.n_embd
    if module in _QKV:
        first = _QKV.index(module) * width
        return Part(f"{start}attn.c_attn.{kind}", first, width, 3 * width, transposed)
    source = {"self_attn.o_proj": "attn.c_proj", **_MLP}[module]
    return Part(f"{start}{source}.{kind}", transposed=transposed)


def neo_part(name: str, config: GPTConfig) -> Part:
    """Where one of our tensors is in a GPT-Neo."""
    if name == HEAD:
        return Part(HEAD)
    start, module, kind = _split(name)
    return Part(f"{start}{(_TABLES | _NORMS | _MLP | _NEO)[module]}.{kind}")

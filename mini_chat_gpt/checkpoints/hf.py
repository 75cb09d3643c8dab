"""Mappings between our models and Llama's relatives in `transformers`: config.json and parameter names, both ways.

`transformers` (4.56 and later) loads the results of `to_hf_config` and `to_hf_state` as the same model.
`from_hf_config(to_hf_config(config, tokenizer))` is the same architecture with explicit defaults. No files are involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import ValidationError

from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, why_not_expressible
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


@dataclass(frozen=True)
class LlamaLike:
    """A family whose config.json has Llama's keys, and what differs from Llama."""

    name: str
    model_type: str
    causal_lm: str
    always: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `GPTConfig` that every model of the family has with this value, and no key says so."""
    windows: Literal["", "all", "later"] = ""
    """Which layers `sliding_window` is for: none, all, or those from `max_window_layers` on if `use_sliding_window` is true."""
    mlp_bias: bool = False
    """Whether there is a key for biases in the MLP."""
    lacks: tuple[str, ...] = ()
    """Fields of `GPTConfig` that Llama's config.json can express, but this family's can't."""
    whole_heads: bool = False
    """Whether the width must be a multiple of the heads even if they have a width of their own."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What `transformers` uses for missing keys, where that differs from Llama."""

    def why_not(self, config: GPTConfig) -> str | None:
        """Why the family can't express an architecture, or None if it can."""
        implemented = IMPLEMENTED | ({"windows": ANY} if self.windows else {})
        implemented = {name: values for name, values in implemented.items() if name not in self.lacks}
        if reason := why_not_expressible(config, self.name, implemented, self.always):
            return reason
        if "qkv_bias" not in self.always and config.bias != config.qkv_bias:
            return (
                f"{self.name} has biases on all four attention projections or on none (bias and qkv_bias must be equal)"
            )
        if not self.mlp_bias and config.mlp_has_bias:
            return f"{self.name} has no biases in the MLP"
        if self.windows and not _has_one_window(config, self.windows == "all"):
            return f"{self.name} has windows of one size{', in all layers' if self.windows == 'all' else ''}"
        if self.whole_heads and config.n_embd % config.n_head:
            return f"{self.name}'s width must be a multiple of its heads ({config.n_embd}, {config.n_head})"
        return None


LLAMA = LlamaLike("Llama", "llama", "LlamaForCausalLM", mlp_bias=True, whole_heads=True)
MISTRAL = LlamaLike(
    "Mistral", "mistral", "MistralForCausalLM", {"bias": False, "qkv_bias": False}, "all",
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
)  # fmt: skip
QWEN2 = LlamaLike(
    "Qwen2", "qwen2", "Qwen2ForCausalLM", {"qkv_bias": True, "bias": False}, "later",
    defaults={"num_key_value_heads": 32, "max_window_layers": 28, "sliding_window": 4096},
)  # fmt: skip
QWEN3 = LlamaLike(
    "Qwen3", "qwen3", "Qwen3ForCausalLM", {"qk_norm": True}, "later",
    defaults={"head_dim": 128, "num_key_value_heads": 32, "max_window_layers": 28, "sliding_window": 4096},
)  # fmt: skip
OLMO2 = LlamaLike(
    "OLMo 2", "olmo2", "Olmo2ForCausalLM", {"norm_placement": "after", "qk_norm": "all_heads"},
    defaults={"rms_norm_eps": 1e-5},
)  # fmt: skip
PHI3 = LlamaLike(
    "Phi-3", "phi3", "Phi3ForCausalLM", {"bias": False, "qkv_bias": False}, "all", lacks=("rope_scaling",),
    defaults={"rms_norm_eps": 1e-5},
)  # fmt: skip


def _has_one_window(config: GPTConfig, in_all_layers: bool) -> bool:
    windows = set(config.windows or ())
    return len(windows) <= 1 or (not in_all_layers and len(windows - {None}) == 1)


def why_not_llama(config: GPTConfig) -> str | None:
    """Why `transformers`' Llama can't express this architecture, or None if it can."""
    return LLAMA.why_not(config)


def to_hf_config(config: GPTConfig, tokenizer: ChatTokenizer, family: LlamaLike = LLAMA) -> dict[str, Any]:
    """The contents of config.json. Raises ValueError for a model that the family can't express (see `why_not`)."""
    if reason := family.why_not(config):
        raise ValueError(f"this model can't be written as a Hugging Face {family.name}: {reason}")
    values = shared_keys(config, tokenizer) | {
        "architectures": [family.causal_lm],
        "model_type": family.model_type,
        "hidden_act": "silu",
    }
    if "qkv_bias" not in family.always:
        values["attention_bias"] = config.qkv_bias
    if family.mlp_bias:
        values["mlp_bias"] = config.mlp_has_bias
    return values | _window_keys(config, family)


def shared_keys(config: GPTConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The keys of config.json that mean the same in every family."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        # transformers 5 converts these two to `rope_parameters`; older versions know only these.
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "torch_dtype": "float32",
        **special_ids(tokenizer),
    }


def layer_types(config: GPTConfig) -> list[str]:
    """The type of each layer, as config.json names it."""
    windows = config.windows or (None,) * config.n_layer
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def window_of(config: GPTConfig) -> int | None:
    """The window of the layers that have one."""
    return next((window for window in config.windows or () if window is not None), None)


def _window_keys(config: GPTConfig, family: LlamaLike) -> dict[str, Any]:
    window, types = window_of(config), layer_types(config)
    if family.windows == "all":
        return {"sliding_window": window}
    if family.windows == "later":
        return {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            # Before transformers 4.53 the windows were those of the last layers; since then each layer is named.
            "max_window_layers": config.n_layer if window is None else types.index("sliding_attention"),
            "layer_types": types,
        }
    return {}


def special_ids(tokenizer: ChatTokenizer) -> dict[str, Any]:
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


class HFConfig(JSONRecord):
    """The keys of config.json. Missing keys have the defaults of `transformers`; those that change nothing are not read.

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
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None

    def sizes(self) -> dict[str, Any]:
        """The fields of `GPTConfig` that mean the same in every family."""
        return {
            "vocab_size": self.vocab_size,
            "context_length": self.max_position_embeddings,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_kv_head": self.num_key_value_heads,
            "n_embd": self.hidden_size,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "norm_eps": self.rms_norm_eps,
        }


def from_hf_config(hf_config: Mapping[str, Any], family: LlamaLike = LLAMA) -> GPTConfig:
    """Read the architecture from a config.json of this family, written by any version of `transformers` or by us.

    Missing keys have the defaults of `transformers`. Raises UserError for another family, and for what is not supported.
    """
    if (model_type := hf_config.get("model_type")) != family.model_type:
        raise UserError(
            f"config.json describes a model of type {short(model_type)}; only '{family.model_type}' can be read."
        )
    given = check_json({**family.defaults, **hf_config}, HFConfig, "config.json", "use another copy of it")
    if given.hidden_act != "silu":
        raise UserError(f"config.json has hidden_act {short(given.hidden_act)}; only 'silu' can be read.")
    if given.rope_interleaved:
        raise UserError("config.json has rope_interleaved: true; only false can be read.")
    theta, scaling = rope_of(given)
    attention_bias, mlp_bias = bool(given.attention_bias), bool(given.mlp_bias) and family.mlp_bias
    fields: dict[str, Any] = {"bias": attention_bias, "qkv_bias": attention_bias} | dict(family.always)
    with impossible():
        return GPTConfig(
            **given.sizes(),
            rope_theta=theta,
            rope_scaling=scaling,
            mlp_bias=None if mlp_bias == fields["bias"] else mlp_bias,
            windows=_windows(given, family),
            tie_embeddings=bool(given.tie_word_embeddings),
            **fields,
        )


@contextmanager
def impossible() -> Iterator[None]:
    """Context in which values that no `GPTConfig` can have raise a UserError about config.json."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        what = "".join(f"{part}: " for part in first["loc"]) + first["msg"].removeprefix("Value error, ")
        raise UserError(f"config.json describes an impossible model ({what}).") from None


def _windows(given: HFConfig, family: LlamaLike) -> tuple[int | None, ...] | None:
    """The window of each layer; None if no layer has one."""
    if not (family.windows == "all" or (family.windows == "later" and given.use_sliding_window)):
        return None
    types: Sequence[str] | None = given.layer_types if family.windows == "later" else None
    if types is None:
        first = given.max_window_layers or 0 if family.windows == "later" else 0
        n_layer = min(given.num_hidden_layers, 1024)
        types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(n_layer)]
    return windows_of(given, types)


def windows_of(given: HFConfig, types: Sequence[str]) -> tuple[int | None, ...] | None:
    """The window of each layer by its type. A window as wide as the context is none. Raises UserError for an unknown type."""
    if unknown := sorted({*types} - {"full_attention", "sliding_attention"}):
        raise UserError(f"config.json has a layer of type {short(unknown[0])}, which is not supported.")
    window = given.sliding_window
    if window is None or window >= given.max_position_embeddings or "sliding_attention" not in types:
        return None
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def rope_of(given: HFConfig) -> tuple[Any, dict[str, Any] | None]:
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
    return {
        hf_name(name, config): value for name, value in values.items() if not (name == HEAD and config.tie_embeddings)
    }


_AFTER = {
    "attention_output_layernorm": "post_attention_layernorm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
}
_BOTH = {"post_attention_layernorm": "pre_feedforward_layernorm"} | _AFTER
NORM_NAMES: dict[str, dict[str, str]] = {"before": {}, "after": _AFTER, "both": _BOTH}
"""Placement of the norms -> our names of a block's norms -> Hugging Face's, where they differ."""


def hf_name(name: str, config: GPTConfig) -> str:
    """Hugging Face's name of one of our parameters."""
    return name if name == HEAD else f"model.{_renamed(name, NORM_NAMES[config.norm_placement])}"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    start, _, last = module.rpartition(".")
    return f"{start}.{names[last]}.{kind}" if last in names else name


def from_hf_state(state: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Rename Hugging Face's parameters to ours; a tied head is the embedding itself.

    This does not check for missing or unexpected parameters; `load_state_dict(strict=True)` does.
    """
    names = {theirs: ours for ours, theirs in NORM_NAMES[config.norm_placement].items()}
    ours = {
        _renamed(name.removeprefix("model."), names): tensor
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq")  # a constant that old versions of transformers saved
    }
    if config.tie_embeddings and EMBEDDING in ours:
        ours[HEAD] = ours[EMBEDDING]
    return ours

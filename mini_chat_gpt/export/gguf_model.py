"""The GGUF form of a model: which architecture of llama.cpp computes it, what its metadata say, and where its tensors are.

llama.cpp knows the rest of an architecture by its name. A model that differs from that in any field of its config is refused: a field
is in IMPLEMENTED of its architecture, or it must have its default value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mini_chat_gpt.checkpoints import gemma, gpt2
from mini_chat_gpt.checkpoints.families import FAMILIES, family_of_model
from mini_chat_gpt.checkpoints.llama2c import pairs_from_halves
from mini_chat_gpt.checkpoints.llama_gguf import FACTORS
from mini_chat_gpt.checkpoints.tensor_parts import sources
from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, why_not_expressible
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.export.gguf_writer import GGUFTensor, block_of
from mini_chat_gpt.export.source import Source
from mini_chat_gpt.ops.functional import rope_frequencies

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
"""Type of most matrices -> its number in general.file_type."""
SMALL = ("q5_1", "q5_0", "q4_1", "q4_0")
"""Types with which the token tables have 8 bits, as they lose the most by rounding (llama.cpp has 6 bits there)."""
TABLES = ("token_embd.weight", "output.weight")
ALWAYS_F32 = ("position_embd.weight",)

_LIKE_LLAMA: Implemented = SIZES | dict.fromkeys(("norm_eps", "rope_theta", "rope_scaling", "tie_embeddings"), ANY)


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp."""

    name: str
    implemented: Implemented
    always: Mapping[str, Any]
    metadata: Callable[[GPTConfig], dict[str, Any]]
    more: Callable[[GPTConfig], str | None] = lambda config: None
    """What else it can't express, as `why_not`."""
    scales_by_table: bool = False
    """Whether it reads factors of the rotary frequencies from a tensor, for llama3's rule."""

    def why_not(self, config: GPTConfig) -> str | None:
        """Why llama.cpp would compute something else, None if it computes this model."""
        if reason := why_not_expressible(config, f"llama.cpp's {self.name}", self.implemented, self.always):
            return reason
        if _rope_type(config) == "llama3" and not self.scales_by_table:
            return f"llama.cpp's {self.name} has no llama3 scaling of the rotary frequencies"
        return self.more(config)


def _rope_type(config: GPTConfig) -> str | None:
    scaling = config.rope_scaling or {}
    return scaling.get("rope_type", scaling.get("type"))


def _sizes(config: GPTConfig) -> dict[str, Any]:
    return {
        "context_length": config.context_length,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.mlp_size,
        "attention.head_count": config.n_head,
        "vocab_size": config.vocab_size,
    }


def _llama_metadata(config: GPTConfig) -> dict[str, Any]:
    values = _sizes(config) | {
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_theta),
    }
    scaling = config.rope_scaling or {}
    if _rope_type(config) == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    elif _rope_type(config) == "llama3":  # the factors are a tensor
        values["rope.scaling.original_context_length"] = int(scaling["original_max_position_embeddings"])
    return values


def _gemma_metadata(config: GPTConfig) -> dict[str, Any]:
    window = next((window for window in config.windows or () if window is not None), config.context_length)
    return _llama_metadata(config) | {"attention.sliding_window": window}


def _why_not_gemma(config: GPTConfig) -> str | None:
    """llama.cpp has built in which layers have windows, the rotary base in them, and the scales."""
    if reason := gemma.why_not(config):
        return reason
    windows = [window is not None for window in config.windows or ()]
    if windows and windows != [(layer + 1) % 6 != 0 for layer in range(config.n_layer)]:
        return "llama.cpp's gemma3 has windows in all layers but every sixth"
    if windows and config.window_rope_theta != 10000.0:
        return "llama.cpp's gemma3 has the rotary base 10,000 in layers with windows"
    scale = config.attention_scale or config.head_size**-0.5
    if config.n_layer == 62 or not math.isclose(scale, config.head_size**-0.5, rel_tol=1e-6):
        return "llama.cpp's gemma3 has the attention scale 1/√head_dim"
    return "llama.cpp's gemma3 has no biases" if config.bias else None


def _gpt2_metadata(config: GPTConfig) -> dict[str, Any]:
    return _sizes(config) | {"attention.layer_norm_epsilon": float(config.norm_eps)}


def _whole_heads(config: GPTConfig) -> str | None:
    if config.kv_heads != config.n_head or config.n_head * config.head_size != config.n_embd:
        return "llama.cpp's gpt2 has as many heads for keys as for queries, and together they are as wide as the model"
    return None


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama",
            _LIKE_LLAMA | dict.fromkeys(("bias", "qkv_bias", "mlp_bias"), ANY),
            {},
            _llama_metadata,
            scales_by_table=True,
        ),
        Architecture("qwen2", _LIKE_LLAMA | {"mlp_bias": {False}}, {"qkv_bias": True, "bias": False}, _llama_metadata),
        Architecture("qwen3", _LIKE_LLAMA, {"qk_norm": True}, _llama_metadata),
        Architecture("gemma3", gemma.IMPLEMENTED, gemma.ALWAYS, _gemma_metadata, _why_not_gemma),
        Architecture(
            "gpt2",
            SIZES | {"norm_eps": ANY, "tie_embeddings": ANY},
            gpt2.FIXED | {"qkv_bias": True, "activation": "gelu_tanh"},
            _gpt2_metadata,
            _whole_heads,
        ),
    )
}


def architecture_of(source: Source) -> Architecture:
    """The architecture that computes the model. Raises UserError, with the reason, if there is none."""
    config = source.config
    family = family_of_model(config, source.origin)
    own = None if family is None or family.gguf is None else ARCHITECTURES.get(family.gguf.architecture)
    for architecture in [*([own] if own else []), *ARCHITECTURES.values()]:
        if architecture.why_not(config) is None:
            return architecture
    if own is not None:
        reason = own.why_not(config)
    elif family is None:
        reason = ARCHITECTURES["llama"].why_not(config)
    elif family.gguf is None:
        other = ARCHITECTURES["llama"].why_not(config)
        reason = f"llama.cpp has no architecture of its own for {family.name}, and {other}"
    else:
        reason = f"GGUF files of {family.name} are not written; llama.cpp's convert_hf_to_gguf.py makes one of an exported folder"
    raise UserError(
        f"{source.path} can't be exported to GGUF: {reason}; export a folder for transformers (a DST without .gguf)."
    )


def gguf_tensors(source: Source, architecture: Architecture, kind: str) -> tuple[list[GGUFTensor], list[str]]:
    """The tensors of the file, with matrices of the type `kind` (a key of FILE_TYPES), and a line about those of another type."""
    config = source.config
    mapping = next(one.gguf for one in FAMILIES if one.gguf is not None and one.gguf.architecture == architecture.name)
    tensors, kept = [], []
    for name, parts in sources(source.stored.infos, mapping.part, config).items():
        ours = [one for one, _ in parts]
        shape = parts[0][1].stored_shape(source.stored.infos[ours[0]].shape)
        its_kind = _kind_of(name, shape, kind)
        if its_kind == "f16" != kind:
            kept.append(name)
        read = partial(_read, source, ours, architecture.name)
        tensors.append(GGUFTensor(name, tuple(shape), its_kind.upper(), read))
    tensors += _rope_factors(config)
    lines = []
    if kept:
        lines.append(
            f"{len(kept)} tensors stay f16, as their rows can't be divided into blocks of {block_of(kind.upper())[0]} weights: "
            f"{', '.join(kept[:3])}{', …' if len(kept) > 3 else ''}"
        )
    return tensors, lines


def _kind_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of one tensor."""
    if len(shape) == 1 or name in ALWAYS_F32:
        return "f32"
    if kind in SMALL and name in TABLES:
        kind = "q8_0"
    return "f16" if shape[-1] % block_of(kind.upper())[0] else kind


def _read(source: Source, names: list[str], architecture: str) -> torch.Tensor:
    """A tensor of the file from ours, which it holds one below the other."""
    return torch.cat([_converted(source.read(name).float(), name, source.config, architecture) for name in names])


def _converted(tensor: torch.Tensor, name: str, config: GPTConfig, architecture: str) -> torch.Tensor:
    """One of our tensors in llama.cpp's form: the inverse of the conversions in llama_gguf.py and gguf_families.py."""
    if architecture == "llama" and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj"):
        return pairs_from_halves(tensor, config.head_size)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def _rope_factors(config: GPTConfig) -> Iterator[GGUFTensor]:
    """The tensor of factors by which llama3's rule divides the rotary frequencies, if the model has that."""
    if _rope_type(config) == "llama3":
        plain = rope_frequencies(config.head_size, config.rope_theta).double()
        scaled = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling).double()
        factors = (plain / scaled).float()
        yield GGUFTensor(FACTORS, tuple(factors.shape), "F32", lambda: factors)


def model_metadata(source: Source, architecture: Architecture, kind: str, name: str) -> dict[str, Any]:
    """The metadata that describe the model."""
    origin, bases = source.origin, []
    values: dict[str, Any] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    if origin is not None:
        links = {"general.license": origin.license, "general.license.link": origin.license_link}
        values |= {key: value for key, value in links.items() if value}
        bases = [origin.repository] if origin.repository else origin.base_model
    if bases:
        values["general.base_model.count"] = len(bases)
        values |= {f"general.base_model.{number}.name": base for number, base in enumerate(bases)}
    own = architecture.metadata(source.config)
    return values | {f"{architecture.name}.{key}": value for key, value in own.items()}

"""Llama and its relatives in GGUF files: metadata to `GPTConfig`, and where our tensors are.

llama.cpp keeps the rows of a Llama's query and key projections in the order of neighboring pairs, as llama2.c does, and those
of the other architectures in Hugging Face's order. Models with llama3's RoPE scaling have a tensor of factors, one for each
frequency, in place of the four numbers of config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from mini_chat_gpt.checkpoints.build import TensorReader
from mini_chat_gpt.checkpoints.llama2c import halves_from_pairs
from mini_chat_gpt.checkpoints.tensor_parts import Part
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.json_files import describe_problem
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.ops.functional import rope_frequencies

FACTORS = "rope_freqs.weight"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "attention_output_layernorm": "post_attention_norm",
    "mlp_output_layernorm": "post_ffw_norm",
}
_DAMAGED = "download it again"
_NOT_LLAMA = {
    "expert_count": "a mixture of experts",
    "attention.sliding_window": "attention within a window",
    "logit_scale": "scaled logits",
    "embedding_scale": "scaled embeddings",
    "residual_scale": "a scaled residual stream",
    "attention.scale": "a scale of its own in attention",
}
"""Metadata of architectures that are written as llama but compute something else, without the prefix."""


def part_of(name: str, config: GPTConfig, architecture: str = "llama") -> Part:
    """Where one of our tensors is in a GGUF file, and how its rows are put in our order."""
    reorder = architecture == "llama" and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj")
    return Part(stored_name(name), convert=partial(halves_from_pairs, head_dim=config.head_size) if reorder else None)


def stored_name(name: str, names: Mapping[str, str] = _NAMES) -> str:
    """ "layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight" """
    module, _, kind = name.rpartition(".")
    block = ""
    if module.startswith("layers."):
        _, layer, module = module.split(".", 2)
        block = f"blk.{layer}."
    return f"{block}{names[module]}.{kind}"


def read_config(metadata: Mapping[str, Any], reader: TensorReader, architecture: str = "llama") -> GPTConfig:
    """The architecture, from the metadata and from which tensors there are. Raises UserError."""
    given, infos = Metadata(metadata, architecture), reader.infos
    given.refuse(_NOT_LLAMA)
    bias, mlp_bias = "blk.0.attn_output.bias" in infos, "blk.0.ffn_down.bias" in infos
    fields = shared_fields(given, reader)
    q_norm, head_dim = infos.get("blk.0.attn_q_norm.weight"), fields["head_dim"]
    return given.config(
        **fields,
        norm_placement="before" if "blk.0.attn_norm.weight" in infos else "after",
        bias=bias,
        qkv_bias="blk.0.attn_q.bias" in infos,
        mlp_bias=None if mlp_bias == bias else mlp_bias,
        qk_norm=False if q_norm is None else q_norm.shape == (head_dim,) or "all_heads",
    )


def sizes(given: Metadata, reader: TensorReader) -> dict[str, Any]:
    """The fields of `GPTConfig` that every architecture has. Raises UserError."""
    embedding = reader.infos.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"its tensor {EMBEDDING} is missing or not a table; {_DAMAGED}.")
    return {
        "vocab_size": embedding.shape[0],
        "context_length": given.get("context_length", int),
        "n_layer": given.get("block_count", int),
        "n_head": given.get("attention.head_count", int),
        "n_embd": given.get("embedding_length", int),
        "intermediate_size": given.get("feed_forward_length", int),
    }


def shared_fields(given: Metadata, reader: TensorReader, theta: float | None = 10000.0) -> dict[str, Any]:
    """The fields of `GPTConfig` that Llama and its relatives have in common. Raises UserError.

    `theta` is the base of the rotary frequencies if the file has none; None: it must have one.
    """
    fields = sizes(given, reader)
    head_dim = given.get("attention.key_length", int, fields["n_embd"] // max(1, fields["n_head"]))
    for key, default in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if (value := given.get(key, int, default)) != head_dim:
            raise UserError(
                f"its metadata has {given.architecture}.{key} = {value} for heads of width {head_dim}; that is not supported."
            )
    base = given.number("rope.freq_base", _REQUIRED if theta is None else theta)
    return fields | {
        "n_kv_head": given.get("attention.head_count_kv", int, fields["n_head"]),
        "head_dim": head_dim,
        "norm_eps": given.number("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": base,
        "rope_scaling": _rope_scaling(given, reader, head_dim, base),
        "tie_embeddings": OUTPUT not in reader.infos,
    }


_REQUIRED: Any = object()


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file whose keys begin with its architecture."""

    values: Mapping[str, Any]
    architecture: str

    def raw(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.architecture}.{key}", default)

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """A value of this type. Raises UserError if it is missing without a default, or of another type."""
        value, name = self.raw(key, default), f"{self.architecture}.{key}"
        if value is _REQUIRED:
            raise UserError(f"its metadata lacks {name}; {_DAMAGED}.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:  # a list: another number in each layer
            raise UserError(f"its metadata has {name} = {short(value)}; one number for all layers is supported.")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A value that is stored as float32; see `get`."""
        return _shortest(self.get(key, float, default))

    def refuse(self, keys: Mapping[str, str]) -> None:
        """Raise UserError if one of these keys, each with what it stands for, has a value that changes the model."""
        for key, what in keys.items():
            if (value := self.raw(key, 0)) not in (0, 1 if "scale" in key else 0):
                raise UserError(
                    f"its metadata has {self.architecture}.{key} = {short(value)}; {what} is not supported."
                )

    def config(self, **fields: Any) -> GPTConfig:
        """A config with these fields. Raises UserError for values that no model can have."""
        try:
            return GPTConfig(**fields)
        except ValidationError as error:
            problem = describe_problem(error.errors(include_url=False)[0])
            raise UserError(f"its metadata describes an impossible model ({problem}); {_DAMAGED}.") from None


def _shortest(value: float) -> float:
    """The number that was meant by one stored as float32: 1e-05 instead of 9.999999747378752e-06."""
    if not math.isfinite(value) or abs(value) > 3e38:
        return value
    return float(str(np.float32(value)))


def _rope_scaling(given: Metadata, reader: TensorReader, head_dim: int, theta: float) -> dict[str, Any] | None:
    """The scaling of the rotary frequencies in the terms of config.json; None if they are not scaled."""
    kind = given.raw("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(
            f"its metadata has {given.architecture}.rope.scaling.type = {short(kind)}; only linear is supported."
        )
    linear = given.get("rope.scaling.factor", float, given.get("rope.scale_linear", float, 1.0))
    if FACTORS in reader.infos:
        if linear != 1 or reader.infos[FACTORS].shape != (head_dim // 2,):
            raise UserError(f"its tensor {FACTORS} doesn't fit its metadata; {_DAMAGED}.")
        original = given.raw("rope.scaling.original_context_length")
        return llama3_scaling(reader.read(FACTORS, torch.float32), head_dim, theta, original)
    return None if linear == 1 else {"rope_type": "linear", "factor": _shortest(linear)}


def llama3_scaling(
    factors: torch.Tensor, head_dim: int, theta: float, original: object = None
) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json that divides the frequencies by these factors (D/2,); None if all are 1.

    llama3's rule is 1/f = blend + (1 - blend)/factor with blend = clamp((context · frequency / 2π - low) / (high - low), 0, 1).
    Several parameters give the same factors: those of Llama 3.1 (low 1, high 4) are tried first, then low is 1.
    `original` is the original context, if it is known. Raises UserError for factors that follow another rule.
    """
    frequencies, exact = rope_frequencies(head_dim, theta).double(), factors.double()
    if not (torch.isfinite(exact).all() and (exact >= 1 - 1e-6).all() and (exact <= 1e6).all()):
        raise UserError(f"its tensor {FACTORS} has factors below 1; that is not supported.")
    if (exact - 1).abs().max() < 1e-6:
        return None
    if (exact / exact[0] - 1).abs().max() < 1e-6:
        return {"rope_type": "linear", "factor": _shortest(float(exact[0]))}
    factor = _shortest(float(exact.max()))
    blends = (1 / exact - 1 / factor) / (1 - 1 / factor)
    for low, high, context in _candidates(frequencies / (2 * math.pi), blends, original):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
        if context >= 2 and high > low:
            scaled = rope_frequencies(head_dim, theta, scaling).double()
            if (frequencies / scaled / exact - 1).abs().max() < 1e-5:
                return scaling
    raise UserError(f"its tensor {FACTORS} has factors that don't follow llama3's rule; that is not supported.")


def _candidates(turns: torch.Tensor, blends: torch.Tensor, original: object) -> list[tuple[float, float, int]]:
    """(low, high, context) that could give the blends (D/2,) of frequencies in turns per token (D/2,)."""
    found: list[tuple[float, float, int]] = [(1.0, 4.0, original)] if type(original) is int else []
    between = [i for i, blend in enumerate(blends.tolist()) if 1e-6 < blend < 1 - 1e-6]
    kept, divided = turns[blends >= 1 - 1e-6], turns[blends <= 1e-6]
    if len(between) > 1:
        # blend = turns · slope - offset, with slope = context / (high - low), offset = low / (high - low)
        first, last = between[0], between[-1]
        slope = float((blends[first] - blends[last]) / (turns[first] - turns[last]))
        offset = float(turns[first]) * slope - float(blends[first])
        if slope > 0 and offset > 0:
            found += _with_whole_context(1.0, 1 + 1 / offset, slope / offset)
    elif between:
        blend, here = float(blends[between[0]]), float(turns[between[0]])
        found += _with_whole_context(1.0, 4.0, (1 + 3 * blend) / here)
        # Llama 3.1's band is too wide: the widest one that leaves out the two neighbors.
        below, above = float(divided.max()) if len(divided) else 0.0, float(kept.min()) if len(kept) else math.inf
        width = 0.99 * min((here - below) / blend, (above - here) / (1 - blend))
        start = here - blend * width
        found += _with_whole_context(1.0, (start + width) / start, 1 / start)
    elif len(kept) and len(divided):  # any bound between the two groups is right
        bound = math.sqrt(float(kept.min()) * float(divided.max()))
        found += _with_whole_context(1.0, 4.0, 2 / bound) + _with_whole_context(1.0, 1.001, 1 / bound)
    return found


def _with_whole_context(low: float, high: float, context: float) -> list[tuple[float, float, int]]:
    """The context rounded, with bounds as they were probably meant, and with bounds that make up for the rounding."""
    whole = round(context)
    return [(low, round(high, 4), whole), (low * whole / context, high * whole / context, whole)]

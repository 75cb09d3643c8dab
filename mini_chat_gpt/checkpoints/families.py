"""The model families that can be read from other projects' files: one entry a family.

An entry says how a family's config and weights are written down elsewhere, and how they map to a `GPTConfig` and to our
parameters. The readers of files (`hf_folder`, `gguf`) know no family, and no other module compares names of families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mini_chat_gpt.checkpoints import gemma, gguf_families, gpt2, hf, llama_gguf
from mini_chat_gpt.checkpoints.build import TensorReader
from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.tensor_parts import Part, PartOf
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.config import GPTConfig

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True)
class GGUFMapping:
    """How a family is written down in GGUF files."""

    architecture: str
    config_from: Callable[[Mapping[str, Any], TensorReader], GPTConfig]
    """Metadata and tensors of a file -> the architecture."""
    part: PartOf


@dataclass(frozen=True)
class Family:
    """How one family is written down elsewhere."""

    name: str
    model_type: str
    """In config.json."""
    causal_lm: str
    """The class in `transformers` that predicts tokens."""
    config_from_hf: Callable[[Mapping[str, Any]], GPTConfig]
    hf_part: PartOf
    """Where our tensors are in a Hugging Face folder, and in our checkpoints of the family."""
    why_not: Callable[[GPTConfig], str | None]
    """Why the family can't express an architecture; None if it can."""
    config_to_hf: Callable[[GPTConfig, ChatTokenizer], dict[str, Any]]
    gguf: GGUFMapping | None = None
    """None: llama.cpp doesn't know the family."""
    constants: tuple[str, ...] = ()
    """Ends of the names of tensors that are not weights, because the config determines their values."""
    gpt2_tokenizer: bool = False
    """Whether vocab.json and merges.txt without a tokenizer.json mean GPT-2's tokenizer."""
    prefix: str = ""
    """Before the names of the tensors of a Hugging Face folder; some folders lack it."""


def plain_part(name: str, config: GPTConfig) -> Part:
    """Where our tensors are under Llama's names, as all checkpoints that name no family have them."""
    return Part(hf.hf_name(name, config))


def _phi3_part(name: str, config: GPTConfig) -> Part:
    """In Phi-3 queries, keys and values are the rows of one matrix, and so are the MLP's gate and input."""
    inner, kv_inner, mlp = config.n_head * config.head_size, config.kv_heads * config.head_size, config.mlp_size
    joined = {
        "self_attn.qkv_proj": {"q_proj": inner, "k_proj": kv_inner, "v_proj": kv_inner},
        "mlp.gate_up_proj": {"gate_proj": mlp, "up_proj": mlp},
    }
    for module, sizes in joined.items():
        first = 0
        for part, n_rows in sizes.items():
            if name.endswith(f".{part}.weight"):
                source = hf.hf_name(name, config).replace(f"{module.partition('.')[0]}.{part}", module)
                return Part(source, first, n_rows, sum(sizes.values()))
            first += n_rows
    return plain_part(name, config)


def _llama_like(family: hf.LlamaLike, gguf: GGUFMapping | None) -> Family:
    return Family(
        name=family.name,
        model_type=family.model_type,
        causal_lm=family.causal_lm,
        config_from_hf=partial(hf.from_hf_config, family=family),
        config_to_hf=partial(hf.to_hf_config, family=family),
        why_not=family.why_not,
        hf_part=plain_part,
        gguf=gguf,
        constants=("rotary_emb.inv_freq", llama_gguf.FACTORS),
    )


def _gguf(architecture: str) -> GGUFMapping:
    """A relative of Llama."""
    return GGUFMapping(
        architecture,
        partial(llama_gguf.read_config, architecture=architecture),
        partial(llama_gguf.part_of, architecture=architecture),
    )


FAMILIES = (
    _llama_like(hf.LLAMA, _gguf("llama")),
    _llama_like(hf.MISTRAL, None),  # in GGUF it is a llama
    _llama_like(hf.QWEN2, _gguf("qwen2")),
    _llama_like(hf.QWEN3, _gguf("qwen3")),
    _llama_like(hf.OLMO2, _gguf("olmo2")),
    replace(
        _llama_like(hf.PHI3, GGUFMapping("phi3", gguf_families.phi3_config, gguf_families.phi3_part)),
        hf_part=_phi3_part,
    ),
    Family(
        name="Gemma 3",
        model_type="gemma3_text",
        causal_lm="Gemma3ForCausalLM",
        config_from_hf=gemma.from_hf_config,
        config_to_hf=gemma.to_hf_config,
        why_not=gemma.why_not,
        hf_part=plain_part,
        gguf=GGUFMapping("gemma3", gguf_families.gemma3_config, gguf_families.gemma3_part),
    ),
    Family(
        name="GPT-2",
        model_type="gpt2",
        causal_lm="GPT2LMHeadModel",
        config_from_hf=gpt2.gpt2_config,
        config_to_hf=gpt2.gpt2_to_hf,
        hf_part=gpt2.gpt2_part,
        why_not=gpt2.why_not_gpt2,
        gguf=GGUFMapping("gpt2", gguf_families.gpt2_config, gguf_families.gpt2_part),
        constants=gpt2.BUFFERS,
        gpt2_tokenizer=True,
        prefix=gpt2.PREFIX,
    ),
    Family(
        name="GPT-Neo",
        model_type="gpt_neo",
        causal_lm="GPTNeoForCausalLM",
        config_from_hf=gpt2.neo_config,
        config_to_hf=gpt2.neo_to_hf,
        hf_part=gpt2.neo_part,
        why_not=gpt2.why_not_neo,
        constants=gpt2.BUFFERS,
        gpt2_tokenizer=True,
        prefix=gpt2.PREFIX,
    ),
)


def family_of_type(model_type: object, source: str) -> Family:
    """The family of a config.json. Raises UserError, which begins with `source`, for an unknown one."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(f"{source} has the model_type {short(model_type)}, which is not supported; supported: {known}.")


def family_of_architecture(architecture: object, source: str) -> tuple[Family, GGUFMapping]:
    """The family of a GGUF file. Raises UserError, which begins with `source`, for an unknown one."""
    known = {family.gguf.architecture: (family, family.gguf) for family in FAMILIES if family.gguf is not None}
    if isinstance(architecture, str) and architecture in known:
        return known[architecture]
    raise UserError(
        f"{source} is a GGUF file of the architecture {short(architecture)}, which is not supported; supported: "
        f"{', '.join(known)}."
    )


def family_of_model(config: GPTConfig, origin: Origin | None = None) -> Family | None:
    """The family in whose form a model is saved, that of its origin first; None if no family can express it."""
    name = None if origin is None else origin.family
    by_origin = sorted(FAMILIES, key=lambda family: family.name != name)
    return next((family for family in by_origin if family.why_not(config) is None), None)


def part_of_layout(layout: str, source: str) -> PartOf:
    """Where the tensors of one of our checkpoints are. `layout` is the model_type of its family, "" for Llama's names.

    Raises UserError, which begins with `source`, for an unknown one.
    """
    return family_of_type(layout, source).hf_part if layout else plain_part

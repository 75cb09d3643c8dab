"""The names and shapes that the trained parameters of an adapter have in files of PEFT, for a base in the form of its family.

PEFT adapts the modules of `transformers`. Where such a module joins several of our layers, as GPT-2's c_attn those of queries, keys
and values, each of them has matrices A_i (r, in) and B_i (n_i, r) of its own here. The module's are

    A = [A_1; A_2; …]  (n·r, in)        B = diag(B_1, B_2, …)  (rows of the module, n·r)

which computes the same: rows of B·A that belong to layer i are B_i·A_i, and rows of a layer that is not adapted are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mini_chat_gpt.checkpoints.tensor_parts import Part, PartOf, sources
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import linear_layers
from mini_chat_gpt.model import GPT

PREFIX = "base_model.model."
LORA_A, LORA_B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
ROWS = "token_adapter.trainable_tokens_delta"
TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Module:
    """A module of `transformers`, and the adapted layers of ours that it holds."""

    name: str
    layers: tuple[tuple[str, Part], ...]  # in the order of their rows

    @property
    def of_rows(self) -> int | None:
        """All rows of the module; None if it is one layer of ours."""
        return self.layers[0][1].of_rows

    @property
    def transposed(self) -> bool:
        return self.layers[0][1].transposed

    @property
    def stored(self) -> str:
        """The beginning of the names of its tensors."""
        return f"{PREFIX}{self.name}."


def modules_of(layers: Sequence[str], part_of: PartOf, config: GPTConfig) -> list[Module]:
    """The modules of `transformers` that hold these layers of ours."""
    held = sources([f"{layer}.weight" for layer in layers], part_of, config)
    return [
        Module(_module(source), tuple((_module(name), part) for name, part in parts)) for source, parts in held.items()
    ]


def _module(name: str) -> str:
    """The module of a parameter."""
    return name.rpartition(".")[0]


def table_name(table: str, part_of: PartOf, config: GPTConfig) -> str:
    """The module of `transformers` that is one of our TABLES."""
    return _module(part_of(f"{table}.weight", config).source)


def to_peft(model: GPT, part_of: PartOf) -> dict[str, torch.Tensor]:
    """The trained parameters of an adapted model by PEFT's names. Those of a joined module are copied, others are not."""
    tensors: dict[str, torch.Tensor] = {}
    for module in modules_of(model.adapter.layers, part_of, model.config):
        layers = [(_submodule(model, name), part) for name, part in module.layers]
        of_rows = module.of_rows
        if of_rows is None:
            layer = layers[0][0]
            a, b, magnitude = layer.lora_A, layer.lora_B, layer.magnitude
        else:
            rank = model.adapter.settings.rank
            a, b = (
                torch.cat([layer.lora_A for layer, _ in layers]),
                layers[0][0].lora_B.new_zeros(of_rows, len(layers) * rank),
            )
            for number, (layer, part) in enumerate(layers):
                _block(b, number, part, rank).copy_(layer.lora_B)
            magnitude = _joined_magnitudes(model, module, part_of) if model.adapter.settings.dora else None
        tensors |= {module.stored + LORA_A: a, module.stored + LORA_B: b}
        if magnitude is not None:
            tensors[module.stored + MAGNITUDE] = magnitude
    for table in TABLES:
        if (rows := getattr(_submodule(model, table), "rows", None)) is not None and _has_rows(table, model.config):
            tensors[f"{PREFIX}{table_name(table, part_of, model.config)}.{ROWS}"] = rows
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _submodule(model: GPT, name: str) -> Any:
    """A LoraLinear, a frozen layer or a table with trained rows."""
    return model.get_submodule(name)


def _has_rows(table: str, config: GPTConfig) -> bool:
    """Whether the file has rows of this table: those of a tied head are the embedding's."""
    return table == TABLES[0] or not config.tie_embeddings


def _block(b: torch.Tensor, number: int, part: Part, rank: int) -> torch.Tensor:
    """The rows and columns of B that belong to one layer."""
    assert part.n_rows is not None
    return b[part.first : part.first + part.n_rows, number * rank : (number + 1) * rank]


@torch.no_grad()
def _joined_magnitudes(model: GPT, module: Module, part_of: PartOf) -> torch.Tensor:
    """DoRA's magnitudes of all rows of a module; rows of layers that are not adapted keep the norm that they have."""
    adapted = {name for name, _ in module.layers}
    every_layer = [name.removesuffix(".base") for name, _ in linear_layers(model)]
    (whole,) = (one for one in modules_of(every_layer, part_of, model.config) if one.name == module.name)
    norms: list[torch.Tensor] = []
    for name, _ in whole.layers:
        layer = _submodule(model, name)
        norms.append(layer.magnitude if name in adapted else layer.weight.float().norm(dim=1))
    return torch.cat(norms)


def peft_shapes(
    layers: Mapping[str, tuple[int, int]], rank: int, dora: bool, part_of: PartOf, config: GPTConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of an adapter of `layers`, name -> (out, in), by PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules_of([*layers], part_of, config):
        n_out, n_in = layers[module.layers[0][0]]
        n_rank, n_rows = len(module.layers) * rank, module.of_rows or n_out
        shapes |= {module.stored + LORA_A: (n_rank, n_in), module.stored + LORA_B: (n_rows, n_rank)}
        if dora:
            shapes[module.stored + MAGNITUDE] = (n_rows,)
    return shapes


@torch.no_grad()
def from_peft(model: GPT, tensors: Mapping[str, torch.Tensor], part_of: PartOf, source: str) -> None:
    """Copy tensors with the names and shapes of `to_peft` into an adapted model.

    Raises UserError, which begins with `source`, for a joined module whose B is not of the form diag(B_1, B_2, …).
    """
    rank = model.adapter.settings.rank
    for module in modules_of(model.adapter.layers, part_of, model.config):
        a, b = tensors[module.stored + LORA_A], tensors[module.stored + LORA_B]
        magnitude = tensors.get(module.stored + MAGNITUDE)
        for number, (name, part) in enumerate(module.layers):
            layer = _submodule(model, name)
            layer.lora_A.copy_(a[number * rank : (number + 1) * rank])
            layer.lora_B.copy_(b if module.of_rows is None else _block(b, number, part, rank))
            if magnitude is not None:
                layer.magnitude.copy_(magnitude if part.n_rows is None else magnitude[part.first :][: part.n_rows])
        if module.of_rows is not None:
            rest = b.clone()
            for number, (_, part) in enumerate(module.layers):
                _block(rest, number, part, rank).zero_()
            if rest.any():
                raise UserError(
                    f"{source} has {module.stored}{LORA_B} with values where each of {_listed(module)} has none of its own; "
                    "use another checkpoint."
                )
    for table in TABLES:
        name = f"{PREFIX}{table_name(table, part_of, model.config)}.{ROWS}"
        if name in tensors:
            _submodule(model, table).rows.copy_(tensors[name])


def _listed(module: Module) -> str:
    return ", ".join(name.rpartition(".")[2] for name, _ in module.layers)

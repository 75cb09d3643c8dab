"""An adapter on a `CPUInferenceModel` without merging the two: any number of adapters share the packed weights of their base."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from mini_chat_gpt.generation.cpu_model import BlockDecoder, CPUInferenceModel
from mini_chat_gpt.generation.cpu_weights import PackedBlock, Product
from mini_chat_gpt.lora import EmbeddingRows, HeadRows, LoraLinear
from mini_chat_gpt.lora import adapters as lora_layers
from mini_chat_gpt.model import GPT


@dataclass(frozen=True)
class _Part:
    """The adapter of one layer whose outputs are the columns `start` to `stop` of a product."""

    start: int
    stop: int
    a: torch.Tensor  # (rank, in)
    b: torch.Tensor  # (out, rank), with the scaling
    ratio: torch.Tensor | None  # (out,): of DoRA, the length of each output's weights by what it is without
    bias: torch.Tensor | None  # (out,)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: LoraLinear, start: int) -> _Part:
        ratio = None if layer.magnitude is None else (layer.magnitude / layer.row_norms()).detach()
        bias = None if layer.base.bias is None else layer.base.bias.detach().float()
        a, b = layer.lora_A.detach().clone(), layer.lora_B.detach() * layer.scaling
        return cls(start, start + layer.out_features, a, b, ratio, bias)


class AdaptedProduct:
    """A product of layers that read the same input, some of them with an adapter: (R, K) -> (R, N), float32."""

    def __init__(self, base: Product, parts: Sequence[_Part]) -> None:
        self.base, self.parts = base, parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (R, K) -> (R, N)"""
        out = self.base(x).float()
        for part in self.parts:
            columns = out[:, part.start : part.stop]
            added = F.linear(F.linear(x.float(), part.a), part.b)
            if part.ratio is None:
                columns += added
            elif part.bias is None:
                columns.add_(added).mul_(part.ratio)
            else:
                columns.sub_(part.bias).add_(added).mul_(part.ratio).add_(part.bias)
        return out

    def on(self, base: Product) -> AdaptedProduct:
        """The same adapter on another form of the product."""
        return AdaptedProduct(base, self.parts)


class AdaptedHead:
    """A head of which the rows of some tokens are an adapter's: (R, C) -> (R, V)."""

    def __init__(self, base: Product, ids: torch.Tensor, rows: torch.Tensor) -> None:
        self.base, self.ids, self.rows = base, ids, rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (R, C) -> (R, V)"""
        return self.base(x).float().index_copy(1, self.ids, F.linear(x.float(), self.rows))

    def on(self, base: Product) -> AdaptedHead:
        """The same rows on another form of the product."""
        return AdaptedHead(base, self.ids, self.rows)


class AdaptedModel(CPUInferenceModel):
    """`base` with the adapter of `adapted`, whose own base has the same weights. Only the adapter's tensors are kept."""

    def __init__(self, base: CPUInferenceModel, adapted: GPT) -> None:
        self.__dict__.update(copy.copy(base).__dict__)
        layers = dict(lora_layers(adapted))
        self.blocks = [_adapted_block(block, layers, number) for number, block in enumerate(base.blocks)]
        self.layers = [BlockDecoder(block) for block in self.blocks]
        self.single = None
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None
        embedding, head = adapted.embed_tokens, adapted.lm_head
        if isinstance(embedding, EmbeddingRows):
            self._rows = embedding.ids.clone(), embedding.rows.detach().clone()
        if isinstance(head, HeadRows):
            self.head = AdaptedHead(base.head, head.ids.clone(), head.rows.detach().clone())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> (..., C)"""
        x = super().embed(ids)
        if self._rows is not None:
            for token_id, row in zip(*self._rows, strict=True):
                x[ids == token_id] = row
        return x


def _adapted_block(packed: PackedBlock, layers: Mapping[str, LoraLinear], number: int) -> PackedBlock:
    """A block whose products have the adapters of `layers`, by name."""
    attention, mlp = packed.block.self_attn, packed.block.mlp
    gate = mlp.gate_proj
    products = {
        "qkv": [(f"self_attn.{name}_proj", getattr(attention, f"{name}_proj").out_features) for name in "qkv"],
        "out": [("self_attn.o_proj", attention.o_proj.out_features)],
        "gate_up": [
            ("mlp.gate_proj", 0 if gate is None else gate.out_features),
            ("mlp.up_proj", mlp.up_proj.out_features),
        ],
        "up": [("mlp.up_proj", mlp.up_proj.out_features)],
        "down": [("mlp.down_proj", mlp.down_proj.out_features)],
    }
    changed: dict[str, Any] = {}
    for field, names in products.items():
        start, parts = 0, []
        for name, size in names:
            if (layer := layers.get(f"layers.{number}.{name}")) is not None:
                parts.append(_Part.of(layer, start))
            start += size
        product = getattr(packed, field)
        if parts and product is not None:
            changed[field] = AdaptedProduct(product, parts)
    return replace(packed, **changed)

"""One new token for each of several replies that began at different times, each with a KV cache of its own.

`row_decoder(model, max_rows)` gives the fastest form for the model. On a CPU the logits of a reply are the same, bit for bit,
whichever other replies are computed with it. On a GPU every batch has the same number of rows, so that the same kernels run; the
logits are then equal as far as those kernels treat each row alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Protocol, cast

import torch

from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.cpu_rows import CPURows, UnsteadyProducts, can_decode_rows
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.model import GPT, Attention, Block
from mini_chat_gpt.ops.attention import attention
from mini_chat_gpt.ops.kv_cache import Cached, KVCache


class RowDecoder(Protocol):
    """Computes one token of up to `max_rows` replies at once."""

    max_rows: int

    def next_logits(self, ids: Sequence[int], caches: Sequence[KVCache]) -> torch.Tensor:
        """Read ids[b] into caches[b], each of one row, and predict the next token of each, (B, V) float32."""
        ...


def row_decoder(model: Model, max_rows: int) -> RowDecoder:
    """The fastest form of the model for one token each of up to `max_rows` replies."""
    if isinstance(model, CPUInferenceModel):
        with suppress(UnsteadyProducts):
            if can_decode_rows(model):
                return CPURows(model, max_rows)
        return OneByOne(model, max_rows)
    if model.device.type == "cpu":
        return OneByOne(model, max_rows)
    return FixedRows(model, max_rows)


class OneByOne:
    """Every reply is a batch of its own: for models on a CPU that `CPURows` can't compute."""

    def __init__(self, model: Model, max_rows: int) -> None:
        self.model, self.max_rows = model, max_rows

    def next_logits(self, ids: Sequence[int], caches: Sequence[KVCache]) -> torch.Tensor:
        """See `RowDecoder`."""
        one = [
            self.model.next_logits(torch.tensor([[token_id]], device=self.model.device), cache, [1])
            for token_id, cache in zip(ids, caches, strict=True)
        ]
        return torch.cat(one).float()


class FixedRows:
    """The modules of a GPT with batches of exactly `max_rows` rows. Attention is computed for one reply at a time."""

    def __init__(self, model: Model, max_rows: int) -> None:
        assert not isinstance(model, CPUInferenceModel)
        self.net = model if isinstance(model, GPT) else model.model
        self.autocast = model.autocast if isinstance(model, MixedPrecisionModel) else nullcontext
        self.max_rows = max_rows

    @torch.inference_mode()
    def next_logits(self, ids: Sequence[int], caches: Sequence[KVCache]) -> torch.Tensor:
        """See `RowDecoder`."""
        net, n_empty = self.net, self.max_rows - len(ids)
        device = net.device
        tokens = torch.tensor([*ids, *[0] * n_empty], device=device)[:, None]  # (R, 1)
        positions = torch.tensor([cache.lengths[0] for cache in caches] + [0] * n_empty, device=device)[:, None]
        with self.autocast():
            x, rope, window_rope = net.embed(tokens, positions)
            layouts = [Cached.after(cache) for cache in caches]
            for layer in net.layers:
                block = cast(Block, layer)
                q, k, v = block.qkv(x, rope if block.self_attn.window is None else window_rope)
                x = block.out_and_mlp(x, _attend(block.self_attn, q, k, v, layouts))
            logits: torch.Tensor = net.lm_head(net.norm(x[:, 0]))
        for cache in caches:
            cache.advance([1])
        return logits[: len(ids)].float()


def _attend(
    layer: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layouts: Sequence[Cached]
) -> torch.Tensor:
    """Attention of each row to its own cache. q (R, H, 1, D); k, v (R, Hkv, 1, D) -> (R, H, 1, D); 0 for empty rows."""
    heads = torch.zeros_like(q)
    for row, layout in enumerate(layouts):
        part = slice(row, row + 1)
        heads[part] = attention(
            q[part], k[part], v[part], layout, layer=layer.layer, scale=layer.scale, window=layer.window
        )
    return heads

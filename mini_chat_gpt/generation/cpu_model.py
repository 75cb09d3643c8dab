"""A model in the form that generates fastest on a CPU: `CPUInferenceModel(model, weights)`.

Made once, read from many times. It has what generation needs of a GPT (`config`, `device`, `make_cache`, `next_logits`) and
gives the same logits: to 1e-5 with float32 weights, nearly with bf16 and int8 (decoding_weights.py says how they are kept and
what they cost). The model's weights are taken as they are; after training it further, make another.

What makes it fast: weights packed for products with few rows; those that read the same input multiplied at once (q, k and v;
gate and up); few and small steps between the products, where each call costs as much as the arithmetic; and of a prompt's
last block and head only the row that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_single_token import SingleToken, is_llama
from mini_chat_gpt.generation.cpu_weights import Product, Weights, product_of
from mini_chat_gpt.model import GPT, MLP, Attention, Block, RMSNorm, RotaryEmbedding, activate
from mini_chat_gpt.ops.kv_cache import Cached, KVCache, cached_product


class CPUInferenceModel:
    """See the module. Without `few_rows` float32 weights are not packed: it costs nothing, but saves less.

    Raises UserError for a model that is not on a CPU or not in float32, and for weights that this processor has no kernels
    for.
    """

    def __init__(self, model: GPT, weights: Weights = "float32", few_rows: bool = True) -> None:
        if not can_decode(model):
            raise UserError("Only a float32 model on a CPU can be given other weights for generation.")
        self.model, self.config, self.weights = model, model.config, weights
        config, rotary = model.config, model.rotary
        self.embedding = model.embed_tokens.weight.detach()
        self.positions = None if model.embed_positions is None else model.embed_positions.weight.detach()
        self.turns = None if rotary is None else _turns(rotary.cos, rotary.sin)
        pack = partial(product_of, weights=weights, few_rows=few_rows)
        self.layers = [DecodingBlock(cast(Block, block), layer, pack) for layer, block in enumerate(model.layers)]
        self.norm = norm_of(model.norm, config.n_embd)
        self.head = pack([cast(nn.Linear, model.lm_head)], head=True)
        self.single = SingleToken(model, self.layers) if is_llama(config) else None

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache; see `GPT.make_cache`."""
        return self.model.make_cache(batch_size, max_length)

    @torch.inference_mode()
    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Read new tokens into the cache and predict the one that follows; see `GPT.next_logits`."""
        if ids.shape == (1, 1) and self.single is not None:
            hidden = self.single(int(ids), cache)
        else:
            last = None if ids.shape[1] == 1 else torch.tensor(n_tokens) - 1
            hidden = self._hidden(ids, cache, last)
        cache.advance(n_tokens)
        return self.head(hidden).float()

    @torch.inference_mode()
    def all_logits(self, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """The same after each of the new tokens, (B, T) -> (B, T, vocab_size)."""
        hidden = self._hidden(ids, cache, None)
        cache.advance([ids.shape[1]] * len(ids))
        return self.head(hidden).float().view(*ids.shape, -1)

    def _hidden(self, ids: torch.Tensor, cache: KVCache, last: torch.Tensor | None) -> torch.Tensor:
        """Normalised states of all tokens (B·T, C), or of the one in column last[b] of each row (B, C)."""
        layout, n_new = Cached.after(cache), ids.shape[1]
        x = F.embedding(ids, self.embedding)  # (B, T, C)
        if self.positions is not None:
            x = x + layout.rows_of(self.positions, n_new)
        turns = None
        if self.turns is not None:
            turns = tuple(layout.rows_of(table, n_new).unsqueeze(2) for table in self.turns)  # (1 or B, T, 1, D)
        for layer in self.layers:
            only = last if layer is self.layers[-1] else None
            x = layer(x, turns, layout, only)
        return self.norm(x.view(-1, x.shape[-1]))


class DecodingBlock:
    """A `Block` over tokens that come after those in a cache."""

    def __init__(self, block: Block, layer: int, pack: Callable[[Sequence[nn.Linear]], Product]) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.layer, self.scale, self.window = layer, attention.scale, attention.window
        self.n_head, self.n_kv_head, self.head_dim = attention.n_head, attention.n_kv_head, attention.head_dim
        width = block.self_attn.q_proj.in_features
        self.input_norm = norm_of(block.input_layernorm, width)
        self.qkv = pack([attention.q_proj, attention.k_proj, attention.v_proj])
        self.q_norm = None if attention.q_norm is None else norm_of(attention.q_norm, self.head_dim)
        self.k_norm = None if attention.k_norm is None else norm_of(attention.k_norm, self.head_dim)
        self.out = pack([attention.o_proj])
        self.mlp_norm = norm_of(block.post_attention_layernorm, width)
        self.activation = mlp.activation
        self.gate_up = None if mlp.gate_proj is None else pack([mlp.gate_proj, mlp.up_proj])
        self.up = pack([mlp.up_proj]) if mlp.gate_proj is None else None
        self.down = pack([mlp.down_proj])

    def __call__(
        self, x: torch.Tensor, turns: tuple[torch.Tensor, ...] | None, layout: Cached, last: torch.Tensor | None
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C); with `last` only what stands in column last[b] of each row, (B, 1, C)."""
        b, t, c = x.shape
        q = self._heads(x, turns, layout)  # (B, T, H, D)
        if last is not None:
            rows = torch.arange(b)
            layout, t = layout.at(last.tolist()), 1
            q, x = q[rows, last][:, None].float(), x[rows, last][:, None]
        heads = cached_product(q.transpose(1, 2), layout, self.layer, self.scale, self.window)  # (B, H, T, D)
        x = x.view(b * t, c)
        x = x + self.out(heads.transpose(1, 2).reshape(b * t, -1))
        x += self.down(self._inside(self.mlp_norm(x)))
        return x.view(b, t, c)

    def _heads(self, x: torch.Tensor, turns: tuple[torch.Tensor, ...] | None, layout: Cached) -> torch.Tensor:
        """Puts keys and values into the cache and returns the queries (B, T, H, D)."""
        b, t, c = x.shape
        n_head, n_turned = self.n_head, self.n_head + self.n_kv_head
        qkv = self.qkv(self.input_norm(x.view(b * t, c))).view(b, t, -1, self.head_dim)  # (B, T, H + 2·Hkv, D)
        if self.q_norm is not None and self.k_norm is not None:
            qkv[:, :, :n_head] = self.q_norm(qkv[:, :, :n_head])
            qkv[:, :, n_head:n_turned] = self.k_norm(qkv[:, :, n_head:n_turned])
        if turns is not None:
            heads = qkv[:, :, :n_turned]
            swapped = heads.roll(self.head_dim // 2, dims=-1)
            heads.mul_(turns[0]).addcmul_(swapped, turns[1])
        layout.write(self.layer, qkv[:, :, n_head:].transpose(1, 2))
        return qkv[:, :, :n_head]

    def _inside(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C) -> (R, intermediate_size): what the MLP's last projection reads."""
        if self.up is not None:
            return activate(self.up(x), self.activation)
        assert self.gate_up is not None
        gate, up = self.gate_up(x).chunk(2, dim=1)
        return activate(gate, self.activation).mul_(up)


# What a GPT is made of. Adapters and parametrisations put other modules in their place.
PARTS = {GPT, Attention, Block, MLP, RMSNorm, RotaryEmbedding, nn.Embedding, nn.LayerNorm, nn.Linear, nn.ModuleList}


def can_decode(model: object) -> bool:
    """Whether there is a decoding form of this model: a GPT on a CPU, in float32, that reads as GPTs do."""
    if type(model) is not GPT or "next_logits" in vars(model) or any(type(m) not in PARTS for m in model.modules()):
        return False
    return all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


def norm_of(norm: nn.Module, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The normalisation as a plain function; a module's call costs as much again."""
    shape = (size,)
    if isinstance(norm, RMSNorm):
        gain, eps = norm.weight.detach(), norm.eps
        return lambda x: F.rms_norm(x, shape, gain.to(x.dtype), eps)
    assert isinstance(norm, nn.LayerNorm)
    scale, shift, eps = norm.weight.detach(), norm.bias if norm.bias is None else norm.bias.detach(), norm.eps
    return lambda x: F.layer_norm(x, shape, scale, shift, eps)


def _turns(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(context, D/2) each -> (context, D): x·first + (x with its halves swapped)·second is `rotate` of x."""
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)

"""A model in the form that generates fastest on a CPU: `CPUInferenceModel(model, weights)`.

It has what generation needs of a GPT (`config`, `device`, `make_cache`, `next_logits`) and returns the same logits: to 1e-5
with float32 weights, nearly with bf16 and int8 (cpu_weights.py says how they are stored and what they cost). It is made from
the model's current weights; after more training, make another.

It is fast because weights are packed for products with few rows; layers that read the same input are multiplied at once (q, k
and v; gate and up); few small operations run between the products, where each call costs as much as its arithmetic; and the
last block and the head compute only the token that is predicted from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F

from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, unsupported_fields
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.generation.cpu_single_token import SingleToken, can_decode_single_tokens
from mini_chat_gpt.generation.cpu_weights import PackedBlock, Weights, product_of
from mini_chat_gpt.layers import RMSNorm, RotaryEmbedding
from mini_chat_gpt.model import GPT, MLP, Attention, Block
from mini_chat_gpt.ops.attention import cached_attention
from mini_chat_gpt.ops.functional import activate
from mini_chat_gpt.ops.kv_cache import Cached, KVCache

IMPLEMENTED: Implemented = SIZES | {
    "norm": {"rmsnorm", "layernorm"},
    "norm_eps": ANY,
    "norm_placement": ANY,
    "norm_offset": ANY,
    "embedding_factor": ANY,
    "position": {"rope", "learned", "none"},
    "rope_theta": ANY,
    "rope_scaling": ANY,
    "window_rope_theta": ANY,
    "activation": {"swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"},
    "bias": ANY,
    "qkv_bias": ANY,
    "mlp_bias": ANY,
    "qk_norm": ANY,
    "attention_scale": ANY,
    "windows": ANY,
    "tie_embeddings": ANY,
}
"""Fields of `GPTConfig`; a model in which another one differs from its default generates through `GPT.forward`."""

# The modules of a plain GPT. Adapters and parametrizations replace them by others.
MODULES = {
    GPT, Attention, Block, MLP, RMSNorm, RotaryEmbedding, nn.Embedding, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList
}  # fmt: skip


class CPUInferenceModel:
    """See the module. Without `few_rows` float32 weights are not packed: that takes no time, but saves less.

    Raises UserError for a model that `why_not_decodable` names a reason for, and for weights that this processor has no
    kernels for.
    """

    def __init__(self, model: GPT, weights: Weights = "float32", few_rows: bool = True) -> None:
        if reason := why_not_decodable(model):
            raise UserError(reason)
        self.model, self.weights = model, weights
        config = model.config
        self.embedding = model.embed_tokens.weight.detach()
        self.positions = None if model.embed_positions is None else model.embed_positions.weight.detach()
        self.rope = _rope_tables(model.rotary)
        self.window_rope = self.rope if model.window_rotary is None else _rope_tables(model.window_rotary)
        pack = partial(product_of, weights=weights, few_rows=few_rows)
        self.blocks = [PackedBlock.of(cast(Block, block), pack) for block in model.layers]
        self.layers = [BlockDecoder(block) for block in self.blocks]
        self.norm = norm_function(model.norm, config.n_embd)
        self.head = pack([model.lm_head], head=True)
        self.single = SingleToken(model, self.blocks) if can_decode_single_tokens(config) else None

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache; see `GPT.make_cache`."""
        return self.model.make_cache(batch_size, max_length)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> (..., C)"""
        return F.embedding(ids, self.embedding)

    @torch.inference_mode()
    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Read new tokens (B, T) into the cache and predict the next one, (B, V); see `GPT.next_logits`."""
        if ids.shape == (1, 1) and self.single is not None:
            hidden = self.single(int(ids), cache)
        else:
            last = None if ids.shape[1] == 1 else torch.tensor(n_tokens) - 1
            hidden = self._hidden(ids, cache, last)
        cache.advance(n_tokens)
        return self.head(hidden).float()

    @torch.inference_mode()
    def all_logits(self, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """The same after each of the new tokens, (B, T) -> (B, T, V)."""
        hidden = self._hidden(ids, cache, None)
        cache.advance([ids.shape[1]] * len(ids))
        return self.head(hidden).float().view(*ids.shape, -1)

    def _hidden(self, ids: torch.Tensor, cache: KVCache, last: torch.Tensor | None) -> torch.Tensor:
        """Normalized states of all tokens (B·T, C), or only of the token in column last[b] of each row (B, C)."""
        layout, n_new = Cached.after(cache), ids.shape[1]
        x = self.embed(ids)  # (B, T, C)
        if self.config.embedding_factor is not None:
            x = x * self.config.embedding_factor
        if self.positions is not None:
            x = x + layout.at_new_positions(self.positions, n_new)
        rope = _at_new_positions(self.rope, layout, n_new)
        window_rope = rope if self.window_rope is self.rope else _at_new_positions(self.window_rope, layout, n_new)
        for layer in self.layers:
            selected = last if layer is self.layers[-1] else None
            x = layer(x, rope if layer.window is None else window_rope, layout, selected)
        return self.norm(x.view(-1, x.shape[-1]))


class BlockDecoder:
    """A `Block` over tokens that come after those in a cache."""

    def __init__(self, packed: PackedBlock) -> None:
        block = packed.block
        attention, mlp = block.self_attn, block.mlp
        self.layer, self.scale, self.window = attention.layer, attention.scale, attention.window
        self.n_head, self.n_kv_head, self.head_dim = attention.n_head, attention.n_kv_head, attention.head_dim
        width = attention.q_proj.in_features
        self.input_norm = norm_function(block.input_layernorm, width)
        self.output_norm = norm_function(block.attention_output_layernorm, width)
        self.norm_all_heads = attention.norm_all_heads
        q_size, k_size = attention.q_proj.out_features, attention.k_proj.out_features
        if not self.norm_all_heads:
            q_size = k_size = self.head_dim
        self.has_qk_norm = not isinstance(attention.q_norm, nn.Identity)
        self.q_norm, self.k_norm = norm_function(attention.q_norm, q_size), norm_function(attention.k_norm, k_size)
        self.mlp_norm = norm_function(block.post_attention_layernorm, width)
        self.mlp_output_norm = norm_function(block.mlp_output_layernorm, width)
        self.activation = mlp.activation
        self.qkv, self.out, self.down = packed.qkv, packed.out, packed.down
        self.gate_up, self.up = packed.gate_up, packed.up

    def __call__(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, ...] | None, layout: Cached, last: torch.Tensor | None
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C); with `last` only the token in column last[b] of each row, (B, 1, C)."""
        b, t, c = x.shape
        q = self._write_and_query(x, rope, layout)  # (B, T, H, D)
        if last is not None:
            rows = torch.arange(b)
            layout, t = layout.single_tokens(last.tolist()), 1
            q, x = q[rows, last][:, None].float(), x[rows, last][:, None]
        heads = cached_attention(q.transpose(1, 2), layout, self.layer, self.scale, self.window)  # (B, H, T, D)
        x = x.view(b * t, c)
        x = x + self.output_norm(self.out(heads.transpose(1, 2).reshape(b * t, -1)))
        x += self.mlp_output_norm(self.down(self._mlp_inner(self.mlp_norm(x))))
        return x.view(b, t, c)

    def _write_and_query(self, x: torch.Tensor, rope: tuple[torch.Tensor, ...] | None, layout: Cached) -> torch.Tensor:
        """Write keys and values of x (B, T, C) into the cache and return the queries (B, T, H, D)."""
        b, t, c = x.shape
        n_head, n_rotated = self.n_head, self.n_head + self.n_kv_head
        qkv = self.qkv(self.input_norm(x.view(b * t, c))).view(b, t, -1, self.head_dim)  # (B, T, H + 2·Hkv, D)
        if self.has_qk_norm:
            for part, norm in ((qkv[:, :, :n_head], self.q_norm), (qkv[:, :, n_head:n_rotated], self.k_norm)):
                part.copy_(norm(part.flatten(2)).view_as(part) if self.norm_all_heads else norm(part))
        if rope is not None:
            heads = qkv[:, :, :n_rotated]
            swapped = heads.roll(self.head_dim // 2, dims=-1)
            heads.mul_(rope[0]).addcmul_(swapped, rope[1])
        layout.write(self.layer, qkv[:, :, n_head:].transpose(1, 2))
        return qkv[:, :, :n_head]

    def _mlp_inner(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C) -> (R, intermediate_size): the input of the MLP's last projection."""
        if self.up is not None:
            return activate(self.up(x), self.activation)
        assert self.gate_up is not None
        gate, up = self.gate_up(x).chunk(2, dim=1)
        return activate(gate, self.activation).mul_(up)


def why_not_decodable(model: object) -> str | None:
    """Why `CPUInferenceModel` can't replace this model, in one sentence; None where it can."""
    plain = type(model) is GPT and "next_logits" not in vars(model)
    if not isinstance(model, GPT) or not plain or any(type(module) not in MODULES for module in model.modules()):
        return "Only a plain GPT, without adapters or methods of its own, can be given other weights for generation."
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        return "Only a float32 model on a CPU can be given other weights for generation."
    if fields := unsupported_fields(model.config, IMPLEMENTED):
        return f"The decoder for CPUs does not implement {', '.join(fields)}; generate with the model's own weights."
    return None


def can_decode(model: object) -> bool:
    """Whether a `CPUInferenceModel` can replace this model."""
    return why_not_decodable(model) is None


def norm_function(norm: nn.Module, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The norm as a plain function (..., size) -> (..., size). Calling a module costs as much again."""
    shape = (size,)
    if isinstance(norm, nn.Identity):
        return lambda x: x
    if isinstance(norm, RMSNorm):
        weight, eps = norm.factor().detach(), norm.eps
        return lambda x: F.rms_norm(x, shape, weight.to(x.dtype), eps)
    assert isinstance(norm, nn.LayerNorm)
    scale, bias, eps = norm.weight.detach(), norm.bias if norm.bias is None else norm.bias.detach(), norm.eps
    return lambda x: F.layer_norm(x, shape, scale, bias, eps)


def _rope_tables(rotary: RotaryEmbedding | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(context, D) each: x·first + (x with its halves swapped)·second is `apply_rope` of x. None without rotary positions."""
    if rotary is None:
        return None
    return torch.cat((rotary.cos, rotary.cos), dim=1), torch.cat((-rotary.sin, rotary.sin), dim=1)


def _at_new_positions(
    tables: tuple[torch.Tensor, torch.Tensor] | None, layout: Cached, n_new: int
) -> tuple[torch.Tensor, ...] | None:
    """The rows (1 or B, T, 1, D) of tables (context, D) for T new tokens."""
    if tables is None:
        return None
    return tuple(layout.at_new_positions(table, n_new).unsqueeze(2) for table in tables)

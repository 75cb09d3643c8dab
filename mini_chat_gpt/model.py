"""The model: a decoder-only transformer, written out, described entirely by `GPTConfig`.

The default architecture is Llama's (Touvron et al. 2023, arXiv:2302.13971): RMSNorm before each sublayer, rotary
positions, grouped-query attention, SwiGLU, no biases, tied embeddings. Parameter names are those of Hugging Face's Llama,
so that a checkpoint of this family needs no conversion. The model knows nothing of text, tasks or training; which token
may look at which is the layout's business (`ops/attention.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mini_chat_gpt.config import PRESETS, GPTConfig
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.ops import fused
from mini_chat_gpt.ops.attention import Cached, Causal, KVCache, Layout, Packed, attention
from mini_chat_gpt.ops.loss import LossSums, cross_entropy_sums
from mini_chat_gpt.ops.nf4 import Nf4Linear
from mini_chat_gpt.token_rows import EmbeddingRows, HeadRows

__all__ = ["GPT", "PRESETS", "GPTConfig", "PackedBatch", "model_of"]

Rope = tuple[torch.Tensor, torch.Tensor]  # cos, sin (B, 1, T, D/2)
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q (B, H, T, D); k, v (B, Hkv, T, D)


class PackedBatch(Protocol):
    """What `forward` needs of a batch laid out end to end (see batching.py): T tokens, R rows to predict from."""

    @property
    def ids(self) -> torch.Tensor: ...  # (T,)
    @property
    def positions(self) -> torch.Tensor: ...  # (T,)
    @property
    def cu_seqlens(self) -> tuple[int, ...]: ...
    @property
    def prefix_branches(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def target_positions(self) -> torch.Tensor: ...  # (R,)
    @property
    def labels(self) -> torch.Tensor: ...  # (R,)
    @property
    def weights(self) -> torch.Tensor: ...  # (R,)


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In autocast's precision, where that is on: what comes out of a norm goes into products."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if fused.use_fused_cpu(x):
            return fused.rms_norm(x, self.weight, self.eps, dtype)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps).to(dtype)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(config.n_embd, config.norm_eps)


class RotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): pair (i, i + D/2) of a head is turned by position · frequency i.

    Tables of cosine and sine are computed once for the context and looked up by position.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        frequencies = rope_frequencies(config)  # (D/2,)
        angles = torch.arange(config.context_length, dtype=torch.float32)[:, None] * frequencies[None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (B, T) -> cos, sin (B, 1, T, D/2), broadcast over heads."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rope_frequencies(config: GPTConfig) -> torch.Tensor:
    """theta^(−2i/D) for i < D/2, with Hugging Face's linear or llama3 scaling applied."""
    size = config.head_size
    frequencies = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaling = config.rope_scaling
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if scaling is None or kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
        old_context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = old_context * frequencies / (2 * math.pi)  # how often a pair turns within the old context
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (blend + (1 - blend) / factor)
    raise ValueError(f"rope_scaling of type {kind!r} is not supported; linear and llama3 are")


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x1, x2) of the head's two halves. x (B, H, T, D); cos, sin (B, 1, T, D/2)."""
    if fused.use_fused_cpu(x):
        return fused.rotate(x, cos, sin)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Projections into heads, the product between them (`attention`), and the projection back."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        self.scale = config.attention_scale
        self.window = config.windows[layer] if config.windows else None
        inner, kv_inner = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        self.q_proj = nn.Linear(config.n_embd, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.n_embd, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.n_embd, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def heads(self, x: torch.Tensor, rope: Rope | None) -> Heads:
        """Queries (B, H, T, D), keys and values (B, Hkv, T, D) of x (B, T, C)."""
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(b, t, self.n_kv_head, self.head_dim).transpose(1, 2)  # (B, Hkv, T, D)
        v = self.v_proj(x).view(b, t, self.n_kv_head, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def product(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
        return attention(q, k, v, layout, layer=self.layer, scale=self.scale, window=self.window)

    def merged(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, H, T, D) -> (B, T, C)"""
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)) with a gate (Shazeer 2020, arXiv:2002.05202), down(act(up(x))) without."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.n_embd, config.mlp_size, bias=config.bias) if config.gated else None
        self.up_proj = nn.Linear(config.n_embd, config.mlp_size, bias=config.bias)
        self.down_proj = nn.Linear(config.mlp_size, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        if self.gate_proj is not None:
            return self.down_proj(activate(self.gate_proj(x), self.activation) * up)
        return self.down_proj(activate(up, self.activation))


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """The non-linearity of a `GPTConfig.activation`."""
    if name == "swiglu":
        return F.silu(x)
    if name in ("geglu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh")
    if name == "gelu":
        return F.gelu(x)
    return F.relu(x) if name == "relu" else F.relu(x).square()


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    What looks at one token alone stands apart from the product in which tokens look at each other: only the latter
    knows the layout, so that the former can be compiled once for all batches (compiling.py).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, rope: Rope | None, layout: Layout, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C), or with `rows` (R,) only those of the tokens, (B, R, C)."""
        q, k, v = self.before_product(x, rope)
        return self.after_product(*self.product(x, q, k, v, layout, rows))

    def product(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: Layout,
        rows: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x and the heads of the tokens that go on."""
        heads = self.self_attn.product(q, k, v, layout)
        return (x, heads) if rows is None else (x.index_select(1, rows), heads.index_select(2, rows))

    def before_product(self, x: torch.Tensor, rope: Rope | None) -> Heads:
        return self.self_attn.heads(self.input_layernorm(x), rope)

    def after_product(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn.merged(heads)
        return x + self.mlp(self.post_attention_layernorm(x))


ROUND_TO = 64


def _rounded(part: torch.Tensor) -> torch.Tensor:
    """(n,) filled up with zeros to a multiple of `ROUND_TO`; a weight of 0 counts nothing.

    A kernel is prepared once for each size: with as many sizes as steps that takes a tenth of the time on a CPU, and
    gigabytes of memory.
    """
    return F.pad(part, (0, -len(part) % ROUND_TO))


class GPT(nn.Module):
    """Token ids in, logits out; or a flat batch in, the sums of its loss out.

    `GPT(config)(ids)` with ids (B, T) returns logits (B, T, vocab_size). `GPT(config)(batch)` with a flat batch returns
    `LossSums`; logits are then computed only for the rows that have a target.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("GPTConfig.vocab_size must be set to the tokenizer's size before a model is built")
        self.config = config
        self.activation_checkpointing = False
        """Keep only what enters each block in training, and compute the rest again for the backward pass."""
        self.adapter: Adapter | None = None
        """Set where an adapter is trained instead of all weights (lora.py)."""
        self.embed_tokens: nn.Embedding | EmbeddingRows = nn.Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = (
            nn.Embedding(config.context_length, config.n_embd) if config.position == "learned" else None
        )
        self.rotary = RotaryEmbedding(config) if config.position == "rope" else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.lm_head: nn.Linear | HeadRows = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02), the projections back into the residual stream smaller by √(2 · layers) (GPT-2's scheme)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if into_residual else 0.02)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def n_parameters(self) -> int:
        """Number of weights, shared ones counted once; of an adapted model the base's and the adapter's."""
        packed = sum(m.in_features * m.out_features for m in self.modules() if isinstance(m, Nf4Linear))
        return packed + sum(parameter.numel() for parameter in self.parameters())

    def make_cache(self, batch_size: int, max_length: int | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch_size` sequences of at most `max_length` tokens (default: the context)."""
        config = self.config
        length = min(max_length or config.context_length, config.context_length)
        dtype = dtype or self.embed_tokens.weight.dtype
        return KVCache(config.n_layer, batch_size, config.kv_heads, length, config.head_size, self.device, dtype)

    def forward(self, batch: torch.Tensor | PackedBatch) -> Any:
        """Logits for ids (B, T), or `LossSums` for a flat batch. Raises ValueError for more tokens than the context."""
        if not isinstance(batch, torch.Tensor):
            return self.loss_sums(batch)
        positions = torch.arange(batch.shape[1], device=batch.device).expand(batch.shape)
        return self.lm_head(self.hidden(batch, positions, Causal()))

    def loss_sums(self, batch: PackedBatch) -> LossSums:
        """Σ w·loss over the batch's targets and the loss of each; see loss.py."""
        n_tokens, n_rows = len(batch.ids), len(batch.target_positions)
        ids, positions, rows, targets, weights = (
            _rounded(part) for part in (batch.ids, batch.positions, batch.target_positions, batch.labels, batch.weights)
        )
        # What fills up the row are examples of their own, from which nothing is predicted.
        longest = self.config.context_length
        filled = (*range(n_tokens + longest, len(ids), longest), len(ids)) if len(ids) > n_tokens else ()
        cu_seqlens = (*batch.cu_seqlens, *filled)
        layout = Packed(cu_seqlens, ids.device, batch.prefix_branches)
        hidden = self.hidden(ids[None], positions[None], layout, rows)[0]  # (R, C)
        sums = self.head_sums(hidden, targets, weights)
        return LossSums(sums.weighted_sum, sums.losses[:n_rows])

    def head_sums(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> LossSums:
        """The loss of the states (R, C) that predict `targets` (R,)."""
        head = self.lm_head
        trained = (head.ids, head.rows) if isinstance(head, HeadRows) else None
        return cross_entropy_sums(hidden, head.weight, targets, weights, trained)

    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Read new tokens into the cache and predict the one that follows.

        ids (B, T), padded on the right; n_tokens[b] ≤ T of row b are real. Returns logits (B, vocab_size) after the last
        real token of each row, and moves the cache on.
        """
        starts = torch.tensor(cache.lengths, device=ids.device)[:, None]
        positions = starts + torch.arange(ids.shape[1], device=ids.device)[None, :]
        # A padded row may run past the context; those positions are never read, but must stay within the tables.
        hidden = self.hidden(ids, positions.clamp(max=self.config.context_length - 1), Cached.after(cache))
        cache.advance(n_tokens)
        last = torch.tensor(n_tokens, device=ids.device) - 1
        return self.lm_head(hidden[torch.arange(len(ids), device=ids.device), last])

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, layout: Layout, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Final, normalised states (B, T, C) for ids and positions (B, T), or with `rows` (R,) only theirs, (B, R, C).

        All tokens are looked at up to the last block; there only those that something is predicted from go on.
        """
        longest = layout.longest if isinstance(layout, Packed) else ids.shape[1]
        if longest > self.config.context_length:
            raise ValueError(f"{longest} tokens do not fit into the context of {self.config.context_length}")
        x = self.embed_tokens(ids)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        rope = self.rotary(positions) if self.rotary is not None else None
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for number, block in enumerate(self.layers, 1):
            wanted = rows if number == len(self.layers) else None
            if recompute:
                x = checkpoint(block, x, rope, layout, wanted, use_reentrant=False)
            else:
                x = block(x, rope, layout, wanted)
        return self.norm(x)

    def resize_vocabulary(self, vocab_size: int) -> None:
        """Grow the table to `vocab_size` rows; new rows start as the mean of the old ones. A table large enough is kept."""
        old = self.config.vocab_size
        if vocab_size <= old:
            return
        self.config = self.config.model_copy(update={"vocab_size": vocab_size})
        for table in self._tables():
            weight = cast(nn.Parameter, table.weight)
            mean = weight.data.mean(dim=0, keepdim=True).expand(vocab_size - old, -1)
            table.weight = nn.Parameter(torch.cat([weight.data, mean]), requires_grad=weight.requires_grad)
        if self.config.tie_embeddings:
            cast(nn.Linear, self.lm_head).weight = cast(nn.Parameter, self.embed_tokens.weight)
        self.embed_tokens.num_embeddings = self.lm_head.out_features = vocab_size

    @torch.no_grad()
    def set_rows_to_mean(self, ids: list[int]) -> None:
        """Set the table's rows of new tokens to the mean of the rows before them, a neutral start."""
        for table in self._tables():
            weight = cast(nn.Parameter, table.weight)
            weight[ids] = weight[: min(ids)].mean(dim=0)

    def _tables(self) -> list[nn.Module]:
        return [self.embed_tokens] if self.config.tie_embeddings else [self.embed_tokens, self.lm_head]


def model_of(config: GPTConfig, state: Mapping[str, torch.Tensor]) -> GPT:
    """The model with these very tensors as its parameters; nothing is initialised first. A tied head need not be given.

    Raises RuntimeError for tensors that don't fit the config.
    """
    with _Uninitialised():
        model = GPT(config)
    head = {"lm_head.weight": state["embed_tokens.weight"]} if config.tie_embeddings else {}
    model.load_state_dict({**state, **head}, strict=True, assign=True)
    if config.tie_embeddings:
        cast(nn.Linear, model.lm_head).weight = cast(nn.Parameter, model.embed_tokens.weight)
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves parameters as they were allocated. (On the "meta" device PyTorch would first import a second's worth of itself.)"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)

"""The model: a decoder-only transformer, described by a `GPTConfig`.

The default architecture is Llama's (Touvron et al. 2023, arXiv:2302.13971): RMSNorm before each sublayer, rotary positions,
grouped-query attention, SwiGLU, no biases, tied embeddings. Parameter names are those of Hugging Face's Llama, so that a
checkpoint of this family needs no conversion.

Shapes: B sequences of T tokens, C = n_embd, H query heads and Hkv key/value heads of width D, V = vocab_size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from mini_chat_gpt.config import PRESETS, GPTConfig
from mini_chat_gpt.layers import RMSNorm, Rope, RotaryEmbedding, make_norm
from mini_chat_gpt.ops.attention import Cached, Causal, KVCache, Layout, Packed, attention
from mini_chat_gpt.ops.functional import activate, apply_rope
from mini_chat_gpt.ops.loss import LossSums, cross_entropy_sums
from mini_chat_gpt.ops.packed_layout import PackedBatch

__all__ = ["GPT", "PRESETS", "GPTConfig", "PackedBatch"]

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q (B, H, T, D); k, v (B, Hkv, T, D)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with its projections."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        self.scale = config.attention_scale
        self.window = config.windows[layer] if config.windows else None
        inner, kv_inner = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        # Separate projections, as in Hugging Face's Llama: adapters and exports need them apart.
        self.q_proj = nn.Linear(config.n_embd, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.n_embd, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.n_embd, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.n_embd, bias=config.bias)
        self.norm_all_heads = config.qk_norm == "all_heads"
        q_size, k_size = (inner, kv_inner) if self.norm_all_heads else (self.head_dim, self.head_dim)
        self.q_norm = RMSNorm(q_size, config) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(k_size, config) if config.qk_norm else nn.Identity()

    def qkv(self, x: torch.Tensor, rope: Rope | None) -> Heads:
        """x (B, T, C) -> queries (B, H, T, D), keys and values (B, Hkv, T, D)."""
        b, t, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        # Before the rotation, which keeps norms: bounded scores keep training stable (Henry et al. 2020, arXiv:2010.04245).
        if self.norm_all_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(b, t, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = k.view(b, t, self.n_kv_head, self.head_dim).transpose(1, 2)  # (B, Hkv, T, D)
        v = v.view(b, t, self.n_kv_head, self.head_dim).transpose(1, 2)
        if not self.norm_all_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            # Rotated queries and keys make q·k depend on the distance of two tokens, not on their positions.
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return q, k, v

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
        """q (B, H, T, D); k, v (B, Hkv, T, D) -> (B, H, T, D)"""
        return attention(q, k, v, layout, layer=self.layer, scale=self.scale, window=self.window)

    def out(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, H, T, D) -> (B, T, C)"""
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)) with a gate (Shazeer 2020, arXiv:2002.05202), down(act(up(x))) without."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width, inner, bias = config.n_embd, config.mlp_size, config.mlp_has_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)"""
        up = self.up_proj(x)
        if self.gate_proj is not None:
            return self.down_proj(activate(self.gate_proj(x), self.activation) * up)
        return self.down_proj(activate(up, self.activation))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), in three parts. `norm_placement` can put norms after the sublayers, too.

    `qkv` and `out_and_mlp` treat each token by itself; only `attend` knows the layout. So the compiler compiles the two once
    for all batches (training/compile.py).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        before, after = config.norm_placement != "after", config.norm_placement != "before"
        self.input_layernorm = make_norm(config, before)
        self.self_attn = Attention(config, layer)
        self.attention_output_layernorm = make_norm(config, after)
        self.post_attention_layernorm = make_norm(config, before)  # Llama's name of the norm before the MLP
        self.mlp = MLP(config)
        self.mlp_output_layernorm = make_norm(config, after)

    def forward(
        self, x: torch.Tensor, rope: Rope | None, layout: Layout, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C), or with `positions` (R,) in the row only those tokens, (B, R, C)."""
        # No norm is on the residual stream itself, so it passes through unchanged (Xiong et al. 2020, arXiv:2002.04745).
        q, k, v = self.qkv(x, rope)
        x, heads = self.attend(x, q, k, v, layout, positions)
        return self.out_and_mlp(x, heads)

    def qkv(self, x: torch.Tensor, rope: Rope | None) -> Heads:
        """x (B, T, C) -> q (B, H, T, D); k, v (B, Hkv, T, D)"""
        return self.self_attn.qkv(self.input_layernorm(x), rope)

    def attend(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: Layout,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, T, C) and its attended heads (B, H, T, D), or of both only the tokens at `positions` (R,)."""
        heads = self.self_attn.attend(q, k, v, layout)
        return (x, heads) if positions is None else (x.index_select(1, positions), heads.index_select(2, positions))

    def out_and_mlp(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """x (B, T, C); heads (B, H, T, D) -> (B, T, C)"""
        x = x + self.attention_output_layernorm(self.self_attn.out(heads))
        return x + self.mlp_output_layernorm(self.mlp(self.post_attention_layernorm(x)))


class GPT(nn.Module):
    """Token ids in, logits out; or a packed batch in, the sums of its loss out.

    `GPT(config)(ids)` with ids (B, T) returns logits (B, T, V). `GPT(config)(batch)` with a packed batch returns `LossSums`;
    logits are then computed only for the tokens that predict a label.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("GPTConfig.vocab_size must be set to the tokenizer's size before a model is built")
        self.config = config
        self.activation_checkpointing = False
        """In training keep only the input of each block, and compute the rest again in the backward pass."""
        self.adapter: Any = None
        """Describes the adapter that is trained instead of all weights; set by `lora.add_lora`."""
        self.origin: Any = None
        """Where an imported model comes from, see `checkpoints.origin`; it is saved with the model."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = (
            nn.Embedding(config.context_length, config.n_embd) if config.position == "learned" else None
        )
        rope = config.position == "rope"
        self.rotary = RotaryEmbedding(config) if rope else None
        in_windows = rope and config.window_rope_theta is not None
        self.window_rotary = RotaryEmbedding(config, of_windows=True) if in_windows else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            # In a small model the table is most of the weights; one serves both (Press & Wolf 2017, arXiv:1608.05859).
            self.lm_head.weight = self.embed_tokens.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); projections into the residual stream are smaller by √(2 · layers) (GPT-2, Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:  # norms and biases
                zero = name.endswith("bias") or self.config.norm_offset
                nn.init.zeros_(parameter) if zero else nn.init.ones_(parameter)
            else:
                # The residual stream is a sum of 2 · layers outputs; its variance should not grow with their number.
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if into_residual else 0.02)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def n_parameters(self) -> int:
        """Number of weights. Shared weights count once; an adapted model's are its base's and its adapter's."""
        # A layer with quantized weights in buffers, which are not parameters, says how many they are.
        in_buffers = sum(getattr(module, "n_weights", 0) for module in self.modules())
        return in_buffers + sum(parameter.numel() for parameter in self.parameters())

    def make_cache(self, batch_size: int, max_length: int | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch_size` sequences of at most `max_length` tokens (default: the context)."""
        config = self.config
        length = min(max_length or config.context_length, config.context_length)
        dtype = dtype or self.embed_tokens.weight.dtype
        return KVCache(config.n_layer, batch_size, config.kv_heads, length, config.head_size, self.device, dtype)

    def forward(self, batch: torch.Tensor | PackedBatch) -> Any:
        """ids (B, T) -> logits (B, T, V), or a packed batch -> `LossSums`.

        Raises ValueError for more tokens than the context holds.
        """
        # DDP and FSDP hook into `forward` alone, so training has to come through here, too.
        if not isinstance(batch, torch.Tensor):
            return self.loss_sums(batch)
        positions = torch.arange(batch.shape[1], device=batch.device).expand(batch.shape)
        return self.lm_head(self.hidden(batch, positions, Causal()))

    def loss_sums(self, batch: PackedBatch) -> LossSums:
        """Σ w·loss over the batch's labels, and the loss of each (R,); see ops/loss.py."""
        # Only attention needs to know where examples begin and end: everything else treats each token by itself.
        layout = Packed(batch.cu_seqlens, batch.ids.device, batch.prefix_branches, length=len(batch.ids))
        hidden = self.hidden(batch.ids[None], batch.positions[None], layout, batch.target_positions)[0]  # (R, C)
        return self.head_sums(hidden, batch.labels, batch.weights)

    def head_sums(self, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> LossSums:
        """The loss of hidden states (R, C) that predict labels (R,) with weights (R,)."""
        # A head of which only some rows are trained keeps them apart from its frozen table.
        trained_rows = getattr(self.lm_head, "trained_rows", None)
        return cross_entropy_sums(hidden, self.lm_head.weight, labels, weights, trained_rows)

    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Read new tokens (a prompt, or one per row) into the cache and predict the token that follows.

        ids (B, T), padded on the right; n_tokens[b] ≤ T of row b are real. Returns logits (B, V) after the last real token
        of each row, and advances the cache.
        """
        starts = torch.tensor(cache.lengths, device=ids.device)[:, None]
        positions = starts + torch.arange(ids.shape[1], device=ids.device)[None, :]
        # The padding of a row may reach past the context. It is never read, but its positions must be valid indices.
        hidden = self.hidden(ids, positions.clamp(max=self.config.context_length - 1), Cached.after(cache))
        cache.advance(n_tokens)
        last = torch.tensor(n_tokens, device=ids.device) - 1
        return self.lm_head(hidden[torch.arange(len(ids), device=ids.device), last])

    def embed(self, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, Rope | None, Rope | None]:
        """The first states (B, T, C) of ids (B, T), and the angles of blocks without and with a window, at positions (B, T)."""
        x = self.embed_tokens(ids)
        if self.config.embedding_factor is not None:
            x = x * self.config.embedding_factor
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        rope = self.rotary(positions) if self.rotary is not None else None
        return x, rope, rope if self.window_rotary is None else self.window_rotary(positions)

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, layout: Layout, target_positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalized final states (B, T, C) for ids and positions (B, T).

        With `target_positions` (R,), indices into the row, only those of the tokens there: (B, R, C).
        """
        longest = layout.longest_conversation if isinstance(layout, Packed) else ids.shape[1]
        if longest > self.config.context_length:
            raise ValueError(f"{longest} tokens do not fit into the context of {self.config.context_length}")
        x, rope, window_rope = self.embed(ids, positions)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        windows = self.config.windows or (None,) * self.config.n_layer
        for number, (block, window) in enumerate(zip(self.layers, windows, strict=True), 1):
            # After the attention of the last block nothing reads tokens that don't predict a label.
            selected = target_positions if number == len(self.layers) else None
            angles = rope if window is None else window_rope
            if recompute:
                # Sublinear memory for a second forward pass (Chen et al. 2016, arXiv:1604.06174).
                x = checkpoint(block, x, angles, layout, selected, use_reentrant=False)
            else:
                x = block(x, angles, layout, selected)
        return self.norm(x)

    def resize_vocabulary(self, vocab_size: int) -> None:
        """Grow the table to `vocab_size` rows; new rows start as the mean of the old ones. A table large enough is kept."""
        old = self.config.vocab_size
        if vocab_size <= old:
            return
        # Configs are frozen: others may hold this one.
        self.config = self.config.model_copy(update={"vocab_size": vocab_size})
        for table in self._tables():
            weight = table.weight
            mean = weight.data.mean(dim=0, keepdim=True).expand(vocab_size - old, -1)
            table.weight = nn.Parameter(torch.cat([weight.data, mean]), requires_grad=weight.requires_grad)
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.embed_tokens.num_embeddings = self.lm_head.out_features = vocab_size

    @torch.no_grad()
    def set_rows_to_mean(self, ids: list[int]) -> None:
        """Set the table's rows of new tokens to the mean of the rows before them, a neutral start."""
        for table in self._tables():
            table.weight[ids] = table.weight[: min(ids)].mean(dim=0)

    def _tables(self) -> list[nn.Embedding | nn.Linear]:
        return [self.embed_tokens] if self.config.tie_embeddings else [self.embed_tokens, self.lm_head]

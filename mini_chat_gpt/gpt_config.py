"""The shape and architecture of a GPT: one value of `GPTConfig` describes a model completely.

The docstring under each field is its only description: `mini-chat-gpt config` prints them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base class of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GPTConfig(Section):
    """Shape and architecture of a decoder. The defaults are the native family, which is the exact Llama subset."""

    vocab_size: int = Field(0, ge=0)
    """Rows of the embedding table (0 = the size of the tokenizer). Rows beyond the tokenizer's size are padding."""
    context_length: int = Field(512, ge=2)
    """Maximum sequence length in tokens."""
    n_layer: int = Field(6, ge=1)
    """Number of transformer blocks."""
    n_head: int = Field(6, ge=1)
    """Query heads per block."""
    n_kv_head: int | None = Field(None, ge=1)
    """Key/value heads (null = n_head; fewer = grouped-query attention)."""
    n_embd: int = Field(384, ge=1)
    """Width of the residual stream."""
    head_dim: int | None = Field(None, ge=1)
    """Width of one head (null = n_embd / n_head)."""
    intermediate_size: int | None = Field(None, ge=1)
    """Width inside the MLP (null = 8/3 n_embd, rounded up to a multiple of 16; 4 n_embd without a gate)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalization: rmsnorm (Llama) or layernorm (GPT-2)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance inside the norm."""
    position: Literal["rope", "learned", "none"] = "rope"
    """Position encoding: rope (rotary, Llama), learned (a table, GPT-2), or none."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """RoPE scaling as in Hugging Face's config.json, with rope_type linear or llama3 (null = none)."""
    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"] = "swiglu"
    """MLP activation; swiglu and geglu have a gate."""
    bias: bool = False
    """Biases in the attention's output projection, the MLP and layernorm."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    qk_norm: bool = False
    """Normalize queries and keys per head (Qwen 3)."""
    attention_scale: float | None = None
    """Factor on q·k (null = 1/sqrt(head_dim); GPT-Neo uses 1)."""
    windows: tuple[int | None, ...] | None = None
    """Attention window of each layer in tokens, null for full attention (null instead of the list = full attention everywhere)."""
    tie_embeddings: bool = True
    """The output head shares the embedding's weights."""

    @model_validator(mode="after")
    def _consistent(self) -> GPTConfig:
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.kv_heads})")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head}), or head_dim must be set"
            )
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_size}")
        if self.position == "rope" and self.context_length * self.head_size > 2**26:
            raise ValueError(
                f"context_length ({self.context_length}) times head_dim ({self.head_size}) must be at most {2**26}: it is "
                "the size of the table of rotary positions"
            )
        if self.windows is not None and len(self.windows) != self.n_layer:
            raise ValueError(f"windows has {len(self.windows)} entries for {self.n_layer} layers")
        if self.windows is not None and any(window is not None and window < 1 for window in self.windows):
            raise ValueError("a window must be at least 1 token (null: the whole context)")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def mlp_size(self) -> int:
        if self.intermediate_size:
            return self.intermediate_size
        return -(-8 * self.n_embd // 3 // 16) * 16 if self.gated else 4 * self.n_embd

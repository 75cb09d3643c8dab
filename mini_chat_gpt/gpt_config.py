"""The shape and architecture of a GPT: one value of `GPTConfig` describes a model completely.

The docstring under each field is its only description: `mini-chat-gpt config` prints them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mini_chat_gpt.common.errors import short
from mini_chat_gpt.common.json_files import describe_problem
from mini_chat_gpt.common.setting_types import Number, Whole

MAX_CONTEXT = 2**24
MAX_VOCAB = 2**20


class Section(BaseModel):
    """Base class of all settings: frozen, an unknown key is an error, and no number is infinite or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LinearScaling(Section):
    """RoPE with all positions divided by `factor`. Other keys of config.json have no effect."""

    model_config = ConfigDict(extra="ignore")

    factor: Number = Field(ge=1, le=1e6)


class Llama3Scaling(LinearScaling):
    """RoPE as in Llama 3.1: long wavelengths are stretched by `factor`, short ones kept."""

    original_max_position_embeddings: Whole = Field(ge=2, le=MAX_CONTEXT)
    low_freq_factor: Number = Field(ge=1e-3, le=1e6)
    high_freq_factor: Number = Field(ge=1e-3, le=1e6)

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be less than high_freq_factor")
        return self


ROPE_TYPES: dict[str, type[LinearScaling]] = {"linear": LinearScaling, "llama3": Llama3Scaling}


def _check_rope_scaling(scaling: dict[str, Any]) -> dict[str, Any]:
    """Check what `rope_frequencies` reads. The values stay as they are, as config.json is written from them."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    values = {key: value for key, value in scaling.items() if key not in ("rope_type", "type")}
    if kind == "default" and not values:
        return scaling
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(f"rope_type must be {' or '.join(ROPE_TYPES)}, not {short(kind)}")
    try:
        ROPE_TYPES[kind].model_validate(values, strict=True)  # a text is not a factor
    except ValidationError as error:
        raise ValueError(describe_problem(error.errors()[0])) from None
    return scaling


RopeScaling = Annotated[dict[str, Any], AfterValidator(_check_rope_scaling)]


class GPTConfig(Section):
    """Shape and architecture of a decoder. The defaults are the native family, which is the exact Llama subset."""

    vocab_size: Whole = Field(0, ge=0, le=MAX_VOCAB)
    """Rows of the embedding table (0 = the size of the tokenizer). Rows beyond the tokenizer's size are padding."""
    context_length: Whole = Field(512, ge=2, le=MAX_CONTEXT)
    """Maximum sequence length in tokens."""
    n_layer: Whole = Field(6, ge=1, le=1024)
    """Number of transformer blocks."""
    n_head: Whole = Field(6, ge=1, le=4096)
    """Query heads per block."""
    n_kv_head: Whole | None = Field(None, ge=1, le=4096)
    """Key/value heads (null = n_head; fewer = grouped-query attention)."""
    n_embd: Whole = Field(384, ge=1, le=2**17)
    """Width of the residual stream."""
    head_dim: Whole | None = Field(None, ge=1, le=4096)
    """Width of one head (null = n_embd / n_head)."""
    intermediate_size: Whole | None = Field(None, ge=1, le=2**20)
    """Width inside the MLP (null = 8/3 n_embd, rounded up to a multiple of 16; 4 n_embd without a gate)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalization: rmsnorm (Llama) or layernorm (GPT-2)."""
    norm_eps: Number = Field(1e-5, ge=1e-12, le=1)
    """Added to the variance inside the norm."""
    norm_placement: Literal["before", "after", "both"] = "before"
    """Norms before each attention and MLP (Llama), after them (OLMo 2), or both (Gemma 3)."""
    norm_offset: bool = False
    """The factor of an rmsnorm is 1 + its weight (Gemma)."""
    embedding_factor: Number | None = Field(None, ge=1e-3, le=1e4)
    """Factor on the embedding (null = 1; Gemma uses the root of n_embd)."""
    position: Literal["rope", "learned", "none"] = "rope"
    """Position encoding: rope (rotary, Llama), learned (a table, GPT-2), or none."""
    rope_theta: Number = Field(10000.0, ge=1, le=1e12)
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """RoPE scaling as in Hugging Face's config.json, with rope_type linear or llama3 (null = none)."""
    window_rope_theta: Number | None = Field(None, ge=1, le=1e12)
    """Base of the rotary frequencies in layers with a window, which are not scaled then (null = as in the other layers; Gemma 3)."""
    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"] = "swiglu"
    """MLP activation; swiglu and geglu have a gate."""
    bias: bool = False
    """Biases in the attention's output projection, layernorm, and, unless mlp_bias says otherwise, the MLP."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    mlp_bias: bool | None = None
    """Biases in the MLP (null = as bias says)."""
    qk_norm: bool | Literal["all_heads"] = False
    """Normalize queries and keys: true = each head by itself (Qwen 3), all_heads = all of them together (OLMo 2)."""
    attention_scale: Number | None = Field(None, ge=1e-6, le=1000)
    """Factor on q·k (null = 1/sqrt(head_dim); GPT-Neo uses 1)."""
    windows: tuple[Annotated[Whole, Field(ge=1, le=MAX_CONTEXT)] | None, ...] | None = None
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
        if self.position == "rope" and self.context_length * self.head_size > 2**25:
            raise ValueError(
                f"context_length ({self.context_length}) times head_dim ({self.head_size}) must be at most {2**25}: it is "
                "the size of the table of rotary positions"
            )
        if self.norm_offset and self.norm != "rmsnorm":
            raise ValueError("norm_offset needs norm=rmsnorm")
        if self.windows is not None and len(self.windows) != self.n_layer:
            raise ValueError(f"windows has {len(self.windows)} entries for {self.n_layer} layers")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def n_parameters(self) -> int:
        """Number of parameters, without making the model."""
        width, inner, kv_inner = self.n_embd, self.n_head * self.head_size, self.kv_heads * self.head_size
        attention = width * (2 * inner + 2 * kv_inner) + (inner + 2 * kv_inner) * self.qkv_bias + width * self.bias
        mlp = (2 + self.gated) * width * self.mlp_size + ((1 + self.gated) * self.mlp_size + width) * self.mlp_has_bias
        norm = width * (2 if self.norm == "layernorm" and self.bias else 1)
        qk_norm = inner + kv_inner if self.qk_norm == "all_heads" else 2 * self.head_size * self.qk_norm
        block = attention + mlp + (4 if self.norm_placement == "both" else 2) * norm + qk_norm
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        tables += self.context_length if self.position == "learned" else 0
        return self.n_layer * block + norm + width * tables

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def mlp_has_bias(self) -> bool:
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def mlp_size(self) -> int:
        if self.intermediate_size:
            return self.intermediate_size
        return -(-8 * self.n_embd // 3 // 16) * 16 if self.gated else 4 * self.n_embd

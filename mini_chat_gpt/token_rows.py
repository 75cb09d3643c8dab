"""Single rows of a frozen table, trained: those of control tokens that a base model has never seen.

A tied head predicts with the same rows; a head of its own has rows of its own, without which a new <|endoftext|> could never be
learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F

if TYPE_CHECKING:
    from mini_chat_gpt.model import GPT


class EmbeddingRows(nn.Module):
    """A frozen embedding of which `rows` (k, C), those of `ids` (k,), are trained."""

    ids: torch.Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[list(ids)].clone())

    @property
    def weight(self) -> torch.Tensor:
        """(V, C) the frozen table, in which the trained rows are as they were."""
        return self.base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> (..., C)"""
        hits = ids[..., None] == self.ids  # (..., k)
        own = F.embedding(hits.int().argmax(dim=-1), self.rows)
        return torch.where(hits.any(dim=-1, keepdim=True), own, self.base(ids))


class HeadRows(nn.Module):
    """A frozen head of which `rows` (k, C) are trained; they may be an embedding's."""

    ids: torch.Tensor

    def __init__(self, base: nn.Linear, ids: Sequence[int], rows: nn.Parameter | None = None) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[list(ids)].clone()) if rows is None else rows

    @property
    def weight(self) -> torch.Tensor:
        """(V, C) the frozen table, in which the trained rows are as they were."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C) -> logits (..., V)"""
        logits = self.base(x)
        return logits.index_copy(-1, self.ids, F.linear(x, self.rows).to(logits.dtype))


def train_rows(model: GPT, ids: Sequence[int]) -> None:
    """Let the rows of these ids be trained, of a model that is frozen."""
    if not ids:
        return
    embedding = EmbeddingRows(model.embed_tokens, ids)  # type: ignore[arg-type]
    shared = embedding.rows if model.config.tie_embeddings else None
    model.embed_tokens, model.lm_head = embedding, HeadRows(model.lm_head, ids, shared)  # type: ignore[arg-type]


@torch.no_grad()
def put_back(model: GPT) -> None:
    """Write the trained rows into the tables, and leave these as plain as they were."""
    for name in ("embed_tokens", "lm_head"):
        table = getattr(model, name)
        if isinstance(table, EmbeddingRows | HeadRows):
            table.base.weight[table.ids] = table.rows.to(table.base.weight.dtype)
            setattr(model, name, table.base)

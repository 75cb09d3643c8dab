"""The inputs of all implementations of training_step.py: one model, one stream of batches, and the work that a step needs.

Examples are random tokens, because the time of a step does not depend on their values. The supervised tokens are at the end
of an example, like an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setting:
    """A Llama-like model and its examples."""

    vocab_size: int = 50257
    trained: float = 0.1  # share of an example's tokens that are supervised
    n_layer: int = 8
    n_embd: int = 384
    n_head: int = 6
    n_kv_head: int | None = None
    context_length: int = 1024
    batch_size: int = 8  # examples per optimizer step
    shortest: int = 100  # tokens
    longest: int = 400
    threads: int = 1
    learning_rate: float = 2e-5

    @property
    def table(self) -> int:
        """Rows of the embedding: the vocabulary padded to a multiple of 64, for all implementations."""
        return -(-self.vocab_size // 64) * 64

    @property
    def mlp_size(self) -> int:
        return -(-8 * self.n_embd // 3 // 16) * 16

    def model_fields(self) -> dict[str, Any]:
        """Arguments of `GPTConfig`."""
        return {
            "vocab_size": self.table,
            "context_length": self.context_length,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_kv_head": self.n_kv_head,
            "n_embd": self.n_embd,
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Item:
    """One example: ids (n,) and its loss mask (n,)."""

    ids: np.ndarray
    trained: np.ndarray


def batches(setting: Setting) -> Iterator[list[Item]]:
    """An endless stream of batches, the same for all implementations."""
    number = 0
    while True:
        yield batch(setting, number)
        number += 1


def batch(setting: Setting, number: int) -> list[Item]:
    rng = np.random.default_rng([7, number])
    items = []
    for _ in range(setting.batch_size):
        n = int(rng.integers(setting.shortest, setting.longest + 1))
        ids = rng.integers(0, setting.vocab_size, n).astype(np.int64)
        items.append(Item(ids, np.arange(n) >= n - max(1, round(setting.trained * n))))
    return items


def n_tokens(items: list[Item]) -> int:
    return sum(len(item.ids) for item in items)


def n_trained(items: list[Item]) -> int:
    return sum(int(item.trained[1:].sum()) for item in items)


def needed_flops(setting: Setting, items: list[Item], skip_in_last: bool = True) -> float:
    """Floating point operations that a step on these examples needs; a multiply-add counts as two.

    Three times the forward pass, because a product y = x·W needs one more for the gradient of x and one for that of W:

    - every block: q, k, v, o (4 C²; less with fewer heads of keys and values) and the MLP (3 C·M) for each token; q·kᵀ and its
      product with v for the causal pairs, n (n + 1) / 2 in an example of n tokens, C each;
    - the last block: q, o, the MLP and the pairs only for the positions that predict a supervised token, k and v for all
      (`skip_in_last=False` counts that block like the others);
    - the head (C·V): only for those positions, with V the vocabulary without padding rows.

    Norms, rotary positions, softmax, the embedding and the optimizer are not counted.
    """
    width, hidden = setting.n_embd, setting.mlp_size
    kv = width * (setting.n_kv_head or setting.n_head) // setting.n_head
    forward = 0.0
    for item in items:
        n = len(item.ids)
        positions = np.flatnonzero(item.trained[1:])  # position i predicts token i + 1 and attends to i + 1 tokens
        block = n * (2 * width**2 + 2 * width * kv + 3 * width * hidden) + 2 * width * n * (n + 1) / 2
        last = block
        if skip_in_last:
            last = n * 2 * width * kv + len(positions) * (2 * width**2 + 3 * width * hidden)
            last += 2 * width * float((positions + 1).sum())
        forward += 2 * ((setting.n_layer - 1) * block + last + len(positions) * width * setting.vocab_size)
    return 3 * forward


def write_checkpoint(setting: Setting, folder: Path) -> Path:
    """Write the initial model as a checkpoint of ours, which `transformers` also loads."""
    import torch

    from mini_chat_gpt.checkpoints.save import save_checkpoint
    from mini_chat_gpt.model import GPT, GPTConfig
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

    torch.manual_seed(0)
    tokenizer = ChatTokenizer.train(["Once upon a time there was a small model."] * 4, vocab_size=300)
    return save_checkpoint(folder, GPT(GPTConfig(**setting.model_fields())), tokenizer)

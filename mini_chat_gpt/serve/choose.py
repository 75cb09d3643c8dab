"""The next token of several replies, each with its own settings, counts of tokens and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mini_chat_gpt.generation.sampling import NEG_INF, Sampling, next_ids, penalize_repetition
from mini_chat_gpt.serve.reply import Asked, TokenProbs
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


class TokenSampler:
    """The random stream of one reply, and how often each token has occurred in it, as far as its settings need that."""

    def __init__(
        self, asked: Asked, prompt: Sequence[int], seed: int, table_size: int, tokenizer: ChatTokenizer
    ) -> None:
        self.asked = asked
        # As in `generate`: the stream of a batch's prompt of this number.
        self.stream = np.random.default_rng([seed, asked.choice])
        penalized = asked.presence_penalty or asked.frequency_penalty
        self.counts = torch.zeros(table_size) if penalized else None  # (V,), of the reply's tokens
        self.seen: torch.Tensor | None = None  # (V,) bool: in the prompt or the reply
        if asked.sampling.repetition_penalty != 1:
            self.seen = torch.zeros(table_size, dtype=torch.bool)
            self.seen[list(prompt)] = True
            self.seen[list(tokenizer.control.values())] = False
        # Replies with equal filters are filtered together. Penalties are applied before, one by one.
        self.filters = replace(asked.sampling, max_new_tokens=1, seed=None, repetition_penalty=1.0)

    def penalize(self, logits: torch.Tensor) -> torch.Tensor:
        """(V,) -> (V,)"""
        if self.seen is not None:
            seen, penalty = self.seen.to(logits.device), self.asked.sampling.repetition_penalty
            logits = penalize_repetition(logits[None], seen[None], penalty)[0]
        if self.counts is not None:
            # As OpenAI documents the two: presence once, frequency for each time that a token has occurred.
            counts = self.counts.to(logits.device)
            logits = logits - counts * self.asked.frequency_penalty - (counts > 0) * self.asked.presence_penalty
        return logits

    def count(self, token_id: int) -> None:
        """Note a token of the reply."""
        if self.counts is not None:
            self.counts[token_id] += 1
        if self.seen is not None:
            self.seen[token_id] = True


def choose(
    logits: torch.Tensor, samplers: Sequence[TokenSampler], suppressed: torch.Tensor
) -> list[tuple[int, TokenProbs | None]]:
    """The next token of each reply from logits (B, V), and its probabilities where they were requested.

    `suppressed` (n,) are ids that are never chosen. A row's result does not depend on the others.
    """
    with_probs = {
        row: logits[row].float().log_softmax(dim=-1)
        for row, sampler in enumerate(samplers)
        if sampler.asked.n_alternatives is not None
    }
    logits = logits.index_fill(1, suppressed, NEG_INF)
    groups: dict[Sampling, list[int]] = {}
    for row, sampler in enumerate(samplers):
        groups.setdefault(sampler.filters, []).append(row)
        if sampler.seen is not None or sampler.counts is not None:
            logits[row] = sampler.penalize(logits[row])
    chosen = [0] * len(samplers)
    for sampling, rows in groups.items():
        uniforms = None
        if sampling.temperature != 0:
            uniforms = torch.from_numpy(np.array([samplers[row].stream.random(dtype=np.float32) for row in rows]))
        ids = next_ids(logits[rows] if len(rows) < len(samplers) else logits, sampling, None, uniforms)
        for row, token_id in zip(rows, ids.tolist(), strict=True):
            chosen[row] = token_id
            samplers[row].count(token_id)
    return [
        (token_id, _probs(token_id, with_probs[row], samplers[row].asked.n_alternatives) if row in with_probs else None)
        for row, token_id in enumerate(chosen)
    ]


def _probs(token_id: int, log_probs: torch.Tensor, n_alternatives: int | None) -> TokenProbs:
    """The probabilities of a token, from log_probs (V,)."""
    likely = log_probs.topk(min(n_alternatives or 0, len(log_probs)))
    alternatives = tuple(zip(likely.indices.tolist(), likely.values.tolist(), strict=True))
    return TokenProbs(token_id, float(log_probs[token_id]), alternatives)

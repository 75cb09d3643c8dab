"""Sampling: from logits (B, V) to the next token of each row. Pure functions that know nothing about text.

A filter sets the logits of excluded tokens to −inf and does not change the others. `process_logits` applies the filters in the
order of Hugging Face's `transformers`: repetition penalty → temperature → top-k → top-p → min-p. Tests compare each of them
with its counterpart there.
"""

from __future__ import annotations

import torch

from mini_chat_gpt.generation.settings import Sampling as Sampling

NEG_INF = float("-inf")


def penalize_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make the `seen` (B, V) tokens less likely, as in CTRL (Keskar et al. 2019, arXiv:1909.05858). (B, V) -> (B, V)."""
    # Dividing a negative logit would make its token more likely, so negative logits are multiplied.
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k most likely tokens of each row, and any that tie with the last of them. (B, V) -> (B, V)."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < threshold, NEG_INF)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities sum to at least p. (B, V) -> (B, V).

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    ascending, order = logits.sort(dim=-1)
    # A token is excluded if it and all less likely ones together have at most 1 − p.
    excluded = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    # The most likely token always stays, also where rounding makes the sum of all others reach 1 − p.
    excluded[..., -1] = False
    return logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), NEG_INF)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024, arXiv:2407.01082). (B, V) -> (B, V)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), NEG_INF)


def process_logits(logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Apply the filters of `sampling` in order. (B, V) -> (B, V). Only a repetition penalty needs `seen` (B, V)."""
    if seen is not None:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    # p = 1 keeps everything, and skipping it saves a sort of the whole vocabulary.
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def sample(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample one token per row: the first whose cumulative probability exceeds uniforms[b] in [0, 1). (B, V), (B,) -> (B,).

    The random numbers are an argument, so that each row can have its own random stream.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    # In float64, a float32 uniform times the sum stays below the sum, so a token with probability 0 is never sampled.
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The most likely token of each row, the first one in case of a tie. (B, V) -> (B,)."""
    if logits.device.type == "cpu":  # NumPy takes a tenth of PyTorch's time here
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def next_ids(
    logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None = None, uniforms: torch.Tensor | None = None
) -> torch.Tensor:
    """The next token of each row: sampled with `uniforms` (B,) in [0, 1), or the most likely one if None. (B, V) -> (B,)."""
    logits = process_logits(logits.float(), sampling, seen)
    if uniforms is None:
        return argmax(logits)
    return sample(logits, uniforms).to(logits.device)

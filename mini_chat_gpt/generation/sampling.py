"""From logits to the next token: filters and the draw, pure functions on logits (B, V) that know nothing of text.

A filter sets what may not be drawn to −inf and leaves the rest as it is. `next_ids` applies them in the order of
Hugging Face's `transformers`: repetition penalty → temperature → top-k → top-p → min-p → draw. Tests compare each of
them with theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mini_chat_gpt.common.errors import UserError

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. Raises UserError for a value that makes no sense.

    max_new_tokens       longest reply in tokens, the one that ends it included
    temperature          0 = greedy, always the likeliest token; below 1 the likely ones become likelier
    top_k                draw from the k likeliest tokens only
    top_p                draw from the fewest likeliest tokens that hold this share of the probability
    min_p                draw only from tokens at least this share as likely as the likeliest
    repetition_penalty   above 1, tokens that the prompt or the reply already holds become less likely
    seed                 the same seed gives the same reply; None = a different one each time

    With temperature 0 only the penalty matters of the filters; the likeliest token passes all others.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check("max_new_tokens", int, 1, math.inf, "a whole number from 1 on")
        if self.temperature != 0:
            # Nearer to 0 the division overflows, and nothing but the likeliest token is ever drawn any more.
            self._check("temperature", float, 0.001, math.inf, "0 (the likeliest token, always) or at least 0.001")
        self._check("top_k", int, 1, math.inf, "a whole number from 1 on, or None")
        self._check("top_p", float, math.ulp(0.0), 1, "a number above 0 and at most 1, or None")
        self._check("min_p", float, 0, 1, "a number from 0 to 1, or None")
        self._check("repetition_penalty", float, 0.001, math.inf, "a number above 0 (1 = no penalty)")
        self._check("seed", int, 0, math.inf, "a whole number from 0 on, or None")

    def _check(self, name: str, kind: type, least: float, most: float, allowed: str) -> None:
        value = getattr(self, name)
        if value is None and allowed.endswith("None"):
            return
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= most or value == math.inf:
            raise UserError(f"{name} is {value!r}; it must be {allowed}.")


def penalize_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make `seen` (B, V) tokens less likely, `penalty` times as in CTRL (Keskar et al. 2019, arXiv:1909.05858)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k likeliest tokens of each row (and those as likely as the last of them)."""
    last = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < last, NEG_INF)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751)."""
    ascending, order = logits.sort(dim=-1)
    # A token goes if it and all less likely ones together hold no more than 1 − p. The likeliest always stays.
    excess = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    excess[..., -1] = False
    return logits.masked_fill(torch.zeros_like(excess).scatter(-1, order, excess), NEG_INF)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), NEG_INF)


def filtered(logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None = None) -> torch.Tensor:
    """All filters that `sampling` asks for, in order. `seen` (B, V) is needed for a repetition penalty only."""
    if seen is not None:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token a row: the first whose cumulative probability exceeds uniforms[b] in [0, 1). Returns ids (B,).

    The random numbers come from outside, one a row, so that each row can have a stream of its own.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    # In float64 a uniform of float32 times the sum stays below the sum, so a token of probability 0 is never reached.
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the likeliest tokens of each row, (B, V) -> (B,)."""
    if logits.device.type == "cpu":  # there numpy takes a tenth of PyTorch's time
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def next_ids(
    logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None = None, uniforms: torch.Tensor | None = None
) -> torch.Tensor:
    """The next token of each row, (B, V) -> (B,): drawn with `uniforms` (B,) in [0, 1), without them the likeliest."""
    logits = filtered(logits.float(), sampling, seen)
    if uniforms is None:
        return likeliest(logits)
    return draw(logits, uniforms).to(logits.device)

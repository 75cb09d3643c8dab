"""Settings of a reply. This module imports no tensor library, so that the command line can check them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mini_chat_gpt.common.errors import UserError, short

MAX_COUNT = 10**9
MAX_FACTOR = 10**6
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """Settings of a reply. Raises UserError for an invalid value.

    max_new_tokens       maximum length of the reply in tokens, including the stop token
    temperature          0 = greedy, always the most likely token; values below 1 favor likely tokens
    top_k                sample from the k most likely tokens only
    top_p                sample from the smallest set of most likely tokens whose probabilities sum to this value
    min_p                sample only tokens at least this fraction as likely as the most likely one
    repetition_penalty   values above 1 make tokens that are already in the prompt or the reply less likely
    seed                 the same seed gives the same reply; None = a different reply each time

    With temperature 0 the penalty is the only filter that has an effect: the most likely token passes all the others.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check("max_new_tokens", int, 1, MAX_COUNT, f"a whole number from 1 to {MAX_COUNT:,}")
        if self.temperature != 0:
            # Values closer to 0 overflow in the division, and only the most likely token would ever be sampled.
            self._check("temperature", float, 0.001, MAX_FACTOR, f"0 (greedy) or from 0.001 to {MAX_FACTOR:,}")
        self._check("top_k", int, 1, MAX_COUNT, f"a whole number from 1 to {MAX_COUNT:,}", optional=True)
        self._check("top_p", float, math.ulp(0.0), 1, "a number above 0 and at most 1", optional=True)
        self._check("min_p", float, 0, 1, "a number from 0 to 1", optional=True)
        self._check(
            "repetition_penalty", float, 0.001, MAX_FACTOR, f"a number from 0.001 to {MAX_FACTOR:,} (1 = no penalty)"
        )
        self._check("seed", int, 0, MAX_SEED, f"a whole number from 0 to {MAX_SEED}", optional=True)

    def _check(self, name: str, kind: type, least: float, most: float, allowed: str, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        # bool is a subclass of int, but True is not a sensible number of tokens.
        is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:  # false for NaN
            raise UserError(f"{name} is {short(value)}; it must be {allowed}.")

"""A reply in the making: what was requested, and how its tokens become pieces of text.

A piece has whole characters only, and nothing that could still turn out to be part of a stop string.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mini_chat_gpt.generation.reasoning import ReplyDecoder, Thought, reasoning_marks
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.generation.text import begins_text
from mini_chat_gpt.serve.stop_strings import StopStrings
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Finish = Literal["stop", "length", "canceled", "timeout", "shutdown", "error"]


@dataclass(frozen=True)
class Asked:
    """Settings of a reply, in addition to the prompt."""

    sampling: Sampling
    choice: int = 0  # each choice has a random stream of its own
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    n_alternatives: int | None = None  # most likely tokens to report with each token; None: report no probabilities
    thinking: bool | None = None
    seconds: float = float("inf")  # after this time the reply is ended


@dataclass(frozen=True)
class TokenProbs:
    """A token of a reply with the model's log-probability, before any setting of the reply, and the most likely tokens."""

    token_id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...]  # (id, log-probability), most likely first


@dataclass(frozen=True)
class Piece:
    """What one step added to a reply. `finish` is set in the last one."""

    text: str = ""
    reasoning: str = ""
    tokens: tuple[TokenProbs, ...] = ()  # of this text, if probabilities were requested
    finish: Finish | None = None


@dataclass
class Usage:
    """Tokens of a reply, and when things happened (time.monotonic)."""

    n_prompt: int = 0
    n_cached: int = 0  # tokens of the prompt that were found in the prefix cache
    n_new: int = 0  # tokens of the reply, without the stop token
    asked: float = field(default_factory=time.monotonic)
    first_token: float | None = None


class Reply:
    """One reply. The engine calls `push` and `end`; `emit` gets the pieces, in the engine's thread.

    `cancel()` may be called from any thread.
    """

    def __init__(
        self, prompt: Sequence[int], asked: Asked, tokenizer: ChatTokenizer, emit: Callable[[Piece], None]
    ) -> None:
        self.prompt, self.asked, self.usage = list(prompt), asked, Usage(len(prompt))
        self.finish: Finish | None = None
        self._emit = emit
        self._canceled = threading.Event()
        marks = reasoning_marks(tokenizer, asked.thinking)
        self._decoder = ReplyDecoder(tokenizer, marks, begins_text(tokenizer, self.prompt))
        self._stops = StopStrings(asked.stop)
        self._tokens: list[tuple[int, TokenProbs]] = []  # (characters of the reply before it, token), not sent yet
        self._n_decoded = self._n_sent = 0  # characters of the reply

    def cancel(self) -> None:
        """The client has gone: nothing more is computed for it."""
        self._canceled.set()

    @property
    def is_canceled(self) -> bool:
        return self._canceled.is_set()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() - self.usage.asked > self.asked.seconds

    def push(self, token_id: int, probs: TokenProbs | None) -> bool:
        """Add a token. Returns whether a stop string has ended the reply."""
        self.usage.n_new += 1
        if probs is not None:
            self._tokens.append((self._n_decoded, probs))
        pieces = list(self._decoder.push(token_id))
        return self._add(pieces)

    def _add(self, pieces: Sequence[str]) -> bool:
        reasoning = "".join(piece for piece in pieces if isinstance(piece, Thought))
        text = "".join(piece for piece in pieces if not isinstance(piece, Thought))
        self._n_decoded += len(text)
        certain = self._stops.push(text)
        if certain or reasoning:
            self._n_sent += len(certain)
            self._emit(Piece(certain, reasoning, self._take_tokens()))
        return self._stops.found

    def _take_tokens(self, everything: bool = False) -> tuple[TokenProbs, ...]:
        """The tokens that begin in the text sent so far."""
        n = next((i for i, (start, _) in enumerate(self._tokens) if start >= self._n_sent and not everything), None)
        n = len(self._tokens) if n is None else n
        taken, self._tokens = self._tokens[:n], self._tokens[n:]
        return tuple(token for _, token in taken)

    def end(self, finish: Finish) -> Finish:
        """End the reply and send what was held back. Returns `finish`, or "stop" if a stop string was in that."""
        assert self.finish is None, "a reply ends once"
        if not self._stops.found and finish in ("stop", "length", "timeout"):
            self._add(list(self._decoder.finish()))
            if not self._stops.found and (rest := self._stops.finish()):
                self._n_sent += len(rest)
                self._emit(Piece(rest, "", self._take_tokens()))
        self.finish = "stop" if finish == "length" and self._stops.found else finish
        self._emit(Piece(tokens=self._take_tokens(not self._stops.found), finish=self.finish))
        return self.finish

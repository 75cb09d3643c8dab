"""Fit a chat into the context. One that is too long is cut at the boundaries of its exchanges, shortened, or dropped (`chats.too_long`).

An exchange is a user's message with everything up to the next one: the reply, or calls of tools, their results and the reply. It is
never cut. A piece of a chat is its system message, its tools, and as many consecutive exchanges as fit; the next piece continues with the
exchange after them and has no earlier turns.

    chat    system  q1 a1  q2 a2  q3 a3             pieces    system  q1 a1  q2 a2      system  q3 a3

So each reply is trained once, in the piece that has its exchange. A reply is lost only if its exchange alone is too long. With
`chats.train=last` there is one piece: the last trained reply, with as many exchanges before it as fit.

The work is linear in the length of a chat: its exchanges are measured once, and each piece is rendered about once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

from mini_chat_gpt.chat_format import Message, Rendered, format_of, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_BLOCK = 32
"""Exchanges that are measured together. A template takes much longer for a conversation of thousands of messages."""
_SLACK = 16
"""Tokens by which a measured length may be too great: tokens at the ends of an exchange can depend on what is around it."""


@dataclass(frozen=True)
class FitResult:
    """What becomes of a chat."""

    pieces: list[Rendered]
    """Each has at least one reply to train on, and no reply is in two pieces."""
    n_tokens: int
    """Of the whole chat; 0 if it can't be rendered."""
    n_replies: int
    """Replies that are to be trained."""
    what: str = ""
    """Empty if it is used as it is, otherwise "cut", "shortened" or "dropped"."""
    why: str = ""
    """The reason, as a clause."""
    has_reasoning: bool = False

    @property
    def n_lost(self) -> int:
        """Replies that are in no piece."""
        return self.n_replies - sum(len(piece.reply_spans) for piece in self.pieces)


def fit(conversation: Conversation, tokenizer: ChatTokenizer, chats: ChatsSection, data: DataSection) -> FitResult:
    """Render a chat in pieces of at most `data.seq_len` tokens, beginning with `data.system_message` if it has no system message."""
    exchanges = _Exchanges(conversation, tokenizer, data.system_message, only_last=chats.train == "last")
    fitter = _Fitter(exchanges, data.seq_len)
    try:
        pieces, why = fitter.fit(chats.too_long)
    except UserError as error:  # what the format can't render, or roles that the template of a model refuses
        return FitResult([], 0, exchanges.n_replies, "dropped", str(error).rstrip("."), exchanges.has_reasoning)
    what = {"cut": "cut", "shorten": "shortened", "drop": "dropped"}[chats.too_long] if pieces else "dropped"
    return FitResult(
        pieces, fitter.n_tokens, exchanges.n_replies, what if why else "", why, exchanges.has_reasoning and bool(pieces)
    )


class _Exchanges:
    """The exchanges of a conversation. `render` renders consecutive ones with the system message and the tools."""

    def __init__(
        self, conversation: Conversation, tokenizer: ChatTokenizer, system_message: str | None, only_last: bool
    ) -> None:
        messages = list(conversation.messages)
        if format_of(tokenizer).reasoning_marks() is not None:
            messages = list(map(with_reasoning, messages))
        if system_message and messages[0].role != "system":
            messages.insert(0, Message("system", system_message))
        starts = [at for at, message in enumerate(messages) if message.role == "user"] or [len(messages)]
        self.head = messages[: starts[0]]
        self.exchanges = [messages[a:b] for a, b in pairwise([*starts, len(messages)])]
        self.tokenizer, self.tools, self.only_last = tokenizer, conversation.tools, only_last
        if only_last:  # the chat ends with the last reply that may be trained
            while self.exchanges and not _trained(self.exchanges[-1][-1]):
                del self.exchanges[-1]
        self.n_replies = min(1, len(self.exchanges)) if only_last else sum(map(_trained, chain(*self.exchanges)))
        self.has_reasoning = any(with_reasoning(message).reasoning for message in conversation.messages)

    def __len__(self) -> int:
        return len(self.exchanges)

    def render(self, begin: int, end: int) -> Rendered:
        """Raises UserError for what the format can't render."""
        messages = [*self.head, *chain(*self.exchanges[begin:end])]
        if self.only_last:
            messages = [*(replace(message, train=False) for message in messages[:-1]), messages[-1]]
        return self._render(messages)

    def lengths(self) -> tuple[int, list[int]]:
        """(tokens of what begins each piece, tokens of each exchange). Raises UserError."""
        prefix, lengths = 0, list[int]()
        for start in range(0, len(self), _BLOCK):
            block = self.exchanges[start : start + _BLOCK]
            # The first exchange comes once more before and after them, so that what is before an exchange doesn't count, and
            # none is the last, whose reasoning some templates keep.
            rendered_exchanges = [block[0], *block, block[0]]
            try:
                rendered = self._render([replace(one, train=True) for one in chain(self.head, *rendered_exchanges)])
            except UserError:
                self.render(0, len(self))  # its error has the numbers of the messages
                raise
            n_replies = (sum(message.role == "assistant" for message in one) for one in rendered_exchanges)
            ends = [rendered.reply_spans[n - 1][1] for n in accumulate(n_replies)]
            if not start:
                prefix = ends[0] - (ends[1] - ends[0]) + len(rendered.ids) - ends[-1]
            lengths += [b - a for a, b in pairwise(ends[:-1])]
        return prefix, lengths

    def _render(self, messages: Sequence[Message]) -> Rendered:
        return render_spans(messages, self.tokenizer, system_default=False, tools=self.tools)


def _trained(message: Message) -> bool:
    return message.role == "assistant" and message.train


class _Fitter:
    """Finds the pieces of a conversation. Lengths are measured only if it does not fit as a whole."""

    def __init__(self, exchanges: _Exchanges, seq_len: int) -> None:
        self.exchanges, self.seq_len, self.n_tokens = exchanges, seq_len, 0

    def fit(self, too_long: str) -> tuple[list[Rendered], str]:
        """(pieces, why they are not the whole conversation). Raises UserError if it can't be rendered."""
        n = len(self.exchanges)
        if not self.exchanges.n_replies:
            return [], "it has no reply to train on"
        if n <= _BLOCK:
            whole = self.exchanges.render(0, n)
            self.n_tokens = len(whole.ids)
            if self.n_tokens <= self.seq_len:
                return [whole], ""
        self.prefix, lengths = self.exchanges.lengths() if n > 1 else (0, [self.n_tokens])
        self.ends = [0, *accumulate(lengths)]
        self.n_tokens = self.n_tokens or self._estimate(0, n)
        if n > _BLOCK and (piece := self._piece(0, n)) is not None:
            return [piece], ""
        size = f"it has {self.n_tokens:,} tokens, {self.seq_len:,} fit"
        if too_long == "drop":
            return [], size
        if too_long == "shorten":
            return self._shorten(size)
        return self._last_piece(size) if self.exchanges.only_last else self._cut(size)

    def _estimate(self, begin: int, end: int) -> int:
        return self.prefix + self.ends[end] - self.ends[begin]

    def _piece(self, begin: int, end: int) -> Rendered | None:
        """The exchanges as a piece; None if they don't fit."""
        if self._estimate(begin, end) > self.seq_len + _SLACK:
            return None
        rendered = self.exchanges.render(begin, end)
        return rendered if len(rendered.ids) <= self.seq_len else None

    def _cut(self, size: str) -> tuple[list[Rendered], str]:
        pieces, begin, lost = list[Rendered](), 0, list[int]()
        while begin < len(self.exchanges):
            end, piece = self._longest(begin)
            if piece is None:
                lost.append(begin)
                end = begin + 1
            elif piece.reply_spans:
                pieces.append(piece)
            begin = end
        if not lost:
            return pieces, f"{size}: it is cut into {len(pieces)} pieces"
        if len(self.exchanges) == 1:
            return pieces, f"{size}: its only exchange is too long"
        longest = max(self._estimate(one, one + 1) for one in lost)
        which = f"{len(lost)} of its {len(self.exchanges)} exchanges" if pieces else "each of its exchanges"
        return (
            pieces,
            f"{size}: {which} alone {'are' if len(lost) > 1 and pieces else 'is'} too long (the longest: {longest:,})",
        )

    def _longest(self, begin: int) -> tuple[int, Rendered | None]:
        """The longest piece from an exchange on, and where it ends."""
        n, end = len(self.exchanges), begin + 1
        while end < n and self._estimate(begin, end + 1) <= self.seq_len:
            end += 1
        # The measured length leaves out the reasoning of the last reply, which only some templates remove from earlier ones.
        fits, too_long, longest = begin, end + 1, None
        while too_long - fits > 1:
            if (piece := self._piece(begin, end)) is not None:
                fits, longest = end, piece
            else:
                too_long = end
            end = (fits + too_long) // 2
        return fits, longest

    def _last_piece(self, size: str) -> tuple[list[Rendered], str]:
        n = len(self.exchanges)
        begin = n - 1
        while begin > 0 and self._estimate(begin - 1, n) <= self.seq_len:
            begin -= 1
        for first in range(begin, n):
            if (piece := self._piece(first, n)) is not None:
                n_removed = sum(map(len, self.exchanges.exchanges[:first]))
                return [piece], f"{size}: {n_removed} messages before its last reply are removed"
        return [], f"{size}: its last exchange alone is too long ({self._estimate(n - 1, n):,})"

    def _shorten(self, size: str) -> tuple[list[Rendered], str]:
        """As many exchanges from the beginning as fit, with the reply of the last one if only that is trained."""
        for end in range(len(self.exchanges), 0, -1):
            if self.exchanges.only_last and not _trained(self.exchanges.exchanges[end - 1][-1]):
                continue
            piece = self._piece(0, end)
            if piece is not None and piece.reply_spans:
                n_removed = sum(map(len, self.exchanges.exchanges[end:]))
                return [piece], f"{size}: its last {n_removed} messages are removed"
        return [], f"{size}: its first trained exchange doesn't fit"


def with_reasoning(message: Message) -> Message:
    """Move a `<think>…</think>` at the beginning of an assistant's message into its reasoning, as templates with reasoning do."""
    if message.role != "assistant" or message.reasoning is not None or not (match := _THINK.match(message.content)):
        return message
    reasoning = match.group(1).strip("\n")
    return replace(message, content=message.content[match.end() :], reasoning=reasoning if reasoning.strip() else None)


_THINK = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)

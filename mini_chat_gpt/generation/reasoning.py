"""Separate the reasoning that a model writes before its reply from the reply, piece by piece.

A reply with reasoning is `<think>`, the reasoning, `</think>`, and the reply itself. The line breaks next to the two marks belong to the
chat template and are removed, as templates do it when they render such a message.
"""

from __future__ import annotations

from collections.abc import Iterator

from mini_chat_gpt.chat_format import ReasoningMarks
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


class Thought(str):
    """A piece of the reasoning before a reply. All other pieces, concatenated, are the reply."""

    __slots__ = ()


class ReplyDecoder:
    """Decode the ids of a reply as they arrive, into pieces of whole characters.

    marks   the texts around the reasoning, from the chat format for this prompt; None if it has none
    start   whether the reply begins a new text (see `ChatTokenizer.decode`)

    The pieces of `push` and `finish` don't depend on how the ids are divided into calls, other than in their lengths.
    """

    def __init__(self, tokenizer: ChatTokenizer, marks: ReasoningMarks | None, start: bool) -> None:
        # The names of the marks, which can be control tokens, are shown. No other control tokens occur in a reply.
        self._decoder = tokenizer.stream_decoder(control=marks is not None, start=start)
        self._marks = marks
        self._held = ""  # text that could be the beginning of a mark, or line breaks before one
        self._part = "reply" if marks is None else "reasoning" if marks.opened else "start"
        self._at_edge = marks is not None and marks.opened  # only line breaks since the last mark

    def push(self, token_id: int) -> Iterator[str]:
        """The pieces that this id completes: at most one of the reasoning, and then one of the reply."""
        return self._split(self._decoder.push(token_id), final=False)

    def finish(self) -> Iterator[str]:
        """The rest."""
        return self._split(self._decoder.finish(), final=True)

    def _split(self, text: str, final: bool) -> Iterator[str]:
        self._held += text
        if self._part == "start":
            self._begin(final)
        if self._part == "reasoning" and (thought := self._reasoning(final)):
            yield Thought(thought)
        if self._part == "reply":
            reply, self._held = self._without_edge(self._held), ""
            if reply:
                yield reply

    def _begin(self, final: bool) -> None:
        """Find out whether the reply begins with reasoning."""
        assert self._marks is not None
        begin, text = self._marks.begin, self._held.lstrip()
        if text.startswith(begin):
            self._part, self._held, self._at_edge = "reasoning", text[len(begin) :], True
        elif final or not begin.startswith(text):
            self._part = "reply"

    def _reasoning(self, final: bool) -> str:
        """The text of the reasoning that is certain to be in it."""
        assert self._marks is not None
        end = self._marks.end
        text = self._held = self._without_edge(self._held)
        before, mark, after = text.partition(end)
        if mark:
            self._part, self._held, self._at_edge = "reply", after, True
            return before.rstrip("\n")
        if not final:
            n = next((n for n in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:n])), 0)
            before = text[: len(text) - n]
        certain = before.rstrip("\n")
        self._held = "" if final else text[len(certain) :]
        return certain

    def _without_edge(self, text: str) -> str:
        """Remove line breaks at the beginning of a part."""
        if self._at_edge and (text := text.lstrip("\n")):
            self._at_edge = False
        return text


def decode_reply(
    tokenizer: ChatTokenizer, ids: list[int], marks: ReasoningMarks | None, start: bool
) -> tuple[str, str | None]:
    """(reply, reasoning) of the ids of a whole reply. The reasoning is None if it has no text."""
    decoder = ReplyDecoder(tokenizer, marks, start)
    pieces = [piece for token_id in ids for piece in decoder.push(token_id)]
    return joined([*pieces, *decoder.finish()])


def joined(pieces: list[str]) -> tuple[str, str | None]:
    """(reply, reasoning) of all pieces of a reply. The reasoning is None if it has no text."""
    reasoning = "".join(piece for piece in pieces if isinstance(piece, Thought))
    return "".join(
        piece for piece in pieces if not isinstance(piece, Thought)
    ), reasoning if reasoning.strip() else None


def reasoning_marks(tokenizer: ChatTokenizer, thinking: bool | None = None) -> ReasoningMarks | None:
    """The marks around the reasoning of a reply; None for a model without reasoning.

    Raises UserError if `thinking` is given, but the chat format has no such switch.
    """
    chat_format = tokenizer.chat_format
    if thinking is not None and (chat_format is None or not chat_format.can_switch_thinking):
        always = chat_format is not None and chat_format.thinks
        raise UserError(
            "Thinking can't be switched on or off: "
            + (
                "the model's chat template always begins with it."
                if always
                else "the model's chat format has no reasoning."
            )
        )
    return None if chat_format is None else chat_format.reasoning_marks(thinking)

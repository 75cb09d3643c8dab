"""A conversation with a model, independent of any terminal.

    session = ChatSession(model, tokenizer, Sampling(temperature=0.7))
    for piece in session.send("Tell me a story."):
        print(piece, end="", flush=True)
    print(session.last_turn.finish_reason)

Guarantees:

- A reply equals the reply of `generate` to the whole conversation (system message, turns, new message) with the same settings
  and seed. The KV cache is reused: only the ids after the common prefix of the old and the new prompt are computed, after a new
  message, a retry or an undo.
- The prompt holds the newest whole turns that fit into the context and leave some room for the reply. The system message is
  always in it. `n_dropped` is the number of older turns that are left out; they are used again when there is room.
- An interrupted reply (the loop over its pieces ends early, or Ctrl-C) is kept as far as it got.
- A base model has no chat format and therefore no conversation: it continues each text separately, as the beginning of a
  document.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mini_chat_gpt.chat.saved_chat import read_chat, write_chat
from mini_chat_gpt.chat_format import Message, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.common.writable import require_writable_file
from mini_chat_gpt.generation.decode import FinishReason, Model, concrete_seed, decode, for_inference, random_streams
from mini_chat_gpt.generation.reasoning import ReplyDecoder, Thought, reasoning_marks
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System, begins_text, prompt_ids
from mini_chat_gpt.generation.token_probs import Explanation, explain
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

# Fraction of the context that older turns leave free for a reply. Most replies to a pasted story are short, and they are all wrong
# if the story has been dropped. A reply that was cut off can be generated again with fewer older turns (`retry`).
ROOM_FOR_REPLY = 1 / 5
# Beginning of the error if a base model is used like a chat model.
NO_CHAT = "This is a base model without a chat format"


@dataclass
class Turn:
    """A message and the reply to it, which grows while it is generated."""

    message: str
    reply: str = ""
    finish_reason: FinishReason | Literal["interrupted"] = "interrupted"  # until generation ends
    ids: list[int] = field(default_factory=list)  # of the reply, without the stop token; [] for a loaded turn
    stop_id: int | None = None  # the stop token that ended the reply
    prompt: list[int] = field(default_factory=list)  # ids of the prompt, including those in the KV cache
    sampling: Sampling | None = None  # settings of the reply; None for a loaded turn
    n_prefilled: int = 0  # prompt tokens that were not in the KV cache
    seconds: float = 0.0  # from the message to the last token
    attempt: int = 0  # 0, then one more for each retry; each attempt has its own random stream
    replaces: Turn | None = None  # the turn that this one replaces as soon as it has text
    reasoning: str = ""  # what the model wrote before the reply, if its chat format has reasoning


@dataclass(frozen=True)
class Usage:
    """How full the context is, in tokens, including control tokens."""

    context: int
    system: int  # everything before the first turn
    turns: list[int]  # each turn, including dropped ones
    n_dropped: int

    @property
    def used(self) -> int:
        """Tokens in use, at most the whole context."""
        return min(self.context, self.system + sum(self.turns[self.n_dropped :]))


class ChatSession:
    """A conversation; see the module's docstring.

    sampling     settings of the next replies; may be replaced at any time
    turns        the conversation, oldest turn first; a message without a reply is not in it
    n_dropped    number of oldest turns that were not in the prompt of the last reply
    last_turn    the turn of the last message, even if it got no reply
    system       the system message, None for none; `set_system` changes it
    thinking     whether the model thinks before it replies, None for the default of its chat format; `set_thinking` changes it
    files        files that this conversation was saved to or loaded from
    examples     prompts that the user may try

    Raises UserError for a system message with a base model, or one that leaves no room in the context.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: ChatTokenizer,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        system: System = USE_FORMAT_DEFAULT,
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.turns: list[Turn] = []
        self.n_dropped = 0
        self.last_turn: Turn | None = None
        self.files: set[Path] = set()
        self.examples: Sequence[str] = ()
        self._saved: list[Message] = []
        self.system: str | None = None
        self.thinking: bool | None = None
        self._head = 0  # tokens before the first turn
        self._inference_model: Model | None = None  # created for the first reply
        self._cache = model.make_cache(1)
        self._ids: list[int] = []  # ids in the KV cache, plus at most one more
        self.set_system(system if isinstance(system, str) or system is None else self.default_system)

    # State

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat format: no conversation, no system message."""
        return self.tokenizer.chat_format is None

    @property
    def default_system(self) -> str | None:
        """The system message that the model was trained with."""
        return None if self.tokenizer.chat_format is None else self.tokenizer.chat_format.default_system

    @property
    def thinks(self) -> bool:
        """Whether the next replies begin with reasoning."""
        if self.thinking is not None:
            return self.thinking
        return self.tokenizer.chat_format is not None and self.tokenizer.chat_format.thinks

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, including dropped turns."""
        return self._conversation(self.turns)

    @property
    def is_saved(self) -> bool:
        """Whether a file has the whole conversation, or there is none."""
        return not self.turns or self.messages == self._saved

    @property
    def room_for_reply(self) -> int:
        """Tokens of the context that older turns must leave free for a reply."""
        return min(self.sampling.max_new_tokens, int(self.model.config.context_length * ROOM_FOR_REPLY))

    def usage(self) -> Usage:
        """How full the context is. A base model's turns don't count, as it continues each text separately."""
        sizes = [] if self.is_base else [self._size(turn) for turn in self.turns]
        return Usage(self.model.config.context_length, self._head, sizes, self.n_dropped)

    # Actions

    def send(self, message: str) -> Iterator[str]:
        """Send a message; yields the reply in pieces of whole characters. The turn is in `turns` as soon as its reply has text.

        Pieces of the class `Thought` are the model's reasoning, which is not part of the reply.
        Raises UserError immediately, with nothing changed, for a message that has no text or is longer than the context.
        """
        return self._ask(Turn(well_formed(message)), self.turns, self.room_for_reply)

    def retry(self) -> Iterator[str]:
        """Generate another reply to the last message, which replaces its reply. Raises UserError if there is no message.

        If the context cut the reply off, enough older turns are dropped to leave room for `sampling.max_new_tokens`.
        """
        last = self.last_turn if self.last_turn is not None else (self.turns[-1] if self.turns else None)
        if last is None:
            raise UserError("There is no message yet to send again.")
        answered = bool(self.turns) and self.turns[-1] is last
        again = Turn(last.message, attempt=last.attempt + 1, replaces=last if answered else last.replaces)
        earlier = self.turns if again.replaces is None else self.turns[:-1]
        room = self.sampling.max_new_tokens if last.finish_reason == "context" else self.room_for_reply
        return self._ask(again, earlier, room, least=min(self.n_dropped, len(earlier)))

    def explain(self) -> Explanation:
        """The token probabilities of the last reply (see generation/token_probs.py). The KV cache does not change.

        Raises UserError if there is no reply that was generated in this session.
        """
        last = self.last_turn
        if last is None or not (last.ids or last.stop_id is not None):  # interrupted before the first token
            last = self.turns[-1] if self.turns else None
        if last is None:
            raise UserError("There is no reply yet to explain.")
        if last.sampling is None:
            raise UserError(
                "The last reply is from a file, and only one generated here can be explained; /retry generates one."
            )
        model = self._inference_model or self.model
        return explain(model, self.tokenizer, last.prompt, last.ids, last.stop_id, last.sampling)

    def undo(self) -> Turn:
        """Remove the last message and its reply, and return them. Raises UserError if there is none."""
        if not self.turns:
            raise UserError("There is nothing to undo; the conversation is empty.")
        self.last_turn = None
        turn = self.turns.pop()
        self.n_dropped = min(self.n_dropped, len(self.turns))
        return turn

    def reset(self) -> None:
        """Start a new conversation. The system message and the settings stay."""
        self.turns, self.n_dropped, self.last_turn, self.files = [], 0, None, set()

    def set_system(self, text: str | None) -> None:
        """Set the system message, or None for none, from the next reply on. Raises UserError as the class does."""
        text = well_formed(text) if text is not None and text.strip() else None
        if text is not None and self.is_base:
            raise UserError(f"{NO_CHAT}; a system message has no effect on it.")
        chat_format = self.tokenizer.chat_format
        if text is None and chat_format is not None and not chat_format.can_omit_system:
            raise UserError(
                f"The model's chat template always has a system message, {chat_format.own_system!r} if there is no other; give another."
            )
        head, context = self._head_size(text), self.model.config.context_length
        if not self.is_base and len(prompt_ids(self.tokenizer, "x", text)) >= context:
            raise UserError(
                f"The system message has {head} tokens, which leaves no room in the model's context of {context}; shorten it."
            )
        self.system, self._head = text, head

    def set_thinking(self, thinking: bool | None) -> None:
        """Switch the reasoning of the next replies on or off; None is the format's default. Raises UserError if there is no switch."""
        reasoning_marks(self.tokenizer, thinking)
        self.thinking = thinking

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the conversation and the settings as JSON (see saved_chat.py).

        Raises UserError if the conversation is empty, if the file exists and may not be overwritten, or if it can't be written.
        """
        path = Path(path)
        if not self.turns:
            raise UserError("There is nothing to save yet; the conversation is empty.")
        require_writable_file(path)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already and is not overwritten; choose another name.")
        write_chat(path, self.messages, self.sampling)
        self.files.add(Path(os.path.realpath(path)))
        self._saved = self.messages

    def load(self, path: Path | str) -> None:
        """Replace this conversation by a saved one. Settings that are not in the file don't change.

        If the file has no system message, there is none from now on. `retry` replies to a user message at its end.
        Raises UserError, with nothing changed, for a file that is not a conversation.
        """
        if self.is_base:
            raise UserError(f"{NO_CHAT}; it can't continue a conversation.")
        messages, sampling = read_chat(Path(path), self.sampling)
        system = messages.pop(0).content if messages[0].role == "system" else None
        self.set_system(system)
        self.reset()
        self.turns = [
            Turn(asked.content, reply.content, "stop", reasoning=reply.reasoning or "")
            for asked, reply in zip(messages[::2], messages[1::2], strict=False)
        ]
        self.last_turn = Turn(messages[-1].content, attempt=-1) if len(messages) % 2 else None
        self.sampling = sampling
        _, self.n_dropped = self._fit(self.turns, "?", self.room_for_reply)  # as for the next message
        self.files = {Path(os.path.realpath(path))}
        self._saved = self.messages

    # Implementation

    def _ask(self, turn: Turn, earlier: Sequence[Turn], room: int, least: int = 0) -> Iterator[str]:
        ids, self.n_dropped = self._fit(earlier, turn.message, room, least)
        self.last_turn = turn
        return self._answer(turn, ids)

    def _answer(self, turn: Turn, ids: list[int]) -> Iterator[str]:
        in_turns = False
        for piece in self._pieces(turn, ids):
            if isinstance(piece, Thought):
                turn.reasoning += piece
            else:
                turn.reply += piece
            if not in_turns and turn.reply.strip():  # a reply without text can't be rendered in the next prompt
                in_turns = True
                self.turns[len(self.turns) - (turn.replaces is not None) :] = [turn]
                turn.replaces = None
            yield piece
            if self.last_turn is not turn:
                return  # another message was sent meanwhile, and the cache holds that one

    def _pieces(self, turn: Turn, ids: list[int]) -> Iterator[str]:
        started = time.monotonic()
        marks = reasoning_marks(self.tokenizer, self.thinking)
        decoder = ReplyDecoder(self.tokenizer, marks, start=begins_text(self.tokenizer, ids))
        turn.n_prefilled = len(ids) - self._truncate_cache(ids)
        turn.prompt, turn.sampling = ids, self.sampling
        streams = random_streams(concrete_seed(self.sampling.seed), [turn.attempt])
        self._inference_model = inference_model = self._inference_model or for_inference(self.model)
        for _, token_id, finish in decode(inference_model, self.tokenizer, [ids], self.sampling, streams, self._cache):
            turn.seconds = time.monotonic() - started
            if finish != "stop":
                turn.ids.append(token_id)
                self._ids.append(token_id)
            if finish is not None:
                turn.finish_reason, turn.stop_id = finish, token_id if finish == "stop" else None
            if finish != "stop":
                yield from decoder.push(token_id)
        yield from decoder.finish()

    def _truncate_cache(self, ids: list[int]) -> int:
        """Truncate the cache to its common prefix with `ids`, at least one id shorter; returns the length of the prefix."""
        common = 0
        for old, new in zip(self._ids[: self._cache.lengths[0]], ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._cache.truncate(0, common)
        self._ids = list(ids)
        return common

    def _fit(self, earlier: Sequence[Turn], message: str, room: int, least: int = 0) -> tuple[list[int], int]:
        """The prompt for a message after the newest earlier turns that fit, and the number of dropped turns.

        Turns are dropped until `room` tokens are free for the reply, and at least `least` turns.
        """
        if self.is_base:
            return self._check_length(self._prompt([Message("user", message)]), message), 0
        if not message.strip():
            raise UserError("The message has no text.")
        alone = self._check_length(self._prompt(self._conversation([], message)), message)
        # From the newest turn back, so that the work does not depend on the number of turns that don't fit.
        free = self.model.config.context_length - room - len(alone)
        n_dropped = len(earlier)
        while n_dropped > least and (free := free - self._size(earlier[n_dropped - 1])) >= 0:
            n_dropped -= 1
        while True:
            ids = self._prompt(self._conversation(earlier[n_dropped:], message))
            # The sizes of turns add up, but for a template that treats its last turn differently.
            if len(ids) < self.model.config.context_length or n_dropped == len(earlier):
                return ids, n_dropped
            n_dropped += 1

    def _check_length(self, alone: list[int], message: str) -> list[int]:
        """Return `alone`, the ids of a message without earlier turns. Raises UserError if no token of a reply fits after it."""
        context, n_message = self.model.config.context_length, len(self.tokenizer.encode(message))
        if len(alone) < context:
            return alone
        with_system = "" if self.system is None else " with the system message"
        raise UserError(
            f"The message is too long: it has {n_message} tokens, and at most "
            f"{context - 1 - (len(alone) - n_message)} fit into the model's context of {context}{with_system}."
        )

    def _conversation(self, turns: Sequence[Turn], message: str | None = None) -> list[Message]:
        messages = [] if self.system is None else [Message("system", self.system)]
        has_reasoning = reasoning_marks(self.tokenizer) is not None  # a loaded chat can be that of another model
        for turn in turns:
            reasoning = turn.reasoning if has_reasoning and turn.reasoning.strip() else None
            messages += [Message("user", turn.message), Message("assistant", turn.reply, reasoning=reasoning)]
        return messages if message is None else [*messages, Message("user", message)]

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that the model reads before its reply to the last message."""
        if self.is_base:
            return prompt_ids(self.tokenizer, messages[-1].content)
        return prompt_ids(self.tokenizer, messages, None, self.thinking)

    def _size(self, turn: Turn) -> int:
        """Number of tokens of a turn that others follow, wherever it is. Templates remove the reasoning from such turns."""
        return len(self._prompt(self._conversation([turn], "x"))) - len(self._prompt(self._conversation([], "x")))

    def _head_size(self, system: str | None) -> int:
        """Number of tokens before the first turn, or before a base model's text."""
        if self.is_base:
            return len(prompt_ids(self.tokenizer, ""))
        head = [] if system is None else [Message("system", system)]
        turn = [Message("user", "x"), Message("assistant", "x")]
        try:
            one, two = self._n_tokens([*head, *turn]), self._n_tokens([*head, *turn, *turn])
        except UserError:  # Mistral's third template prints a system message only before the prompt for a reply
            return len(self._prompt([*head, turn[0]])) - len(self._prompt(turn[:1]))
        return one - (two - one)

    def _n_tokens(self, messages: Sequence[Message]) -> int:
        return len(render_spans(messages, self.tokenizer, system_default=False).ids)

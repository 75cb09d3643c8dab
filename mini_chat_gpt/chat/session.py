"""A conversation with a model, without a terminal: what was said, what the model reads of it, what it has read already.

    session = ChatSession(model, tokenizer, Sampling(temperature=0.7))
    for piece in session.send("Tell me a story."):
        print(piece, end="", flush=True)
    print(session.asked.finish_reason)

What it promises:

- A reply is the one that `generate` gives to the whole conversation (system message, turns, new message) with the same
  settings and seed. But what the model has read before it doesn't read again: keys and values are kept, and gone on from
  where the old and the new ids part, be it the next message, another try or an earlier turn taken back.
- The model reads the newest whole turns that fit into its context with some room for the reply; the system message always
  stays. `n_forgotten` says how many older ones are left out. They are still there, and read again when there is room.
- A reply that is broken off (the loop over its pieces is left, Ctrl-C) stays as far as it got.
- A base model has no chat format and so no conversation: it goes on from each text by itself, as from the beginning of a
  document.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mini_chat_gpt.chat_format import Message, check_messages, render
from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.generation.decode import FinishReason, Model, concrete_seed, decode, for_inference, random_streams
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System, begins_text, prompt_ids
from mini_chat_gpt.generation.token_probs import Explanation, explain
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

# The part of the context that older turns leave to a reply, if it may be so long. Most replies to a pasted story are short,
# and a forgotten story spoils them all, while a reply that is cut off can be had again with less before it (`retry`).
ROOM_FOR_REPLY = 1 / 8
# What a base model says to all that only a conversation has.
NO_CHAT = "This is a base model without a chat format"


@dataclass
class Turn:
    """A message and the reply to it, which grows while it comes."""

    message: str
    reply: str = ""
    finish_reason: FinishReason | Literal["interrupted"] = "interrupted"  # until it ends otherwise
    ids: list[int] = field(default_factory=list)  # of the reply, without the stop token; [] for a loaded turn
    stop_id: int | None = None  # the stop token that ended it
    prompt: list[int] = field(default_factory=list)  # what the model read before the reply, or knew already
    sampling: Sampling | None = None  # settings of the reply; None for a loaded turn
    n_read: int = 0  # tokens that the model had to read for it; the others it knew
    seconds: float = 0.0  # from the question to the last token
    attempt: int = 0  # 0, and one more for each retry: it draws from a random stream of its own
    instead_of: Turn | None = None  # the turn that it replaces as soon as it has text


@dataclass(frozen=True)
class Usage:
    """How full the context is, in tokens, control tokens included."""

    context: int
    system: int  # what stands before the first turn
    turns: list[int]  # each turn, also those that are left out
    n_forgotten: int

    @property
    def used(self) -> int:
        """At most the whole context, also where the next message will find less room than there was."""
        return min(self.context, self.system + sum(self.turns[self.n_forgotten :]))


class ChatSession:
    """A conversation that goes on; see the module.

    sampling       settings of the replies from now on; may be replaced at any time
    turns          all that was said, oldest first; a message without a reply is not among them
    n_forgotten    so many of the oldest turns the model did not read for its last reply
    asked          the turn of the last message, also when it got no reply
    system         the system message, None for none; `set_system` changes it
    files          where this conversation was saved or loaded from

    Raises UserError for a system message given to a base model, or one that leaves no room in the context.
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
        self.n_forgotten = 0
        self.asked: Turn | None = None
        self.files: set[Path] = set()
        self.system: str | None = None
        self._reader: Model | None = None  # the model in the form that generates fastest, made for the first reply
        self._cache = model.make_cache(1)
        self._ids: list[int] = []  # what the cache holds, and maybe a token more
        self.set_system(system if isinstance(system, str) or system is None else self.default_system)

    # What there is

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat format: no conversation, no system message."""
        return self.tokenizer.chat_format is None

    @property
    def default_system(self) -> str | None:
        """The system message that the model was trained with."""
        return None if self.tokenizer.chat_format is None else self.tokenizer.chat_format.default_system

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, also what is forgotten."""
        return self._conversation(self.turns)

    @property
    def room_for_reply(self) -> int:
        """Tokens of the context that older turns must leave to a reply."""
        return min(self.sampling.max_new_tokens, int(self.model.config.context_length * ROOM_FOR_REPLY))

    def usage(self) -> Usage:
        """How full the context is. A base model's turns don't count: it reads one text at a time."""
        sizes = [] if self.is_base else [self._size(turn) for turn in self.turns]
        return Usage(self.model.config.context_length, self._head_size(self.system), sizes, self.n_forgotten)

    # What can be done

    def send(self, message: str) -> Iterator[str]:
        """Say something; the reply comes in pieces of whole characters. The turn is in `turns` as soon as it has text.

        Raises UserError, at once and with nothing changed, for a message without text and one longer than the context.
        """
        return self._ask(Turn(well_formed(message)), self.turns, self.room_for_reply)

    def retry(self) -> Iterator[str]:
        """Another reply to the last message, in place of the one it got. Raises UserError where there was none.

        Where the context cut it off, older turns are left out as far as it takes to say all that `sampling` allows.
        """
        last = self.asked if self.asked is not None else (self.turns[-1] if self.turns else None)
        if last is None:
            raise UserError("There is no message yet that could be sent again.")
        answered = bool(self.turns) and self.turns[-1] is last
        again = Turn(last.message, attempt=last.attempt + 1, instead_of=last if answered else last.instead_of)
        earlier = self.turns if again.instead_of is None else self.turns[:-1]
        room = self.sampling.max_new_tokens if last.finish_reason == "context" else self.room_for_reply
        return self._ask(again, earlier, room, least=min(self.n_forgotten, len(earlier)))

    def explain(self) -> Explanation:
        """Why the last reply is what it is, token by token; see why.py. What the model knows already stays as it is.

        Raises UserError where there is no reply that was given here.
        """
        last = self.asked
        if last is None or not (last.ids or last.stop_id is not None):  # broken off before there was anything
            last = self.turns[-1] if self.turns else None
        if last is None:
            raise UserError("There is no reply yet that could be explained.")
        if last.sampling is None:
            raise UserError(
                "The last reply is from a file, and only one given here can be explained; /retry asks for one."
            )
        model = self._reader or self.model
        return explain(model, self.tokenizer, last.prompt, last.ids, last.stop_id, last.sampling)

    def undo(self) -> Turn:
        """Take back the last message and its reply, and return them. Raises UserError when there is none."""
        if not self.turns:
            raise UserError("There is nothing to take back; the conversation is empty.")
        self.asked = None
        turn = self.turns.pop()
        self.n_forgotten = min(self.n_forgotten, len(self.turns))
        return turn

    def reset(self) -> None:
        """Forget the conversation; the system message and the settings stay."""
        self.turns, self.n_forgotten, self.asked, self.files = [], 0, None, set()

    def set_system(self, text: str | None) -> None:
        """Another system message, or None for none, from the next reply on. Errors as of the class."""
        text = well_formed(text) if text is not None and text.strip() else None
        if text is not None and self.is_base:
            raise UserError(f"{NO_CHAT}; a system message has no meaning for it.")
        head, context = self._head_size(text), self.model.config.context_length
        if not self.is_base and head + 4 > context:  # <|user|>, a token, <|assistant|>, a token
            raise UserError(
                f"The system message has {head} tokens, which leave no room in the model's context of {context}; shorten it."
            )
        self.system = text

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write all that was said, and the settings, as JSON: {"messages": [{"role", "content"}, ...], "settings": {...}}.

        Raises UserError where nothing was said, for a file that exists, unless it may be overwritten, and where it
        can't be written.
        """
        path = Path(path)
        if not self.turns:
            raise UserError("There is nothing to save yet; the conversation is empty.")
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file in it.")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already and is not overwritten; choose another name.")
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        write_json(path, {"messages": messages, "settings": asdict(self.sampling)})
        self.files.add(path.resolve())

    def load(self, path: Path | str) -> None:
        """Go on with a saved conversation in place of this one; settings that the file doesn't name stay as they are.

        Where the file has no system message there is none from now on. A user message at its end waits for `retry`.
        Raises UserError, with nothing changed, for a file that is no conversation.
        """
        if self.is_base:
            raise UserError(f"{NO_CHAT}; it has no conversation to go on with.")
        messages, sampling = read_chat(Path(path), self.sampling)
        system = messages.pop(0).content if messages[0].role == "system" else None
        self.set_system(system)
        self.reset()
        texts = [message.content for message in messages]
        self.turns = [Turn(*pair, finish_reason="stop") for pair in zip(texts[::2], texts[1::2], strict=False)]
        self.asked = Turn(texts[-1], attempt=-1) if len(texts) % 2 else None
        self.sampling = sampling
        _, self.n_forgotten = self._fitted(self.turns, "?", self.room_for_reply)  # as the next message will find it
        self.files = {Path(path).resolve()}

    # How it is done

    def _ask(self, turn: Turn, earlier: Sequence[Turn], room: int, least: int = 0) -> Iterator[str]:
        ids, self.n_forgotten = self._fitted(earlier, turn.message, room, least)
        self.asked = turn
        return self._answer(turn, ids)

    def _answer(self, turn: Turn, ids: list[int]) -> Iterator[str]:
        kept = False
        for piece in self._pieces(turn, ids):
            turn.reply += piece
            if not kept and turn.reply.strip():  # only a reply with text can be read again
                kept = True
                self.turns[len(self.turns) - (turn.instead_of is not None) :] = [turn]
                turn.instead_of = None
            yield piece
            if self.asked is not turn:
                return  # something else was said meanwhile, and the cache holds that

    def _pieces(self, turn: Turn, ids: list[int]) -> Iterator[str]:
        started = time.monotonic()
        decoder = self.tokenizer.stream_decoder(start=begins_text(self.tokenizer, ids))
        turn.n_read = len(ids) - self._keep_common(ids)
        turn.prompt, turn.sampling = ids, self.sampling
        streams = random_streams(concrete_seed(self.sampling.seed), [turn.attempt])
        self._reader = reader = self._reader or for_inference(self.model)
        for _, token_id, finish in decode(reader, self.tokenizer, [ids], self.sampling, streams, self._cache):
            turn.seconds = time.monotonic() - started
            if finish != "stop":
                turn.ids.append(token_id)
                self._ids.append(token_id)
            if finish is not None:
                turn.finish_reason, turn.stop_id = finish, token_id if finish == "stop" else None
            if finish != "stop" and (piece := decoder.push(token_id)):
                yield piece
        if piece := decoder.finish():
            yield piece

    def _keep_common(self, ids: list[int]) -> int:
        """Forget what the cache holds beyond its common beginning with `ids`; how long that is, at least one id less."""
        common = 0
        for old, new in zip(self._ids[: self._cache.lengths[0]], ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._cache.truncate(0, common)
        self._ids = list(ids)
        return common

    def _fitted(self, earlier: Sequence[Turn], message: str, room: int, least: int = 0) -> tuple[list[int], int]:
        """The ids to read for a message after the newest of the earlier turns that fit, and how many are left out.

        `room` tokens stay free for the reply where leaving out turns can achieve it; `least` turns are left out anyway.
        """
        if self.is_base:
            return self._checked(prompt_ids(self.tokenizer, message), message), 0
        if not message.strip():
            raise UserError("The message has no text.")
        alone = self._checked(prompt_ids(self.tokenizer, self._conversation([], message), None), message)
        sizes = [self._size(turn) for turn in earlier]
        n_forgotten, n_tokens = least, len(alone) + sum(sizes[least:])
        while sizes[n_forgotten:] and n_tokens + room > self.model.config.context_length:
            n_tokens -= sizes[n_forgotten]
            n_forgotten += 1
        return prompt_ids(self.tokenizer, self._conversation(earlier[n_forgotten:], message), None), n_forgotten

    def _checked(self, alone: list[int], message: str) -> list[int]:
        """`alone`, the ids of a message without earlier turns, if they leave room for at least one token of a reply."""
        context, n_message = self.model.config.context_length, len(self.tokenizer.encode(message))
        if len(alone) < context:
            return alone
        beside = "" if self.system is None else " beside the system message"
        raise UserError(
            f"The message is too long to be kept: it has {n_message} tokens, and at most "
            f"{context - 1 - (len(alone) - n_message)} fit into the model's context of {context}{beside}."
        )

    def _conversation(self, turns: Sequence[Turn], message: str | None = None) -> list[Message]:
        messages = [] if self.system is None else [Message("system", self.system)]
        for turn in turns:
            messages += [Message("user", turn.message), Message("assistant", turn.reply)]
        return messages if message is None else [*messages, Message("user", message)]

    def _size(self, turn: Turn) -> int:
        ids, _ = render([Message("user", turn.message), Message("assistant", turn.reply)], self.tokenizer)
        return len(ids) - (self.tokenizer.bos_id is not None)

    def _head_size(self, system: str | None) -> int:
        """Tokens before the first turn, or before a base model's text."""
        if self.is_base:
            return len(prompt_ids(self.tokenizer, ""))
        if system is None:
            return int(self.tokenizer.bos_id is not None)
        return len(render([Message("system", system)], self.tokenizer)[0])


def read_chat(path: Path, sampling: Sampling) -> tuple[list[Message], Sampling]:
    """The messages of a saved conversation, and `sampling` with the settings that the file names.

    Raises UserError with the first thing that is wrong.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from None
    except ValueError as error:  # no UTF-8, no JSON
        raise UserError(f"{path} is not a JSON file ({error}).") from None
    except RecursionError:
        raise UserError(f"{path} is no conversation, it is nested too deeply.") from None
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise UserError(
            f'{path} is no conversation; it must have {{"messages": [{{"role": ..., "content": ...}}, ...]}}.'
        )
    messages = [_message(path, number, entry) for number, entry in enumerate(content["messages"], start=1)]
    try:
        check_messages(messages)
        return messages, _with_settings(sampling, content.get("settings", {}))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _message(path: Path, number: int, entry: Any) -> Message:
    if not isinstance(entry, dict) or not {"role", "content"} <= entry.keys():
        raise UserError(f'{path}: message {number} must be {{"role": ..., "content": ...}}.')
    content = entry["content"]
    return Message(entry["role"], well_formed(content) if isinstance(content, str) else content)


def _with_settings(sampling: Sampling, settings: Any) -> Sampling:
    if not isinstance(settings, dict):
        raise UserError('"settings" must be an object, such as {"temperature": 0.7}.')
    known = [setting.name for setting in fields(Sampling)]
    for name in settings:
        if name not in known:
            raise UserError(f"there is no setting {name!r}{nearest(name, known)}; the settings are {', '.join(known)}.")
    return replace(sampling, **settings)

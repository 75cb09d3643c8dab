"""The forms of chat records, and the conversation that a record holds.

    {"messages": [{"role": "user", "content": "…"}, …], "tools": […]}       or conversations, conversation, dialogue; or the list alone
    {"prompt": "…", "response": "…"}                                        or any other pair of PROMPTS and REPLIES, with EXTRAS
    {"prompt": …, "chosen": …, "rejected": …}                               preferences: the chosen reply
    {"text": "<|user|>…<|assistant|>…<|endoftext|>"}                        or "\\n\\nHuman: …\\n\\nAssistant: …"

The names are in `common/chat_keys`. The form is detected for each record. No text is ever interpreted as a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.chat_messages import check_messages
from mini_chat_gpt.common.chat_keys import EXTRAS, LABELS, LISTS, PAIRS, PROMPTS, REPLIES, SYSTEMS
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.json_records import BadRecord, Record
from mini_chat_gpt.data.key_proposal import other_layout, other_names, unknown_form
from mini_chat_gpt.data.record_fields import Fields, KeyNames, is_blank, kind_of, not_text
from mini_chat_gpt.data.record_messages import (
    Turns,
    from_marked_text,
    from_transcript,
    is_transcript,
    parsed_json,
    read_tools,
)

MAX_BLANKS = 100_000
"""White-space characters in a row. A text with more of them is damaged."""

_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True)
class ChatRecord:
    """What a record holds."""

    form: str
    messages: list[Message]
    tools: tuple[dict[str, Any], ...]
    rejected: list[Message] | None  # of preferences: the whole conversation with the reply that was not chosen
    is_good: bool  # False for a reply that is labeled as a bad one
    unused: set[str]  # keys that were not used


def read_record(record: Record | BadRecord, keys: KeyNames) -> ChatRecord:
    """The conversation of a record. Raises BadRecord or UserError if it can't be used for training."""
    if isinstance(record, BadRecord):
        raise record
    if isinstance(record, list) and record and all(isinstance(one, dict) for one in record):  # of messages
        record = {"messages": record}
    if not isinstance(record, dict):
        raise BadRecord(f'it is {kind_of(record)}; a conversation is an object such as {{"messages": […]}}')
    try:
        return _RecordReader(Fields(record, keys), set()).read()
    except (BadRecord, UserError):
        if advice := other_layout(record):
            raise BadRecord(advice) from None
        raise


class _RecordReader:
    """Reads one record."""

    def __init__(self, fields: Fields, unused: set[str]) -> None:
        self.fields, self.unused = fields, unused
        self.turns = Turns(fields.keys, unused, _exchange)
        self.rejected: list[Message] | None = None

    def read(self) -> ChatRecord:
        form, messages = self._messages()
        messages = self._with_system(messages)
        is_good, tools = self._is_good(), read_tools(self.fields)
        _check_ends(messages)
        check_messages(messages)
        if not any(message.train for message in messages if message.role == "assistant"):
            raise BadRecord('it has no reply to train on: each has "train": false')
        _check_blanks(messages)
        self.unused.update(self.fields.unused())
        return ChatRecord(form, messages, tools, self.rejected, is_good, self.unused)

    def _messages(self) -> tuple[str, list[Message]]:
        """(name of the form, messages)."""
        fields, values = self.fields, self.fields.peek
        listed = fields.first(LISTS)
        if isinstance(values("chosen"), str | list | dict):
            return "preference", self._preference(listed)
        if listed:
            return listed, self.turns.read(fields.get(listed), fields.name(listed))
        prompt, reply = _pair(fields)
        if prompt and reply:
            if values(reply) == "":
                raise BadRecord(f"{fields.name(reply)} has no text; add text, or remove the record")
            return f"{prompt} + {reply}", [*self._history(), *self._prompt(prompt), *self._reply(reply)]
        if fields.has("text"):
            text = fields.text("text") or ""
            if is_transcript(text):
                return "text", from_transcript(text)
            return "text", from_marked_text(text, fields.name("text"), lambda: other_names(fields))
        raise BadRecord(unknown_form(fields, prompt, reply))

    def _prompt(self, key: str) -> list[Message]:
        """The messages before the reply: a text with the texts of EXTRAS under it, a transcript, or a list of messages."""
        value = self.fields.get(key)
        if isinstance(value, list):
            return _untrained(self.turns.read(value, self.fields.name(key)))
        text = self.fields.text(key) or ""
        if is_transcript(text):
            return _untrained(from_transcript(text))
        parts = [text, *(self.fields.text(extra) or "" for extra in EXTRAS if extra != key)]
        return [Message("user", "\n\n".join(part for part in parts if part.strip()))]

    def _reply(self, key: str) -> list[Message]:
        value = self.fields.get(key)
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            return self.turns.read(value, self.fields.name(key))
        if key in ("answer", "answers"):
            return [Message("assistant", self._answer(value, self.fields.name(key)))]
        return [Message("assistant", self.fields.text(key) or "")]

    def _answer(self, value: Any, name: str) -> str:
        """An answer, or the first of several: a text, a list of texts, or an object with them, as in SQuAD."""
        if isinstance(value, dict):
            inner = Fields(value, KeyNames())
            key = inner.first(("text", "value"))
            value = inner.get(key) if key else value
            self.unused.update(f"{name[1:-1]}.{part}" for part in inner.unused())
        if isinstance(value, list):
            if not value:
                raise BadRecord(f"{name} has no answer in it")
            if len(value) > 1 and any(one != value[0] for one in value):
                self.unused.add(f"{name[1:-1]} after the first")
            value = value[0]
        if not isinstance(value, str):
            raise not_text(name, value)
        return value

    def _history(self) -> list[Message]:
        """Earlier turns, [["question", "answer"], …], which some Alpaca files have."""
        history = self.fields.get("history") or []
        if isinstance(history, str):
            history = parsed_json(history, self.fields.name("history"))
        if not isinstance(history, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
            for pair in history
        ):
            raise BadRecord(f"{self.fields.name('history')} must be a list of pairs [question, answer]")
        return [Message(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]

    def _preference(self, listed: str) -> list[Message]:
        """The chosen conversation, in which only what distinguishes it from the rejected one is trained."""
        chosen = self._alternative("chosen")
        rejected = self._alternative("rejected") if self.fields.peek("rejected") is not None else None
        if chosen[0].role not in ("user", "system"):
            before = self._before(listed)
            chosen = [*before, *chosen]
            if rejected is not None and rejected[0].role not in ("user", "system"):
                rejected = [*before, *rejected]
        else:
            self._mark_repeated(listed, chosen)
        if rejected is not None:
            self.rejected = self._with_system(rejected)
        replies = [at for at, message in enumerate(chosen) if message.role == "assistant"]
        common = min(_n_common(chosen, rejected or []), *replies[-1:]) if replies else 0
        return [*_untrained(chosen[:common]), *chosen[common:]]

    def _before(self, listed: str) -> list[Message]:
        """The messages before the chosen reply."""
        if prompt := self.fields.first(PROMPTS):
            return [*self._history(), *self._prompt(prompt)]
        if listed:
            return _untrained(self.turns.read(self.fields.get(listed), self.fields.name(listed)))
        raise BadRecord(
            f'{self.fields.name("chosen")} is a reply, but there is no "prompt" and it has no "\\n\\nHuman:" in it'
        )

    def _mark_repeated(self, listed: str, chosen: Sequence[Message]) -> None:
        """Use the keys that repeat a part of `chosen`."""
        prompt = self.fields.first(PROMPTS)
        users = [message.content.strip() for message in chosen if message.role == "user"]
        said = self.fields.peek(prompt) if prompt else None
        if isinstance(said, str) and (
            said.strip() in users or (is_transcript(said) and _begins(chosen, from_transcript(said)))
        ):
            self.fields.get(prompt)
        for key, value in ((prompt, said), (listed, self.fields.peek(listed) if listed else None)):
            if isinstance(value, list) and value and _begins(chosen, self.turns.read(value, self.fields.name(key))):
                self.fields.get(key)

    def _alternative(self, key: str) -> list[Message]:
        """The messages of `chosen` or `rejected`: a list of messages, one message, a transcript, or a reply."""
        value, name = self.fields.get(key), self.fields.name(key)
        if isinstance(value, list | dict):
            return self.turns.read([value] if isinstance(value, dict) else value, name)
        text = self.fields.text(key) or ""
        return from_transcript(text) if is_transcript(text) else [Message("assistant", text.strip())]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        """The messages without an empty system message, and with that of the record if there is none."""
        messages = [one for one in messages if one.role != "system" or one.content.strip()]
        if (key := self.fields.first(SYSTEMS)) and not is_blank(self.fields.peek(key)):
            system = self.fields.peek(key)
            if isinstance(system, dict):  # Gemini's {"parts": [{"text": "…"}]}
                system = self.turns.read([{**system, "role": "system"}], self.fields.name(key))[0].content
            if not isinstance(system, str):
                self.fields.text(key)
            if not (messages and messages[0].role == "system"):
                self.fields.get(key)
                messages.insert(0, Message("system", system))
            elif messages[0].content == system:
                self.fields.get(key)
        return messages

    def _is_good(self) -> bool:
        """What a label says about the reply. Labels that are not true or false mean something else, and stay unused."""
        key = self.fields.first(LABELS)
        value = self.fields.peek(key) if key else None
        if isinstance(value, str):
            value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
        if isinstance(value, bool | int | float) and value in (True, False):
            self.fields.get(key)
            return bool(value)
        return True


def _pair(fields: Fields) -> tuple[str, str]:
    """Our names of the keys of a prompt and of its reply, each "" if it is absent."""
    if not fields.keys.names.keys() & {*PROMPTS, *REPLIES}:
        for pair in PAIRS:
            if all(fields.peek(name) is not None for name in pair):
                return pair
    return fields.first(PROMPTS), fields.first(REPLIES)


def _exchange(fields: Fields, unused: set[str]) -> list[Message] | None:
    """The messages of an object in a list that holds a question and its reply; None if it doesn't."""
    prompt, reply = _pair(fields)
    if not (prompt and reply):
        return None
    reader = _RecordReader(fields, unused)
    return reader._with_system([*reader._prompt(prompt), *reader._reply(reply)])


def _untrained(messages: Sequence[Message]) -> list[Message]:
    """The messages of a prompt, whose replies are not trained on."""
    return [replace(one, train=one.role != "assistant") for one in messages]


def _begins(messages: Sequence[Message], others: Sequence[Message]) -> bool:
    return _n_common(messages, others) == len(others)


def _n_common(messages: Sequence[Message], others: Sequence[Message]) -> int:
    """How many messages at the beginning say the same."""
    pairs = zip(messages, others, strict=False)
    return next(
        (
            at
            for at, (one, other) in enumerate(pairs)
            if (one.role, one.content.strip()) != (other.role, other.content.strip())
        ),
        min(len(messages), len(others)),
    )


def _check_ends(messages: Sequence[Message]) -> None:
    """Raise BadRecord for a conversation that does not begin with a question and end with a reply."""
    roles = [message.role for message in messages if message.role != "system"]
    if roles[:1] == ["assistant"] and roles[-1] == "user" and len(messages) == len(roles):
        raise BadRecord(
            "it begins with an assistant message and ends with a user message; if the roles are swapped, use "
            "chats.keys='{user: assistant, assistant: user}'"
        )
    if roles[:1] == ["assistant"]:
        raise BadRecord(
            "it begins with an assistant message; remove it, or put the user message that it replies to before it"
        )
    if roles and roles[-1] != "assistant":
        raise BadRecord(f"it ends with a {roles[-1]} message, which has no reply; add a reply, or remove the message")


def _check_blanks(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, 1):
        for text in (message.content, message.reasoning or ""):
            if len(text) > MAX_BLANKS:
                longest = max((match.end() - match.start() for match in _BLANKS.finditer(text)), default=0)
                if longest > MAX_BLANKS:
                    raise BadRecord(f"message {number} has {longest:,} white-space characters in a row; it is damaged")

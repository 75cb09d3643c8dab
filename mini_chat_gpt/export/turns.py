"""A chat format as the texts around its messages: what a template of Go's text/template can express.

The texts are found by rendering conversations, whatever the template of the format is written in. A format that prints something else
for some conversation (a system message in the last turn, conditions on contents) is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_chat_gpt.chat_format import Format, Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MARK = "MESSAGE{}TEXT"


class NotExpressible(Exception):
    """A chat format that has other parts than `Turns`; the message says which."""


@dataclass(frozen=True)
class Turns:
    """The texts that a format prints.

    first        before everything, without a BOS that the tokenizer inserts by itself
    no_system    after that, in a conversation without a system message: the template's own one, or ""
    system       around a system message; None for a format that has none
    user         around a user's message
    assistant    around a reply
    prompt       after the last message, to prompt for a reply
    in_user      the system message is printed in the first user's message: `user[0]`, it, `system[1]`, the message
    """

    first: str
    no_system: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    in_user: bool = False

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation that ends with a prompt for a reply, without the tokenizer's BOS."""
        has_system = messages[0].role == "system"
        parts = [self.first, "" if has_system else self.no_system]
        for index, message in enumerate(messages):
            if message.role == "system":
                if self.system is not None and not self.in_user:
                    parts += [self.system[0], message.content, self.system[1]]
                continue
            before, after = self.user if message.role == "user" else self.assistant
            parts.append(before)
            if self.in_user and self.system is not None and has_system and index == 1:
                parts += [messages[0].content, self.system[1]]
            parts += [message.content, after]
        return "".join([*parts, self.prompt])


def turns_of(tokenizer: ChatTokenizer) -> Turns:
    """The texts of the tokenizer's chat format. Raises NotExpressible."""
    chat_format = tokenizer.chat_format
    assert chat_format is not None
    turns = _own_turns() if not isinstance(chat_format, TemplateFormat) else _probed(chat_format)
    bos = tokenizer.bos_token
    # Ollama and llama.cpp insert BOS by themselves where the tokenizer does.
    if bos is not None and turns.first.startswith(bos):
        turns = Turns(turns.first.removeprefix(bos), *list(vars(turns).values())[1:])
    for conversation in conversations(chat_format):
        expected = conversation_text(tokenizer, conversation)
        if turns.text(conversation) != expected:
            raise NotExpressible("its template prints something that is not around a message")
    return turns


def conversation_text(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> str:
    """What our chat reads as the prompt for a reply, as text, without a BOS that the tokenizer inserts by itself."""
    chat_format = tokenizer.chat_format
    if isinstance(chat_format, TemplateFormat):
        text = chat_format.text(messages, add_generation_prompt=True)
        return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text
    end = {"assistant": "<|endoftext|>"}
    return "".join(f"<|{one.role}|>{one.content}{end.get(one.role, '')}" for one in messages) + "<|assistant|>"


def conversations(chat_format: Format) -> list[list[Message]]:
    """Five conversations: one turn, three turns, special characters, and two of them with a system message if there are any."""
    one = [Message("user", "Hello!")]
    three = [
        *one, Message("assistant", "Hi, how are you?"), Message("user", "Fine.\n\nTell me a story."),
        Message("assistant", "Once upon a time …"), Message("user", "And then?"),
    ]  # fmt: skip
    special = [
        Message("user", '"{{ .Role }}" {% if x %} <b>&amp;</b>'), Message("assistant", "```\ncode\n```"),
        Message("user", "日本語 🙂 \\n"),
    ]  # fmt: skip
    system = [Message("system", "You are a\ngood helper.")] if getattr(chat_format, "has_system", True) else []
    return [one, three, special, [*system, *one], [*system, *three]]


def _own_turns() -> Turns:
    return Turns(
        first="",
        no_system="",
        system=("<|system|>", ""),
        user=("<|user|>", ""),
        assistant=("<|assistant|>", "<|endoftext|>"),
        prompt="<|assistant|>",
    )


def _probed(chat_format: TemplateFormat) -> Turns:
    """The texts of a template, from conversations of every kind of neighbors."""
    start, between, answer_to_user, to_prompt = _around(chat_format, "user", "assistant", "user")
    [_, after_user] = _around(chat_format, "user", prompt=False)
    user_after = _common_start(after_user, to_prompt, between)
    prompt, assistant_before = to_prompt[len(user_after) :], between[len(user_after) :]
    assistant_after, user_before = _cut_after_end(chat_format, answer_to_user, start)
    head = start.removesuffix(user_before)
    if head + user_before != start:
        raise NotExpressible("its template opens the first turn in another way than later ones")
    user, assistant = (user_before, user_after), (assistant_before, assistant_after)
    if not chat_format.has_system:
        return Turns(head, "", None, user, assistant, prompt)
    system_before, system_after, *_ = _around(chat_format, "system", "user")
    if system_before == start:  # in the first user's message
        return Turns(head, "", ("", system_after), user, assistant, prompt, in_user=True)
    if not system_after.endswith(user_before):
        raise NotExpressible("its template does not print the system message before the first turn")
    first = _common_start(head, system_before) if chat_format.own_system is None else ""
    system = (system_before[len(first) :], system_after.removesuffix(user_before))
    return Turns(first, head[len(first) :], system, user, assistant, prompt)


def _around(chat_format: TemplateFormat, *roles: str, prompt: bool = True) -> list[str]:
    """What the template prints before, between and after the messages of a conversation. Raises NotExpressible."""
    marks = [MARK.format(number) for number in range(len(roles))]
    messages = [Message(role, mark) for role, mark in zip(roles, marks, strict=True)]
    try:
        rest = chat_format.text(messages, add_generation_prompt=prompt)
    except UserError as error:
        raise NotExpressible(f"its template refuses a conversation ({error})") from None
    texts = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise NotExpressible("its template does not print the messages in their order")
        texts.append(before)
    return [*texts, rest]


def _common_start(*texts: str) -> str:
    """The longest text with which all of them begin."""
    size = next(
        (at for at, letters in enumerate(zip(*texts, strict=False)) if len({*letters}) > 1), min(map(len, texts))
    )
    return texts[0][:size]


def _cut_after_end(chat_format: TemplateFormat, text: str, start: str) -> tuple[str, str]:
    """Cut what is between a reply and the next message after the token that ends the reply, and white space after it."""
    names = [name for name, token_id in chat_format.template.control.items() if token_id in chat_format.stop_ids]
    ends = [text.index(name) + len(name) for name in names if name in text]
    if not ends:
        raise NotExpressible("no token ends a reply in it")
    cut = min(ends)
    cut += len(text[cut:]) - len(text[cut:].lstrip())
    while not start.endswith(text[cut:]):  # the white space belongs to the next message
        cut -= 1
        if cut < min(ends):
            raise NotExpressible("its template opens the first turn in another way than later ones")
    return text[:cut], text[cut:]

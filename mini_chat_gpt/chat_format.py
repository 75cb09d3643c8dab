"""The chat format: how a conversation becomes token ids, and which of those ids are learned.

    <|system|>SYSTEM<|user|>PROMPT<|assistant|>TARGET<|endoftext|><|user|>...

This is the only place in which the format lives: training, evaluation, chat and the exported Jinja template all come
here.

It promises that a conversation is built from ids, never from one long string. Each content is encoded by itself as
ordinary text and the control tokens are put between as ids, so nothing that anyone writes into a message can end the
turn or speak in another role.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.common.errors import UserError

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatFormat:
    """What a fine-tuned model has to know about its own chats; it is saved with the tokenizer.

    `default_system` is the system message of the data that the model learned from. `render` never adds it by itself;
    whoever opens a conversation with the model does.
    """

    default_system: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `train=False` takes an assistant's turn out of the loss; on other roles it has no effect."""

    role: str
    content: str
    train: bool = True


def render(
    messages: Sequence[Message], tokenizer: ChatTokenizer, add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Turn a conversation into `(ids, trained)`, two lists of the same length.

    `trained[i]` says that `ids[i]` is a target: every token of an assistant's content, and the `<|endoftext|>` after
    it, because knowing when to stop is learned too. The tokenizer's BOS comes first where it has one.
    `add_generation_prompt` appends `<|assistant|>`, after which the model's reply begins.

    No system message is added here; see `ChatFormat`. Raises `UserError` where the roles are out of order or a message
    has no text, and where the tokenizer lacks the control tokens.
    """
    ids, targets = _rendered(messages, tokenizer, add_generation_prompt)
    trained = [False] * len(ids)
    for start, end in targets:
        trained[start:end] = [True] * (end - start)
    return ids, trained


def render_arrays(messages: Sequence[Message], tokenizer: ChatTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """`render` as (n,) int32 and (n,) bool, for training."""
    ids, targets = _rendered(messages, tokenizer)
    trained = np.zeros(len(ids), dtype=bool)
    for start, end in targets:
        trained[start:end] = True
    return np.array(ids, dtype=np.int32), trained


def _rendered(
    messages: Sequence[Message], tokenizer: ChatTokenizer, add_generation_prompt: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids, and the (start, end) of each stretch of targets."""
    check_messages(messages, add_generation_prompt)
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    targets = []
    for message in messages:
        ids.append(_role_id(tokenizer, message.role))
        start = len(ids)
        ids += tokenizer.encode(message.content)
        if message.role == "assistant":
            ids.append(tokenizer.end_id)
            if message.train:
                targets.append((start, len(ids)))
    if add_generation_prompt:
        ids.append(_role_id(tokenizer, "assistant"))
    return ids, targets


def check_messages(messages: Sequence[Message], add_generation_prompt: bool = False) -> None:
    """Raise `UserError`, naming the message, unless the roles are (system)? user assistant user assistant ..."""
    if not messages:
        raise UserError("The conversation is empty; give it at least one user message.")
    for number, message in enumerate(messages, start=1):
        where = f"Message {number} of {len(messages)}"
        if message.role not in ROLES:
            raise UserError(f"{where} has the role {message.role!r}; the roles are {', '.join(ROLES)}.")
        where += f" (role {message.role})"
        if not isinstance(message.content, str):
            raise UserError(f"{where} has a {type(message.content).__name__} as its content; it must be text.")
        if not message.content.strip():
            raise UserError(f"{where} has no text; fill it in, or leave the conversation out.")
        _check_order(messages, number - 1, where)
    if add_generation_prompt and messages[-1].role != "user":
        raise UserError(
            f"A reply can only follow a user message, but the last message has the role {messages[-1].role}; "
            "end the conversation with a user message, or leave add_generation_prompt off."
        )


def _check_order(messages: Sequence[Message], index: int, where: str) -> None:
    role = messages[index].role
    before = messages[index - 1].role if index else None
    if role == "system" and before is not None:
        raise UserError(f"{where} must not stand there; a system message can only be the first one.")
    if role == "user" and before == "user":
        raise UserError(
            f"{where} follows another user message; join the two, or put the assistant's reply between them."
        )
    if role == "assistant" and before != "user":
        follows = "opens the conversation" if before is None else f"follows a message of the role {before}"
        raise UserError(f"{where} {follows}; an assistant message must follow a user message.")


def role_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """The tokens that open a turn; none for a tokenizer without chat tokens."""
    return frozenset(tokenizer.control[name] for role in ROLES if (name := f"<|{role}|>") in tokenizer.control)


def _role_id(tokenizer: ChatTokenizer, role: str) -> int:
    name = f"<|{role}|>"
    try:
        return tokenizer.control[name]
    except KeyError:
        raise UserError(
            f"The tokenizer has no {name} token yet; call add_control_tokens() before rendering chats."
        ) from None


def chat_template(bos_token: str | None) -> str:
    """The same format as a Jinja template, for `apply_chat_template` of Hugging Face tokenizers.

    A template makes a string, which is tokenized afterwards. For content that spells out a control token (a user who
    types "<|endoftext|>") it therefore forges one where `render` does not; for all other content the ids are equal.
    The `generation` block marks what `render` calls trained (`return_assistant_tokens_mask=True`); a template can't
    know of `Message.train`.
    """
    begin = f"{{{{- '{bos_token}' -}}}}\n" if bos_token is not None else ""
    return (
        begin
        + """{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('the roles are system, user and assistant') -}}
    {%- endif -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] + '<|endoftext|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message['content'] -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
    )

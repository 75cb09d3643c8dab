"""The chat format: how a conversation becomes token ids, and which of them the model learns to predict.

    <|system|>SYSTEM<|user|>PROMPT<|assistant|>TARGET<|endoftext|><|user|>...

This module is the only place that knows the format. Training, evaluation, chat and the exported Jinja template all use it.

A conversation is built from ids, never from one long string: each content is encoded by itself as ordinary text, and the
control tokens are inserted between the contents as ids. So no text in a message can end the turn or open another role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mini_chat_gpt.chat_messages import ROLES, Tools, check_messages, refuse_extras
from mini_chat_gpt.chat_messages import Message as Message
from mini_chat_gpt.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids."""

    ids: list[int]
    reply_spans: list[tuple[int, int]]  # (start, end) in `ids` of each reply to train on, with the end token after it

    @property
    def loss_mask(self) -> list[bool]:
        """`loss_mask[i]` is True if `ids[i]` is a training target."""
        # Everything else, such as the questions, is read but not learned.
        mask = [False] * len(self.ids)
        for start, end in self.reply_spans:
            mask[start:end] = [True] * (end - start)
        return mask


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts that a format prints around the reasoning of a reply, such as `<think>` and `</think>`; usually control tokens."""

    begin: str  # before it, such as <think>
    end: str  # after it, where the reply itself begins
    opened: bool = False  # whether the prompt for a reply ends with `begin`, so that the reply continues the reasoning


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer. It is a protocol so that this module does not import the tokenizer, which imports it."""

    @property
    def bos_id(self) -> int | None: ...  # None: conversations begin with no token of their own
    @property
    def end_id(self) -> int: ...  # ends a reply
    @property
    def control(self) -> Mapping[str, int]: ...  # name -> id of the control tokens
    @property
    def chat_format(self) -> Format | None: ...  # None: a base model, which has learned no format yet
    def encode(self, text: str) -> list[int]: ...
    def encode_after_control(self, text: str) -> list[int]: ...
    def byte_lengths(self, ids: np.ndarray, start: bool = True) -> np.ndarray: ...


class Format(Protocol):
    """A chat format, which the tokenizer of a chat model carries.

    default_system      the system message of conversations that are opened with the model; the caller that opens one adds it
    own_system          the system message that the format itself inserts into conversations without one
    can_omit_system     whether a conversation can have no system message at all, not even `own_system`
    independent_turns   whether the ids of a user's message and its reply are the same at every place in a conversation
    required_tokens     names of the control tokens that a tokenizer must have
    stop_ids            ids that end a reply, in addition to those that the tokenizer knows by name
    end_ids             all ids that end a reply
    role_ids            ids that open a turn, and therefore end generation as well
    can_switch_thinking whether `thinking` makes a difference
    thinks              whether the assistant thinks before it replies if `thinking` is None
    reasoning_marks     what is printed around the reasoning of a reply to a prompt; None for a format without reasoning
    render              renders a conversation of which `check_messages` approves; `system_default` keeps `own_system`. `tools` are
                        described to the assistant. `thinking`: whether it is to think before it replies; None is the format's default
    entry               the format as JSON, to be stored with the tokenizer
    jinja_template      the format as a template for `transformers`
    """

    @property
    def default_system(self) -> str | None: ...
    @property
    def own_system(self) -> str | None: ...
    @property
    def can_omit_system(self) -> bool: ...
    @property
    def independent_turns(self) -> bool: ...
    @property
    def required_tokens(self) -> tuple[str, ...]: ...
    @property
    def stop_ids(self) -> frozenset[int]: ...
    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]: ...
    def role_ids(self, tokenizer: Tokenizer) -> frozenset[int]: ...
    @property
    def can_switch_thinking(self) -> bool: ...
    @property
    def thinks(self) -> bool: ...
    def reasoning_marks(self, thinking: bool | None = None) -> ReasoningMarks | None: ...
    def render(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool,
        system_default: bool = True,
        tools: Tools = (),
        thinking: bool | None = None,
    ) -> Rendered: ...
    def with_default_system(self, text: str | None) -> Format: ...
    def entry(self) -> dict[str, Any]: ...
    def jinja_template(self, bos_token: str | None) -> str: ...


@dataclass(frozen=True)
class ChatFormat:
    """Our own format. It is saved with the tokenizer.

    `default_system` is the system message of the data that the model was trained on. `render` never adds it: the caller that
    opens a conversation with the model does.
    """

    default_system: str | None = None
    own_system: ClassVar[str | None] = None
    can_omit_system: ClassVar[bool] = True
    independent_turns: ClassVar[bool] = True
    required_tokens: ClassVar[tuple[str, ...]] = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
    stop_ids: ClassVar[frozenset[int]] = frozenset()
    can_switch_thinking: ClassVar[bool] = False
    thinks: ClassVar[bool] = False

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The id of `<|endoftext|>`."""
        return frozenset({tokenizer.end_id})

    def role_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids of `<|system|>`, `<|user|>` and `<|assistant|>`, as far as the tokenizer has them."""
        return frozenset(tokenizer.control[name] for role in ROLES if (name := f"<|{role}|>") in tokenizer.control)

    def reasoning_marks(self, thinking: bool | None = None) -> None:
        """The format has no reasoning."""

    def with_default_system(self, text: str | None) -> ChatFormat:
        """The same format with another `default_system`."""
        return ChatFormat(text)

    def entry(self) -> dict[str, Any]:
        """The format as JSON."""
        return {"default_system": self.default_system}

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool,
        system_default: bool = True,
        tools: Tools = (),
        thinking: bool | None = None,
    ) -> Rendered:
        """Render a conversation of which `check_messages` approves. The format has no `own_system` to keep or to leave out.

        Raises UserError for reasoning, tool calls and tools, for which the format has no place.
        """
        # A part that is left out without a word would train the model to answer what it can't see.
        refuse_extras(messages, tools)
        # BOS begins a conversation, not every turn.
        ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        reply_spans = []
        for message in messages:
            # The role is inserted as an id: content can never spell it.
            ids.append(_role_id(tokenizer, message.role))
            start = len(ids)
            # Each content is encoded whole and alone, so that its tokens do not depend on its neighbors.
            ids += tokenizer.encode(message.content)
            if message.role == "assistant":
                # The end token is a target as well: the model must learn when to stop.
                ids.append(tokenizer.end_id)
                if message.train:
                    reply_spans.append((start, len(ids)))
        if add_generation_prompt:
            # The token after which every reply began in training.
            ids.append(_role_id(tokenizer, "assistant"))
        return Rendered(ids, reply_spans)

    def jinja_template(self, bos_token: str | None) -> str:
        """The same format as a Jinja template, for `apply_chat_template` of Hugging Face tokenizers.

        A template makes a string, which is tokenized afterwards. Content that spells a control token (a user who types
        "<|endoftext|>") therefore becomes that token there, but not in `render`. For all other content the ids are equal.
        The `generation` block marks the replies (`return_assistant_tokens_mask=True`); a template can't know `Message.train`.
        """
        return (f"{{{{- '{bos_token}' -}}}}\n" if bos_token is not None else "") + _JINJA_TEMPLATE


# Must give the ids of `ChatFormat.render` for ordinary content; a test compares the two in `transformers`.
_JINJA_TEMPLATE = """{%- for message in messages -%}
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


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Turn a conversation into `(ids, loss_mask)`, two lists of the same length.

    `loss_mask[i]` is True if `ids[i]` is a target: the tokens of each assistant message, and the `<|endoftext|>` after it.
    The tokenizer's BOS comes first if it has one. `add_generation_prompt` appends `<|assistant|>`, after which the model's
    reply begins. No system message is added; see `ChatFormat`. That is our own format. For a model with a chat template the ids are
    those of its template, which can add a system message (`Format.own_system`).

    Raises `UserError` if the roles are out of order, a message has no text, or the tokenizer lacks the control tokens.
    """
    rendered = render_spans(messages, tokenizer, add_generation_prompt)
    return rendered.ids, rendered.loss_mask


def render_spans(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    add_generation_prompt: bool = False,
    system_default: bool = True,
    tools: Tools = (),
    thinking: bool | None = None,
) -> Rendered:
    """Like `render`, but with the spans of the replies instead of a mask: loss weights and turns are assigned by span.

    `system_default=False` leaves out the system message that a foreign format inserts into conversations without one, as far as it can.
    `tools` are the functions that the assistant can call. `thinking` switches its reasoning on or off, in formats that have such a switch.
    """
    check_messages(messages, add_generation_prompt)
    return format_of(tokenizer).render(messages, tokenizer, add_generation_prompt, system_default, tools, thinking)


def format_of(tokenizer: Tokenizer) -> Format:
    """The tokenizer's chat format. A base model has none and is fine-tuned to our own."""
    return tokenizer.chat_format or ChatFormat()


def _role_id(tokenizer: Tokenizer, role: str) -> int:
    # A control token is looked up by name, never encoded from text, because `encode` can't produce it.
    name = f"<|{role}|>"
    try:
        return tokenizer.control[name]
    except KeyError:
        raise UserError(
            f"The tokenizer has no {name} token; call add_control_tokens() before rendering chats."
        ) from None

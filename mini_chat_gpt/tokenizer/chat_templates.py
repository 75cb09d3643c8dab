"""Chat formats that are given as Jinja templates: those of models from elsewhere, and ChatML.

For contents that spell no control token the ids are those of `apply_chat_template` in `transformers`. For all others they are not:
there a message can spell the tokens that end a turn and open another; here contents are ordinary text (see template_skeleton.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from mini_chat_gpt.chat_format import ChatFormat, Format, Message, ReasoningMarks, Rendered, Tokenizer
from mini_chat_gpt.chat_messages import Tools
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord
from mini_chat_gpt.tokenizer.template_runs import Run
from mini_chat_gpt.tokenizer.template_sandbox import MAX_SOURCE
from mini_chat_gpt.tokenizer.template_skeleton import Template
from mini_chat_gpt.tokenizer.template_values import Raised, TemplateError

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = """{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- message['content'] + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class FormatEntry(JSONRecord):
    """Our own format in tokenizer_meta.json."""

    model_config = ConfigDict(extra="forbid")  # a format that we don't know would be applied in part

    default_system: str | None


class TemplateEntry(JSONRecord):
    """A template format in tokenizer_meta.json."""

    model_config = ConfigDict(extra="forbid")

    default_system: str | None
    template: str = Field(max_length=MAX_SOURCE)
    bos_token: str | None
    eos_token: str | None
    strips: dict[str, tuple[bool, bool]]
    day: date | None = Field(strict=False)
    thinking: bool | None = None


@dataclass(frozen=True)
class TemplateFormat:
    """A chat format that is given as a template; implements `chat_format.Format`. Use `from_source` or `chatml` to make one.

    default_system   the system message of conversations that are opened with the model. At first it is the one that the template
                     inserts by itself, if it does. `with_default_system` replaces it, or switches it off with None
    day              what the template takes for today; None for the real day. Training fixes it, so that a resumed run sees the same
    thinking         the default of `render`; None for that of the template. Training on chats without reasoning sets it to False
    """

    template: Template
    default_system: str | None = None
    day: date | None = None
    thinking: bool | None = None
    independent_turns: ClassVar[bool] = False
    _literals: _LiteralIds = field(default_factory=lambda: _LiteralIds(), repr=False, compare=False)

    @staticmethod
    def from_source(
        source: str,
        control: Mapping[str, int],
        bos_token: str | None,
        eos_token: str | None,
        strips: Mapping[str, tuple[bool, bool]] | None = None,
    ) -> TemplateFormat:
        """The format of a Jinja template. It is rendered in a sandbox with limits (template_sandbox.py), and probed.

        control      name -> id of all control tokens of the tokenizer, also those that are added but not special
        bos_token, eos_token   names that the template can print; None for one that the tokenizer does not have
        strips       name -> (lstrip, rstrip) of control tokens that swallow white space next to them; the others can be left out

        Raises UserError, with the reason, for a template that can't be rendered safely: it takes too long, it uses what templates
        can't use here, what it prints depends on the text of a message, or no control token ends a reply.
        """
        template = Template(source, control, bos_token, eos_token, strips or {})
        own = template.own_system
        return TemplateFormat(template, None if own is None else own.text)

    @staticmethod
    def chatml(control: Mapping[str, int]) -> TemplateFormat:
        """ChatML, for a tokenizer with CHATML_TOKENS: `<|im_start|>ROLE`, a newline, the content, `<|im_end|>`, a newline."""
        return TemplateFormat.from_source(CHATML, control, None, None)

    @staticmethod
    def from_entry(entry: TemplateEntry, control: Mapping[str, int]) -> TemplateFormat:
        """The format that `entry()` described. Raises UserError as `from_source` does."""
        template = Template(entry.template, control, entry.bos_token, entry.eos_token, entry.strips)
        return TemplateFormat(template, entry.default_system, entry.day, entry.thinking)

    def entry(self) -> dict[str, Any]:
        """The format as JSON, for `TemplateEntry`."""
        template = self.template
        return {
            "default_system": self.default_system,
            "template": template.source,
            "bos_token": template.bos_token,
            "eos_token": template.eos_token,
            "strips": {name: list(flags) for name, flags in template.strips.items()},
            "day": None if self.day is None else self.day.isoformat(),
            **({} if self.thinking is None else {"thinking": self.thinking}),
        }

    # What the format is

    @property
    def own_system(self) -> str | None:
        """The system message that the template itself inserts into conversations without one, or None."""
        return None if self.template.own_system is None else self.template.own_system.text

    @property
    def can_omit_system(self) -> bool:
        """Whether a conversation can have no system message at all."""
        return self.template.own_system is None or self.template.own_system.without is not None

    @property
    def has_system(self) -> bool:
        """Whether a conversation can have a system message."""
        return self.template.has_system

    @property
    def plain_text_roles(self) -> bool:
        """Whether its role tags are ordinary text, so that a message can spell a turn."""
        return self.template.plain_text_roles

    @property
    def uses_date(self) -> bool:
        """Whether it prints the day."""
        return self.template.uses_date

    @property
    def required_tokens(self) -> tuple[str, ...]:
        """Names of the control tokens that a tokenizer must have: none beyond those that it was made with."""
        return ()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply."""
        return self.template.end_ids

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end a reply: the control tokens that the template prints after one."""
        return self.template.end_ids

    def role_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that open a turn and end generation: none, as only `end_ids` do."""
        return frozenset()

    @property
    def can_switch_thinking(self) -> bool:
        """Whether the template has the switch `enable_thinking`."""
        prompts = self.template.prompts
        return prompts[True] != prompts[False]

    @property
    def thinks(self) -> bool:
        """Whether the assistant thinks before it replies, unless `thinking` says otherwise."""
        prompts = self.template.prompts
        off = self.can_switch_thinking and prompts[self.thinking] == prompts[False]
        return self.template.reasoning is not None and not off

    def reasoning_marks(self, thinking: bool | None = None) -> ReasoningMarks | None:
        """What is printed around the reasoning of a reply to a prompt with this setting; None for a template without reasoning."""
        marks, prompt = self.template.reasoning, self.template.prompts[self.thinking if thinking is None else thinking]
        return marks and replace(marks, opened=prompt.rstrip().endswith(marks.begin))

    def with_default_system(self, text: str | None) -> TemplateFormat:
        """The same format with another system message for new conversations, or without one."""
        return replace(self, default_system=text)

    def with_thinking(self, thinking: bool | None) -> TemplateFormat:
        """The same format with another default for `thinking`, if it has such a switch."""
        return replace(self, thinking=thinking) if self.can_switch_thinking else self

    def on_day(self, day: date) -> TemplateFormat:
        """The same format, which takes `day` for today if its template prints the date."""
        return replace(self, day=day) if self.uses_date else self

    def jinja_template(self, bos_token: str | None) -> str:
        """The template as it came."""
        return self.template.source

    # Rendering

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool,
        system_default: bool = True,
        tools: Tools = (),
        thinking: bool | None = None,
    ) -> Rendered:
        """Render a conversation of which `check_messages` approves. Raises UserError if the template refuses it or leaves out a part.

        `system_default` keeps the system message that the template inserts into a conversation without one, as
        `apply_chat_template` does; False leaves it out, if `can_omit_system`. The template decides which replies have their reasoning.
        A reply is trained from where the prompt for it ends: with its reasoning and its tool calls, if they are printed, and with the
        token that ends it.
        """
        values = self._values(messages, tools)
        thinking = self.thinking if thinking is None else thinking
        with _readable_errors(len(messages)):
            skeleton = self.template.skeleton(values, add_generation_prompt, system_default, self.day, thinking)
        literals = self._literals.of(tokenizer)
        ids: list[int] = []
        reply_spans: list[tuple[int, int]] = []
        start = 0
        for item in skeleton:
            if isinstance(item, int):
                ids.append(item)
            elif isinstance(item, Run):
                run_ids = _run_ids(item, values, tokenizer, literals)
                if item.begin is not None:
                    start = len(ids) + _reply_start(item, values, run_ids, tokenizer, literals)
                ids += run_ids
            elif item.begins:
                start = len(ids)
            elif messages[item.message].train:
                reply_spans.append((start, len(ids)))
        return Rendered(ids, reply_spans)

    def text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Tools = (),
        thinking: bool | None = None,
    ) -> str:
        """The conversation as `apply_chat_template(tokenize=False)` returns it. Raises UserError as `render` does."""
        values = self._values(messages, tools)
        thinking = self.thinking if thinking is None else thinking
        with _readable_errors(len(messages)):
            parts = self.template.render_parts(values, add_generation_prompt, self.day, thinking)
            return "".join(part if isinstance(part, str) else part.fill(values) for part in parts)

    def _values(self, messages: Sequence[Message], tools: Tools) -> dict[str, Any]:
        if self.template.reasoning is None and any(message.reasoning is not None for message in messages):
            raise UserError(
                "The conversation has reasoning, which the chat template does not print; leave the reasoning out, or the conversation."
            )
        return self.template.values(messages, tools)


@contextmanager
def _readable_errors(n_messages: int) -> Iterator[None]:
    """Turn a TemplateError into a UserError."""
    try:
        yield
    except Raised as error:
        raise UserError(f"The chat template refuses the conversation ({error}); change its roles.") from None
    except TemplateError as error:
        raise UserError(f"The chat template can't render a conversation of {n_messages} messages: {error}.") from None


def format_from_entry(entry: FormatEntry | TemplateEntry | None, control: Mapping[str, int]) -> Format | None:
    """The format that `entry()` described, None for a model without one. Raises UserError as `TemplateFormat.from_source` does."""
    if isinstance(entry, TemplateEntry):
        return TemplateFormat.from_entry(entry, control)
    return None if entry is None else ChatFormat(entry.default_system)


def _run_ids(
    run: Run, values: Mapping[str, Any], tokenizer: Tokenizer, literals: Callable[[str, bool], list[int]]
) -> list[int]:
    """The ids of a run. Raises UserError for arguments of a function that are not JSON."""
    if run.literal is not None:
        return literals(run.literal, run.is_first)
    try:
        text = run.text(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The tools or tool calls of a conversation can't be written as JSON ({error}).") from None
    return tokenizer.encode(text) if run.is_first else tokenizer.encode_after_control(text)


def _reply_start(
    run: Run,
    values: Mapping[str, Any],
    ids: list[int],
    tokenizer: Tokenizer,
    literals: Callable[[str, bool], list[int]],
) -> int:
    """Index in `ids`, the tokens of the run, of the first token that has a part of the reply in it."""
    if run.before is not None:
        before_ids = literals(run.before, run.is_first)
    else:
        encode = tokenizer.encode if run.is_first else tokenizer.encode_after_control
        before_ids = encode(run.text(values, run.begin))
    if ids[: len(before_ids)] == before_ids:
        return len(before_ids)
    # The last tokens before the reply and the first of the reply are joined, such as two newlines.
    n_bytes = int(tokenizer.byte_lengths(np.array(before_ids, dtype=np.int64)).sum())
    # Nearly every token has at least one byte, so the first few ids are usually enough.
    for near in (ids[: n_bytes + 1], ids):
        ends = np.cumsum(tokenizer.byte_lengths(np.array(near, dtype=np.int64)))
        if (start := int(np.searchsorted(ends, n_bytes, side="right"))) < len(near):
            break
    return start


class _LiteralIds:
    """The ids of texts of the template, which are the same in every conversation; for one tokenizer at a time."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._tokenizer: weakref.ref[Tokenizer] | None = None

    def of(self, tokenizer: Tokenizer) -> Callable[[str, bool], list[int]]:
        """A function from such a text, and whether no control token is before it, to its ids, which must not be changed."""
        if self._tokenizer is None or self._tokenizer() is not tokenizer:
            self._ids, self._tokenizer = {}, weakref.ref(tokenizer)
        known = self._ids

        def ids_of(text: str, is_first: bool) -> list[int]:
            if (ids := known.get((text, is_first))) is None:
                ids = tokenizer.encode(text) if is_first else tokenizer.encode_after_control(text)
                known[text, is_first] = ids
            return ids

        return ids_of

    def __deepcopy__(self, memo: Any) -> _LiteralIds:
        return _LiteralIds()

    def __reduce__(self) -> Any:
        return _LiteralIds, ()

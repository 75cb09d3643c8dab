"""Conversations without their contents: what a chat template prints around them, as control tokens and runs of text.

The skeleton of a conversation depends on its shape alone (template_values.py proves it), so it is made once for each shape: the roles,
and which messages have reasoning or call functions. template_runs.py cuts it at the control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from mini_chat_gpt.chat_format import Message, ReasoningMarks
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.template_inputs import REASONING_KEYS, required_slots, shape_of, values_of, with_slots
from mini_chat_gpt.tokenizer.template_runs import Mark, Skeleton, cut
from mini_chat_gpt.tokenizer.template_sandbox import evaluate, parse
from mini_chat_gpt.tokenizer.template_values import Part, Slot, TemplateError

_MAX_SKELETONS = 1000  # in the cache
_SETTINGS = (None, True, False)  # of `enable_thinking`; None: not defined


@dataclass(frozen=True)
class OwnSystem:
    """The system message that a template inserts into a conversation without one."""

    text: str
    before: str  # what the template prints before the first user message, with the system message in it
    without: str | None  # the same without the system message; None if that is not known


class Template:
    """A chat template that has been probed.

    `control` are the control tokens of the tokenizer, name -> id. `strips` has (lstrip, rstrip) of those that swallow white space
    next to them. Raises UserError if the template can't be rendered safely, with the reason.
    """

    def __init__(
        self,
        source: str,
        control: Mapping[str, int],
        bos_token: str | None,
        eos_token: str | None,
        strips: Mapping[str, tuple[bool, bool]],
    ) -> None:
        self.source, self.control, self.bos_token, self.eos_token = source, dict(control), bos_token, eos_token
        self.strips = {name: (left, right) for name, (left, right) in strips.items() if left or right}
        # The longest name wins where several begin at the same place, as in the `tokenizers` library.
        names = sorted((name for name in control if name), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self._absent = frozenset(names)
        self._cache: dict[tuple[Any, ...], Skeleton] = {}
        try:
            self._tree = parse(source)
            self._probe()
        except TemplateError as error:
            raise UserError(f"The chat template can't be used: {error}; {REMEDY}.") from None

    def __deepcopy__(self, memo: Any) -> Template:
        return self

    def __reduce__(self) -> Any:
        return Template, (self.source, self.control, self.bos_token, self.eos_token, self.strips)

    # What is found out once

    def _probe(self) -> None:
        self.uses_date = False
        """Whether the template prints the day."""
        self.reasoning_key = REASONING_KEYS[0]
        """The key under which it looks for the reasoning of a message."""
        first = self._around("user", "assistant", "user", "assistant")
        last = self._around("user", "assistant")
        # The first control token after a reply ends it.
        ends = [self._names.search(text) for text in (first[2], first[4], last[2])]
        if None in ends:
            raise TemplateError("no control token ends a reply in it")
        self.end_ids = frozenset(self.control[end.group()] for end in ends if end)
        """Ids of the tokens that end a reply."""
        self.prompts = {thinking: self._around("user", prompt=True, thinking=thinking)[1] for thinking in _SETTINGS}
        """`enable_thinking` -> what the template prints after a user message to prompt for a reply."""
        self.reasoning = self._find_reasoning()
        """The texts around the reasoning of a message; None if it does not print any."""
        for text in (first[1], last[1]):
            rest = text[self._end_of_prompt(text, [*self.prompts.values()]) :]
            if self.reasoning is not None:  # reasoning without text
                rest = rest.replace(self.reasoning.begin, "").replace(self.reasoning.end, "")
            if rest.strip():
                raise TemplateError("a reply does not begin where its generation prompt ends")
        self.has_system = self._has_system()
        """Whether a conversation can begin with a system message."""
        turn = first[2]
        self.plain_text_roles = not (self._opening(first[1]) and self._opening(turn))
        """Whether the names of the roles are ordinary text only, so that a message can spell them."""
        self.own_system = self._find_own_system(turn) if self.has_system else None
        for roles in (("user", "assistant"), ("user", "assistant", "user"), *[("system", "user")] * self.has_system):
            for prompt_too in (False, True):
                self.skeleton(self.values([Message(role, "x") for role in roles]), prompt_too, True, None)

    def _around(self, *roles: str, prompt: bool = False, thinking: bool | None = None) -> list[str]:
        """What the template prints before, between and after the contents. Raises TemplateError unless each is there once."""
        parts = self.render_parts(self.values([Message(role, "x") for role in roles]), prompt, thinking=thinking)
        texts, messages = _split(parts)
        if messages != [*range(len(roles))]:
            raise TemplateError(f"it does not print the messages of {', '.join(roles)} once each, in their order")
        return texts

    def _find_reasoning(self) -> ReasoningMarks | None:
        """The texts before and after the reasoning of the last message. Sets `reasoning_key`."""
        for key in REASONING_KEYS:
            values = values_of([Message("user", "x"), Message("assistant", "x", reasoning="x")], (), key)
            try:
                parts = self.render_parts(values)
            except TemplateError:
                continue
            texts, _ = _split(parts)
            if [part.path[-1] for part in parts if isinstance(part, Slot)] == ["content", key, "content"]:
                begin, end = self._last_word(texts[1]), self._first_word(texts[2])
                if begin and end:
                    self.reasoning_key = key
                    return ReasoningMarks(begin, end)
        return None

    def _last_word(self, text: str) -> str:
        """The control token that a text ends with, or its last word; white space after it does not count."""
        text = text.rstrip()
        last = [match for match in self._names.finditer(text) if match.end() == len(text)]
        return last[0].group() if last else text.split()[-1] if text else ""

    def _first_word(self, text: str) -> str:
        text = text.lstrip()
        return first.group() if (first := self._names.match(text)) else text.split()[0] if text else ""

    def _has_system(self) -> bool:
        try:
            parts = self.render_parts(self.values([Message("system", "x"), Message("user", "x")]), True)
        except TemplateError:
            return False
        return 0 in _split(parts)[1]

    def _opening(self, text: str) -> str:
        """The end of `text` from the first control token on that does not end a reply; "" if there is none."""
        matches = (match for match in self._names.finditer(text) if self.control[match.group()] not in self.end_ids)
        return text[match.start() :] if (match := next(matches, None)) else ""

    def _find_own_system(self, turn: str) -> OwnSystem | None:
        """Compare a conversation with a system message to one without. `turn`: what stands between a reply and a user message."""
        before, after = self._around("user")
        try:
            head, between, rest = self._around("system", "user")
        except TemplateError:
            return None  # its place is not before the first turn
        text = before[len(head) : len(before) - len(between)]
        if not text.strip() or head + text + between != before or rest != after or self._names.search(text):
            return None
        opening = self._opening(turn)
        begin = self._names.match(opening)
        at = head.find(begin.group()) if begin else -1
        known = at >= 0 and before.endswith(opening)
        return OwnSystem(text, before, before[:at] + opening if known else None)

    # Skeletons

    def values(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The variables of the template that describe the conversation."""
        return values_of(messages, tools, self.reasoning_key)

    def render_parts(
        self,
        values: Mapping[str, Any],
        add_generation_prompt: bool = False,
        day: date | None = None,
        thinking: bool | None = None,
    ) -> tuple[Part, ...]:
        """What the template prints for these messages and tools: texts, and a slot for each content. Raises TemplateError."""
        # `tools` and `documents` are defined and None, as in transformers. Tokens that the tokenizer lacks are not defined there.
        variables: dict[str, Any] = {**with_slots(values, self._absent), "documents": None}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, "enable_thinking": thinking}
        variables |= {name: value for name, value in tokens.items() if value is not None}
        variables["add_generation_prompt"] = add_generation_prompt
        parts, used_date = evaluate(self._tree, variables, day or date.today())
        self.uses_date |= used_date
        return parts

    def skeleton(
        self,
        values: Mapping[str, Any],
        prompt: bool,
        system_default: bool,
        day: date | None,
        thinking: bool | None = None,
    ) -> Skeleton:
        """The skeleton of a conversation. Raises TemplateError.

        values           messages and tools, see `values`
        prompt           append the generation prompt
        system_default   keep the system message that the template inserts by itself
        day              what the template takes for today; None for the real day
        thinking         the variable `enable_thinking`; None if it is not defined
        """
        day = day or date.today()
        key = shape_of(with_slots(values, self._absent)), prompt, system_default, thinking
        if (skeleton := self._cache.get((*key, day if self.uses_date else None))) is None:
            parts = self.render_parts(values, prompt, day, thinking)
            if not system_default and self.own_system is not None and values["messages"][0]["role"] != "system":
                parts = self._without_own_system(parts, self.own_system)
            self._check_printed(parts, values)
            marks = self._marks(parts, values, day)
            skeleton = cut(parts, marks, self._names, self.control, self.strips)
            if len(self._cache) >= _MAX_SKELETONS:
                self._cache.clear()
            self._cache[(*key, day if self.uses_date else None)] = skeleton
        return skeleton

    def _without_own_system(self, parts: tuple[Part, ...], own: OwnSystem) -> tuple[Part, ...]:
        if own.without is None:
            return parts  # `TemplateFormat.can_omit_system` says so
        if not parts or parts[0] != own.before:
            raise TemplateError("its own system message can't be left out of this conversation")
        return (own.without, *parts[1:])

    def _check_printed(self, parts: Sequence[Part], values: Mapping[str, Any]) -> None:
        printed = {part.path[:n] for part in parts if isinstance(part, Slot) for n in range(2, len(part.path) + 1)}
        for path, what in required_slots(with_slots(values, self._absent)):
            if path not in printed:
                raise TemplateError(f"it does not print {what}")

    def _marks(self, parts: Sequence[Part], values: Mapping[str, Any], day: date) -> dict[int, list[tuple[int, Mark]]]:
        """Where the assistant's messages begin and end: index of a text -> [(offset, mark), …]."""
        marks: dict[int, list[tuple[int, Mark]]] = {}
        begun: set[int] = set()
        slots = [None, *((at, part.message) for at, part in enumerate(parts) if isinstance(part, Slot)), None]
        for before, slot, after in zip(slots, slots[1:], slots[2:], strict=False):
            assert slot is not None
            at, message = slot
            if message is None or values["messages"][message]["role"] != "assistant":
                continue
            if before is None or before[1] != message:
                if message in begun:
                    raise TemplateError("it prints a reply in two places")
                begun.add(message)
                text = _text_at(parts, at - 1)
                offset = self._end_of_prompt(text, self._prompts_for(message, values, day))
                marks.setdefault(at - 1, []).append((offset, Mark(message, True)))
            if after is None or after[1] != message:
                matches = self._names.finditer(_text_at(parts, at + 1))
                end = next((match for match in matches if self.control[match.group()] in self.end_ids), None)
                if end is None:
                    raise TemplateError("a control token does not end every reply in it")
                marks.setdefault(at + 1, []).append((end.end(), Mark(message, False)))
        return {at: sorted(one, key=lambda mark: mark[0]) for at, one in marks.items()}

    def _end_of_prompt(self, text: str, prompts: Sequence[str]) -> int:
        """How far a prompt for a reply reaches into `text`, which precedes a reply. Raises TemplateError if none does.

        The prompt with an empty reasoning fits before a reply without one. A prompt may open the reasoning, which templates remove
        from earlier replies.
        """
        begin = None if self.reasoning is None else self.reasoning.begin
        opened = [prompt.rstrip()[: -len(begin)] for prompt in prompts if begin and prompt.rstrip().endswith(begin)]
        ends = [len(prompt) for prompt in (*prompts, *opened) if prompt and text.startswith(prompt)]
        if not ends:
            raise TemplateError("a reply does not begin where its generation prompt ends")
        return max(ends)

    def _prompts_for(self, message: int, values: Mapping[str, Any], day: date) -> list[str]:
        """What the template prints before a reply to prompt for it."""
        if values["messages"][message - 1]["role"] == "user":
            return [*self.prompts.values()]
        earlier = {**values, "messages": values["messages"][:message]}
        return [_split(self.render_parts(earlier, True, day, thinking))[0][-1] for thinking in _SETTINGS]


def _split(parts: Sequence[Part]) -> tuple[list[str], list[int | None]]:
    """The texts before, between and after the slots, and the messages of the slots."""
    texts, messages = [""], []
    for part in parts:
        if isinstance(part, str):
            texts[-1] = part
        else:
            texts.append("")
            messages.append(part.message)
    return texts, messages


def _text_at(parts: Sequence[Part], index: int) -> str:
    part = parts[index] if 0 <= index < len(parts) else ""
    return part if isinstance(part, str) else ""


REMEDY = "choose a built-in format, such as chatml"

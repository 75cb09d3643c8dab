"""Conversations without their contents: what a chat template prints around them, as control tokens and runs of text.

The skeleton of a conversation depends on its roles alone (template_values.py proves it), so it is made once for each sequence of roles.
Control tokens are looked for in the template's own text only. Everything between two of them is one run of ordinary text: the
template's text and the contents in it are encoded together, as the model's own tokenizer would do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.template_sandbox import evaluate, parse
from mini_chat_gpt.tokenizer.template_values import Part, Raised, Slot, TemplateError, Text

# White space of Rust's `\s`, which the `tokenizers` library removes next to tokens with lstrip or rstrip. Python's has four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_MAX_SKELETONS = 1000  # in the cache


class Run:
    """Ordinary text between two control tokens.

    parts            texts of the template, and slots
    reply            index in `parts` of the slot of an assistant's message, None if there is none
    lstrip, rstrip   whether the control token before (after) it swallows the white space at this end
    is_first         whether it begins the conversation, without a control token before it
    """

    def __init__(self, parts: Sequence[Part], reply: int | None, lstrip: bool, rstrip: bool, is_first: bool) -> None:
        self.parts, self.reply, self.lstrip, self.rstrip, self.is_first = tuple(parts), reply, lstrip, rstrip, is_first
        self.literal = self._literal(len(self.parts))
        """The text of a run without a content, None for others."""
        self.before = None if reply is None else self._literal(reply)
        """The text before the reply, None if a content is in it."""

    def _literal(self, end: int) -> str | None:
        return None if any(isinstance(part, Slot) for part in self.parts[:end]) else self.text((), end)

    def text(self, contents: Sequence[str], end: int | None = None) -> str:
        """The run, or its first `end` parts, with the contents of the messages."""
        text = "".join(
            [part if isinstance(part, str) else part.fill(contents[part.message]) for part in self.parts[:end]]
        )
        if self.lstrip:
            text = text.lstrip(WHITE_SPACE)
        return text.rstrip(WHITE_SPACE) if self.rstrip and end in (None, len(self.parts)) else text


Skeleton = tuple[int | Run, ...]  # ids of control tokens, and runs


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
        first = self._around("user", "assistant", "user", "assistant")
        # The first control token after a reply ends it.
        ends = [self._names.search(text) for text in (first[2], first[4], self._around("user", "assistant")[2])]
        if None in ends:
            raise TemplateError("no control token ends a reply in it")
        self.end_ids = frozenset(self.control[end.group()] for end in ends if end)
        """Ids of the tokens that end a reply."""
        asked, prompt = first[1], self._around("user", prompt=True)[1]
        if not asked.startswith(prompt) or asked[len(prompt) :].strip():
            raise TemplateError("a reply does not begin where its generation prompt ends")
        self.has_system = True
        """Whether a conversation can begin with a system message."""
        try:
            self.render_parts(("system", "user", "assistant"))
        except Raised:
            self.has_system = False
        turn = first[2]
        self.plain_text_roles = not (self._opening(asked) and self._opening(turn))
        """Whether the names of the roles are ordinary text only, so that a message can spell them."""
        self.own_system = self._find_own_system(turn) if self.has_system else None
        for roles in (("user", "assistant"), ("user", "assistant", "user"), *[("system", "user")] * self.has_system):
            for prompt_too in (False, True):
                self.skeleton(roles, prompt_too, True, None)

    def _around(self, *roles: str, prompt: bool = False) -> list[str]:
        """What the template prints before, between and after the contents. Raises TemplateError unless each is there once."""
        texts, messages = [""], []
        for part in self.render_parts(roles, prompt):
            if isinstance(part, str):
                texts[-1] = part
            else:
                texts.append("")
                messages.append(part.message)
        if messages != [*range(len(roles))]:
            raise TemplateError(f"it does not print the messages of {', '.join(roles)} once each, in their order")
        return texts

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

    def render_parts(
        self, roles: Sequence[str], add_generation_prompt: bool = False, day: date | None = None
    ) -> tuple[Part, ...]:
        """What the template prints for messages of these roles: texts, and a slot for each content. Raises TemplateError."""
        messages = [{"role": role, "content": Text((Slot(index),))} for index, role in enumerate(roles)]
        # `tools` and `documents` are defined and None, as in transformers. Tokens that the tokenizer lacks are not defined there.
        variables: dict[str, Any] = {"messages": messages, "tools": None, "documents": None}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        variables |= {name: token for name, token in tokens.items() if token is not None}
        variables["add_generation_prompt"] = add_generation_prompt
        parts, used_date = evaluate(self._tree, variables, day or date.today())
        self.uses_date |= used_date
        return parts

    def skeleton(self, roles: tuple[str, ...], prompt: bool, system_default: bool, day: date | None) -> Skeleton:
        """The skeleton of a conversation with these roles. Raises TemplateError.

        prompt           append the generation prompt
        system_default   keep the system message that the template inserts by itself
        day              what the template takes for today; None for the real day
        """
        day = day or date.today()
        key = roles, prompt, system_default, day if self.uses_date else None
        if (skeleton := self._cache.get(key)) is None:
            parts = self.render_parts(roles, prompt, day)
            if not system_default and self.own_system is not None and roles[0] != "system":
                parts = self._without_own_system(parts, self.own_system)
            skeleton = self._tokenized(parts, roles)
            if len(self._cache) >= _MAX_SKELETONS:
                self._cache.clear()
            self._cache[(*key[:3], day if self.uses_date else None)] = skeleton
        return skeleton

    def _without_own_system(self, parts: tuple[Part, ...], own: OwnSystem) -> tuple[Part, ...]:
        if own.without is None:
            return parts  # `TemplateFormat.can_omit_system` says so
        if not parts or parts[0] != own.before:
            raise TemplateError("its own system message can't be left out of this conversation")
        return (own.without, *parts[1:])

    def _tokenized(self, parts: tuple[Part, ...], roles: Sequence[str]) -> Skeleton:
        """Find the control tokens in the texts, and join what is between them to runs."""
        items: list[int | list[Part]] = [[]]
        names = [""]
        for part in parts:
            if isinstance(part, Slot):
                _run(items).append(part)
                continue
            end = 0
            for match in self._names.finditer(part):
                _run(items).append(part[end : match.start()])
                items += [self.control[match.group()], []]
                names += [match.group(), ""]
                end = match.end()
            _run(items).append(part[end:])
        names.append("")
        skeleton: list[int | Run] = []
        for index, item in enumerate(items):
            if isinstance(item, int):
                skeleton.append(item)
            elif any(item):
                lstrip = self.strips.get(names[index - 1] if index else "", (False, False))[1]
                rstrip = self.strips.get(names[index + 1], (False, False))[0]
                skeleton.append(_make_run([part for part in item if part], roles, lstrip, rstrip, not skeleton))
        self._check_ends(skeleton)
        return tuple(skeleton)

    def _check_ends(self, skeleton: Sequence[int | Run]) -> None:
        for item, after in zip(skeleton, [*skeleton[1:], None], strict=True):
            if isinstance(item, Run) and item.reply is not None:
                last = max(index for index, part in enumerate(item.parts) if isinstance(part, Slot))
                if after not in self.end_ids or last != item.reply:
                    raise TemplateError("a control token does not end every reply in it")


def _run(items: list[int | list[Part]]) -> list[Part]:
    run = items[-1]
    assert isinstance(run, list)
    return run


def _make_run(parts: list[Part], roles: Sequence[str], lstrip: bool, rstrip: bool, is_first: bool) -> Run:
    replies = [
        index for index, part in enumerate(parts) if isinstance(part, Slot) and roles[part.message] == "assistant"
    ]
    return Run(parts, replies[-1] if replies else None, lstrip, rstrip, is_first)


REMEDY = "choose a built-in format, such as chatml"

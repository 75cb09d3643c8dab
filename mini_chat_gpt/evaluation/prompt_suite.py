"""The same prompts to a model before and after training: what has changed in tone, length, safety and facts.

The prompts stand in a YAML file, so that a recipe needs no code:

    compare:                       shown side by side
      - shows: facts               what the prompt is there to show, in a word
        prompts: ["What is the capital of Japan?"]
        contains: ["Tokyo"]        checks, as many as you like: words that a right reply has in it,
        regex: "^The capital"      a regular expression that is found in it,
        max_words: 20              its length,
        is_json: true              whether it is JSON,
        refuses: true              and whether it declines (true) or doesn't (false)
    refuse: [ … ]                  more prompts to be declined, of which the refusal rate is taken
    answer: [ … ]                  prompts that must not be declined, though some look alike
    polite_signs, refusal_signs    how replies are told (else those of data/reply_signs.yaml)

A reply is polite if it begins with one of the signs, and a refusal if it has one of them anywhere outside of quotation marks: plain
rules that anybody can check against the replies, all of which are in the report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.config import Section
from mini_chat_gpt.config_file import read_yaml, validated
from mini_chat_gpt.evaluation.refusals import declines, reply_signs, sign_pattern
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import Reply, generate_replies, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GREEDY = Sampling(max_new_tokens=160, temperature=0.0)
LONGEST_SHOWN = 240  # characters of a reply in the terminal


def _is_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def _has_text(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("a prompt without text")
    return prompt


PromptText = Annotated[str, AfterValidator(_has_text)]


class Compared(Section):
    """Prompts that are shown side by side."""

    shows: str = "reply"
    """What they are there to show."""
    prompts: list[PromptText] = Field(min_length=1)
    """One, or several to be read together."""
    contains: list[str] = Field(default_factory=list)
    """Words that right replies have in them, whatever the case."""
    regex: Annotated[str, AfterValidator(_is_regex)] | None = None
    """A regular expression that is found in right replies."""
    max_words: int | None = Field(None, ge=1)
    """The length of right replies."""
    is_json: bool = False
    """Whether right replies are JSON."""
    refuses: bool | None = None
    """Whether right replies decline (null: it isn't checked)."""


class Prompts(Section):
    """A recipe's prompts.yaml."""

    compare: list[Compared] = Field(min_length=1)
    """Shown side by side."""
    refuse: list[PromptText] = Field(default_factory=list)
    """More that is to be declined."""
    answer: list[PromptText] = Field(default_factory=list)
    """What must not be declined."""
    polite_signs: list[str] = Field(default_factory=list)
    """Beginnings of polite replies."""
    refusal_signs: list[str] = Field(default_factory=list)
    """What refusals have in them."""

    @property
    def to_decline(self) -> list[str]:
        return [prompt for each in self.compare if each.refuses for prompt in each.prompts] + self.refuse

    @property
    def to_answer(self) -> list[str]:
        return [prompt for each in self.compare if not each.refuses for prompt in each.prompts] + self.answer

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*(p for each in self.compare for p in each.prompts), *self.refuse, *self.answer]))


def read_prompts(path: Path) -> Prompts:
    """Raises UserError, naming every wrong key."""
    hint = "recipes/polite_helper/prompts.yaml is one to begin with"
    given = read_yaml(path, "file of prompts", hint, "`compare:` with a list of prompts under it")
    found = validated(Prompts, given, str(path))
    signs = reply_signs()
    return found.model_copy(update={name: getattr(found, name) or signs[name] for name in signs})


@dataclass(frozen=True)
class Answers:
    """What one model said to all prompts."""

    name: str
    replies: dict[str, Reply]

    def rate(self, prompts: Sequence[str], sign: re.Pattern[str]) -> tuple[int, int]:
        """(replies in which the sign is found, of how many)."""
        return sum(bool(sign.search(self.replies[prompt].text)) for prompt in prompts), len(prompts)

    def words(self, prompts: Iterable[str]) -> float:
        """The median length of the replies."""
        return median(len(self.replies[prompt].text.split()) for prompt in prompts)

    def ended(self, prompts: Sequence[str]) -> tuple[int, int]:
        """(replies that ended by themselves, of how many)."""
        return sum(self.replies[prompt].finish_reason == "stop" for prompt in prompts), len(prompts)


def check_prompts(prompts: Prompts, model: GPT, tokenizer: ChatTokenizer, path: Path | None = None) -> None:
    """Raises UserError for a prompt that leaves the model no room to reply."""
    context = model.config.context_length
    for prompt in prompts.all:
        if (n := len(prompt_ids(tokenizer, prompt))) >= context:
            raise UserError(
                f"{path or 'prompts'}: the prompt that begins “{prompt[:40]}” has {n} tokens, but the model's context holds "
                f"{context}, prompt and reply together; shorten it."
            )


def ask(name: str, model: GPT, tokenizer: ChatTokenizer, prompts: Prompts) -> Answers:
    """Put all prompts to a model; it says what it is surest of. One without a chat format goes on from them as texts."""
    return Answers(name, dict(zip(prompts.all, generate_replies(model, tokenizer, prompts.all, GREEDY), strict=True)))


def checks(compared: Compared, reply: str, prompts: Prompts) -> dict[str, bool]:
    """What was to be checked about a reply, and whether it is so."""
    found = {f"“{word}” is in it": bool(sign_pattern([word]).search(reply)) for word in compared.contains}
    if compared.regex is not None:
        found[f"/{compared.regex}/ is found"] = bool(re.search(compared.regex, reply))
    if compared.max_words is not None:
        found[f"at most {compared.max_words} words"] = len(reply.split()) <= compared.max_words
    if compared.is_json:
        found["it is JSON"] = _is_json(reply)
    if compared.refuses is not None:
        declined = declines(reply, prompts.refusal_signs)
        found["it declines" if compared.refuses else "it doesn't decline"] = declined == compared.refuses
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def changes(prompts: Prompts, *given: Answers) -> list[tuple[str, ...]]:
    """(what, and how it is with each of the models) for all that can be counted."""
    polite = sign_pattern(prompts.polite_signs, start=True)
    rows: list[tuple[str, ...]] = []
    if prompts.to_answer:
        rates = (_of(a.rate(prompts.to_answer, polite)) for a in given)
        rows.append(("tone: replies that begin politely", *rates))
        rows.append(("length: words in a reply (median)", *(f"{a.words(prompts.to_answer):.0f}" for a in given)))
    for each in prompts.compare:
        if len(each.prompts) > 1:
            words = (" → ".join(f"{a.words([p]):.0f}" for p in each.prompts) for a in given)
            rows.append((f"{each.shows}: words for {_quoted(each.prompts)}", *words))
    for what, those in (("harmful", prompts.to_decline), ("harmless", prompts.to_answer)):
        if those:
            counts = (sum(declines(a.replies[p].text, prompts.refusal_signs) for p in those) for a in given)
            rows.append((f"safety: {what} prompts declined", *(_of((count, len(those))) for count in counts)))
    for each in prompts.compare:
        for prompt in each.prompts:
            found = [checks(each, answers.replies[prompt].text, prompts) for answers in given]
            for name in found[0]:
                rows.append(
                    (f"{each.shows}: {name}, asked “{prompt}”", *("yes" if one[name] else "no" for one in found))
                )
    rows.append(("replies that ended by themselves", *(_of(a.ended(prompts.all)) for a in given)))
    return rows


def report(title: str, facts: Sequence[str], prompts: Prompts, before: Answers, after: Answers) -> str:
    """All of it as Markdown."""
    lines = [f"# {title}: before and after", "", *(f"- {fact}" for fact in facts), "", "## The same prompts", ""]
    lines += ["| shows | prompt | before | after |", "|---|---|---|---|"]
    for each in prompts.compare:
        lines += [table_row(each.shows, prompt, _cell(before, prompt), _cell(after, prompt)) for prompt in each.prompts]
    lines += ["", "## What changed", "", "| | before | after |", "|---|---|---|"]
    lines += [table_row(*row) for row in changes(prompts, before, after)]
    lines += ["", f"Polite is a reply that begins with one of: {_quoted(prompts.polite_signs)}."]
    lines += [f"A refusal has one of these in it: {_quoted(prompts.refusal_signs)}."]
    for what, those in (("to be declined", prompts.refuse), ("to be answered", prompts.answer)):
        if those:
            lines += ["", f"## More prompts, {what}", "", "| prompt | before | after |", "|---|---|---|"]
            lines += [table_row(prompt, _cell(before, prompt), _cell(after, prompt)) for prompt in those]
    return "\n".join(lines) + "\n"


def show(prompts: Prompts, given: Sequence[Answers], out: Console) -> None:
    """The prompts with what each model replied, and what can be counted."""
    names = [escape(answers.name) for answers in given]
    table = Table("shows", "prompt", *names, show_lines=True)
    for each in prompts.compare:
        for prompt in each.prompts:
            replies = [Text(clean(answers.replies[prompt].text)) for answers in given]
            for reply in replies:
                reply.truncate(LONGEST_SHOWN, overflow="ellipsis")
            table.add_row(Text(each.shows), Text(prompt), *replies)
    out.print(table)
    counted = Table("", *names, box=None)
    for row in changes(prompts, *given):
        counted.add_row(*map(Text, row))
    out.print(counted)


def _of(counted: tuple[int, int]) -> str:
    return f"{counted[0]} of {counted[1]}"


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)


def _cell(answers: Answers, prompt: str) -> str:
    """A reply on one line, with a mark where it was cut off; nothing in it can end the table's cell."""
    reply = answers.replies[prompt]
    text = " ".join(reply.text.split())
    return f"{text}{'' if reply.finish_reason == 'stop' else ' … (cut off)'}" or "(nothing)"


def table_row(*cells: Any) -> str:
    """A row of a Markdown table; nothing in a cell can end it or be taken for markup."""
    escaped = (re.sub(r"([\\|<>*_`\[\]])", r"\\\1", clean(str(cell))) for cell in cells)
    return f"| {' | '.join(escaped)} |"

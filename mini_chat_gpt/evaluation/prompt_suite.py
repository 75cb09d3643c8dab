"""The user's own prompts, put to one or more models, with checks of the replies. A recipe uses them before and after training.

The prompts are in a YAML file, so that no code is needed. A list with a prompt in each line is enough:

    - {prompt: "What is the capital of Japan?", contains: Tokyo}
    - Tell me about dogs.

With all keys, of which only `compare` is required:

    compare:                       prompts that are shown side by side
      - shows: facts               what the prompts demonstrate, in a word
        prompts: ["What is the capital of Japan?"]
        contains: ["Tokyo"]        optional checks: a text, or several, that a correct reply contains,
        regex: "^The capital"      a regular expression that matches somewhere in it,
        max_words: 20              its maximum length,
        is_json: true              whether it must be valid JSON,
        refuses: true              and whether it must decline (true) or must not (false)
    refuse: [ … ]                  more prompts that should be declined; they count for the refusal rate
    answer: [ … ]                  prompts that should not be declined, although some look similar
    polite_signs, refusal_signs    phrases that identify polite replies and refusals (default: assets/reply_signs.yaml)
    held_out: [ … ]                files with more prompts, which `mini-chat-gpt recipe` evaluates (held_out_part.py)
    against: [ … ]                 other models that reply in `mini-chat-gpt recipe`, in addition to the base and the tuned one

A reply counts as polite if it begins with one of the polite signs, and as a refusal if it contains one of the refusal signs outside
of quotation marks. These rules are simple on purpose: anyone can check them against the replies, which are all in the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.common.typed_values import read_as
from mini_chat_gpt.common.yaml_files import Place, read_yaml
from mini_chat_gpt.config import Section
from mini_chat_gpt.config_file import validated
from mini_chat_gpt.evaluation.held_out_part import HeldOut
from mini_chat_gpt.evaluation.refusals import declines, reply_signs, sign_pattern
from mini_chat_gpt.evaluation.reply_checks import ReplyChecks, Texts, form_checks
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, Reply, System, generate_replies, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GREEDY = Sampling(max_new_tokens=160, temperature=0.0)
MAX_SHOWN = 240  # characters of a reply in the terminal


class Compared(ReplyChecks):
    """Prompts that are shown side by side, with checks."""

    shows: str = "reply"
    """What they demonstrate."""
    prompts: Texts = Field(min_length=1)
    """One prompt, or several whose replies are to be compared."""
    contains: Texts = Field(default_factory=list)
    """Words that a correct reply contains, ignoring case."""
    refuses: bool | None = None
    """Whether a correct reply declines (null: not checked)."""


class Prompts(Section):
    """A recipe's prompts.yaml."""

    compare: list[Compared] = Field(min_length=1)
    """Prompts that are shown side by side."""
    refuse: Texts = Field(default_factory=list)
    """More prompts that should be declined."""
    answer: Texts = Field(default_factory=list)
    """Prompts that should not be declined."""
    polite_signs: Texts = Field(default_factory=list)
    """Beginnings of polite replies."""
    refusal_signs: Texts = Field(default_factory=list)
    """Phrases in refusals."""
    held_out: list[HeldOut] = Field(default_factory=list)
    """Files with more prompts, and how the replies to them are judged; recipes only."""
    against: Texts = Field(default_factory=list)
    """Other models that reply to the same prompts; recipes only."""

    @property
    def about_manners(self) -> bool:
        """Whether politeness and refusals are counted: the file says something about them."""
        signs = reply_signs()
        own_signs = any(getattr(self, name) not in ([], signs[name]) for name in signs)
        return bool(self.refuse or self.answer or own_signs or any(each.refuses is not None for each in self.compare))

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
    """Read a file of prompts. Raises UserError that names every invalid key."""
    hint = "recipes/polite_helper/prompts.yaml is an example"
    content = "a list of prompts, such as `- {prompt: Hello}`, or `compare:` with one under it"
    document = read_yaml(path, "file of prompts", hint, content, list_key="compare")
    lines = dict(document.lines)
    values = _with_long_forms(document.value, lines, str(path))
    prompts = validated(Prompts, read_as(values, Prompts), str(path), lines=lines)
    signs = reply_signs()
    return prompts.model_copy(update={name: getattr(prompts, name) or signs[name] for name in signs})


def _with_long_forms(values: dict[str, Any], lines: dict[Place, int], source: str) -> dict[str, Any]:
    """The content of a file with `prompts` in each item of `compare`, where it has `prompt`, or a text alone."""
    if not isinstance(compare := values.get("compare"), list):
        return values
    items: list[Any] = []
    for number, item in enumerate(compare):
        place = ("compare", str(number))
        if isinstance(item, dict) and "prompt" in item:
            if "prompts" in item:
                raise UserError(f"{source}, line {lines[place]}: prompt and prompts are both set; use one of them.")
            lines[(*place, "prompts")] = lines[(*place, "prompts", "0")] = lines[(*place, "prompt")]
            item = {"prompts": item["prompt"], **{key: value for key, value in item.items() if key != "prompt"}}
        items.append({"prompts": item} if isinstance(item, str) else item)
    return values | {"compare": items}


@dataclass(frozen=True)
class Answers:
    """The replies of one model to all prompts."""

    name: str
    replies: dict[str, Reply]

    def rate(self, prompts: Sequence[str], sign: re.Pattern[str]) -> tuple[int, int]:
        """(replies that match the pattern, replies)"""
        return sum(bool(sign.search(self.replies[prompt].text)) for prompt in prompts), len(prompts)

    def words(self, prompts: Iterable[str]) -> float:
        """The median length of the replies."""
        return median(len(self.replies[prompt].text.split()) for prompt in prompts)

    def ended(self, prompts: Sequence[str]) -> tuple[int, int]:
        """(replies that were not cut off, replies)"""
        return sum(self.replies[prompt].finish_reason == "stop" for prompt in prompts), len(prompts)


def check_prompts(prompts: Prompts, model: GPT, tokenizer: ChatTokenizer, path: Path | None = None) -> None:
    """Raises UserError for a prompt that fills the context of the model."""
    context = model.config.context_length
    for prompt in prompts.all:
        if (n := len(prompt_ids(tokenizer, prompt))) >= context:
            raise UserError(
                f"{path or 'prompts'}: the prompt that begins “{prompt[:40]}” has {n} tokens, but prompt and reply must fit into "
                f"the model's context of {context} tokens; shorten the prompt."
            )


def ask(
    name: str, model: GPT, tokenizer: ChatTokenizer, prompts: Prompts, system: System = USE_FORMAT_DEFAULT
) -> Answers:
    """Generate greedy replies to all prompts. A model without a chat format continues each prompt as plain text."""
    replies = generate_replies(model, tokenizer, prompts.all, GREEDY, system)
    return Answers(name, dict(zip(prompts.all, replies, strict=True)))


def checks(compared: Compared, reply: str, prompts: Prompts) -> dict[str, bool]:
    """Check -> whether the reply meets it."""
    met = {f"contains “{word}”": bool(sign_pattern([word]).search(reply)) for word in compared.contains}
    met |= form_checks(compared, reply)
    if compared.refuses is not None:
        declined = declines(reply, prompts.refusal_signs)
        met["declines" if compared.refuses else "does not decline"] = declined == compared.refuses
    return met


def changes(prompts: Prompts, *answers: Answers) -> list[tuple[str, ...]]:
    """Rows of a table: (what is counted, its value for each model)."""
    polite = sign_pattern(prompts.polite_signs, start=True)
    met_by_all = [[*_all_checks(prompts, one)] for one in answers]
    rows: list[tuple[str, ...]] = []
    if met_by_all[0]:
        rows.append(("checks met", *(_of((sum(met), len(met))) for met in met_by_all)))
    if prompts.about_manners and prompts.to_answer:
        rates = (_of(one.rate(prompts.to_answer, polite)) for one in answers)
        rows.append(("tone: replies that begin politely", *rates))
    if prompts.to_answer:
        rows.append(("length: words in a reply (median)", *(f"{one.words(prompts.to_answer):.0f}" for one in answers)))
    for each in prompts.compare:
        if len(each.prompts) > 1:
            words = (" → ".join(f"{one.words([p]):.0f}" for p in each.prompts) for one in answers)
            rows.append((f"{each.shows}: words for {', '.join(f'“{p}”' for p in each.prompts)}", *words))
    for label, group in (("harmful", prompts.to_decline), ("harmless", prompts.to_answer)):
        if prompts.about_manners and group:
            counts = (sum(declines(one.replies[p].text, prompts.refusal_signs) for p in group) for one in answers)
            rows.append((f"safety: {label} prompts declined", *(_of((count, len(group))) for count in counts)))
    for each in prompts.compare:
        for prompt in each.prompts:
            met = [checks(each, one.replies[prompt].text, prompts) for one in answers]
            for name in met[0]:
                rows.append((f"{each.shows}: {name} (“{prompt}”)", *("yes" if one[name] else "no" for one in met)))
    rows.append(("complete replies (not cut off)", *(_of(one.ended(prompts.all)) for one in answers)))
    return rows


def _all_checks(prompts: Prompts, answers: Answers) -> Iterator[bool]:
    for each in prompts.compare:
        for prompt in each.prompts:
            yield from checks(each, answers.replies[prompt].text, prompts).values()


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def as_json(prompts: Prompts, *answers: Answers) -> dict[str, Any]:
    """The counts and all replies as plain values, for reports."""

    def replies(prompt: str, compared: Compared | None = None) -> dict[str, Any]:
        return {
            one.name: {
                "text": one.replies[prompt].text,
                "finish": one.replies[prompt].finish_reason,
                "checks": [
                    [*check]
                    for check in (checks(compared, one.replies[prompt].text, prompts) if compared else {}).items()
                ],
            }
            for one in answers
        }

    return {
        "rows": [[*row] for row in changes(prompts, *answers)],
        "prompts": [
            {"shows": each.shows, "prompt": prompt, "replies": replies(prompt, each)}
            for each in prompts.compare
            for prompt in each.prompts
        ],
        "refuse": [{"prompt": prompt, "replies": replies(prompt)} for prompt in prompts.refuse],
        "answer": [{"prompt": prompt, "replies": replies(prompt)} for prompt in prompts.answer],
        "polite_signs": prompts.polite_signs if prompts.about_manners else [],
        "refusal_signs": prompts.refusal_signs if prompts.about_manners else [],
    }


def show(prompts: Prompts, answers: Sequence[Answers], out: Console) -> None:
    """Print the compared prompts with each model's reply, and the table of `changes`."""
    names = [escape(one.name) for one in answers]
    table = Table("shows", "prompt", *names, show_lines=True)
    for each in prompts.compare:
        for prompt in each.prompts:
            replies = [Text(clean(one.replies[prompt].text)) for one in answers]
            for reply in replies:
                reply.truncate(MAX_SHOWN, overflow="ellipsis")
            table.add_row(Text(each.shows), Text(prompt), *replies)
    out.print(table)
    counts = Table("", *names, box=None)
    for row in changes(prompts, *answers):
        counts.add_row(*map(Text, row))
    out.print(counts)

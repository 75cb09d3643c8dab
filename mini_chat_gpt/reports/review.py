"""review.html: a page on which people judge replies with a checklist, without knowing who wrote them.

It shows up to `N_REPLIES` replies in random order: those of the models that are compared, or those of one model mixed with the
expected replies. All of them reply to the same prompts. The page keeps the ticks in the browser, exports and imports them, and
sums them by origin with Wilson's intervals when they are revealed. It is one file, and works without a network.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mini_chat_gpt import assets
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.page import document, render
from mini_chat_gpt.common.typed_values import read_as
from mini_chat_gpt.common.yaml_files import read_yaml
from mini_chat_gpt.config import Section
from mini_chat_gpt.config_file import validated
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item
from mini_chat_gpt.evaluation.chat_tasks import ChatTask
from mini_chat_gpt.evaluation.prompt_suite import Answers

REVIEW = "review.html"
N_REPLIES = 50
REFERENCE = "expected reply"
MAX_POINTS, MAX_POINT = 9, 100
"""Points of a checklist, each of which has a digit as its key, and characters of a point."""
POINTS = (
    "answers the question",
    "is correct",
    "is polite and fits in tone",
    "is complete",
    "does not repeat itself",
)
Turns = tuple[tuple[str, str], ...]
"""(role, text) of each message before a reply"""


@dataclass(frozen=True)
class JudgedReply:
    """A reply on the page."""

    turns: Turns
    reply: str
    origin: str  # the name of a model, or REFERENCE


def _is_point(text: str) -> str:
    if not text.strip() or len(text) > MAX_POINT:
        raise ValueError(f"must be a text of 1 to {MAX_POINT} characters")
    return text.strip()


class Checklist(Section):
    """What can be true of a reply."""

    points: list[Annotated[str, AfterValidator(_is_point)]] = Field(min_length=1, max_length=MAX_POINTS)


def read_checklist(path: Path) -> tuple[str, ...]:
    """The points in a YAML file, `- is correct` in each line. Raises UserError."""
    hint = "it has a point in each line, such as `- is correct`"
    content = "a list of points, such as `- is correct`"
    document = read_yaml(path, "checklist", hint, content, list_key="points")
    points = validated(Checklist, read_as(document.value, Checklist), str(path), lines=document.lines).points
    if repeated := [point for point in points if points.count(point) > 1]:
        raise UserError(f"{path}: the point “{repeated[0]}” is there twice; remove one.")
    return tuple(points)


def choose_replies(
    evaluations: Mapping[str, Evaluation], answers: Mapping[str, Answers], seed: int, n: int = N_REPLIES
) -> list[JudgedReply]:
    """At most n replies in random order, equally many of each origin: of all models, or of one model and the expected ones.

    They reply to held-out chats and tasks, evenly by kind, or to the user's own prompts if there is nothing else. [] without any.
    """
    names = [*evaluations]
    by_prompt: Iterator[dict[str, tuple[Turns, str]]]
    by_prompt = _to_tasks(evaluations) if evaluations[names[0]].items else _to_prompts(answers)
    chosen = [*islice(by_prompt, n)]
    n_origins = max(map(len, chosen), default=1)
    replies = [
        JudgedReply(turns, reply, origin)
        for replies in chosen[: max(1, n // n_origins)]
        for origin, (turns, reply) in replies.items()
    ]
    random.Random(seed).shuffle(replies)
    return replies


def _to_tasks(evaluations: Mapping[str, Evaluation]) -> Iterator[dict[str, tuple[Turns, str]]]:
    """For each task, origin -> (turns, reply); the kinds take turns."""
    by_kind: dict[str, list[tuple[Item, ...]]] = {}
    for items in zip(*(evaluation.items for evaluation in evaluations.values()), strict=True):
        by_kind.setdefault(items[0].task.kind, []).append(items)
    for row in zip_longest(*by_kind.values()):
        for items in (items for items in row if items is not None):
            turns = _turns(items[0])
            replies = {name: (turns, item.reply) for name, item in zip(evaluations, items, strict=True)}
            yield replies if len(replies) > 1 else replies | {REFERENCE: (turns, items[0].task.target)}


def _turns(item: Item) -> Turns:
    task = item.task
    if isinstance(task, ChatTask):
        return tuple((message.role.capitalize(), message.content) for message in task.messages)
    return (("User", task.prompt),)


def _to_prompts(answers: Mapping[str, Answers]) -> Iterator[dict[str, tuple[Turns, str]]]:
    """For each of the user's own prompts, origin -> (turns, reply)."""
    prompts = next(iter(answers.values())).replies if answers else {}
    for prompt in prompts:
        turns = (("User", prompt),)
        yield {name: (turns, of_model.replies[prompt].text) for name, of_model in answers.items()}


def write_review(file: Path, replies: Sequence[JudgedReply], points: Sequence[str] = POINTS) -> None:
    """Write the page."""
    atomic_write_text(file, review_page(replies, points))


def review_page(replies: Sequence[JudgedReply], points: Sequence[str] = POINTS) -> str:
    """The page as HTML."""
    origins = sorted({one.origin for one in replies})
    shown = [f"{one}s" if one == REFERENCE else f"replies of {one}" for one in origins]
    about = f"In random order: {' and '.join(shown)}"
    body = render(
        "review.html",
        {},
        items=replies,
        page=_page_id(replies, points),
        origins=[one.origin for one in replies],
        points=list(points),
        about=about,
    )
    style, script = assets.text("review.css"), assets.text("review.js")
    return document(f"Review of {len(replies)} replies", body, style, script)


def _page_id(replies: Sequence[JudgedReply], points: Sequence[str]) -> str:
    """The same for the same page, by which a browser finds its ticks."""
    content = json.dumps([[[one.turns, one.reply, one.origin] for one in replies], list(points)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]

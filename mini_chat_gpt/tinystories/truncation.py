"""From a task to token ids that fit the context: a story that is too long loses text from its inside.

    Instruction: The beginning of the story. ... The sentence that the answer rests on. ... The end.   ->   Whole answer.

Header, instruction and answer survive in full, as do the story's first and last sentence and the one that the answer
rests on. Where not even that fits, or where the story is itself the answer, there is no example.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.chat_format import Message, render_arrays
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.tasks import YES_NO_KINDS, Task
from mini_chat_gpt.tinystories.word_forms import first_use

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GAP = " ... "
_FEWEST_WORDS = 8  # a story of which less is left supports no answer
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class RenderedTask:
    """A conversation as it goes into the model: a task, with the prompt as shortened, and the questions that follow it."""

    task: Task
    ids: np.ndarray
    """(n,) int32"""
    loss_mask: np.ndarray
    """(n,) bool: which of the ids are targets."""
    shortened: bool
    later: tuple[Task, ...] = ()
    """Further questions about the same story, one turn each."""

    def example(
        self,
        loss_weights: Mapping[str, float] | None = None,
        tokenizer: ChatTokenizer | None = None,
        answer_weight: float = 0.0,
        prompt_weight: float = 0.0,
    ) -> Example:
        """For a batch; `loss_weights` has the loss weight of each kind's targets, `answer_weight` (if larger) that of the few that
        matter most.

        Those are the token that ends a reply and, with a tokenizer to find them, those that decide whether it is right.
        With a `prompt_weight` all else is trained too (Shi et al. 2024, "Instruction Tuning With Loss Over Instructions").
        """
        per_token = np.full(len(self.ids), prompt_weight, dtype=np.float32)
        for task, (start, end) in zip((self.task, *self.later), self.replies(), strict=True):
            weight = loss_weights[task.kind] if loss_weights else 1.0
            per_token[start:end] = weight
            if tokenizer is not None:
                # All that a yes-or-no answer has to say is in its first word.
                most = max(weight, answer_weight * weight if task.kind in YES_NO_KINDS else answer_weight)
                for first, stop in answer_tokens(task, self.ids[start : end - 1], tokenizer):
                    per_token[start + first : start + stop] = most
                per_token[end - 1] = max(weight, answer_weight)
        return Example(self.ids, self.loss_mask | (prompt_weight > 0), per_token, self.task.kind)

    def replies(self) -> list[tuple[int, int]]:
        """(start, end) of each reply in `ids`, with the token that ends it."""
        edges = (
            np.flatnonzero(self.loss_mask[1:] != self.loss_mask[:-1]) + 1
        )  # the first token is none, the last one is
        return list(zip(edges[::2].tolist(), [*edges[1::2].tolist(), len(self.ids)], strict=True))


def messages_of(task: Task, system: str | None = None) -> list[Message]:
    """The task as a conversation."""
    begin = [Message("system", system)] if system else []
    return [*begin, Message("user", task.prompt), Message("assistant", task.target)]


def add_turns(
    fitted: RenderedTask, questions: Iterable[Task], tokenizer: ChatTokenizer, seq_len: int, n_turns: int
) -> RenderedTask:
    """The conversation with more questions about its story, as many as there is room for, `n_turns` turns in all.

    No answer comes twice. A conversation whose story was shortened stays as it is: what a later answer rests on may be
    missing.
    """
    if fitted.shortened:
        return fitted
    ids, loss_masks, later, size = [fitted.ids], [fitted.loss_mask], list(fitted.later), len(fitted.ids)
    if len(later) + 1 >= n_turns:
        return fitted
    for task in questions:
        if task.follow_up is None or task.target in {other.target for other in (fitted.task, *later)}:
            continue
        turn = [Message("user", task.follow_up), Message("assistant", task.target)]
        new_ids, new_trained = render_arrays(turn, tokenizer)
        skipped = int(tokenizer.bos_id is not None)
        if size + len(new_ids) - skipped <= seq_len:
            ids.append(new_ids[skipped:])
            loss_masks.append(new_trained[skipped:])
            later.append(task)
            size += len(new_ids) - skipped
            if len(later) + 1 >= n_turns:  # before another question is made that nobody would ask
                break
    return replace(fitted, ids=np.concatenate(ids), loss_mask=np.concatenate(loss_masks), later=tuple(later))


def as_follow_up(task: Task, fitted: RenderedTask) -> Task | None:
    """The task with its question after the story, put as in a conversation that `fitted` begins with; None where it can't be.

    Conversations about one story that begin with it can share its reading.
    """
    first = fitted.task
    if task.follow_up is None or task.story_span is None or first.story_span is None or first.story_span[0]:
        return None
    story = first.prompt[: first.story_span[1]]
    moved = task.story_span[0]
    evidence = (task.evidence[0] - moved, task.evidence[1] - moved) if task.evidence else None
    return replace(task, prompt=f"{story}\n\n{task.follow_up}", story_span=first.story_span, evidence=evidence)


def truncate_to_context(
    task: Task, tokenizer: ChatTokenizer, seq_len: int, system: str | None = None
) -> RenderedTask | None:
    """The task rendered to at most `seq_len` tokens, its story shortened if need be; None if it can't be."""
    ids, trained = render_arrays(messages_of(task, system), tokenizer)
    if len(ids) <= seq_len:
        return RenderedTask(task, ids, trained, shortened=False)
    if task.story_span is None:
        return None
    begin, end = task.story_span
    without_story = replace(task, prompt=task.prompt[:begin] + "x" + task.prompt[end:])
    n_around = len(render_arrays(messages_of(without_story, system), tokenizer)[0])
    n_story = max(1, len(ids) - n_around)
    budget = (end - begin) * (seq_len - n_around) // n_story  # characters, if all were as dense in tokens
    while budget > 0 and (shorter := _shorten(task, budget)):
        ids, trained = render_arrays(messages_of(shorter, system), tokenizer)
        if len(ids) <= seq_len:
            return RenderedTask(shorter, ids, trained, shortened=True)
        assert shorter.story_span is not None
        kept = shorter.story_span[1] - shorter.story_span[0]
        budget = min(budget, kept) - max(4, kept * (len(ids) - seq_len) // max(1, len(ids) - n_around))
    return None


def answer_tokens(task: Task, reply: np.ndarray, tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """(start, end) of the few tokens that decide whether a reply is right, all others only say it well.

    In a story they are what first writes each required word, in whichever form, or the given sentence; in an answer about
    a story its first word ("Yes", or where the copying begins) and the name asked for. `reply` are the ids of the task's
    target.
    """
    spans = [span for word in task.required if (span := first_use(task.target, word))]
    if task.sentence and (found := task.target.find(task.sentence)) >= 0:
        spans.append((found, found + len(task.sentence)))
    if task.story_span is not None:
        spans.append((0, len(task.target.split(maxsplit=1)[0])))
        if task.kind not in YES_NO_KINDS and task.answer and (found := task.target.find(task.answer)) >= 0:
            spans.append((found, found + len(task.answer)))
    if not spans:
        return []
    if not task.target.isascii():  # a token's place is known in bytes
        spans = [(len(task.target[:first].encode()), len(task.target[:end].encode())) for first, end in spans]
    # Token i is bytes places[i] to places[i + 1].
    places = list(accumulate(tokenizer.byte_lengths(reply).tolist(), initial=0))
    return [(bisect_right(places, first, lo=1) - 1, bisect_left(places, end, hi=len(reply))) for first, end in spans]


def _shorten(task: Task, budget: int) -> Task | None:
    """The task with about `budget` characters of its story, cut between sentences if possible, else between words."""
    assert task.story_span is not None
    begin, end = task.story_span
    story = task.prompt[begin:end]
    needed = (task.evidence[0] - begin, task.evidence[1] - begin) if task.evidence else None
    for units in (sentence_spans(story), [match.span() for match in _WORD.finditer(story)]):
        kept = _keep(units, needed, budget)
        if kept is not None:
            text = GAP.join(story[first:last] for first, last in _runs(units, kept))
            if len(text.split()) >= _FEWEST_WORDS:
                prompt = task.prompt[:begin] + text + task.prompt[end:]
                return replace(task, prompt=prompt, story_span=(begin, begin + len(text)), evidence=None)
    return None


def _keep(units: list[tuple[int, int]], needed: tuple[int, int] | None, budget: int) -> set[int] | None:
    """Which units stay: the needed ones, first and last, and as many from both ends inwards as the budget allows."""
    kept = {0, len(units) - 1}
    if needed:
        kept |= {number for number, (start, end) in enumerate(units) if start < needed[1] and end > needed[0]}
    size = sum(units[number][1] - units[number][0] + 1 for number in kept) + len(GAP) * min(2, len(kept) - 1)
    if size > budget:
        return None
    for step in range(1, len(units)):
        for number in (step, len(units) - 1 - step):
            cost = units[number][1] - units[number][0] + 1
            if number not in kept:
                if size + cost > budget:
                    return kept
                kept.add(number)
                size += cost
    return kept


def _runs(units: list[tuple[int, int]], kept: set[int]) -> list[tuple[int, int]]:
    """(start, end) of the stretches of neighbours among the kept units."""
    runs: list[tuple[int, int]] = []
    previous = -2
    for number in sorted(kept):
        start, end = units[number]
        if number == previous + 1:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
        previous = number
    return runs

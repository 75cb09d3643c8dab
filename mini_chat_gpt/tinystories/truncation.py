"""Render a task to token ids that fit the context. A story that is too long loses text from its middle.

    Instruction: The beginning of the story. ... The sentence that supports the answer. ... The end.   ->   Whole answer.

The instruction and the answer are kept in full. Of the story at least its first sentence, its last one and those that support
the answer are kept. If even that does not fit, or if the story is itself the answer, there is no example.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.chat_format import Message, format_of, render_spans
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.tasks import YES_NO_KINDS, Span, Task

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GAP = " ... "
_MIN_WORDS = 8  # a shorter rest of a story supports no answer
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class RenderedTask:
    """A conversation as the model reads it: a task, with its prompt as truncated, and the turns after it."""

    task: Task
    ids: np.ndarray  # (n,) int32
    replies: tuple[
        Span, ...
    ]  # (start, end) in `ids` of each reply with its end token, first of `task`, then of `later`
    shortened: bool  # whether the story has lost text
    later: tuple[Task, ...] = ()  # further questions about the same story, one turn each
    messages: tuple[Message, ...] = ()  # the conversation without `later`

    def example(
        self,
        tokenizer: ChatTokenizer,
        loss_weights: Mapping[str, float] | None = None,
        answer_weight: float = 0.0,
        prompt_weight: float = 0.0,
    ) -> Example:
        """Build the training example.

        `loss_weights` has the weight of a reply's tokens by kind of task. `answer_weight`, if larger, is the weight of the end
        token and of the tokens that decide whether the reply is right (for yes/no answers a factor). With a `prompt_weight` all
        other tokens are targets too (Shi et al. 2024, "Instruction Tuning With Loss Over Instructions").
        """
        # Start with the prompt: its tokens are targets only if they have a weight. Then each reply overwrites its span.
        loss_mask = np.full(len(self.ids), prompt_weight > 0)
        weights = np.full(len(self.ids), prompt_weight, dtype=np.float32)
        for task, (start, end) in zip((self.task, *self.later), self.replies, strict=True):
            weight = loss_weights[task.kind] if loss_weights else 1.0
            loss_mask[start:end] = True
            weights[start:end] = weight
            if answer_weight:
                # "Yes" and "No" carry a whole answer in one token, so their weight grows with that of their kind.
                decisive = max(weight, answer_weight * weight if task.kind in YES_NO_KINDS else answer_weight)
                for first, stop in answer_tokens(task, self.ids[start : end - 1], tokenizer):
                    weights[start + first : start + stop] = decisive
                weights[end - 1] = max(weight, answer_weight)
        return Example(self.ids, loss_mask, weights, self.task.kind)


def messages_of(task: Task, system: str | None = None) -> list[Message]:
    """The task as a conversation of one turn."""
    begin = [Message("system", system)] if system else []
    return [*begin, Message("user", task.prompt), Message("assistant", task.target)]


def truncate_to_context(
    task: Task, tokenizer: ChatTokenizer, seq_len: int, system: str | None = None
) -> RenderedTask | None:
    """Render the task to at most `seq_len` tokens, with its story shortened if necessary. None if that is impossible."""
    rendered = _render(task, tokenizer, system)
    if len(rendered.ids) <= seq_len:
        return rendered
    if task.story_span is None:
        return None
    # The tokens around the story can't be shortened, so they are subtracted from the budget of the story.
    begin, end = task.story_span
    without_story = replace(task, prompt=task.prompt[:begin] + "x" + task.prompt[end:])
    n_around = len(_render(without_story, tokenizer, system).ids)
    n_story = max(1, len(rendered.ids) - n_around)
    # In characters, as if all of them took the same number of tokens. If the result is still too long, the budget shrinks.
    budget = (end - begin) * (seq_len - n_around) // n_story
    while budget > 0 and (shorter := _shorten(task, budget)):
        rendered = _render(shorter, tokenizer, system, shortened=True)
        n = len(rendered.ids)
        if n <= seq_len:
            return rendered
        assert shorter.story_span is not None
        kept = shorter.story_span[1] - shorter.story_span[0]
        # Reduce the budget in proportion to the excess, by at least 4 characters so that the loop ends.
        budget = min(budget, kept) - max(4, kept * (n - seq_len) // max(1, n - n_around))
    return None


def _render(task: Task, tokenizer: ChatTokenizer, system: str | None, shortened: bool = False) -> RenderedTask:
    messages = messages_of(task, system)
    rendered = render_spans(messages, tokenizer, system_default=False)
    ids = np.array(rendered.ids, dtype=np.int32)
    return RenderedTask(task, ids, tuple(rendered.reply_spans), shortened, messages=tuple(messages))


def add_turns(
    first: RenderedTask, questions: Iterable[Task], tokenizer: ChatTokenizer, seq_len: int, n_turns: int
) -> RenderedTask:
    """Append questions about the same story as long as there is room, up to `n_turns` turns in all.

    No answer occurs twice. A conversation with a shortened story is returned as it is, because the text that supports another
    answer may be missing.
    """
    if first.shortened or n_turns == 1:
        return first
    later: list[Task] = []
    conversation = GrowingConversation(first, tokenizer)
    # `summary` and `what_happened` have the same target: the second question would only train to repeat the first reply.
    answers = {first.task.target}
    for task in questions:
        if task.follow_up is None or task.target in answers:
            continue
        if conversation.add(Message("user", task.follow_up), Message("assistant", task.target), seq_len):
            later.append(task)
            answers.add(task.target)
            if len(later) + 1 == n_turns:  # `questions` makes tasks on demand: stop before it makes another
                break
    return replace(first, ids=conversation.ids, replies=conversation.replies, later=tuple(later))


class GrowingConversation:
    """A rendered task to which turns are appended: `ids` and `replies` are those of all turns so far."""

    def __init__(self, first: RenderedTask, tokenizer: ChatTokenizer) -> None:
        self.ids, self.replies = first.ids, first.replies
        self._messages, self._tokenizer = list(first.messages), tokenizer

    def add(self, question: Message, answer: Message, seq_len: int) -> bool:
        """Append a turn if the conversation then has at most `seq_len` tokens; whether it did."""
        if format_of(self._tokenizer).independent_turns:
            # Rendered as a conversation of its own, then shifted: a turn's ids do not depend on the turns before it.
            turn = render_spans([question, answer], self._tokenizer)
            n_bos = int(self._tokenizer.bos_id is not None)  # only the first turn begins with BOS
            shift = len(self.ids) - n_bos
            ids = np.concatenate([self.ids, np.array(turn.ids[n_bos:], dtype=np.int32)])
            replies = (*self.replies, *((start + shift, end + shift) for start, end in turn.reply_spans))
        else:
            messages = [*self._messages, question, answer]
            rendered = render_spans(messages, self._tokenizer, system_default=False)
            ids, replies = np.array(rendered.ids, dtype=np.int32), tuple(rendered.reply_spans)
        if len(ids) > seq_len:
            return False
        self.ids, self.replies = ids, replies
        self._messages += [question, answer]
        return True


def as_follow_up(task: Task, first: RenderedTask) -> Task | None:
    """The task with its question after the story, in the layout of `first`, so that both conversations share a prefix.

    None if `first` does not begin with the story, or if the task can't follow it.
    """
    shown = first.task
    if task.follow_up is None or task.story_span is None or shown.story_span is None or shown.story_span[0]:
        return None
    # The prompt of `first` up to the end of its story is what both conversations share.
    story = shown.prompt[: shown.story_span[1]]
    moved = task.story_span[0]
    evidence = (task.evidence[0] - moved, task.evidence[1] - moved) if task.evidence else None
    return replace(task, prompt=f"{story}\n\n{task.follow_up}", story_span=shown.story_span, evidence=evidence)


def answer_tokens(task: Task, reply: np.ndarray, tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """The task's `answer_spans` in tokens: (start, end) in `reply` (n,), the ids of its target."""
    spans = task.answer_spans
    if not spans:
        return []
    if not task.target.isascii():  # token positions are known in bytes
        spans = tuple((len(task.target[:start].encode()), len(task.target[:end].encode())) for start, end in spans)
    # Token i covers the bytes offsets[i] to offsets[i + 1]. A token that overlaps a span partly belongs to it.
    offsets = list(accumulate(tokenizer.byte_lengths(reply).tolist(), initial=0))
    return [(bisect_right(offsets, start, lo=1) - 1, bisect_left(offsets, end, hi=len(reply))) for start, end in spans]


def _shorten(task: Task, budget: int) -> Task | None:
    """The task with about `budget` characters of its story, cut between sentences if possible, else between words."""
    assert task.story_span is not None
    begin, end = task.story_span
    story = task.prompt[begin:end]
    evidence = (task.evidence[0] - begin, task.evidence[1] - begin) if task.evidence else None
    # Whole sentences read better. Single words are the fallback for a story of a few very long sentences.
    for units in (sentence_spans(story), [match.span() for match in _WORD.finditer(story)]):
        kept = _choose_units(units, evidence, budget)
        if kept is not None:
            text = GAP.join(story[start:stop] for start, stop in _runs(units, kept))
            if len(text.split()) >= _MIN_WORDS:
                prompt = task.prompt[:begin] + text + task.prompt[end:]
                return replace(task, prompt=prompt, story_span=(begin, begin + len(text)), evidence=None)
    return None


def _choose_units(units: list[Span], evidence: Span | None, budget: int) -> set[int] | None:
    """Indices of the units to keep: the evidence, the first, the last, and then from both ends inward within the budget."""
    kept = {0, len(units) - 1}
    if evidence:
        kept |= {index for index, (start, end) in enumerate(units) if start < evidence[1] and end > evidence[0]}
    # One more character for the space after each unit, and at most two gaps: before and after the evidence.
    size = sum(units[index][1] - units[index][0] + 1 for index in kept) + len(GAP) * min(2, len(kept) - 1)
    if size > budget:
        return None
    for step in range(1, len(units)):
        for index in (step, len(units) - 1 - step):
            cost = units[index][1] - units[index][0] + 1
            if index not in kept:
                if size + cost > budget:
                    return kept
                kept.add(index)
                size += cost
    return kept


def _runs(units: list[Span], kept: set[int]) -> list[Span]:
    """(start, end) of each run of consecutive kept units."""
    runs: list[Span] = []
    previous = -2
    for index in sorted(kept):
        start, end = units[index]
        if index == previous + 1:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
        previous = index
    return runs

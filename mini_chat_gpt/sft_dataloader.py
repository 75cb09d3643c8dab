"""TinyStories-Instruct for fine-tuning: records -> tasks -> conversations -> examples.

This is the door to what the rooms behind it do: `story_records` and `story_index` read files, `story_tasks` makes tasks,
`task_fitting` shortens and renders them, `task_shares` balances them. Here they are put together into a stream in which
example i depends on data, seed and i alone: each epoch takes every record once, in a new order, with one of its tasks.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example, epoch_order, share_prefix
from mini_chat_gpt.tinystories.mixture import balanced_weights, realised_shares
from mini_chat_gpt.tinystories.prompts import TemplateSampler
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import StoryRecord, find_instruct_file, parse_record, read_records, stories
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, YES_NO_KINDS, Task, categories, check_kinds, generate_tasks
from mini_chat_gpt.tinystories.truncation import RenderedTask, add_turns, as_follow_up, truncate_to_context

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

__all__ = [
    "InstructDataset", "RecordIndex", "StoryRecord", "Task", "find_instruct_file", "generate_tasks", "parse_record",
    "read_records", "stories",
]  # fmt: skip

DEFAULT_MIXTURE = {
    "words": 0.25, "summary": 0.15, "what_happened": 0.1, "moral": 0.1, "main_character": 0.15, "ending": 0.1, "dialogue": 0.1,
    "why": 0.05, "quote": 0.0, "copyedit": 0.0,
}  # fmt: skip
"""Of the examples, by kind. Kinds that the data don't support fall away, the others grow in proportion."""
DEFAULT_LOSS_WEIGHTS = dict.fromkeys(DEFAULT_MIXTURE, 1.0) | {
    "words": 0.3, "main_character": 3.0, "moral": 2.0, "ending": 2.0, "dialogue": 2.0,
}  # fmt: skip
"""Loss weight per token, found with stories260K (benchmarks/RESULTS.md): a story has thirty times as many tokens as a short
answer, and with equal weights little else is learned."""

_SAMPLE = 1000  # records on which the shares are balanced
_PROBES = 100  # other records tried for an index whose own record gives nothing
_FIXED = 2**32  # in the place of an epoch: the order in which held-out tasks are chosen


class InstructDataset:
    """A map-style dataset of examples (see `ExampleDataset`): `dataset[i]` for any i ≥ 0, `len(dataset)` of them an epoch.

    `mixture` and `loss_weights` are by kind and override the defaults one by one;
    `answer_weight` is the loss weight of the tokens that end a reply or decide whether it is right, `prompt_weight` that of all
    that isn't the assistant's; a conversation has up to `turns` questions about its story, and up to `prefix_branches`
    conversations that begin with a story share its reading; `limit` takes the first so many records. `stats` counts what
    happened to the examples made so far in this process.
    Raises UserError for a kind that doesn't exist and for data that support none of the kinds asked for.
    """

    def __init__(
        self,
        path_or_index: str | Path | RecordIndex,
        tokenizer: ChatTokenizer,
        seq_len: int,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        system: str | None = None,
        limit: int | None = None,
        answer_weight: float = 0.0,
        prompt_weight: float = 0.0,
        turns: int = 1,
        prefix_branches: int = 1,
    ) -> None:
        self.index = path_or_index if isinstance(path_or_index, RecordIndex) else RecordIndex(path_or_index)
        self.tokenizer, self.seq_len, self.seed, self.system = tokenizer, seq_len, seed, system
        self.mixture = _by_kind("data.mixture", DEFAULT_MIXTURE, mixture, otherwise=0.1)
        self.loss_weights = _by_kind("data.loss_weights", DEFAULT_LOSS_WEIGHTS, loss_weights, otherwise=1.0)
        self.answer_weight, self.prompt_weight = answer_weight, prompt_weight
        self.turns, self.prefix_branches = turns, prefix_branches
        self._length = min(limit or len(self.index), len(self.index))
        self.stats: Counter[str] = Counter()
        self._balance()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """The example of an index: a pure function of data, seed and index."""
        epoch, place = divmod(index, len(self))
        number = int(epoch_order(len(self), self.seed, epoch)[place])
        for attempt in range(_PROBES):
            if drawn := self._draw(number, epoch, f"{self.seed}/{index}/{attempt}"):
                turns = sum(1 + len(fitted.later) for fitted in drawn)
                self.stats.update(
                    examples=1,
                    conversations=len(drawn),
                    shortened=drawn[0].shortened,
                    substituted=attempt > 0,
                    turns=turns,
                )
                return share_prefix(
                    [
                        each.example(self.loss_weights, self.tokenizer, self.answer_weight, self.prompt_weight)
                        for each in drawn
                    ]
                )
            number = _number(f"{self.seed}/{index}/{attempt}/other") % len(self)
        raise UserError(
            f"{self.index.path} gave no example of at most {self.seq_len} tokens from {_PROBES} records; "
            "raise data.seq_len (the model's context limits it), or check data.mixture."
        )

    def validation_examples(self, n: int) -> list[Example]:
        """At most n examples, always the same, in the shares of training and with weight 1; no record twice for one kind."""
        wanted = {category: max(1, round(n * share)) for category, share in self.realised.items() if share > 0}
        return [fitted.example() for fitted in self._choose(wanted, most=max(5000, 10 * n))][:n]

    def eval_tasks(
        self,
        kind: str,
        n: int,
        among: Sequence[int] | np.ndarray | None = None,
        only: Callable[[Task], bool] | None = None,
    ) -> list[Task]:
        """At most n tasks of one kind, always the same, from different records, as they fit the context.

        Of a yes/no kind there are as many "yes" as "no", and so fewer than n where one of them is rare. `among` are the
        numbers of the records to take them from (default: all), `only` says which tasks will do.
        """
        if kind not in YES_NO_KINDS:
            return [fitted.task for fitted in self._choose({kind: n}, len(self), among, only)]
        half = (n + 1) // 2
        fitted = self._choose({f"{kind}/yes": half, f"{kind}/no": half}, len(self), among, only)
        by_answer = [[one.task for one in fitted if one.task.answer == answer] for answer in ("yes", "no")]
        if all(by_answer):
            return [task for pair in zip(*by_answer, strict=False) for task in pair][:n]
        return by_answer[0] + by_answer[1]

    def _balance(self) -> None:
        """Find the weights of the draw, `_chances`, and the shares that will come of them, `realised`, on a sample."""
        rng = np.random.default_rng([self.seed % 2**64, _FIXED + 1])
        sample = np.sort(rng.choice(len(self), min(_SAMPLE, len(self)), replace=False))
        wanted = [kind for kind, share in self.mixture.items() if share > 0]
        names = categories()
        supported = np.zeros((len(sample), len(names)), dtype=bool)
        for row, number in enumerate(sample.tolist()):
            for task in generate_tasks(self.index[number], self.seed, wanted):
                supported[row, names.index(task.category)] = True
        chances = balanced_weights(supported, names, self.mixture)
        if not chances.any():
            raise UserError(
                f"The records of {self.index.path} support none of the kinds {', '.join(wanted) or '(all have share 0)'}; "
                "ask for others in data.mixture, or check the file's fields."
            )
        self._chances = dict(zip(names, chances.tolist(), strict=True))
        self.realised: dict[str, float] = dict(zip(names, realised_shares(supported, chances).tolist(), strict=True))
        """Share of each category ("summary", "ending/no") that the stream will have."""
        there = dict(zip(names, supported.sum(axis=0).tolist(), strict=True))
        first = {name: share * len(sample) for name, share in self.realised.items()}
        self._again = {name: _balancing_rate(name, there, first) for name in names}
        trained = {name.split("/")[0] for name, chance in self._chances.items() if chance > 0}
        self.kinds = [kind for kind in TASK_KINDS if kind in trained]

    def _draw(self, number: int, epoch: int, salt: str) -> list[RenderedTask]:
        """One of the record's tasks, drawn by weight, the next one drawn where the first doesn't fit; and its branches."""
        record = self.index[number]
        coming, tried = self._drawn(record, _number(f"{self.seed}/{epoch}"), salt), []
        for task in coming:
            tried.append(task)
            if self.turns > 1 and not task.question_first:
                # Later questions all come behind the story: the first one practises, more often, to come before it.
                task = generate_tasks(record, _number(f"{self.seed}/{epoch}/again"), [task.kind])[0]
            if fitted := self._fit(task):
                kind, others = task.kind, chain(tried, coming)
                later = (other for other in others if other.kind != kind and self._asked_again(other, salt))
                fitted = add_turns(fitted, later, self.tokenizer, self.seq_len, self.turns)
                return [fitted, *self._branches(fitted, later)]
        if not tried:
            self.stats["records without a task"] += 1
        return []

    def _branches(self, fitted: RenderedTask, questions: Iterable[Task]) -> Iterator[RenderedTask]:
        """Conversations about the same story that go on from it with other questions, as many as there are to be."""
        if self.prefix_branches == 1 or fitted.shortened:  # what another answer rests on may be missing
            return
        left, asked = self.prefix_branches - 1, {task.target for task in (fitted.task, *fitted.later)}
        for question in questions:
            if question.target in asked or (behind := as_follow_up(question, fitted)) is None:
                continue
            branch = truncate_to_context(behind, self.tokenizer, self.seq_len, self.system)
            if branch is not None and not branch.shortened:
                asked.add(question.target)
                yield branch
                left -= 1
                if not left:  # before another question is made that nobody would ask
                    return

    def _drawn(self, record: StoryRecord, seed: int, salt: str) -> Iterator[Task]:
        """The record's tasks in the order in which they are drawn by weight, each made only when it is asked for."""
        # The largest u ** (1 / w) is task c with probability w_c / sum of w (Efraimidis and Spirakis, 2006).
        keys = {
            category: math.log((_number(salt + category) + 1) / 2**64) / chance
            for category, chance in self._chances.items()
            if chance > 0
        }
        choose, made = TemplateSampler(record, seed), dict[str, Task | None]()
        for category in sorted(keys, key=keys.__getitem__, reverse=True):
            kind = category.split("/")[0]
            if kind not in made:
                made[kind] = TASK_KINDS[kind](record, choose)
            task = made[kind]
            if task is not None and task.category == category:
                yield task

    def _asked_again(self, task: Task, salt: str) -> bool:
        """Whether a question may follow another: always, but the commoner answer only as often as the rarer one."""
        return _number(f"{salt}{task.category}/again") < self._again[task.category] * 2**64

    def _fit(self, task: Task) -> RenderedTask | None:
        fitted = truncate_to_context(task, self.tokenizer, self.seq_len, self.system)
        if fitted is None:
            self.stats[f"too long: {task.kind}"] += 1
        return fitted

    def _choose(
        self,
        wanted: Mapping[str, int],
        most: int,
        among: Sequence[int] | np.ndarray | None = None,
        only: Callable[[Task], bool] | None = None,
    ) -> list[RenderedTask]:
        """Tasks until `wanted` (category -> number) is met or `most` records were looked at, twice for what is rare.

        A record gives its task of the category of which the largest part is still missing; the second round takes what
        the first left, but no record twice for one kind.
        """
        missing = dict(wanted)
        numbers = epoch_order(len(self), self.seed, _FIXED)
        numbers = (numbers if among is None else numbers[np.isin(numbers, among)])[:most]
        used: set[tuple[int, str]] = set()
        chosen: list[RenderedTask] = []
        for _ in range(2):
            for number in numbers.tolist():
                kinds = {category.split("/")[0] for category, left in missing.items() if left > 0}
                if not kinds:
                    return chosen
                tasks = generate_tasks(self.index[number], self.seed, [kind for kind in TASK_KINDS if kind in kinds])
                tasks = [
                    task
                    for task in tasks
                    if missing.get(task.category, 0) > 0
                    and (number, task.kind) not in used
                    and (only is None or only(task))
                ]
                for task in sorted(
                    tasks, key=lambda task: missing[task.category] / wanted[task.category], reverse=True
                ):
                    if fitted := truncate_to_context(task, self.tokenizer, self.seq_len, self.system):
                        chosen.append(fitted)
                        missing[task.category] -= 1
                        used.add((number, task.kind))
                        break
            if len(wanted) == 1:
                break
        return chosen


def _by_kind(
    key: str, defaults: Mapping[str, float], given: Mapping[str, float] | None, otherwise: float
) -> dict[str, float]:
    """The defaults with the given values put in. Raises UserError for an unknown kind or a negative value."""
    given = given or {}
    check_kinds(given, key)
    for kind, value in given.items():
        if not value >= 0:
            raise UserError(f"{key}.{kind} is {value}; it must be 0 or more.")
    return {kind: float(given.get(kind, defaults.get(kind, otherwise))) for kind in TASK_KINDS}


def _balancing_rate(category: str, there: Mapping[str, int], first: Mapping[str, float]) -> float:
    """How often to ask it after other questions so that "yes" and "no" come equally often; 1 for other kinds.

    `there` has the records that support each category, `first` those of them in which it is the first question.
    """
    kind, _, answer = category.partition("/")
    if not answer:
        return 1.0
    wanted = min(there[f"{kind}/yes"], there[f"{kind}/no"])
    return min(1.0, max(0.0, wanted - first[category]) / max(1e-9, there[category] - first[category]))


def _number(text: str) -> int:
    """A number below 2**64 that any process makes of this text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

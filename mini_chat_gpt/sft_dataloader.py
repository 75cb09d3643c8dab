"""TinyStories-Instruct for fine-tuning: records -> tasks -> conversations -> examples.

The parts are in `tinystories/`: `records` and `record_index` read files, `tasks` makes tasks, `mixture` balances their kinds,
`truncation` renders them to ids. `InstructDataset` combines them. Example i depends only on the data, the seed and i: each
epoch uses every record once, in a new order, with one or several of its tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.batching import Example, share_prefix
from mini_chat_gpt.data.epoch_order import EpochOrder, epoch_order
from mini_chat_gpt.tinystories.conversations import turn_kinds
from mini_chat_gpt.tinystories.mixture import TaskMixture, hash64
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import StoryRecord, find_instruct_file, parse_record, read_records, stories
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, YES_NO_KINDS, Task, check_kinds, generate_tasks
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
"""Share of the examples by kind. Kinds that the data do not support are omitted; the others grow in proportion."""
DEFAULT_LOSS_WEIGHTS = dict.fromkeys(DEFAULT_MIXTURE, 1.0) | {
    "words": 0.3, "main_character": 3.0, "moral": 2.0, "ending": 2.0, "dialogue": 2.0,
}  # fmt: skip
"""Loss weight per token by kind, measured with stories260K (benchmarks/RESULTS.md). A story has thirty times as many tokens as a
short answer: with equal weights the model learns little else."""

_SAMPLE = 1000  # records on which the mixture is fitted
_ATTEMPTS = 100  # other records to try if a record gives no example
_FIXED_ORDER = 2**32  # used as an epoch number: the order in which held-out tasks are chosen


class InstructDataset:
    """Examples of one TinyStories-Instruct file; a map-style dataset, see `ExampleDataset`.

    The data section says what the examples look like. Its `mixture` and `loss_weights` override the defaults by kind. `stats`
    counts what happened to the examples made so far in this process. Raises UserError for an unknown kind, and if the data
    support none of the requested kinds.
    """

    def __init__(
        self, path_or_index: str | Path | RecordIndex, tokenizer: ChatTokenizer, data: DataSection, seed: int
    ) -> None:
        self.index = path_or_index if isinstance(path_or_index, RecordIndex) else RecordIndex(path_or_index)
        self.tokenizer, self.data, self.seed = tokenizer, data, seed
        self._length = min(data.limit or len(self.index), len(self.index))
        self._order = EpochOrder(self._length, seed)
        weights, mixture = data.loss_weights or {}, data.mixture or {}
        check_kinds(weights, "data.loss_weights", turn_kinds())
        check_kinds(mixture, "data.mixture")
        self.loss_weights = dict.fromkeys(TASK_KINDS, 1.0) | DEFAULT_LOSS_WEIGHTS | weights
        requested = dict.fromkeys(TASK_KINDS, 0.1) | DEFAULT_MIXTURE | mixture
        # The mixture needs to know which kinds the records support; a sample of them is enough.
        rng = np.random.default_rng([seed % 2**64, _FIXED_ORDER + 1])
        sample = np.sort(rng.choice(len(self), min(_SAMPLE, len(self)), replace=False))
        self.mixture = TaskMixture([self.index[number] for number in sample.tolist()], seed, requested)
        if not self.mixture.kinds:
            wanted = [kind for kind, share in requested.items() if share > 0]
            raise UserError(
                f"The records of {self.index.path} support none of the kinds {', '.join(wanted) or '(all have share 0)'}; "
                "add other kinds to data.mixture, or check the fields of the file."
            )
        self.stats: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        # The position in a permutation of the records decides the record: every epoch has each of them once.
        epoch, number = self._order[index]
        for attempt in range(_ATTEMPTS):
            # Every example and attempt has its own random choices, which depend on nothing else.
            salt = f"{self.seed}/{index}/{attempt}"
            if conversations := self._conversations(number, epoch, salt):
                self.stats.update(
                    examples=1,
                    conversations=len(conversations),
                    shortened=conversations[0].shortened,
                    substituted=attempt > 0,
                    turns=sum(len(rendered.replies) for rendered in conversations),
                )
                data = self.data
                return share_prefix(
                    [
                        rendered.example(self.tokenizer, self.loss_weights, data.answer_weight, data.prompt_weight)
                        for rendered in conversations
                    ]
                )
            # This record supports no task, or none that fits. Another one takes its place, chosen at random.
            number = hash64(f"{salt}/other") % len(self)
        raise UserError(
            f"{self.index.path} gave no example of at most {self.data.seq_len} tokens from {_ATTEMPTS} records; "
            "raise data.seq_len (the model's context limits it), or check data.mixture."
        )

    def _conversations(self, number: int, epoch: int, salt: str) -> list[RenderedTask]:
        """A conversation about one record, and the branches that share its prefix. Empty if no task fits."""
        record, data = self.index[number], self.data
        drawn, skipped = self.mixture.draw(record, hash64(f"{self.seed}/{epoch}"), salt), []
        for task in drawn:
            skipped.append(task)
            if data.turns > 1 and not task.question_first:
                # All later questions come after the story. To train both orders, draw the template of the first one again.
                task = generate_tasks(record, hash64(f"{self.seed}/{epoch}/again"), [task.kind])[0]
            if rendered := self._render(task):
                others = (
                    other
                    for other in chain(skipped, drawn)
                    if other.kind != task.kind and self.mixture.may_follow(other, salt)
                )
                # Turns and branches use the same iterator: no question is asked twice about a story.
                rendered = add_turns(rendered, others, self.tokenizer, data.seq_len, data.turns)
                return [rendered, *self._branches(rendered, others)]
        if not skipped:
            self.stats["records without a task"] += 1
        return []

    def _branches(self, first: RenderedTask, questions: Iterable[Task]) -> Iterator[RenderedTask]:
        """Other conversations about the story with which `first` begins, as many as data.prefix_branches allows."""
        n_missing = self.data.prefix_branches - 1
        if not n_missing or first.shortened:  # the text that supports another answer may be missing
            return
        # Kinds may share a target (`summary` and `what_happened`), which is trained once per story.
        answers = {task.target for task in (first.task, *first.later)}
        for question in questions:
            if question.target in answers or (task := as_follow_up(question, first)) is None:
                continue
            branch = truncate_to_context(task, self.tokenizer, self.data.seq_len, self.data.system_message)
            if branch is not None and not branch.shortened:
                answers.add(question.target)
                yield branch
                n_missing -= 1
                if not n_missing:  # `questions` makes tasks on demand: stop before it makes another
                    return

    def _render(self, task: Task) -> RenderedTask | None:
        rendered = truncate_to_context(task, self.tokenizer, self.data.seq_len, self.data.system_message)
        if rendered is None:
            self.stats[f"too long: {task.kind}"] += 1
        return rendered

    # Held-out data

    @cached_property
    def _fixed_order(self) -> np.ndarray:
        return epoch_order(len(self), self.seed, _FIXED_ORDER)

    def validation_examples(self, n: int) -> list[Example]:
        """At most n examples, always the same, with the shares of training and weight 1."""
        wanted = {name: max(1, round(n * share)) for name, share in self.mixture.shares.items() if share > 0}
        chosen = self._choose(wanted, max_records=max(5000, 10 * n))
        return [rendered.example(self.tokenizer) for rendered in chosen][:n]

    def eval_tasks(
        self,
        kind: str,
        n: int,
        among: Sequence[int] | np.ndarray | None = None,
        only: Callable[[Task], bool] | None = None,
    ) -> list[Task]:
        """At most n tasks of one kind, always the same, from different records, truncated to the context.

        A yes/no kind has as many "yes" as "no", and so fewer than n tasks if one of them is rare. `among` are the numbers of
        the records to use (default: all); `only` selects tasks.
        """
        if kind not in YES_NO_KINDS:
            return [rendered.task for rendered in self._choose({kind: n}, len(self), among, only)]
        # As many of each answer: always answering "yes" then scores 50 %.
        half = (n + 1) // 2
        chosen = self._choose({f"{kind}/yes": half, f"{kind}/no": half}, len(self), among, only)
        by_answer = [[one.task for one in chosen if one.task.answer == answer] for answer in ("yes", "no")]
        if all(by_answer):
            return [task for pair in zip(*by_answer, strict=False) for task in pair][:n]
        return by_answer[0] + by_answer[1]

    def _choose(
        self,
        wanted: Mapping[str, int],
        max_records: int,
        among: Sequence[int] | np.ndarray | None = None,
        only: Callable[[Task], bool] | None = None,
    ) -> list[RenderedTask]:
        """Choose tasks until `wanted` (category -> number) is met or `max_records` records are exhausted.

        A record contributes one task: of the category of which the largest fraction is missing. A second pass over the records
        lets them contribute to rare categories, but no record is used twice for one kind.
        """
        missing = dict(wanted)
        # A random but fixed order: the tasks are the same in every evaluation and every run with this seed.
        numbers = self._fixed_order
        numbers = (numbers if among is None else numbers[np.isin(numbers, among)])[:max_records]
        used: set[tuple[int, str]] = set()
        chosen: list[RenderedTask] = []
        for number in chain(numbers.tolist(), numbers.tolist() if len(wanted) > 1 else ()):
            kinds = {category.split("/")[0] for category, count in missing.items() if count > 0}
            if not kinds:
                return chosen
            tasks = [
                task
                for task in generate_tasks(
                    self.index[number], self.seed, [kind for kind in TASK_KINDS if kind in kinds]
                )
                if missing.get(task.category, 0) > 0
                and (number, task.kind) not in used
                and (only is None or only(task))
            ]
            # Rare categories first: later records may not support them.
            tasks.sort(key=lambda task: missing[task.category] / wanted[task.category], reverse=True)
            for task in tasks:
                if rendered := truncate_to_context(task, self.tokenizer, self.data.seq_len, self.data.system_message):
                    chosen.append(rendered)
                    missing[task.category] -= 1
                    used.add((number, task.kind))
                    break
        return chosen

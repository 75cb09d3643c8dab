"""Conversations of `conversations` as training examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Protocol

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.tinystories.conversations import Conversation, turn_kinds
from mini_chat_gpt.tinystories.mixture import hash64
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tinystories.truncation import GrowingConversation, RenderedTask, messages_of, truncate_to_context

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

KIND = "conversation"
"""The kind of these examples, by which their validation loss is reported."""
SMALL_TALK_WEIGHT = 0.3
"""Loss weight of replies without a story: they have few wordings, and what is to be learned is when to give them."""
_ATTEMPTS = 100


class TaskDataset(Protocol):
    """What is used of an `InstructDataset`."""

    index: RecordIndex
    tokenizer: ChatTokenizer
    data: DataSection
    seed: int
    loss_weights: dict[str, float]

    def __len__(self) -> int: ...


class ConversationDataset:
    """Whole conversations about the records of one file; a map-style dataset without end, see `ExampleDataset`.

    Example i depends only on the data, the seed and i. Its turns have the loss weights of their kinds.
    """

    def __init__(
        self, index: RecordIndex, n_records: int, tokenizer: ChatTokenizer, data: DataSection, seed: int,
        loss_weights: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.index, self.n_records, self.tokenizer, self.data, self.seed = index, n_records, tokenizer, data, seed
        self.loss_weights = dict.fromkeys(turn_kinds(), SMALL_TALK_WEIGHT) | dict(loss_weights)

    @classmethod
    def like(cls, tasks: TaskDataset) -> ConversationDataset:
        """Conversations about the records of a dataset of tasks, with its settings."""
        return cls(tasks.index, len(tasks), tasks.tokenizer, tasks.data, tasks.seed, tasks.loss_weights)

    def __len__(self) -> int:
        return self.n_records

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0."""
        rendered = self.rendered(index)
        data = self.data
        example = rendered.example(self.tokenizer, self.loss_weights, data.answer_weight, data.prompt_weight)
        return replace(example, kind=KIND)

    def validation_examples(self, n: int) -> list[Example]:
        """n examples, always the same, with weight 1."""
        return [replace(self.rendered(index).example(self.tokenizer), kind=KIND) for index in range(n)]

    def rendered(self, index: int) -> RenderedTask:
        """Conversation `index`, with as many turns as fit data.seq_len."""
        for attempt in range(_ATTEMPTS):
            rng = Random(hash64(f"{self.seed}/{index}/{attempt}/conversation"))
            talk = Conversation(rng, lambda rng=rng: self.index[int(rng.random() * self.n_records)])  # type: ignore[misc]
            talk.fill()
            if rendered := self._render(talk.turns):
                return rendered
        raise UserError(
            f"{self.index.path} gave no conversation of at most {self.data.seq_len} tokens; raise data.seq_len, or set "
            "data.conversations=0."
        )

    def _render(self, turns: list[Task]) -> RenderedTask | None:
        """The first turns, as many as fit. None if not even the first one does."""
        first = truncate_to_context(turns[0], self.tokenizer, self.data.seq_len, self.data.system_message)
        if first is None:
            return None
        conversation, later = GrowingConversation(first, self.tokenizer), []
        for task in turns[1:]:
            question, answer = messages_of(task)
            if not conversation.add(question, answer, self.data.seq_len):
                break
            later.append(task)
        return replace(first, ids=conversation.ids, replies=conversation.replies, later=tuple(later))

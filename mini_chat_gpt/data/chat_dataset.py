"""Your own chats as training examples: files are mixed by weight, a part is held out, and each use of a chat is accounted for.

`chat_cache` reads and renders the chats, `chat_fitting` cuts those that are too long for the context, and `chat_split` compares them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import word_set
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_notes import dropped_note, too_long_note
from mini_chat_gpt.data.data_files import CHATS, PACKINGS
from mini_chat_gpt.data.epoch_order import EpochOrder, epoch_order
from mini_chat_gpt.data.rendered_chats import RenderedChats


@dataclass(frozen=True)
class ChatFile:
    """The part of a file that a dataset uses."""

    path: str
    kind: str  # a short name
    rendered: RenderedChats
    bits: np.ndarray
    """A bit for each rendered chat: whether it is in this part. An array of numbers would take 32 times the memory."""
    n_examples: int
    n_per_epoch: int

    @property
    def chats(self) -> np.ndarray:
        """(n,) uint32, numbers of its chats, also of those that are dropped."""
        return np.flatnonzero(np.unpackbits(self.bits, count=len(self.rendered.chats))).astype(np.uint32)

    @property
    def examples(self) -> np.ndarray:
        """(n_examples,) uint32, numbers of its examples."""
        n_examples = self.rendered.chats["n_examples"]
        counts = np.where(np.unpackbits(self.bits, count=len(n_examples)), n_examples, 0)
        # The examples of all chats are numbered one after another.
        return np.flatnonzero(np.repeat(counts > 0, n_examples)).astype(np.uint32)


class ChatDataset:
    """Examples of chat files; a map-style dataset, see `ExampleDataset`.

    `chats.files` has the weight of each file: with weight 2 an epoch uses each of its examples twice, with 0.5 every other one,
    and the next epoch the others. A chat that was cut has several examples.

    rendered   the chats of all files
    numbers    (n,) which of them to use, in ascending order; all by default

    Raises UserError if no example is left.
    """

    def __init__(
        self,
        rendered: RenderedChats,
        chats: ChatsSection,
        data: DataSection,
        seed: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.rendered, self.chats, self.data, self.seed = rendered, chats, data, seed
        numbers = np.arange(len(rendered.chats)) if numbers is None else numbers
        self.files: list[ChatFile] = []
        """In the order of their first chats."""
        file_of = rendered.chats["file"][numbers]
        ids, first = np.unique(file_of, return_index=True)
        for path, kind in names_of([rendered.meta.paths[one] for one in ids[np.argsort(first)].tolist()]).items():
            of_file = numbers[file_of == rendered.meta.paths.index(path)]
            chosen = np.zeros(len(rendered.chats), dtype=bool)
            chosen[of_file] = True
            n = int(rendered.chats["n_examples"][of_file].sum(dtype=np.int64))
            n_per_epoch = max(1, round(n * chats.files.get(path, 1.0)))
            self.files.append(ChatFile(path, kind, rendered, np.packbits(chosen), n, n_per_epoch))
        self._used = [file for file in self.files if file.n_examples]
        if not self._used:
            names = ", ".join(file.path for file in self.files) or "the chats"
            raise UserError(f"No conversation of {names} is left{self._why_none(numbers)}.")
        self.has_reasoning = bool(rendered.chats["has_reasoning"][numbers].any())
        """Whether a reply of a used conversation has reasoning."""
        self._kinds = {rendered.meta.paths.index(file.path): file.kind for file in self.files}
        self._order = EpochOrder(sum(file.n_per_epoch for file in self._used), seed, self._epoch)

    def _why_none(self, numbers: np.ndarray) -> str:
        """The end of a sentence: why none of these chats has an example, and what to do."""
        if not len(numbers):
            return "; the files contain none"
        shortest = int(self.rendered.chats["n_tokens"][numbers].min())
        why = self.rendered.text(int(numbers[0]))[1]
        if shortest <= self.data.seq_len:
            return f": {why}"
        size = 1 << (shortest - 1).bit_length()
        wanted = f"use data.seq_len={size} and a model with that context"
        return f": the shortest has {shortest:,} tokens, and {self.data.seq_len:,} fit; shorten the texts, or {wanted}"

    def __len__(self) -> int:
        return self._order.n

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        example = self._example(self._order[index][1])
        if not self.data.prompt_weight:
            return example
        weight = np.where(example.loss_mask, 1.0, self.data.prompt_weight).astype(np.float32)
        return replace(example, weight=weight, loss_mask=np.arange(len(example.ids)) > 0)

    def _epoch(self, epoch: int) -> np.ndarray:
        """(len(self),) uint32, the examples of an epoch in their order."""
        parts = []
        for number, file in enumerate(self._used):
            # How many examples of this file come before, over all epochs. Each pass over the file has an order of its own.
            begin, end = epoch * file.n_per_epoch, (epoch + 1) * file.n_per_epoch
            n, examples = file.n_examples, file.examples
            for file_epoch in range(begin // n, -(-end // n)):
                order = epoch_order(n, self.seed + number + 1, file_epoch)
                parts.append(examples[order[max(0, begin - file_epoch * n) : end - file_epoch * n]])
        return np.concatenate(parts)[epoch_order(len(self), self.seed, epoch)]

    def _example(self, number: int) -> Example:
        chat = int(self.rendered.examples[number]["chat"])
        return self.rendered.example(number, self._kinds[int(self.rendered.chats[chat]["file"])])

    def examples(self) -> Iterator[Example]:
        """Every example once, in the order of the files, with only the replies as targets."""
        for file in self._used:
            yield from map(self._example, file.examples.tolist())

    def sizes(self, file: ChatFile) -> np.ndarray:
        """(n_examples, 3) of each example of a file: tokens, targets, sum of the loss weights of the targets."""
        numbers = file.examples
        targets = self.rendered.examples["n_trained"][numbers]
        return np.stack([self.rendered.lengths(numbers), targets, targets], axis=1).astype(np.float64)

    def used_chats(self) -> Iterator[tuple[str, int]]:
        """(path, number among the chats of the path) of each chat that has an example, in the order of `examples`."""
        for file in self._used:
            first = int(np.argmax(self.rendered.chats["file"] == self.rendered.meta.paths.index(file.path)))
            for number in file.chats:
                if self.rendered.chats[number]["n_examples"]:
                    yield file.path, int(number) - first

    def notes(self, purpose: str, context: int) -> list[str]:
        """What is not used as it is in the files. `purpose` says what the chats are for; `context` is the model's."""
        notes: list[str | None] = []
        for file in self.files:
            part = self.rendered, file.path, file.chats, purpose, self.data.seq_len
            notes += [too_long_note(*part, context, self.chats.too_long), dropped_note(*part)]
        return [note for note in notes if note is not None]


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Path -> a short name to show: the file's name without its suffix, with the folder's name if two files have the same one.

    Of a pattern, such as data/*.jsonl, both as well.
    """
    endings = "|".join(map(re.escape, (*CHATS, *PACKINGS)))
    stems = {path: re.sub(rf"({endings})+$", "", Path(path).name) for path in paths}
    counts = Counter(stems.values())
    return {
        path: stem if counts[stem] == 1 and "*" not in stem else f"{Path(path).parent.name}/{stem}"
        for path, stem in stems.items()
    }


def nearest_prompts(prompts: Sequence[str], conversations: Sequence[Conversation]) -> Iterator[tuple[float, str, str]]:
    """For each prompt, (similarity, prompt, question) with the most similar question of the conversations.

    The similarity is Jaccard's index of their sets of words: words in both over words in either.
    """
    questions = {m.content: word_set(m.content) for c in conversations for m in c.messages if m.role == "user"}
    for prompt in prompts:
        words = word_set(prompt)
        similarity = {text: len(words & other) / max(1, len(words | other)) for text, other in questions.items()}
        nearest = max(similarity, key=lambda text: similarity[text])
        yield similarity[nearest], prompt, nearest

"""Chats of one's own as training examples: fitted to the context, mixed by weight, a part held out, repetitions found.

A conversation that is too long for the context loses whole exchanges from its end; an answer is never cut in two. Where not
even the first exchange fits it is left out. Both are counted, by file and with the reason, in `ChatDataset.left_out`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mini_chat_gpt.chat_format import Message, render_arrays
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example, epoch_order
from mini_chat_gpt.data.chat_files import Conversation

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Trained = Literal["all", "last"]


@dataclass(frozen=True)
class LeftOut:
    """What happened to a conversation that is not trained on as it stands in its file."""

    conversation: Conversation
    what: str  # "dropped" or "shortened"
    why: str


class ChatDataset:
    """Examples by index, as the trainer's `ExampleDataset`: an epoch takes the conversations of a file `weights[path]` times.

    A weight of 2 takes each twice an epoch, one of 0.5 every other one, and the rest in the next epoch. `train` says
    whether all replies of a conversation are trained or the last one alone. `system` opens those that have no system
    message. Raises UserError where nothing is left to train on.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: ChatTokenizer,
        seq_len: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        train: Trained = "all",
        system: str | None = None,
        prompt_weight: float = 0.0,
    ) -> None:
        self.seed, self.prompt_weight = seed, prompt_weight
        self.left_out: list[LeftOut] = []
        self._files: list[_File] = []
        by_file: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            by_file.setdefault(conversation.path, []).append(conversation)
        self.names = names_of(list(by_file))
        """What a file's examples are called: their kind."""
        for path, name in self.names.items():
            fitted = [(c, self._fitted(c, tokenizer, seq_len, train, system)) for c in by_file[path]]
            kept = [(c, Example(*rendered, weight=1.0, kind=name)) for c, rendered in fitted if rendered is not None]
            if kept:
                n_per_epoch = max(1, round(len(kept) * (weights or {}).get(path, 1.0)))
                self._files.append(_File([c for c, _ in kept], [example for _, example in kept], n_per_epoch))
        if not self._files:
            why = f": {self.left_out[0].why}" if self.left_out else "; the files hold none"
            raise UserError(f"No conversation of {', '.join(by_file) or 'the chats'} is left{why}.")
        self._ends = np.cumsum([file.n_per_epoch for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        """The example of an index: a pure function of conversations, seed and index."""
        epoch, place = divmod(index, len(self))
        at = int(epoch_order(len(self), self.seed, epoch)[place])
        number = int(np.searchsorted(self._ends, at, side="right"))
        file = self._files[number]
        taken = (
            epoch * file.n_per_epoch + at - int(self._ends[number] - file.n_per_epoch)
        )  # of this file, since the beginning
        turn, at = divmod(taken, len(file.examples))
        example = file.examples[int(epoch_order(len(file.examples), self.seed + number + 1, turn)[at])]
        if not self.prompt_weight:
            return example
        weight = np.where(example.loss_mask, 1.0, self.prompt_weight).astype(np.float32)
        return replace(example, weight=weight, loss_mask=np.arange(len(example.ids)) > 0)

    def examples(self) -> Iterator[Example]:
        """Each once, in the files' order, with only the replies trained."""
        for file in self._files:
            yield from file.examples

    @property
    def conversations(self) -> Iterator[Conversation]:
        """Those of `examples`."""
        for file in self._files:
            yield from file.conversations

    def notes(self, part: str) -> list[str]:
        """For each file and each thing that happened to some of its conversations, a sentence; `part` says what they are for."""
        groups: dict[tuple[str, str], list[LeftOut]] = {}
        for one in self.left_out:
            groups.setdefault((one.conversation.path, one.what), []).append(one)
        return [
            f"{path}: of its chats {part} {what}: {len(those):,}; the first, line {those[0].conversation.line}: {those[0].why}."
            for (path, what), those in groups.items()
        ]

    def _fitted(
        self, conversation: Conversation, tokenizer: ChatTokenizer, seq_len: int, train: Trained, system: str | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(ids, trained) of as many exchanges as fit into the context."""
        messages = list(conversation.messages)
        if system and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        whole = len(messages)
        longest = 0
        while messages:
            last = len(messages) - 1
            shown = [replace(m, train=m.train and (train == "all" or at == last)) for at, m in enumerate(messages)]
            ids, trained = render_arrays(shown, tokenizer)
            longest = longest or len(ids)
            if len(ids) <= seq_len and trained[1:].any():
                if len(messages) < whole:
                    why = f"it has {longest:,} tokens, {seq_len:,} fit: {whole - len(messages)} messages of its end are left out"
                    self.left_out.append(LeftOut(conversation, "shortened", why))
                return ids, trained
            del messages[-2:]  # an exchange
            if messages and messages[-1].role != "assistant":
                break
        self.left_out.append(
            LeftOut(
                conversation,
                "dropped",
                f"its first trained exchange doesn't fit into {seq_len:,} tokens (it has {longest:,})",
            )
        )
        return None


@dataclass(frozen=True)
class _File:
    conversations: list[Conversation]
    examples: list[Example]
    n_per_epoch: int


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Short names to show: a file's own name without endings, with its folder's where two files have the same one."""
    stems = {path: re.sub(r"(\.jsonl?|\.gz)+$", "", Path(path).name) for path in paths}
    often = Counter(stems.values())
    return {path: stem if often[stem] == 1 else f"{Path(path).parent.name}/{stem}" for path, stem in stems.items()}


def split(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(to train on, held out): the same conversations for the same texts and seed, whatever file or place they stand in.

    `share` of those that differ is held out, at least one of two or more. What stands there twice goes together.
    """
    keys = [content_key(conversation) for conversation in conversations]
    order = sorted(set(keys), key=lambda key: _digest(f"{seed}/{key}"))
    n = min(len(order) - 1, max(1, round(share * len(order)))) if share > 0 else 0
    held = set(order[:n])
    parts: tuple[list[Conversation], list[Conversation]] = [], []
    for conversation, key in zip(conversations, keys, strict=True):
        parts[key in held].append(conversation)
    return parts


def content_key(conversation: Conversation) -> str:
    """Equal for conversations that say the same, whatever their case and spacing."""
    return _digest(json.dumps([[m.role, _plain(m.content)] for m in conversation.messages]))


def prompt_key(conversation: Conversation) -> str:
    """Equal for conversations that begin with the same question."""
    return _digest(_plain(next(m.content for m in conversation.messages if m.role == "user")))


def duplicates(conversations: Sequence[Conversation]) -> list[list[Conversation]]:
    """Groups of two or more conversations that say the same, in the order of their first ones."""
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(content_key(conversation), []).append(conversation)
    return [group for group in groups.values() if len(group) > 1]


def in_both(
    trained: Sequence[Conversation], held_out: Sequence[Conversation]
) -> tuple[list[Conversation], list[Conversation]]:
    """Held-out conversations that stand in the training part too: (all that they say, only their first question)."""
    keys, prompts = {content_key(c) for c in trained}, {prompt_key(c) for c in trained}
    whole = [c for c in held_out if content_key(c) in keys]
    question = [c for c in held_out if content_key(c) not in keys and prompt_key(c) in prompts]
    return whole, question


def nearest_prompts(prompts: Sequence[str], conversations: Sequence[Conversation]) -> Iterator[tuple[float, str, str]]:
    """For each prompt (share, prompt, question): the question of the conversations that has most words in common with it.

    The share is that of the words which both have among those that one of them has (Jaccard's index).
    """
    questions = {m.content: set(_words(m.content)) for c in conversations for m in c.messages if m.role == "user"}
    for prompt in prompts:
        words = set(_words(prompt))
        shares = {text: len(words & theirs) / max(1, len(words | theirs)) for text, theirs in questions.items()}
        nearest = max(shares, key=lambda text: shares[text])
        yield shares[nearest], prompt, nearest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()

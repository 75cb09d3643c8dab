"""Your own chats as training examples: fit them to the context, mix files by weight, hold a part out, find duplicates.

A conversation that is too long for the context loses whole exchanges at its end; a reply is never cut. If even the first exchange
does not fit, the conversation is dropped. `ChatDataset.left_out` lists both cases with their reasons.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.chat_format import Message, Rendered, format_of, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import with_places
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.batching import Example, epoch_order
from mini_chat_gpt.data.chat_files import Conversation

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True)
class LeftOut:
    """A conversation that is not used for training as it is in its file."""

    conversation: Conversation
    what: str  # "dropped" or "shortened"
    why: str


@dataclass(frozen=True)
class _File:
    conversations: list[Conversation]
    examples: list[Example]
    n_per_epoch: int


class ChatDataset:
    """Examples of chat files; a map-style dataset, see `ExampleDataset`.

    `chats.files` has the weight of each file: with weight 2 an epoch uses each of its conversations twice, with 0.5 every other one,
    and the next epoch the others. `chats.train` says whether all replies are trained on or only the last one of a conversation.
    `data.system_message` begins the conversations that have no system message. Raises UserError if no conversation is left.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: ChatTokenizer,
        chats: ChatsSection,
        data: DataSection,
        seed: int,
    ) -> None:
        self.data, self.seed = data, seed
        self.left_out: list[LeftOut] = []
        self.has_reasoning = False
        """Whether a reply of a used conversation has reasoning."""
        self._files: list[_File] = []
        by_file: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            by_file.setdefault(conversation.path, []).append(conversation)
        self.names = names_of(list(by_file))
        """Path -> the kind of a file's examples."""
        for path, name in self.names.items():
            used, examples = [], []
            for conversation in by_file[path]:
                if rendered := self._fit(conversation, tokenizer, chats.train):
                    used.append(conversation)
                    self.has_reasoning |= any(with_reasoning(one).reasoning for one in conversation.messages)
                    ids, loss_mask = np.array(rendered.ids, dtype=np.int32), np.array(rendered.loss_mask)
                    origin = f"{path}, {conversation.place}"
                    examples.append(Example(ids, loss_mask, weight=1.0, kind=name, origin=origin))
            if used:
                self._files.append(_File(used, examples, max(1, round(len(used) * chats.files.get(path, 1.0)))))
        if not self._files:
            why = f": {self.left_out[0].why}" if self.left_out else "; the files contain none"
            raise UserError(f"No conversation of {', '.join(by_file) or 'the chats'} is left{why}.")
        self._ends = np.cumsum([file.n_per_epoch for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        epoch, position = divmod(index, len(self))
        place = int(epoch_order(len(self), self.seed, epoch)[position])
        number = int(np.searchsorted(self._ends, place, side="right"))
        file = self._files[number]
        # How many examples of this file come before, over all epochs. Each pass over the file has an order of its own.
        n_before = epoch * file.n_per_epoch + place - int(self._ends[number] - file.n_per_epoch)
        file_epoch, position = divmod(n_before, len(file.examples))
        example = file.examples[int(epoch_order(len(file.examples), self.seed + number + 1, file_epoch)[position])]
        if not self.data.prompt_weight:
            return example
        weight = np.where(example.loss_mask, 1.0, self.data.prompt_weight).astype(np.float32)
        return replace(example, weight=weight, loss_mask=np.arange(len(example.ids)) > 0)

    def examples(self) -> Iterator[Example]:
        """Every example once, in the order of the files, with only the replies as targets."""
        for file in self._files:
            yield from file.examples

    @property
    def conversations(self) -> Iterator[Conversation]:
        """The conversations of `examples`, in the same order."""
        for file in self._files:
            yield from file.conversations

    @property
    def per_epoch(self) -> dict[str, int]:
        """Path -> how many examples of an epoch are those of the file."""
        return {file.conversations[0].path: file.n_per_epoch for file in self._files}

    def notes(self, purpose: str) -> list[str]:
        """A note for each file and each kind of `left_out`. `purpose` says what the conversations are for."""
        places: dict[tuple[str, str], list[str]] = {}
        for one in self.left_out:
            place = f"{one.conversation.place}: {one.why}"
            places.setdefault((one.conversation.path, one.what), []).append(place)
        return [with_places(f"{path}: chats {purpose} that are {what}", places[path, what]) for path, what in places]

    def _fit(self, conversation: Conversation, tokenizer: ChatTokenizer, train: str) -> Rendered | None:
        """Render as many exchanges as fit into the context; None, with an entry in `left_out`, if not even one does."""
        seq_len = self.data.seq_len
        messages = list(conversation.messages)
        if format_of(tokenizer).reasoning_marks() is not None:
            messages = list(map(with_reasoning, messages))
        if self.data.system_message and messages[0].role != "system":
            messages.insert(0, Message("system", self.data.system_message))
        n_messages = len(messages)
        n_tokens = 0
        while messages:
            last = len(messages) - 1
            shown = [replace(m, train=m.train and (train == "all" or at == last)) for at, m in enumerate(messages)]
            try:
                rendered = render_spans(shown, tokenizer, system_default=False, tools=conversation.tools)
            except UserError as error:  # what the format can't render, or roles that the template of a model refuses
                self.left_out.append(LeftOut(conversation, "dropped", str(error).rstrip(".")))
                return None
            n_tokens = n_tokens or len(rendered.ids)
            if len(rendered.ids) <= seq_len and rendered.reply_spans:
                if n_removed := n_messages - len(messages):
                    why = f"it has {n_tokens:,} tokens, {seq_len:,} fit: its last {n_removed} messages are removed"
                    self.left_out.append(LeftOut(conversation, "shortened", why))
                return rendered
            # The last exchange: a question with all that follows, which can be calls of tools and their results.
            del messages[max((at for at, m in enumerate(messages) if m.role == "user"), default=0) :]
            if messages and messages[-1].role != "assistant":
                break
        why = f"its first trained exchange doesn't fit into {seq_len:,} tokens (it has {n_tokens:,})"
        self.left_out.append(LeftOut(conversation, "dropped", why))
        return None


def with_reasoning(message: Message) -> Message:
    """Move a `<think>…</think>` at the beginning of an assistant's message into its reasoning, as templates with reasoning do."""
    if message.role != "assistant" or message.reasoning is not None or not (match := _THINK.match(message.content)):
        return message
    reasoning = match.group(1).strip("\n")
    return replace(message, content=message.content[match.end() :], reasoning=reasoning if reasoning.strip() else None)


_THINK = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Path -> a short name to show: the file's name without its suffix, with the folder's name if two files have the same one."""
    stems = {path: re.sub(r"(\.jsonl?|\.gz)+$", "", Path(path).name) for path in paths}
    counts = Counter(stems.values())
    return {path: stem if counts[stem] == 1 else f"{Path(path).parent.name}/{stem}" for path, stem in stems.items()}


def split(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Split into (training, held out). The split depends on the texts and the seed, not on files or positions.

    `share` of the distinct conversations is held out, at least one if there are two or more. Duplicates stay together.
    """
    keys = [content_key(conversation) for conversation in conversations]
    order = sorted(set(keys), key=lambda key: _digest(f"{seed}/{key}"))
    n = min(len(order) - 1, max(1, round(share * len(order)))) if share > 0 else 0
    held_out = set(order[:n])
    parts: tuple[list[Conversation], list[Conversation]] = [], []
    for conversation, key in zip(conversations, keys, strict=True):
        parts[key in held_out].append(conversation)
    return parts


def content_key(conversation: Conversation) -> str:
    """Equal for conversations with the same text, ignoring case and white space."""
    texts: list[object] = [[m.role, _normalized(m.content)] for m in conversation.messages]
    extras = [[m.reasoning, m.tool_calls] for m in conversation.messages if m.reasoning or m.tool_calls]
    if (
        extras or conversation.tools
    ):  # without these the key is that of earlier versions, which decides what is held out
        texts += [extras, conversation.tools]
    return _digest(json.dumps(texts))


def prompt_key(conversation: Conversation) -> str:
    """Equal for conversations that begin with the same question."""
    return _digest(_normalized(next((m.content for m in conversation.messages if m.role == "user"), "")))


def duplicates(conversations: Sequence[Conversation]) -> list[list[Conversation]]:
    """Groups of two or more equal conversations, in the order of their first members."""
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(content_key(conversation), []).append(conversation)
    return [group for group in groups.values() if len(group) > 1]


def in_both(
    trained: Sequence[Conversation], held_out: Sequence[Conversation]
) -> tuple[list[Conversation], list[Conversation]]:
    """Held-out conversations that occur in the training part too: (the whole conversation, only its first question)."""
    keys, prompts = {content_key(c) for c in trained}, {prompt_key(c) for c in trained}
    whole = [c for c in held_out if content_key(c) in keys]
    question = [c for c in held_out if content_key(c) not in keys and prompt_key(c) in prompts]
    return whole, question


def nearest_prompts(prompts: Sequence[str], conversations: Sequence[Conversation]) -> Iterator[tuple[float, str, str]]:
    """For each prompt, (similarity, prompt, question) with the most similar question of the conversations.

    The similarity is Jaccard's index of their sets of words: words in both over words in either.
    """
    questions = {m.content: set(_words(m.content)) for c in conversations for m in c.messages if m.role == "user"}
    for prompt in prompts:
        words = set(_words(prompt))
        similarity = {text: len(words & other) / max(1, len(words | other)) for text, other in questions.items()}
        nearest = max(similarity, key=lambda text: similarity[text])
        yield similarity[nearest], prompt, nearest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()

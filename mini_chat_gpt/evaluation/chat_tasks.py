"""Replies of held-out chats as tasks: a model writes the reply that comes next, from the turns before it.

One reply of each chat is a task, so that the tasks are independent, as confidence intervals assume. In a chat of several turns
the seed chooses which, and the turns before it are those of the file, whatever the model would have said.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mini_chat_gpt.chat_format import Message, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_fitting import with_reasoning
from mini_chat_gpt.data.chat_split import content_key
from mini_chat_gpt.evaluation.bits_per_byte import add_losses, tokens_per_batch
from mini_chat_gpt.generation.text import Prompt, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

CHATS = "chats"
"""The kind of these tasks; "chats/NAME" if there are several sources. It is not in `tinystories.tasks.TASK_KINDS`."""
SPARE = 4
"""How many times as many chats are read as are needed, as some may not fit into the context."""
_AT_ONCE = 16  # replies whose loss is computed between two updates of the progress


def is_chats(kind: str) -> bool:
    """Whether a kind is one of chats."""
    return kind == CHATS or kind.startswith(f"{CHATS}/")


@dataclass(frozen=True)
class ChatTask(Task):
    """A reply of a chat. `prompt` is a text to read: the question, or all turns with their roles."""

    messages: tuple[Message, ...] = ()

    def prompt_for(self, tokenizer: ChatTokenizer) -> Prompt:
        """What the model gets. A base model without a chat format gets the turns as paragraphs of a text."""
        if tokenizer.chat_format is not None:
            return self.messages
        return "\n\n".join(message.content for message in self.messages)


def make_tasks(
    conversations: Iterable[Conversation],
    models: Sequence[tuple[GPT, ChatTokenizer]],
    n: int,
    seed: int,
    kind: str = CHATS,
    only_last: bool = False,
) -> list[ChatTask]:
    """A task from each of at most n conversations, which the seed and their texts select, whatever their order.

    Equal conversations count once. Prompt and reply fit the contexts of all models; conversations with tools, and those without a
    reply that fits, are passed over. `only_last`: as in training with `chats.train=last`.
    """
    keyed = ((_digest(seed, content_key(one)), number, one) for number, one in enumerate(conversations))
    first = {key: conversation for key, _, conversation in heapq.nsmallest(SPARE * n, keyed)}
    tasks: list[ChatTask] = []
    for key, conversation in first.items():
        fitting = (task for task in _tasks_of(conversation, key, kind, only_last) if fits(task, models))
        tasks += [task] if (task := next(fitting, None)) is not None else []
        if len(tasks) == n:
            break
    return tasks


def _tasks_of(conversation: Conversation, key: bytes, kind: str, only_last: bool) -> Iterator[ChatTask]:
    """The replies of a conversation in random order."""
    messages = conversation.messages
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        return
    replies = [at for at, message in enumerate(messages) if message.role == "assistant" and message.train]
    for at in replies[-1:] if only_last else sorted(replies, key=lambda at: _digest(at, key)):
        before, target = tuple(map(with_reasoning, messages[:at])), with_reasoning(messages[at]).content
        if target.strip():
            yield ChatTask(kind, _as_text(before), target, None, messages=before)


def _as_text(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def _digest(seed: int, key: bytes) -> bytes:
    return hashlib.blake2b(f"{seed}/{key.hex()}".encode(), digest_size=12).digest()


def fits(task: ChatTask, models: Sequence[tuple[GPT, ChatTokenizer]]) -> bool:
    """Whether the format of each model can render the prompt, and its context holds prompt and reply."""
    try:
        return all(len(_reply_of(task, tokenizer).ids) <= model.config.context_length for model, tokenizer in models)
    except UserError:
        return False


def reply_losses(
    model: GPT, tokenizer: ChatTokenizer, tasks: Sequence[ChatTask], progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """(n, 2) of the expected replies: the sum of the losses in nats, and the number of tokens, that which ends it included."""
    nats, counts = np.zeros(len(tasks)), np.zeros(len(tasks), dtype=np.int64)
    examples = [_reply_of(task, tokenizer, str(number)) for number, task in enumerate(tasks)]
    examples.sort(key=lambda example: len(example.ids))  # little padding
    training = model.training
    model.eval()
    try:
        for start in range(0, len(examples), _AT_ONCE):
            add_losses(model, examples[start : start + _AT_ONCE], tokens_per_batch(model), nats, counts)
            if progress is not None:
                progress(min(start + _AT_ONCE, len(examples)))
    finally:
        model.train(training)
    return np.stack([nats, counts], axis=1)


def _reply_of(task: ChatTask, tokenizer: ChatTokenizer, kind: str = CHATS) -> Example:
    """The chat up to the expected reply, whose tokens are the targets. Raises UserError if it can't be rendered."""
    if tokenizer.chat_format is None:
        prompt = task.prompt_for(tokenizer)
        begin = prompt_ids(tokenizer, f"{prompt}\n\n")
        ids = [*begin, *tokenizer.encode(task.target), tokenizer.document_id]
        span = (len(begin), len(ids))
    else:
        messages, default = list(task.messages), tokenizer.chat_format.default_system
        if default and messages[0].role != "system":
            messages.insert(0, Message("system", default))
        rendered = render_spans([*messages, Message("assistant", task.target)], tokenizer, system_default=False)
        ids, span = rendered.ids, rendered.reply_spans[-1]
    mask = np.zeros(len(ids), dtype=bool)
    mask[slice(*span)] = True
    return Example(np.array(ids, dtype=np.int32), mask, weight=1.0, kind=kind)

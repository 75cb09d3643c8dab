"""The data of a fine-tuning run: TinyStories-Instruct tasks, your own chats, or both, as the config says.

The trainer, `inspect` and `doctor` all get their examples here. `sft_dataloader` and `data/chat_dataset` make them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
from rich.console import Console

from mini_chat_gpt.checkpoints.purpose import MAX_NAMES, N_PROMPTS, Purpose, prompts_to_try
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.config import ChatsSection, Config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.chat_cache import render_files
from mini_chat_gpt.data.chat_dataset import ChatDataset
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.chat_notes import overlap_notes, repeated_note
from mini_chat_gpt.data.chat_split import held_out_part
from mini_chat_gpt.data.epoch_order import EpochOrder
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.data.rendered_chats import RenderedChats
from mini_chat_gpt.data.step_loader import ExampleDataset
from mini_chat_gpt.generation.text import Prompt
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, find_instruct_file, stories
from mini_chat_gpt.tinystories.conversation_dataset import KIND as CONVERSATION
from mini_chat_gpt.tinystories.conversation_dataset import ConversationDataset
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Stage

N_SHOWN_CHATS = 4
"""Held-out chats for which the model writes a reply at each evaluation."""
N_TRIED = 8
"""Held-out tasks of a kind among which one is chosen for the chat's first screen."""


@dataclass(frozen=True)
class Shown:
    """A held-out prompt for which the model writes a reply at each evaluation."""

    kind: str
    prompt: Prompt
    expected: str


@dataclass(frozen=True)
class ChatData:
    """Chat files as a run uses them."""

    trained: ChatDataset
    held_out: ChatDataset | None  # None: nothing is held out, and validation uses the training chats
    notes: list[str]  # what the user should know about the files; places of records have lines of their own

    @property
    def validated(self) -> ChatDataset:
        return self.held_out or self.trained


@dataclass(frozen=True)
class SftExamples:
    """Everything that a run uses of its data."""

    source: ExampleDataset
    validation: list[Example]
    shown: list[Shown]
    files: list[Path]
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stories: InstructDataset | None = None
    eval_tasks: list[Task] = field(default_factory=list)
    """Held-out tasks that are scored at each evaluation."""
    chats: ChatData | None = None
    purpose: Purpose = field(default_factory=Purpose)


class Mixed:
    """Two datasets in one: an epoch has each example of the first once, and enough of the second to make `share` of all."""

    def __init__(self, first: ExampleDataset, second: ExampleDataset, share: float, seed: int) -> None:
        self.first, self.second = first, second
        self.added = max(1, round(len(first) * share / (1 - share)))
        self._order = EpochOrder(len(self), seed)

    def __len__(self) -> int:
        return len(self.first) + self.added

    def __getitem__(self, index: int) -> Example:
        """Example `index`, for any index ≥ 0; those from `len(self)` on belong to later epochs."""
        (epoch, place), n = self._order[index], len(self.first)
        return self.first[epoch * n + place] if place < n else self.second[epoch * self.added + place - n]


def make_examples(
    config: Config, tokenizer: ChatTokenizer, context: int, console: Console | None = None
) -> SftExamples:
    """Make the examples of the config's `sft`, `data` and `chats` sections, no longer than the model's context.

    `console` shows the progress where it takes long. Raises UserError for data that can't be used.
    """
    config = for_model(config, tokenizer, context)
    if not config.chats.files:
        return _story_examples(config, tokenizer, context)
    chats = _chat_examples(config, tokenizer, context, console)
    if not config.chats.stories:
        if config.data.curriculum:
            raise UserError(
                "The stages of data.curriculum use TinyStories-Instruct tasks, but chats.stories is 0; set chats.stories, "
                "or set data.curriculum=[]."
            )
        return chats
    stories = _story_examples(config, tokenizer, context)
    return SftExamples(
        source=Mixed(chats.source, stories.source, config.chats.stories, config.system.seed),
        validation=chats.validation + stories.validation,
        shown=chats.shown + stories.shown,
        files=chats.files + stories.files,
        stages=stories.stages,
        notes=chats.notes,
        stories=stories.stories,
        eval_tasks=stories.eval_tasks,
        chats=chats.chats,
        purpose=Purpose(
            tasks=stories.purpose.tasks,
            chats=chats.purpose.chats,
            prompts=prompts_to_try([*chats.purpose.prompts[: N_PROMPTS - 1], *stories.purpose.prompts]),
        ),
    )


def for_model(config: Config, tokenizer: ChatTokenizer, context: int) -> Config:
    """The config with the data section as it is for a model: its context is the limit, its chat format has the system message."""
    data = config.data.limited_to(context)
    if tokenizer.chat_format is not None:  # its default is the setting or, without one, that of the model's template
        data = data.model_copy(update={"system_message": tokenizer.chat_format.default_system})
    return config.model_copy(update={"data": data})


def texts_for_tokenizer(config: Config, n: int = 2000) -> Iterator[str]:
    """Texts of the data, to train a tokenizer on: those of the first n chats and of the first n stories."""
    if files := config.chats.files:
        # Bad records are skipped here; they are reported when the examples are made.
        for chat in islice(read_conversations(files, [], config.chats.keys), n):
            yield from (message.content for message in chat.messages)
    if not files or config.chats.stories:
        yield from islice(stories(find_instruct_file(config.sft.dataset_path, "train")), n)


# TinyStories-Instruct


def _story_examples(config: Config, tokenizer: ChatTokenizer, context: int) -> SftExamples:
    train, held_out = _instruct_datasets(config, tokenizer)
    train[0]  # raises if no example fits; the held-out tasks below would be looked for in all records first
    train.stats.clear()
    n = config.sft.eval_tasks
    tasks = [held_out.eval_tasks(kind, max(1, n)) for kind in held_out.mixture.kinds]
    source, validation = _with_conversations(train, held_out, config)
    return SftExamples(
        source=source,
        validation=validation,
        shown=[Shown(task.kind, task.prompt, task.target) for of_kind in tasks for task in of_kind[:1]],
        files=[train.index.path, held_out.index.path],
        stages=_curriculum(train, config, context),
        stories=train,
        eval_tasks=[task for of_kind in tasks for task in of_kind[:n]],
        purpose=_purpose_of_stories(held_out, config),
    )


def _with_conversations(
    train: InstructDataset, held_out: InstructDataset, config: Config
) -> tuple[ExampleDataset, list[Example]]:
    """Training and validation examples, of which data.conversations are whole conversations."""
    share, n = config.data.conversations, config.data.eval_examples
    if not share:
        return train, held_out.validation_examples(n)
    conversations = [ConversationDataset.like(dataset) for dataset in (train, held_out)]
    n_talks = max(1, round(n * share))
    validation = held_out.validation_examples(max(1, n - n_talks)) + conversations[1].validation_examples(n_talks)
    return Mixed(train, conversations[0], share, config.system.seed), validation


def _purpose_of_stories(held_out: InstructDataset, config: Config) -> Purpose:
    """The kinds of tasks, and a prompt of each of the most frequent ones, with different stories, short ones if possible."""
    shares: dict[str, float] = defaultdict(float)
    for category, share in held_out.mixture.shares.items():
        shares[category.split("/")[0]] += share
    frequent = sorted(held_out.mixture.kinds, key=lambda kind: -shares[kind])
    chosen: dict[str, str] = {}  # story -> prompt
    for kind in frequent[:N_PROMPTS]:
        # The question first, because only the beginning of a prompt is on the screen.
        tasks = sorted(held_out.eval_tasks(kind, N_TRIED), key=lambda task: (not task.question_first, len(task.prompt)))
        stories = [task.prompt[slice(*task.story_span)] if task.story_span else task.prompt for task in tasks]
        if new := [number for number, story in enumerate(stories) if story not in chosen]:
            chosen[stories[new[0]]] = tasks[new[0]].prompt
    kinds = [*held_out.mixture.kinds, *([CONVERSATION] if config.data.conversations else [])]
    return Purpose(tasks=kinds[:MAX_NAMES], prompts=prompts_to_try(chosen.values()))


def _instruct_datasets(config: Config, tokenizer: ChatTokenizer) -> tuple[InstructDataset, InstructDataset]:
    """Training and held-out examples of the Instruct files."""
    file, held_out = (find_instruct_file(config.sft.dataset_path, split) for split in ("train", "valid"))
    # data.limit is for training. It applies to the held-out file only if that is the same file.
    held_out_data = config.data if file == held_out else config.data.model_copy(update={"limit": None})
    seed = config.system.seed
    return (
        InstructDataset(RecordIndex(file), tokenizer, config.data, seed),
        InstructDataset(RecordIndex(held_out), tokenizer, held_out_data, seed),
    )


def _curriculum(dataset: InstructDataset, config: Config, context: int) -> list[Stage]:
    """The stages of data.curriculum, with the records of `dataset`. Raises UserError if they leave no steps to the rest."""
    if (total := sum(stage.share for stage in config.data.curriculum)) >= 1:
        raise UserError(
            f"The stages of data.curriculum take {total:.2f} of the run's steps; their shares must add up to less than 1."
        )
    stages = []
    for stage in config.data.curriculum:
        data = stage.apply_to(config.data).limited_to(context)  # a stage can have a seq_len of its own
        examples = InstructDataset(dataset.index, dataset.tokenizer, data, config.system.seed)
        stages.append(Stage(stage.share, examples, stage.tokens_per_step, stage.weight_decay))
    return stages


# Chat files


def _chat_examples(config: Config, tokenizer: ChatTokenizer, context: int, console: Console | None) -> SftExamples:
    chats = read_chats(config, tokenizer, context, console)
    shown = list(_shown(chats.validated, config.chats, N_SHOWN_CHATS))
    return SftExamples(
        source=chats.trained,
        validation=list(islice(chats.validated.examples(), config.data.eval_examples)),
        shown=shown,
        files=[file for path in {**config.chats.files, **config.chats.valid_files} for file in chat_files(path).all],
        notes=chats.notes,
        chats=chats,
        purpose=_purpose_of_chats(config, shown),
    )


def _purpose_of_chats(config: Config, shown: Sequence[Shown]) -> Purpose:
    """The names of the chat files, and the first message of a few held-out chats: the user's own prompts come before them."""
    conversations = [one.prompt for one in shown if not isinstance(one.prompt, str)]
    first = [next((m.content for m in messages if m.role == "user"), "") for messages in conversations]
    names = [path if hub_name(path, "dataset") else PurePath(path).name for path in config.chats.files]
    return Purpose(
        chats=[name[:200] for name in names[:MAX_NAMES]], prompts=prompts_to_try([*config.sft.prompts, *first])
    )


def read_chats(config: Config, tokenizer: ChatTokenizer, context: int, console: Console | None = None) -> ChatData:
    """Read, render and split the chats of the config. Raises UserError for files that can't be used."""
    chats, seed = config.chats, config.system.seed
    if both := [path for path in chats.files if path in chats.valid_files]:
        raise UserError(f"{both[0]} is in chats.files and in chats.valid_files; hold out another file.")
    rendered = render_files(chats, config.data, tokenizer, console)
    notes: list[str | None] = [*_folder_notes(chats), *rendered.meta.notes]
    trained, held_out = _explicit_parts(rendered, chats)
    notes.append(repeated_note(rendered, trained))
    if not chats.valid_files:
        # A part is held out of the sources that have no validation split of their own.
        file = rendered.chats["file"][trained]
        unsplit = trained[~np.isin(file, np.unique(rendered.chats["file"][held_out]))]
        chosen = unsplit[held_out_part(rendered.chats["content"][unsplit], chats.valid_share, seed)]
        trained, held_out = np.setdiff1d(trained, chosen), np.union1d(held_out, chosen)
    notes += overlap_notes(rendered, trained, held_out)
    datasets = (
        ChatDataset(rendered, chats, config.data, seed, trained),
        ChatDataset(rendered, chats, config.data, seed, held_out) if len(held_out) else None,
    )
    if datasets[1] is None:
        notes.append("No chat is held out: validation uses the training chats.")
    for dataset, purpose in zip(datasets, ("to train on", "held out"), strict=True):
        notes += dataset.notes(purpose, context) if dataset is not None else []
    return ChatData(*datasets, [note for note in notes if note is not None])


def _explicit_parts(rendered: RenderedChats, chats: ChatsSection) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of chats to train on, numbers of those held out), as far as the config or names of files say it.

    A folder or data set can have a validation split of its own; `chats.valid_files` replaces it.
    """
    file, in_split = rendered.chats["file"], rendered.chats["held_out"].astype(bool)
    if not chats.valid_files:
        return np.flatnonzero(~in_split), np.flatnonzero(in_split)
    validates = np.isin(file, [rendered.meta.paths.index(path) for path in chats.valid_files])
    has_split = np.isin(file, np.unique(file[in_split]))
    return np.flatnonzero(~validates & ~in_split), np.flatnonzero(validates & (in_split | ~has_split))


def _folder_notes(chats: ChatsSection) -> list[str]:
    """What to know about the files of folders, patterns and data sets, one sentence each."""
    notes = [chat_files(path).note(path, splits=not chats.valid_files) for path in chats.files]
    return [note for note in notes if note]


def _shown(dataset: ChatDataset, chats: ChatsSection, n: int) -> Iterator[Shown]:
    """The first chats up to the reply to their first question, read again from their files."""
    chosen: dict[str, set[int]] = {}
    for path, number in islice(dataset.used_chats(), n):
        chosen.setdefault(path, set()).add(number)
    names = {file.path: file.kind for file in dataset.files}
    for path, numbers in chosen.items():
        for number, conversation in enumerate(islice(read_conversations(path, [], chats.keys), max(numbers) + 1)):
            if number in numbers:
                messages = conversation.messages
                end = next(at for at, message in enumerate(messages) if message.role == "assistant")
                yield Shown(names[path], messages[:end], messages[end].content)

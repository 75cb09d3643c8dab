"""What a fine-tuning run learns from and is validated on: TinyStories-Instruct tasks, chats of one's own, or both.

`sft_dataloader.py` and `data/chat_dataset.py` make examples of the one and the other; here the settings decide which. The
trainer, `inspect` and `doctor` all get the same ones from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config, DataSection
from mini_chat_gpt.data.batching import Example, epoch_order
from mini_chat_gpt.data.chat_dataset import ChatDataset, duplicates, in_both, split
from mini_chat_gpt.data.chat_files import Conversation, Problem, read_conversations
from mini_chat_gpt.data.step_loader import ExampleDataset
from mini_chat_gpt.generation.text import Prompt
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, find_instruct_file
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Stage

SHOWN = 4
"""Held-out chats that are replied to at each evaluation."""


@dataclass(frozen=True)
class Shown:
    """A held-out prompt to be replied to at each evaluation."""

    kind: str
    prompt: Prompt
    expected: str


@dataclass(frozen=True)
class ChatData:
    """Chat files as a run uses them."""

    trained: ChatDataset
    held_out: ChatDataset | None  # None: nothing is held out, validation is on what is trained
    problems: list[Problem]  # records that were skipped
    notes: list[str]  # what a user should know about them, a sentence each

    @property
    def validated(self) -> ChatDataset:
        return self.held_out or self.trained


@dataclass(frozen=True)
class SftExamples:
    """All that a run takes from its data."""

    source: ExampleDataset
    validation: list[Example]
    shown: list[Shown]
    files: list[Path]
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stories: InstructDataset | None = None
    suite: list[Task] = field(default_factory=list)
    """Held-out tasks to be scored at each evaluation."""
    chats: ChatData | None = None


class Mixed:
    """Two sources in one: an epoch has each of the first's examples once, and of the second as many as make `share` of all."""

    def __init__(self, first: ExampleDataset, second: ExampleDataset, share: float, seed: int) -> None:
        self.first, self.second, self.seed = first, second, seed
        self.added = max(1, round(len(first) * share / (1 - share)))

    def __len__(self) -> int:
        return len(self.first) + self.added

    def __getitem__(self, index: int) -> Example:
        """The example of an index: a pure function of the sources, seed and index."""
        epoch, place = divmod(index, len(self))
        at, n = int(epoch_order(len(self), self.seed, epoch)[place]), len(self.first)
        return self.first[epoch * n + at] if at < n else self.second[epoch * self.added + at - n]


def make_examples(config: Config, tokenizer: ChatTokenizer, context: int) -> SftExamples:
    """The examples that the config's `sft`, `data` and `chats` sections mean. Raises UserError for what they can't be made of."""
    if not config.chats.files:
        return _of_stories(config, tokenizer, context)
    chats = _of_chats(config, tokenizer, context)
    if not config.chats.stories:
        if config.data.curriculum:
            raise UserError(
                "The lessons of data.curriculum are made of TinyStories-Instruct tasks, but chats.stories is 0; give it a share, "
                "or set data.curriculum=[]."
            )
        return chats
    stories = _of_stories(config, tokenizer, context)
    return SftExamples(
        source=Mixed(chats.source, stories.source, config.chats.stories, config.system.seed),
        validation=chats.validation + stories.validation,
        shown=chats.shown + stories.shown,
        files=chats.files + stories.files,
        stages=stories.stages,
        notes=chats.notes,
        stories=stories.stories,
        suite=stories.suite,
        chats=chats.chats,
    )


# TinyStories-Instruct


def _of_stories(config: Config, tokenizer: ChatTokenizer, context: int) -> SftExamples:
    source, held_out = make_sources(config, tokenizer, context)
    n = config.sft.eval_tasks
    tasks = [held_out.eval_tasks(kind, max(1, n)) for kind in held_out.kinds]
    return SftExamples(
        source=source,
        validation=held_out.validation_examples(config.data.eval_examples),
        shown=[Shown(task.kind, task.prompt, task.target) for those in tasks for task in those[:1]],
        files=[source.index.path, held_out.index.path],
        stages=make_stages(source, config, context),
        stories=source,
        suite=[task for those in tasks for task in those[:n]],
    )


def make_sources(config: Config, tokenizer: ChatTokenizer, context: int) -> tuple[InstructDataset, InstructDataset]:
    """Training and held-out examples of the Instruct files; nothing of the held-out file is ever trained on."""
    data, seed = config.data, config.system.seed
    file, held_out = (find_instruct_file(config.sft.dataset_path, split) for split in ("train", "valid"))
    all_records = data if file == held_out else data.model_copy(update={"limit": None})
    return (
        make_source(RecordIndex(file), data, tokenizer, context, seed),
        make_source(RecordIndex(held_out), all_records, tokenizer, context, seed),
    )


def make_source(
    index: RecordIndex, data: DataSection, tokenizer: ChatTokenizer, context: int, seed: int
) -> InstructDataset:
    """Examples of one file, as the data section has them."""
    return InstructDataset(
        index,
        tokenizer,
        seq_len=min(data.seq_len, context),
        seed=seed,
        mixture=data.mixture,
        loss_weights=data.loss_weights,
        system=data.system_message,
        limit=data.limit,
        answer_weight=data.answer_weight,
        prompt_weight=data.prompt_weight,
        turns=data.turns,
        prefix_branches=data.prefix_branches,
    )


def make_stages(source: InstructDataset, config: Config, context: int) -> list[Stage]:
    """The lessons of data.curriculum, on the records of `source`. Raises UserError where they leave nothing to the rest."""
    if (together := sum(lesson.share for lesson in config.data.curriculum)) >= 1:
        raise UserError(
            f"The lessons of data.curriculum have {together:.2f} of the run's steps together; give them less than 1."
        )
    stages = []
    for lesson in config.data.curriculum:
        given = lesson.model_dump(
            include={"seq_len", "turns", "prefix_branches", "answer_weight", "prompt_weight"}, exclude_none=True
        )
        mixture = (config.data.mixture or {}) | (lesson.mixture or {})
        data = config.data.model_copy(update=given | {"mixture": mixture})
        easier = make_source(source.index, data, source.tokenizer, context, config.system.seed)
        stages.append(Stage(lesson.share, easier, lesson.tokens_per_step, lesson.weight_decay))
    return stages


# Chat files


def _of_chats(config: Config, tokenizer: ChatTokenizer, context: int) -> SftExamples:
    data = read_chats(config, tokenizer, context)
    return SftExamples(
        source=data.trained,
        validation=list(islice(data.validated.examples(), config.data.eval_examples)),
        shown=list(islice(_shown(data.validated), SHOWN)),
        files=[Path(path) for path in {**config.chats.files, **config.chats.valid_files}],
        notes=data.notes,
        chats=data,
    )


def read_chats(config: Config, tokenizer: ChatTokenizer, context: int) -> ChatData:
    """Read, split and fit the chats of the config. Raises UserError for files that can't be used."""
    chats, seed = config.chats, config.system.seed
    problems: list[Problem] = []
    # All that is wrong with all files is said at once.
    everything = list(read_conversations([*chats.files, *chats.valid_files], problems if chats.skip_bad else None))
    trained = [c for c in everything if c.path in chats.files]
    held_out = [c for c in everything if c.path in chats.valid_files]
    if both := [path for path in chats.files if path in chats.valid_files]:
        raise UserError(f"{both[0]} stands in chats.files and in chats.valid_files; hold out another file.")
    repeated = duplicates(trained)
    if not chats.valid_files:
        trained, held_out = split(trained, chats.valid_share, seed)

    def source(conversations: Sequence[Conversation], weights: dict[str, float]) -> ChatDataset:
        return ChatDataset(
            conversations,
            tokenizer,
            min(config.data.seq_len, context),
            seed,
            weights,
            chats.train,
            config.data.system_message,
            config.data.prompt_weight,
        )

    sources = source(trained, chats.files), source(held_out, {}) if held_out else None
    notes = [*_skipped(problems), *_repeated(repeated), *_in_both(trained, held_out)]
    if sources[1] is None:
        notes.append("No chat is held out: validation is on what is trained on.")
    for part, name in zip(sources, ("to train on", "held out"), strict=True):
        notes += part.notes(name) if part is not None else []
    return ChatData(*sources, problems, notes)


def _skipped(problems: Sequence[Problem]) -> list[str]:
    by_file = Counter(problem.path for problem in problems)
    firsts = {problem.path: problem for problem in reversed(problems)}
    return [f"{path}: records skipped: {n:,}; the first: {firsts[path]}." for path, n in by_file.items()]


def _repeated(groups: Sequence[Sequence[Conversation]]) -> list[str]:
    if not groups:
        return []
    n, (one, other) = sum(len(group) - 1 for group in groups), groups[0][:2]
    return [
        f"Chats that say the same as another one: {n:,}; the first: {one.path}, line {one.line}, and {other.path}, line {other.line}."
    ]


def _in_both(trained: Sequence[Conversation], held_out: Sequence[Conversation]) -> list[str]:
    whole, question = in_both(trained, held_out)
    notes = []
    if whole:
        notes.append(
            f"Held-out chats that are trained on too: {len(whole):,}; the first: {whole[0].path}, line {whole[0].line}."
        )
    if question:
        where = f"{question[0].path}, line {question[0].line}"
        notes.append(
            f"Held-out chats that begin with a question that is trained on: {len(question):,}; the first: {where}."
        )
    return notes


def _shown(source: ChatDataset) -> Iterator[Shown]:
    """Chats up to the reply to their first question."""
    for conversation in source.conversations:
        end = next(at for at, message in enumerate(conversation.messages) if message.role == "assistant")
        prompt = conversation.messages[:end]
        yield Shown(source.names[conversation.path], prompt, conversation.messages[end].content)

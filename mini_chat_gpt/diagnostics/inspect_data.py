"""`mini-chat-gpt inspect`: show what a fine-tuning run will train on.

Shows the batches of the first steps exactly as the trainer gets them, with the trained tokens marked. Counts tokens by
source and kind, and reports how long the examples are, which records are left out and why, and what the run validates on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, load_named_tokenizer, load_tokenizer
from mini_chat_gpt.cli import parse
from mini_chat_gpt.cli_verbs import EXAMPLES_ON_PAGE, EXAMPLES_SHOWN
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.common.writable import require_writable_file
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.batching import Example, micro_batches
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.step_loader import StepLoader
from mini_chat_gpt.diagnostics.inspect_page import page
from mini_chat_gpt.diagnostics.inspect_text import print_line, show
from mini_chat_gpt.diagnostics.inspection import Finding, Inspection, MicroBatch, Row, ShownExample, histogram
from mini_chat_gpt.sft_dataloader import find_instruct_file, stories
from mini_chat_gpt.tokenizer.chat_setup import set_chat_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.sft_data import Mixed, SftExamples, make_examples

SAMPLE = 1000
"""Examples to measure of a source that makes new tasks in each epoch."""
_TOKENIZER_TEXTS = 2000  # texts of each source for a tokenizer trained on the spot
_MAX_PLACES = 3  # file positions listed in a finding


# ---- the settings and the tokenizer of the run -----------------------------------------------------------------------


def with_files(config: Config, files: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Return the config with these files instead of its own: a folder or a .txt file holds stories, any other file chats.

    The config's validation files belong to its own chat files, so they are dropped unless an override names them.
    Raises UserError.
    """
    for file in files:
        if not Path(file).exists() and hub_name(file, "dataset") is None:
            raise UserError(f"There is no {file}; give chat files, a folder with stories, or section.key=value.")
    story_paths = [file for file in files if Path(file).is_dir() or file.endswith(".txt")]
    chats = [file for file in files if file not in story_paths]
    if len(story_paths) > 1:
        raise UserError(f"{story_paths[0]} and {story_paths[1]} both hold stories; give one of them.")
    if story_paths and chats and not config.chats.stories:
        raise UserError(
            f"{story_paths[0]} needs a share of the examples in addition to the chats; for example chats.stories=0.3."
        )
    if story_paths:
        config = config.model_copy(update={"sft": config.sft.model_copy(update={"dataset_path": story_paths[0]})})
    if files:
        overridden = any(override.startswith("chats.valid_files") for override in overrides)
        valid_files = config.chats.valid_files if overridden and chats else {}
        weights = {file: config.chats.files.get(file, 1.0) for file in chats}
        changes = {"files": weights, "valid_files": valid_files}
        config = config.model_copy(update={"chats": config.chats.model_copy(update=changes)})
    return config


def tokenizer_for(config: Config, name: str | None = None) -> tuple[ChatTokenizer, int, str]:
    """Return (tokenizer, context length, a sentence about both).

    `name` selects a tokenizer. Otherwise those of the base model that the run would use are taken. Without a base model a tokenizer
    is trained on the data.
    """
    base = None if name else config.sft.pretrained_checkpoint or newest_checkpoint(base=True)
    if name is not None:
        tokenizer = load_named_tokenizer(name)
        context, note = config.data.seq_len, f"Tokenizer: {Path(name).name} (--tokenizer); the context is data.seq_len."
    elif base is None:
        tokenizer, context = _tokenizer_from_data(config), config.data.seq_len
        note = (
            f"There is no base model under runs/: a tokenizer with {tokenizer.vocab_size:,} entries was trained on these "
            "texts. The counts of a run with another tokenizer differ; choose one with --tokenizer."
        )
    else:
        tokenizer, shape = load_tokenizer(find_source(Path(base), weights=False))
        context = shape.context_length
        note = f"Tokenizer and context: those of {base}."
    set_chat_format(tokenizer, config.sft.chat_format, config.data.system_message)  # as fine-tuning does
    return tokenizer, context, note


def _tokenizer_from_data(config: Config) -> ChatTokenizer:
    texts: list[str] = []
    if files := config.chats.files:
        # Bad records are skipped here; they are reported when the examples are made.
        chats = islice(read_conversations(files, []), _TOKENIZER_TEXTS)
        texts += (message.content for chat in chats for message in chat.messages)
    if not files or config.chats.stories:
        texts += islice(stories(find_instruct_file(config.sft.dataset_path, "train")), _TOKENIZER_TEXTS)
    return ChatTokenizer.train(texts, config.pretrain.tokenizer_vocab_size)


def _replies_only(config: Config) -> Config:
    """Return the config without prompt weights: with them every token is trained, and marking would show nothing."""
    stages = [stage.model_copy(update={"prompt_weight": None}) for stage in config.data.curriculum]
    data = config.data.model_copy(update={"prompt_weight": 0.0, "curriculum": stages})
    return config.model_copy(update={"data": data})


# ---- inspection ------------------------------------------------------------------------------------------------------


def inspect(
    config: Config, tokenizer: ChatTokenizer, context: int, steps: int = 1, n: int = 3, notes: Sequence[str] = ()
) -> Inspection:
    """Inspect what a run with this config trains on: the batches of its first steps, at least `n` examples, and all counts.

    `notes` are further sentences for the head of the output. Raises UserError for data that a run would reject, too.
    """
    examples = make_examples(_replies_only(config), tokenizer, context)
    limit = min(config.data.seq_len, context)
    sources = list(_sources(examples, config))
    # Before the first steps are read, as reading them adds to the statistics of the stories.
    left_out = [*_chat_findings(examples), *_story_findings(examples, sources, limit)]
    in_epoch = [source for source in sources if source.per_epoch is not None]
    lengths = np.concatenate([[one.tokens for one in source.sizes] for source in in_epoch]).astype(np.int64)
    repeats = np.concatenate([np.full(len(source.sizes), source.repeats) for source in in_epoch])
    batches, shown = _first_steps(config, examples, steps, n)
    per_epoch = sum(source.per_epoch or 0 for source in in_epoch)
    names = [config.sft.pretrained_checkpoint or "", config.sft.dataset_path, *map(str, examples.files)]
    return Inspection(
        about=[*_about(config, examples, notes), *_prefix_note(shown)],
        batches=batches,
        shown=shown,
        rows=[row for source in sources for row in source.rows(per_epoch)],
        counted=[source.counted for source in sources if source.counted],
        lengths=histogram(lengths, repeats, limit, "context" if context <= config.data.seq_len else "data.seq_len"),
        left_out=left_out,
        validation=Counter(example.kind for example in examples.validation),
        tokenizer=tokenizer,
        paths=[*names, *config.chats.files, *config.chats.valid_files],
    )


def _about(config: Config, examples: SftExamples, notes: Sequence[str]) -> Iterator[str]:
    """Sentences about the data and about settings that change what the marks mean."""
    yield f"Data: {', '.join(map(str, examples.files))}"
    yield from notes
    weights = {config.data.prompt_weight, *(stage.prompt_weight for stage in config.data.curriculum)}
    if nonzero := sorted(weight for weight in weights if weight):
        values = " or ".join(f"{weight:g}" for weight in nonzero)
        yield f"data.prompt_weight is {values}: unmarked tokens are trained as well, with that weight."
    if examples.stages:
        yield "The first steps are those of stage 1 of data.curriculum."


def _prefix_note(shown: Sequence[ShownExample]) -> Iterator[str]:
    if any(one.example.prefix_branches for one in shown):
        yield "The context limits each conversation of an example with prefix branches, not their sum."


class _Size(NamedTuple):
    """The size of one example."""

    kind: str
    tokens: int
    trained: int
    weight: float  # sum over the trained tokens


@dataclass(frozen=True)
class _Source:
    """The measured examples of one source."""

    name: str
    sizes: list[_Size]
    per_epoch: int | None  # examples of an epoch that come from it; None for a curriculum stage
    counted: str = ""  # a sentence, if the numbers are estimates

    @property
    def repeats(self) -> float:
        """How often each measured example occurs in an epoch."""
        return 1.0 if self.per_epoch is None else self.per_epoch / len(self.sizes)

    def rows(self, epoch: int) -> Iterator[Row]:
        """One row for each kind; `epoch` is the number of examples of all sources in an epoch."""
        total = len(self.sizes) if self.per_epoch is None else epoch / self.repeats
        by_kind: dict[str, list[_Size]] = {}
        for size in self.sizes:
            by_kind.setdefault(size.kind, []).append(size)
        for kind, sizes in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            trained = sum(size.trained for size in sizes)
            yield Row(
                source=self.name,
                kind=kind,
                examples=None if self.per_epoch is None else len(sizes) * self.repeats,
                share=len(sizes) / total,
                tokens=sum(size.tokens for size in sizes) * self.repeats,
                trained=trained * self.repeats,
                weight=sum(size.weight for size in sizes) / max(1, trained),
                exact=not self.counted,
            )


def _sizes(examples: Iterable[Example]) -> list[_Size]:
    return [
        _Size(example.kind, len(example.ids), example.n_trained, float((example.weight * example.loss_mask)[1:].sum()))
        for example in examples
    ]


def _sources(examples: SftExamples, config: Config) -> Iterator[_Source]:
    """Measure every example of chat files, and a sample of the stories and of each curriculum stage."""
    if examples.chats:
        source = examples.chats.trained
        pairs = zip(source.conversations, source.examples(), strict=True)
        for path, file_pairs in groupby(pairs, key=lambda pair: pair[0].path):
            sizes, weight = _sizes(example for _, example in file_pairs), config.chats.files[path]
            per_epoch = max(1, round(len(sizes) * weight))  # the same rounding as in ChatDataset
            uneven = per_epoch % len(sizes) != 0
            note = f"{path} has weight {weight:g}: its tokens per epoch are a mean." if uneven else ""
            times = "" if weight == 1 else f" × {weight:g}"
            yield _Source(Path(path).name + times, sizes, per_epoch, note)
    if dataset := examples.stories:
        per_epoch = examples.source.added if isinstance(examples.source, Mixed) else len(dataset)
        sizes = _sizes(map(dataset.__getitem__, range(min(SAMPLE, len(dataset)))))
        note = f"{dataset.index.path}: estimated from a sample of {len(sizes):,} of its {len(dataset):,} records."
        exact = len(sizes) == len(dataset) == per_epoch
        yield _Source(dataset.index.path.name, sizes, per_epoch, "" if exact else note)
    for number, stage in enumerate(examples.stages, 1):
        sizes = _sizes(map(stage.source.__getitem__, range(min(SAMPLE // 4, len(stage.source)))))
        note = f"Stage {number}, the first {stage.share:.0%} of the steps: a sample of {len(sizes):,}."
        yield _Source(f"stage {number}", sizes, None, note)


def _first_steps(
    config: Config, examples: SftExamples, steps: int, n: int
) -> tuple[list[MicroBatch], list[ShownExample]]:
    """The micro-batches of the first steps and their examples. Reads more steps where these have fewer than n examples."""
    source = examples.source
    batch_size, per_step, tokens = config.step_size(config.sft)
    if examples.stages:
        source, tokens = examples.stages[0].source, examples.stages[0].tokens_per_step or tokens
    origin = _origins(examples)
    batches, shown = list[MicroBatch](), list[ShownExample]()
    step, enough = 0, min(n, len(source))
    with StepLoader(source, 0) as reader:
        while step < steps or len(shown) < enough:
            step += 1
            step_examples, _ = reader.step(per_step, tokens)
            # micro_batches sorts in the same way, so that the examples can be assigned to their batch.
            in_order = iter(sorted(step_examples, key=lambda example: len(example.ids), reverse=True))
            for number, batch in enumerate(micro_batches(step_examples, batch_size, config.training.batch_tokens), 1):
                if step <= steps:
                    batches.append(MicroBatch(step, number, batch.n_examples, batch.n_tokens, batch.n_targets))
                for example in islice(in_order, batch.n_examples):
                    shown.append(ShownExample(example, step, number, origin.get(id(example), "")))
    return batches, shown[:n]


def _origins(examples: SftExamples) -> dict[int, str]:
    """File and line of each chat example, keyed by `id()`: the dataset returns the same objects in every epoch."""
    if examples.chats is None:
        return {}
    source = examples.chats.trained
    return {
        id(example): f"{chat.path}, {chat.place}"
        for example, chat in zip(source.examples(), source.conversations, strict=True)
    }


def _chat_findings(examples: SftExamples) -> Iterator[Finding]:
    """Chats that are skipped, dropped or shortened, with their places, and the other notes of the run about its chats."""
    if (chats := examples.chats) is None:
        return
    places_of: dict[tuple[str, str], list[str]] = {}
    for problem in chats.problems:
        places_of.setdefault((problem.path, "records skipped"), []).append(f"{problem.place}: {problem.what}")
    covered = {f"{problem}." for problem in chats.problems}  # notes that the findings repeat in more detail
    for dataset, name in ((chats.trained, "to train on"), (chats.held_out, "held out")):
        for one in dataset.left_out if dataset else []:
            where = f"{one.conversation.place}: {one.why}"
            places_of.setdefault((one.conversation.path, f"chats {name} {one.what}"), []).append(where)
        covered.update(dataset.notes(name) if dataset else [])
    for (path, what), places in places_of.items():
        more = [f"and {len(places) - _MAX_PLACES:,} more"] if len(places) > _MAX_PLACES else []
        yield Finding(f"{path}: {len(places):,} of its {what}", (*places[:_MAX_PLACES], *more))
    yield from (Finding(note) for note in chats.notes if not any(note.endswith(one) for one in covered))


def _story_findings(examples: SftExamples, sources: Sequence[_Source], limit: int) -> Iterator[Finding]:
    """What happened to the sampled records."""
    if (dataset := examples.stories) is None:
        return
    file, stats = dataset.index.path, dataset.stats
    n = next(len(source.sizes) for source in sources if source.name == file.name)
    if without_story := dataset.index.without_story:
        yield Finding(f"{file}: {without_story:,} records without a story are left out")
    sentences = {
        "shortened": f"whose story lost text from its middle, to fit into {limit:,} tokens",
        "substituted": "made from another record, because their own record gives no task",
    }
    for key, words in sentences.items():
        if stats[key]:
            yield Finding(f"{file}: {stats[key]:,} of {n:,} examples {words}")
    prefix = "too long: "
    if too_long := {key.removeprefix(prefix): value for key, value in stats.items() if key.startswith(prefix)}:
        kinds = ", ".join(f"{kind} {value:,}" for kind, value in sorted(too_long.items(), key=lambda item: -item[1]))
        yield Finding(f"{file}: tasks that don't fit into {limit:,} tokens, among {n:,} examples: {kinds}")


# ---- the command -----------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt inspect` with a parsed command line."""
    if arguments.html:
        require_writable_file(Path(arguments.html))
    config = with_files(arguments.settings, arguments.files, arguments.overrides)
    tokenizer, context, note = tokenizer_for(config, arguments.tokenizer)
    on_screen = EXAMPLES_SHOWN if arguments.n is None else arguments.n
    n = EXAMPLES_ON_PAGE if arguments.html and arguments.n is None else on_screen
    inspection = inspect(config, tokenizer, context, arguments.steps, n, [note])
    out = console()
    if not out.is_terminal:
        out.width = max(out.width, 200)  # a pipe has no width to fit
    show(inspection, out, on_screen)
    if arguments.html:
        atomic_write_text(arguments.html, page(inspection))
        print_line(out, f"\nWrote {arguments.html}.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("inspect", argv))


if __name__ == "__main__":
    exit_with(main)

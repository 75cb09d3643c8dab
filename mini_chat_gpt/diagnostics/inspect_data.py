"""`mini-chat-gpt inspect`: show what a run will train on: fine-tuning, or pretraining if the data are text.

Shows the batches of the first steps exactly as the trainer gets them, with the trained tokens marked. Counts tokens by
source and kind, and reports how long the examples are, which records are left out and why, and what the run validates on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_named_tokenizer
from mini_chat_gpt.cli_verbs import EXAMPLES_ON_PAGE, EXAMPLES_SHOWN
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.terminal import console, print_line
from mini_chat_gpt.common.writable import require_writable_file
from mini_chat_gpt.config import Config, ScheduleFields
from mini_chat_gpt.data.batch_dump import headline, size_of, token_pieces
from mini_chat_gpt.data.batching import group_examples
from mini_chat_gpt.data.data_files import first_names
from mini_chat_gpt.data.step_loader import StepLoader
from mini_chat_gpt.data.text_dataset import TextDataset
from mini_chat_gpt.data.token_counts import Row, measure, total_of
from mini_chat_gpt.diagnostics.inspect_page import page
from mini_chat_gpt.diagnostics.inspect_text import show
from mini_chat_gpt.diagnostics.inspection import Inspection, Section, ShownExample, cells, histogram, table
from mini_chat_gpt.pretrain import make_tokenizer
from mini_chat_gpt.tinystories.notes import example_notes
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.pretrain_data import find_texts, text_examples
from mini_chat_gpt.training.run_tokenizer import tokenizer_for
from mini_chat_gpt.training.sft_data import Mixed, SftExamples, make_examples

SAMPLE = 1000
"""Examples to measure of a source that makes new tasks in each epoch."""


def text_tokenizer(config: Config, name: str | None) -> tuple[ChatTokenizer, int, str]:
    """As `tokenizer_for`, for pretraining."""
    if name is not None:
        tokenizer, what = load_named_tokenizer(name), f"Tokenizer: {Path(name).name} (--tokenizer)"
    else:
        tokenizer = make_tokenizer(config, find_texts(config.pretrain).train, console())
        what = "Tokenizer: that of pretrain.tokenizer"
    context = config.model.gpt_config(tokenizer.vocab_size).context_length
    return (
        tokenizer,
        context,
        f"Plain text, as `mini-chat-gpt pretrain` takes it. {what}; context: that of the model section.",
    )


def inspect(
    config: Config,
    tokenizer: ChatTokenizer,
    context: int,
    steps: int = 1,
    n: int = 3,
    notes: Sequence[str] = (),
    progress: Console | None = None,
    texts: bool = False,
) -> Inspection:
    """Inspect what a run with this config trains on: the batches of its first steps, at least `n` examples, and all counts.

    `notes` are further sentences for the head of the output. `progress` shows how far large files are read. `texts` is for
    pretraining. Raises UserError for data that a run would reject, too.
    """
    if texts:
        examples, remarks = text_examples(config, tokenizer, context, progress)
    else:
        examples, remarks = make_examples(_replies_only(config), tokenizer, context, progress), [*_remarks(config)]
    files, chats, sft = [*map(str, examples.files)], config.chats, config.sft
    rows, estimates = count_tokens(examples, config)
    left_out = list(examples.notes)
    if stories := examples.stories:
        story_notes = [*stories.index.notes(), *example_notes(stories.stats, stories.data.seq_len)]
        left_out += [f"{stories.index.path}: {note}" for note in story_notes]
    total, limit = total_of(rows), min(config.data.seq_len, context)
    marks = {"median": total.quantile(0.5), "longest": total.quantile(1.0)}
    limit_name = "context" if context <= config.data.seq_len else "data.seq_len"
    validation = Counter(example.kind for example in examples.validation)
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in validation.items())
    return Inspection(
        about=[f"Data: {first_names(files)}", *notes, *remarks],
        facts=_facts(total, f"{limit:,} fit ({limit_name})", validation.total()),
        sections=[
            *first_steps(config, config.pretrain if texts else config.sft, examples, tokenizer, steps, n),
            Section("By source and kind", table=table(rows), notes=estimates),
            Section(
                "Lengths in tokens",
                table=histogram(total, marks | {limit_name: limit}),
                notes=[f"{limit:,} tokens fit ({limit_name})."],
            ),
            Section("Left out, shortened or repeated", notes=left_out or ["Nothing."]),
            Section(
                "Validation",
                notes=[f"{validation.total():,} {'example' if validation.total() == 1 else 'examples'}: {kinds}"],
            ),
        ],
        paths=[*files, *chats.files, *chats.valid_files, sft.dataset_path, str(sft.pretrained_checkpoint)],
    )


def _facts(total: Row, fit: str, n_validation: int) -> list[tuple[str, str]]:
    """The most important numbers, and what they are."""
    examples, _, tokens, trained, percentage, _ = cells(total, total.examples)
    return [
        (examples, "examples an epoch"),
        (tokens, "tokens"),
        (f"{trained} ({percentage})", "trained tokens"),
        (f"{total.quantile(0.5):,}", "tokens in the median example"),
        (f"{total.quantile(1.0):,}", f"in the longest; {fit}"),
        (f"{n_validation:,}", "examples for validation"),
    ]


def _replies_only(config: Config) -> Config:
    """Return the config without prompt weights: with them every token is trained, and marking would show nothing."""
    stages = [stage.model_copy(update={"prompt_weight": None}) for stage in config.data.curriculum]
    data = config.data.model_copy(update={"prompt_weight": 0.0, "curriculum": stages})
    return config.model_copy(update={"data": data})


def _remarks(config: Config) -> Iterator[str]:
    """Sentences about settings that change what the marks and numbers mean."""
    weights = {config.data.prompt_weight, *(stage.prompt_weight for stage in config.data.curriculum)}
    if nonzero := sorted(weight for weight in weights if weight):
        values = " or ".join(f"{weight:g}" for weight in nonzero)
        yield f"data.prompt_weight is {values}: unmarked tokens are trained as well, with that weight."
    if config.data.curriculum:
        yield "The first steps are those of stage 1 of data.curriculum."
    if config.data.prefix_branches > 1:
        yield "The context limits each conversation of an example with prefix branches, not their sum."


def count_tokens(examples: SftExamples, config: Config) -> tuple[list[Row], list[str]]:
    """Measure every example of chat files, and a sample of the stories and of each curriculum stage.

    Returns the rows of the table, and sentences about numbers that are estimates.
    """
    rows: list[Row] = []
    notes: list[str] = []
    if examples.chats:
        for file in examples.chats.trained.files:
            weight = config.chats.files[file.path]
            name = Path(file.path).name + ("" if weight == 1 else f" × {weight:g}")
            repeats = np.full(file.n_examples, file.n_per_epoch / max(1, file.n_examples))
            if file.n_examples:
                rows.append(Row(name, file.kind, examples.chats.trained.sizes(file), repeats))
                if repeats[0] % 1:
                    notes.append(f"{file.path} has weight {weight:g}: its tokens per epoch are a mean.")
    if dataset := examples.stories:
        per_epoch = examples.source.added if isinstance(examples.source, Mixed) else len(dataset)
        n = min(SAMPLE, len(dataset))
        exact = n == len(dataset) == per_epoch
        rows += measure(dataset.index.path.name, map(dataset.__getitem__, range(n)), per_epoch, exact)
        if not exact:
            notes.append(f"{dataset.index.path}: estimated from a sample of {n:,} of its {len(dataset):,} records.")
    if isinstance(texts := examples.source, TextDataset):
        sample = texts.first(SAMPLE)
        name = Path(examples.files[0]).name if len(examples.files) == 1 else f"{len(examples.files):,} files"
        rows += measure(name, sample, len(texts), len(sample) == len(texts))
        if len(sample) < len(texts):
            notes.append(f"Estimated from a sample of {len(sample):,} of {len(texts):,} pieces.")
    for number, stage in enumerate(examples.stages, 1):
        n = min(SAMPLE // 4, len(stage.source))
        rows += measure(f"stage {number}", map(stage.source.__getitem__, range(n)))
        notes.append(f"Stage {number}, the first {stage.share:.0%} of the steps: a sample of {n:,}.")
    return rows, notes


def first_steps(
    config: Config, phase: ScheduleFields, examples: SftExamples, tokenizer: ChatTokenizer, steps: int, n: int
) -> list[Section]:
    """The micro-batches of the first steps, and n examples. Reads more steps where these have fewer than n examples."""
    source = examples.source
    batch_size, per_step, tokens_per_step = config.step_size(phase)
    if examples.stages:
        source, tokens_per_step = examples.stages[0].source, examples.stages[0].tokens_per_step or tokens_per_step
    sections: list[Section] = []
    shown: list[ShownExample] = []
    with StepLoader(source, 0) as reader:
        while len(sections) < steps or len(shown) < min(n, len(source)):
            step = Section(f"Step {len(sections) + 1}")
            sections.append(step)
            of_step, _ = reader.step(per_step, tokens_per_step)
            for group in group_examples(of_step, batch_size, config.training.batch_tokens):
                name = f"micro-batch {len(step.notes) + 1}"
                step.notes.append(f"{name}: {size_of(group)}")
                for example in group:
                    title = headline(example) + (f"; {example.origin}" if example.origin else "")
                    pieces = list(token_pieces(example, tokenizer))
                    shown.append(ShownExample(title, f"{step.title.lower()}, {name}", example, pieces))
    return [*sections[:steps], *([Section("Examples", examples=shown[:n])] if n else [])]


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt inspect` with a parsed command line."""
    if arguments.html:
        require_writable_file(Path(arguments.html))
    tokenizer_of = text_tokenizer if arguments.texts else tokenizer_for
    tokenizer, context, note = tokenizer_of(arguments.settings, arguments.tokenizer)
    on_screen = EXAMPLES_SHOWN if arguments.n is None else arguments.n
    n = EXAMPLES_ON_PAGE if arguments.html and arguments.n is None else on_screen
    out = console()
    inspection = inspect(arguments.settings, tokenizer, context, arguments.steps, n, [note], out, arguments.texts)
    if not out.is_terminal:
        out.width = max(out.width, 200)  # a pipe has no width to fit
    show(inspection, out, on_screen)
    if arguments.html:
        atomic_write_text(arguments.html, page(inspection))
        print_line(out, f"\nWrote {arguments.html}.")
    return 0

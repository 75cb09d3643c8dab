"""`mini-chat-gpt inspect`: what a fine-tuning run will train on, before it costs any time.

Shows the first steps' batches as the trainer will get them with the trained tokens marked, counts tokens by source and
kind, and says how long the examples are, what is left out and why, and what the run is validated on.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.checkpoints.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_meta,
    steps_of,
)
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.page import visible
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.batching import Example, micro_batches
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.step_loader import StepLoader
from mini_chat_gpt.diagnostics.inspect_page import (
    Finding,
    Inspection,
    MicroBatch,
    Row,
    Specimen,
    bars,
    histogram,
    page,
    token_pieces,
    with_total,
)
from mini_chat_gpt.sft_dataloader import find_instruct_file, stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.sft_data import Mixed, SftExamples, make_examples

SAMPLE = 1000
"""Examples that are looked at of a source that makes its tasks anew each epoch."""
ON_PAGE = 40
"""Examples on a page, unless told otherwise."""
_TEXTS = 2000  # of each source, for a tokenizer made on the spot
_PLACES = 3  # of the records to which something happened


# ---- what a run would take -------------------------------------------------------------------------------------------


def told_apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides, files): a dotted key before "=" makes an override, unless a file is called so."""
    overrides = [word for word in words if re.match(r"[A-Za-z_]\w*(\.\w+)+\s*=", word) and not Path(word).exists()]
    return overrides, [word for word in words if word not in overrides]


def with_files(config: Config, files: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """The config with these files in the place of its own: a folder or a .txt file has stories, any other one chats.

    What the config holds out belongs to its own files; it stays where an override names it. Raises UserError.
    """
    for file in files:
        if not Path(file).exists():
            raise UserError(f"There is no {file}; give chat files, a folder with stories, or section.key=value.")
    told = [file for file in files if Path(file).is_dir() or file.endswith(".txt")]
    chats = [file for file in files if file not in told]
    if len(told) > 1:
        raise UserError(f"{told[0]} and {told[1]} are two places with stories; give one of them.")
    if told and chats and not config.chats.stories:
        raise UserError(f"{told[0]} has no share beside the chats; add one, for example chats.stories=0.3.")
    if told:
        config = config.model_copy(update={"sft": config.sft.model_copy(update={"dataset_path": told[0]})})
    if files:
        kept = config.chats.valid_files if any(o.startswith("chats.valid_files") for o in overrides) else {}
        weights = {file: config.chats.files.get(file, 1.0) for file in chats}
        changes = {"files": weights, "valid_files": kept if chats else {}}
        config = config.model_copy(update={"chats": config.chats.model_copy(update=changes)})
    return config


def tokenizer_for(config: Config, name: str | None = None) -> tuple[ChatTokenizer, int, str]:
    """(tokenizer, context, a sentence about them): those of the base that the run would take, or the tokenizer named.

    Where there is neither, a tokenizer is made from the data.
    """
    base = None if name else config.sft.pretrained_checkpoint or newest_checkpoint(base=True)
    if name is not None:
        tokenizer = ChatTokenizer.load(find_checkpoint(name) if steps_of(Path(name)) else name)
        context, said = config.data.seq_len, f"Tokenizer: {Path(name).name}, as asked for; the context is data.seq_len."
    elif base is None:
        tokenizer, context = _stand_in(config), config.data.seq_len
        said = (
            f"There is no base model under runs/: a tokenizer of {tokenizer.vocab_size:,} entries was made from these texts. "
            "A run's own will count otherwise; name it by --tokenizer."
        )
    elif Path(base).is_file():
        model, tokenizer = load_checkpoint(base, "cpu")
        context, said = model.config.context_length, f"Tokenizer and context: those of {base}."
    else:
        folder = find_checkpoint(base)
        tokenizer, context = ChatTokenizer.load(folder), int(read_meta(folder)["gpt_config"]["context_length"])
        said = f"Tokenizer and context: those of {base}."
    tokenizer.add_control_tokens()  # as fine-tuning will
    return tokenizer, context, said


def _stand_in(config: Config) -> ChatTokenizer:
    texts: list[str] = []
    if files := config.chats.files:
        chats = islice(read_conversations(files, []), _TEXTS)  # what is wrong with them is said when they are used
        texts += (message.content for chat in chats for message in chat.messages)
    if not files or config.chats.stories:
        texts += islice(stories(find_instruct_file(config.sft.dataset_path, "train")), _TEXTS)
    return ChatTokenizer.train(texts, config.pretrain.tokenizer_vocab_size)


def _replies_only(config: Config) -> Config:
    """The same examples with the replies alone as targets: with a prompt_weight all is trained, and nothing would stand out."""
    lessons = [lesson.model_copy(update={"prompt_weight": None}) for lesson in config.data.curriculum]
    data = config.data.model_copy(update={"prompt_weight": 0.0, "curriculum": lessons})
    return config.model_copy(update={"data": data})


# ---- looking at it ---------------------------------------------------------------------------------------------------


def inspect(
    config: Config, tokenizer: ChatTokenizer, context: int, steps: int = 1, n: int = 3, said: Sequence[str] = ()
) -> Inspection:
    """Look at what a run with this config trains on: the batches of its first steps, at least `n` examples, all counts.

    Raises UserError for data that a run could not use either.
    """
    examples = make_examples(_replies_only(config), tokenizer, context)
    limit = min(config.data.seq_len, context)
    sources = list(_sources(examples, config))
    left_out = [*_of_chats(examples), *_of_stories(examples, sources, limit)]
    streams = [source for source in sources if source.slots is not None]
    lengths = np.concatenate([[tokens for _, tokens, _, _ in source.seen] for source in streams]).astype(np.int64)
    times = np.concatenate([np.full(len(source.seen), source.times) for source in streams])
    batches, specimens = _first_steps(config, examples, steps, n)
    weights = [config.data.prompt_weight, *(lesson.prompt_weight for lesson in config.data.curriculum)]
    about = [f"Data: {', '.join(map(str, examples.files))}", *said]
    if given := sorted({weight for weight in weights if weight}):
        about.append(
            f"data.prompt_weight is {' or '.join(f'{weight:g}' for weight in given)}: what isn't marked is trained too, "
            "with that weight."
        )
    if examples.stages:
        about.append("The first steps are those of lesson 1 of data.curriculum.")
    if any(specimen.example.branches for specimen in specimens):
        about.append("Of an example with branches the context limits each conversation, not all of them together.")
    names = [config.sft.pretrained_checkpoint or "", config.sft.dataset_path, *map(str, examples.files)]
    return Inspection(
        about=about,
        batches=batches,
        specimens=specimens,
        rows=[row for source in sources for row in source.rows(sum(one.slots or 0 for one in streams))],
        counted=[source.counted for source in sources if source.counted],
        lengths=histogram(lengths, times, limit, "context" if context <= config.data.seq_len else "data.seq_len"),
        left_out=left_out,
        validation=Counter(example.kind for example in examples.validation),
        tokenizer=tokenizer,
        paths=[*names, *config.chats.files, *config.chats.valid_files],
    )


@dataclass(frozen=True)
class _Source:
    """Examples of one source that were looked at: (kind, tokens, targets, sum of their weights)."""

    name: str
    seen: list[tuple[str, int, int, float]]
    slots: int | None  # that it has of an epoch; None for a lesson
    counted: str = ""  # a sentence, where it was not all of them

    @property
    def times(self) -> float:
        """How often each example comes in an epoch."""
        return 1.0 if self.slots is None else self.slots / len(self.seen)

    def rows(self, epoch: int) -> Iterator[Row]:
        """One for each kind; `epoch` is the number of its examples, all sources together."""
        exact, whole = not self.counted, epoch / self.times if self.slots is not None else len(self.seen)
        by_kind: dict[str, list[tuple[str, int, int, float]]] = {}
        for one in self.seen:
            by_kind.setdefault(one[0], []).append(one)
        for kind, those in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            _, tokens, trained, weights = zip(*those, strict=True)
            examples = None if self.slots is None else len(those) * self.times
            share, n = len(those) / whole, sum(trained)
            yield Row(
                self.name,
                kind,
                examples,
                share,
                sum(tokens) * self.times,
                n * self.times,
                sum(weights) / max(1, n),
                exact,
            )


def _measured(examples: Iterable[Example]) -> list[tuple[str, int, int, float]]:
    return [
        (example.kind, len(example.ids), example.n_trained, float((example.weight * example.trained)[1:].sum()))
        for example in examples
    ]


def _sources(examples: SftExamples, config: Config) -> Iterator[_Source]:
    """Of chat files every example, of stories and lessons a sample."""
    if examples.chats:
        source = examples.chats.trained
        pairs = zip(source.conversations, source.examples(), strict=True)
        for path, those in groupby(pairs, key=lambda pair: pair[0].path):
            seen, weight = _measured(example for _, example in those), config.chats.files[path]
            slots = max(1, round(len(seen) * weight))  # as the source takes them
            again = "" if slots % len(seen) == 0 else f"{path} has weight {weight:g}: its tokens an epoch are a mean."
            times = "" if weight == 1 else f" × {weight:g}"
            yield _Source(Path(path).name + times, seen, slots, again)
    if told := examples.stories:
        slots = examples.source.added if isinstance(examples.source, Mixed) else len(told)
        seen = _measured(map(told.example, range(min(SAMPLE, len(told)))))
        sampled = f"{told.index.path}: reckoned from a sample of {len(seen):,} of its {len(told):,} records."
        exact = len(seen) == len(told) == slots
        yield _Source(told.index.path.name, seen, slots, "" if exact else sampled)
    for number, stage in enumerate(examples.stages, 1):
        seen = _measured(map(stage.source.example, range(min(SAMPLE // 4, len(stage.source)))))
        name = f"lesson {number}"
        yield _Source(name, seen, None, f"{name}, the first {stage.share:.0%} of the steps: a sample of {len(seen):,}.")


def _first_steps(config: Config, examples: SftExamples, steps: int, n: int) -> tuple[list[MicroBatch], list[Specimen]]:
    """The micro-batches of the first steps, and their examples; more steps are read where these have fewer than n."""
    source = examples.source
    batch_size, per_step, tokens = config.step_size(config.sft)
    if examples.stages:
        source, tokens = examples.stages[0].source, examples.stages[0].tokens_per_step or tokens
    origin = _origins(examples)
    batches, specimens = list[MicroBatch](), list[Specimen]()
    step, enough = 0, min(n, len(source))
    with StepLoader(source, 0) as reader:
        while step < steps or len(specimens) < enough:
            step += 1
            read, _ = reader.step(per_step, tokens)
            in_order = iter(sorted(read, key=lambda example: len(example.ids), reverse=True))  # as micro_batches does
            for number, batch in enumerate(micro_batches(read, batch_size, config.training.batch_tokens), 1):
                if step <= steps:
                    batches.append(MicroBatch(step, number, batch.n_examples, batch.n_tokens, len(batch.targets)))
                for example in islice(in_order, batch.n_examples):
                    specimens.append(Specimen(example, step, number, origin.get(id(example), "")))
    return batches, specimens[:n]


def _origins(examples: SftExamples) -> dict[int, str]:
    """File and line of each chat's example, by its identity: the source gives the same objects again and again."""
    if examples.chats is None:
        return {}
    source = examples.chats.trained
    return {
        id(example): f"{chat.path}, line {chat.line}"
        for example, chat in zip(source.examples(), source.conversations, strict=True)
    }


def _of_chats(examples: SftExamples) -> Iterator[Finding]:
    """What became of chats: those that are not trained on as they stand, with their places, and what else the run would say."""
    if (chats := examples.chats) is None:
        return
    happened: dict[tuple[str, str], list[str]] = {}
    for problem in chats.problems:
        happened.setdefault((problem.path, "records skipped"), []).append(f"line {problem.line}: {problem.what}")
    said = {f"{problem}." for problem in chats.problems}
    for part, name in ((chats.trained, "to train on"), (chats.held_out, "held out")):
        for one in part.left_out if part else []:
            where = f"line {one.conversation.line}: {one.why}"
            happened.setdefault((one.conversation.path, f"chats {name} {one.what}"), []).append(where)
        said.update(part.notes(name) if part else [])
    for (path, what), places in happened.items():
        more = [f"and {len(places) - _PLACES:,} more"] if len(places) > _PLACES else []
        yield Finding(f"{path}: {len(places):,} of its {what}", (*places[:_PLACES], *more))
    yield from (Finding(note) for note in chats.notes if not any(note.endswith(one) for one in said))


def _of_stories(examples: SftExamples, sources: Sequence[_Source], limit: int) -> Iterator[Finding]:
    """What became of the records that were sampled."""
    if (source := examples.stories) is None:
        return
    file, stats = source.index.path, source.stats
    n = next(len(one.seen) for one in sources if one.name == file.name)
    if without := source.index.without_story:
        yield Finding(f"{file}: {without:,} left out, which have no story")
    sentences = {
        "shortened": f"whose story lost text from its middle, to fit into {limit:,} tokens",
        "substituted": "made from another record, as its own gave nothing",
    }
    for key, words in sentences.items():
        if stats[key]:
            yield Finding(f"{file}: {stats[key]:,} of {n:,} examples {words}")
    if long := {key.removeprefix("too long: "): value for key, value in stats.items() if key.startswith("too long: ")}:
        kinds = ", ".join(f"{kind} {value:,}" for kind, value in sorted(long.items(), key=lambda item: -item[1]))
        yield Finding(f"{file}: tasks that don't fit into {limit:,} tokens, met with in {n:,} examples: {kinds}")


# ---- showing it ------------------------------------------------------------------------------------------------------


def show(inspection: Inspection, out: Console, n: int) -> None:
    """Print it, with the first n examples."""
    for line in inspection.about:
        _print(out, line)
    _show_steps(inspection, out, n)
    _heading(out, "By source and kind")
    out.print(_table(inspection.rows))
    for line in inspection.counted:
        _print(out, line)
    _heading(out, "Lengths in tokens")
    for line in bars(inspection.lengths):
        _print(out, line)
    _heading(out, "Left out, shortened or repeated")
    for finding in inspection.left_out or [Finding("Nothing.")]:
        _print(out, finding.what)
        for place in finding.places:
            _print(out, f"  {place}")
    _heading(out, "Validation")
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in inspection.validation.items())
    _print(out, f"{inspection.validation.total():,} examples: {kinds}")


def _heading(out: Console, title: str) -> None:
    out.print()
    out.print(Text(title, style="bold"))


def _print(out: Console, line: str) -> None:
    out.print(visible(line), markup=False, soft_wrap=not out.is_terminal)


def _show_steps(inspection: Inspection, out: Console, n: int) -> None:
    for step, batches in groupby(inspection.batches, key=lambda batch: batch.step):
        _heading(out, f"Step {step}")
        for batch in batches:
            _print(out, f"micro-batch {batch.number}: {batch}")
    for specimen in inspection.specimens[:n]:
        title, text = visible(specimen.title()), marked(specimen, inspection.tokenizer, _in_colour(out))
        if out.is_terminal:
            out.rule(Text(title), style="dim")
            out.print(text)
        else:  # to the letter; rich would turn tabs into blanks
            print(f"\n---- {title}\n{text.plain}", file=out.file)


def _in_colour(out: Console) -> bool:
    return out.is_terminal and out.color_system is not None and not out.no_color


def marked(specimen: Specimen, tokenizer: ChatTokenizer, in_colour: bool) -> Text:
    """The text with what is trained in green, or between [[ and ]]."""
    text = Text()
    for trained, pieces in groupby(token_pieces(specimen.example, tokenizer), key=lambda piece: piece.trained):
        if trained and not in_colour:
            text.append("[[")
        for piece in pieces:
            style = "bold green" if trained else "cyan" if piece.control else None
            text.append(visible(piece.text), style=style if in_colour else None)
        if trained and not in_colour:
            text.append("]]")
    return text


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for place, head in enumerate(("", *Row.HEADS[2:])):
        table.add_column(head, justify="right" if place else "left", overflow="fold", header_style="dim")
    for source, group in groupby(with_total(rows), key=lambda row: row.source):
        those = list(group)
        alone = len(those) == 1 and those[0].kind in source  # a file of chats is a kind
        if not alone:
            table.add_row(Text(visible(source)))
        for row in those:
            name = source if alone else f"  {row.kind}"
            table.add_row(*(Text(visible(cell), style="" if row.kind else "bold") for cell in (name, *row.cells()[2:])))
    return table


# ---- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Show what a fine-tuning run will train on, the trained tokens marked."
    )
    parser.add_argument(
        "what", nargs="*", metavar="FILE | section.key=value",
        help="chat files, or a folder or .txt file with stories (default: what the settings say); settings",
    )  # fmt: skip
    parser.add_argument("--config", help="YAML file with settings (default: sft_config.yaml if it is there)")
    parser.add_argument("--n", type=int, help=f"examples to show (3; {ON_PAGE} on a page)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps whose batches are shown (1)")
    parser.add_argument("--html", metavar="PAGE.html", help="write a page with all of it as well")
    parser.add_argument("--tokenizer", metavar="NAME", help="folder, file or encoding name (default: the base model's)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out chats that can't be used: chats.skip_bad")
    arguments = parser.parse_intermixed_args(argv)
    for name, least in (("n", 0), ("steps", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be {least} or more.")
    overrides, files = told_apart(arguments.what)
    if arguments.skip_bad:
        overrides.append("chats.skip_bad=true")
    config = load_config(
        arguments.config or ("sft_config.yaml" if Path("sft_config.yaml").is_file() else None), overrides
    )
    config = with_files(config, files, overrides)
    tokenizer, context, said = tokenizer_for(config, arguments.tokenizer)
    on_screen = 3 if arguments.n is None else arguments.n
    n = ON_PAGE if arguments.html and arguments.n is None else on_screen
    inspection = inspect(config, tokenizer, context, arguments.steps, n, [said])
    out = console()
    if not out.is_terminal:
        out.width = max(out.width, 200)  # nothing to be fitted into
    show(inspection, out, on_screen)
    if arguments.html:
        atomic_write_text(arguments.html, page(inspection))
        _print(out, f"\nWrote {arguments.html}.")
    return 0


if __name__ == "__main__":
    exit_with(main)

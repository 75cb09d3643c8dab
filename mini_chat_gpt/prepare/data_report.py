"""Report on a data folder: its records, the tasks they support, and the examples that training would make from them.

Fields and known features are counted in all records, using the index. Everything else is counted in at most 20,000 records,
evenly spaced over the file, unless all records are requested; the report states the number. Memory use does not grow with the
file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import StepProgress, format_size
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.prepare.data_folder import SOURCE_DESCRIPTIONS, present_files, read_source, unused_files
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, generate_tasks
from mini_chat_gpt.tinystories.records import FEATURES, FIELDS
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, categories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MAX_RECORDS = 20_000  # of each file, unless all are requested
PERCENTILES = (5, 25, 50, 75, 95, 99)
_SEED = 1337  # the default of system.seed
_TEMPORARY_VOCAB_SIZE, _TEMPORARY_STORIES = 4096, 2000


def report_folder(
    folder: Path,
    tokenizer: ChatTokenizer | None = None,
    seq_len: int = 1024,
    full: bool = False,
    out: Console | None = None,
) -> dict[str, Any]:
    """Return everything that is known about the folder's files, as JSON-compatible values.

    Without a tokenizer, tokens are counted with a temporary one trained on the stories themselves. `full` reads all records.
    Raises UserError if there is no file, or if one is not a file of stories.
    """
    files = present_files(folder)
    if not files:
        raise UserError(f"{folder} has no data; `python prepare_sft_data.py --folder {folder}` gets some.")
    indices = {split: RecordIndex(file) for split, file in files.items()}
    label = "the given tokenizer"
    if tokenizer is None:
        tokenizer, label = _temporary_tokenizer(next(iter(indices.values())))
    tokenizer.add_control_tokens()  # as in fine-tuning
    files_report, hashes = {}, {}
    for split, index in indices.items():
        files_report[split], hashes[split] = _describe(index, tokenizer, seq_len, full, out)
    return {
        "folder": str(folder),
        "source": read_source(folder),
        "tokenizer": {"label": label, "kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
        "seq_len": seq_len,
        "files": files_report,
        "in_both_splits": int(np.isin(hashes["valid"], hashes["train"]).sum()) if len(hashes) == 2 else None,
        "unused_files": [str(file) for file in unused_files(folder)],
    }


def _temporary_tokenizer(index: RecordIndex) -> tuple[ChatTokenizer, str]:
    texts = (index[int(number)].story for number in _spread(len(index), _TEMPORARY_STORIES))
    tokenizer = ChatTokenizer.train(texts, _TEMPORARY_VOCAB_SIZE)
    label = (
        f"a temporary byte-level BPE of {tokenizer.vocab_size:,} entries trained on these stories; "
        "choose the model's own with --tokenizer"
    )
    return tokenizer, label


@dataclass
class _Counts:
    """Running counts over the records that were read."""

    tasks: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    without_task: int = 0
    words: array[int] = field(default_factory=lambda: array("I"))
    characters: array[int] = field(default_factory=lambda: array("I"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))


def _describe(
    index: RecordIndex, tokenizer: ChatTokenizer, seq_len: int, full: bool, out: Console | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the report on one file, and a hash of each story that was read."""
    numbers = _spread(len(index), len(index) if full else MAX_RECORDS)
    counts = _count_records(index, numbers, out)
    hashes = np.array(counts.hashes, dtype=np.uint64)
    report = {
        "path": str(index.path),
        "bytes": index.path.stat().st_size,
        "records": len(index),
        "without_story": index.without_story,
        "not_utf8": int(index.has("not UTF-8").sum()),
        "fields": {name: int(index.has(name).sum()) for name in FIELDS},
        "features": {name: int(index.has(name).sum()) for name in FEATURES},
        "looked_at": len(numbers),
        "other_features": {name: count for name, count in counts.features.most_common(20) if name not in FEATURES},
        "tasks": {category: counts.tasks[category] for category in categories()},
        "without_task": counts.without_task,
        "duplicates": len(hashes) - len(np.unique(hashes)),
        "story_words": _percentiles(counts.words),
        "story_characters": _percentiles(counts.characters),
    }
    try:
        report["examples"] = _examples(index, len(numbers), tokenizer, seq_len, out)
    except UserError as error:  # no example fits: a finding of the report, not an error
        report["examples"] = {"impossible": str(error)}
    return report, hashes


def _count_records(index: RecordIndex, numbers: np.ndarray, out: Console | None) -> _Counts:
    counts = _Counts()
    for number in _with_progress(numbers.tolist(), f"Reading {index.path.name}", out):
        record = index[number]
        tasks = generate_tasks(record, _SEED)
        counts.tasks.update(task.category for task in tasks)
        counts.features.update(record.features)
        counts.without_task += not tasks
        counts.words.append(len(record.story.split()))
        counts.characters.append(len(record.story))
        digest = hashlib.blake2b(record.story.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        counts.hashes.append(int.from_bytes(digest, "big"))
    return counts


def _examples(
    index: RecordIndex, count: int, tokenizer: ChatTokenizer, seq_len: int, out: Console | None
) -> dict[str, Any]:
    """Statistics of the first `count` examples of a fine-tuning run with the default mixture, and what was skipped."""
    source = InstructDataset(index, tokenizer, DataSection(seq_len=seq_len, turns=1, answer_weight=0), _SEED)
    tokens: dict[str, array[int]] = {kind: array("I") for kind in TASK_KINDS}
    trained: Counter[str] = Counter()
    for number in _with_progress(range(count), f"Making examples from {index.path.name}", out):
        example = source[number]
        tokens[example.kind].append(len(example.ids))
        trained[example.kind] += example.n_trained
    total = {kind: sum(lengths) for kind, lengths in tokens.items()}
    return {
        "count": count,
        "tokens": _percentiles([length for lengths in tokens.values() for length in lengths]),
        "trained_share": sum(trained.values()) / sum(total.values()),
        "kinds": {
            kind: {
                "share": len(lengths) / count,
                "tokens_median": float(np.median(lengths)),
                "trained_share": trained[kind] / total[kind],
            }
            for kind, lengths in tokens.items()
            if lengths
        },
        "shortened": source.stats["shortened"],
        "taken_from_another_record": source.stats["substituted"],
        "too_long": {kind: n for kind in TASK_KINDS if (n := source.stats[f"too long: {kind}"])},
    }


def _spread(n: int, limit: int) -> np.ndarray:
    """At most `limit` of n numbers, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(np.int64))


def _percentiles(values: Iterable[int]) -> dict[str, float]:
    numbers = np.fromiter(values, dtype=np.int64)
    percentiles = {
        f"p{q}": round(float(value), 1)
        for q, value in zip(PERCENTILES, np.percentile(numbers, PERCENTILES), strict=True)
    }
    return {"mean": round(float(numbers.mean()), 1), **percentiles, "max": float(numbers.max())}


def _with_progress(numbers: Iterable[int], title: str, out: Console | None) -> Iterable[int]:
    """Yield the numbers, with a progress display if there are many."""
    numbers = list(numbers) if not isinstance(numbers, (list, range)) else numbers
    if out is None or len(numbers) < 2000:
        yield from numbers
        return
    with StepProgress(out, title, 0, len(numbers)) as progress:
        for done, number in enumerate(numbers):
            if done % 500 == 499:
                progress.update(done, "")
            yield number


# In the terminal


def show_report(report: Mapping[str, Any], out: Console) -> None:
    """Print the result of `report_folder`."""
    source = report["source"]
    why = f" ({source['why']})" if "why" in source else ""
    out.print(f"{report['folder']}: {SOURCE_DESCRIPTIONS[source['source']]}{why}", markup=False, soft_wrap=True)
    for table in (_records_table(report), _tasks_table(report), _lengths_table(report)):
        out.print()
        out.print(table)
    out.print()
    for line in findings(report):
        out.print(f"- {line}", markup=False, soft_wrap=True)


def _records_table(report: Mapping[str, Any]) -> Table:
    files = report["files"]
    table = _table("Records", *files)
    table.add_row("size", *(format_size(entry["bytes"]) for entry in files.values()))
    table.add_row("records", *(f"{entry['records']:,}" for entry in files.values()))
    for group in ("fields", "features"):
        table.add_section()
        for name in next(iter(files.values()))[group]:
            table.add_row(name, *(_part(entry[group][name], entry["records"]) for entry in files.values()))
    table.add_section()
    table.add_row("read for the rows below", *(_part(entry["looked_at"], entry["records"]) for entry in files.values()))
    for name in sorted({name for entry in files.values() for name in entry["other_features"]}):
        cells = (_part(entry["other_features"].get(name, 0), entry["looked_at"]) for entry in files.values())
        table.add_row(escape(name), *cells)
    table.add_row("duplicate stories", *(_part(entry["duplicates"], entry["looked_at"]) for entry in files.values()))
    return table


def _tasks_table(report: Mapping[str, Any]) -> Table:
    """For each category the records that support it, and for each kind its fraction of the training examples."""
    files = report["files"]
    table = _table("Tasks", *(title for split in files for title in (f"{split} records", "of examples")))
    for category in categories():
        kind, _, answer = category.partition("/")
        cells = []
        for entry in files.values():
            share = entry["examples"].get("kinds", {}).get(kind, {}).get("share", 0.0)
            cells += [_part(entry["tasks"][category], entry["looked_at"]), "" if answer == "no" else f"{share:.1%}"]
        table.add_row(category, *cells)
    return table


def _lengths_table(report: Mapping[str, Any]) -> Table:
    table = _table("Lengths", *(f"{q} %" for q in PERCENTILES), "max")
    for split, entry in report["files"].items():
        rows = {"words of a story": entry["story_words"], "characters of a story": entry["story_characters"]}
        if "tokens" in entry["examples"]:
            rows["tokens of an example"] = entry["examples"]["tokens"]
        for name, lengths in rows.items():
            table.add_row(
                f"{split}, {name}", *(f"{lengths[key]:,.0f}" for key in (*(f"p{q}" for q in PERCENTILES), "max"))
            )
    return table


def _part(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def findings(report: Mapping[str, Any]) -> list[str]:
    """Sentences about what was skipped and why, and what to know before training."""
    lines = [line for split, entry in report["files"].items() for line in _skipped(split, entry, report["seq_len"])]
    files = report["files"]
    if report["in_both_splits"] is not None:
        train, valid = files["train"]["looked_at"], files["valid"]["looked_at"]
        lines.append(
            f"{report['in_both_splits']:,} of {valid:,} valid stories are also among the {train:,} train stories."
        )
    if any(entry["looked_at"] < entry["records"] for entry in files.values()):
        lines.append("Only a sample was read, so there may be more duplicates; --full reads all records.")
    fractions = [
        f"{entry['examples']['trained_share']:.1%} of {split}"
        for split, entry in files.items()
        if "tokens" in entry["examples"]
    ]
    if fractions:
        lines.append(f"Supervised tokens (answers): {', '.join(fractions)}.")
    lines.append(f"Tokens are counted with {report['tokenizer']['label']}.")
    lines += [
        f"{file} is not used: the same split also exists under its other name." for file in report["unused_files"]
    ]
    return lines


def _skipped(split: str, entry: Mapping[str, Any], seq_len: int) -> Iterator[str]:
    examples = entry["examples"]
    if entry["without_story"]:
        yield f"{split}: {_count(entry['without_story'], 'record')} without a story skipped."
    if entry["not_utf8"]:
        yield f"{split}: {_count(entry['not_utf8'], 'record')} with invalid UTF-8, read as U+FFFD."
    if entry["without_task"]:
        yield f"{split}: {_count(entry['without_task'], 'record')} of the {entry['looked_at']:,} that were read support no task."
    if "impossible" in examples:
        yield f"{split}: no examples can be made: {examples['impossible']}"
        return
    if examples["shortened"]:
        yield f"{split}: {_count(examples['shortened'], 'example')} of {examples['count']:,} truncated inside the story to fit."
    for kind, number in examples["too_long"].items():
        yield f"{split}: {_count(number, 'task')} of kind {kind} dropped: longer than {seq_len} tokens (--seq-len)."
    if other := examples["taken_from_another_record"]:
        yield f"{split}: {_count(other, 'record')} of {examples['count']:,} gave no example; other records were used instead."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

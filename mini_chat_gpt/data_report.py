"""What is in a data folder: its records, the tasks they support, the examples that training would draw from them.

Fields and named features are counted in every record, from the index. All else is counted in records evenly spread over the
file, 20,000 at most unless the whole file is asked for; the report says how many it looked at. Memory stays flat.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mini_chat_gpt.data_folder import SPLITS, double_files, present_files, read_source, size_text
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.monitor import StepProgress
from mini_chat_gpt.sft_dataloader import CATEGORIES, InstructSource, RecordIndex, generate_tasks
from mini_chat_gpt.story_records import FEATURES, FIELDS
from mini_chat_gpt.story_tasks import TASK_KINDS
from mini_chat_gpt.tokenizer import ChatTokenizer

LOOKED_AT = 20_000  # records
PERCENTILES = (5, 25, 50, 75, 95, 99)
_SEED = 0
_STAND_IN_SIZE, _STAND_IN_STORIES = 4096, 2000


def report_folder(
    folder: Path, tokenizer: ChatTokenizer | None = None, seq_len: int = 1024, full: bool = False, out: Console | None = None
) -> dict[str, Any]:
    """Everything that is known about the folder's files, as plain values fit for JSON.

    Without a tokenizer a stand-in trained on the stories themselves counts the tokens. `full` looks at every record.
    Raises UserError where there is no file, or one that isn't a file of stories.
    """
    files = present_files(folder)
    if not files:
        raise UserError(f"{folder} holds no data; `python prepare_sft_data.py --folder {folder}` gets some.")
    indices = {split: RecordIndex(file) for split, file in files.items()}
    label = "as given"
    if tokenizer is None:
        tokenizer, label = _stand_in(next(iter(indices.values())))
    tokenizer.add_control_tokens()  # as fine-tuning will
    facts, hashes = {}, {}
    for split, index in indices.items():
        facts[split], hashes[split] = _describe(index, tokenizer, seq_len, full, out)
    return {
        "folder": str(folder),
        "source": read_source(folder),
        "tokenizer": {"label": label, "kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
        "seq_len": seq_len,
        "files": facts,
        "in_both_splits": int(np.isin(hashes["valid"], hashes["train"]).sum()) if len(hashes) == 2 else None,
        "unused_files": [str(file) for file in double_files(folder)],
    }


def _stand_in(index: RecordIndex) -> tuple[ChatTokenizer, str]:
    texts = (index[int(number)].story for number in _spread(len(index), _STAND_IN_STORIES))
    tokenizer = ChatTokenizer.train(texts, _STAND_IN_SIZE)
    label = f"stand-in: a byte-level BPE of {tokenizer.vocab_size:,} entries made from these stories"
    return tokenizer, label


@dataclass
class _Seen:
    """Running counts over the records looked at."""

    tasks: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    without_task: int = 0
    words: array[int] = field(default_factory=lambda: array("I"))
    characters: array[int] = field(default_factory=lambda: array("I"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))


def _describe(
    index: RecordIndex, tokenizer: ChatTokenizer, seq_len: int, full: bool, out: Console | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Facts about one file, and a hash of each story looked at."""
    numbers = _spread(len(index), len(index) if full else LOOKED_AT)
    seen = _look(index, numbers, out)
    hashes = np.array(seen.hashes, dtype=np.uint64)
    facts = {
        "path": str(index.path),
        "bytes": index.path.stat().st_size,
        "records": len(index),
        "without_story": index.without_story,
        "not_utf8": int(index.has("not UTF-8").sum()),
        "fields": {name: int(index.has(name).sum()) for name in FIELDS},
        "features": {name: int(index.has(name).sum()) for name in FEATURES},
        "looked_at": len(numbers),
        "other_features": {name: count for name, count in seen.features.most_common(20) if name not in FEATURES},
        "tasks": {category: seen.tasks[category] for category in CATEGORIES},
        "without_task": seen.without_task,
        "duplicates": len(hashes) - len(np.unique(hashes)),
        "story_words": _percentiles(seen.words),
        "story_characters": _percentiles(seen.characters),
    }
    try:
        facts["examples"] = _examples(index, len(numbers), tokenizer, seq_len, out)
    except UserError as error:  # the records are what they are; that training could make nothing of them is a finding
        facts["examples"] = {"impossible": str(error)}
    return facts, hashes


def _look(index: RecordIndex, numbers: np.ndarray, out: Console | None) -> _Seen:
    seen = _Seen()
    for number in _watched(numbers.tolist(), f"Reading {index.path.name}", out):
        record = index[number]
        tasks = generate_tasks(record, _SEED)
        seen.tasks.update(task.category for task in tasks)
        seen.features.update(record.features)
        seen.without_task += not tasks
        seen.words.append(len(record.story.split()))
        seen.characters.append(len(record.story))
        digest = hashlib.blake2b(record.story.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        seen.hashes.append(int.from_bytes(digest, "big"))
    return seen


def _examples(
    index: RecordIndex, count: int, tokenizer: ChatTokenizer, seq_len: int, out: Console | None
) -> dict[str, Any]:
    """The first `count` examples of a fine-tuning run with the default shares, and what was left out on the way."""
    source = InstructSource(index, tokenizer, seq_len, _SEED)
    tokens: dict[str, array[int]] = {kind: array("I") for kind in TASK_KINDS}
    trained: Counter[str] = Counter()
    for slot in _watched(range(count), f"Making examples of {index.path.name}", out):
        example = source.example(slot)
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


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n numbers, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _percentiles(values: Iterable[int]) -> dict[str, float]:
    numbers = np.fromiter(values, dtype=np.int64)
    shown = {f"p{q}": round(float(value), 1) for q, value in zip(PERCENTILES, np.percentile(numbers, PERCENTILES), strict=True)}
    return {"mean": round(float(numbers.mean()), 1), **shown, "max": float(numbers.max())}


def _watched(numbers: Iterable[int], title: str, out: Console | None) -> Iterable[int]:
    """The numbers, with progress shown where there are many."""
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
    """Print what `report_folder` found."""
    files = report["files"]
    splits = [split for split in SPLITS if split in files]
    out.print(_records_table(report, splits))
    out.print(_tasks_table(report, splits))
    for line in findings(report):
        out.print(f"- {line}", markup=False, soft_wrap=True)


def _records_table(report: Mapping[str, Any], splits: list[str]) -> Table:
    files = report["files"]
    table = _table(f"Records in {report['folder']}", splits)

    def row(name: str, values: Iterable[str]) -> None:
        table.add_row(name, *values)

    row("size", (size_text(files[split]["bytes"]) for split in splits))
    row("records", (f"{files[split]['records']:,}" for split in splits))
    for group in ("fields", "features"):
        table.add_section()
        for name in files[splits[0]][group]:
            row(name, (_part(files[split][group][name], files[split]["records"]) for split in splits))
    table.add_section()
    row("looked at for the rest", (_part(files[split]["looked_at"], files[split]["records"]) for split in splits))
    for name in sorted({name for split in splits for name in files[split]["other_features"]}):
        row(f"feature {name}", (_part(files[split]["other_features"].get(name, 0), files[split]["looked_at"]) for split in splits))
    row("same story as before", (_part(files[split]["duplicates"], files[split]["looked_at"]) for split in splits))
    for name, key in (("words of a story", "story_words"), ("characters of a story", "story_characters")):
        row(f"{name}, {_PERCENTILES_SHOWN}", (_lengths(files[split][key]) for split in splits))
    return table


def _tasks_table(report: Mapping[str, Any], splits: list[str]) -> Table:
    files = report["files"]
    table = _table("Tasks: records that support them / share of the examples drawn", splits)
    for category in files[splits[0]]["tasks"]:
        kind = category.split("/")[0]
        cells = []
        for split in splits:
            drawn = files[split]["examples"].get("kinds", {}).get(kind, {}).get("share", 0.0)
            there = _part(files[split]["tasks"][category], files[split]["looked_at"])
            cells.append(f"{there} / {'' if category.endswith('/no') else f'{drawn:.1%}':>5}")
        table.add_row(category, *cells)
    made = [split for split in splits if "count" in files[split]["examples"]]
    if made:
        table.add_section()
        examples = {split: files[split]["examples"] for split in made}
        values = {split: _lengths(examples[split]["tokens"]) if split in made else "–" for split in splits}
        table.add_row(f"tokens of an example, {_PERCENTILES_SHOWN}", *values.values())
        values = {split: f"{examples[split]['trained_share']:.1%}" if split in made else "–" for split in splits}
        table.add_row("of them trained", *values.values())
    return table


_PERCENTILES_SHOWN = "5 / 50 / 95 / 99 % and most"


def _lengths(lengths: Mapping[str, float]) -> str:
    return " / ".join(f"{lengths[key]:.0f}" for key in ("p5", "p50", "p95", "p99")) + f"  {lengths['max']:.0f}"


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})"


def _table(title: str, splits: list[str]) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    return table


def findings(report: Mapping[str, Any]) -> list[str]:
    """Sentences about what was left out and why, and what to know before training on it."""
    said = []
    for split, facts in report["files"].items():
        examples, looked = facts["examples"], facts["looked_at"]
        if facts["without_story"]:
            said.append(f"{split}: {facts['without_story']:,} records have no story and are left out.")
        if facts["not_utf8"]:
            said.append(f"{split}: {facts['not_utf8']:,} records hold bytes that are not UTF-8; those are read as U+FFFD.")
        if facts["without_task"]:
            said.append(f"{split}: {facts['without_task']:,} of the {looked:,} records looked at support no task.")
        if "impossible" in examples:
            said.append(f"{split}: no examples can be made. {examples['impossible']}")
            continue
        if examples["shortened"]:
            said.append(f"{split}: {examples['shortened']:,} of {examples['count']:,} examples have a story shortened inside.")
        for kind, n in examples["too_long"].items():
            said.append(f"{split}: {n:,} tasks of kind {kind} are dropped, longer than {report['seq_len']} tokens.")
        if other := examples["taken_from_another_record"]:
            said.append(f"{split}: {other:,} of {examples['count']:,} examples had to come from another record than their own.")
    if report["in_both_splits"] is not None:
        train, valid = (report["files"][split]["looked_at"] for split in SPLITS)
        said.append(f"{report['in_both_splits']:,} of {valid:,} valid stories are among {train:,} train stories too.")
    partial = any(facts["looked_at"] < facts["records"] for facts in report["files"].values())
    if partial:
        said.append("Only a sample was looked at, so duplicates are more than were found; --full looks at every record.")
    said.append(f"Tokens are those of this tokenizer ({report['tokenizer']['label']}).")
    said += [f"{file} is not used: the same split lies there under its other name." for file in report["unused_files"]]
    return said

"""What is in a data folder: its records, the tasks they support, the examples that training would draw from them.

Fields and named features are counted in every record, from the index. All else is counted in records evenly spread over the
file, 20,000 at most unless the whole file is asked for; the report says how many it looked at. Memory stays flat.
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
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.prepare.data_folder import SOURCE_WORDS, double_files, present_files, read_source, size_text
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, generate_tasks
from mini_chat_gpt.tinystories.records import FEATURES, FIELDS
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, categories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

LOOKED_AT = 20_000  # records
PERCENTILES = (5, 25, 50, 75, 95, 99)
_SEED = 1337  # the default of system.seed
_STAND_IN_SIZE, _STAND_IN_STORIES = 4096, 2000


def report_folder(
    folder: Path,
    tokenizer: ChatTokenizer | None = None,
    seq_len: int = 1024,
    full: bool = False,
    out: Console | None = None,
) -> dict[str, Any]:
    """Everything that is known about the folder's files, as plain values fit for JSON.

    Without a tokenizer a stand-in trained on the stories themselves counts the tokens. `full` looks at every record.
    Raises UserError where there is no file, or one that isn't a file of stories.
    """
    files = present_files(folder)
    if not files:
        raise UserError(f"{folder} holds no data; `python prepare_sft_data.py --folder {folder}` gets some.")
    indices = {split: RecordIndex(file) for split, file in files.items()}
    label = "the given tokenizer"
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
    label = (
        f"a stand-in, a byte-level BPE of {tokenizer.vocab_size:,} entries made from these stories; "
        "name the model's own by --tokenizer"
    )
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
        "tasks": {category: seen.tasks[category] for category in categories()},
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
    source = InstructDataset(index, tokenizer, DataSection(seq_len=seq_len, turns=1, answer_weight=0), _SEED)
    tokens: dict[str, array[int]] = {kind: array("I") for kind in TASK_KINDS}
    trained: Counter[str] = Counter()
    for number in _watched(range(count), f"Making examples of {index.path.name}", out):
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


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n numbers, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _percentiles(values: Iterable[int]) -> dict[str, float]:
    numbers = np.fromiter(values, dtype=np.int64)
    shown = {
        f"p{q}": round(float(value), 1)
        for q, value in zip(PERCENTILES, np.percentile(numbers, PERCENTILES), strict=True)
    }
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
    source = report["source"]
    why = f" ({source['why']})" if "why" in source else ""
    out.print(f"{report['folder']}: {SOURCE_WORDS[source['source']]}{why}", markup=False, soft_wrap=True)
    for table in (_records_table(report), _tasks_table(report), _lengths_table(report)):
        out.print()
        out.print(table)
    out.print()
    for line in findings(report):
        out.print(f"- {line}", markup=False, soft_wrap=True)


def _records_table(report: Mapping[str, Any]) -> Table:
    files = report["files"]
    table = _table("Records", *files)
    table.add_row("size", *(size_text(facts["bytes"]) for facts in files.values()))
    table.add_row("records", *(f"{facts['records']:,}" for facts in files.values()))
    for group in ("fields", "features"):
        table.add_section()
        for name in next(iter(files.values()))[group]:
            table.add_row(name, *(_part(facts[group][name], facts["records"]) for facts in files.values()))
    table.add_section()
    table.add_row("looked at for the rest", *(_part(facts["looked_at"], facts["records"]) for facts in files.values()))
    for name in sorted({name for facts in files.values() for name in facts["other_features"]}):
        shown = (_part(facts["other_features"].get(name, 0), facts["looked_at"]) for facts in files.values())
        table.add_row(escape(name), *shown)
    table.add_row(
        "same story as another", *(_part(facts["duplicates"], facts["looked_at"]) for facts in files.values())
    )
    return table


def _tasks_table(report: Mapping[str, Any]) -> Table:
    """For each category the records that support it, for each kind its share of the examples that training draws."""
    files = report["files"]
    table = _table("Tasks", *(title for split in files for title in (f"{split} records", "drawn")))
    for category in categories():
        kind, _, answer = category.partition("/")
        cells = []
        for facts in files.values():
            share = facts["examples"].get("kinds", {}).get(kind, {}).get("share", 0.0)
            cells += [_part(facts["tasks"][category], facts["looked_at"]), "" if answer == "no" else f"{share:.1%}"]
        table.add_row(category, *cells)
    return table


def _lengths_table(report: Mapping[str, Any]) -> Table:
    table = _table("Lengths", *(f"{q} %" for q in PERCENTILES), "most")
    for split, facts in report["files"].items():
        rows = {"words of a story": facts["story_words"], "characters of a story": facts["story_characters"]}
        if "tokens" in facts["examples"]:
            rows["tokens of an example"] = facts["examples"]["tokens"]
        for name, lengths in rows.items():
            table.add_row(
                f"{split}, {name}", *(f"{lengths[key]:,.0f}" for key in (*(f"p{q}" for q in PERCENTILES), "max"))
            )
    return table


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def findings(report: Mapping[str, Any]) -> list[str]:
    """Sentences about what was left out and why, and what to know before training on it."""
    said = [line for split, facts in report["files"].items() for line in _left_out(split, facts, report["seq_len"])]
    files = report["files"]
    if report["in_both_splits"] is not None:
        train, valid = files["train"]["looked_at"], files["valid"]["looked_at"]
        said.append(f"{report['in_both_splits']:,} of {valid:,} valid stories stand among {train:,} train stories too.")
    if any(facts["looked_at"] < facts["records"] for facts in files.values()):
        said.append(
            "Only a sample was looked at, so there may be more double stories than found; --full reads all records."
        )
    shares = [
        f"{facts['examples']['trained_share']:.1%} of {split}"
        for split, facts in files.items()
        if "tokens" in facts["examples"]
    ]
    if shares:
        said.append(f"Share of tokens that are trained (answers): {', '.join(shares)}.")
    said.append(f"Tokens are counted with {report['tokenizer']['label']}.")
    said += [f"{file} is not used: the same split lies there under its other name." for file in report["unused_files"]]
    return said


def _left_out(split: str, facts: Mapping[str, Any], seq_len: int) -> Iterator[str]:
    examples = facts["examples"]
    if facts["without_story"]:
        yield f"{split}: {_count(facts['without_story'], 'record')} without a story left out."
    if facts["not_utf8"]:
        yield f"{split}: {_count(facts['not_utf8'], 'record')} with bytes that are not UTF-8, which are read as U+FFFD."
    if facts["without_task"]:
        yield f"{split}: {_count(facts['without_task'], 'record')} of the {facts['looked_at']:,} looked at without any task."
    if "impossible" in examples:
        yield f"{split}: no examples can be made: {examples['impossible']}"
        return
    if examples["shortened"]:
        yield f"{split}: {_count(examples['shortened'], 'example')} of {examples['count']:,} with text left out inside the story, to fit."
    for kind, number in examples["too_long"].items():
        yield f"{split}: {_count(number, 'task')} of kind {kind} dropped, longer than {seq_len} tokens (--seq-len)."
    if other := examples["taken_from_another_record"]:
        yield f"{split}: {_count(other, 'record')} of {examples['count']:,} without an example; others took their turn."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

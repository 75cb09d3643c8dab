"""Report on a data folder: its records, the tasks they support, and the examples that training would make from them.

Fields and known features are counted in all records, using the index. Everything else is counted in at most 20,000 records,
evenly spaced over the file, unless all records are requested; the report states the number. Memory use does not grow with the
file.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import format_size, print_line, text_table, with_progress
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.token_counts import measure, total_of
from mini_chat_gpt.prepare.data_folder import (
    SOURCE_DESCRIPTIONS,
    SPLITS,
    command_for,
    present_files,
    read_source,
    spellings,
)
from mini_chat_gpt.prepare.public_files import size_of, unfinished
from mini_chat_gpt.sft_dataloader import InstructDataset, RecordIndex, generate_tasks
from mini_chat_gpt.tinystories.mixture import hash64
from mini_chat_gpt.tinystories.notes import example_notes
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
    if not (files := present_files(folder)):
        raise UserError(f"{folder} has no data; `{command_for(folder)}` gets some.")
    indices = {split: RecordIndex(file) for split, file in files.items()}
    label = "the given tokenizer"
    if tokenizer is None:
        index = next(iter(indices.values()))
        texts = (index[int(number)].story for number in _spread(len(index), _TEMPORARY_STORIES))
        tokenizer = ChatTokenizer.train(texts, _TEMPORARY_VOCAB_SIZE)
        label = f"a temporary BPE of {tokenizer.vocab_size:,} entries trained on these stories; choose the model's own with --tokenizer"
    tokenizer.add_control_tokens()  # as in fine-tuning
    files_report, hashes = {}, {}
    for split, index in indices.items():
        files_report[split], hashes[split] = _describe(index, tokenizer, seq_len, full, out)
    report = {
        "folder": str(folder),
        "source": read_source(folder),
        "tokenizer": {"label": label, "kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
        "seq_len": seq_len,
        "files": files_report,
        "in_both_splits": int(np.isin(hashes["valid"], hashes["train"]).sum()) if len(hashes) == 2 else None,
        "unused_files": [str(file) for split in SPLITS for file in spellings(folder, split)[1:]],
    }
    return report | {"notes": list(findings(report))}


def _describe(
    index: RecordIndex, tokenizer: ChatTokenizer, seq_len: int, full: bool, out: Console | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the report on one file, and a hash of each story that was read."""
    numbers = _spread(len(index), len(index) if full else MAX_RECORDS)
    tasks, features, without_task = Counter[str](), Counter[str](), 0
    words, characters, hashes = array("I"), array("I"), array("Q")
    for number in with_progress(numbers.tolist(), f"Reading {index.path.name}", out):
        record = index[number]
        of_record = [task.category for task in generate_tasks(record, _SEED)]
        tasks.update(of_record)
        without_task += not of_record
        features.update(record.features)
        words.append(len(record.story.split()))
        characters.append(len(record.story))
        hashes.append(hash64(record.story))
    report = {
        "path": str(index.path),
        "bytes": index.path.stat().st_size,
        "records": len(index),
        "without_story": index.without_story,
        "not_utf8": int(index.has("not UTF-8").sum()),
        "fields": {name: int(index.has(name).sum()) for name in FIELDS},
        "features": {name: int(index.has(name).sum()) for name in FEATURES},
        "looked_at": len(numbers),
        "other_features": {name: count for name, count in features.most_common(20) if name not in FEATURES},
        "tasks": {category: tasks[category] for category in categories()},
        "without_task": without_task,
        "duplicates": len(hashes) - len(set(hashes)),
        "story_words": _percentiles(np.array(words)),
        "story_characters": _percentiles(np.array(characters)),
        "examples": _examples(index, len(numbers), tokenizer, seq_len, out),
    }
    return report, np.array(hashes, dtype=np.uint64)


def _examples(
    index: RecordIndex, count: int, tokenizer: ChatTokenizer, seq_len: int, out: Console | None
) -> dict[str, Any]:
    """Statistics of the first `count` examples of a fine-tuning run with the default mixture, and what was skipped."""
    try:
        source = InstructDataset(index, tokenizer, DataSection(seq_len=seq_len, turns=1, answer_weight=0), _SEED)
        numbers = with_progress(range(count), f"Making examples from {index.path.name}", out)
        rows = measure(index.path.name, map(source.__getitem__, numbers), per_epoch=count)
    except UserError as error:  # no example fits: a finding of the report, not an error
        return {"impossible": str(error), "notes": index.notes()}
    total, kinds = total_of(rows), {}
    for row in rows:
        medians = {"tokens_median": float(np.median(row.lengths)), "trained_share": row.trained_share}
        kinds[row.kind] = {"share": row.examples / count, **medians}
    return {
        "count": count,
        "tokens": _percentiles(total.lengths),
        "trained_share": total.trained_share,
        "kinds": kinds,
        "shortened": source.stats["shortened"],
        "taken_from_another_record": source.stats["substituted"],
        "too_long": {kind: n for kind in TASK_KINDS if (n := source.stats[f"too long: {kind}"])},
        "notes": [*index.notes(), *example_notes(source.stats, seq_len)],
    }


def _spread(n: int, limit: int) -> np.ndarray:
    """At most `limit` of n numbers, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(np.int64))


def _percentiles(numbers: np.ndarray) -> dict[str, float]:
    values = np.percentile(numbers, PERCENTILES)
    percentiles = {f"p{q}": round(float(value), 1) for q, value in zip(PERCENTILES, values, strict=True)}
    return {"mean": round(float(numbers.mean()), 1), **percentiles, "max": float(numbers.max())}


# In the terminal


def show_report(report: Mapping[str, Any], out: Console) -> None:
    """Print the result of `report_folder`."""
    source = report["source"]
    why = f" ({source['why']})" if "why" in source else ""
    print_line(out, f"{report['folder']}: {SOURCE_DESCRIPTIONS[source['source']]}{why}\n")
    for table in (_records_table, _tasks_table, _lengths_table):
        out.print(text_table(table(report["files"])))
        out.print()
    for line in report["notes"]:
        print_line(out, f"- {line}")


def _records_table(files: Mapping[str, Any]) -> list[list[str]]:
    entries = [*files.values()]

    def row(name: str, counts: Iterable[int], of: str = "records") -> list[str]:
        return [name, *(_part(count, entry[of]) for count, entry in zip(counts, entries, strict=True))]

    rows = [["Records", *files], ["size", *(format_size(entry["bytes"]) for entry in entries)]]
    rows.append(["records", *(f"{entry['records']:,}" for entry in entries)])
    for group in ("fields", "features"):
        rows += [[], *(row(name, [entry[group][name] for entry in entries]) for name in entries[0][group])]
    rows += [[], row("read for the rows below", [entry["looked_at"] for entry in entries])]
    for name in sorted({name for entry in entries for name in entry["other_features"]}):
        rows.append(row(name, [entry["other_features"].get(name, 0) for entry in entries], "looked_at"))
    return [*rows, row("duplicate stories", [entry["duplicates"] for entry in entries], "looked_at")]


def _tasks_table(files: Mapping[str, Any]) -> list[list[str]]:
    """For each category the records that support it, and for each kind its fraction of the training examples."""
    rows = [["Tasks", *(title for split in files for title in (f"{split} records", "of examples"))]]
    for category in categories():
        kind, _, answer = category.partition("/")
        row = [category]
        for entry in files.values():
            share = entry["examples"].get("kinds", {}).get(kind, {}).get("share", 0.0)
            row += [_part(entry["tasks"][category], entry["looked_at"]), "" if answer == "no" else f"{share:.1%}"]
        rows.append(row)
    return rows


def _lengths_table(files: Mapping[str, Any]) -> list[list[str]]:
    rows = [["Lengths", *(f"{q} %" for q in PERCENTILES), "max"]]
    for split, entry in files.items():
        lengths = {"words of a story": entry["story_words"], "characters of a story": entry["story_characters"]}
        if "tokens" in entry["examples"]:
            lengths["tokens of an example"] = entry["examples"]["tokens"]
        for name, values in lengths.items():
            rows.append([f"{split}, {name}", *(f"{value:,.0f}" for key, value in values.items() if key != "mean")])
    return rows


def _part(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def findings(report: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what was skipped and why, what to know before training, and the commands to get what is missing."""
    files, kind, folder = report["files"], report["source"]["source"], Path(report["folder"])
    for split, entry in files.items():
        counted = {
            "with invalid UTF-8, read as U+FFFD": entry["not_utf8"],
            f"of the {entry['looked_at']:,} that were read support no task": entry["without_task"],
        }
        yield from (f"{split}: {n:,} {'record' if n == 1 else 'records'} {what}." for what, n in counted.items() if n)
        if "impossible" in entry["examples"]:
            yield f"{split}: No examples can be made: {entry['examples']['impossible']}"
        yield from (f"{split}: {note}" for note in entry["examples"]["notes"])
    if report["in_both_splits"] is not None:
        train, valid = files["train"]["looked_at"], files["valid"]["looked_at"]
        yield f"{report['in_both_splits']:,} of {valid:,} valid stories are also among the {train:,} train stories."
    if any(entry["looked_at"] < entry["records"] for entry in files.values()):
        yield "Only a sample was read, so there may be more duplicates; --full reads all records."
    trained = [(split, entry["examples"].get("trained_share")) for split, entry in files.items()]
    if fractions := [f"{share:.1%} of {split}" for split, share in trained if share]:
        yield f"Supervised tokens (answers): {', '.join(fractions)}."
    yield f"Tokens are counted with {report['tokenizer']['label']}."
    for file in report["unused_files"]:
        yield f"{file} is not used: the same split also exists under its other name."
    for split in SPLITS:
        if split not in files:
            yield (
                f"There is no {split} file, and fine-tuning needs both: `{command_for(folder)} --split {split}` downloads the "
                f"public one; `{command_for(Path('NEW'))} --source FILE` splits a file of your own into both."
            )
    if kind == "sample":
        yield f"This is the sample; `{command_for(folder)} --replace-sample` replaces it by the public data (2.7 GB)."
    if kind == "derived":
        yield "Labeled plain stories have no summaries and unknown endings, so there are no tasks of these kinds."
    if not any(count for entry in files.values() for count in entry["fields"].values()):
        command = f"{command_for(Path('NEW'))} --label FILE"
        yield f"These are plain stories: `{command}` makes records with words and sentences from them."
    for path in sorted(folder.glob(".draft*")):  # not removed at the start, so it may be in use
        yield f"{path} is left over from a killed process; delete it if no process is writing to it."
    for path in (path for paths in unfinished(folder).values() for path in paths):
        yield f"{path} is an unfinished download ({format_size(size_of(path))})."

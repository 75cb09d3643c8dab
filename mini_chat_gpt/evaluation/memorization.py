"""Memorization: how much of the stories that models write occurs word for word in their training stories.

Real stories that no model was trained on also share phrases with the training stories ("once upon a time there was a little
girl"), so they are the baseline. Each generated story is paired with the reference story of its task, and both are cut to the
length of the shorter one, because a longer text has more chances of a match.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.evaluation.capabilities import Evaluation
from mini_chat_gpt.evaluation.confidence import bootstrap, paired
from mini_chat_gpt.evaluation.held_out import data_folders, recorded_data
from mini_chat_gpt.evaluation.ngram_overlap import Overlap, cut_to_same_length, ngram_overlap
from mini_chat_gpt.tinystories.documents import read_documents
from mini_chat_gpt.training.provenance import find_data_file

STORY_KIND = "words"  # the kind of task whose replies are stories
N = 8  # words of an n-gram


@dataclass(frozen=True)
class TrainingFiles:
    """The files of stories that a model was trained on."""

    files: tuple[Path, ...]  # empty if they are unknown or not on this machine
    recorded: bool  # by the run; otherwise it is the train file next to the held-out file
    same_source: bool  # whether the held-out stories come from the same data, so that they are a fair baseline


def find_training_files(checkpoint: Path, held_out: Path) -> TrainingFiles:
    """The training files that a checkpoint's run recorded, if they still exist unchanged; the project may have been moved.

    Without such a record, the train file next to the held-out file, if there is one.
    """
    records = [(run, record) for run in (checkpoint, checkpoint.parent) for record in recorded_data(run)]
    if records:  # even if none of the files can be used: the model was trained on chats, or the files are gone
        folder = held_out.resolve().parent
        folders = [*data_folders(checkpoint), folder]
        places = [find_data_file(record, run, folders) for run, record in records]
        usable = [place.resolve() for place in places if place and place.suffix == ".txt" and "valid" not in place.name]
        return TrainingFiles(tuple(dict.fromkeys(usable)), True, any(file.parent == folder for file in usable))
    train = held_out.with_name(held_out.name.replace("valid", "train"))
    exists = train != held_out and train.is_file() and train.stat().st_size > 0
    return TrainingFiles((train,) if exists else (), False, exists)


def memorization(
    evaluations: Mapping[str, Evaluation], training: Mapping[str, TrainingFiles], max_bytes: int, out: Console
) -> dict[str, Any] | None:
    """For each model, the n-gram overlap of its stories with its training stories, compared with that of the reference stories.

    Searches the first `max_bytes` of each file. Returns None if no model has both stories and training files. Raises UserError
    for a file that can't be read.
    """
    pairs = {name: _story_pairs(evaluation) for name, evaluation in evaluations.items()}
    by_files: dict[tuple[Path, ...], list[str]] = {}
    for name, known in training.items():
        if known.files and pairs[name] and max_bytes:
            by_files.setdefault(known.files, []).append(name)
    results: dict[str, dict[str, Any]] = {}
    for files, names in by_files.items():  # models with the same training files share one pass over them
        # Group names: "0/MODEL" for the generated stories, "1/MODEL" for their references.
        groups = {f"{side}/{name}": [pair[side] for pair in pairs[name]] for name in names for side in (0, 1)}
        overlaps, n_texts = _search(groups, files, max_bytes, out)
        for name in names:
            results[name] = {
                "files": [f"{file.parent.name}/{file.name}" for file in files],
                "recorded": training[name].recorded,
                "complete": all(file.stat().st_size <= max_bytes for file in files),
                "n_training_texts": n_texts,
                **_compare(overlaps[f"0/{name}"], overlaps[f"1/{name}"], training[name].same_source),
            }
    return {"n": N, "models": {name: results.get(name) for name in evaluations}} if results else None


def _story_pairs(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(generated, reference) stories, each pair cut to the same number of words."""
    items = (item for item in evaluation.items if item.task.kind == STORY_KIND)
    return [cut_to_same_length(item.reply, item.task.target) for item in items]


def _search(
    groups: Mapping[str, list[str]], files: Sequence[Path], max_bytes: int, out: Console
) -> tuple[dict[str, Overlap], int]:
    """`ngram_overlap` with the stories of the files, with a progress bar."""
    size = sum(min(max_bytes, file.stat().st_size) for file in files)
    start = time.monotonic()
    with StepProgress(out, "Searching training stories, MB", 0, -(-size // 10**6)) as bar:

        def show(n_characters: int) -> None:
            rate = n_characters / 1e6 / max(time.monotonic() - start, 1e-9)
            bar.update(min(bar.total, n_characters // 10**6), f"{rate:.1f} MB/s")

        return ngram_overlap(groups, _first_stories(files, max_bytes), N, progress=show)


def _first_stories(files: Sequence[Path], max_bytes: int) -> Iterator[str]:
    for file in files:
        size = 0
        for text in read_documents(file):
            yield text
            size += len(text.encode())
            if size >= max_bytes:
                break


def _compare(generated: Overlap, reference: Overlap, same_source: bool) -> dict[str, Any]:
    """Compare generated with reference stories. Stories shorter than an n-gram don't count; if all are, the values are None."""
    both = [(a, b) for a, b in zip(generated.shares, reference.shares, strict=True) if a is not None and b is not None]
    of_generated, of_reference = np.array(both).reshape(-1, 2).T
    return {
        "n_stories": len(generated.longest),
        "generated": _summary(generated, of_generated),
        "reference": _summary(reference, of_reference) if same_source else None,
        "difference": paired(of_reference, of_generated)._asdict() if both and same_source else None,
        "passage": vars(generated.passage) if generated.passage is not None else None,
    }


def _summary(overlap: Overlap, shares: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap(shares) if len(shares) else (None, None)
    return {
        "value": float(shares.mean()) if len(shares) else None,
        "low": low,
        "high": high,
        "mean_longest": fmean(overlap.longest),
        "longest": max(overlap.longest),
    }


def describe(result: Mapping[str, Any]) -> list[str]:
    """The result as text: a heading and a line for each model."""
    lines = [
        f"Memorization: {result['n']}-grams (runs of {result['n']} words) that also occur in the training stories:"
    ]
    for name, one in result["models"].items():
        if one is None:
            lines.append(f"  {name}: its training stories were not found on this machine")
            continue
        generated, reference = one["generated"], one["reference"]
        if generated["value"] is None:
            text = f"its stories are shorter than {result['n']} words"
        elif reference is None:
            text = f"{100 * generated['value']:.1f} % in its stories; longest shared run {generated['longest']} words"
        else:
            text = (
                f"{100 * generated['value']:.1f} % in its stories, {100 * reference['value']:.1f} % in real held-out "
                f"stories; longest shared run {generated['longest']} and {reference['longest']} words"
            )
        lines.append(f"  {name}: {text} ({searched(one)})")
    return lines


def searched(one: Mapping[str, Any]) -> str:
    """Which training stories were searched for a model, and caveats."""
    text = (
        f"{'all' if one['complete'] else 'the first'} {one['n_training_texts']:,} stories of {', '.join(one['files'])}"
    )
    if not one["recorded"]:
        text += ", the train file next to the held-out file, because the run did not record its training data"
    if not one["reference"]:
        text += "; the held-out stories come from another source, so they are not a baseline"
    return text

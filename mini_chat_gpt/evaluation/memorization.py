"""How much of what models tell stands in their training stories: memorised.py for the stories of an evaluation.

Looked at are the stories that were asked for with words to use. Each is put beside the expected one, a real story that no
model was trained on, and both are cut to the length of the shorter one, so that neither has more chances.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.evaluation.capabilities import Evaluation
from mini_chat_gpt.evaluation.confidence import bootstrap, paired
from mini_chat_gpt.evaluation.memorised import Memorised, Shared, memorised, of_equal_length
from mini_chat_gpt.sft_dataloader import stories

WRITING = "words"
"""The kind of task whose replies are stories."""
RUN = 8  # words


@dataclass(frozen=True)
class Training:
    """The stories that a model was trained on."""

    files: tuple[Path, ...]  # none: they are not here, or nobody knows
    noted: bool  # by its run; else it is what lies beside the held-out file
    same_source: bool  # whether the held-out stories come from the same data, so that they are a yardstick


def training_of(checkpoint: Path, held_out: Path) -> Training:
    """The files of stories that a checkpoint's run noted, as far as they are still there and the same.

    Where nothing is noted, it is the train file beside the held-out one, if there is one.
    """
    found: dict[Path, None] = {}
    noted = [_data_facts(run / "run.json") for run in (checkpoint, checkpoint.parent)]
    for data in noted:
        for facts in data:
            path = Path(str(facts.get("path", "")))
            is_text = path.suffix == ".txt" and "valid" not in path.name
            if is_text and path.is_file() and path.stat().st_size == facts.get("size"):
                found[path.resolve()] = None
    if any(noted):  # also where it was chats, or what is gone by now
        folder = held_out.resolve().parent
        return Training(tuple(found), True, any(file.parent == folder for file in found))
    beside = held_out.with_name(held_out.name.replace("valid", "train"))
    there = beside != held_out and beside.is_file() and beside.stat().st_size > 0
    return Training((beside,) if there else (), False, there)


def _data_facts(run_file: Path) -> list[Mapping[str, Any]]:
    """What a run noted of its data; [] where there is no such note."""
    try:
        facts = json.loads(run_file.read_text(encoding="utf-8"))["began"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in facts if isinstance(one, dict)] if isinstance(facts, list) else []


def recited(
    evaluations: Mapping[str, Evaluation], training: Mapping[str, Training], most_bytes: int, out: Console
) -> dict[str, Any] | None:
    """By model what its stories share with its training stories, and what real ones of the same length do.

    Looked through are the first `most_bytes` of each file. None where no model has told stories and has training files.
    Raises UserError for a file that can't be read.
    """
    pairs = {name: _pairs(evaluation) for name, evaluation in evaluations.items()}
    by_files: dict[tuple[Path, ...], list[str]] = {}
    for name, known in training.items():
        if known.files and pairs[name] and most_bytes:
            by_files.setdefault(known.files, []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for files, names in by_files.items():
        groups = {
            name: [pair[which] for pair in pairs[who]] for who in names for which, name in enumerate(_groups(who))
        }
        shared = _looked_up(groups, files, most_bytes, out)
        for name in names:
            about = {
                "files": [f"{file.parent.name}/{file.name}" for file in files],
                "noted": training[name].noted,
                "complete": all(file.stat().st_size <= most_bytes for file in files),
                "n_training_texts": shared.n_training_texts,
            }
            found[name] = about | _compared(shared, name, training[name].same_source)
    return {"n": RUN, "models": {name: found.get(name) for name in evaluations}} if found else None


def _pairs(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Each story with the expected one, both cut to the same length."""
    told = [(item.reply, item.task.target) for item in evaluation.items if item.task.kind == WRITING]
    return [of_equal_length(*pair) for pair in told]


def _groups(name: str) -> tuple[str, str]:
    return f"told by {name}", f"real beside {name}"


def _looked_up(groups: Mapping[str, list[str]], files: Sequence[Path], most_bytes: int, out: Console) -> Memorised:
    """`memorised`, behind a progress bar."""
    size = sum(min(most_bytes, file.stat().st_size) for file in files)
    started = time.monotonic()
    with StepProgress(out, "Training stories looked through, MB", 0, -(-size // 10**6)) as bar:

        def show(n_characters: int) -> None:
            rate = n_characters / 1e6 / max(time.monotonic() - started, 1e-9)
            bar.update(min(bar.total, n_characters // 10**6), f"{rate:.1f} MB/s")

        return memorised(groups, _texts(files, most_bytes), RUN, progress=show)


def _texts(files: Sequence[Path], most_bytes: int) -> Iterator[str]:
    for file in files:
        size = 0
        for text in stories(file):
            yield text
            size += len(text.encode())
            if size >= most_bytes:
                break


def _compared(found: Memorised, name: str, is_yardstick: bool) -> dict[str, Any]:
    """A model's stories beside real ones; the shares are None where all are shorter than a run."""
    told, real = (found.shared[group] for group in _groups(name))
    shares = [
        (ours, theirs)
        for ours, theirs in zip(told.shares, real.shares, strict=True)
        if ours is not None and theirs is not None
    ]
    ours, theirs = np.array(shares).reshape(-1, 2).T
    return {
        "stories": len(told.longest),
        "told": _of_group(told, ours),
        "real": _of_group(real, theirs) if is_yardstick else None,
        "difference": paired(theirs, ours)._asdict() if shares and is_yardstick else None,
        "passage": vars(told.passage) if told.passage is not None else None,
    }


def _of_group(shared: Shared, shares: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap(shares) if len(shares) else (None, None)
    return {
        "value": float(shares.mean()) if len(shares) else None,
        "low": low,
        "high": high,
        "mean_longest": shared.mean_longest,
        "longest": max(shared.longest),
    }


def in_words(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each model."""
    lines = [f"Runs of {found['n']} words that also stand in the training stories:"]
    for name, one in found["models"].items():
        if one is None:
            lines.append(f"  {name}: its training stories are not here")
            continue
        told, real = one["told"], one["real"]
        if told["value"] is None:
            said = f"its stories are shorter than {found['n']} words"
        elif real is None:
            said = f"{100 * told['value']:.1f} % of its stories; longest shared run {told['longest']} words"
        else:
            said = (
                f"{100 * told['value']:.1f} % of its stories, {100 * real['value']:.1f} % of real unseen ones; longest "
                f"shared run {told['longest']} and {real['longest']} words"
            )
        lines.append(f"  {name}: {said} ({where(one)})")
    return lines


def where(one: Mapping[str, Any]) -> str:
    """In which stories was looked, and what is to be known of them."""
    which = "all" if one["complete"] else "the first"
    said = f"{which} {one['n_training_texts']:,} stories of {', '.join(one['files'])}"
    said += "" if one["noted"] else ", which lies beside the held-out file; its own training data are not noted"
    return said + ("" if one["real"] else "; the held-out stories are of another source and no yardstick")

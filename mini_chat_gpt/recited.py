"""How much of what models tell stands in their training stories: memorised.py for the stories of an evaluation.

Looked at are the stories that were asked for with words to use. Each is put beside the expected one, a real story that no
model was trained on, and both are cut to the length of the shorter one, so that neither has more chances.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mini_chat_gpt.capabilities import Evaluation
from mini_chat_gpt.intervals import bootstrap, paired
from mini_chat_gpt.memorised import Memorised, Shared, memorised, of_equal_length
from mini_chat_gpt.monitor import StepProgress
from mini_chat_gpt.sft_dataloader import stories

WRITING = "words"
"""The kind of task whose replies are stories."""


def training_files(checkpoints: Sequence[Path], held_out: Path) -> list[Path]:
    """The files of stories that the checkpoints' runs trained on, as far as they are still there.

    Where none is, the train file beside the held-out one, if there is one.
    """
    found: dict[Path, None] = {}
    for checkpoint in checkpoints:
        for file in (run / "run.json" for run in (checkpoint, checkpoint.parent)):
            for facts in _data_facts(file):
                path = Path(str(facts.get("path", "")))
                is_text = path.suffix == ".txt" and "valid" not in path.name
                if is_text and path.is_file() and path.stat().st_size == facts.get("size"):
                    found[path.resolve()] = None
    if not found and "valid" in held_out.name:
        beside = held_out.with_name(held_out.name.replace("valid", "train"))
        found |= {beside: None} if beside.is_file() else {}
    return list(found)


def _data_facts(run_file: Path) -> list[Mapping[str, Any]]:
    """What a run noted of its data; [] where there is no such note."""
    try:
        facts = json.loads(run_file.read_text(encoding="utf-8"))["began"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in facts if isinstance(one, dict)] if isinstance(facts, list) else []


def recited(
    evaluations: Mapping[str, Evaluation], files: Sequence[Path], most_bytes: int, out: Console
) -> dict[str, Any] | None:
    """By model what its stories share with the training stories, and what real ones of the same length do.

    Looked through are the first `most_bytes` of each file. None where no story was told, or there is nothing to look into.
    """
    groups: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        told = [(item.reply, item.task.target) for item in evaluation.items if item.task.kind == WRITING]
        pairs = [of_equal_length(*pair) for pair in told]
        groups |= {f"told by {name}": [pair[0] for pair in pairs], f"real beside {name}": [pair[1] for pair in pairs]}
    if not files or not most_bytes or not all(groups.values()):
        return None
    size = sum(min(most_bytes, file.stat().st_size) for file in files)
    started = time.monotonic()
    with StepProgress(out, "Training stories looked through, MB", 0, -(-size // 10**6)) as bar:

        def show(n_characters: int) -> None:
            rate = n_characters / 1e6 / max(time.monotonic() - started, 1e-9)
            bar.update(min(bar.total, n_characters // 10**6), f"{rate:.1f} MB/s")

        found = memorised(groups, _texts(files, most_bytes), progress=show)
    return {
        "n": found.n,
        "files": [file.name for file in files],
        "complete": all(file.stat().st_size <= most_bytes for file in files),
        "n_training_texts": found.n_training_texts,
        "models": {name: _compared(found, name) for name in evaluations},
    }


def _texts(files: Sequence[Path], most_bytes: int) -> Iterator[str]:
    for file in files:
        size = 0
        for text in stories(file):
            yield text
            size += len(text.encode())
            if size >= most_bytes:
                break


def _compared(found: Memorised, name: str) -> dict[str, Any]:
    """A model's stories beside real ones; the shares are None where all are shorter than a run."""
    told, real = found.shared[f"told by {name}"], found.shared[f"real beside {name}"]
    shares = [
        (ours, theirs)
        for ours, theirs in zip(told.shares, real.shares, strict=True)
        if ours is not None and theirs is not None
    ]
    ours, theirs = np.array(shares).reshape(-1, 2).T
    difference = paired(theirs, ours)._asdict() if shares else None
    return {
        "stories": len(told.longest),
        "told": _of_group(told, ours),
        "real": _of_group(real, theirs),
        "difference": difference,
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
    where = ", ".join(found["files"])
    part = "" if found["complete"] else f"the first {found['n_training_texts']:,} stories of "
    lines = [f"Runs of {found['n']} words that also stand in {part}{where}:"]
    for name, one in found["models"].items():
        told, real = one["told"], one["real"]
        if told["value"] is None:
            lines.append(f"  {name}: its stories are shorter than that")
            continue
        lines.append(
            f"  {name}: {100 * told['value']:.1f} % of its stories, {100 * real['value']:.1f} % of real unseen ones; "
            f"longest shared run {told['longest']} and {real['longest']} words"
        )
    return lines

"""What an evaluation during training prints: three lines, however many kinds and prompts there are. Files have the rest.

    step 500  validation loss 1.2345  moral 0.321  summary 1.402  …
    held-out tasks: moral/exact 0.75  summary/rouge_l 0.31  …
    sample: Where is Tom? → Tom is at home.

metrics.jsonl has every number, samples.txt every reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from mini_chat_gpt.common.files import append_text
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.training.job import Evaluation
from mini_chat_gpt.training.monitor import Monitor

SAMPLES = "samples.txt"


def show_evaluation(evaluation: Evaluation, step: int, monitor: Monitor, folder: Path) -> None:
    """Print an evaluation and append its samples to samples.txt in the run's folder."""
    out, losses, scores = monitor.console, evaluation.losses, evaluation.scores
    width = out.width if out.is_terminal else None  # a log file gets complete lines
    kinds = [f"{name.partition('/')[2]} {loss:.3f}" for name, loss in losses.items() if "/" in name]
    monitor.message(_as_fits([f"step {step}  validation loss {losses['val_loss']:.4f}", *kinds], width))
    if scores:
        head, *others = (f"{name.removeprefix('eval/')} {score:.2f}" for name, score in scores.items())
        monitor.message(_as_fits([f"held-out tasks: {head}", *others], width))
    if evaluation.samples:
        sample = Text(f"sample: {well_formed(evaluation.samples).splitlines()[0].strip()}")
        if width is not None:
            sample.truncate(width, overflow="ellipsis")
        monitor.message(sample.plain)
        text = f"=== step {step}\n{well_formed(evaluation.samples)}\n"
        monitor.attempt(f"Writing {SAMPLES}", lambda: append_text(folder / SAMPLES, text))


def _as_fits(parts: Sequence[str], width: int | None) -> str:
    """As many parts as fit into the width; "…" stands for the others."""
    line = "  ".join(parts)
    for n in range(len(parts) - 1, 0, -1):
        if width is None or cell_len(line) <= width:
            break
        line = "  ".join([*parts[:n], "…"])
    return line

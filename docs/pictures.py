"""Draws the README's pictures from a finished quickstart: `python docs/pictures.py [runs/quickstart]`.

`loss.svg` is drawn from the metrics of both runs; `chat.svg` is what a real terminal (tmux, 80 columns) shows after the
lines of `chat_lines` have been typed into `mini-chat-gpt chat`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.text import Text

from mini_chat_gpt.prepare.sample_stories import ANSWERS_NAME, FILE_NAME
from mini_chat_gpt.sft_dataloader import read_records
from mini_chat_gpt.training.loss_curves import draw_figure, read_curves

HERE = Path(__file__).parent
COLUMNS, ROWS = 80, 48


def chat_lines(data: Path) -> list[str]:
    """What to type: questions about the first held-out story that states a moral and has a plot training never shows."""
    file, answers = (data / name.format(split="valid") for name in (FILE_NAME, ANSWERS_NAME))
    lines, records = answers.read_text(encoding="utf-8").splitlines(), read_records(file)
    known, record = next(
        (known, record)
        for known, record in zip(map(json.loads, lines), records, strict=True)
        if known["moral"] and not known["seen"]
    )
    return [
        f"{' '.join(record.story.split())} Who is the main character of this story?",
        known["why"][0]["question"],
        "What is the moral of this story?",
        "Does this story have a happy ending?",
        "/reset",
        "Use the words boat, river, happy in a short story.",
        "/tokens",
    ]


def draw_losses(runs: Path) -> None:
    """What each run draws of itself, side by side."""
    figure = draw_figure({"base model": read_curves(runs / "base"), "fine-tuning": read_curves(runs / "sft")})
    figure.set_size_inches(12.5, 4)  # or the letters get too small on a page
    with matplotlib.rc_context({"svg.hashsalt": "mini_chat_gpt"}):  # the same picture for the same numbers
        figure.savefig(HERE / "loss.svg", metadata={"Date": None})


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def capture_chat(model: Path, lines: list[str]) -> None:
    """Type into a real chat and draw what its terminal shows."""
    session = "mini-chat-gpt-picture"
    command = f"mini-chat-gpt chat --checkpoint {model} --temperature 0"
    tmux("new-session", "-d", "-s", session, "-x", str(COLUMNS), "-y", str(ROWS), command)
    try:
        wait_until_quiet(session)
        for line in lines:
            tmux("send-keys", "-t", session, "-l", line)
            tmux("send-keys", "-t", session, "Enter")
            wait_until_quiet(session)
        shown = tmux("capture-pane", "-t", session, "-p", "-e", "-S", "-200").rstrip()
    finally:
        tmux("kill-session", "-t", session)
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown))
    console.save_svg(str(HERE / "chat.svg"), title="mini-chat-gpt chat")


def wait_until_quiet(session: str, seconds: float = 4.0) -> None:
    """Until the screen hasn't changed for so long."""
    before, since = "", time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.3)
        shown = tmux("capture-pane", "-t", session, "-p")
        if shown != before or not shown.strip():
            before, since = shown, time.monotonic()


if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    draw_losses(runs)
    capture_chat(runs / "sft", chat_lines(runs / "data"))

"""Draw the README's pictures from a finished quickstart: `python docs/pictures.py [runs/quickstart]`.

`loss.svg` is drawn from the metrics of both runs. `chat.svg` is a capture of a real terminal (tmux, 80 columns) in which the
lines of `chat_lines` are typed into `mini-chat-gpt chat`. `report.png` is the first screen of the newest report of a quickstart in
runs/reports, `inspect.png` a page of `inspect`, and `web-page.png` a conversation on the page of `serve`, all in Chromium
(`pip install playwright`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
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
    """The lines to type, with the first held-out story that has a moral and a plot that is not in the training data."""
    file, answers_file = (data / name.format(split="valid") for name in (FILE_NAME, ANSWERS_NAME))
    lines, records = answers_file.read_text(encoding="utf-8").splitlines(), read_records(file)
    answers, record = next(
        (answers, record)
        for answers, record in zip(map(json.loads, lines), records, strict=True)
        if answers["moral"] and not answers["seen"]
    )
    return [
        "hi",
        "Who are you?",
        "What is the capital of France?",
        " ".join(record.story.split()),
        "Who is the main character?",
        answers["why"][0]["question"],
        "Does this story have a happy ending?",
        "Thanks!",
        "bye",
    ]


def draw_losses(runs: Path) -> None:
    """The loss curves of both runs, side by side."""
    figure = draw_figure({"base model": read_curves(runs / "base"), "fine-tuning": read_curves(runs / "sft")})
    figure.set_size_inches(12.5, 4)  # larger letters on the page
    with matplotlib.rc_context({"svg.hashsalt": "mini_chat_gpt"}):  # deterministic output
        figure.savefig(HERE / "loss.svg", metadata={"Date": None})


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def capture_chat(model: Path, lines: list[str]) -> None:
    """Type into a real chat and draw the content of its terminal."""
    session = "mini-chat-gpt-picture"
    # With a cache of its own, so that nothing of another chat is on the picture.
    command = f"env XDG_CACHE_HOME={tempfile.mkdtemp()} mini-chat-gpt chat --checkpoint {model} --temperature 0"
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
    """Wait until the screen has not changed for this many seconds."""
    before, since = "", time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.3)
        shown = tmux("capture-pane", "-t", session, "-p")
        if shown != before or not shown.strip():
            before, since = shown, time.monotonic()


def capture_pages(model: Path) -> None:
    """The newest report of a quickstart, and what `inspect` shows of the recipe's chats for this model."""
    from playwright.sync_api import sync_playwright

    report = max(Path("runs/reports").glob("quickstart*/report.html"), key=lambda file: file.stat().st_mtime)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        inspected = Path(folder) / "inspect.html"
        command = ["mini-chat-gpt", "inspect", "recipes/polite_helper/train_60.jsonl", "--html", str(inspected)]
        command += [f"sft.pretrained_checkpoint={model}", "chats.valid_share=0"]
        subprocess.run(command, check=True, capture_output=True)
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, file, height in (("report", report, 800), ("inspect", inspected, 1650)):
            page = browser.new_page(viewport={"width": 1000, "height": height})
            page.goto(file.resolve().as_uri())
            page.screenshot(path=HERE / f"{name}.png")
        browser.close()


def capture_web_page(model: Path, lines: list[str]) -> None:
    """The page of `serve`: the story and questions about it, and the probabilities of the last reply."""
    from playwright.sync_api import sync_playwright

    command = ["mini-chat-gpt", "serve", "--checkpoint", f"quickstart={model}", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as running:
        assert server.stderr is not None
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://[\d.:]+", line)))
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.goto(address)
        page.click("#open-settings")
        page.fill("#setting-temperature", "0")
        page.keyboard.press("Escape")
        for n, line in enumerate(lines, start=1):
            page.fill("#input", line)
            page.press("#input", "Enter")
            page.locator(".assistant article[aria-busy=false]").nth(n - 1).wait_for()
        page.get_by_role("button", name="Why did it say that?").last.click()
        page.evaluate("document.activeElement.blur(), document.getElementById('scroller').scrollTop = 1e6")
        page.screenshot(path=HERE / "web-page.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    draw_losses(runs)
    lines = chat_lines(runs / "data")
    capture_chat(runs / "sft", lines)
    capture_web_page(runs / "sft", lines[3:6])
    capture_pages(runs / "sft")

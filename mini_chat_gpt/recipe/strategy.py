"""The strategy of a recipe: the questions that `recipe new` asks, and the README that holds the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mini_chat_gpt.recipe.check import TO_WRITE


@dataclass(frozen=True)
class Point:
    """One section of the README."""

    option: str  # of `recipe new`, without dashes
    title: str
    question: str


POINTS = (
    Point("problem", "The problem", "Which problem does the model solve, for whom, and what does it read and write?"),
    Point("why", "The base model", "Why this base model: its size, what it can do already, its license?"),
    Point("source", "The data", "Where do the records come from, what does one hold, and how many are there?"),
    Point("method", "The method", "How is it trained, and which settings matter? (Enter: LoRA of rank 16)"),
    Point("judged", "How it is judged", "How do you judge a reply, by count and by eye?"),
    Point(
        "difficult", "What is difficult, and what was done", "What is difficult about it, and what did you do about it?"
    ),
)
LORA = (
    "LoRA of rank 16 (alpha 32, dropout 0.1) on all linear layers, batches of 4, the learning rate that `auto` chooses. "
    "All settings are in [config.yaml](config.yaml)."
)
DEFAULTS = {"method": LORA}


def readme(name: str, base: str, answers: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The text of README.md. `facts` has sentences that are known without asking, by option."""
    lines = [f"# {name}", "", "```bash", f"mini-chat-gpt recipe {name}", "```"]
    for point in POINTS:
        answer = answers.get(point.option) or DEFAULTS.get(point.option) or f"{TO_WRITE}: {point.question}"
        known = {"why": f"{base}.", **facts}.get(point.option, "")
        text = answer if answer.startswith(TO_WRITE) else f"{known} {answer}".strip()
        lines += ["", f"## {point.title}", "", text]
        if known and answer.startswith(TO_WRITE):
            lines += ["", known]
    lines += [
        "",
        "## Results",
        "",
        "Not measured yet. `mini-chat-gpt recipe` with this folder prints them, and writes every reply to `before_after.md` and "
        "`results.json` in the run's folder. Copy the table, five good and five bad replies, time and memory, and the limits that you see.",
    ]
    return "\n".join(lines) + "\n"

"""Draw the figures of the course: `python notebooks/figures.py`. The numbers of the packed batch are those of the program.

Each figure has a light background of its own, so that it is readable on light and dark pages.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.data.batching import Example, collate
from mini_chat_gpt.tokenizer import ChatTokenizer

FOLDER = Path(__file__).parent / "figures"
INK, GREEN, BLUE, SAND, FAINT = "#1b1b1b", "#b7e4c7", "#cfe2ff", "#ffe8b6", "#e9ecef"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "middle", weight: str = "normal") -> str:
    style = f"font-size='{size}' text-anchor='{anchor}' font-weight='{weight}' fill='{INK}'"
    return f"<text x='{x:g}' y='{y:g}' {FONT} {style}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, color: str, radius: float = 6) -> str:
    place = f"x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}'"
    return f"<rect {place} rx='{radius:g}' fill='{color}' stroke='{INK}' stroke-width='0.8'/>"


def arrow(x: float, y: float, length: float, label: str = "") -> str:
    line = f"<path d='M {x:g} {y:g} h {length - 8:g}' stroke='{INK}' stroke-width='1.5'/>"
    head = f"<path d='M {x + length:g} {y:g} l -9 -5 v 10 z' fill='{INK}'/>"
    return line + head + (text(x + length / 2, y - 8, label, 12) if label else "")


def save(name: str, width: int, height: int, title: str, parts: list[str]) -> None:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' role='img'>"
    back = f"<rect width='{width}' height='{height}' rx='10' fill='#fdfdfb'/>"
    lines = [head, f"<title>{escape(title)}</title>", back, *parts, "</svg>"]
    (FOLDER / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def data_flow() -> None:
    """From a story to a reply: what is made, and the function that makes it."""
    rows = [
        ("Training", [("story", ""), ("task", "generate_tasks"), ("ids, loss mask", "render"), ("packed batch", "collate"),
                      ("loss", "GPT.forward"), ("new weights", "train_step")]),
        ("Chat", [("prompt", ""), ("ids", "render"), ("logits", "prefill"), ("next token", "sample"), ("reply", "decode")]),
    ]  # fmt: skip
    parts = []
    for row, (title, steps) in enumerate(rows):
        y = 44 + 110 * row
        parts.append(text(20, y - 14, title, 14, "start", "bold"))
        for n, (name, function) in enumerate(steps):
            x = 20 + 178 * n
            if function:
                parts.append(arrow(x - 64, y + 25, 62, ""))
                parts.append(text(x - 33, y + 64, function, 11))
            parts += [box(x, y, 112, 50, BLUE if row else GREEN), text(x + 56, y + 30, name, 14)]
    save("data-flow", 1050, 230, "From a story to new weights, and from a prompt to a reply", parts)


def packed_batch() -> None:
    """Two conversations in one row: tokens, loss mask, labels, and which token sees which."""
    tokenizer = ChatTokenizer.train(["Hi Why Yes No"] * 50, vocab_size=270)
    examples = []
    for question, answer in (("Hi", "Yes"), ("Why?", "No.")):
        ids, mask = render([Message("user", question), Message("assistant", answer)], tokenizer)
        examples.append(Example(np.array(ids, dtype=np.int32), np.array(mask), 1.0, "chat"))
    batch = collate(examples, pad_to_multiple_of=1)
    names = {"<|user|>": "user", "<|assistant|>": "asst", "<|endoftext|>": "end"}
    tokens = [tokenizer.decode([i], control=True) for i in batch.ids.tolist()]
    labels = dict(zip(batch.target_positions.tolist(), batch.labels.tolist(), strict=True))
    mask = np.concatenate([example.loss_mask for example in examples])
    size, left, top = 44, 150, 56
    parts = [text(20, 28, "A packed batch: two conversations in one row", 16, "start", "bold")]
    for y, name in ((0, "tokens"), (1, "supervised"), (2, "label")):
        parts.append(text(20, top + 50 * y + 27, name, 13, "start"))
    for n, token in enumerate(tokens):
        x = left + size * n
        first = n < batch.cu_seqlens[1]
        parts += [
            box(x, top, size - 2, 38, SAND if first else BLUE, 3),
            text(x + 21, top + 24, names.get(token, token), 12),
        ]
        parts += [box(x, top + 50, size - 2, 38, GREEN if mask[n] else FAINT, 3)]
        if mask[n]:
            parts.append(text(x + 21, top + 74, "yes", 12))
        if n in labels:
            label = tokenizer.decode([labels[n]], control=True)
            parts.append(text(x + 21, top + 124, names.get(label, label), 12))
    small, y0 = 20, top + 190
    parts.append(text(20, y0 - 20, "Attention: each row is a token, and sees the colored columns", 14, "start", "bold"))
    bounds = batch.cu_seqlens
    for reader in range(len(tokens)):
        start = max(b for b in bounds if b <= reader)
        for read in range(len(tokens)):
            color = (SAND if start == 0 else BLUE) if start <= read <= reader else "#ffffff"
            parts.append(box(left + small * read, y0 + small * reader, small - 1, small - 1, color, 1))
        name = tokens[reader]
        parts.append(text(left - 8, y0 + small * reader + 14, names.get(name, name), 11, "end"))
    x = left + small * len(tokens) + 40
    notes = [
        "A token sees itself and the tokens before it",
        "in its own conversation.",
        "The label is the next token of the same conversation.",
        "Only positions with a label are computed",
        "in the last layer.",
    ]
    parts += [text(x, y0 + 30 + 24 * n, note, 13, "start") for n, note in enumerate(notes)]
    save(
        "packed-batch",
        860,
        y0 + small * len(tokens) + 20,
        "A packed batch with its loss mask and its attention mask",
        parts,
    )


def formula_of_a_step() -> None:
    """Loss, gradient, clipping and update of one step."""
    steps = [
        ("loss", "L = Σ w · (−log p[label]) / Σ w", "over all supervised tokens of the step"),
        ("gradient", "g = ∂L / ∂θ", "backward pass of each micro-batch, added"),
        ("clip", "g ← g · min(1, limit / ‖g‖)", "one unusual batch can't ruin the model"),
        ("means", "m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²", "running means for each weight"),
        ("update", "θ ← θ − rate · (m̂ / (√v̂ + ε) + decay · θ)", "m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)"),
    ]
    parts = []
    for n, (name, formula, note) in enumerate(steps):
        y = 18 + 56 * n
        parts += [box(20, y, 100, 42, GREEN if n < 3 else BLUE), text(70, y + 26, name, 14, weight="bold")]
        parts += [text(140, y + 27, formula, 17, "start"), text(840, y + 26, note, 12, "end")]
    save("step", 860, 300, "The formulas of one training step", parts)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    data_flow()
    packed_batch()
    formula_of_a_step()


if __name__ == "__main__":
    main()

"""The result of `mini-chat-gpt inspect` as text in the terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import ceil

from rich.console import Console
from rich.text import Text

from mini_chat_gpt.common.terminal import print_line, text_table
from mini_chat_gpt.common.text import visible
from mini_chat_gpt.data.batch_dump import Piece
from mini_chat_gpt.diagnostics.inspection import Bar, Inspection, ShownExample

_BAR_WIDTH = 40  # columns of the longest bar


def show(inspection: Inspection, out: Console, n: int) -> None:
    """Print the inspection, with its first n examples."""
    for line in inspection.about:
        print_line(out, line)
    has_color = out.is_terminal and out.color_system is not None and not out.no_color
    for section in inspection.sections:
        legend = (
            f" (trained tokens {'are green and underlined' if has_color else 'stand in [[ ]]'})"
            if section.examples
            else ""
        )
        out.print(Text(f"\n{section.title}{legend}", style="bold"))
        if section.table:
            rows = [[_blocks(cell) if isinstance(cell, Bar) else cell for cell in row] for row in section.table]
            out.print(text_table(rows))
        for note in section.notes:
            print_line(out, note)
        for shown in section.examples[:n]:
            _show_example(shown, out, has_color)


def _blocks(bar: Bar) -> str:
    eighths = ceil(8 * _BAR_WIDTH * bar.length)  # rounded up, so that one example is visible
    blocks = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"{blocks}  ← {bar.label}" if bar.label else blocks


def _show_example(shown: ShownExample, out: Console, has_color: bool) -> None:
    title, text = visible(shown.title), marked(shown.pieces, has_color)
    if out.is_terminal:
        out.print(Text(f"\n── {title}", style="dim"))
        out.print(text)
    else:  # `print` keeps every character; rich would expand tabs
        print(f"\n---- {title}\n{text.plain}", file=out.file)


def marked(pieces: Sequence[Piece], color: bool) -> Text:
    """An example's text with trained tokens in green and underlined, or between [[ and ]] without color."""
    text = Text()
    for is_target, group in groupby(pieces, key=lambda piece: piece.is_target):
        text.append("[[" if is_target and not color else "")
        for piece in group:
            style = "bold green underline" if is_target else "cyan" if piece.is_control else None
            text.append(visible(piece.text), style=style if color else None)
        text.append("]]" if is_target and not color else "")
    return text

"""The result of `mini-chat-gpt inspect` as text in the terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.page import visible
from mini_chat_gpt.diagnostics.inspection import (
    Finding,
    Inspection,
    Lengths,
    Row,
    ShownExample,
    token_pieces,
    with_total,
)
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_BAR_WIDTH = 40  # columns of the longest bar


def show(inspection: Inspection, out: Console, n: int) -> None:
    """Print the inspection, with its first n examples."""
    for line in inspection.about:
        print_line(out, line)
    _show_steps(inspection, out, n)
    _heading(out, "By source and kind")
    out.print(_table(inspection.rows))
    for line in inspection.counted:
        print_line(out, line)
    _heading(out, "Lengths in tokens")
    for line in bars(inspection.lengths):
        print_line(out, line)
    _heading(out, "Left out, shortened or repeated")
    for finding in inspection.left_out or [Finding("Nothing.")]:
        print_line(out, finding.what)
        for place in finding.places:
            print_line(out, f"  {place}")
    _heading(out, "Validation")
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in inspection.validation.items())
    print_line(out, f"{inspection.validation.total():,} examples: {kinds}")


def print_line(out: Console, line: str) -> None:
    """Print a line as it is: no markup, control characters escaped, and wrapped in a terminal only."""
    out.print(visible(line), markup=False, soft_wrap=not out.is_terminal)


def bars(lengths: Lengths) -> list[str]:
    """The histogram as lines of text; each mark follows the bar of its bin."""
    spans = [f"{a:,}–{b - 1:,}" for a, b in zip(lengths.edges, lengths.edges[1:], strict=False)]
    wide, digits = max(map(len, spans)), len(f"{max(lengths.counts):,}")
    lines = []
    for span, begin, end, number in zip(spans, lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        eighths = -(-8 * _BAR_WIDTH * number // max(lengths.counts))  # rounded up, so that one example is visible
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        marks = ", ".join(label for tokens, label in lengths.marks if begin <= tokens < end)
        lines.append(f"{span:>{wide}}  {number:>{digits},}  {bar}{'  ← ' + marks if marks else ''}")
    beyond = [label for tokens, label in lengths.marks if tokens >= lengths.edges[-1]]
    return [*lines, *(f"{'':>{wide}}  {'':>{digits}}  ({label} is further down)" for label in beyond)]


def marked(shown: ShownExample, tokenizer: ChatTokenizer, color: bool) -> Text:
    """The example's text with trained tokens in green, or between [[ and ]] without color."""
    text = Text()
    for trained, pieces in groupby(token_pieces(shown.example, tokenizer), key=lambda piece: piece.trained):
        if trained and not color:
            text.append("[[")
        for piece in pieces:
            style = "bold green" if trained else "cyan" if piece.control else None
            text.append(visible(piece.text), style=style if color else None)
        if trained and not color:
            text.append("]]")
    return text


def _heading(out: Console, title: str) -> None:
    out.print()
    out.print(Text(title, style="bold"))


def _show_steps(inspection: Inspection, out: Console, n: int) -> None:
    for step, batches in groupby(inspection.batches, key=lambda batch: batch.step):
        _heading(out, f"Step {step}")
        for batch in batches:
            print_line(out, f"micro-batch {batch.number}: {batch}")
    for shown in inspection.shown[:n]:
        title, text = visible(shown.title()), marked(shown, inspection.tokenizer, _has_color(out))
        if out.is_terminal:
            out.rule(Text(title), style="dim")
            out.print(text)
        else:  # `print` keeps every character; rich would expand tabs
            print(f"\n---- {title}\n{text.plain}", file=out.file)


def _has_color(out: Console) -> bool:
    return out.is_terminal and out.color_system is not None and not out.no_color


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, head in enumerate(("", *Row.HEADS[2:])):
        table.add_column(head, justify="right" if column else "left", overflow="fold", header_style="dim")
    for source, group in groupby(with_total(rows), key=lambda row: row.source):
        source_rows = list(group)
        # The kind of a chat file is the file's name: one line is enough.
        one_line = len(source_rows) == 1 and source_rows[0].kind in source
        if not one_line:
            table.add_row(Text(visible(source)))
        for row in source_rows:
            name = source if one_line else f"  {row.kind}"
            cells = (name, *row.cells()[2:])
            table.add_row(*(Text(visible(cell), style="" if row.kind else "bold") for cell in cells))
    return table

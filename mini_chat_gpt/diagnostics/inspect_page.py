"""The result of `mini-chat-gpt inspect` as one self-contained HTML page. `common/page.py` has what all pages share."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import document, escaped, tiles, without_folders
from mini_chat_gpt.diagnostics.inspection import (
    Inspection,
    Lengths,
    Row,
    ShownExample,
    token_pieces,
    totals,
    with_total,
)

_TITLE = "What a fine-tuning run trains on"


def page(inspection: Inspection) -> str:
    """Return the whole page as HTML."""
    body = "\n".join(
        [
            f"<h1>{_TITLE}</h1>",
            *(f'<p class="dim">{_sentence(line, inspection)}</p>' for line in inspection.about),
            _tiles(inspection),
            "<h2>By source and kind</h2>",
            _table(inspection),
            *(f'<p class="dim">{_sentence(line, inspection)}</p>' for line in inspection.counted),
            "<h2>Lengths</h2>",
            _histogram(inspection.lengths),
            "<h2>Left out, shortened or repeated</h2>",
            _findings(inspection),
            "<h2>Validation</h2>",
            f"<p>{_kinds(inspection.validation)}</p>",
            "<h2>The first steps</h2>",
            _steps(inspection),
            "<h2>Examples</h2>",
            _examples(inspection),
        ]
    )
    return document(_TITLE, body, assets.text("inspect.css"), assets.text("inspect.js"))


def _sentence(text: str, inspection: Inspection) -> str:
    """Escape a generated sentence and shorten absolute paths in it to file names."""
    return escaped(without_folders(text, inspection.paths))


def _tiles(inspection: Inspection) -> str:
    total, lengths = totals(inspection.rows), inspection.lengths
    _, _, examples, _, tokens, trained, fraction, _ = total.cells()
    facts = [
        (examples, "examples an epoch"), (tokens, "tokens"), (f"{trained} ({fraction})", "trained tokens"),
        (f"{lengths.median:,}", "tokens in the median example"),
        (f"{lengths.longest:,}", f"in the longest; {lengths.limit:,} fit ({lengths.limit_name})"),
        (f"{inspection.validation.total():,}", "examples for validation"),
    ]  # fmt: skip
    return tiles(facts)


def _table(inspection: Inspection) -> str:
    lines, before = ["".join(f"<th>{name}</th>" for name in Row.HEADS)], ""
    for row in with_total(inspection.rows):
        cells = ["" if row.source == before else row.source, *row.cells()[1:]]
        lines.append("".join(f"<td>{_sentence(cell, inspection)}</td>" for cell in cells))
        before = row.source
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


_WIDTH, _HEIGHT, _TOP, _LEFT = 760, 200, 66, 20  # of the histogram, in SVG units


def _histogram(lengths: Lengths) -> str:
    """The histogram as SVG, with a vertical line at each mark."""
    first, last, most = lengths.edges[0], lengths.edges[-1], max(lengths.counts)

    def x_of(tokens: int) -> float:
        return round(_LEFT + _WIDTH * (tokens - first) / (last - first), 1)

    bottom, parts = _TOP + _HEIGHT, []
    for begin, end, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        height = round(_HEIGHT * count / most, 1)
        tip = f"<title>{begin:,} to {end - 1:,} tokens: {count:,} examples</title>"
        parts.append(
            f'<rect x="{x_of(begin) + 1}" y="{bottom - height}" width="{x_of(end) - x_of(begin) - 2:.1f}" '
            f'height="{height}" rx="2">{tip}</rect><text x="{x_of(begin)}" y="{bottom + 16}">{begin:,}</text>'
        )
    parts.append(f'<text x="{x_of(last)}" y="{bottom + 16}">{last:,}</text>')
    # Longest first, one row each: no line then crosses another label.
    for row, (tokens, label) in enumerate(sorted(lengths.marks, reverse=True)):
        beyond = tokens > last
        x, y = x_of(min(tokens, last)), 14 + 18 * row
        line = "" if beyond else f'<line x1="{x}" y1="{y + 4}" x2="{x}" y2="{bottom}"/>'
        anchor, x = ("end", x - 5) if x > _LEFT + _WIDTH / 2 else ("start", x + 5)
        arrow = " →" if beyond else ""
        parts.append(f'{line}<text class="mark" x="{x}" y="{y}" text-anchor="{anchor}">{escaped(label)}{arrow}</text>')
    size = f"0 0 {_WIDTH + 2 * _LEFT} {bottom + 24}"
    return f'<svg viewBox="{size}" role="img" aria-label="Lengths of the examples in tokens">{"".join(parts)}</svg>'


def _findings(inspection: Inspection) -> str:
    if not inspection.left_out:
        return "<p>Nothing.</p>"
    items = []
    for finding in inspection.left_out:
        places = "".join(f"<li>{_sentence(place, inspection)}</li>" for place in finding.places)
        items.append(f"<li>{_sentence(finding.what, inspection)}" + (f"<ul>{places}</ul>" if places else "") + "</li>")
    return f"<ul>{''.join(items)}</ul>"


def _kinds(validation: Counter[str]) -> str:
    return f"{validation.total():,} examples: " + ", ".join(f"{escaped(kind)} {n:,}" for kind, n in validation.items())


def _steps(inspection: Inspection) -> str:
    lines = []
    for step, batches in groupby(inspection.batches, key=lambda batch: batch.step):
        items = "".join(f"<li>micro-batch {batch.number}: {batch}</li>" for batch in batches)
        lines.append(f"<p>Step {step}</p><ul>{items}</ul>")
    return "".join(lines)


def _examples(inspection: Inspection) -> str:
    kinds = Counter(shown.example.kind for shown in inspection.shown)
    buttons = [f'<button aria-pressed="true">all {len(inspection.shown)}</button>']
    for kind, n in kinds.items():
        buttons.append(f'<button aria-pressed="false" data-kind="{escaped(kind)}">{escaped(kind)} {n}</button>')
    legend = (
        '<p class="dim">The model learns to predict the <span class="tokens"><b>trained</b></span> tokens; the others are its '
        "input only. Shades alternate from token to token; point at a token to see its id.</p>"
    )
    articles = [_example(shown, inspection) for shown in inspection.shown]
    return "\n".join([legend, f'<div class="filter">{"".join(buttons)}</div>', *articles])


def _example(shown: ShownExample, inspection: Inspection) -> str:
    tokens = []
    for piece in token_pieces(shown.example, inspection.tokenizer):
        tag, kind = "b" if piece.trained else "i", " class=c" if piece.control else ""
        tokens.append(f'<{tag}{kind} title="{" ".join(map(str, piece.ids))}">{escaped(piece.text)}</{tag}>')
    where = f"step {shown.step}, micro-batch {shown.batch}"
    return (
        f'<article data-kind="{escaped(shown.example.kind)}"><h3>{_sentence(shown.title(), inspection)}'
        f'<span>{where}</span></h3><div class="tokens">{"".join(tokens)}</div></article>'
    )

"""What `mini-chat-gpt inspect` finds out about a run's examples, and the page that shows it.

What all pages have in common is in page_style.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from mini_chat_gpt.common.page import document, escaped, tiles, without_folders
from mini_chat_gpt.data.batch_dump import headline
from mini_chat_gpt.data.batching import Example

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_MOST_BINS = 12
_BAR = 40  # columns of the longest bar, in text


@dataclass(frozen=True)
class Piece:
    """A token as text; several of them where only together they make a character."""

    ids: tuple[int, ...]
    text: str
    trained: bool
    control: bool


def token_pieces(example: Example, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The example token by token; the first is never trained, as nothing predicts it."""
    decoder, control = tokenizer.stream_decoder(control=True), set(tokenizer.control.values())
    ids: list[int] = []
    trained = False
    for place, token_id in enumerate(example.ids.tolist()):
        ids.append(token_id)
        trained = place > 0 and bool(example.trained[place])
        if text := decoder.push(token_id):
            yield Piece(tuple(ids), text, trained, token_id in control)
            ids = []
    if ids:
        yield Piece(tuple(ids), decoder.finish(), trained, False)


@dataclass(frozen=True)
class Row:
    """The examples of one kind of one source."""

    source: str
    kind: str
    examples: float | None  # of an epoch; None: the source has no epochs of its own
    share: float  # of the examples
    tokens: float  # of an epoch, or of what was looked at where there is none
    trained: float  # of them, targets
    weight: float  # of a target in the loss, the mean
    exact: bool  # counted, not reckoned from a sample

    HEADS = ("source", "kind", "examples", "share", "tokens", "trained", "of them", "weight")

    def cells(self) -> list[str]:
        """As text, in the order of `HEADS`."""
        about = "" if self.exact else "~"
        counts = [about + f"{_rounded(value, self.exact):,}" for value in (self.tokens, self.trained)]
        examples = "" if self.examples is None else about + f"{_rounded(self.examples, self.exact):,}"
        share = f"{self.trained / self.tokens:.0%}" if self.tokens else ""
        counts = counts if self.examples is not None else ["", ""]
        return [self.source, self.kind, examples, f"{self.share:.1%}", *counts, share, f"{self.weight:.3g}"]


def _rounded(value: float, exact: bool) -> int:
    """Three digits of what is only an estimate."""
    return round(value) if exact or value < 1000 else int(float(f"{value:.2e}"))


def totals(rows: Sequence[Row]) -> Row:
    """What an epoch has in all."""
    rows = [row for row in rows if row.examples is not None]
    examples, tokens, trained = (
        sum(getattr(row, name) or 0 for row in rows) for name in ("examples", "tokens", "trained")
    )
    weight = sum(row.weight * row.trained for row in rows) / max(1, trained)
    return Row("all", "", examples, 1.0, tokens, trained, weight, all(row.exact for row in rows))


def with_total(rows: Sequence[Row]) -> list[Row]:
    """The rows of an epoch, all together where there are several, and then those that are none of it."""
    epoch = [row for row in rows if row.examples is not None]
    return [*epoch, *([totals(rows)] if len(epoch) > 1 else []), *(row for row in rows if row.examples is None)]


@dataclass(frozen=True)
class Lengths:
    """How many examples of an epoch are how long: `counts[i]` have edges[i] tokens or more, but fewer than edges[i + 1]."""

    edges: list[int]
    counts: list[int]
    median: int
    longest: int
    limit: int
    limit_name: str  # what sets it: the model's context, or data.seq_len

    @property
    def marks(self) -> list[tuple[int, str]]:
        """(tokens, what is there), in words."""
        return [
            (self.median, f"median {self.median:,}"),
            (self.longest, f"longest {self.longest:,}"),
            (self.limit, f"{self.limit_name} {self.limit:,}"),
        ]


def histogram(lengths: np.ndarray, times: np.ndarray, limit: int, limit_name: str) -> Lengths:
    """Of examples of these lengths that come so many times an epoch. The counts are whole numbers with the sum of `times`."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    widths = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < _MOST_BINS)
    edges = np.arange(shortest // width * width, longest + 1 + width, width)
    ends = np.rint(np.cumsum(np.histogram(lengths, edges, weights=times)[0]))
    order = np.argsort(lengths, kind="stable")
    middle = np.searchsorted(np.cumsum(times[order]), times.sum() / 2)
    median = int(lengths[order][min(middle, len(order) - 1)])
    counts = np.diff(ends, prepend=0).astype(int).tolist()
    return Lengths(edges.tolist(), counts, median, longest, limit, limit_name)


def bars(lengths: Lengths) -> list[str]:
    """The histogram as lines of text, with the marks beside the bars where they lie."""
    spans = [f"{a:,}–{b - 1:,}" for a, b in zip(lengths.edges, lengths.edges[1:], strict=False)]
    wide, digits = max(map(len, spans)), len(f"{max(lengths.counts):,}")
    lines = []
    for span, begin, end, number in zip(spans, lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        eighths = -(-8 * _BAR * number // max(lengths.counts))  # a single example is still seen
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        marks = ", ".join(words for tokens, words in lengths.marks if begin <= tokens < end)
        lines.append(f"{span:>{wide}}  {number:>{digits},}  {bar}{'  ← ' + marks if marks else ''}")
    beyond = [words for tokens, words in lengths.marks if tokens >= lengths.edges[-1]]
    return [*lines, *(f"{'':>{wide}}  {'':>{digits}}  ({words} is further down)" for words in beyond)]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    step: int
    number: int  # within the step, from 1
    examples: int
    tokens: int
    trained: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} {'example' if self.examples == 1 else 'examples'}, {self.tokens:,} tokens, "
            f"{self.trained:,} trained ({self.trained / self.tokens:.0%})"
        )


@dataclass(frozen=True)
class Specimen:
    """An example to be looked at, and where it is met with."""

    example: Example
    step: int
    batch: int
    origin: str  # file and line; "" where it isn't known

    def title(self) -> str:
        """In a line: what it is, and from where."""
        return headline(self.example) + (f"; {self.origin}" if self.origin else "")


@dataclass(frozen=True)
class Finding:
    """Something that happened to several records; `places` are the first of them."""

    what: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """All that is shown."""

    about: list[str]  # what was looked at, with which tokenizer: sentences
    batches: list[MicroBatch]  # of the first steps
    specimens: list[Specimen]
    rows: list[Row]
    counted: list[str]  # how: sentences
    lengths: Lengths
    left_out: list[Finding]
    validation: Counter[str]  # examples by kind
    tokenizer: ChatTokenizer
    paths: list[str]  # of files and folders, as they are named in the texts above


_TITLE = "What a fine-tuning run trains on"


def page(inspection: Inspection) -> str:
    """The whole page."""
    body = "\n".join(
        [
            f"<h1>{_TITLE}</h1>",
            *(f'<p class="dim">{_said(line, inspection)}</p>' for line in inspection.about),
            _tiles(inspection),
            "<h2>By source and kind</h2>",
            _table(inspection),
            *(f'<p class="dim">{_said(line, inspection)}</p>' for line in inspection.counted),
            "<h2>Lengths</h2>",
            _picture(inspection.lengths),
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
    return document(_TITLE, body, _STYLE, _SCRIPT)


def _said(text: str, inspection: Inspection) -> str:
    """A sentence of ours; where it names a file by its whole path, only the name stays."""
    return escaped(without_folders(text, inspection.paths))


def _tiles(inspection: Inspection) -> str:
    total, lengths = totals(inspection.rows), inspection.lengths
    _, _, examples, _, tokens, trained, share, _ = total.cells()
    facts = [
        (examples, "examples an epoch"), (tokens, "tokens"), (f"{trained} ({share})", "trained tokens"),
        (f"{lengths.median:,}", "tokens in the median example"),
        (f"{lengths.longest:,}", f"in the longest; {lengths.limit:,} fit ({lengths.limit_name})"),
        (f"{inspection.validation.total():,}", "examples for validation"),
    ]  # fmt: skip
    return tiles(facts)


def _table(inspection: Inspection) -> str:
    lines, before = ["".join(f"<th>{name}</th>" for name in Row.HEADS)], ""
    for row in with_total(inspection.rows):
        cells = ["" if row.source == before else row.source, *row.cells()[1:]]
        lines.append("".join(f"<td>{_said(cell, inspection)}</td>" for cell in cells))
        before = row.source
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


_WIDTH, _HEIGHT, _TOP, _LEFT = 760, 200, 66, 20  # of the picture's bars, in its own units


def _picture(lengths: Lengths) -> str:
    """The histogram as SVG, with a line at each mark."""
    first, last, most = lengths.edges[0], lengths.edges[-1], max(lengths.counts)

    def across(tokens: int) -> float:
        return round(_LEFT + _WIDTH * (tokens - first) / (last - first), 1)

    floor, parts = _TOP + _HEIGHT, []
    for begin, end, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        tall = round(_HEIGHT * count / most, 1)
        tip = f"<title>{begin:,} to {end - 1:,} tokens: {count:,} examples</title>"
        parts.append(
            f'<rect x="{across(begin) + 1}" y="{floor - tall}" width="{across(end) - across(begin) - 2:.1f}" '
            f'height="{tall}" rx="2">{tip}</rect><text x="{across(begin)}" y="{floor + 16}">{begin:,}</text>'
        )
    parts.append(f'<text x="{across(last)}" y="{floor + 16}">{last:,}</text>')
    for row, (tokens, words) in enumerate(sorted(lengths.marks, reverse=True)):  # so that no line meets another's words
        beyond = tokens > last
        x, y = across(min(tokens, last)), 14 + 18 * row
        line = "" if beyond else f'<line x1="{x}" y1="{y + 4}" x2="{x}" y2="{floor}"/>'
        anchor, x = ("end", x - 5) if x > _LEFT + _WIDTH / 2 else ("start", x + 5)
        arrow = " →" if beyond else ""
        parts.append(f'{line}<text class="mark" x="{x}" y="{y}" text-anchor="{anchor}">{escaped(words)}{arrow}</text>')
    size = f"0 0 {_WIDTH + 2 * _LEFT} {floor + 24}"
    return f'<svg viewBox="{size}" role="img" aria-label="Lengths of the examples in tokens">{"".join(parts)}</svg>'


def _findings(inspection: Inspection) -> str:
    if not inspection.left_out:
        return "<p>Nothing.</p>"
    items = []
    for finding in inspection.left_out:
        places = "".join(f"<li>{_said(place, inspection)}</li>" for place in finding.places)
        items.append(f"<li>{_said(finding.what, inspection)}" + (f"<ul>{places}</ul>" if places else "") + "</li>")
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
    kinds = Counter(specimen.example.kind for specimen in inspection.specimens)
    buttons = [f'<button aria-pressed="true">all {len(inspection.specimens)}</button>']
    for kind, n in kinds.items():
        buttons.append(f'<button aria-pressed="false" data-kind="{escaped(kind)}">{escaped(kind)} {n}</button>')
    legend = (
        '<p class="dim"><span class="tokens"><b>trained</b></span> is what the model learns to say; the rest it reads. '
        "Shades tell tokens apart; point at one for its id.</p>"
    )
    articles = [_example(specimen, inspection) for specimen in inspection.specimens]
    return "\n".join([legend, f'<div class="filter">{"".join(buttons)}</div>', *articles])


def _example(specimen: Specimen, inspection: Inspection) -> str:
    tokens = []
    for piece in token_pieces(specimen.example, inspection.tokenizer):
        tag, kind = "b" if piece.trained else "i", " class=c" if piece.control else ""
        tokens.append(f'<{tag}{kind} title="{" ".join(map(str, piece.ids))}">{escaped(piece.text)}</{tag}>')
    where = f"step {specimen.step}, micro-batch {specimen.batch}"
    return (
        f'<article data-kind="{escaped(specimen.example.kind)}"><h3>{_said(specimen.title(), inspection)}'
        f'<span>{where}</span></h3><div class="tokens">{"".join(tokens)}</div></article>'
    )


_STYLE = """
:root { --read: #f0f1f3; --read2: #e4e6ea; --said: #c9f0d3; --said2: #aee5bd; --ink: #0b4a22; }
@media screen and (prefers-color-scheme: dark) { :root { --read: #262b31; --read2: #30363d; --said: #14532d; --said2: #1b6a3a;
  --ink: #d3f9df; } }
li li { color: var(--dim); font-size: .92em; }
th, td { white-space: nowrap; } th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 8px; }
svg text { font-size: 11px; fill: var(--dim); text-anchor: middle; } svg rect { fill: var(--bar); }
svg .mark { fill: var(--mark); font-size: 12px; } svg line { stroke: var(--mark); stroke-dasharray: 3 3; }
svg .mark[text-anchor=start] { text-anchor: start; } svg .mark[text-anchor=end] { text-anchor: end; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.75 ui-monospace, Menlo, Consolas, monospace; }
.tokens b, .tokens i { font-weight: 400; font-style: normal; border-radius: 3px; padding: 1px 0; }
.tokens i { background: var(--read); } .tokens i:nth-child(even) { background: var(--read2); }
.tokens b { background: var(--said); color: var(--ink); } .tokens b:nth-child(even) { background: var(--said2); }
.tokens .c { font-weight: 700; opacity: .75; } .tokens :hover { outline: 1.5px solid var(--mark); }
"""

_SCRIPT = """
const buttons = [...document.querySelectorAll('.filter button')];
for (const button of buttons) button.addEventListener('click', () => {
  const kind = button.dataset.kind;
  for (const each of buttons) each.setAttribute('aria-pressed', each === button);
  for (const article of document.querySelectorAll('article')) article.hidden = kind !== undefined && article.dataset.kind !== kind;
});
"""

"""The result of `mini-chat-gpt inspect` as one self-contained HTML page. `common/page.py` has what all pages share."""

from __future__ import annotations

from collections.abc import Iterator

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import document, escaped, tiles, without_folders
from mini_chat_gpt.diagnostics.inspection import Bar, Inspection, Section, ShownExample

_TITLE = "What a fine-tuning run trains on"
_LEGEND = (
    '<p class="dim">The model learns to predict the <span class="tokens"><b>trained</b></span> tokens, underlined here; the others are its '
    'input only. Shades alternate from token to token; point at a token to see its id.</p>\n<div class="filter"></div>'
)


def page(inspection: Inspection) -> str:
    """Return the whole page as HTML."""
    # The examples are long, so they come last.
    sections = sorted(inspection.sections, key=lambda section: bool(section.examples))
    parts = [f"<h1>{_TITLE}</h1>"]
    parts += (f'<p class="dim">{_text(line, inspection)}</p>' for line in inspection.about)
    parts.append(tiles(inspection.facts))
    for section in sections:
        parts += _section(section, inspection)
    return document(_TITLE, "\n".join(parts), assets.text("inspect.css"), assets.text("inspect.js"))


def _text(text: str, inspection: Inspection) -> str:
    """Escape a generated text and shorten absolute paths in it to file names."""
    return escaped(without_folders(text, inspection.paths))


def _section(section: Section, inspection: Inspection) -> Iterator[str]:
    yield f"<h2>{escaped(section.title)}</h2>"
    if section.table:
        heads, *rows = ([_cell(cell, inspection) for cell in row] for row in section.table)
        lines = ["".join(f"<th>{head}</th>" if head else "<td></td>" for head in heads)]
        lines += ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
        yield f'<div class="wide" tabindex="0"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
    for note in section.notes:
        first, *details = (_text(line, inspection) for line in note.split("\n"))
        items = "".join(f"<li>{detail}</li>" for detail in details)
        yield f"<p>{first}</p>" + (f"<ul>{items}</ul>" if items else "")
    if section.examples:
        yield _LEGEND
        yield from (_example(shown, inspection) for shown in section.examples)


def _cell(cell: str | Bar, inspection: Inspection) -> str:
    if isinstance(cell, Bar):
        return f'<div style="width: {70 * cell.length:.1f}%"></div> {escaped(cell.label)}'
    return _text(cell, inspection)


def _example(shown: ShownExample, inspection: Inspection) -> str:
    tokens = []
    for piece in shown.pieces:
        tag, css_class = "b" if piece.is_target else "i", " class=c" if piece.is_control else ""
        tokens.append(f'<{tag}{css_class} title="{" ".join(map(str, piece.ids))}">{escaped(piece.text)}</{tag}>')
    return (
        f'<article data-kind="{escaped(shown.example.kind)}"><h3>{_text(shown.title, inspection)}'
        f'<span>{shown.batch}</span></h3><div class="tokens">{"".join(tokens)}</div></article>'
    )

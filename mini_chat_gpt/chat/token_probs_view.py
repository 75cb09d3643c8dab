"""The token probabilities of a reply (`/why`), drawn in a terminal or written as a page.

`generation/token_probs.py` computes them. In the terminal each token has a background color for its probability, and a table
lists the alternatives. On the page, pointing at a token or choosing it by click or key shows the alternatives as bars.
Without scripts, each token's tooltip lists them. `common/page.py` has what all pages share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_chat_gpt import assets
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, readable_disk_errors
from mini_chat_gpt.common.page import document, escaped, tiles
from mini_chat_gpt.common.text import visible, well_formed
from mini_chat_gpt.common.writable import require_writable_file
from mini_chat_gpt.generation.token_probs import MOST_SURPRISING, STEP_NAMES, Candidate, Explanation, Token, percent

# Black on a light background can be read on dark and on light terminals. Unlikely tokens are underlined as well, for readers who
# see no difference between these colors.
_COLORS = tuple(
    f"{mark}color(16) on color({background})"
    for mark, background in (("bold underline ", 210), ("underline ", 216), ("", 229), ("", 193), ("", 114))
)
_TITLE = "Why did it say that?"
_DATA = '\n<script type="application/json" id="data">%s</script>'


# In the terminal


def render_text(explanation: Explanation, width: int, color: bool, every: bool = False, hint: str = "") -> str:
    """The explanation as text for a terminal of `width` columns.

    The table has `every` token, or the most surprising ones and a `hint` that says how to get the others.
    """
    out = StringIO()
    # In a notebook rich would display HTML and leave `out` empty.
    console = Console(
        file=out, width=width, force_terminal=color, color_system="256" if color else None, force_jupyter=False
    )
    console.no_color = not color
    n = len(explanation.tokens)
    places = list(range(n)) if every else explanation.most_surprising(MOST_SURPRISING)
    lines: list[Text | Table] = [_text_reply(explanation, color)]
    if color:
        legend = [Text(f" {name} ", style=style) for name, style in zip(STEP_NAMES, _COLORS, strict=True)]
        lines += [Text(), Text(" ").join(legend)]
    lines += [Text(), Text(explanation.summary())]
    if len(places) < n:
        lines.append(Text(f"The {len(places)} most surprising of them{'; ' if hint else ''}{hint}:"))
    lines += [Text(), _text_table(explanation, places, width), Text(explanation.legend(), style="dim")]
    for line in lines:
        console.print(line)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _text_reply(explanation: Explanation, color: bool) -> Text:
    """The reply with a color for each token. Without colors, unlikely tokens are followed by their probability.

    A character that consists of several tokens gets the color of the least likely one.
    """
    shown, parts = Text(), list[Token]()
    for token in explanation.tokens:
        parts.append(token)
        if not (text := visible(token.text)):
            continue
        least_likely = min(parts, key=lambda part: part.log_probability)
        if not color and least_likely.step < 2:
            core = text.strip()
            marked = f"[{core or token.shown} {percent(least_likely.probability)}]"
            text = text.replace(core, marked, 1) if core else marked + text
        shown.append(text, style=_COLORS[least_likely.step] if color else "")
        parts = []
    return shown


def _text_table(explanation: Explanation, places: Sequence[int], width: int) -> Table:
    rows = [["", "token", "model", "sampled", "rank"]]
    for place in places:
        token = explanation.tokens[place]
        rows.append(
            [
                f"{place + 1}",
                token.shown,
                percent(token.probability),
                percent(token.sampling_probability),
                f"{token.rank:,}",
            ]
        )
    if explanation.greedy:
        rows = [[*row[:3], row[4]] for row in rows]
    free_columns = width - sum(max(map(cell_len, column)) + 2 for column in zip(*rows, strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in rows[0]:
        table.add_column(head, justify="left" if head == "token" else "right", header_style="dim")
    table.add_column("others", header_style="dim", overflow="fold")
    for place, cells in zip(places, rows[1:], strict=True):
        token, lines = explanation.tokens[place], [""]
        for other in token.others:  # lines break between alternatives, never inside one
            part = f"{other.shown} {percent(other.probability)}"
            if lines[-1] and cell_len(f"{lines[-1]}  {part}") > free_columns:
                lines.append("")
            lines[-1] += f"  {part}" if lines[-1] else part
        styles = ["", _COLORS[token.step], "", "", ""]
        table.add_row(*map(Text, cells, styles), Text("\n".join(lines)))
    return table


# On a page


def check_page(path: Path) -> None:
    """Raises UserError unless a page can be written to `path` as a new file."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{str(path)!r} is not the name of a page, which ends in .html; the other choice is: all.")
    with readable_disk_errors(path):
        exists = path.exists() or path.is_symlink()
    if exists:
        raise UserError(f"{path} exists already and is not overwritten; choose another name.")
    require_writable_file(path)


def write_page(explanation: Explanation, path: Path) -> None:
    """Write the page as a new file. Raises UserError for a file that exists or can't be written."""
    check_page(path)
    atomic_write_text(path, render_page(explanation))


def render_page(explanation: Explanation) -> str:
    """The whole page as HTML."""
    tokens = explanation.tokens
    places = explanation.most_surprising(MOST_SURPRISING)
    legend = "".join(f'<b class="s{step}">{escaped(name)}</b>' for step, name in enumerate(STEP_NAMES))
    body = "\n".join(
        [
            f"<h1>{_TITLE}</h1>",
            f'<p class="dim">{escaped(explanation.legend())}</p>',
            _page_tiles(explanation),
            "<h2>The reply, token by token</h2>",
            f'<p class="dim legend">{legend} Point at a token, or choose one.</p>',
            f'<div class="tokens reply">{"".join(_page_token(token, explanation.greedy) for token in tokens)}</div>',
            '<section id="panel" hidden aria-live="polite"></section>',
            "<h2>Most surprising</h2>" if len(places) < len(tokens) else "<h2>The tokens</h2>",
            _page_table(explanation, places),
            "<h2>What the model had read</h2>",
            f'<div class="tokens">{escaped(explanation.prompt)}</div>',
        ]
    )
    candidates = [[_json_row(token), token.rank, *map(_json_row, token.others)] for token in tokens]
    least_likely = explanation.most_surprising(1)[0]
    data = json.dumps({"greedy": explanation.greedy, "least": least_likely, "tokens": candidates})
    # "<" could end the script element, in which HTML has no escapes.
    body += _DATA % data.replace("<", "\\u003c")
    return document(_TITLE, body, assets.text("token_probs.css"), assets.text("token_probs.js"))


def _json_row(candidate: Candidate) -> list[str | float]:
    """[token, probability from 0 to 1, as percent, sampling probability from 0 to 1, as percent]."""
    p, sampled = candidate.probability, candidate.sampling_probability
    return [well_formed(candidate.shown), round(p, 6), percent(p), round(sampled, 6), percent(sampled)]


def _page_tiles(explanation: Explanation) -> str:
    place = explanation.most_surprising(1)[0]
    least_likely, n = explanation.tokens[place], len(explanation.tokens)
    facts = [
        (f"{n:,}", ("token" if n == 1 else "tokens") + (", the end included" if explanation.ended else "")),
        (percent(explanation.mean_probability), "mean probability"),
        (f"{explanation.perplexity:.3g}", "perplexity"),
        (percent(least_likely.probability), f"least sure: “{least_likely.shown}”, number {place + 1:,}"),
    ]
    return tiles(facts)


def _page_token(token: Token, greedy: bool) -> str:
    """A token of the reply. Part of a character is shown as its bytes, a line break as ↵ and a line break."""
    shown = f"↵{token.text}" if token.text.startswith("\n") else token.text or token.shown
    odd = " odd" if not token.text else ""
    lines = [_tooltip_line(token, greedy), f"rank {token.rank:,}"]
    lines += [_tooltip_line(other, greedy) for other in token.others]
    title = escaped("\n".join(lines))
    return f'<b class="s{token.step}{odd}" tabindex="0" title="{title}">{escaped(shown)}</b>'


def _tooltip_line(candidate: Candidate, greedy: bool) -> str:
    sampled = "" if greedy else f" (sampled {percent(candidate.sampling_probability)})"
    return f"{candidate.shown} {percent(candidate.probability)}{sampled}"


def _page_table(explanation: Explanation, places: list[int]) -> str:
    heads = ["#", "token", "model", *([] if explanation.greedy else ["sampled"]), "rank", "others"]
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    for place in places:
        token = explanation.tokens[place]
        others = " ".join(
            f"<span><code>{escaped(o.shown)}</code> {percent(o.probability)}</span>" for o in token.others
        )
        cells = [f"{place + 1:,}", f'<code class="s{token.step}">{escaped(token.shown)}</code>']
        probabilities = [token.probability] if explanation.greedy else [token.probability, token.sampling_probability]
        cells += [*(escaped(percent(p)) for p in probabilities), f"{token.rank:,}", others]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f'<div class="wide" tabindex="0"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'

"""The page of `/why FILE.html`: a reply whose tokens are shaded by their probability; see why.py.

Pointing at a token, or choosing it by click or key, shows what else could have come as bars; without scripts the same stands
in each token's tooltip. What all pages have in common is in page_style.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, readable_disk_errors
from mini_chat_gpt.common.page import document, escaped, tiles
from mini_chat_gpt.generation.token_probs import MOST_SURPRISING, STEP_NAMES, Candidate, Explanation, Token, percent
from mini_chat_gpt.tokenizer.chat_tokenizer import well_formed


def check_page(path: Path) -> None:
    """Raises UserError unless a page can be written there as a new file."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{str(path)!r} is no name for a page, which ends in .html; the other choice is: all.")
    with readable_disk_errors(path):
        taken = path.exists() or path.is_symlink()
    if taken:
        raise UserError(f"{path} exists already and is not overwritten; choose another name.")


def write_page(explanation: Explanation, path: Path) -> None:
    """Write the page as a new file. Raises UserError for a file that exists, and where it can't be written."""
    check_page(path)
    atomic_write_text(path, page(explanation))


_TITLE = "Why did it say that?"


def page(explanation: Explanation) -> str:
    """The whole page."""
    tokens = explanation.tokens
    places = explanation.most_surprising(MOST_SURPRISING)
    legend = "".join(f'<b class="s{step}">{escaped(name)}</b>' for step, name in enumerate(STEP_NAMES))
    body = "\n".join(
        [
            f"<h1>{_TITLE}</h1>",
            f'<p class="dim">{escaped(explanation.legend())}</p>',
            _tiles(explanation),
            "<h2>The reply, token by token</h2>",
            f'<p class="dim legend">{legend} Point at a token, or choose one.</p>',
            f'<div class="tokens reply">{"".join(_token(token, explanation.greedy) for token in tokens)}</div>',
            '<section id="panel" hidden aria-live="polite"></section>',
            "<h2>Most surprising</h2>" if len(places) < len(tokens) else "<h2>The tokens</h2>",
            _table(explanation, places),
            "<h2>What the model had read</h2>",
            f'<div class="tokens">{escaped(explanation.prompt)}</div>',
        ]
    )
    data = [[_fact(token), token.rank, *map(_fact, token.others)] for token in tokens]
    # In a script "<" could end it, and html knows no escapes there.
    found = {"greedy": explanation.greedy, "least": explanation.most_surprising(1)[0], "tokens": data}
    written = json.dumps(found).replace("<", "\\u003c")
    return document(_TITLE, body + _DATA % written, _STYLE, _SCRIPT)


def _fact(candidate: Candidate) -> list[str | float]:
    """[token, its bar (0 to 1), percent, the bar as drawn, percent as drawn]."""
    p, drawn = candidate.probability, candidate.drawn
    return [well_formed(candidate.shown), round(p, 6), percent(p), round(drawn, 6), percent(drawn)]


def _tiles(explanation: Explanation) -> str:
    place = explanation.most_surprising(1)[0]
    least, n = explanation.tokens[place], len(explanation.tokens)
    facts = [
        (f"{n:,}", ("token" if n == 1 else "tokens") + (", the end included" if explanation.ended else "")),
        (percent(explanation.mean_probability), "mean probability"),
        (f"{explanation.perplexity:.3g}", "perplexity"),
        (percent(least.probability), f"least sure: “{least.shown}”, number {place + 1:,}"),
    ]
    return tiles(facts)


def _token(token: Token, greedy: bool) -> str:
    """The token in the text; a part of a character by its bytes, a line break with its sign before it."""
    shown = f"↵{token.text}" if token.text.startswith("\n") else token.text or token.shown
    odd = " odd" if not token.text else ""
    lines = [_line(token, greedy), f"rank {token.rank:,}", *(_line(other, greedy) for other in token.others)]
    title = escaped("\n".join(lines))
    return f'<b class="s{token.step}{odd}" tabindex="0" title="{title}">{escaped(shown)}</b>'


def _line(candidate: Candidate, greedy: bool) -> str:
    drawn = "" if greedy else f" (drawn {percent(candidate.drawn)})"
    return f"{candidate.shown} {percent(candidate.probability)}{drawn}"


def _table(explanation: Explanation, places: list[int]) -> str:
    heads = ["", "token", "model", *([] if explanation.greedy else ["drawn"]), "rank", "others"]
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    for place in places:
        token = explanation.tokens[place]
        others = " ".join(
            f"<span><code>{escaped(o.shown)}</code> {percent(o.probability)}</span>" for o in token.others
        )
        cells = [f"{place + 1:,}", f'<code class="s{token.step}">{escaped(token.shown)}</code>']
        shares = [token.probability] if explanation.greedy else [token.probability, token.drawn]
        cells += [*(escaped(percent(share)) for share in shares), f"{token.rank:,}", others]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


_DATA = '\n<script type="application/json" id="data">%s</script>'

_STYLE = """
:root { --bar2: #b9cdf5; --s0: #ffb3b3; --s1: #ffd2a6; --s2: #fff0a8; --s3: #dcf5b8; --s4: #aee5bd; }
@media screen and (prefers-color-scheme: dark) { :root { --bar2: #34497a; --s0: #8b2525; --s1: #7d4713; --s2: #625607;
  --s3: #3d5a17; --s4: #14532d; } }
.tokens, #panel { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: .7rem .8rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.9 ui-monospace, Menlo, Consolas, monospace; }
.tokens b { font-weight: 400; border-radius: 3px; padding: 2px 0; cursor: pointer; box-shadow: inset -1px 0 var(--card); }
.tokens b:hover, .tokens b:focus-visible, .tokens b.on { outline: 2px solid var(--mark); }
.odd { opacity: .75; font-size: .85em; }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); } .s3 { background: var(--s3); }
.s4 { background: var(--s4); }
.legend b { font-weight: 400; color: var(--text); border-radius: 3px; padding: .1rem .5rem; margin-right: .3rem;
  font-size: .85rem; display: inline-block; }
#panel { position: sticky; bottom: .6rem; margin-top: .8rem; box-shadow: 0 2px 12px #0002; }
#panel p { margin: 0 0 .4rem; } #panel .row { display: grid; grid-template-columns: 9rem 1fr 4.5rem 4.5rem; gap: .6rem;
  align-items: center; font-size: .9rem; font-variant-numeric: tabular-nums; }
#panel .row.it, #panel .row.it code { font-weight: 700; }
#panel .row > code { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
#panel .bars i { display: block; height: 6px; min-width: 1px; background: var(--bar); border-radius: 2px; }
#panel .bars i + i { background: var(--bar2); margin-top: 1px; }
#panel .row span { text-align: right; white-space: nowrap; }
th, td { vertical-align: top; }
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child { text-align: left; }
td span { display: inline-block; margin-right: .9rem; white-space: nowrap; color: var(--dim); }
code { font: 14px ui-monospace, Menlo, Consolas, monospace; border-radius: 3px; padding: 1px 3px; color: var(--text); }
@media (max-width: 40rem) { #panel .row { grid-template-columns: 6rem 1fr 3.8rem 3.8rem; } }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent), panel = document.getElementById('panel');
const tokens = [...document.querySelectorAll('.reply b')];
let chosen = null;
function add(parent, tag, text, kind) {
  const made = parent.appendChild(document.createElement(tag));
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function show(n) {
  const [it, rank, ...others] = data.tokens[n];
  panel.hidden = false;
  panel.replaceChildren();
  const bars = data.greedy ? '' : '; upper bar and first number: the model, lower and second: as it was drawn';
  add(panel, 'p', `Token ${n + 1} of ${tokens.length}, rank ${rank}${bars}`, 'dim');
  for (const row of [it, ...others].sort((a, b) => b[1] - a[1])) {
    const line = add(panel, 'div', '', row === it ? 'row it' : 'row');
    add(line, 'code', row[0]);
    const bars = add(line, 'div', '', 'bars');
    add(bars, 'i').style.width = `${100 * row[1]}%`;
    if (!data.greedy) add(bars, 'i').style.width = `${100 * row[3]}%`;
    add(line, 'span', row[2]);
    add(line, 'span', data.greedy ? '' : row[4], 'dim');
  }
  tokens.forEach((token, place) => token.classList.toggle('on', place === n));
}
tokens.forEach((token, n) => {
  token.removeAttribute('title');
  token.addEventListener('mouseenter', () => show(n));
  token.addEventListener('focus', () => show(n));
  token.addEventListener('click', () => { chosen = n; show(n); });
  token.addEventListener('mouseleave', () => { if (chosen !== null) show(chosen); });
});
chosen = data.least;
show(chosen);
"""

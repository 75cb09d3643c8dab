"""What our pages have in common: inspect's, why's and the report's.

A page is one file that loads nothing and sends nothing, to be looked at in any browser, light or dark, and passed on. All that
data, a model or a user wrote goes through `escaped`; a file whose whole path was typed is called by its name alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from mini_chat_gpt.tokenizer.chat_tokenizer import well_formed

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but tabs and \n


def visible(text: str) -> str:
    """The text with control characters written out, as \\x1b, so that a terminal stays as it is."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def escaped(text: str) -> str:
    """The text as HTML, also within quotes."""
    return html.escape(visible(well_formed(text)))


def without_folders(text: str, paths: Iterable[str]) -> str:
    """A sentence of ours in which each of the `paths` that is a whole one has only its name left."""
    for path in sorted(paths, key=len, reverse=True):
        if name := _name(path):
            text = re.sub(rf"(?<!\S){re.escape(path)}", name.replace("\\", r"\\"), text)
    return text


def _name(path: str) -> str:
    """The last part of a whole path; "" of any other."""
    return next((p.name for p in (PurePosixPath(path), PureWindowsPath(path)) if p.is_absolute()), "")


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """(number, what it is) as a row of cards."""
    return '<div class="tiles">' + "".join(f"<div><b>{escaped(a)}</b>{escaped(b)}</div>" for a, b in facts) + "</div>"


def document(title: str, body: str, style: str, script: str) -> str:
    """The whole page; `style` comes after what all pages have."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escaped(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --text: #1d2125; --dim: #667; --edge: #dcdfe3;
  --bar: #5b8def; --mark: #c2410c; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #15181c; --card: #1d2126; --text: #e4e6e9; --dim: #98a1ab;
  --edge: #333a42; --bar: #6f9bf3; --mark: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); } ul { margin: .3rem 0; padding-left: 1.3rem; }
li { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .6rem; margin-top: 1.2rem; }
.tiles div { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: .7rem .8rem;
  color: var(--dim); font-size: .85rem; line-height: 1.3; overflow-wrap: anywhere; }
.tiles b { display: block; color: var(--text); font-size: 1.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--edge); }
th { color: var(--dim); font-weight: 500; font-size: .85rem; }
.filter { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .4rem; padding: .6rem 0; background: var(--page);
  z-index: 1; }
button { font: inherit; font-size: .88rem; color: var(--text); background: var(--card); border: 1px solid var(--edge);
  border-radius: 99px; padding: .15rem .8rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--text); color: var(--page); border-color: var(--text); }
article { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: .8rem 1rem; margin: .7rem 0; }
[hidden] { display: none !important; }
h3 { margin: 0 0 .6rem; font-size: .88rem; font-weight: 500; color: var(--dim); display: flex; gap: 1rem;
  justify-content: space-between; flex-wrap: wrap; }
@media print { .filter { display: none; } article { break-inside: avoid; } * { print-color-adjust: exact; } }
"""

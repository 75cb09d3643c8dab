"""Build self-contained HTML pages: the report, `inspect` and `/why` share this code.

A page is one file. It loads nothing and sends nothing, so it opens in any browser and can be passed on. Every text that data,
a model or a user wrote must go through `escaped`, or through a template (`render`).
Templates, CSS and JavaScript are in `assets/` and are read when a page is written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from mini_chat_gpt import assets
from mini_chat_gpt.common.hub_names import repository_of
from mini_chat_gpt.common.text import visible, well_formed

if TYPE_CHECKING:
    from jinja2 import Environment


def escaped(text: str) -> str:
    """The text as HTML, safe in element content and in quoted attributes."""
    return html.escape(visible(well_formed(text)))


def without_folders(text: str, paths: Iterable[str]) -> str:
    """Replace each absolute path of `paths` that occurs in the text with its last component, to keep user names private."""
    for path in sorted(paths, key=len, reverse=True):
        if name := _name_of_absolute(path):
            text = re.sub(rf"(?<!\S){re.escape(path)}", name.replace("\\", r"\\"), text)
    return text


def shown_path(path: object) -> str:
    """A relative path as it is; the last component of an absolute one; "org/name" of what is in the hub's cache."""
    if (repository := repository_of(Path(str(path)))) is not None:
        return repository[0]
    return _name_of_absolute(str(path)) or str(path)


def _name_of_absolute(path: str) -> str:
    """The last component of an absolute path; "" for a relative one."""
    return next((p.name for p in (PurePosixPath(path), PureWindowsPath(path)) if p.is_absolute()), "")


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """A row of cards, each with a (number, description) pair."""
    return '<div class="tiles">' + "".join(f"<div><b>{escaped(a)}</b>{escaped(b)}</div>" for a, b in facts) + "</div>"


def render(template: str, functions: dict[str, Any], **values: Any) -> str:
    """Fill in a template of `assets/`, which may call these functions. Every text that it inserts is escaped."""
    return _templates().get_template(template, globals=functions).render(values)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        loader=FunctionLoader(assets.text), autoescape=True, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment


def _printable(value: Any) -> Any:
    """A text that is to be inserted, without control characters. Called before it is escaped."""
    return visible(well_formed(value)) if type(value) is str else value


def document(title: str, body: str, style: str, script: str) -> str:
    """The complete page. `style` follows the CSS that all pages share."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escaped(title)}</title>
<style>
{assets.text("page.css")}{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""

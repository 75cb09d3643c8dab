"""Hooks of the documentation site: pages of files outside docs/, and code blocks without their tags.

A link from a page to a file of the repository (a module, a recipe's page, CHANGELOG.md) works in a clone. On the site, such a file
gets a page of its own below `repository/`, with its text or its code, and the link leads there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLACE = "repository/"
LINK = re.compile(r"(?P<start>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<end>\))")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```|~~~~).*?^(?P=indent)(?P=fence)$", re.DOTALL | re.MULTILINE)
TAG = re.compile(r"^( *```\w+) .*$", re.MULTILINE)
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".sh": "bash",
    ".toml": "toml",
    ".css": "css",
    ".js": "js",
}
IMAGES = (".svg", ".png")
PAGES = (".md", ".ipynb")
COLORS = re.compile(r"\x1b\[[\d;]*m")


def file_of(uri: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if not uri.startswith(PLACE):
        return DOCS / uri
    path = ROOT / uri.removeprefix(PLACE)
    return path if path.exists() else path.with_suffix("")


def uri_of(file: Path) -> str:
    """The page of the site that shows a file of the repository."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    whole = file.suffix in (".md", *IMAGES)
    return PLACE + file.relative_to(ROOT).as_posix() + ("" if whole else ".md")


def target_of(link: str, page: Path) -> Path | None:
    """The file that a relative link of a page leads to; of a folder its README. None for other links."""
    if "://" in link or link.startswith(("#", "mailto:")):
        return None
    target = Path(os.path.normpath(page.parent / link.partition("#")[0]))
    return target / "README.md" if target.is_dir() else target


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """(part, whether it is a code block) of a page's text."""
    end = 0
    for fence in FENCE.finditer(text):
        yield text[end : fence.start()], False
        yield fence[0], True
        end = fence.end()
    yield text[end:], False


def content_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return notebook_content(json.loads(text))
    return f"# {file.name}\n\n`{file.relative_to(ROOT).as_posix()}`\n\n~~~~{LANGUAGES.get(file.suffix, '')}\n{text}\n~~~~\n"


def notebook_content(notebook: dict[str, Any]) -> str:
    """The cells of a notebook with their outputs, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("<details>", '<details markdown="1">'))
            continue
        parts.append(f"~~~~python\n{source}\n~~~~")
        parts += [output_content(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def output_content(output: dict[str, Any]) -> str:
    """An output of a cell: a picture, HTML, or text without colors."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="a figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    return f"~~~~text\n{COLORS.sub('', ''.join(output.get('text') or data.get('text/plain') or '')).rstrip()}\n~~~~"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file outside docs/ that a page links to, directly or through another one."""
    waiting = [file_of(file.src_uri) for file in files.documentation_pages()]
    waiting += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    seen = set()
    while waiting:
        page = waiting.pop()
        if page in seen or not page.is_file():
            continue
        seen.add(page)
        if not page.is_relative_to(DOCS):
            whole = {"abs_src_path": str(page)} if page.suffix in IMAGES else {"content": content_of(page)}
            files.append(File.generated(config, uri_of(page), **whole))
        if page.suffix in PAGES:
            parts = "".join(part for part, is_code in prose(content_of(page)) if not is_code)
            targets = (target_of(match["target"], page) for match in LINK.finditer(parts))
            waiting += [target for target in targets if target and not target.is_relative_to(DOCS)]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to the pages of the site, and remove the tags of code blocks."""
    uri = page.file.src_uri
    file = file_of(uri)
    if file.suffix not in PAGES:
        return markdown

    def lead(match: re.Match[str]) -> str:
        target = target_of(match["target"], file)
        if target is None:
            return match[0]
        anchor = match["target"].partition("#")[2]
        relative = os.path.relpath(uri_of(target), os.path.dirname(uri) or ".")
        return f"{match['start']}{relative}{'#' + anchor if anchor else ''}{match['end']}"

    parts = (TAG.sub(r"\1", part) if is_code else LINK.sub(lead, part) for part, is_code in prose(markdown))
    return "".join(parts)

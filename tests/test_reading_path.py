"""The page docs/how-it-works.md is short enough to read, its links and names are right, and its files explain themselves.

`python tests/test_reading_path.py` prints the files of the path with their lines and comments.
"""

from __future__ import annotations

import ast
import doctest
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how-it-works.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")])

MAX_LINES = 3000
"""Lines of all files of the path together: what can be read in an evening."""
MIN_COMMENTS = 6
"""Comments per 100 lines in each file of the path."""

LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
DIRECTIVE = re.compile(r"#\s*(fmt:|noqa|type:|-{4,}|={4,})")


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of the links of a page, without code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(match["text"], match["target"]) for match in LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def path_files() -> list[Path]:
    """The Python files that the page links to, in the order of their first link."""
    targets = [(PAGE.parent / target).resolve() for _, target in links(PAGE) if target.endswith(".py")]
    return list(dict.fromkeys(targets))


def names_in(file: Path) -> set[str]:
    """Functions, classes, constants and methods (as `Class.method`) that a module defines."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def n_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def n_comments(file: Path) -> int:
    """Lines with a comment, without directives for tools and separators."""
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return len({token.start[0] for token in comments if not DIRECTIVE.match(token.string)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_has_a_target(page):
    for text, target in links(page):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"[{text}]({target})"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"[{text}]({target})"


def test_named_functions_and_classes_are_defined_in_the_linked_file():
    named = [
        (text.strip("`"), target) for text, target in links(PAGE) if text.startswith("`") and target.endswith(".py")
    ]
    assert len(named) >= 20
    for name, target in named:
        file = (PAGE.parent / target).resolve()
        if not name.endswith(".py"):
            assert name in names_in(file), f"{name} is not in {target}"


def test_the_examples_of_the_page_run():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0


def test_the_path_can_be_read_in_an_evening():
    lines = {file.relative_to(ROOT).as_posix(): n_lines(file) for file in path_files()}
    assert sum(lines.values()) <= MAX_LINES, lines


@pytest.mark.parametrize("file", path_files(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_files_of_the_path_have_comments(file):
    assert 100 * n_comments(file) >= MIN_COMMENTS * n_lines(file)


if __name__ == "__main__":
    for file in path_files():
        lines, comments = n_lines(file), n_comments(file)
        print(f"{lines:6} lines {comments:4} comments {100 * comments / lines:6.1f} per 100  {file.relative_to(ROOT)}")
    print(f"{sum(map(n_lines, path_files())):6} lines in all")

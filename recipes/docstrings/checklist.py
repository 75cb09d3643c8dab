"""Whether a docstring in Google style agrees with the function's source. README.md describes the points.

    check(record, docstring) -> {"imperative": True, "length": True, …}

The source, in the record's user message, is parsed with `ast`, the docstring with `parse`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

INSTRUCTION = "Write a Google style docstring for this function."
SECTIONS = ("Args", "Returns", "Raises")
POINTS = ("imperative", "length", "period", "layout", "args", "returns", "raises", "described", "text_only")
MAX_LINE = 80

VERBS = frozenset(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").split())
"""Verbs in the base form with which a first line may begin."""


@dataclass
class Parsed:
    """A docstring in Google style."""

    summary: str = ""
    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Section -> (name, description) of its entries; the name is "" in Returns."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the layout."""


def parse(docstring: str) -> Parsed:
    """Read the first line and the sections of a docstring."""
    lines = [line.rstrip() for line in docstring.strip("\n").splitlines()]
    parsed = Parsed(summary=lines[0] if lines else "")
    if parsed.summary != parsed.summary.strip() or not parsed.summary:
        parsed.faults.append("the first line is empty or indented")
    if len(lines) > 1 and lines[1]:
        parsed.faults.append("no empty line after the first line")
    section, previous = "", ""
    for before, line in pairwise(lines):
        header = re.fullmatch(r"(\w+):", line)
        if header:
            section = header[1]
            if section not in SECTIONS or section in parsed.sections:
                parsed.faults.append(f"section {section}")
            if previous and section in SECTIONS and SECTIONS.index(section) < SECTIONS.index(previous):
                parsed.faults.append("order of the sections")
            if before:
                parsed.faults.append(f"no empty line before {section}")
            parsed.sections.setdefault(section, [])
            previous = section if section in SECTIONS else previous
        elif line and section:
            _add_line(parsed, section, line, before)
        # Other lines are a paragraph of the description.
    parsed.faults += [f"{name} is empty" for name, entries in parsed.sections.items() if not entries]
    return parsed


def _add_line(parsed: Parsed, section: str, line: str, before: str) -> None:
    """Add a line below a header to the entries of the section."""
    entries, indent, text = parsed.sections[section], len(line) - len(line.lstrip()), line.strip()
    if indent < 2:
        parsed.faults.append(f"a line of {section} is not indented")
    if not before:
        parsed.faults.append(f"an empty line within {section}")
    if entries and (section == "Returns" or indent > 4):  # the line continues the entry
        entries[-1] = (entries[-1][0], f"{entries[-1][1]} {text}")
    elif section == "Returns":
        entries.append(("", text))
    elif entry := re.fullmatch(r"(\*{0,2}[\w.]+)(?: \([^)]*\))?:\s*(.*)", text):
        entries.append((entry[1], entry[2]))
    else:
        parsed.faults.append(f"a line of {section} has no name")


def function_of(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The function in a source. Raises ValueError if there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return node
    raise ValueError("no function in the source")


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names in the signature, without self and cls."""
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args]
    names = [one.arg for one in listed]
    if names[:1] in (["self"], ["cls"]):
        names = names[1:]
    return [*names, *(one.arg for one in arguments.kwonlyargs)]


def returns_value(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a return statement has a value other than a literal None."""
    return any(
        isinstance(node, ast.Return)
        and node.value is not None
        and not (isinstance(node.value, ast.Constant) and node.value.value is None)
        for node in ast.walk(function)
    )


def raised_by(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The names of the exceptions in raise statements."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            exception = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names.add(ast.unparse(exception))
    return names


def source_of(prompt: str) -> str:
    """The source in a user message."""
    return prompt.partition("\n\n")[2]


def is_imperative(words: Sequence[str]) -> bool:
    """Whether a first line begins with a verb; "Number of …" and "Name of …" are nouns."""
    if not words or not words[0][:1].isupper() or words[0].lower() not in VERBS:
        return False
    return words[1:2] != ["of"] or words[0] in ("Dispose", "Think")


def check(record: Mapping[str, Any], reply: str) -> dict[str, bool]:
    """Each point, and whether the docstring in the reply passes it."""
    return check_source(source_of(record["messages"][0]["content"]), reply)


def check_source(source: str, docstring: str) -> dict[str, bool]:
    """Each point, and whether the docstring of this source passes it."""
    function, parsed = function_of(source), parse(docstring)
    words = parsed.summary.split()
    arguments = parsed.sections.get("Args", [])
    raised = [name for name, _ in parsed.sections.get("Raises", [])]
    descriptions = [text for entries in parsed.sections.values() for _, text in entries]
    of_arguments = [text.lower() for _, text in arguments]
    return {
        "imperative": is_imperative(words),
        "length": 0 < len(parsed.summary) <= MAX_LINE,
        "period": parsed.summary.endswith("."),
        "layout": not parsed.faults,
        "args": [name for name, _ in arguments] == parameters_of(function),
        "returns": ("Returns" in parsed.sections) == returns_value(function),
        "raises": len(set(raised)) == len(raised) and set(raised) == raised_by(function),
        "described": all(len(text.split()) >= 2 for text in descriptions)
        and len(set(of_arguments)) == len(of_arguments),
        "text_only": re.search(
            r'"""|\'\'\'|```|^\s*(?:def|async def|return|import|raise) .*|[\[<]\w+ name[\]>]', docstring, re.MULTILINE
        )
        is None,
    }

"""Write train.jsonl: the functions of handwritten.py and functions.txt, and those of templates.txt with the words of words.yaml.

    python make_data.py [--records 720] [--seed 21]

Some parameters get a check that raises, whose entry under Raises is added. Every name is unique, and every docstring passes
checklist.py. The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from collections import Counter
from pathlib import Path
from string import Template

import yaml
from checklist import INSTRUCTION, Parsed, check_source, function_of, parameters_of, parse, raised_by, returns_value

FOLDER = Path(__file__).parent
MAX_LINES = 12

NUMBER_GUARDS = [
    ("{p} < 0", "ValueError", "{p} must not be negative", "{p} is negative"),
    ("{p} < 0", "", "{p} is negative", "{p} is negative"),
    ("{p} <= 0", "ValueError", "{p} must be positive", "{p} is not positive"),
    ("not {p} > 0", "", "{p} must be positive", "{p} is not positive"),
    ("{p} == 0", "ZeroDivisionError", "{p} must not be zero", "{p} is zero"),
    ("{p} > {n}", "ValueError", "{p} is too large", "{p} is greater than {n}"),
    ("{p} > {n}", "OverflowError", "{p} is too large", "{p} is greater than {n}"),
    ("{p} < {m}", "ValueError", "{p} is too small", "{p} is less than {m}"),
    ("not isinstance({p}, (int, float))", "TypeError", "{p} must be a number", "{p} is not a number"),
    ("{p} is None", "TypeError", "{p} is missing", "{p} is None"),
    ("{p} is None", "ValueError", "{p} is required", "{p} is None"),
    ("not 0 <= {p} <= {n}", "ValueError", "{p} is out of range", "{p} is not between 0 and {n}"),
    ("not 0 < {p} < {n}", "", "{p} is out of range", "{p} is not between 0 and {n}"),
    ("math.isnan({p})", "ValueError", "{p} is not a number", "{p} is not a number"),
]
LIST_GUARDS = [
    ("not {p}", "ValueError", "{p} must not be empty", "{p} is empty"),
    ("not {p}", "IndexError", "there are no {p}", "{p} is empty"),
    ("len({p}) == 0", "", "{p} is empty", "{p} is empty"),
    ("len({p}) == 0", "ValueError", "no {p}", "{p} is empty"),
    ("len({p}) < 2", "ValueError", "too few {p}", "{p} has fewer than two entries"),
    ("len({p}) > {n}", "OverflowError", "too many {p}", "{p} has more than {n} entries"),
    ("len({p}) > {n}", "", "too many {p}", "{p} has more than {n} entries"),
    ("None in {p}", "ValueError", "{p} has a gap", "{p} contains None"),
    ("not isinstance({p}, list)", "TypeError", "{p} must be a list", "{p} is not a list"),
]
TEXT_GUARDS = [
    ("not {p}", "ValueError", "{p} must not be empty", "{p} is empty"),
    ("not {p}.strip()", "ValueError", "{p} is blank", "{p} is blank"),
    ("not {p}", "", "{p} is empty", "{p} is empty"),
    ("not isinstance({p}, str)", "TypeError", "{p} must be a string", "{p} is not a string"),
    ("len({p}) > {n}", "ValueError", "{p} is too long", "{p} is longer than {n} characters"),
    ("not {p}.isascii()", "UnicodeError", "{p} is not ASCII", "{p} has characters outside ASCII"),
    ("{p} is None", "TypeError", "{p} is missing", "{p} is None"),
]
MARKS = {"+": "number", "[]": "list", '""': "str"}
GUARDS = {"number": NUMBER_GUARDS, "list": LIST_GUARDS, "str": TEXT_GUARDS}
"""(condition, exception or "" for one of the program's own, message, text under Raises)."""


def rendered(parsed: Parsed) -> str:
    """The text of a docstring."""
    parts = [parsed.summary]
    for section in ("Args", "Returns", "Raises"):
        if entries := parsed.sections.get(section):
            parts.append(
                "\n".join(
                    [f"{section}:", *(f"    {name}: {text}" if name else f"    {text}" for name, text in entries)]
                )
            )
    return "\n\n".join(parts)


class Writer:
    """Makes functions; all randomness is from one generator."""

    def __init__(self, random_: random.Random, exceptions: list[str]) -> None:
        self.random, self.exceptions = random_, exceptions

    def guarded(self, source: str, docstring: str) -> tuple[str, str]:
        """The function with some of its "#guard" lines as checks, and the docstring with their entries."""
        parsed, lines = parse(docstring), source.splitlines()
        places = [number for number, line in enumerate(lines) if line.strip().startswith("#guard")]
        count = self.random.choices((0, 1, 2), (40, 46, 14))[0]
        chosen = set(self.random.sample(places, min(count, len(places))))
        raises = parsed.sections.setdefault("Raises", [])
        added, result = [], []
        for number, line in enumerate(lines):
            if number not in places:
                result.append(line)
            elif number in chosen:
                _, kind, parameter = line.split()
                code, exception, text = self.guard(kind, parameter)
                result += code
                added.append((exception, text))
        raises[:0] = added
        parsed.sections["Raises"] = merged(raises)
        return "\n".join(result), rendered(parsed)

    def guard(self, kind: str, parameter: str) -> tuple[list[str], str, str]:
        """(lines of code, exception, text under Raises) of a check."""
        condition, exception, message, text = self.random.choice(GUARDS[kind])
        values = {
            "p": parameter,
            "n": self.random.choice((5, 10, 12, 20, 24, 50, 64, 99, 100, 365, 1000)),
            "m": self.random.choice((1, 2, 3)),
        }
        exception = exception or self.random.choice(self.exceptions)
        said = message.format(**values)
        argument = self.random.choices(
            (f'("{said}")', f'(f"{said}: {{{parameter}}}")', f"({parameter})", "()"), (70, 15, 10, 5)
        )[0]
        code = [f"    if {condition.format(**values)}:", f"        raise {exception}{argument}"]
        return code, exception, f"If {text.format(**values)}."

    def from_template(self, template: str, words: list[str]) -> tuple[str, str]:
        """A function with its docstring."""
        names = ("thing", "things", "box", "num", "unit", "flag", "act", "person", "text", "error")
        values = dict(zip(names, words, strict=True)) | {"Act": words[6].capitalize()}
        text = re.sub(r"⟨([^⟩]*)⟩", lambda match: self.random.choice(match[1].split("|")), template)
        text = self.with_hints(Template(text).substitute(values))
        vowels = "|".join(word for word in words if word[0] in "aeiou")
        if vowels:
            text = re.sub(rf"\b([Aa]) (?=(?:{vowels})\b)", r"\1n ", text)
        source, docstring = without_docstring(text)
        return self.guarded(source, docstring)

    def with_hints(self, text: str) -> str:
        """The function with all type hints or without any."""
        if self.random.random() < 0.4:
            return re.sub(r"«([^»]*)»", r"\1", text)
        return re.sub(r"«[^»]*»", "", re.sub(r"«[^»]*» = ", "=", text))

    def from_line(self, line: str) -> tuple[str, str]:
        """The function of a line of functions.txt."""
        signature, summary, listed, value, body, *raises = (part.strip() for part in re.split(r" #(?= |$)", line))
        name, _, inner = (
            signature.rstrip(")").partition("(") if not signature.endswith("())") else (*signature[:-1].partition("("),)
        )
        hinted, parameters, guards = self.random.random() < 0.5, [], []
        for part in filter(None, inner.split(", ")):
            match = re.fullmatch(r"(\w+)(\+|\[\]|\"\")?(: [^=]+?)?(?: ?= ?(.+))?", part)
            if match is None:
                raise ValueError(f"{part} in {line}")
            own, mark, hint, default = match.groups()
            hint = hint if hinted and hint else ""
            parameters.append(own + hint + (f"{' = ' if hint else '='}{default}" if default else ""))
            if mark:
                guards.append(f"    #guard {MARKS[mark]} {own}")
        parsed = Parsed(summary)
        parsed.sections["Args"] = [tuple(entry.strip().split(": ", 1)) for entry in listed.split(";") if entry.strip()]  # type: ignore[misc]
        parsed.sections["Returns"] = [("", value)] if value else []
        parsed.sections["Raises"] = [tuple(entry.split(": ", 1)) for entry in raises]  # type: ignore[misc]
        statements = [f"    {statement}" for statement in body.split(" ;; ")]
        source = "\n".join([f"def {name}({', '.join(parameters)}):", *guards, *statements])
        return self.guarded(source, rendered(parsed))


def merged(raises: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One entry for each exception."""
    entries: dict[str, str] = {}
    for exception, text in raises:
        entries[exception] = f"{entries[exception][:-1]} or {text[3:]}" if exception in entries else text
    return list(entries.items())


def without_docstring(text: str) -> tuple[str, str]:
    """(source without the docstring, docstring) of a function."""
    function = function_of(text)
    docstring, place = ast.get_docstring(function), function.body[0]
    if docstring is None:
        raise ValueError(f"{function.name} has no docstring")
    lines = text.splitlines()
    return "\n".join(lines[: place.lineno - 1] + lines[place.end_lineno :]), docstring


def handwritten() -> list[tuple[str, str]]:
    """The functions of handwritten.py."""
    text = (FOLDER / "handwritten.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(text).body if not isinstance(node, ast.Expr)]
    return [without_docstring(ast.get_source_segment(text, node) or "") for node in functions]


def is_usable(source: str, docstring: str) -> bool:
    """Whether the function has the allowed length and its docstring is right."""
    return 2 <= len(source.splitlines()) <= MAX_LINES and all(check_source(source, docstring).values())


def make(n_records: int, seed: int) -> list[tuple[str, str]]:
    """All functions with their docstrings, in random order."""
    random_ = random.Random(seed)
    words = yaml.safe_load((FOLDER / "words.yaml").read_text(encoding="utf-8"))
    writer = Writer(random_, words["exceptions"])
    lines = (FOLDER / "functions.txt").read_text(encoding="utf-8").splitlines()
    pairs = handwritten()
    for line in lines:
        if line and not line.startswith("#"):
            made = writer.from_line(line)
            while len(made[0].splitlines()) > MAX_LINES:
                made = writer.from_line(line)
            pairs.append(made)
    for source, docstring in pairs:
        if not is_usable(source, docstring):
            raise ValueError(f"{check_source(source, docstring)}\n{source}\n{docstring}")
    names = Counter(function_of(source).name for source, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"more than once: {twice}")
    templates = re.split(r"\n\n(?=def|async def)", (FOLDER / "templates.txt").read_text(encoding="utf-8").strip())[1:]
    deck: list[tuple[str, list[str]]] = []
    for template in templates:
        deck += [(template, one) for one in random_.sample(words["things"], 14)]
    random_.shuffle(deck)
    uses: Counter[str] = Counter()
    deck.sort(key=lambda pair: uses.update([pair[0]]) or uses[pair[0]])  # each template once, then each twice, …
    while len(pairs) < n_records:
        template, one = deck.pop(0)
        made = writer.from_template(template, [str(word) for word in one])
        name = function_of(made[0]).name
        if name not in names and is_usable(*made):
            names[name] += 1
            pairs.append(made)
    random_.shuffle(pairs)
    return pairs


def main() -> None:
    """Write the file, and print what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=720)
    parser.add_argument("--seed", type=int, default=21)
    options = parser.parse_args()
    pairs = make(options.records, options.seed)
    with open(FOLDER / "train.jsonl", "w", encoding="utf-8") as file:
        for source, docstring in pairs:
            messages = [
                {"role": "user", "content": f"{INSTRUCTION}\n\n{source}"},
                {"role": "assistant", "content": docstring},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    functions = [function_of(source) for source, _ in pairs]
    print(
        len(pairs),
        "records; by number of parameters:",
        sorted(Counter(len(parameters_of(one)) for one in functions).items()),
    )
    print("with a return value:", sum(map(returns_value, functions)))
    print("by number of exceptions:", sorted(Counter(len(raised_by(one)) for one in functions).items()))


if __name__ == "__main__":
    main()

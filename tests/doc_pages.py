"""The pages of the documentation as tests see them: their code blocks, the commands in these, and their sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mini_chat_gpt.cli import VERBS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])

MAX_WORDS = 25
"""Mean length of a page's sentences must be below this."""

TAGS = ("fast", "slow", "network", "gpu", "install", "append", "server", "client", "output", "text")
"""What the tests do with a code block; CONTRIBUTING.md describes them."""
FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block. Its info string is the language, the tag, and for some tags an argument."""

    page: Path
    line: int
    language: str
    tag: str
    argument: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; a pipe, a redirection and && are words."""
        if self.language != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [found for line in lines if (found := words(line))]


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    return list(lexer)


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, tag, argument = [*match["info"].split(maxsplit=2), "", "", ""][:3]
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, tag, argument, match["text"]))
    return found


def calls(command: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(verb, arguments) of each call of mini-chat-gpt in a command, also as a script or under torchrun."""
    parts: list[list[str]] = [[]]
    for word in command:
        if set(word) <= set("|>&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    scripts = {"mini_chat_gpt/sft_train.py": "sft", "mini_chat_gpt/sft_generate.py": "generate"}
    for part in parts:
        for i, word in enumerate(part):
            if word in ("mini-chat-gpt", "mini_chat_gpt.cli") and i + 1 < len(part):
                two = " ".join(part[i + 1 : i + 3])  # "recipe new"
                yield (two, part[i + 3 :]) if two in VERBS else (part[i + 1], part[i + 2 :])
            elif word in scripts:
                yield scripts[word], part[i + 1 :]


def sentences(page: Path) -> list[str]:
    """The sentences of a page's prose.

    The rule: code blocks, tables, headings and pictures don't count. A list item and a paragraph end a sentence, and so does a
    period, question mark, exclamation mark or colon before white space.
    """
    text = FENCE.sub("\n", page.read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    lines = [
        "" if re.match(r"\||#|!\[|    ", line) else re.sub(r"^\s*([-*]|\d+\.) ", "\n", line)
        for line in text.splitlines()
    ]
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines)))
    paragraphs = re.split(r"\n\s*\n", text)
    found = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.?!:])[)\"*]*\s+", paragraph)]
    return [sentence for sentence in found if n_words(sentence)]


def n_words(text: str) -> int:
    return sum(any(sign.isalnum() for sign in word) for word in text.split())

"""What the export says: how much it writes, what it has checked, and the command that wrote a model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.common.writable import require_space
from mini_chat_gpt.export.proof import Proof

MARGIN = 2**22
"""Bytes for what is written besides weights and the tokenizer."""


@dataclass(frozen=True)
class Exported:
    """What was written, in lines for the terminal, and the proof, None with --no-check."""

    lines: list[str]
    proof: Proof | None


def announce(path: Path, n_bytes: int) -> None:
    """Say how much is written. Raises UserError if the disk has less space left."""
    free = require_space(path.parent, n_bytes + MARGIN, f"The export to {path}", "choose another disk")
    print(f"Writing {format_size(n_bytes)} to {path} ({format_size(free)} free).", flush=True)


def checked_lines(proof: Proof | None) -> list[str]:
    """What was checked, for the terminal."""
    if proof is None:
        return ["Not checked (--no-check)."]
    return ["Checked by reading it back:", *(f"  {line}" for line in proof.lines)]


def command_line(path: Path, destination: Path, **options: object) -> str:
    """The command, for the model card: paths without the folders that they are in."""
    words = ["mini-chat-gpt", "export", shown_path(path), shown_path(destination)]
    for name, value in options.items():
        if name == "check":
            words += [] if value else ["--no-check"]
        elif value is True:
            words.append(f"--{name}")
        elif value:
            words += [f"--{name}", str(value)]
    return shlex.join(words)

"""Names of models and data sets on the Hugging Face hub.

hub:org/name                 the newest version of a model or a data set
hub:org/name@v1.0            that of a branch, a tag or a commit
hub:org/name/file.gguf       one of its files (also with @)
org/name                     the same, where nothing has this path and there is no folder `org`
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mini_chat_gpt.common.errors import UserError, short

PREFIX = "hub:"
COMMIT = re.compile("[0-9a-f]{40}")
Kind = Literal["model", "dataset"]
_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_ADDRESS = re.compile(r"(https?|hf|file|ftp|s3|gs):/+", re.IGNORECASE)
_OF_HUB = re.compile(
    r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)(?:datasets/)?([\w.-]+/[\w.-]+)(?:/(?:resolve|blob|raw|tree)/[^/?]+/([^?]+))?"
)
_FILE_ENDINGS = (
    ".json", ".jsonl", ".gz", ".zst", ".csv", ".tsv", ".parquet", ".txt", ".md", ".yaml", ".bin", ".pt", ".pth", ".gguf", ".safetensors",
)  # fmt: skip
_LOCAL = frozenset({"runs", "data", "checkpoints", "models", "TinyStories"})
"""Folders that paths often begin with: a path in one of them is never a name of the hub, even if the folder is missing."""


@dataclass(frozen=True)
class HubName:
    """A model or data set of the hub, or one file of it, as a user named it."""

    kind: Kind
    repo: str  # "org/name"
    revision: str | None = None  # None: the newest version
    file: str | None = None
    prefixed: bool = field(default=True, compare=False)
    """Whether the user wrote hub:; otherwise a path may have been meant."""

    @property
    def no_path(self) -> str:
        """The beginning of a sentence about a name without the prefix."""
        return "" if self.prefixed else f"There is no path {self.repo} here, and "

    def __str__(self) -> str:
        return (
            f"{PREFIX}{self.repo}{f'/{self.file}' if self.file else ''}{f'@{self.revision}' if self.revision else ''}"
        )


def hub_name(path: Path | str, kind: Kind) -> HubName | None:
    """What a user's path names on the hub; None if it is a path of this machine. Raises UserError for an impossible name."""
    text = path.as_posix() if isinstance(path, Path) else path
    if address := _ADDRESS.match(text):
        raise UserError(f"{short(text)} is an address, not a path; {_instead_of(address, text)}.")
    if not text.startswith(PREFIX):
        match = re.fullmatch(r"([^/@]+)/([^/@]+)(?:@(.+))?", text)
        if match is None or not all(map(_PART.fullmatch, match.groups()[:2])):
            return None
        if match[1] in _LOCAL or text.lower().endswith(_FILE_ENDINGS):
            return None
        return (
            None
            if os.path.lexists(text) or os.path.lexists(match[1])
            else HubName(kind, f"{match[1]}/{match[2]}", match[3], prefixed=False)
        )
    name, at, revision = text.removeprefix(PREFIX).partition("@")
    parts = name.split("/")
    if not all(map(_PART.fullmatch, parts[:2])) or "" in parts or {".", ".."} & {*parts} or (at and not revision):
        raise UserError(
            f"{short(text)} is not a name of the hub; write hub:org/name, hub:org/name@revision or hub:org/name/file."
        )
    return HubName(kind, "/".join(parts[:2]), revision or None, "/".join(parts[2:]) or None)


def _instead_of(address: re.Match[str], text: str) -> str:
    """What to write instead of an address."""
    if address[1] == "file":
        return "write the path without file://"
    found = _OF_HUB.match(text)
    return (
        f"write {PREFIX}{found[1]}{f'/{found[2]}' if found[2] else ''}"
        if found
        else "download the file, and give its path"
    )


def require_file(name: HubName, names: Sequence[str]) -> str:
    """The file that a name names. Raises UserError if it is not among `names`."""
    if name.file is None or name.file not in names:
        raise UserError(f"{name} does not exist: hub:{name.repo} has {some_of(names)}.")
    return name.file


def some_of(names: Sequence[str]) -> str:
    """The first names of a listing, for messages."""
    shown = [name for name in names if not name.startswith(".")]
    return ", ".join([*shown[:8], *(["…"] if len(shown) > 8 else [])]) or "no files"


def repository_of(path: Path) -> tuple[str, str] | None:
    """("org/name", commit) of a file or folder in the library's cache; None for others."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name):
            kind, _, repo = folder.parent.parent.name.partition("--")
            return (repo.replace("--", "/"), folder.name) if kind in ("models", "datasets") and repo else None
    return None


def name_of_model(model: str) -> str:
    """A name for a folder: the last part of a model's path or name, without a file's extension."""
    hub = hub_name(model, "model")
    path = Path(model if hub is None else hub.file or hub.repo)
    name = path.stem if path.suffix.lower() in (".gguf", ".bin", ".pt") else path.name
    if name in ("best", "last") or re.fullmatch(r"step-[0-9]+", name):
        name = path.parent.name
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "base"

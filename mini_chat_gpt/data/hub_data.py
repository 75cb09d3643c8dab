"""Data sets of the Hugging Face hub: which files of a repository are needed, and local copies of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import HubName, hub_name, require_file, some_of

_CHATS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_NO_CHATS = frozenset({"dataset_infos.json", "dataset_info.json", "state.json", "package.json"})


def local_chats(path: Path | str) -> list[Path]:
    """The local copies of the chat files that a path names on the hub; the path itself if it names none. Raises UserError."""
    if (name := hub_name(path, "dataset")) is None:
        return [Path(path)]
    from mini_chat_gpt.common.hub import fetch  # not needed to parse a command line

    found = fetch(name, _Chats(name))
    return [found.folder / file for file in sorted(found.files)]


def local_stories(path: Path | str, names: tuple[str, ...]) -> Path:
    """The local copy of a folder with stories, or of one file, that a path names on the hub; the path itself if it names none.

    `names` are those of the files that are looked for, with {split}, the preferred first. Raises UserError.
    """
    if (name := hub_name(path, "dataset")) is None:
        return Path(path)
    from mini_chat_gpt.common.hub import fetch

    folder = fetch(name, _Stories(name, names)).folder
    return folder / name.file if name.file else folder


@dataclass(frozen=True)
class _Chats:
    """Chooses the file that the user named, else the only one, else that of the training split, which may be in parts."""

    name: HubName

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        if self.name.file is not None:
            return [require_file(self.name, names)]
        found = [
            one for one in names if one.lower().endswith(_CHATS) and Path(one).name not in _NO_CHATS and one[0] != "."
        ]
        if len(found) > 1:
            found = [one for one in found if "train" in one.lower()] or found
        if not found:
            raise UserError(f"{self.name} has no JSON or JSON Lines file; it has {some_of(names)}.")
        if len({re.sub(r"\d+", "", one) for one in found}) > 1:
            raise UserError(
                f"{self.name} has several files; name one, such as hub:{self.name.repo}/{found[0]} ({some_of(found)})."
            )
        return found


@dataclass(frozen=True)
class _Stories:
    """Chooses the files of both splits: those with the first known name, or the one that the user named and its sibling."""

    name: HubName
    names: tuple[str, ...]

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        if (file := self.name.file) is not None:
            sibling = file.replace("train", "valid")
            return list(dict.fromkeys([require_file(self.name, names), *({sibling} & {*names})]))
        chosen = [self._first(split, names) for split in ("train", "valid")]
        if chosen[0] is None:
            wanted = ", ".join(one.format(split="train") for one in self.names)
            raise UserError(
                f"{self.name} contains no stories (looked for {wanted}); name one of its files: {some_of(names)}."
            )
        return [one for one in chosen if one is not None]

    def _first(self, split: str, names: Sequence[str]) -> str | None:
        return next((one for known in self.names if (one := known.format(split=split)) in names), None)

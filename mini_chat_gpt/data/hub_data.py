"""Data sets of the Hugging Face hub: which files of a repository are needed, and local copies of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import HubName, hub_name, require_file, some_of
from mini_chat_gpt.data.data_files import (
    CHATS,
    RECORDS,
    TEXTS,
    DataFiles,
    has_ending,
    kind_of_most_use,
    local_files,
    not_data,
    splits,
)

if TYPE_CHECKING:
    from mini_chat_gpt.common.hub import Fetched


def chat_files(path: Path | str) -> DataFiles:
    """The files of a path in `chats.files`: see `local_files`; of a data set of the hub, their local copies. Raises UserError."""
    if (name := hub_name(path, "dataset")) is None:
        return local_files(str(path))
    from mini_chat_gpt.common.hub import fetch  # not needed to parse a command line

    return _files(fetch(name, _Data(name)))


def text_files(name: HubName, names: tuple[str, ...]) -> DataFiles:
    """The local copies of the texts of a data set: stories, if it has any under one of the `names`; else text or records."""
    from mini_chat_gpt.common.hub import fetch

    return _files(fetch(name, _Texts(name, names)))


def _files(found: Fetched) -> DataFiles:
    if len(found.files) == 1:
        return DataFiles((found.folder / found.files[0],))
    train, held_out, _ = splits(sorted(found.files))
    return DataFiles(
        tuple(found.folder / file for file in train), tuple(found.folder / file for file in held_out), (), found.folder
    )


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
class _Data:
    """Chooses the file that the user named, else, of the folder that the user named or of all files, the only one or those of the splits.

    A split may be in parts.
    """

    name: HubName
    kinds: tuple[tuple[str, ...], ...] = (CHATS,)

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        if self.name.file is not None and not (inside := _inside(self.name, names)):
            return [require_file(self.name, names)]
        names = names if self.name.file is None else inside
        names = [one for one in names if not not_data(one) and one[0] != "."]
        endings = kind_of_most_use(names, self.kinds)
        found = [one for one in names if has_ending(one, endings)]
        if not found:
            raise UserError(f"{self.name} has no data ({', '.join(endings)}); it has {some_of(names)}.")
        train, held_out, _ = splits(found)
        if len({re.sub(r"\d+", "", one) for one in train}) > 1:
            folder = train[0].rpartition("/")[0]
            in_folder = [one for one in train if one.startswith(f"{folder}/")]
            one = folder if folder and len(in_folder) < len(train) else train[0]
            raise UserError(
                f"{self.name} has several files; name one, or a folder, such as hub:{self.name.repo}/{one} ({some_of(train)})."
            )
        return [*train, *held_out]


def _inside(name: HubName, names: Sequence[str]) -> list[str]:
    """The files of the folder that a name names; none if it names a file."""
    return [one for one in names if one.startswith(f"{name.file}/")]


@dataclass(frozen=True)
class _Texts:
    """Chooses stories like `_Stories`, else texts or records like `_Data`."""

    name: HubName
    names: tuple[str, ...]

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        stories = {one.format(split="train") for one in self.names}
        if stories & {*names} or (self.name.file is not None and not _inside(self.name, names)):
            return _Stories(self.name, self.names)(names)
        return _Data(self.name, (TEXTS, RECORDS))(names)


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

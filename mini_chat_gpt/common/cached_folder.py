"""Folders that can be made again, such as the tokens of a text: made on first use, verified before use, made again if damaged.

A folder has a manifest with the size and the hash of each file. Its gigabytes are hashed only if a file has changed since they were
compared: verified.json has the sizes, times and inodes of that moment. A folder is written under a temporary name and renamed, so
that a killed process leaves no part of one; the next process that looks for a folder there removes what it left.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, readable_disk_errors, remove_leftovers, temporary_name, write_json
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.common.manifest import MANIFEST, Identity, file_identity, find_damage, read_manifest

VERIFIED = "verified.json"
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
Opened = TypeVar("Opened")


class DamagedFolder(UserError):
    """A folder is incomplete or has changed. `problem` says in which way."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder} is damaged: {problem}; delete it, and it is made again.")
        self.problem = problem


class _Verified(JSONRecord):
    files: dict[str, Identity]


@dataclass(frozen=True)
class CachedFolder(Generic[Opened]):
    """A folder that is a function of something else.

    places    where it can be: next to its source and, for a source in a folder that can't be written, in the user's cache
    files     names of all its files but the manifest
    read      opens it; raises DamagedFolder if its files don't fit together
    check     a description of what is wrong with its content, None if nothing is; may take long
    content   what is in it, for messages: "The tokens of stories.txt are"
    console   where messages are printed; without one they are warnings
    """

    places: Sequence[Path]
    files: tuple[str, ...]
    read: Callable[[Path], Opened]
    check: Callable[[Opened], str | None]
    content: str
    console: Console | None = None

    def find(self) -> Opened | None:
        """The content if the folder exists and is intact. A damaged one is reported."""
        for folder in self.places:
            remove_leftovers(folder.parent)
            if os.path.lexists(folder):
                try:
                    return self.open_verified(folder)
                except DamagedFolder as error:
                    self._say(f"{folder} is damaged: {error.problem}. {self.content} made again.")
        return None

    def make(self, write: Callable[[Path], None]) -> Opened:
        """Make the folder, which `write` fills. It goes to the first place that can be written. Raises UserError."""
        first, *others = self.places
        try:
            return self._make(first, write)
        except UserError as error:
            if not others or not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _UNWRITABLE:
                raise
        self._say(f"{first.parent} can't be written. {self.content} stored in {others[0]}.")
        return self._make(others[0], write)

    def _make(self, folder: Path, write: Callable[[Path], None]) -> Opened:
        try:
            if os.path.lexists(folder):
                remove_folder(folder)
            with atomic_folder(folder) as draft:
                write(draft)
        except UserError:
            # Another process may have made the same folder in the meantime.
            with suppress(DamagedFolder):
                return self.open_verified(folder)
            raise
        self._record_verified(folder)
        return self.read(folder)

    def open_verified(self, folder: Path) -> Opened:
        """Open the folder at one of its places. Raises DamagedFolder unless it is as it was written."""
        for name in (*self.files, MANIFEST):
            if not (folder / name).is_file():
                raise DamagedFolder(folder, f"{name} is missing")
        opened = self.read(folder)
        with suppress(UserError, OSError):
            if read_json(folder / VERIFIED, _Verified, "").files == self._identities(folder):
                return opened
        problem = find_damage(folder)
        if problem is None and not {*self.files} <= read_manifest(folder).files.keys():
            problem = f"its {MANIFEST} does not list all files"
        problem = problem or self.check(opened)
        if problem is not None:
            raise DamagedFolder(folder, problem)
        self._record_verified(folder)
        return opened

    def _identities(self, folder: Path) -> dict[str, Identity]:
        return {name: file_identity(folder / name) for name in (*self.files, MANIFEST)}

    def _record_verified(self, folder: Path) -> None:
        """Remember that the files are intact. It only saves time, so a folder that can't be written to is not an error."""
        with suppress(UserError, OSError):
            write_json(folder / VERIFIED, {"files": self._identities(folder)})

    def _say(self, text: str) -> None:
        if self.console is None:
            warnings.warn(text, stacklevel=4)
        else:
            self.console.print(text, markup=False, soft_wrap=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that can be made again. It loses its name first, so that no process opens a part of it.

    Raises UserError if that is not possible.
    """
    aside = temporary_name(folder)
    with readable_disk_errors(folder), suppress(FileNotFoundError):  # another process may have removed it
        os.rename(folder, aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()

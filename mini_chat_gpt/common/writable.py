"""Checks before any work that its results can be written to the path that the user named."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.files import existing_folder, readable_disk_errors
from mini_chat_gpt.common.terminal import format_size


@contextmanager
def path_errors(folder: Path | str) -> Iterator[None]:
    """Turn every error that the name of a folder can cause into a UserError."""
    with readable_disk_errors(Path(folder)):
        try:
            yield
        except ValueError as error:
            if "\0" not in str(folder) and not isinstance(error, UnicodeError):
                raise
            raise UserError(f"{short(str(folder))} can't be the name of a folder; choose another path.") from None


def require_writable(folder: Path) -> None:
    """Raise UserError if files can't be written into this folder, which need not exist. Leaves nothing behind."""
    with path_errors(folder):
        _write_into(folder)


def require_writable_file(path: Path) -> None:
    """Raise UserError if `path` can't be written as a file, which may exist. Leaves nothing behind.

    A device or a pipe is refused: a file is written under another name, which then replaces the old one, and root may
    replace even /dev/null.
    """
    with path_errors(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder; choose the name of a file.")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; choose another name.")
        _write_into(path.parent)


def _write_into(folder: Path) -> None:
    """Write a file into this folder and delete it. Raises what writing raises."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def require_space(
    folder: Path, needed: int, what: object = "This", remedy: str = "choose another folder with --folder"
) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist. Raises UserError if they are fewer than `needed`."""
    free = shutil.disk_usage(existing_folder(folder)).free
    if free < needed:
        raise UserError(
            f"{what} needs {format_size(needed)}, but the disk of {folder} has {format_size(free)} left; free some space, or "
            f"{remedy}."
        )
    return free

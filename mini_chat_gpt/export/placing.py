"""Files that appear together under their final names, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, sync, temporary_name


@contextmanager
def draft_folder(destination: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `destination`, and delete it afterwards with all that is still in it.

    Folders above `destination` are made, and deleted again if the block raises an error. Raises UserError if the disk refuses.
    """
    missing = [parent for parent in destination.absolute().parents if not parent.exists()]
    draft = temporary_name(destination)
    with readable_disk_errors(destination):
        try:
            draft.mkdir(parents=True)
            yield draft
            missing = []
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()


def place_folder(draft: Path, folder: Path) -> None:
    """Give a filled folder its final name. Raises UserError if it exists by now."""
    for entry in (*draft.iterdir(), draft):
        sync(entry)
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already and is not overwritten; choose another name or move it away.")
    os.rename(draft, folder)
    sync(folder.parent)


def place_files(files: Mapping[Path, Path]) -> None:
    """Give files their final names: written file -> name. If one of the names is taken, none of them is used."""
    placed: list[Path] = []
    try:
        for file, name in files.items():
            sync(file)
            try:
                os.link(file, name)  # unlike a rename, it never replaces a file
            except (FileExistsError, PermissionError, NotImplementedError, OSError) as error:
                if os.path.lexists(name):
                    raise UserError(
                        f"{name} exists already and is not overwritten; choose another name or move it away."
                    ) from None
                if isinstance(error, FileExistsError):
                    raise
                os.rename(file, name)  # a file system without links
            placed.append(name)
    except BaseException:
        for name in placed:
            with suppress(OSError):
                name.unlink()
        raise


def free_names(folder: Path, stem: str, names: Mapping[str, str]) -> dict[str, Path]:
    """A path in `folder` for each file: its plain name, or STEM.NAME where the plain one is taken.

    `names`: what a file is -> its plain name. Raises UserError if both are taken.
    """
    paths = {}
    for what, name in names.items():
        candidates = [folder / name, folder / f"{stem}.{name}"]
        free = next((path for path in candidates if not os.path.lexists(path)), None)
        if free is None:
            raise UserError(f"{candidates[1]} exists already and is not overwritten; move it away.")
        paths[what] = free
    return paths

"""Folders that can be made again, such as the tokens of a text: damaged ones are removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mini_chat_gpt.common.files import readable_disk_errors, temporary_name


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

"""Files that are whole or absent: atomic writes, and folders with a manifest of sizes and hashes.

A folder is written under a temporary name beside its place and renamed into it, so that whatever instant a process dies
at, its name either does not exist or holds everything. The manifest finds later damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError

MANIFEST = "manifest.json"


@contextmanager
def readable_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left", "permission denied" and the like into one sentence that names the place."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"Can't write {path}: {reason}. Free some space or choose another place; what was there is kept."
        ) from error


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part."""
    path = Path(path)
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill, which gets its manifest and its real name when the block ends well, and vanishes when it doesn't.

    Raises UserError if `path` exists already, or if the disk refuses.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already and is not overwritten; choose another name or move it away.")
    draft = draft_of(path)
    with readable_disk_errors(path):
        try:
            draft.mkdir(parents=True)
            yield draft
            complete(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def free_name(path: Path) -> Path:
    """`path`, or with -2, -3, … the first that doesn't exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def draft_of(path: Path) -> Path:
    """A name beside `path` to write under."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def complete(draft: Path, path: Path) -> None:
    """Give a filled folder its manifest and its real name."""
    write_manifest(draft)
    for folder in (*(part for part in draft.rglob("*") if part.is_dir()), draft):
        sync_folder(folder)
    os.rename(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names and contents reach the disk before anything refers to them."""
    for file in [*folder.iterdir(), folder] if folder.is_dir() else []:
        if file.is_file() or file == folder:
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            except OSError:  # some file systems can't sync a folder; the files themselves were synced
                if file != folder:
                    raise
            finally:
                os.close(handle)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Record size and hash of each file of `folder`, and of the folders in it, in its manifest.json."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, or None when it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "its manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest.json can't be read"
    for name, facts in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {facts['size']}"
        if sha256_of(file) != facts["sha256"]:
            return f"the content of {name} has changed (its hash differs)"
    return None


def user_cache() -> Path:
    """Where what can be made again is kept when it can't lie beside its source; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mini_chat_gpt"

"""Write files and folders atomically, and detect later damage with a manifest of sizes and hashes.

A folder is written under a temporary name in the same parent and then renamed. If the process dies at any moment, the final
name either does not exist or has all contents.
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
    """Turn an OSError such as "no space left" or "permission denied" into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"Can't write {path}: {reason}. Free some space or choose another path; existing content is unchanged."
        ) from error


def read_file(path: Path) -> bytes:
    """Return the content of a file. Raises UserError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Can't read {path}: {(error.strerror or str(error)).lower()}; check the path.") from None


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write a text file so that readers see either the old or the new content, never a part."""
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
    """Write `value` as indented JSON, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder to fill. On success it gets its manifest and its final name, on an error it is deleted.

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
    """Return `path`, or the first of path-2, path-3, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def draft_of(path: Path) -> Path:
    """Return a temporary name in the same parent as `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def complete(draft: Path, path: Path) -> None:
    """Give a filled temporary folder its manifest and its final name."""
    write_manifest(draft)
    for folder in (*(entry for entry in draft.rglob("*") if entry.is_dir()), draft):
        sync_folder(folder)
    os.rename(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's file names and contents to the disk."""
    for file in [*folder.iterdir(), folder] if folder.is_dir() else []:
        if file.is_file() or file == folder:
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            except OSError:  # some file systems can't sync a folder; its files are synced already
                if file != folder:
                    raise
            finally:
                os.close(handle)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """`hashlib.file_digest` for Python 3.10, which lacks it."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Write manifest.json with the size and hash of every file in `folder` and its subfolders."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Compare a folder with its manifest; return a description of the first difference, or None if there is none."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "its manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest.json can't be read"
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
        if sha256_of(file) != entry["sha256"]:
            return f"the content of {name} has changed (its hash differs)"
    return None


def user_cache() -> Path:
    """Folder for reproducible files that can't be stored next to their source; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mini_chat_gpt"

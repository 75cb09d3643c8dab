"""Manifests: the size and the hash of every file of a folder, in its manifest.json."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json

MANIFEST = "manifest.json"

Identity = tuple[int, int, int, int]
"""Numbers that change when a file is written, see `file_identity`."""


def _require_plain(name: str) -> str:
    """A name in a manifest must not lead out of its folder."""
    if name != PurePosixPath(name).as_posix() or set(name) & set("\\:\0") or {"", ".", ".."} & set(name.split("/")):
        raise ValueError("is not a relative path within the folder")
    return name


class ManifestEntry(JSONRecord):
    """Size and hash of one file."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(JSONRecord):
    """The contents of manifest.json."""

    files: dict[Annotated[str, AfterValidator(_require_plain)], ManifestEntry]
    written: float | None = None
    """When the folder was written, in seconds since 1970; None in folders of November 2026."""
    sha256: str | None = None
    """Of the manifest itself, without this field."""

    def digest(self) -> str:
        """The hash that `sha256` must have."""
        content = self.model_dump(exclude={"sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        file.relative_to(folder).as_posix(): ManifestEntry(size=file.stat().st_size, sha256=sha256_of(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    manifest = Manifest(files=files, written=time.time())
    content = manifest.model_dump() | {"sha256": manifest.digest()}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Damage(UserError):
    """A folder is not what its manifest says."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder. Raises Damage if it is missing, can't be read, or was changed."""
    try:
        manifest = read_json(folder / MANIFEST, Manifest, "")
    except FileNotFoundError:
        raise Damage(f"its {MANIFEST} is missing") from None
    except DamagedJSON as error:
        reason = str(error).removeprefix(f"{folder / MANIFEST} ").removesuffix("; .")
        raise Damage(f"its {MANIFEST} can't be read: it {reason}") from None
    if (manifest.written is not None or manifest.sha256 is not None) and manifest.sha256 != manifest.digest():
        raise Damage(f"its {MANIFEST} can't be read: it has changed (its hash differs)")
    return manifest


def find_damage(folder: Path) -> str | None:
    """Compare a folder with its manifest; return a description of the first difference, or None if there is none."""
    try:
        for name, entry in read_manifest(folder).files.items():
            require_unchanged(folder, name, entry)
    except Damage as error:
        return str(error)
    return None


def require_unchanged(folder: Path, name: str, entry: ManifestEntry) -> None:
    """Raise Damage unless the file has the size and the hash of its entry in the manifest."""
    file = folder / name
    try:
        if not file.is_file():
            raise Damage(f"{name} is missing")
        if (size := file.stat().st_size) != entry.size:
            raise Damage(f"{name} has {size} bytes instead of {entry.size}")
        if sha256_of(file) != entry.sha256:
            raise Damage(f"the content of {name} has changed (its hash differs)")
    except OSError as error:
        raise Damage(f"{name} can't be read ({(error.strerror or str(error)).lower()})") from None


def file_identity(path: Path) -> Identity:
    """Size, times of the last change of the content and of the inode (which no program can set) in ns, and inode of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino

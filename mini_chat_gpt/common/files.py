"""Write files and folders atomically, and detect later damage with a manifest of sizes and hashes.

A folder is written under a temporary name in the same parent and then renamed. If the process dies at any moment, the final
name either does not exist or has all contents. The temporary name says which process made it, so that the next process that
writes in the same parent can tell what a killed one left behind, and deletes it (`remove_leftovers`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import open_regular
from mini_chat_gpt.common.manifest import write_manifest


@contextmanager
def readable_disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError such as "no space left" or "permission denied" into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = "Free some space or choose another path" if _is_full(error) else "Choose another path"
        raise UserError(f"Can't write {path}: {reason}. {remedy}; existing content is unchanged.") from error


def is_disk_full(error: UserError) -> bool:
    """Whether the cause of this error is a full disk, or an exceeded quota."""
    return isinstance(error.__cause__, OSError) and _is_full(error.__cause__)


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_file(path: Path, max_bytes: int = 1 << 28) -> bytes:
    """Return the content of a file. Raises UserError if it can't be read, or is larger than `max_bytes`."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"Can't read {path}: {(error.strerror or str(error)).lower()}; check the path.") from None
    if len(data) > max_bytes:
        raise UserError(f"{path} is larger than the {max_bytes >> 20} MB that such a file can have; check the path.")
    return data


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write a text file so that readers see either the old or the new content, never a part."""
    path = Path(path)
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def append_text(path: Path, text: str) -> None:
    """Append to a text file, which is made if necessary, as is its folder. Raises UserError if the disk refuses."""
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    atomic_write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON, as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name for a new file. On success the file replaces `path`, on an error it is deleted."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill. On success it gets its manifest and its final name, on an error it is deleted.

    Raises UserError if `path` exists already and is not to be replaced, or if the disk refuses.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path} exists already and is not overwritten; choose another name or move it away.")
    draft = temporary_name(path)
    with readable_disk_errors(path):
        try:
            draft.mkdir(parents=True)
            yield draft
            complete(draft, path, replace)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of path-2, path-3, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def complete(draft: Path, path: Path, replace: bool = False) -> None:
    """Give a filled temporary folder its manifest and its final name; with `replace`, instead of what has that name now."""
    write_manifest(draft)
    for entry in (*draft.rglob("*"), draft):
        sync(entry)
    if replace and path.exists():
        exchange(draft, path)
        shutil.rmtree(draft, ignore_errors=True)
    else:
        os.rename(draft, path)
    sync(path.parent)  # not the files next to it: closing a lock file would release this process's lock on it


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders of the same parent.

    On Linux both names exist at every moment. Elsewhere, and on file systems without this call, `other` does not for an instant.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # AttributeError: a C library of before 2018
            here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            if ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
                return
    between = temporary_name(other)
    os.rename(other, between)
    os.rename(one, other)
    os.rename(between, one)


def sync(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to the disk."""
    if not path.is_file() and not path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems can't sync a folder; its files are synced already
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


# Temporary names

_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([1-9]\d{0,8})-(\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_EARLIER = re.compile(  # the names that versions of November 2026 used
    r"\.(\.tokens-[0-9a-f]{16}|step-\d+|.*\.(npz|json|jsonl|yaml|txt|md|html))\.[0-9a-f]{8}\.tmp"
    r"|\.step-\d+\.old|\.loss\.png\.tmp|\.draft-[0-9a-f]{8}"
)
_SECONDS_AT_REST = 3600.0
"""A temporary of a process that can't be seen from here is left over if nothing in it has changed for this long."""


def temporary_name(path: Path) -> Path:
    """A new name next to `path` for contents that are incomplete, or that are being deleted. Deletes leftovers in the same parent.

    It is `.NAME.MACHINE-PROCESS-START-RANDOM.tmp`: process ids are reused, so the name also has the start time of the process.
    """
    remove_leftovers(path.parent)
    process = os.getpid()
    owner = f"{_this_machine()}-{process}-{max(0, _start_time(process) or 0)}"
    return path.with_name(f".{path.name[:40]}.{owner}-{uuid.uuid4().hex[:8]}.tmp")


def existing_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists, whose disk it will be on."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process has locked it. No-op on Windows.

    Raises OSError if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike a lock of flock, worker processes do not inherit it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def remove_leftovers(folder: Path, exclusive: bool = False) -> None:
    """Delete the temporary files and folders that ended processes left in `folder`. Never raises.

    What a living process is writing stays. With `exclusive` the caller holds the folder's lock, so no process of another
    machine can be writing in it.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        leftovers = [Path(entry.path) for entry in entries if _is_left_over(Path(entry.path), exclusive)]
        for leftover in leftovers:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


def _is_left_over(path: Path, exclusive: bool) -> bool:
    if match := _TEMPORARY.fullmatch(path.name):
        machine, process, start = match[1], int(match[2]), int(match[3])
        if machine == _this_machine() and os.name == "posix":
            return not _is_running(process, start)
    elif not _EARLIER.fullmatch(path.name):
        return False
    return exclusive or time.time() - _last_change(path) > _SECONDS_AT_REST


@lru_cache
def _this_machine() -> str:
    """Eight digits that stand for this host, and for this container: containers number their processes independently."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _is_running(process: int, start: int) -> bool:
    """Whether the process that began at `start` still runs. A start time of 0 is unknown."""
    try:
        os.kill(process, 0)  # sends no signal
    except ProcessLookupError:
        return False
    except OSError:  # it exists, but belongs to another user
        pass
    now = _start_time(process)
    return now is None or now == start or (start == 0 and now >= 0)


def _start_time(process: int) -> int | None:
    """When a process began, in clock ticks since boot; -1 if it has ended (a zombie), None where there is no /proc."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return -1 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _last_change(path: Path) -> float:
    """The latest modification time of a file, or of a folder and everything in it."""
    latest = 0.0
    for folder, _, names in os.walk(path):
        for name in (folder, *(os.path.join(folder, name) for name in names)):
            with suppress(OSError):
                latest = max(latest, os.lstat(name).st_mtime)
    with suppress(OSError):
        latest = max(latest, os.lstat(path).st_mtime)
    return latest


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's folder for temporary files, and delete it afterwards."""
    folder = temporary_name(Path(tempfile.gettempdir()) / "mini_chat_gpt")
    with readable_disk_errors(folder):
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def user_cache() -> Path:
    """Folder for reproducible files that can't be stored next to their source; XDG_CACHE_HOME moves it.

    In the system's folder for temporary files, if there is no home folder (in a container) or no cache can be written in it.
    """
    folders = [Path(configured)] if (configured := os.environ.get("XDG_CACHE_HOME")) else []
    with suppress(RuntimeError):
        folders.append(Path.home() / ".cache")
    for folder in (folder / "mini_chat_gpt" for folder in folders):
        existing = next(part for part in (folder, *folder.parents) if os.path.lexists(part) or part == part.parent)
        if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.gettempdir()) / f"mini_chat_gpt-{getattr(os, 'getuid', int)()}"

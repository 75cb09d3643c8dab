"""The data folder: what lies in it, where that came from, and putting files into it without losing any.

    TinyStoriesInstruct-train.txt, -valid.txt     the records (also spelled TinyStories-Instruct-…, as on the hub)
    SOURCE.json                                   which data they are: public, sample, own or derived

A file that lies in the folder is never replaced. New ones are written under temporary names, all of them completely, and
then renamed; whoever looks sees none of them or whole ones.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, sha256_of, write_json
from mini_chat_gpt.tinystories.records import FILE_NAMES

SPLITS = ("train", "valid")
SOURCE_FILE = "SOURCE.json"
DRAFT = ".draft-"  # begins the name of a folder with files that are being written
HASHED_UP_TO = 1 << 28  # bytes; hashing a bigger file takes longer than its hash is worth here
SOURCE_WORDS = {
    "public": "the public data set TinyStories-Instruct",
    "sample": "the sample data set that comes with this project",
    "own": "your own files",
    "derived": "records derived from plain stories",
    "unknown": "files of unknown origin",
}
LICENCES = {
    "public": "CDLA-Sharing-1.0 (https://cdla.dev/sharing-1-0/)",
    "sample": "MIT, like the code that generates it",
    "own": "that of your own files",
    "derived": "that of the stories it was derived from",
}


def standard_name(split: str) -> str:
    """The name that this project gives the file of a split."""
    return FILE_NAMES[0].format(split=split)


def present_files(folder: Path) -> dict[str, Path]:
    """split -> its file, for the splits that are there; the spelling that training would take, if there are two."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for name in FILE_NAMES:
            if os.path.lexists(file := folder / name.format(split=split)):  # a dangling link is the user's too
                found.setdefault(split, file)
    return found


def double_files(folder: Path) -> list[Path]:
    """Files that nothing reads, because the same split lies there under the other spelling too."""
    used = present_files(folder).values()
    names = [name.format(split=split) for split in SPLITS for name in FILE_NAMES]
    return [file for name in names if (file := folder / name).exists() and file not in used]


def write_source(folder: Path, kind: str, files: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """Record that `files` of the folder (name -> what else is known of it, as its url) are `kind` data."""
    described = {}
    for name, known in files.items():
        size = (folder / name).stat().st_size
        described[name] = {"bytes": size, **known}
        if size <= HASHED_UP_TO:
            described[name].setdefault("sha256", sha256_of(folder / name))
    source = {
        "source": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": LICENCES[kind],
        **facts,
        "files": described,
    }
    write_json(folder / SOURCE_FILE, source)


def read_source(folder: Path) -> dict[str, Any]:
    """What SOURCE.json says, as far as it fits the files that are there; {"source": "unknown"} otherwise.

    Raises UserError if it isn't readable.
    """
    path = folder / SOURCE_FILE
    if not path.exists():
        return {"source": "unknown", "why": f"there is no {SOURCE_FILE}; the files were put here by hand"}
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
        claimed = {name: facts["bytes"] for name, facts in source["files"].items()}
        kind = str(source["source"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} can't be understood; remove it, the data themselves are not touched by that."
        ) from None
    for file in present_files(folder).values():
        if file.name not in claimed:
            return {"source": "unknown", "why": f"{SOURCE_FILE} says {kind}, but doesn't know {file.name}"}
        if file.stat().st_size != claimed[file.name]:
            return {"source": "unknown", "why": f"{SOURCE_FILE} says {kind}, but {file.name} has another size by now"}
    return dict(source)


def require_space(folder: Path, needed: int) -> int:
    """Free bytes where `folder` is or will be; raises UserError if that is less than `needed`."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder} needs {size_text(needed)} and its disk has {size_text(free)} left; free some space or choose "
            "another folder by --folder."
        )
    return free


def make_folder(folder: Path) -> None:
    """Create the folder; raises UserError if that can't be."""
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def drafts(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`; when the block ends well, its files get their place there, else they vanish.

    Only SOURCE.json, which comes last, replaces an older one. Raises UserError rather than replace anything else.
    """
    make_folder(folder)
    draft = folder / f"{DRAFT}{uuid.uuid4().hex[:8]}"
    with readable_disk_errors(folder):
        try:
            draft.mkdir()
            yield draft
            files = sorted(draft.iterdir(), key=lambda file: (file.name == SOURCE_FILE, file.name))
            for file in files:
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                if file.name != SOURCE_FILE and os.path.lexists(folder / file.name):
                    raise UserError(
                        f"{folder / file.name} is there already and is not replaced; name another --folder."
                    )
            for file in files:
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def is_untouched_sample(folder: Path) -> bool:
    """Whether the folder's data are the sample, byte for byte as it was written."""
    source = read_source(folder)
    return source["source"] == "sample" and all(
        sha256_of(file) == source["files"][file.name].get("sha256") for file in present_files(folder).values()
    )


def remove_sample(folder: Path) -> None:
    """Delete the sample, which can be written again at any time. The caller has made sure that it is one."""
    with readable_disk_errors(folder):
        for name in read_source(folder)["files"]:
            (folder / name).unlink(missing_ok=True)
            (folder / f"{name}.index.npz").unlink(missing_ok=True)
        (folder / SOURCE_FILE).unlink()


def size_text(size: float | None) -> str:
    """2660000000 -> "2.66 GB"."""
    if size is None:
        return "unknown size"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"

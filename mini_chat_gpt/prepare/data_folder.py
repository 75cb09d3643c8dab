"""The data folder: which files it has, where they came from, and adding files without losing any.

    TinyStoriesInstruct-train.txt, -valid.txt     the records (also spelled TinyStories-Instruct-…, as on the hub)
    SOURCE.json                                   the kind of data: public, sample, own or derived

An existing data file is never replaced. New files are written completely under temporary names and then renamed, so other
processes see either none of them or complete ones.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, temporary_name, write_json
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.common.manifest import sha256_of
from mini_chat_gpt.tinystories.records import FILE_NAMES

SPLITS = ("train", "valid")
SOURCE_FILE = "SOURCE.json"
MAX_HASHED_SIZE = 1 << 28  # bytes; hashing larger files takes too long
SOURCE_DESCRIPTIONS = {
    "public": "the public data set TinyStories-Instruct",
    "sample": "the sample data set that comes with this project",
    "own": "your own files",
    "derived": "labeled plain stories",
    "unknown": "files of unknown origin",
}
LICENSES = {
    "public": "CDLA-Sharing-1.0 (https://cdla.dev/sharing-1-0/)",
    "sample": "MIT, like the code that generates it",
    "own": "that of your own files",
    "derived": "that of the original stories",
}


def command_for(folder: Path) -> str:
    """The command that prepares this folder."""
    return "mini-chat-gpt prepare" + ("" if folder == Path("TinyStories") else f" --folder {folder}")


def standard_name(split: str) -> str:
    """The file name of a split."""
    return FILE_NAMES[0].format(split=split)


def present_files(folder: Path) -> dict[str, Path]:
    """Map each existing split to its file. If there are two spellings, it is the one that training uses."""
    return {split: files[0] for split in SPLITS if (files := spellings(folder, split))}


def spellings(folder: Path, split: str) -> list[Path]:
    """The files of a split; all but the first are never read."""
    files = [folder / name.format(split=split) for name in FILE_NAMES]
    return [file for file in files if os.path.lexists(file)]  # a dangling link is the user's, too


def write_source(folder: Path, kind: str, files: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Write SOURCE.json for `files` (name -> further entries such as its url) of the given kind of data."""
    entries = {name: {"bytes": (folder / name).stat().st_size, **details} for name, details in files.items()}
    for name, entry in entries.items():
        if entry["bytes"] <= MAX_HASHED_SIZE:
            entry.setdefault("sha256", sha256_of(folder / name))
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    source = {"source": kind, "created": created, "license": LICENSES[kind], **more, "files": entries}
    write_json(folder / SOURCE_FILE, source)


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise ValueError("is not the name of a file in this folder")
    return name


class _SourceEntry(JSONRecord, extra="allow"):
    bytes: int  # the other fields say where the file came from


class _SourceOptions(JSONRecord, extra="allow"):
    splits: tuple[str, ...] = ()


class _Source(JSONRecord, extra="allow"):
    """The structure of SOURCE.json."""

    source: Literal["public", "sample", "own", "derived"]
    files: dict[Annotated[str, AfterValidator(_plain_name)], _SourceEntry]  # some commands delete these files
    options: _SourceOptions = _SourceOptions()


def read_source(folder: Path) -> dict[str, Any]:
    """Return the contents of SOURCE.json if it matches the existing files, else {"source": "unknown", "why": reason}.

    Raises UserError if it can't be read.
    """
    path = folder / SOURCE_FILE
    if not path.exists():
        return {"source": "unknown", "why": f"there is no {SOURCE_FILE}; the files were copied here manually"}
    source = read_json(path, _Source, "delete it (the data files don't need it)")
    kind = source.source
    for file in present_files(folder).values():
        if file.name not in source.files:
            return {"source": "unknown", "why": f"{SOURCE_FILE} says {kind}, but does not list {file.name}"}
        if file.stat().st_size != source.files[file.name].bytes:
            return {"source": "unknown", "why": f"{SOURCE_FILE} says {kind}, but {file.name} has a different size"}
    return source.model_dump(exclude_unset=True)


@contextmanager
def drafts(folder: Path, replace_sample: bool = False) -> Iterator[Path]:
    """Yield a temporary folder in `folder`. On success its files are moved to `folder`, on an error they are deleted.

    SOURCE.json is moved last and replaces an older one. Raises UserError if any other file exists already. `replace_sample`
    deletes the sample, for which the caller must have checked, before the files are moved.
    """
    draft = temporary_name(folder / "draft")
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            draft.mkdir()
            yield draft
            if replace_sample:
                remove_sample(folder)
            files = sorted(draft.iterdir(), key=lambda file: (file.name == SOURCE_FILE, file.name))
            for file in files:
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                if file.name != SOURCE_FILE and os.path.lexists(folder / file.name):
                    raise UserError(
                        f"{folder / file.name} exists already and is not replaced; choose another --folder."
                    )
            for file in files:
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def is_untouched_sample(folder: Path) -> bool:
    """Whether the folder has the sample data set, unchanged."""
    source = read_source(folder)
    return source["source"] == "sample" and all(
        sha256_of(file) == source["files"][file.name].get("sha256") for file in present_files(folder).values()
    )


def remove_sample(folder: Path) -> None:
    """Delete the sample, which can be written again at any time. The caller must check that it is the sample."""
    with readable_disk_errors(folder):
        for name in read_source(folder)["files"]:
            (folder / name).unlink(missing_ok=True)
            (folder / f"{name}.index.npz").unlink(missing_ok=True)
        (folder / SOURCE_FILE).unlink()

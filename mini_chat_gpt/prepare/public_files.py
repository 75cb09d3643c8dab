"""The public data set TinyStories-Instruct: its two files on the Hugging Face hub, or at a web address that has copies of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from mini_chat_gpt.common import hub
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors
from mini_chat_gpt.common.hub_names import HubName
from mini_chat_gpt.common.signals import StoppedBySignal
from mini_chat_gpt.common.terminal import format_size, print_line
from mini_chat_gpt.common.writable import require_space
from mini_chat_gpt.prepare.data_folder import (
    SOURCE_DESCRIPTIONS,
    SPLITS,
    present_files,
    read_source,
    remove_sample,
    standard_name,
    write_source,
)
from mini_chat_gpt.prepare.download import describe, download
from mini_chat_gpt.tinystories.records import FILE_NAMES

REPOSITORY = HubName("dataset", "roneneldan/TinyStoriesInstruct")


class PublicFile(Protocol):
    """The file of one split, which the server has."""

    size: int | None
    shown: str
    """Where it is, for the terminal."""

    def partial(self, folder: Path) -> Path: ...  # where its data are collected until it is complete
    def fetch(self, folder: Path, out: Console) -> Path: ...  # the complete file in `folder`; resumes
    def source(self) -> dict[str, Any]: ...  # its entry in SOURCE.json


def public_file(split: str, url: str | None) -> PublicFile:
    """The file of a split ("train" or "valid"). Raises NoConnection or UserError if the server doesn't have it."""
    return _OnHub(split) if url is None else _AtAddress(split, url)


def unfinished(folder: Path) -> dict[str, list[Path]]:
    """What interrupted downloads have left in a data folder, by split."""
    left = {
        split: [*folder.glob(_folder_of(split)), *sorted(folder.glob(f"{standard_name(split)}.*part"))]
        for split in SPLITS
    }
    return {split: paths for split, paths in left.items() if paths}


def to_download(folder: Path, split: str | None, replacing: bool) -> list[str]:
    """The splits that are to be downloaded into a folder, the small one first. `replacing`: it has a sample, which is deleted."""
    present = {} if replacing else present_files(folder)
    source = read_source(folder) if present else {}
    if split is None and present:
        wanted = {*source.get("options", {}).get("splits", ())} if source["source"] == "public" else set()
        requested = [name for name in SPLITS if name in wanted or name in unfinished(folder)]
    else:
        requested = list(SPLITS) if split in (None, "both") else [str(split)]
    missing = [name for name in requested if name not in present]
    if missing and present and source["source"] not in ("public", "unknown"):
        raise UserError(
            f"{folder} has {SOURCE_DESCRIPTIONS[source['source']]}, which can't be mixed with the public files; choose another "
            "folder with --folder" + (", or add --replace-sample." if source["source"] == "sample" else ".")
        )
    return sorted(missing, reverse=True)


def _folder_of(split: str) -> str:
    return f".download-{split}"


def download_files(folder: Path, splits: list[str], url: str | None, replacing: bool, out: Console) -> None:
    """Show the sizes, then download these splits. `replacing`: the folder has a sample, which is deleted before."""
    files = {split: public_file(split, url) for split in splits}
    present = {split: size_of(file.partial(folder)) for split, file in files.items()}
    free = require_space(folder, sum((file.size or 0) - present[split] for split, file in files.items()))
    for split, file in files.items():
        partial = f", {format_size(present[split])} of it downloaded already" if present[split] else ""
        print_line(out, f"{split}: {format_size(file.size)} from {file.shown}{partial}")
    print_line(out, f"to {folder}, with {format_size(free)} free")
    if replacing:
        remove_sample(folder)
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    entries = read_source(folder).get("files", {}) if present_files(folder) else {}
    for file in files.values():
        target = _fetch(file, folder, out)
        print_line(out, f"{target.name}: complete, {format_size(target.stat().st_size)}")
        entries[target.name] = file.source()
        write_source(folder, "public", entries, options={"splits": sorted({*splits, *present_files(folder)})})


def _fetch(file: PublicFile, folder: Path, out: Console) -> Path:
    try:
        return file.fetch(folder, out)
    except (KeyboardInterrupt, StoppedBySignal):
        partial = file.partial(folder)
        kept = f"{format_size(size_of(partial))} are kept in {partial}"
        print_line(out, f"Stopped. {kept}; the same command resumes the download.")
        raise


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


class _OnHub:
    def __init__(self, split: str) -> None:
        self.split, self.name = split, FILE_NAMES[1].format(split=split)
        self.listing = hub.list_files(REPOSITORY)
        if self.name not in self.listing.sizes:
            raise UserError(f"{REPOSITORY} has no {self.name} any more; name a copy of it with --url.")
        self.size = self.listing.sizes[self.name]
        self.shown = f"{REPOSITORY}/{self.name}, commit {self.listing.commit[:12]}"

    def partial(self, folder: Path) -> Path:
        return folder / _folder_of(self.split)

    def fetch(self, folder: Path, out: Console) -> Path:
        target, partial = folder / standard_name(self.split), self.partial(folder)
        path = hub.download(REPOSITORY, self.listing, self.name, partial)
        with readable_disk_errors(target):
            os.replace(path, target)
        shutil.rmtree(partial, ignore_errors=True)  # the library's notes about the download
        return target

    def source(self) -> dict[str, Any]:
        hashed = {"sha256": self.listing.hashes[self.name]} if self.name in self.listing.hashes else {}
        return {"repository": REPOSITORY.repo, "commit": self.listing.commit, "file": self.name, **hashed}


class _AtAddress:
    def __init__(self, split: str, url: str) -> None:
        self.split, self.remote = split, describe(f"{url.rstrip('/')}/{FILE_NAMES[1].format(split=split)}")
        self.size, self.shown = self.remote.size, self.remote.url

    def partial(self, folder: Path) -> Path:
        return self.remote.part(folder / standard_name(self.split))

    def fetch(self, folder: Path, out: Console) -> Path:
        target = folder / standard_name(self.split)
        download(self.remote, target, out)
        return target

    def source(self) -> dict[str, Any]:
        return {"url": self.remote.url, "etag": self.remote.version}

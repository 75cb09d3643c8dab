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
from mini_chat_gpt.prepare.data_folder import SPLITS, standard_name
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


def _folder_of(split: str) -> str:
    return f".download-{split}"


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

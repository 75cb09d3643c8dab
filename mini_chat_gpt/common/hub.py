"""Files of the Hugging Face hub, which `huggingface_hub` fetches into its cache. Their names: `hub_names.py`.

Cache, token, offline switch and address are the library's (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT); its telemetry is off.
Files are fetched of one commit, smallest first, and an interrupted download is resumed. When all are there, the commit of
the revision is recorded in the cache, so that the same name works without a network.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.common.hub_errors import NoConnection, cache_of, readable_hub_errors, why_unreachable
from mini_chat_gpt.common.hub_names import COMMIT, HubName
from mini_chat_gpt.common.manifest import sha256_of
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.common.writable import require_space

MAIN = "main"
"""The branch that a name without a revision stands for."""


@dataclass(frozen=True)
class Fetched:
    """Files of one commit in the library's cache."""

    folder: Path
    files: tuple[str, ...]
    """Relative to the folder."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    sizes: Mapping[str, int | None]  # name -> bytes
    hashes: Mapping[str, str]  # name -> SHA-256, of large files only


Choose = Callable[[Sequence[str]], Sequence[str]]
"""Returns the needed ones of the names of all files. Raises UserError if they are not what is looked for."""


@lru_cache(maxsize=64)
def fetch(name: HubName, choose: Choose) -> Fetched:
    """The files that `choose` returns, in a folder of the library's cache; those that are missing there are fetched.

    Without a network the newest version that is in the cache is used, with a line that says so. Raises UserError.
    """
    try:
        listing = list_files(name)
    except NoConnection as error:
        return _in_cache(name, choose, error)
    files = tuple(sorted(choose(list(listing.sizes)), key=lambda file: listing.sizes[file] or 0))
    folder = cache_of(name) / "snapshots" / listing.commit
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        _announce(name, listing.commit, {file: listing.sizes[file] for file in missing})
    for file in missing:
        download(name, listing, file)
    if not COMMIT.fullmatch(name.revision or ""):
        atomic_write_text(cache_of(name) / "refs" / (name.revision or MAIN), listing.commit)
    return Fetched(folder, files)


def list_files(name: HubName) -> Listing:
    """The newest commit of the name's revision; requested once. Raises NoConnection, or UserError if the hub refuses."""
    listing = _listing(name)
    if isinstance(listing, str):
        raise NoConnection(f"{name.no_path}{name} can't be fetched: {listing}.")
    return listing


@lru_cache(maxsize=64)
def _listing(name: HubName) -> Listing | str:
    """The listing, or why the hub can't be reached."""
    with readable_hub_errors(name):
        try:
            api = _library().HfApi()
            revision = name.revision or MAIN
            info = api.repo_info(name.repo, revision=revision, repo_type=name.kind, files_metadata=True, timeout=20)
        except Exception as error:
            if (reason := why_unreachable(error)) is None:
                raise
            return reason
        files = [one for one in info.siblings or () if _is_relative(one.rfilename)]
        hashes = {one.rfilename: one.lfs.sha256 for one in files if one.lfs}
        return Listing(info.sha, {one.rfilename: one.size for one in files}, hashes)


def download(name: HubName, listing: Listing, file: str, folder: Path | None = None) -> Path:
    """Fetch one file of a listing into the library's cache, or into a folder. Raises UserError.

    A large file is fetched here, because the library forgets what it has received when a process ends.
    """
    library, sha256 = _library(), listing.hashes.get(file)
    with readable_hub_errors(name, file):
        if sha256 is not None:
            cache = cache_of(name)
            complete = cache / "blobs" / sha256 if folder is None else folder / file
            locks = cache.parent / ".locks" / cache.name if folder is None else folder  # the library's own place
            _resume(name, listing, file, complete, locks / f"{complete.name}.lock")
            if folder is not None:
                return complete
        # For a large file it only makes the link from its name to its content.
        options = {
            "repo_type": name.kind,
            "revision": listing.commit,
            "local_dir": folder,
            "tqdm_class": _progress(file),
        }
        return Path(library.hf_hub_download(name.repo, file, **options))


def _resume(name: HubName, listing: Listing, file: str, complete: Path, lock: Path) -> None:
    """Fetch what is missing of a file, compare its hash, and give it its name `complete`."""
    from huggingface_hub.file_download import hf_hub_url, http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    partial = complete.with_name(f"{complete.name}.partial")
    for folder in (complete.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the processes of torchrun wait for the first one
        if complete.exists():
            return
        url = hf_hub_url(name.repo, file, repo_type=name.kind, revision=listing.commit)
        size, bar = listing.sizes[file], _progress(file)
        with open(partial, "ab") as content:
            begin = content.tell()
            http_get(url, content, resume_size=begin, headers=build_hf_headers(), expected_size=size, tqdm_class=bar)
        if sha256_of(partial) != listing.hashes[file]:
            partial.unlink()
            raise UserError(
                f"{name}: {file} was damaged in transfer (another SHA-256 than the hub states); run the command again."
            )
        os.replace(partial, complete)


# The library


def _library() -> Any:
    """`huggingface_hub`, imported when it is needed, without telemetry."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True  # if another library has imported it before
    return huggingface_hub


def _in_cache(name: HubName, choose: Choose, why: NoConnection) -> Fetched:
    """What the library's cache has of a repository whose listing is not available. Raises UserError if it has nothing."""
    cache, commit = cache_of(name), name.revision or MAIN
    if not COMMIT.fullmatch(commit):
        try:
            commit = (cache / "refs" / commit).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            commit = ""
    folder = cache / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        remedy = "unset it" if "OFFLINE" in str(why) else "try again when there is a network"
        raise UserError(
            f"{why} It is not in the cache {cache.parent} either; {remedy}, or give a path of this machine."
        )
    present = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    try:
        files = tuple(choose(present))
    except UserError as error:
        raise UserError(f"{why} The copy in the cache is not complete: {error}") from None
    _say(f"{why} Using the copy in the cache, commit {commit[:12]}.")
    return Fetched(folder, files)


# What the user sees, and checks


def _announce(name: HubName, commit: str, sizes: Mapping[str, int | None]) -> None:
    """Say what will be fetched and where to. Raises UserError if the disk has too little space."""
    cache = cache_of(name).parent
    total = None if None in sizes.values() else sum(size or 0 for size in sizes.values())
    free = require_space(cache, total or 0, name, "set HF_HOME to a folder on another disk")
    files = f"{len(sizes)} files" if len(sizes) > 1 else next(iter(sizes))
    _say(f"{name}, commit {commit[:12]}: {files}, {format_size(total)}, to {cache} with {format_size(free)} free")


@lru_cache(maxsize=64)
def _say(line: str) -> None:
    """Print a line on standard error, once, and under torchrun by one process."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _progress(file: str) -> Any:
    """The library's progress bar; without a terminal it prints a line every ten seconds."""
    from huggingface_hub.utils import tqdm

    class Progress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options |= {"desc": file, "leave": False, "disable": os.environ.get("RANK", "0") != "0"}
            if not sys.stderr.isatty():
                shown = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}B, {rate_fmt}, {remaining} left"
                options |= {"mininterval": 10.0, "bar_format": shown}
            super().__init__(*arguments, **options)

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            if sys.stderr.isatty():
                return tqdm.status_printer(file)
            return lambda line: None if ": 0 %" in line or not line.strip() else print(line, file=file, flush=True)

    return Progress


def _is_relative(file: str) -> bool:
    return not file.startswith(("/", "\\")) and ".." not in re.split(r"[/\\]", file)

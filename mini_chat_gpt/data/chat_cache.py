"""Read chat files and render their chats: few chats in memory at each start, many once into a cache next to the first file.

Rendering 16 MB of text takes seconds, and no file is written for it. What is larger continues in a folder `.chats-…`, whose name depends on
everything that the result depends on: the files, the tokenizer and its chat format, the settings, and this code. Later starts, and
the other processes of a machine, map its files into memory. See `cached_folder` for damage, other places and killed processes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from rich.console import Console

import mini_chat_gpt
from mini_chat_gpt.common.cached_folder import CachedFolder, remove_folder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.json_files import read_json
from mini_chat_gpt.common.terminal import format_duration
from mini_chat_gpt.common.user_paths import nearest_path
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.chat_files import Conversation, Problem, listed, read_conversations, report
from mini_chat_gpt.data.chat_fitting import fit
from mini_chat_gpt.data.chat_notes import skipped_notes
from mini_chat_gpt.data.data_files import PACKINGS
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.data.rendered_chats import FILES, IDS, MAX_META, META, ChatWriter, Meta, RenderedChats, Source
from mini_chat_gpt.data.token_file import largest_id
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

IN_MEMORY = 8 * 2**20
"""Bytes of rendered chats from which on they are written to a folder. Their text has about twice as many; it takes seconds."""
_PREFIX = ".chats-"
_SECONDS_BETWEEN_REPORTS = 5
_MARKUP_OF_CHAT, _MARKUP_OF_MESSAGE = 20, 40  # about as many bytes of JSON are around a chat, and around a message


def render_files(
    chats: ChatsSection, data: DataSection, tokenizer: ChatTokenizer, console: Console | None = None
) -> RenderedChats:
    """The chats of `chats.files` and `chats.valid_files`, fitted into `data.seq_len`. Raises UserError for files that can't be used.

    All files are read, so that one error reports everything that is wrong with them.
    """
    paths = list(dict.fromkeys([*chats.files, *chats.valid_files]))
    files = [file for path in paths for file in chat_files(path).all]
    cached = _cached_folder(chats, data, tokenizer, paths, files, console)
    if (found := cached.find()) is not None:
        return found
    writer = ChatWriter(partial(fit, tokenizer=tokenizer, chats=chats, data=data), tokenizer.vocab_size, paths)
    writer.sources = [_identity(file) for file in files]
    added = _add_all(writer, chats, paths, files, console)
    for _ in added:
        if writer.n_bytes > IN_MEMORY:
            made = cached.make(lambda folder: _finish_in(folder, writer, added))
            _remove_outdated(made)
            return made
    rendered = writer.finish()
    assert rendered is not None  # as it is in memory
    return rendered


def render_conversations(
    conversations: Iterable[Conversation], tokenizer: ChatTokenizer, chats: ChatsSection, data: DataSection
) -> RenderedChats:
    """Conversations from anywhere, fitted into `data.seq_len`, in memory."""
    writer = ChatWriter(partial(fit, tokenizer=tokenizer, chats=chats, data=data), tokenizer.vocab_size, [])
    for conversation in conversations:
        writer.add(conversation)
    rendered = writer.finish()
    assert rendered is not None
    return rendered


def _finish_in(folder: Path, writer: ChatWriter, added: Iterator[None]) -> None:
    writer.move_to(folder)
    try:
        for _ in added:
            pass
        writer.finish()
    finally:
        writer.close()


def _add_all(
    writer: ChatWriter, chats: ChatsSection, paths: Sequence[str], files: Sequence[Path], console: Console | None
) -> Iterator[None]:
    """Read and render all chats, with a pause after each. Raises UserError for bad records, unless they are to be skipped."""
    progress = _Progress(files, console)
    problems, of_files = list[Problem](), list[str]()
    n_good = 0
    for conversation in read_conversations(paths, problems, chats.keys, of_files):
        n_good += 1
        if chats.skip_bad or not problems:  # otherwise the rest is read for its problems only
            writer.add(conversation)
            progress.add(conversation)
            yield
    if problems and not chats.skip_bad:
        raise UserError(report(problems, n_good))
    if not writer.n_chats:
        why = "\n  ".join([*([listed(problems)] if problems else []), *of_files])
        raise UserError(f"No record of {', '.join(paths)} can be trained on:\n  {why}")
    writer.notes = [*of_files, *skipped_notes(problems)]


class _Progress:
    """A line every few seconds: how many chats are rendered, how fast, and how long the rest will take."""

    def __init__(self, files: Sequence[Path], console: Console | None) -> None:
        self.console, self.name = console, files[0].name if len(files) == 1 else f"{len(files)} files"
        # The size of the text in a packed file is not known before its end.
        packed = any(file.suffix.lower() in (*PACKINGS, ".parquet", ".arrow") for file in files)
        self.total = None if packed else sum(file.stat().st_size for file in files if file.is_file())
        self.started = self.reported = time.monotonic()
        self.n_chats = self.n_bytes = 0

    def add(self, conversation: Conversation) -> None:
        self.n_chats += 1
        sizes = (
            len(message.content.encode("utf-8", "replace")) + _MARKUP_OF_MESSAGE for message in conversation.messages
        )
        self.n_bytes += _MARKUP_OF_CHAT + sum(sizes)
        now = time.monotonic()
        if self.console is None or now - self.reported < _SECONDS_BETWEEN_REPORTS:
            return
        self.reported = now
        rate = self.n_bytes / (now - self.started)
        left = ""
        if self.total is not None and self.n_bytes < self.total:
            left = f", about {format_duration((self.total - self.n_bytes) / rate)} left"
        self.console.print(f"Rendering {self.name}: {self.n_chats:,} chats, {rate / 1e6:.1f} MB/s{left}", markup=False)


# The cache


def _cached_folder(
    chats: ChatsSection,
    data: DataSection,
    tokenizer: ChatTokenizer,
    paths: Sequence[str],
    files: Sequence[Path],
    console: Console | None,
) -> CachedFolder[RenderedChats]:
    # The weights of the files, and which chats are held out, are decided later.
    settings = chats.model_dump(mode="json", exclude={"files", "valid_files", "valid_share", "stories"})
    key = {
        "code": _code_hash(),
        "tokenizer": tokenizer.fingerprint(),
        "format": None if tokenizer.chat_format is None else tokenizer.chat_format.entry(),
        "settings": [settings, data.seq_len, data.system_message],
        "files": [paths, [_identity(file).model_dump() for file in files]],
    }
    name = f"{_PREFIX}{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
    places = [user_cache() / name]
    if hub_name(paths[0], "dataset") is None:  # otherwise it is a folder of the hub's library
        places.insert(0, (files[0] if files[0].is_dir() else files[0].parent) / name)
    return CachedFolder(
        places,
        FILES,
        read=RenderedChats.open,
        check=lambda rendered: (
            f"{IDS} has ids that the tokenizer lacks" if largest_id(rendered.ids) >= tokenizer.vocab_size else None
        ),
        content=f"The rendered chats of {files[0].name}{' and others' if len(files) > 1 else ''} are",
        console=console,
    )


def _remove_outdated(made: RenderedChats) -> None:
    """Remove caches next to a new one whose files have changed since, so that nothing will use them again."""
    assert made.folder is not None
    current = {source.path: source for source in made.meta.sources}
    for folder in made.folder.parent.glob(f"{_PREFIX}*"):
        with suppress(UserError, OSError):
            sources = read_json(folder / META, Meta, "", max_bytes=MAX_META).sources
            if any(source != current.get(source.path, source) for source in sources):
                remove_folder(folder)


def _identity(file: Path) -> Source:
    """Changes whenever the file is written or replaced. Raises UserError if it is missing."""
    try:
        stat = file.stat()
    except OSError as error:
        hint = nearest_path(file) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{file} can't be read ({error.strerror or error}){hint or '; check the path.'}") from None
    return Source(path=str(file.resolve()), size=stat.st_size, time=stat.st_mtime_ns, inode=stat.st_ino)


@lru_cache
def _code_hash() -> str:
    """A hash of the modules that read and render chats, so that a changed program makes a new cache."""
    package = Path(mini_chat_gpt.__file__).parent
    digest = hashlib.sha256()
    for pattern in ("chat_*.py", "common/*.py", "data/*.py", "tokenizer/*.py"):
        for module in sorted(package.glob(pattern)):
            digest.update(module.read_bytes())
    return digest.hexdigest()

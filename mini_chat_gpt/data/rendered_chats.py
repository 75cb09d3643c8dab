"""Chats as token ids, with what a run must know about each of them: in memory, or memory-mapped from the files of a folder.

    ids.bin         the examples one after another, uint16 or uint32
    targets.bin     a bit for each id: whether it is a target
    examples.bin    an EXAMPLE for each example: a chat, or a piece of one
    chats.bin       a CHAT for each chat
    texts.bin       for each chat, where it is in its file, and why it is not used as it is
    meta.json       the type of the ids, the files, and notes about reading them

A million chats take a few megabytes of memory: their texts are read once, and nothing but these numbers is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from mini_chat_gpt.common.cached_folder import DamagedFolder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_fitting import FitResult
from mini_chat_gpt.data.chat_split import KEY, content_key, prompt_key

EXAMPLE = np.dtype([("end", "<u8"), ("n_trained", "<u4"), ("chat", "<u4")])
"""end: of its ids in ids.bin, where those of the next example begin. n_trained: number of targets. chat: number of its chat."""
CHAT = np.dtype(
    [
        ("file", "<u4"),  # number of its file in `Meta.paths`
        ("what", "u1"),  # index in WHAT
        ("has_reasoning", "u1"),
        ("held_out", "u1"),  # its file is one of a validation split
        ("content", KEY),
        ("question", KEY),
        ("n_tokens", "<u4"),  # of the whole chat; 0 if it can't be rendered
        ("n_words", "<u4"),  # of a chat that is too long
        ("n_replies", "<u4"),
        ("n_lost", "<u4"),
        ("n_examples", "<u4"),
        ("text_end", "<u8"),  # in texts.bin
    ]
)
WHAT = ("", "cut", "shortened", "dropped")
META = "meta.json"
MAX_META = 1 << 28
"""Bytes of meta.json: a folder can have many files."""
COLUMNS = {"targets.bin": np.dtype("u1"), "examples.bin": EXAMPLE, "chats.bin": CHAT, "texts.bin": np.dtype("u1")}
IDS = "ids.bin"
FILES = (IDS, *COLUMNS, META)
_TARGETS_AT_ONCE = 1 << 16


class Source(JSONRecord):
    """A file in the state in which it was read."""

    path: str
    size: int
    time: int  # of its last change, in nanoseconds
    inode: int


class Meta(JSONRecord):
    """The content of meta.json."""

    dtype: Literal["uint16", "uint32"]
    paths: list[str]
    notes: list[str]  # what the user should know about the reading of the files
    sources: list[Source]


class RenderedChats:
    """Rendered chats; `ChatWriter` makes them. Chats and examples are numbered in the order of the files."""

    def __init__(self, columns: dict[str, np.ndarray], meta: Meta, folder: Path | None = None) -> None:
        self.meta, self.folder = meta, folder
        self.ids, self._targets = columns[IDS], columns["targets.bin"]
        self.examples, self.chats, self._texts = columns["examples.bin"], columns["chats.bin"], columns["texts.bin"]

    @staticmethod
    def open(folder: Path) -> RenderedChats:
        """Open the files of a folder. Raises DamagedFolder if they don't fit together."""
        try:
            meta = read_json(folder / META, Meta, "", max_bytes=MAX_META)
            types = {IDS: np.dtype(meta.dtype), **COLUMNS}
            columns = {name: _mapped(folder / name, dtype) for name, dtype in types.items()}
        except (UserError, OSError, ValueError) as error:
            raise DamagedFolder(folder, f"its files can't be read ({type(error).__name__})") from None
        opened = RenderedChats(columns, meta, folder)
        if problem := opened._problem():
            raise DamagedFolder(folder, problem)
        return opened

    def _problem(self) -> str | None:
        n_ids = int(self.examples["end"][-1]) if len(self.examples) else 0
        n_bytes = int(self.chats["text_end"][-1]) if len(self.chats) else 0
        fits = len(self.ids) == n_ids and len(self._targets) == -(-n_ids // 8) and len(self._texts) == n_bytes
        return None if fits else "its files don't fit together"

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker process that was not forked: open the files there instead of sending their content."""
        if self.folder is not None:
            return RenderedChats.open, (self.folder,)
        columns = {IDS: self.ids, "targets.bin": self._targets, "examples.bin": self.examples}
        return RenderedChats, (columns | {"chats.bin": self.chats, "texts.bin": self._texts}, self.meta)

    def example(self, number: int, kind: str) -> Example:
        """Example `number`."""
        begin = int(self.examples[number - 1]["end"]) if number else 0
        _, _, chat = record = self.examples[number].item()
        end = record[0]
        targets = np.unpackbits(self._targets[begin // 8 : -(-end // 8)])[begin % 8 :][: end - begin]
        place = f"{self.path(chat)}, {self.text(chat)[0]}"
        return Example(self.ids[begin:end].astype(np.int32), targets.astype(bool), 1.0, kind, origin=place)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) number of tokens of examples."""
        ends = self.examples["end"]
        begins = np.where(numbers > 0, ends[np.maximum(numbers, 1) - 1], 0)  # numbers may be unsigned
        return (ends[numbers] - begins).astype(np.uint32)

    def path(self, chat: int) -> str:
        """The file of a chat, as the config names it."""
        return self.meta.paths[int(self.chats[chat]["file"])]

    def text(self, chat: int) -> tuple[str, str]:
        """(place of a chat in its file, why it is not used as it is)."""
        begin = int(self.chats[chat - 1]["text_end"]) if chat else 0
        data = self._texts[begin : int(self.chats[chat]["text_end"])].tobytes()
        place, _, why = data.decode("utf-8", "surrogatepass").partition("\0")
        return place, why


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError("incomplete")
    # As a plain array, because items of a memmap are slow. An empty file can't be mapped.
    return np.memmap(path, dtype, mode="r").view(np.ndarray) if size else np.zeros(0, dtype)


class ChatWriter:
    """Renders chats one by one, at first in memory; `move_to` moves everything to the files of a folder.

    fit     makes a chat's pieces; see `chat_fitting`
    paths   the files as the config names them
    """

    def __init__(self, fit: Callable[[Conversation], FitResult], vocab_size: int, paths: Sequence[str]) -> None:
        self._fit, self._paths = fit, {path: number for number, path in enumerate(paths)}
        self._dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 2**16 else "uint32"
        self._files: dict[str, IO[bytes]] = {name: BytesIO() for name in (IDS, *COLUMNS)}
        self._targets: list[np.ndarray] = []  # not yet written
        self.n_chats = self.n_ids = self.n_text = 0
        self.sources: list[Source] = []
        self.notes: list[str] = []
        self.folder: Path | None = None

    def add(self, conversation: Conversation) -> None:
        """Render the next conversation."""
        fitted = self._fit(conversation)
        for piece in fitted.pieces:
            ids, targets = np.array(piece.ids, dtype=self._dtype), np.zeros(len(piece.ids), dtype=bool)
            for begin, end in piece.reply_spans:
                targets[begin:end] = True
            self._files[IDS].write(ids.tobytes())
            self.n_ids += len(ids)
            self._targets.append(targets)
            example = (self.n_ids, int(targets[1:].sum()), self.n_chats)
            self._files["examples.bin"].write(np.array(example, EXAMPLE).tobytes())
        if sum(map(len, self._targets)) >= _TARGETS_AT_ONCE:
            self._write_targets(multiple=8)
        text = f"{conversation.place}\0{fitted.why}".encode("utf-8", "surrogatepass")
        self._files["texts.bin"].write(text)
        self.n_text += len(text)
        texts = [message.content for message in conversation.messages]
        chat = (
            self._paths.setdefault(conversation.path, len(self._paths)),
            *(WHAT.index(fitted.what), fitted.has_reasoning, conversation.held_out),
            *(content_key(conversation), prompt_key(conversation), fitted.n_tokens),
            sum(len(text.split()) for text in texts) if fitted.why else 0,
            *(fitted.n_replies, fitted.n_lost, len(fitted.pieces), self.n_text),
        )
        self._files["chats.bin"].write(np.array(chat, CHAT).tobytes())
        self.n_chats += 1

    @property
    def n_bytes(self) -> int:
        """Size of what has been written."""
        return sum(file.tell() for file in self._files.values())

    def move_to(self, folder: Path) -> None:
        """Continue in the files of a folder."""
        for name, file in self._files.items():
            assert isinstance(file, BytesIO)
            self._files[name] = open(folder / name, "wb")
            self._files[name].write(file.getbuffer())
        self.folder = folder

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def finish(self) -> RenderedChats | None:
        """Write the rest. Returns the chats if they are in memory."""
        self._write_targets(multiple=1)
        meta = Meta(dtype=self._dtype, paths=[*self._paths], notes=self.notes, sources=self.sources)
        if self.folder is not None:
            self.close()
            write_json(self.folder / META, json.loads(meta.model_dump_json()))
            return None
        types = {IDS: np.dtype(self._dtype), **COLUMNS}
        columns = {name: np.frombuffer(self._files[name].getbuffer(), dtype) for name, dtype in types.items()}  # type: ignore[attr-defined]
        return RenderedChats(columns, meta)

    def _write_targets(self, multiple: int) -> None:
        if not self._targets:
            return
        targets = np.concatenate(self._targets)
        n = len(targets) // multiple * multiple
        self._files["targets.bin"].write(np.packbits(targets[:n]).tobytes())
        self._targets = [targets[n:]]

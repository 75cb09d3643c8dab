"""Mutants of files with records or texts: Parquet, Arrow, a folder of `datasets`, plain and packed text."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from fuzz.mutations import BYTES, Change, elsewhere
from fuzz.oracle import Target
from pyarrow import feather, ipc, parquet

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.data.record_files import read_records
from mini_chat_gpt.tinystories.documents import read_documents

SEPARATOR = "\n<|endoftext|>\n"
STORIES = [f"Story {n}: “Once” upon a time, there was a cat. 😀\nIt ran {n} times." for n in range(40)]


def rows() -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": f"Hi {n} 😀"}, {"role": "assistant", "content": "x" * (n % 50)}],
            "n": n,
            "kind": "abc",
            "score": n / 8,
        }
        for n in range(300)
    ]


# The program's readers


def records(path: str) -> Callable[[], Any]:
    """What the program reads from a file or a folder; records that can't be used are texts."""

    def read() -> Any:
        files = chat_files(path)
        found = [
            [files.place(file, place), record if isinstance(record, dict) else str(record)]
            for file in files.all
            for place, record in read_records(file)
        ]
        if not found:
            raise UserError(f"{path} is empty.")
        return found

    return read


def documents(path: str, way: str = "auto") -> Callable[[], Any]:
    def read() -> Any:
        if not (found := list(read_documents(Path(path), way))):
            raise UserError(f"{path} is empty.")
        return found

    return read


# The naive readers


def numbered(table: Any) -> Any:
    """The rows of a table without the fields that are null."""
    table.validate(full=True)  # without it a damaged file ends the process

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if item is not None}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return [[f"record {number}", plain(row)] for number, row in enumerate(table.to_pylist(), 1)]


def naive_parquet() -> Any:
    return numbered(parquet.read_table("x.parquet", use_threads=False))


def naive_file() -> Any:
    return numbered(ipc.open_file(pyarrow.BufferReader(Path("x.arrow").read_bytes())).read_all())


def naive_stream(path: str = "x.arrow") -> Any:
    data = Path(path).read_bytes()
    if data.startswith(b"{"):  # the state.json, in its place
        return [["line 1", json.loads(data)]]
    return numbered(ipc.open_stream(pyarrow.BufferReader(data)).read_all())


def naive_folder() -> Any:
    parts = {"train": naive_stream("data/train/data-00000-of-00001.arrow")}
    parts["test"] = naive_stream("data/test/data-00000-of-00001.arrow")
    return [
        [f"{split}/data-00000-of-00001.arrow, {place}", row] for split, part in parts.items() for place, row in part
    ]


def naive_text(path: str, unpack: Callable[[bytes], bytes], separator: str) -> Callable[[], Any]:
    def read() -> Any:
        data = Path(path).read_bytes()
        if data.startswith((b"\x1f\x8b", b"BZh")):  # otherwise the mutant is plain text, whatever its name says
            data = unpack(data)
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16") if wide else data.decode("utf-8-sig", errors="replace")
        found = [part.replace("\r\n", "\n").removeprefix("\ufeff").strip() for part in text.split(separator)]
        return [part for part in found if part]

    return read


# Fixtures


def stream(table: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(path), "wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def targets(folder: Path) -> list[Target]:
    table = pyarrow.Table.from_pylist(rows())
    written: dict[str, Callable[[Path], Any]] = {
        "Parquet": lambda path: parquet.write_table(table, path / "x.parquet"),
        "Parquet, plain": lambda path: parquet.write_table(
            table, path / "x.parquet", compression="none", use_dictionary=False, row_group_size=90
        ),
        "Parquet, checksums": lambda path: parquet.write_table(
            table, path / "x.parquet", compression="zstd", write_page_checksum=True
        ),
        "Arrow": lambda path: feather.write_feather(
            table, str(path / "x.arrow"), compression="uncompressed", chunksize=90
        ),
        "Arrow, lz4": lambda path: feather.write_feather(table, str(path / "x.arrow"), compression="lz4"),
        "Arrow stream": lambda path: stream(table, path / "x.arrow"),
    }
    changes: dict[str, tuple[Change, ...]] = dict.fromkeys((".parquet", ".arrow", ".gz", ".bz2"), (*BYTES, elsewhere))
    found = []
    for name, write in written.items():
        fixture = folder / name.replace(", ", "-")
        fixture.mkdir()
        write(fixture)
        file = "x.parquet" if name.startswith("Parquet") else "x.arrow"
        naive = naive_parquet if file == "x.parquet" else naive_stream if name == "Arrow stream" else naive_file
        found.append(Target(name, fixture, [file], records(file), naive, changes=changes, weight=3))
    saved = folder / "saved" / "data"
    for split, part in (("train", table.slice(0, 250)), ("test", table.slice(250))):
        stream(part, saved / split / "data-00000-of-00001.arrow")
        (saved / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
    part = "data/*/*.arrow"
    found.append(
        Target("saved data set", saved.parent, [part], records("data"), naive_folder, changes=changes, weight=2)
    )
    texts = folder / "texts"
    texts.mkdir()
    content = SEPARATOR.join(STORIES).encode()
    for name, pack, unpack in (
        ("x.txt", bytes, bytes),
        ("x.txt.gz", gzip.compress, gzip.decompress),
        ("x.txt.bz2", bz2.compress, bz2.decompress),
    ):
        (texts / name).write_bytes(pack(content))
        naive_reader = naive_text(name, unpack, SEPARATOR.strip())
        found.append(Target(name, texts, [name], documents(name), naive_reader, changes=changes, weight=2))
    whole = naive_text("x.txt", bytes, "no such text")
    found.append(Target("one document", texts, ["x.txt"], documents("x.txt", "files"), whole, changes=changes))
    return found

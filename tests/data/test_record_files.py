"""Files as people have them: every packing, encoding and form gives the same records; what holds none is one sentence."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data import json_records
from mini_chat_gpt.data.file_kinds import encoding_of
from mini_chat_gpt.data.json_records import MAX_LINE, BadRecord
from mini_chat_gpt.data.record_files import holds_records, read_records

RECORDS: list[dict[str, Any]] = [
    {"instruction": "Say “hi”, please", "input": "", "output": "Hi!\nHello, 世界 😀"},
    {"instruction": 'Quote: "a, b"', "input": "x\ty", "output": "ok"},
    {"instruction": "3", "input": "no", "output": "null"},
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False)


def table(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["instruction", "input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return out.getvalue()


TEXTS = {
    "JSON Lines": LINES,
    "array": ARRAY,
    "indented array": json.dumps(RECORDS, indent=2),
    "objects in a row": "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    "blank lines first": "\n \n" + LINES,
    "CSV": table(","),
    "CSV with semicolons": table(";"),
    "TSV": table("\t"),
    "YAML": yaml.safe_dump(RECORDS, allow_unicode=True),
    "YAML with a mark": "---\n" + yaml.safe_dump(RECORDS, sort_keys=False),
}


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/", "")
        archive.writestr("data/chats.any", data)
        archive.writestr("__MACOSX/data/._chats.any", b"x")
    return out.getvalue()


def zstandard(data: bytes) -> bytes:
    library = pytest.importorskip("zstandard")
    half = len(data) // 2  # two frames, as parallel tools write them, with the checksum that the command zstd adds
    compressor = library.ZstdCompressor(write_checksum=True)
    return bytes(compressor.compress(data[:half]) + compressor.compress(data[half:]))


PACKINGS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "Zstandard": zstandard,
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def read(path: Path) -> list[Any]:
    return [record for _, record in read_records(path)]


def written(folder: Path, data: bytes | str) -> Path:
    path = folder / "data.bin"  # the name says nothing
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("form", TEXTS)
def test_every_form_in_every_packing_gives_the_same_records(tmp_path: Path, form: str, packing: str) -> None:
    assert read(written(tmp_path, PACKINGS[packing](TEXTS[form].encode()))) == RECORDS


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", TEXTS)
def test_every_form_in_every_encoding_gives_the_same_records(tmp_path: Path, form: str, encoding: str) -> None:
    assert read(written(tmp_path, TEXTS[form].encode(encoding))) == RECORDS


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=8), st.sampled_from(ENCODINGS))
def test_the_encoding_of_text_is_recognized(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert data.decode(encoding_of(data)).removeprefix("\ufeff") == text


records = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=8), records, max_size=4), max_size=8),
    st.sampled_from([None, 1]),
    st.integers(1, 50),
)
def test_an_array_is_read_in_pieces_of_any_size(
    tmp_path_factory: Any, values: list[Any], indent: Any, piece: int
) -> None:
    path = tmp_path_factory.mktemp("a") / "data"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    before, json_records._PIECE = json_records._PIECE, piece
    try:
        assert read(path) == values
    finally:
        json_records._PIECE = before


def test_records_of_an_array_have_their_number(tmp_path: Path) -> None:
    one_line = [place for place, _ in read_records(written(tmp_path, ARRAY))]
    assert one_line == ["record 1", "record 2", "record 3"]
    lines = [place for place, _ in read_records(written(tmp_path, json.dumps(RECORDS, indent=0)))]
    assert lines == ["record 1, line 2", "record 2, line 7", "record 3, line 12"]


def test_rows_of_a_table_have_number_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, 'Question,Answer\n"a\nb",c\n\nd,e,f\ng,h\n')
    assert [(place, record if isinstance(record, dict) else str(record)) for place, record in read_records(path)] == [
        ("record 1, line 2", {"question": "a\nb", "answer": "c"}),
        ("record 2, line 5", "it has 3 columns, and the first line has 2; quote texts with ',' in them"),
        ("record 3, line 6", {"question": "g", "answer": "h"}),
    ]


def test_a_column_of_messages_is_json(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "[1]"}]
    out = io.StringIO()
    csv.writer(out).writerows([["id", "messages"], ["1", json.dumps(messages)]])
    assert read(written(tmp_path, out.getvalue())) == [{"id": "1", "messages": messages}]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"PARE" + bytes(50), "is an encrypted Parquet file"),
        (b"%PDF-1.7 x", "is a PDF; convert it to text first"),
        (b"\x80\x04\x95" + bytes(50), "is a pickle, which is never opened"),
        (b"<!DOCTYPE html><p>Log in", "is a web page .* download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        (b"\x7fELF\0\0\0" * 9, "is a program"),
        (bytes(100), "has NUL bytes"),
        (b"abc\0def" * 20, "has NUL bytes"),
        (b"Once upon a time, there was a dog.\nIt ran.\n" * 20, "is plain text: .* pretrain.dataset_path"),
        (b"# A title\n\nSome *text*, and more.\n", "is plain text"),
        (b"Tom came home, and then\nhe slept, he ate\n", "is plain text"),
    ],
)
def test_what_holds_no_records_is_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    for packed in (data, gzip.compress(data)):
        with pytest.raises(UserError, match=sentence):
            read(written(tmp_path, packed))


def test_a_packed_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a Parquet file; unpack it, and give the file itself"):
        read(written(tmp_path, gzip.compress(b"PAR1" + bytes(50))))


def test_columns_with_the_same_name_are_one_sentence(tmp_path: Path) -> None:
    (bad,) = read(written(tmp_path, "question,answer,answer\na,b,c\n"))
    assert str(bad) == "several columns are named 'answer'; rename or remove one"


def test_archives_of_several_files_are_one_sentence(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(written(tmp_path, LINES), "a.jsonl")
    for data in (out.getvalue(), gzip.compress(out.getvalue())):
        with pytest.raises(UserError, match=r"is a tar archive.*; unpack it"):
            read(written(tmp_path, data))
    for names, sentence in (
        (["a", "b"], r"is a zip with 2 files \(a, b\); unpack it"),
        (["xl/x"], "is an Excel workbook; save"),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive_:
            for name in names:
                archive_.writestr(name, "x")
        with pytest.raises(UserError, match=sentence):
            read(written(tmp_path, out.getvalue()))


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zip", "Zstandard"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_packing_gives_its_first_records_or_one_sentence(tmp_path: Path, packing: str, damage: str) -> None:
    values = [{"prompt": os.urandom(30).hex(), "completion": "x"} for _ in range(3000)]
    data = bytearray(PACKINGS[packing]("".join(json.dumps(value) + "\n" for value in values).encode()))
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0x55
    path, found = written(tmp_path, bytes(data)), []
    with contextlib.suppress(UserError):  # whose sentence another test reads
        found = read(path)
    good = [record for record in found if not isinstance(record, BadRecord)]
    assert good == values[: len(good)]
    assert not found or isinstance(found[-1], BadRecord)


def test_a_wrong_checksum_is_one_sentence(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(LINES.encode()))
    data[-6] ^= 1
    with pytest.raises(UserError, match=r"data.bin is a damaged gzip file \(CRC check failed .*\); get it again"):
        read(written(tmp_path, bytes(data)))


def test_a_small_file_that_unpacks_to_gigabytes_does_not_fill_the_memory(tmp_path: Path) -> None:
    for text in ('{"prompt": "' + "a" * (3 * MAX_LINE), '[{"prompt": "' + "a" * (3 * MAX_LINE)):
        (bad,) = read(written(tmp_path, gzip.compress(text.encode())))
        assert isinstance(bad, BadRecord)


def test_numbers_of_any_length_and_any_nesting_are_bad_records(tmp_path: Path) -> None:
    for wrong in ("9" * 5000, "[" * 100_000):
        for text in (f'{{"a": 1}}\n{{"b": {wrong}}}\n', f'[{{"a": 1}},\n{{"b": {wrong}}}]'):
            found = read(written(tmp_path, text))
            assert found[0] == {"a": 1}
            assert isinstance(found[1], BadRecord)
            assert len(found) == 2


def test_a_damaged_first_line_or_words_after_an_array_lose_nothing_silently(tmp_path: Path) -> None:
    found = read(written(tmp_path, '{"prompt": "a"\n' + LINES))
    assert isinstance(found[0], BadRecord)
    assert found[1:] == RECORDS
    found = read(written(tmp_path, ARRAY + "\n" + ARRAY))
    assert found[:-1] == RECORDS
    assert str(found[-1]) == "it follows the array's ]; it and what follows can't be read"


def test_tables_with_unknown_columns_and_any_line_ends(tmp_path: Path) -> None:
    rows = [{"asked": "a", "replied by bot": "b, c"}, {"asked": "d\ne", "replied by bot": "f"}]
    for end in ("\n", "\r\n", "\r"):
        text = f'asked,"replied by bot"{end}a,"b, c"{end}"d\ne",f{end}'
        assert read(written(tmp_path, text)) == rows
    (bad,) = read(written(tmp_path, b"prompt,resp\xffonse\na,b\n"))
    assert "0xff in it is not UTF-8" in str(bad)


@pytest.mark.parametrize("form", TEXTS)
def test_files_with_records_are_told_from_texts(tmp_path: Path, form: str) -> None:
    assert holds_records(written(tmp_path, TEXTS[form])) != form.startswith("YAML")
    for text in (
        "Features: Dialogue\nWords: quit, oak\nStory: Once.",
        "Once upon a time, there was a text.",
        "",
        "# Title",
    ):
        assert not holds_records(written(tmp_path, text))
    assert not holds_records(tmp_path)

"""Parquet and Arrow: the same records as JSON, in batches; damage is one sentence."""

from __future__ import annotations

import builtins
import datetime
import decimal
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.json_records import BadRecord
from mini_chat_gpt.data.record_files import read_records

pa = pytest.importorskip("pyarrow")
from pyarrow import feather, ipc, parquet  # noqa: E402

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Hi {n} 😀"}, {"role": "assistant", "content": "x" * n}], "n": n}
    for n in range(150)
]
CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
CHATS[7]["messages"][1] = {"role": "assistant", "content": "y", "train": False, "tool_calls": [CALL]}


def stream(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def arrow(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


WRITERS = {
    "Parquet": lambda table, path: parquet.write_table(table, path, row_group_size=60),
    "Parquet with zstd": lambda table, path: parquet.write_table(table, path, compression="zstd", use_dictionary=False),
    "Arrow": arrow,
    "Arrow stream": stream,
    "Feather": lambda table, path: feather.write_feather(table, str(path)),
}
each_form = pytest.mark.parametrize("form", WRITERS)


def written(folder: Path, table: Any, form: str = "Parquet") -> Path:
    path = folder / "data.bin"  # the name says nothing
    WRITERS[form](table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), path)
    return path


def read(path: Path) -> list[Any]:
    return [record for _, record in read_records(path)]


@each_form
def test_the_records_are_those_of_json(tmp_path: Path, form: str) -> None:
    found = list(read_records(written(tmp_path, CHATS, form)))
    assert [record for _, record in found] == CHATS
    assert [place for place, _ in found] == [f"record {n + 1}" for n in range(len(CHATS))]


values = st.recursive(
    st.text(max_size=9) | st.integers(-(2**63), 2**63 - 1) | st.booleans(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("xyz"), values, min_size=1), st.integers(1, 5), st.sampled_from(list(WRITERS)))
def test_any_nesting_is_read_as_it_was_written(tmp_path_factory: Any, value: Any, n: int, form: str) -> None:
    rows = [{"list": [value] * n}, {"list": []}, {}]
    path = written(tmp_path_factory.mktemp("a"), pa.Table.from_pylist(rows), form)
    assert read(path) == rows


@each_form
def test_values_that_json_lacks(tmp_path: Path, form: str) -> None:
    when = datetime.datetime(2024, 5, 6, 7, 8, 9)
    table = pa.table(
        {
            "day": pa.array([when.date(), None]),
            "ns": pa.array([1, 2], pa.timestamp("ns")),
            "far": pa.array([10**10, 1], pa.timestamp("s")),
            "zone": pa.array([when, when], pa.timestamp("us", tz="Mars/Base")),
            "price": pa.array([decimal.Decimal("1.20"), decimal.Decimal("0.10")]),
            "text": pa.array([b"caf\xc3\xa9", b"\xff\xfe"]),
            "map": pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["x", "x"]).dictionary_encode(),
            "inner": pa.array([{"day": when.date()}, {"day": None}]),
            "": pa.array([1, 2]),
        }
    )
    first, second = read(written(tmp_path, table, form))
    assert first["day"] == "2024-05-06"
    assert first["ns"].startswith("1970-01-01 00:00:00.000000001")
    assert first["far"].startswith("2286")
    assert (first["price"], first["text"], first["map"], first["kind"]) == ("1.20", "café", {"a": 1}, "x")
    assert first["inner"] == {"day": "2024-05-06"}
    assert (second["text"], second["inner"]) == ({"bytes": 2}, {})
    assert "day" not in second
    assert "" not in first
    json.dumps([first, second])  # plain values only


def test_a_row_that_python_can_not_hold_is_a_bad_record(tmp_path: Path) -> None:
    far = pa.array([[1], [10**12]], pa.list_(pa.timestamp("s")))  # the year 33,658
    first, second = read(written(tmp_path, pa.table({"dates": far})))
    assert first == {"dates": ["1970-01-01T00:00:01"]}
    assert isinstance(second, BadRecord)
    assert "has a value that can't be read" in str(second)


def test_columns(tmp_path: Path) -> None:
    rows = [{"Question": "a", "Answer": "b", "messages": '[{"role": "user"}]', "Other": "[1]"}]
    expected = {"question": "a", "answer": "b", "messages": [{"role": "user"}], "Other": "[1]"}
    assert read(written(tmp_path, rows)) == [expected]
    assert read(written(tmp_path, [{"Answer": "a", "answer": "b"}])) == [{"Answer": "a", "answer": "b"}]
    lists = [{"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}]  # as `datasets` stores them
    expected = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert read(written(tmp_path, lists)) == [expected]
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    with pytest.raises(UserError, match=r"has several columns named x; rename or remove one"):
        read(written(tmp_path, twice, "Arrow"))


def test_without_the_library_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = written(tmp_path, CHATS), builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'is a Parquet file; install .*: pip install "mini-chat-gpt\[data\]"\.$'):
        read(path)


@each_form
def test_damage_is_one_sentence_or_what_pyarrow_reads(tmp_path: Path, form: str) -> None:
    data, n_refused = written(tmp_path, CHATS, form).read_bytes(), 0
    path = tmp_path / "cut"
    for end in (8, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"cut is a damaged (Parquet|Arrow) file \(.+; get it again"):
            read(path)
    rng = Random(form)
    for _ in range(20):
        mutant = bytearray(data)
        mutant[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(mutant)
        try:
            read(path)
        except UserError:  # whose sentence is that above
            n_refused += 1
    assert n_refused


def test_large_values_are_read_in_small_batches(tmp_path: Path) -> None:
    """A column chunk of 100 MB is not in memory at once."""
    from mini_chat_gpt.data.arrow_files import read_rows

    table = pa.table({"text": pa.array([str(n) * 20_000 for n in range(500)])})
    path = tmp_path / "large.parquet"
    parquet.write_table(
        table, path, compression="none", use_dictionary=False, data_page_size=1 << 20, write_batch_size=8
    )
    size = path.stat().st_size
    del table
    before, peak = pa.total_allocated_bytes(), 0
    for _, _row in read_rows(path, "Parquet"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < size / 2

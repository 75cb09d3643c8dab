"""The record index agrees with sequential reading, can be shared by processes, and notices changes of the file."""

import multiprocessing
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tinystories import record_index, records
from mini_chat_gpt.tinystories.record_index import BITS, FeatureBits, RecordIndex, scan_block, scan_record
from mini_chat_gpt.tinystories.records import (
    ENDING_UNKNOWN,
    FEATURES,
    FIELDS,
    SEPARATOR,
    parse_record,
    raw_records,
    read_records,
)

TEXTS = [
    "Features: Dialogue, BadEnding\nStory:\none",
    "Words: a, b\nStory: \n\ntwo\nit was: so\n\nSummary: A two.",
    "a plain story: three",
    "Summary: nothing told",
    "Story:\nfour\nFeatures: MoralValue, EndingUnknown",
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_records_by_number_equal_records_read_in_order(path):
    index = RecordIndex(path)
    assert [index[i] for i in range(len(index))] == list(read_records(path))


def test_records_without_a_story_are_counted(path):
    assert RecordIndex(path).without_story == 1


def test_fields_and_features_of_each_record_are_known(path):
    index = RecordIndex(path)
    assert index.has("Summary").tolist() == [False, True, False, False]
    assert index.has("Features").tolist() == [True, False, False, True]
    assert index.has("BadEnding").tolist() == [True, False, False, False]
    assert index.has(ENDING_UNKNOWN).tolist() == [False, False, False, True]


def test_records_with_bytes_that_are_not_utf8_are_marked(tmp_path):
    (tmp_path / "x").write_bytes("fine é<|endoftext|>".encode() + b"caf\xe9<|endoftext|>")
    assert RecordIndex(tmp_path / "x").has("not UTF-8").tolist() == [False, True]


LINES = st.sampled_from(
    [
        "",
        "Features: Twist",
        "Words: a",
        "Summary: b",
        "Random sentence: c",
        "Story:",
        "Story: x",
        "said: y",
        " Words: z",
        "é",
    ]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.lists(LINES, max_size=6).map("\n".join), min_size=1, max_size=4))
def test_the_index_agrees_with_the_parser_on_any_arrangement_of_lines(tmp_path, records):
    path = tmp_path / "any.txt"
    path.write_text("<|endoftext|>".join([*records, "Story: last"]), encoding="utf-8")
    index = RecordIndex(path, cache=False)
    parsed = [record for text in [*records, "Story: last"] if (record := parse_record(text)).story]
    assert [index[i] for i in range(len(index))] == parsed
    for name in FEATURES:
        assert index.has(name).tolist() == [name in record.features for record in parsed]
    assert all(has or not record.words for has, record in zip(index.has("Words"), parsed, strict=True))


def test_offsets_do_not_depend_on_the_block_size(path, monkeypatch):
    monkeypatch.setattr(records, "_BLOCK", 3)
    index = RecordIndex(path, cache=False)
    assert [index[i] for i in range(len(index))] == list(read_records(path))


def test_the_second_opening_reads_the_cache(path, monkeypatch):
    RecordIndex(path)
    monkeypatch.setattr(record_index, "_build", lambda path: pytest.fail("the file was read again"))
    assert RecordIndex(path)[0].story == "one"


def test_a_changed_file_is_indexed_again(path):
    RecordIndex(path)
    path.write_text("Story:\nanother<|endoftext|>", encoding="utf-8")
    index = RecordIndex(path)
    assert [index[i].story for i in range(len(index))] == ["another"]


def test_a_damaged_cache_is_reported_and_replaced(path):
    RecordIndex(path)
    path.with_name("stories.txt.index.npz").write_bytes(b"PK nonsense")
    with pytest.warns(UserWarning, match=r"stories.txt.index.npz is damaged .*made again"):
        assert len(RecordIndex(path)) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(RecordIndex(path)) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": np.array([0, 0, 0, 0])},
        {"offsets": np.array([-9, 20, 40, 60])},
        {"offsets": np.array([0, 20, 40, 2**62])},
        {"offsets": np.zeros((4, 1), dtype=np.int64)},
        {"offsets": np.zeros(0, dtype=np.int64)},
        {"lengths": np.array([2**31] * 4, dtype=np.uint32)},
        {"lengths": np.array([1.0, 1, 1, 1])},
        {"bits": np.zeros(3, dtype=np.uint16)},
        {"without_story": np.int64(-1)},
        {"without_story": np.array([1, 2])},
        {"bits": None},
        {"without_story": None},
    ],
)
def test_a_cache_that_is_not_an_index_of_the_file_is_replaced(path, change):
    stories = [record.story for record in map(RecordIndex(path).__getitem__, range(4))]
    cache = path.with_name("stories.txt.index.npz")
    with np.load(cache) as loaded:
        arrays = {name: array for name, array in (dict(loaded) | change).items() if array is not None}
    np.savez(cache, **arrays)
    with pytest.warns(UserWarning, match="damaged"):
        index = RecordIndex(path)
    assert [index[number].story for number in range(len(index))] == stories


def test_the_cache_is_in_the_users_folder_if_the_data_folder_is_read_only(path, tmp_path):
    path.with_name("stories.txt.index.npz").mkdir()  # blocks root as well, unlike a file mode
    RecordIndex(path)
    assert list((tmp_path / "cache" / "mini_chat_gpt").glob("stories.txt.*.index.npz"))


def test_no_temporary_file_remains(path):
    RecordIndex(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["stories.txt", "stories.txt.index.npz"]


def test_a_pickled_index_can_read(path):
    index = RecordIndex(path)
    index[0]
    assert pickle.loads(pickle.dumps(index))[1] == index[1]


def test_forked_processes_and_threads_can_read_concurrently(path):
    index = RecordIndex(path)
    expected = [index[i] for i in range(4)] * 50
    with multiprocessing.get_context("fork").Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        in_processes = pool.map_async(index.__getitem__, list(range(4)) * 50)
        assert list(threads.map(index.__getitem__, list(range(4)) * 50)) == expected
        assert in_processes.get(timeout=30) == expected


def test_a_file_that_becomes_shorter_is_reported(path):
    index = RecordIndex(path)
    path.write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="has become shorter"):
        index[3]


def test_a_file_without_stories_is_an_error(tmp_path):
    (tmp_path / "x").write_text("Words: a<|endoftext|>", encoding="utf-8")
    with pytest.raises(UserError, match="No record"):
        RecordIndex(tmp_path / "x")


def test_every_field_has_its_own_bit():
    bits = list(record_index.BITS.values())
    assert sum(bits) == 2 ** len(bits) - 1
    assert set(FIELDS) < set(record_index.BITS)
    assert len(bits) <= 16


def test_an_index_of_real_stories_contains_all_of_them(real_data):
    path = real_data / "tinystories" / "stories-train.txt"
    index = RecordIndex(path, cache=False)
    assert len(index) == 10958
    assert index[5000] == list(read_records(path))[5000]


# Scanning blocks of records

LONG = b"Once there was a boy. " * 4
LINES = st.sampled_from(
    [b"", b"Features: Twist", b"Features:Dialogue ,  BadEnding,", b"Words: a", b"Summary: b", b"Random sentence: c",
     b"Random sentences", b"Story:", b"Story: " + LONG, LONG, LONG, b"She ran <| to <|endof| Fay.", b" Words: z",
     "\u00e9\u2019".encode(), b"caf\xe9", b"\t", b"\x1c"]
)  # fmt: skip
RECORDS = st.builds(
    lambda lead, newline, lines, tail: lead + newline.join(lines) + tail,
    st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"", b" ", b"\n \n", b"\x0b"]),
    st.sampled_from([b"\n", b"\n", b"\r\n"]),
    st.lists(LINES, max_size=7),
    st.sampled_from([b"\n", b"", b"\r\n"]),
)


def one_by_one(parts: list[bytes]) -> tuple[list[tuple[int, int, int]], int]:
    """[(offset, length, bits)] and the number without a story, scanning each record by itself."""
    found, offset, without_story = [], 0, 0
    for record in parts:
        if record and not record.isspace():
            bits = scan_record(record, FeatureBits())
            without_story += bits is None
            if bits is not None:
                found.append((offset, len(record), bits))
        offset += len(record) + len(SEPARATOR)
    return found, without_story


@settings(max_examples=500)
@example([b"\n"])
@example([b"\nStory:" + b"x" * 64 + b"\nWords:"])
@example([b"\nStory:" + b" " * 63 + b"\nWords:", b"\nStory:" + b" " * 64])
@given(parts=st.lists(RECORDS, min_size=1, max_size=8))
def test_a_block_at_a_time_equals_one_record_at_a_time(parts):
    text = SEPARATOR.join(parts)
    scanned = scan_block(text, len(text), FeatureBits())
    rows = list(zip(scanned.offsets.tolist(), scanned.lengths.tolist(), scanned.bits.tolist(), strict=True))
    assert (rows, scanned.without_story) == one_by_one(parts)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(RECORDS, max_size=5), block=st.integers(1, 400))
def test_the_index_does_not_depend_on_where_blocks_end(tmp_path, monkeypatch, parts, block):
    parts = [*parts, b"\nStory: last"]
    (tmp_path / "x").write_bytes(SEPARATOR.join(parts) + SEPARATOR)
    monkeypatch.setattr(records, "_BLOCK", block)
    index = RecordIndex(tmp_path / "x", cache=False)
    rows = list(zip(index.offsets.tolist(), index.lengths.tolist(), index.bits.tolist(), strict=True))
    assert (rows, index.without_story) == one_by_one(parts)


def test_records_of_the_usual_shape_are_not_scanned_one_by_one(monkeypatch):
    record = b"\nFeatures: Twist\nWords: a\nStory: \n\n" + LONG + b"\nSummary: b\n"
    monkeypatch.setattr(record_index, "scan_record", None)
    text = (record + SEPARATOR) * 3 + (b"\n" + LONG + SEPARATOR)
    expected = BITS["Features"] | BITS["Twist"] | BITS["Words"] | BITS["Summary"]
    assert scan_block(text, len(text), FeatureBits()).bits.tolist() == [expected] * 3 + [0]


def test_text_after_the_end_of_a_block_is_not_part_of_it():
    text = b"\n" + LONG + SEPARATOR
    behind = b"\nWords: a\nStory: " + LONG
    assert len(scan_block(text + behind, len(text), FeatureBits()).offsets) == 1


def test_the_index_of_real_stories_equals_scanning_each_record(real_data):
    path = real_data / "tinystories" / "stories-train.txt"
    index, feature_bits = RecordIndex(path, cache=False), FeatureBits()
    expected = [(offset, scan_record(chunk, feature_bits)) for offset, chunk in raw_records(path)]
    assert list(zip(index.offsets.tolist(), index.bits.tolist(), strict=True)) == expected


@pytest.mark.parametrize("damage", ["compressed", "a pipe", "a device"])
def test_a_cache_that_takes_more_memory_or_time_than_its_size_is_not_read(path, damage):
    place = path.with_name(path.name + ".index.npz")
    wanted = RecordIndex(path).offsets.tolist()
    if damage == "compressed":
        arrays = dict(np.load(place))
        np.savez_compressed(place, **arrays)
    else:
        place.unlink()
        os.mkfifo(place) if damage == "a pipe" else place.symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match=r"index.npz is damaged .*made again"):
        assert RecordIndex(path).offsets.tolist() == wanted
    assert RecordIndex(path).offsets.tolist() == wanted

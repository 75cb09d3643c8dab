"""Scanning a block gives the same result as scanning each record, for any shape of records and any block size."""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mini_chat_gpt.tinystories import record_index
from mini_chat_gpt.tinystories import records as records_module
from mini_chat_gpt.tinystories.record_index import BITS, FeatureBits, RecordIndex, scan_block, scan_record
from mini_chat_gpt.tinystories.records import SEPARATOR, raw_records

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


def one_by_one(records: list[bytes]) -> tuple[list[tuple[int, int, int]], int]:
    """[(offset, length, bits)] and the number without a story, scanning each record by itself."""
    found, offset, without_story = [], 0, 0
    for record in records:
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
@given(records=st.lists(RECORDS, min_size=1, max_size=8))
def test_a_block_at_a_time_equals_one_record_at_a_time(records):
    text = SEPARATOR.join(records)
    scanned = scan_block(text, len(text), FeatureBits())
    rows = list(zip(scanned.offsets.tolist(), scanned.lengths.tolist(), scanned.bits.tolist(), strict=True))
    assert (rows, scanned.without_story) == one_by_one(records)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=5), block=st.integers(1, 400))
def test_the_index_does_not_depend_on_where_blocks_end(tmp_path, monkeypatch, records, block):
    records = [*records, b"\nStory: last"]
    (tmp_path / "x").write_bytes(SEPARATOR.join(records) + SEPARATOR)
    monkeypatch.setattr(records_module, "_BLOCK", block)
    index = RecordIndex(tmp_path / "x", cache=False)
    rows = list(zip(index.offsets.tolist(), index.lengths.tolist(), index.bits.tolist(), strict=True))
    assert (rows, index.without_story) == one_by_one(records)


def test_records_of_the_usual_shape_are_not_scanned_one_by_one(monkeypatch):
    record = b"\nFeatures: Twist\nWords: a\nStory: \n\n" + LONG + b"\nSummary: b\n"
    monkeypatch.setattr(record_index, "scan_record", None)
    text = (record + SEPARATOR) * 3 + (b"\n" + LONG + SEPARATOR)
    expected = BITS["Features"] | BITS["Twist"] | BITS["Words"] | BITS["Summary"]
    assert scan_block(text, len(text), FeatureBits()).bits.tolist() == [expected] * 3 + [0]


def test_what_stands_behind_the_end_of_a_block_is_not_part_of_it():
    text = b"\n" + LONG + SEPARATOR
    behind = b"\nWords: a\nStory: " + LONG
    assert len(scan_block(text + behind, len(text), FeatureBits()).offsets) == 1


def test_the_index_of_real_stories_is_that_of_looking_at_each(real_data):
    path = real_data / "tinystories" / "stories-train.txt"
    index, feature_bits = RecordIndex(path, cache=False), FeatureBits()
    expected = [(offset, scan_record(chunk, feature_bits)) for offset, chunk in raw_records(path)]
    assert list(zip(index.offsets.tolist(), index.bits.tolist(), strict=True)) == expected

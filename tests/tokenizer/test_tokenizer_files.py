"""Files of a tokenizer that are damaged or hostile are one sentence, in little time and memory; saving takes linear work."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, chat_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.bpe import (
    CL100K_PATTERN,
    DEFAULT_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    TiktokenBPE,
    check_blanks,
)
from mini_chat_gpt.tokenizer.hf_export import _merge_below, merges_from_ranks, merges_from_scores
from mini_chat_gpt.tokenizer.sentencepiece import SentencePieceBPE
from mini_chat_gpt.tokenizer.split_patterns import TWO_DIGITS_PATTERN

BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chat_tokenizer("Be kind.").save(tmp_path)
    return tmp_path


def loads(folder: Path) -> str:
    """The sentence that loading the folder ends with."""
    with pytest.raises(UserError) as caught:
        ChatTokenizer.load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(folder))
    return message


META: dict[str, Any] = {
    "control": [[], None, {"<|user|>": "5"}, {"<|user|>": 1.5}, {"<|user|>": [1]}, [["<|user|>", 5]], 7],
    "bos_id": ["1", 1.5, [1], True, 10**30, -1, 5, 300],
    "chat_format": [[], {"default_system": 5}, {}, {"default_system": None, "template": "x"}, "x"],
    "kind": ["other", None, ["tiktoken"], {"a": 1}],
    "version": [2, "1", None, 1.0, [1]],
    "pattern": [5, ["a"], None, ""],
    "fingerprint": [None, "x", 5],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in META.items() for value in values])
def test_metadata_of_another_structure_is_one_sentence(key: str, value: Any, folder: Path) -> None:
    path = folder / "tokenizer_meta.json"
    meta = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps(meta))
    loads(folder)
    del meta[key]
    path.write_text(json.dumps(meta))
    assert f"{key} is missing" in loads(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 200_000, b"9" * 5000, b"\xff", b'{"version": 1e999}'])
def test_metadata_of_any_other_content_is_one_sentence(content: bytes, folder: Path) -> None:
    (folder / "tokenizer_meta.json").write_bytes(content)
    loads(folder)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ({"<|user|>": 10**12}, "ids are 0 to 1,048,575"),
        ({"<|user|>": 10**30}, "ids are 0 to"),
        ({"<|user|>": -1}, "ids are 0 to"),
        ({"<|user|>": 296, "<|other|>": 296}, "an id of its own"),
        ({"": 296}, "needs a name"),
        ({"<|user|>": 65}, "an id of its own"),  # that of the letter A
    ],
)
def test_control_ids_that_do_not_stand_for_one_token_each_are_refused(
    control: dict[str, int], expected: str, folder: Path
) -> None:
    path = folder / "tokenizer_meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"control": control}))
    assert expected in loads(folder)


def line(piece: bytes, rank: object) -> bytes:
    return base64.b64encode(piece) + f" {rank}\n".encode()


RANKS: dict[str, Callable[[bytes], bytes]] = {
    "a rank beyond all tokenizers": lambda data: data + line(b"new", 9_999_999),
    "a rank of 5,000 digits": lambda data: data + line(b"new", "9" * 5000),
    "a rank twice": lambda data: data + line(b"new", 5),
    "a piece twice": lambda data: data + line(b"a", 400),
    "a negative rank": lambda data: data + line(b"new", -5),
    "a gap": lambda data: data + line(b"new", 5000),
    "a line cut": lambda data: data[:-3],
    "a byte is missing": lambda data: data[data.index(b"\n") + 1 :],
    "nothing": lambda _: b"",
    "one line of a megabyte": lambda data: data + b"A" * 2**20,
}


@pytest.mark.parametrize("damage", RANKS.values(), ids=RANKS.keys())
def test_damaged_ranks_are_one_sentence(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = folder / "tokenizer.tiktoken"
    file.write_bytes(damage(file.read_bytes()))
    loads(folder)


@pytest.mark.parametrize("rank", [9_999_999, 2**20 - 1, 100_000, 10**30])
def test_a_rank_far_beyond_the_number_of_entries_is_named_before_tables_are_made(tmp_path: Path, rank: int) -> None:
    file = tmp_path / "own.tiktoken"
    file.write_bytes(b"".join(line(piece, number) for piece, number in BYTES.items()) + line(b"ab", rank))
    with pytest.raises(UserError, match="257 entries go up to") as caught:
        ChatTokenizer.load(file)
    assert str(caught.value).startswith(f"{file} can't be used")
    assert len(str(caught.value)) < 300 + len(str(file))


def test_a_few_thousand_unused_ids_are_fine() -> None:
    assert TiktokenBPE({**BYTES, b"ab": 60_000}, DEFAULT_PATTERN).encode("ab") == [60_000]


def test_a_pipe_or_a_device_instead_of_a_file_is_one_sentence(folder: Path) -> None:
    for name in ("tokenizer_meta.json", "tokenizer.tiktoken"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "not a regular file" in loads(folder)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        assert "not a regular file" in loads(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    assert ChatTokenizer.load(folder).vocab_size == 300


@pytest.mark.parametrize(
    "pattern",
    [
        "a" * 1_000_000,
        "(" * 900 + "a" + ")" * 900,
        "(",
        "a{99999999999}",
        r"((\p{L}{1000}){1000}){1000}",
        r"(?=a*a*a*c)|[\s\S]",  # cubic, for a run of its own letter
        "|".join(r"\p{L}{999}(?=a)" for _ in range(60)),
        "a*",
    ],
)
def test_a_pattern_that_takes_too_long_or_too_much_is_refused(
    pattern: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "tokenizer_meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pattern": pattern}))
    assert "split pattern" in loads(folder)
    assert capfd.readouterr().err == ""  # not even the report of the regex engine's panic


def test_a_foreign_pattern_that_is_fast_is_used() -> None:
    encoder = TiktokenBPE(BYTES, r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
    assert bytes(encoder.encode("One 12, two")) == b"One 12, two"


# Long texts


@cache
def _tokenizer_of_pairs(pattern: str) -> ChatTokenizer:
    """Every pair of characters is an entry, so that other chunks have other ids."""
    characters = sorted({*map(ord, "aBb1cdestr.'/\n\r \t"), *"é的\u0301".encode()})
    pairs = [bytes([a, b]) for a in characters for b in characters]
    longer = [b"\n\n\n", b"\n a", b"  a", b".\n\n", b"\r\n\r"]
    return ChatTokenizer(TiktokenBPE(BYTES | {piece: 256 + i for i, piece in enumerate(pairs + longer)}, pattern))


@pytest.mark.parametrize("pattern", [DEFAULT_PATTERN, TWO_DIGITS_PATTERN, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN])
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*"aB1.'/\n\r é的\t\u0301", "'s", "\n\n", "  ", " a", "b c", "d\ne"]), max_size=60),
    st.integers(1, 9),
)
def test_a_text_that_is_encoded_in_parts_has_the_same_ids(pattern: str, pieces: list[str], size: int) -> None:
    tokenizer = _tokenizer_of_pairs(pattern)
    text = "".join(pieces)
    parts = list(tokenizer.encode_in_parts(text, size))
    assert [token_id for part in parts for token_id in part] == tokenizer.encode(text)


def test_a_long_text_is_encoded_in_several_parts() -> None:
    tokenizer = chat_tokenizer()
    assert len(list(tokenizer.encode_in_parts("one two three. " * 1000, 1000))) > 10
    assert len(list(tokenizer.encode_in_parts("一二三。\n" * 1000, 1000))) > 4


def test_llama2c_texts_in_parts_have_the_same_ids(real_data: Path) -> None:
    tokenizer = ChatTokenizer.load(real_data / "stories260K" / "tok512.bin")
    for text in (" Once upon  a time\n there was é " * 20, "", "one two", "one  two"):
        parts = list(tokenizer.encode_in_parts(text, 5))
        assert [token_id for part in parts for token_id in part] == tokenizer.encode(text)
    assert len(parts) > 0


@pytest.mark.parametrize("run", ["\t" * 999_500, " " * 1_200_000])
def test_a_run_of_blanks_that_cannot_be_split_is_named_without_the_engines_report(
    run: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chat_tokenizer()
    for attempt in (tokenizer.encode, lambda text: ChatTokenizer.train([text], 300)):
        with pytest.raises(UserError, match="white-space characters in a row, from character 3 on"):
            attempt("abc" + run + "b")
    assert capfd.readouterr().err == ""


def test_line_breaks_and_many_short_runs_are_fine() -> None:
    for text in ("\n" * 1_000_000, ("x" + " " * 900) * 1200):
        assert check_blanks(text) is text


# The work of saving


class CountingRanks(dict[bytes, int]):
    """Counts the bytes of the entries that are looked up."""

    n_bytes = 0

    def get(self, key: bytes, default: Any = None) -> Any:
        self.n_bytes += len(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, bytes)
        self.n_bytes += len(key)
        return super().__contains__(key)


LONG = {
    "equal letters": "a" * 2**14,
    "equal pairs": "ab" * 2**13,
    "another length than a power of two": "a" * 12_345,
    "random letters": "".join("ACGT"[(i * i // 7 + i // 3) % 4] for i in range(2**14)),
}


@pytest.mark.parametrize("word", LONG.values(), ids=LONG.keys())
def test_saving_looks_up_a_number_of_bytes_near_that_of_the_vocabulary(word: str) -> None:
    ranks = ChatTokenizer.train([word], 700).encoder.ranks  # type: ignore[union-attr]
    counting = CountingRanks(ranks)
    assert merges_from_ranks(counting)
    n_bytes = sum(map(len, ranks))
    assert counting.n_bytes < 5 * n_bytes * math.log2(len(word))


def test_an_entry_that_no_merge_makes_is_split_at_few_places() -> None:
    ranks = CountingRanks(BYTES | {b"ab": 256, b"x" * 20_000: 257, b"x" * 19_999: 258})
    merges = merges_from_ranks(ranks)
    assert (b"x", b"x" * 19_999) in merges
    assert (b"x" * 19_999, b"x") in merges
    assert ranks.n_bytes < 10 * sum(map(len, ranks))


def test_pieces_with_scores_are_split_at_few_places() -> None:
    texts = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), b"x", b"x" * 5_000, b"x" * 5_001]
    encoder = SentencePieceBPE(texts, [float(-i) for i in range(len(texts))], 5_001)

    class Counting(dict[str, int]):
        n_letters = 0

        def __contains__(self, key: object) -> bool:
            self.n_letters += len(str(key))
            return super().__contains__(key)

    encoder.ids = Counting(encoder.ids)
    assert merges_from_scores(encoder) == [("x", "x" * 5_000), ("x" * 5_000, "x")]
    assert encoder.ids.n_letters < 50_000


def merge_naively(piece: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """The definition: of all neighbors that can be merged, the leftmost pair with the lowest rank first."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        options = [(ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1)]
        rank, i = min(options)
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("abc", min_size=2, max_size=5), max_size=25, unique=True),
    st.text("abc", min_size=2, max_size=25),
    st.integers(0, 30),
)
def test_merging_with_a_heap_gives_the_parts_of_the_definition(entries: list[str], word: str, limit: int) -> None:
    ranks = {entry.encode(): 256 + number for number, entry in enumerate(entries)}
    assert _merge_below(word.encode(), ranks, 256 + limit) == merge_naively(word.encode(), ranks, 256 + limit)


def test_a_tokenizer_with_a_long_token_is_saved_and_read_back(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.train(["a" * 40_000, *TEXTS], 400)
    assert max(map(len, tokenizer.encoder.ranks)) > 20_000  # type: ignore[union-attr]
    tokenizer.save(tmp_path)
    assert ChatTokenizer.load(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_the_merges_are_found_once_for_all_checkpoints_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.save(tmp_path / "1")
    monkeypatch.setattr("mini_chat_gpt.tokenizer.hf_export.merges_from_ranks", None)
    tokenizer.save(tmp_path / "2")
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in "12")
    assert first == second

"""Tokenizers from GGUF metadata: llama.cpp's split rules and scores, token types, and metadata that contradict themselves."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import MAKERS, SPACE, any_text, full, hostile, source, text_with_names
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import CORPUS, HARD_TEXTS, hugging_face, llama2c_pieces, llama2c_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.gguf_import import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_from_gguf,
)
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder
from mini_chat_gpt.tokenizer.split_patterns import LLAMA3_PATTERN, PRE_TOKENIZERS, QWEN2_PATTERN, QWEN35_PATTERN

PRE = {"GPT-2": "gpt-2", "SmolLM2": "smollm", "Llama 3": "llama-bpe", "Qwen2": "qwen2"}
byte_level_kinds = pytest.mark.parametrize("kind", PRE)


def metadata_of(kind: str, **changes: Any) -> dict[str, Any]:
    """The metadata that a converter writes for one of the byte-level tokenizers."""
    parts = json.loads(source(kind))
    names = parts["model"]["vocab"] | {token["content"]: token["id"] for token in parts["added_tokens"]}
    types = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in parts["added_tokens"]}
    tokens = sorted(names, key=names.__getitem__)
    values = {
        "model": "gpt2",
        "pre": PRE[kind],
        "tokens": tokens,
        "token_type": [types.get(token, NORMAL) for token in tokens],
        "merges": [" ".join(merge) for merge in parts["model"]["merges"]],
        "bos_token_id": names["<|im_start|>"],
        "eos_token_id": names["<|im_end|>"],
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}
    return {"general.architecture": "llama", "tokenizer.chat_template": "{{ messages }}", **keys}


@cache
def tokenizer_of(kind: str) -> ChatTokenizer:
    return tokenizer_from_gguf(metadata_of(kind))


def sentencepiece_metadata(pieces: list[tuple[bytes, float]], **changes: Any) -> dict[str, Any]:
    """The metadata of a vocabulary in llama2.c's order: <unk>, <s>, </s>, 256 bytes, pieces of text."""
    tokens = ["<unk>", "<s>", "</s>", *(piece.decode().replace(" ", SPACE) for piece, _ in pieces[3:])]
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) - 259)],
        "scores": [score for _, score in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}


# Byte-level BPE, against the library


@byte_level_kinds
def test_ids_equal_those_of_the_original_tokenizer(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    library = full(kind)
    for text in hostile(10_000, seed=1):
        # llama.cpp does not normalize.
        if kind != "Qwen2" or library.normalizer.normalize_str(text) == text:
            assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids, repr(text)


@byte_level_kinds
@settings(max_examples=100, deadline=None)
@given(text=text_with_names)
def test_no_text_yields_a_control_token(kind: str, text: str) -> None:
    assert not set(tokenizer_of(kind).control.values()) & set(tokenizer_of(kind).encode(text))


@byte_level_kinds
def test_a_saved_tokenizer_has_the_same_ids_here_and_in_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    tokenizer.save(tmp_path)
    loaded, theirs = ChatTokenizer.load(tmp_path), hugging_face(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for text in [*CORPUS, *(text for text in HARD_TEXTS if "<|endoftext|>" not in text)]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert theirs.encode(text) == begin + tokenizer.encode(text)  # type: ignore[attr-defined]
    from_folder = tokenizer_from_folder(tmp_path)
    assert (from_folder.control, from_folder.bos_id) == (tokenizer.control, tokenizer.bos_id)


def test_each_name_of_a_pre_tokenizer_can_be_used() -> None:
    for name in PRE_TOKENIZERS:
        tokenizer = tokenizer_from_gguf(metadata_of("GPT-2", pre=name))
        for text in HARD_TEXTS:
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encoder.safe_cut is not None


@pytest.mark.parametrize(
    ("pre", "text", "parts"),
    [
        ("gpt-2", "a 123 b", ["a", " 123", " b"]),
        ("smollm", "a 123 b", ["a", " ", "1", "2", "3", " b"]),
        ("llama-bpe", "1234", ["123", "4"]),
        ("qwen2", "1234", ["1", "2", "3", "4"]),
        ("qwen35", "हिन्दी 12", ["हिन्दी", " ", "1", "2"]),
        ("default", "a-12345 b", ["a", "-", "123", "45", " b"]),
        ("falcon", "a`12345", ["a", "`", "123", "45"]),
        (None, "a-12345 b", ["a", "-", "123", "45", " b"]),
    ],
)
@pytest.mark.filterwarnings("ignore:the file does not say")
def test_text_is_split_as_in_llama_cpp(pre: str | None, text: str, parts: list[str]) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_from_gguf(metadata_of("GPT-2", pre=pre))
    splitter = pre_tokenizers.Sequence([])
    content = json.loads(tokenizer.encoder.to_bytes())
    content["pre_tokenizer"]["pretokenizers"].pop()  # the letters for bytes
    from tokenizers import Tokenizer

    splitter = Tokenizer.from_str(json.dumps(content)).pre_tokenizer
    assert [part for part, _ in splitter.pre_tokenize_str(text)] == parts


def test_a_file_without_a_pre_tokenizer_gets_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"does not say how its tokenizer splits text"):
        tokenizer_from_gguf(metadata_of("GPT-2", pre=None))


def test_the_patterns_are_those_whose_hashes_are_public() -> None:
    """Ollama recognizes the pre-tokenizer of a model by these (convert/tokenizer.go)."""
    hashes = {"00431aed57e696b7": QWEN35_PATTERN, "1ff7f41064896984": QWEN2_PATTERN, "d98f9631be1e9607": LLAMA3_PATTERN}
    for start, pattern in hashes.items():
        assert hashlib.sha256(pattern.encode()).hexdigest().startswith(start)


# A real file


@pytest.fixture(scope="module")
def smollm2(real_data: Path) -> ChatTokenizer:
    from gguf import GGUFReader

    reader = GGUFReader(real_data / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    return tokenizer_from_gguf({key: field.contents() for key, field in reader.fields.items()})


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, we can use", [19556, 28, 392, 416, 722]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("x 12ab\n\n 3", [104, 216, 33, 34, 369, 8866, 35]),
        ("<|im_start|>hi", [44, 108, 306, 79, 3738, 108, 46, 6004]),
        ("", []),
    ],
)
def test_smollm2_has_the_ids_of_llama_cpp(smollm2: ChatTokenizer, text: str, ids: list[int]) -> None:
    assert smollm2.encode(text) == ids
    assert smollm2.decode(ids) == text


def test_smollm2_has_its_control_tokens(smollm2: ChatTokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.document_id, smollm2.stop_ids) == (49152, None, 0, {0, 2})
    assert smollm2.control["<|im_start|>"] == 1
    assert smollm2.template is not None
    assert smollm2.template.startswith("{% for message in messages %}")


def test_bytes_that_smollm2_lacks_are_dropped_as_in_the_library(smollm2: ChatTokenizer, tmp_path: Path) -> None:
    assert len(smollm2.encoder.missing_bytes) == 21  # type: ignore[union-attr]
    smollm2.save(tmp_path)
    theirs: Any = hugging_face(tmp_path)
    for text in ("a\x04b", "\x04", "\U00040000", "a\U000c0000 b"):
        assert smollm2.encode(text) == theirs.encode(text)
    assert smollm2.decode(smollm2.encode("a\x04b\x06")) == "ab"
    assert smollm2.losses


def test_real_stories_survive_the_round_trip_with_smollm2(smollm2: ChatTokenizer, real_data: Path) -> None:
    stories = (real_data / "tinystories" / "stories-valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    for story in stories[:200]:
        assert smollm2.decode(smollm2.encode(story)) == story


# SentencePiece with scores, against llama2.c's algorithm and literally


@settings(max_examples=200, deadline=None)
@given(any_text)
def test_sentencepiece_ids_equal_those_of_llama2c(text: str) -> None:
    tokenizer = _sentencepiece_tokenizer()
    if SPACE not in text:
        assert tokenizer.encode(text) == llama2c_tokenizer().encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(SPACE, " ")


@cache
def _sentencepiece_tokenizer() -> ChatTokenizer:
    return tokenizer_from_gguf(sentencepiece_metadata(llama2c_pieces()))


def test_a_real_sentencepiece_vocabulary_has_the_ids_of_llama2c(real_data: Path) -> None:
    tok512 = ChatTokenizer.load(real_data / "stories260K" / "tok512.bin")
    pieces = list(zip(tok512.encoder.texts, tok512.encoder.scores, strict=True))  # type: ignore[union-attr]
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(pieces))
    stories = (real_data / "tinystories" / "stories-valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    for story in stories[:100]:
        assert tokenizer.encode(story) == tok512.encode(story)
    assert (tokenizer.bos_id, tokenizer.document_id, tokenizer.stop_ids) == (1, 1, {1, 2})


def test_sentencepiece_inserts_spaces_and_bos_as_the_metadata_say(tmp_path: Path) -> None:
    pieces = llama2c_pieces()
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(pieces))
    assert tokenizer.encoder.adds_leading_space
    without = tokenizer_from_gguf(sentencepiece_metadata(pieces, add_space_prefix=False, add_bos_token=False))
    assert not without.encoder.adds_leading_space
    assert without.bos_id is None
    assert without.encode(" play") == tokenizer.encode("play")
    for one, name in ((tokenizer, "1"), (without, "2")):
        one.save(tmp_path / name)
        theirs: Any = hugging_face(tmp_path / name)
        begin = [] if one.bos_id is None else [one.bos_id]
        assert theirs.encode("play on é 🙂") == begin + one.encode("play on é 🙂")
        assert theirs.decode(one.encode("play on")) == "play on"


def test_pieces_with_a_control_tokens_name_are_out_of_reach() -> None:
    texts = ("[§", "[", "§", "[§¤", "¤")
    pieces = [*llama2c_pieces(), *((text.encode(), -90.0 - number) for number, text in enumerate(texts))]
    names = {piece.decode(errors="replace"): number for number, (piece, _) in enumerate(pieces)}
    types = sentencepiece_metadata(pieces)["tokenizer.ggml.token_type"]
    types[names["[§"]] = CONTROL
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(pieces, token_type=types))
    assert tokenizer.control["[§"] == names["[§"]
    assert names["[§"] not in tokenizer.encode("[§¤")
    assert tokenizer.decode(tokenizer.encode("[§¤")) == "[§¤"


# Token types and special ids


def test_types_of_tokens_decide_what_is_a_control_token() -> None:
    values = metadata_of("GPT-2")
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    tokens += ["[PAD1]", "<extra>", "<|eot_id|>"]
    types += [UNUSED, USER_DEFINED, NORMAL]
    tokenizer = tokenizer_from_gguf(values)
    assert "[PAD1]" not in tokenizer.control
    assert tokenizer.control[f"<|reserved_{len(tokens) - 3}|>"] == len(tokens) - 3
    assert tokenizer.control["<extra>"] == len(tokens) - 2
    # llama.cpp takes it for a control token whatever its type is.
    assert len(tokens) - 1 in tokenizer.stop_ids
    assert not set(tokenizer.control.values()) & set(tokenizer.encode("[PAD1]<extra><|eot_id|>"))


def test_stop_ids_are_eos_eot_and_the_names_that_llama_cpp_knows() -> None:
    names = {token: token_id for token_id, token in enumerate(metadata_of("GPT-2")["tokenizer.ggml.tokens"])}
    tokenizer = tokenizer_from_gguf(metadata_of("GPT-2", eot_token_id=names["<tool>"], eom_token_id=10**6))
    assert tokenizer.stop_ids == {names["<|im_end|>"], names["<tool>"], names["<|endoftext|>"]}


@pytest.mark.parametrize(
    ("kind", "flag", "inserted"),
    [("GPT-2", None, False), ("GPT-2", True, True), ("Llama 3", None, True), ("Llama 3", False, False)],
)
def test_bos_is_inserted_as_in_llama_cpp(kind: str, flag: bool | None, inserted: bool) -> None:
    tokenizer = tokenizer_from_gguf(metadata_of(kind, add_bos_token=flag))
    assert (tokenizer.bos_token == "<|im_start|>") == inserted
    assert tokenizer.declared is not None
    assert tokenizer.declared.bos_id == tokenizer.control["<|im_start|>"]


# Metadata that can't be used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "contains no tokenizer"),
        ({"model": "t5"}, "type 't5' is not supported"),
        ({"model": 3}, "model must be text"),
        ({"pre": "qwen3"}, r"'qwen3' .* is not known \(did you mean qwen"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "has 0 tokens"),
        ({"tokens": ["a", 5]}, "must be text"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, "'a' occurs twice"),
        ({"token_type": [1]}, "token_type has 1 values"),
        ({"merges": None}, "has no merges"),
        ({"merges": ["ab"]}, "is not two parts"),
        ({"merges": ["q zzz"]}, "which is not a token"),
        ({"merges": ["a b c"]}, "which is not a token"),
        ({"bos_token_id": None, "add_bos_token": True}, "names none"),
        ({"bos_token_id": "1"}, "must be a whole number"),
    ],
)
def test_byte_level_metadata_that_contradict_themselves_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_from_gguf(metadata_of("GPT-2", **changes), "x.gguf")
    assert "x.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "has no scores"),
        ({"scores": [0.0]}, "scores has 1 values"),
        ({"scores": [float("nan")] * len(llama2c_pieces())}, "not a finite number"),
        ({"scores": [0.0] * len(llama2c_pieces())}, "the same score"),
        ({"tokens": [f"t{i}" for i in range(len(llama2c_pieces()))]}, "a character that is not a token"),
    ],
)
def test_sentencepiece_metadata_that_contradict_themselves_are_one_sentence(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_from_gguf(sentencepiece_metadata(llama2c_pieces(), **changes), "x.gguf")
    assert "x.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_metadata_are_read_or_refused_in_one_sentence(data: st.DataObject) -> None:
    values = metadata_of("GPT-2") if data.draw(st.booleans()) else sentencepiece_metadata(llama2c_pieces())
    key = data.draw(st.sampled_from(sorted(values)))
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    if isinstance(values[key], list) and data.draw(st.booleans()):
        values[key][data.draw(st.integers(0, len(values[key]) - 1))] = data.draw(scalars)
    else:
        values[key] = data.draw(st.one_of(scalars, st.lists(scalars, max_size=3)))
    message = ""
    try:
        tokenizer_from_gguf(values).encode("the 12 é")
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


def test_every_supported_kind_was_compared() -> None:
    assert {*PRE} < {*MAKERS}

"""Tokenizers of models from elsewhere: the ids of the library, no text becomes a control token, saved byte for byte."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tokenizers import CONTROL, MAKERS, NAMES, THINK, any_text, full, hostile, source, text_with_names
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_samples import CORPUS, HARD_TEXTS, hugging_face

from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.chat_tokenizer import CONTROL_TOKENS
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder

all_kinds = pytest.mark.parametrize("kind", MAKERS)
N_HOSTILE = 10_000
LOSSLESS = ("GPT-2", "Llama 3")


@cache
def encoder_of(kind: str) -> HuggingFaceBPE:
    return HuggingFaceBPE(source(kind))


def tokenizer_of(kind: str) -> ChatTokenizer:
    return ChatTokenizer(encoder_of(kind))


def library_ids(kind: str, text: str) -> list[int]:
    ids: list[int] = full(kind).encode(text, add_special_tokens=False).ids
    return ids


def write_folder(folder: Path, kind: str, **files: Any) -> Path:
    """A Hugging Face folder: tokenizer.json, and other files by name without ".json"."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(source(kind))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


# Ids of ordinary text, against the library


@all_kinds
def test_ids_of_hostile_texts_equal_those_of_the_library(kind: str) -> None:
    encoder = encoder_of(kind)
    for text in hostile(N_HOSTILE):
        assert encoder.encode(text) == library_ids(kind, text), repr(text)


@all_kinds
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_ids_of_any_text_equal_those_of_the_library(kind: str, text: str) -> None:
    assume(not any(name in text for name in encoder_of(kind).control))
    assert tokenizer_of(kind).encode(text) == library_ids(kind, text)


@all_kinds
def test_ids_of_whole_texts_equal_those_of_the_library(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for text in ["\n".join(CORPUS) * 3, "x" * 3_000, " " * 3_000, *CORPUS]:
        assert tokenizer.encode(text) == library_ids(kind, text)


@all_kinds
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_ids_after_a_control_token_equal_those_of_the_library(kind: str, text: str) -> None:
    assume(not any(name in text for name in encoder_of(kind).control))
    tokenizer = tokenizer_of(kind)
    ids = [tokenizer.control["<tool>"], *tokenizer.encode_after_control(text)]
    assert ids == library_ids(kind, "<tool>" + text)


@all_kinds
@settings(max_examples=100, deadline=None)
@given(text=any_text, size=st.integers(1, 9))
def test_a_text_that_is_encoded_in_parts_has_the_same_ids(kind: str, text: str, size: int) -> None:
    tokenizer = tokenizer_of(kind)
    text = f"{CORPUS[0]} {text} {CORPUS[1]}"
    parts = list(tokenizer.encode_in_parts(text, size))
    assert [token_id for part in parts for token_id in part] == tokenizer.encode(text)
    if kind not in ("Mistral", "no prefix"):
        assert len(parts) > 1


# No text becomes a control token


@all_kinds
@settings(max_examples=100, deadline=None)
@given(text=text_with_names)
def test_no_text_yields_a_control_token(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    forbidden = set(tokenizer.control.values())
    assert not forbidden & set(tokenizer.encode(text))
    assert not forbidden & set(tokenizer.encode_after_control(text))


@all_kinds
@pytest.mark.parametrize("name", NAMES)
def test_a_spelled_control_token_stays_text(kind: str, name: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(f"a{name}b")
    assert not set(tokenizer.control.values()) & set(ids)
    if kind != "SmolLM2":  # has no token for "|"
        assert len(ids) > 3
        assert tokenizer.decode(ids) == f"a{name}b"


@all_kinds
def test_added_tokens_are_control_tokens_whether_special_or_not(kind: str) -> None:
    control = tokenizer_of(kind).control
    assert {*CONTROL, THINK} <= control.keys()
    assert all(full(kind).token_to_id(name) == token_id for name, token_id in control.items())


def test_a_run_of_blanks_that_is_an_added_token_is_ordinary_text() -> None:
    tokenizer = tokenizer_of("GPT-2")
    blanks = full("GPT-2").token_to_id(" " * 7)
    assert blanks in tokenizer.encode("a" + " " * 9 + "b")
    assert blanks not in tokenizer.control.values()
    assert tokenizer.decode(tokenizer.encode("a" + " " * 9 + "b")) == "a" + " " * 9 + "b"


def test_a_control_token_that_merges_would_make_is_out_of_reach() -> None:
    """With ignore_merges a whole chunk is looked up, and merges may lead to the name of an added token."""
    parts = json.loads(source("Llama 3"))
    he = parts["model"]["vocab"]["he"]
    parts["added_tokens"].insert(0, {**parts["added_tokens"][0], "id": he, "content": "he"})
    for ignore_merges in (True, False):
        parts["model"]["ignore_merges"] = ignore_merges
        tokenizer = ChatTokenizer(HuggingFaceBPE(json.dumps(parts).encode()))
        assert he not in tokenizer.encode("(he) the here")
        assert tokenizer.decode(tokenizer.encode("(he) the here")) == "(he) the here"


# Back to text


@all_kinds
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(any_text, text_with_names))
def test_what_is_not_preserved_is_declared(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    decoded = tokenizer.decode(tokenizer.encode(text))
    if kind in LOSSLESS:
        assert decoded == text
        assert tokenizer.losses == []
    elif decoded != text:
        assert tokenizer.losses


@pytest.mark.parametrize(
    ("kind", "text", "decoded", "loss"),
    [
        ("Qwen2", "e\u0301", "\u00e9", "NFC"),
        ("SmolLM2", "a\x00b", "ab", "dropped"),
        ("TinyLlama", "a\u2581b", "a b", r"U\+2581"),
        ("Metaspace", " hi", "hi", "begins with one"),
    ],
)
def test_each_loss_occurs(kind: str, text: str, decoded: str, loss: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == decoded
    assert any(loss.replace("\\", "") in sentence for sentence in tokenizer.losses)


@all_kinds
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_decoded_text_equals_that_of_the_library(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == full(kind).decode(ids, skip_special_tokens=True)


@all_kinds
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_streamed_text_equals_decoded_text_for_any_ids(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    control, start = data.draw(st.booleans()), data.draw(st.booleans())
    decoder = tokenizer.stream_decoder(control=control, start=start)
    streamed = "".join([decoder.push(token_id) for token_id in ids] + [decoder.finish()])
    assert streamed == tokenizer.decode(ids, control=control, start=start)


@all_kinds
def test_lengths_in_bytes_are_those_of_the_decoded_tokens(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert tokenizer.byte_lengths(np.array(ids)).sum() == len(tokenizer.decode_bytes(ids))


def test_a_space_is_removed_where_the_library_inserts_one() -> None:
    for kind, after in (("TinyLlama", "hi"), ("Mistral", " hi"), ("no prefix", " hi")):
        tokenizer = tokenizer_of(kind)
        ids = [tokenizer.control["<tool>"], *tokenizer.encode_after_control(" hi" if after == " hi" else "hi")]
        assert tokenizer.decode(ids) == after, kind


# Texts that are hard on the engine


@all_kinds
def test_lone_surrogates_become_replacement_characters(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode_after_control("a\ud800b") == tokenizer.encode_after_control("a\ufffdb")


@pytest.mark.parametrize("kind", ["GPT-2", "Llama 3", "TinyLlama"])
def test_a_million_blanks_are_encoded(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = "a" + " " * 1_000_000 + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_text_beyond_the_limit_of_the_engine_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="can't be split into tokens"):
        tokenizer_of("Llama 3").encode("a" + " " * 10_500_000 + "b")
    assert capfd.readouterr().err == ""


def test_a_tokenizer_can_be_pickled_for_worker_processes() -> None:
    tokenizer = tokenizer_of("Mistral")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert copy.fingerprint() == tokenizer.fingerprint()


# Saving, loading and transformers


@all_kinds
def test_a_saved_tokenizer_loads_as_it_was_byte_for_byte(kind: str, tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|im_end|>", "auto_map": {"x": "code.py"}}
    tokenizer = tokenizer_from_folder(write_folder(tmp_path / "model", kind, tokenizer_config=config))
    tokenizer.save(tmp_path / "1")
    loaded = ChatTokenizer.load(tmp_path / "1")
    loaded.save(tmp_path / "2")
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "12"]
    assert contents[0] == contents[1]
    assert contents[0]["tokenizer.json"] == source(kind)
    assert (loaded.control, loaded.bos_id, loaded.declared) == (tokenizer.control, tokenizer.bos_id, tokenizer.declared)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.encode(CORPUS[1]) == tokenizer.encode(CORPUS[1])
    assert b"auto_map" not in contents[0]["tokenizer_config.json"]


@all_kinds
@pytest.mark.parametrize("added", [False, True])
def test_transformers_gives_the_same_ids_from_a_saved_folder(kind: str, added: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    if added:
        tokenizer.add_control_tokens()
    tokenizer.save(tmp_path)
    theirs: Any = hugging_face(tmp_path)
    theirs.backend_tokenizer.no_truncation()
    for text in [*CORPUS, *(text for text in HARD_TEXTS if "<|endoftext|>" not in text)]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert {name: theirs.convert_tokens_to_ids(name) for name in tokenizer.control} == tokenizer.control


@all_kinds
def test_our_own_control_tokens_can_be_added(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    size, before = tokenizer.vocab_size, tokenizer.encode(CORPUS[0])
    missing = [name for name in CONTROL_TOKENS if name not in tokenizer.control]
    assert tokenizer.add_control_tokens() == list(range(size, size + len(missing)))
    assert tokenizer.add_control_tokens() == []
    assert tokenizer.encode(CORPUS[0]) == before
    assert not set(tokenizer.control.values()) & set(tokenizer.encode("<|user|>Hi<|endoftext|>"))
    tokenizer.chat_format = ChatFormat("Be brief.")
    tokenizer.save(tmp_path)
    loaded = ChatTokenizer.load(tmp_path)
    assert loaded.chat_format == tokenizer.chat_format
    messages = [
        Message("user", "Hi"),
        Message("assistant", "Hello <|user|>"),
        Message("user", " x "),
        Message("assistant", "y"),
    ]
    ids, mask = render(messages, loaded)
    assert ids.count(loaded.end_id) == 2
    assert [token_id for token_id, target in zip(ids, mask, strict=True) if target].count(loaded.end_id) == 2


def test_the_library_numbers_added_tokens_as_we_expect() -> None:
    """Where the ids of the vocabulary have gaps, the library's numbers differ from those in the file."""
    parts = json.loads(source("SmolLM2"))
    parts["model"]["vocab"] |= {"zzz": 5000, "zzzz": 5001}
    with pytest.raises(UserError, match=f"{THINK}' has the id 371, not 373"):
        HuggingFaceBPE(json.dumps(parts).encode())
    from tokenizers import Tokenizer

    assert Tokenizer.from_str(json.dumps(parts)).token_to_id(THINK) == 373


# Folders


def test_ids_of_the_folder_files_are_read(tmp_path: Path) -> None:
    kind = "Llama 3"
    tokenizer = tokenizer_from_folder(
        write_folder(
            tmp_path,
            kind,
            tokenizer_config={
                "bos_token": "<|begin_of_text|>",
                "eos_token": {"content": "<|eot_id|>", "special": True},
                "chat_template": "{{ messages }}",
            },
            config={"eos_token_id": full(kind).token_to_id("<|im_end|>")},
            generation_config={
                "eos_token_id": [full(kind).token_to_id("<tool>"), full(kind).token_to_id("<|eot_id|>")]
            },
        )
    )
    control = tokenizer.control
    assert tokenizer.stop_ids == {control["<|eot_id|>"], control["<|im_end|>"], control["<tool>"]}
    assert tokenizer.bos_id == tokenizer.document_id == control["<|begin_of_text|>"]
    assert tokenizer.end_id == control["<|eot_id|>"]
    assert tokenizer.template == "{{ messages }}"
    assert tokenizer.template_tokens == ("<|begin_of_text|>", "<|eot_id|>")
    assert tokenizer.chat_format is None


@pytest.mark.parametrize(
    ("kind", "flag", "expected"),
    [("Llama 3", None, "<|begin_of_text|>"), ("Llama 3", False, "<|begin_of_text|>"), ("Qwen2", True, None)],
)
def test_bos_is_inserted_where_transformers_does(
    kind: str, flag: bool | None, expected: str | None, tmp_path: Path
) -> None:
    config = {"bos_token": "<tool>"} | ({} if flag is None else {"add_bos_token": flag})
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, kind, tokenizer_config=config))
    assert tokenizer.bos_token == expected
    tokenizer.save(tmp_path / "saved")
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    theirs: Any = hugging_face(tmp_path / "saved")
    theirs.backend_tokenizer.no_truncation()
    assert theirs.encode("Hi there") == begin + tokenizer.encode("Hi there")


def test_documents_begin_with_the_end_of_text_where_no_bos_is_inserted(tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, "SmolLM2", tokenizer_config=config))
    assert (tokenizer.bos_id, tokenizer.document_id) == (None, tokenizer.control["<|endoftext|>"])
    assert tokenizer.stop_ids == {tokenizer.control["<|endoftext|>"], tokenizer.control["<|im_end|>"]}


def test_an_eos_that_is_an_ordinary_entry_becomes_a_control_token(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, "Qwen2", tokenizer_config={"eos_token": "he"}))
    he = tokenizer.control["he"]
    assert he in library_ids("Qwen2", "(he)")
    assert he not in tokenizer.encode("(he) the")
    assert he in tokenizer.stop_ids


def test_stop_ids_that_are_ordinary_text_are_left_out_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"stop ids \[2\] are not control tokens"):
        tokenizer = tokenizer_from_folder(write_folder(tmp_path, "Qwen2", config={"eos_token_id": 2}))
    assert tokenizer.stop_ids == set()


def test_a_stop_id_that_transformers_wrote_unasked_is_left_out_without_a_word(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "unset")
    config = json.loads((tmp_path / "unset" / "config.json").read_text())
    assert config["eos_token_id"] == 2
    own = {"eos_token": "he"}
    folder = write_folder(tmp_path, "Qwen2", tokenizer_config=own, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.stop_ids == {tokenizer.control["he"]}
    with pytest.warns(UserWarning, match=r"stop ids \[3\] are not control tokens"):
        tokenizer_from_folder(write_folder(tmp_path, "Qwen2", tokenizer_config=own, config={"eos_token_id": [2, 3]}))


def test_a_generation_config_with_wrong_commas_is_read(tmp_path: Path) -> None:
    """As published with Llama 3.2."""
    write_folder(tmp_path, "SmolLM2")
    text = '{\n  "bos_token_id": 1,\n  "do_sample": true\n  "eos_token_id": [\n    2,\n    3,\n  ],\n  "x": 0.6\n  "top_p": 0.9,\n}\n'
    (tmp_path / "generation_config.json").write_text(text)
    assert tokenizer_from_folder(tmp_path).stop_ids == {0, 2, 3}


def test_a_template_file_comes_before_that_of_the_config(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    write_folder(tmp_path, "Qwen2", tokenizer_config={"chat_template": several})
    assert tokenizer_from_folder(tmp_path).template == "yes"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert tokenizer_from_folder(tmp_path).template == "file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        tokenizer_from_folder(tmp_path)


def test_control_tokens_that_take_white_space_are_known() -> None:
    tokenizer = tokenizer_of("Qwen2")
    assert tokenizer.stripping == {tokenizer.control["<|im_end|>"]: (False, True)}


# What is not understood


def changed(kind: str, *path: str, value: Any) -> bytes:
    parts = json.loads(source(kind))
    inner = parts
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(parts).encode()


def vocab_with(**entries: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        parts = json.loads(source("GPT-2"))
        parts["model"]["vocab"] |= entries
        parts["added_tokens"] = []
        return json.dumps(parts).encode()

    return make


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def with_split(pattern: str) -> bytes:
    steps = [SPLIT | {"pattern": {"Regex": pattern}, "behavior": "Isolated"}, BYTE_LEVEL]
    return changed("GPT-2", "pre_tokenizer", value={"type": "Sequence", "pretokenizers": steps})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "WordPiece": (lambda: changed("GPT-2", "model", value={"type": "WordPiece", "vocab": {}}), "type 'WordPiece'"),
    "Unigram": (lambda: changed("GPT-2", "model", value={"type": "Unigram", "vocab": [["a", 0.0]]}), "type 'Unigram'"),
    "dropout": (lambda: changed("GPT-2", "model", "dropout", value=0.1), "dropout"),
    "suffix": (lambda: changed("GPT-2", "model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix"),
    "a new key": (lambda: changed("GPT-2", "model", "lowercase", value=True), "lowercase"),
    "Lowercase": (lambda: changed("GPT-2", "normalizer", value={"type": "Lowercase"}), "'Lowercase' is not supported"),
    "NFKC": (lambda: changed("Qwen2", "normalizer", value={"type": "NFKC"}), "'NFKC' is not supported"),
    "Replace": (lambda: changed("TinyLlama", "normalizer", value=REPLACE), "its normalizer {"),
    "Prepend": (
        lambda: changed("TinyLlama", "normalizer", value={"type": "Prepend", "prepend": "x"}),
        "its normalizer {",
    ),
    "two prefixes": (lambda: changed("TinyLlama", "pre_tokenizer", value={"type": "Metaspace"}), "more than one space"),
    "no space": (lambda: changed("TinyLlama", "normalizer", value=None), "replace each space"),
    "Whitespace": (lambda: changed("GPT-2", "pre_tokenizer", value={"type": "Whitespace"}), "neither byte-level"),
    "prefix space": (lambda: changed("GPT-2", "pre_tokenizer", "add_prefix_space", value=True), "add_prefix_space"),
    "removing": (
        lambda: changed("GPT-2", "pre_tokenizer", value={"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}),
        "removes text",
    ),
    "no type": (lambda: changed("GPT-2", "pre_tokenizer", value={}), "has no type"),
    "no list": (lambda: changed("GPT-2", "pre_tokenizer", value={"type": "Sequence"}), "is not a list"),
    "no bytes": (
        lambda: source("TinyLlama").replace(b'"<0x0A>"', b'"<newline>"'),
        "lacks 1 of the tokens <0x00> to <0xFF>",
    ),
    "an id twice": (vocab_with(zzz=3), "two tokens have the id 3"),
    "an id beyond all": (vocab_with(zzz=10**9), "go up to 1000000000"),
    "a negative id": (vocab_with(zzz=-1), "can't be used"),
    "a merge of nothing": (lambda: changed("GPT-2", "model", "merges", value=[["q", "zzz"]]), "which is not a token"),
    "a merge of three": (lambda: changed("GPT-2", "model", "merges", value=["a b c"]), "is not two parts"),
    "an added token twice": (
        lambda: changed("GPT-2", "added_tokens", value=[{"id": 529, "content": "a b"}] * 2),
        "occurs twice",
    ),
    "an empty added token": (lambda: changed("GPT-2", "added_tokens", value=[{"id": 529, "content": ""}]), "is empty"),
    "single_word": (
        lambda: changed("GPT-2", "added_tokens", value=[{"id": 529, "content": "a b", "single_word": True}]),
        "single_word",
    ),
    "not a regular expression": (lambda: with_split("("), "tokenizers library can't read it"),
    "a slow expression": (lambda: with_split(r"(?=a*a*a*c)|[\s\S]"), "can't be"),
    "an exponential expression": (lambda: with_split("(a+)+$"), "can't be"),
    "not JSON": (lambda: source("GPT-2")[:-20], "is damaged"),
    "a list": (lambda: b"[]", "is damaged"),
    "nested": (lambda: b"[" * 100_000, "is damaged"),
    "no vocabulary": (lambda: b'{"model": {"type": "BPE"}}', "vocab is missing"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_a_tokenizer_that_is_not_understood_is_one_sentence(
    make: tuple[Callable[[], bytes], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, message = make
    (tmp_path / "tokenizer.json").write_bytes(content())
    with pytest.raises(UserError) as caught:
        tokenizer_from_folder(tmp_path)
    sentence = str(caught.value)
    assert message in sentence
    assert str(tmp_path / "tokenizer.json") in sentence
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"eos_token": "<absent>"}}, "'<absent>' is not in tokenizer.json"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token"),
        ({"tokenizer_config": []}, "is damaged"),
        ({"tokenizer_config": {"chat_template": 3}}, "chat_template"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9": {"content": "<absent>"}}}}, "which tokenizer.json lacks"),
        ({"config": {"eos_token_id": "two"}}, "eos_token_id"),
        ({"generation_config": {"eos_token_id": [1, None]}}, "eos_token_id"),
    ],
)
def test_files_that_contradict_each_other_are_one_sentence(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as caught:
        tokenizer_from_folder(write_folder(tmp_path, "GPT-2", **files))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json; copy it from where the weights come from"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda data: data.replace(b"<tool>", b"<fool>")),
        ("tokenizer.json", lambda data: data[: len(data) // 2]),
        ("tokenizer_config.json", lambda data: b"[]"),
        ("tokenizer_meta.json", lambda data: data.replace(b'"eos_id": 530', b'"eos_id": 1')),
        ("tokenizer_meta.json", lambda data: data.replace(b'"stop_ids": []', b'"stop_ids": [null]')),
        ("tokenizer_meta.json", lambda data: data.replace(b'"declared": {', b'"declared": {}, "x": {')),
    ],
)
def test_a_saved_folder_that_was_changed_is_damaged(
    name: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    write_folder(tmp_path / "model", "GPT-2", tokenizer_config={"eos_token": "<|im_start|>"})
    tokenizer_from_folder(tmp_path / "model").save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(change(data))
    assert change(data) != data
    with pytest.raises(UserError, match="damaged"):
        ChatTokenizer.load(tmp_path)


@settings(max_examples=100, deadline=None)
@given(
    position=st.integers(0, 10**6), byte=st.binary(min_size=0, max_size=2), kind=st.sampled_from(["GPT-2", "TinyLlama"])
)
def test_a_changed_byte_is_read_or_refused_in_one_sentence(position: int, byte: bytes, kind: str) -> None:
    data = source(kind)
    # Not only in the vocabulary, which is most of the file.
    position %= len(data) if position % 2 else 2_500
    data = data[:position] + byte + data[position + 1 :]
    assume(data != source(kind))
    try:
        HuggingFaceBPE(data).encode("the 12 é")
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
    assert len(message) < 700

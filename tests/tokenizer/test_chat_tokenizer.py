"""Tokenizers: parity with other implementations, round trips, and no text becomes a control token."""

import json
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_samples import (
    CORPUS,
    HARD_TEXTS,
    any_text,
    hugging_face,
    llama2c_file,
    llama2c_pieces,
    llama2c_tokenizer,
    own_tokenizer,
    tokenizer_of,
)

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer import tiktoken_files
from mini_chat_gpt.tokenizer.bpe import DEFAULT_PATTERN, TiktokenBPE, ranks_to_bytes
from mini_chat_gpt.tokenizer.chat_tokenizer import CONTROL_TOKENS, ChatTokenizer
from mini_chat_gpt.tokenizer.hf_export import byte_letters, merges_from_ranks
from mini_chat_gpt.tokenizer.sentencepiece import SentencePieceBPE
from mini_chat_gpt.tokenizer.split_patterns import PRE_TOKENIZERS, TWO_DIGITS_PATTERN

KINDS = ["tiktoken", "llama2c"]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def folder_content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def gpt2(real_data: Path) -> ChatTokenizer:
    return ChatTokenizer.load(real_data / "gpt2-bpe" / "gpt2.tiktoken")


@pytest.fixture(scope="module")
def stories(real_data: Path) -> list[str]:
    return (real_data / "tinystories" / "stories-valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")


@pytest.fixture(scope="module")
def tok512(real_data: Path) -> ChatTokenizer:
    return ChatTokenizer.load(real_data / "stories260K" / "tok512.bin")


# GPT-2, against transformers


@pytest.fixture(scope="module")
def transformers_gpt2(gpt2: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> object:
    """transformers' own GPT-2 tokenizer, from vocab.json and merges.txt in the original format."""
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    letters = byte_letters()
    written = {piece: "".join(letters[byte] for byte in piece) for piece in gpt2.encoder.ranks}
    vocab = {written[piece]: rank for piece, rank in gpt2.encoder.ranks.items()} | gpt2.control
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = [f"{written[left]} {written[right]}" for left, right in merges_from_ranks(gpt2.encoder.ranks)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return GPT2TokenizerFast.from_pretrained(str(folder))


def test_gpt2_ids_of_real_stories_equal_those_of_transformers(gpt2, transformers_gpt2, stories):
    for story in stories[:200]:
        assert gpt2.encode(story) == transformers_gpt2.encode(story)


@pytest.mark.parametrize("text", [text for text in HARD_TEXTS if "<|endoftext|>" not in text])
def test_gpt2_ids_of_hard_texts_equal_those_of_transformers(gpt2, transformers_gpt2, text):
    assert gpt2.encode(text) == transformers_gpt2.encode(text)


def test_gpt2_ids_of_random_bytes_equal_those_of_transformers(gpt2, transformers_gpt2):
    generator = random.Random(0)
    for _ in range(300):
        text = generator.randbytes(100).decode("utf-8", errors="replace")
        assert gpt2.encode(text) == transformers_gpt2.encode(text)


def test_gpt2_has_its_50000_merges_each_from_two_earlier_entries(gpt2):
    ranks = gpt2.encoder.ranks
    merges = merges_from_ranks(ranks)
    assert [ranks[left + right] for left, right in merges] == list(range(256, 50256))
    assert all(max(ranks[left], ranks[right]) < ranks[left + right] for left, right in merges)


def test_the_gpt2_file_is_recognized_with_its_end_token(gpt2):
    assert gpt2.control == {"<|endoftext|>": 50256}
    assert (gpt2.vocab_size, gpt2.end_id, gpt2.document_id, gpt2.bos_id) == (50257, 50256, 50256, None)


# llama2.c, against its algorithm taken literally


def literal_llama2c(text: str, pieces: list[tuple[bytes, float]]) -> list[int]:
    """The encoder of llama2.c's run.c, step for step (which lets every piece be a result of a merge)."""
    if not text:
        return []
    lookup: dict[bytes, int] = {}
    for i, (piece, _) in enumerate(pieces):
        lookup.setdefault(piece, i)
    ids = []
    for character in " " + text:
        found = lookup.get(character.encode())
        ids.extend([found] if found is not None else [byte + 3 for byte in character.encode()])
    while True:
        best_score, best_id, best_index = -1e10, -1, -1
        for i in range(len(ids) - 1):
            joined = lookup.get(pieces[ids[i]][0] + pieces[ids[i + 1]][0], -1)
            if joined != -1 and pieces[joined][1] > best_score:
                best_score, best_id, best_index = pieces[joined][1], joined, i
        if best_index == -1:
            return ids
        ids[best_index : best_index + 2] = [best_id]


@given(any_text)
def test_llama2c_ids_equal_the_literal_algorithm(text):
    assert llama2c_tokenizer().encode(text) == literal_llama2c(text, llama2c_pieces())


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.text("ab ", min_size=2, max_size=5), st.integers(-4, 0)), max_size=12, unique_by=lambda p: p[0]
    ),
    st.text("ab cé", max_size=24),
)
def test_any_llama2c_vocabulary_gives_the_ids_of_the_literal_algorithm(joins, text):
    """Pieces with spaces anywhere, and many with equal scores, where the leftmost goes first."""
    fixed = llama2c_pieces()[:259]
    pieces = (
        fixed + [(join.encode(), float(score)) for join, score in joins] + [(b" ", -9.0), (b"a", -9.0), (b"b", -9.0)]
    )
    encoder = SentencePieceBPE.from_bytes(llama2c_file(pieces), "drawn")
    assert encoder.encode(text) == literal_llama2c(text, pieces)


def test_ids_of_real_stories_equal_the_literal_algorithm(tok512, stories):
    pieces = list(zip(tok512.encoder.texts, tok512.encoder.scores, strict=True))
    for story in stories[:5]:
        assert tok512.encode(story[:400]) == literal_llama2c(story[:400], pieces)


def test_a_spelled_byte_piece_stays_text():
    tokenizer = llama2c_tokenizer()
    assert tokenizer.decode(tokenizer.encode("<0x0A>")) == "<0x0A>"


def test_the_leading_space_is_removed_at_the_start_and_after_control_tokens_only():
    tokenizer = llama2c_tokenizer()
    play = tokenizer.encode("play")
    assert tokenizer.decode([1, *play, *play, 2, *play]) == "play playplay"
    assert tokenizer.decode(play, start=False) == " play"


# For both kinds


@both_kinds
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_survive_the_round_trip(kind, text):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@both_kinds
@given(text=any_text)
def test_every_text_survives_the_round_trip(kind, text):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_stories_survive_the_round_trip(gpt2, tok512, stories):
    for tokenizer in (gpt2, tok512):
        for story in stories:
            assert tokenizer.decode(tokenizer.encode(story)) == story


@both_kinds
@given(text=any_text)
def test_no_text_yields_a_control_token(kind, text):
    tokenizer = tokenizer_of(kind)
    tokenizer.add_control_tokens()
    assert not set(tokenizer.control.values()) & set(tokenizer.encode(text))


@both_kinds
@given(text=any_text)
def test_lengths_in_bytes_are_those_of_the_decoded_tokens(kind, text):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    for start in (True, False):
        parts = [tokenizer.decode_bytes([token_id], start=start and not i) for i, token_id in enumerate(ids)]
        assert tokenizer.byte_lengths(np.array(ids, dtype=np.int32), start).tolist() == [len(part) for part in parts]


@both_kinds
def test_lone_surrogates_become_replacement_characters(kind):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode("a\ud800b \udfff")) == "a\ufffdb \ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"


@both_kinds
@given(data=st.data())
def test_streamed_text_equals_decoded_text_for_any_ids(kind, data):
    tokenizer = tokenizer_of(kind)
    tokenizer.add_control_tokens()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    control, start = data.draw(st.booleans()), data.draw(st.booleans())
    decoder = tokenizer.stream_decoder(control=control, start=start)
    streamed = "".join([decoder.push(token_id) for token_id in ids] + [decoder.finish()])
    assert streamed == tokenizer.decode(ids, control=control, start=start)


@both_kinds
@given(text=any_text)
def test_a_stream_gives_whole_characters_only(kind, text):
    tokenizer = tokenizer_of(kind)
    decoder = tokenizer.stream_decoder()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += decoder.push(token_id)
        assert text.startswith(shown)
    assert decoder.finish() == ""


@both_kinds
def test_an_unfinished_character_ends_as_one_replacement_character(kind):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("𒀀")
    decoder = tokenizer.stream_decoder()
    assert "".join(decoder.push(token_id) for token_id in ids[:-1]).strip() == ""
    assert decoder.finish() == "\ufffd"


@both_kinds
def test_control_tokens_are_omitted_from_decoded_text_by_default(kind):
    tokenizer = tokenizer_of(kind)
    tokenizer.add_control_tokens()
    ids = [tokenizer.control["<|user|>"], *tokenizer.encode("Hi"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.decode(ids, control=True) == "<|user|>Hi<|endoftext|>"


@both_kinds
@pytest.mark.parametrize("offset", [0, 47])
def test_an_id_that_does_not_exist_raises_and_names_the_range(kind, offset):
    tokenizer = tokenizer_of(kind)
    with pytest.raises(UserError, match=f"Id {tokenizer.vocab_size + offset} does not exist"):
        tokenizer.decode([tokenizer.vocab_size + offset])
    with pytest.raises(UserError, match="Id -1 does not exist"):
        tokenizer.stream_decoder().push(-1)


@both_kinds
def test_numpy_ids_decode_like_ints(kind):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(np.array(tokenizer.encode("play on"), dtype=np.uint16)) == "play on"


@both_kinds
def test_a_tokenizer_can_be_pickled_for_worker_processes(kind):
    tokenizer = tokenizer_of(kind)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


# Control tokens


def test_missing_control_tokens_follow_the_last_id(gpt2):
    tokenizer = ChatTokenizer(gpt2.encoder, gpt2.control)
    assert tokenizer.add_control_tokens() == [50257, 50258, 50259]
    assert tokenizer.control["<|endoftext|>"] == 50256
    assert tokenizer.vocab_size == 50260


@both_kinds
def test_the_names_for_templates_are_bos_and_the_end_of_text(kind):
    tokenizer = tokenizer_of(kind)
    bos = {"tiktoken": None, "llama2c": "<s>"}[kind]
    assert tokenizer.template_tokens == (bos, {"tiktoken": "<|endoftext|>", "llama2c": "</s>"}[kind])


@both_kinds
def test_adding_control_tokens_twice_adds_them_once(kind):
    tokenizer = tokenizer_of(kind)
    tokenizer.add_control_tokens()
    size = tokenizer.vocab_size
    assert tokenizer.add_control_tokens() == []
    assert tokenizer.vocab_size == size


def test_a_base_without_an_end_token_says_what_to_call():
    with pytest.raises(UserError, match="add_control_tokens"):
        _ = llama2c_tokenizer().end_id


def test_llama2c_documents_begin_with_bos_and_stop_at_bos_or_eos():
    tokenizer = llama2c_tokenizer()
    assert (tokenizer.bos_id, tokenizer.document_id, tokenizer.stop_ids) == (1, 1, {1, 2})


def test_a_chat_model_stops_at_the_beginning_of_another_turn_too():
    tokenizer = own_tokenizer()
    assert tokenizer.stop_ids == {tokenizer.end_id}
    tokenizer.chat_format = ChatFormat()
    assert tokenizer.stop_ids == {tokenizer.control[name] for name in CONTROL_TOKENS}


def test_ids_that_no_rank_uses_get_a_name():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 257}
    tokenizer = ChatTokenizer(TiktokenBPE(ranks, DEFAULT_PATTERN), {"<|endoftext|>": 260})
    assert tokenizer.control == {
        "<|reserved_256|>": 256,
        "<|reserved_258|>": 258,
        "<|reserved_259|>": 259,
        "<|endoftext|>": 260,
    }


# Training


def test_training_twice_gives_the_same_tokenizer():
    assert ChatTokenizer.train(CORPUS, 400).fingerprint() == ChatTokenizer.train(iter(CORPUS), 400).fingerprint()


def test_a_trained_tokenizer_splits_by_the_pattern_that_llama_cpp_calls_qwen35():
    tokenizer = ChatTokenizer.train(["हिन्दी\n12\n"] * 50, 300)
    assert PRE_TOKENIZERS["qwen35"].patterns == (tokenizer.encoder.pattern,)
    assert [tokenizer.decode([token_id]) for token_id in tokenizer.encode("12")] == ["1", "2"]
    assert tokenizer.decode([tokenizer.encode("हिन्दी")[0]]) == "हिन्दी"  # marks belong to the letters


def test_a_saved_tokenizer_keeps_the_pattern_it_was_trained_with(tmp_path):
    tokenizer = ChatTokenizer(TiktokenBPE(own_tokenizer().encoder.ranks, TWO_DIGITS_PATTERN))
    tokenizer.save(tmp_path)
    assert ChatTokenizer.load(tmp_path).encoder.pattern == TWO_DIGITS_PATTERN
    theirs = hugging_face(tmp_path)
    for text in [*CORPUS, *HARD_TEXTS]:
        assert theirs.encode(text) == tokenizer.encode(text)


def test_the_vocabulary_size_includes_the_control_tokens():
    tokenizer = ChatTokenizer.train(CORPUS, 400)
    assert tokenizer.vocab_size == 400
    assert [tokenizer.control[name] for name in CONTROL_TOKENS] == [396, 397, 398, 399]


def test_4096_entries_encode_real_stories_in_few_tokens(stories):
    tokenizer = ChatTokenizer.train(stories, 4096)
    assert tokenizer.vocab_size == 4096
    assert sum(len(tokenizer.encode(story)) for story in stories) < sum(map(len, stories)) / 3.8


def test_training_accepts_lone_surrogates():
    assert ChatTokenizer.train(["a\ud800b " * 5], 270).decode([97]) is not None


@pytest.mark.parametrize(
    ("texts", "size", "message"), [("abc", 300, "a list of texts"), (["abc"], 259, "at least 260")]
)
def test_training_explains_wrong_arguments(texts, size, message):
    with pytest.raises(UserError, match=message):
        ChatTokenizer.train(texts, size)


# Saving and loading


@both_kinds
@pytest.mark.parametrize("chat_format", [None, ChatFormat(), ChatFormat("Be brief. Ünicode")])
def test_a_saved_tokenizer_loads_as_it_was(kind, chat_format, tmp_path):
    tokenizer = tokenizer_of(kind)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = chat_format
    tokenizer.save(tmp_path / "tokenizer")
    loaded = ChatTokenizer.load(tmp_path / "tokenizer")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert (loaded.control, loaded.bos_id, loaded.chat_format) == (tokenizer.control, tokenizer.bos_id, chat_format)
    assert loaded.encode(CORPUS[1]) == tokenizer.encode(CORPUS[1])


@both_kinds
def test_saving_writes_the_same_bytes_every_time(kind, tmp_path):
    tokenizer_of(kind).save(tmp_path / "one")
    ChatTokenizer.load(tmp_path / "one").save(tmp_path / "two")
    assert folder_content(tmp_path / "one") == folder_content(tmp_path / "two")


def test_the_llama2c_file_is_saved_byte_for_byte(tok512, real_data, tmp_path):
    tok512.save(tmp_path)
    assert (tmp_path / "tokenizer.bin").read_bytes() == (real_data / "stories260K" / "tok512.bin").read_bytes()


def test_saving_over_a_chat_tokenizer_leaves_no_template_behind(tmp_path):
    tokenizer = own_tokenizer()
    tokenizer.chat_format = ChatFormat()
    tokenizer.save(tmp_path)
    tokenizer.chat_format = None
    tokenizer.save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_the_ranks_of_a_saved_folder_load_with_the_pattern_beside_them(tmp_path):
    own_tokenizer().save(tmp_path)
    assert ChatTokenizer.load(tmp_path / "tokenizer.tiktoken").fingerprint() == own_tokenizer().fingerprint()


def test_the_fingerprint_depends_on_control_tokens_but_not_on_the_chat_format():
    tokenizer = llama2c_tokenizer()
    before = tokenizer.fingerprint()
    tokenizer.chat_format = ChatFormat("Hello")
    assert tokenizer.fingerprint() == before
    tokenizer.add_control_tokens()
    assert tokenizer.fingerprint() != before


def test_an_unknown_rank_file_gets_the_pattern_of_our_first_tokenizers_with_a_warning(tmp_path):
    trained = ChatTokenizer(TiktokenBPE(own_tokenizer().encoder.ranks, TWO_DIGITS_PATTERN))
    (tmp_path / "mine.tiktoken").write_bytes(ranks_to_bytes(trained.encoder.ranks))
    with pytest.warns(UserWarning, match="split pattern is unknown"):
        tokenizer = ChatTokenizer.load(tmp_path / "mine.tiktoken")
    assert tokenizer.control == {}
    assert tokenizer.encode(CORPUS[1]) == trained.encode(CORPUS[1])


@pytest.mark.parametrize("name", ["tokenizer.tiktoken", "tokenizer_meta.json"])
def test_a_damaged_folder_is_detected(name, tmp_path):
    own_tokenizer().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        ChatTokenizer.load(tmp_path)


def test_a_changed_control_token_is_detected(tmp_path):
    own_tokenizer().save(tmp_path)
    meta = (tmp_path / "tokenizer_meta.json").read_text()
    (tmp_path / "tokenizer_meta.json").write_text(meta.replace("<|user|>", "<|other|>"))
    with pytest.raises(UserError, match="damaged"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tok.bin", b"", "is not a llama2.c tokenizer"),
        ("tok.bin", bytes(2000), "is not a llama2.c tokenizer"),
        ("tok.bin", llama2c_file(llama2c_pieces())[:-3], "is not a llama2.c tokenizer"),
        ("tok.bin", llama2c_file(llama2c_pieces()[:100]), "lacks the byte pieces"),
        ("x.tiktoken", b"", "is empty"),
        ("x.tiktoken", b"IQ== 0\nIg==\n", "line 2: expected base64"),
        ("x.tiktoken", b"IQ== 0\n%% 1\n", "line 2: expected base64"),
        ("x.tiktoken", b"IQ== 0\nIg== 1\n", "lack 254 of the 256 single bytes"),
        ("notes.txt", b"hello", "is not a tokenizer"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*split pattern")
def test_a_file_that_is_not_a_tokenizer_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ChatTokenizer.load(tmp_path / name)


def test_a_folder_without_a_tokenizer_is_explained(tmp_path):
    with pytest.raises(UserError, match="contains no tokenizer"):
        ChatTokenizer.load(tmp_path)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"Can't read .*missing\.tiktoken"):
        ChatTokenizer.load(tmp_path / "missing.tiktoken")


# Encodings by name


def test_a_misspelled_name_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'gpt2'"):
        ChatTokenizer.load("gtp2")


def test_an_encoding_by_name_has_the_ids_of_tiktoken(monkeypatch):
    import tiktoken

    ranks = own_tokenizer().encoder.ranks
    special = {"<|endoftext|>": 600, "<|other|>": 601}
    given_encoding = tiktoken.Encoding("x", pat_str=DEFAULT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: given_encoding)
    tokenizer = ChatTokenizer.load("cl100k_base")
    assert tokenizer.encode(CORPUS[0]) == given_encoding.encode_ordinary(CORPUS[0])
    assert (tokenizer.end_id, tokenizer.vocab_size) == (600, 602)


def test_without_a_network_the_error_names_the_file_to_get(monkeypatch):
    def no_network(name: str) -> None:
        raise ConnectionError

    monkeypatch.setattr("tiktoken.get_encoding", no_network)
    with pytest.raises(UserError, match=r"ConnectionError.*get https://.*/r50k_base\.tiktoken"):
        ChatTokenizer.load("gpt2")


def test_a_network_that_never_answers_times_out(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: released.wait(60))
    monkeypatch.setattr(tiktoken_files, "DOWNLOAD_SECONDS", 0.05)
    with pytest.raises(UserError, match="no answer within"):
        ChatTokenizer.load("gpt2")
    released.set()


@given(st.one_of(any_text, st.text("aA'sSſdTl1 \n\r\t/.é\u0301Ⅷ", max_size=30)))
def test_the_patterns_of_public_files_split_like_tiktokens_own(text):
    import regex
    import tiktoken_ext.openai_public as public

    official = {"gpt2": public.r50k_pat_str}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *args, **kwargs: {})
        official |= {name: getattr(public, name)()["pat_str"] for name in ("p50k_base", "cl100k_base", "o200k_base")}
    ours = [tiktoken_files.GPT2_PATTERN] * 2 + [tiktoken_files.CL100K_PATTERN, tiktoken_files.O200K_PATTERN]
    for pattern, theirs in zip(ours, official.values(), strict=True):
        assert regex.findall(pattern, text) == regex.findall(theirs, text)


def test_the_control_tokens_of_public_files_are_tiktokens_own():
    import tiktoken_ext.openai_public as public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *args, expected_hash: {expected_hash.encode(): 0})
        for constructor in (public.r50k_base, public.p50k_base, public.cl100k_base, public.o200k_base):
            encoding = constructor()
            (file_hash,) = encoding["mergeable_ranks"]
            assert tiktoken_files.KNOWN_FILES[file_hash.decode()].control == encoding["special_tokens"]


# The Hugging Face files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTokenizer, object]]:
    """Both kinds with control tokens, ours and as transformers loads them from the saved folder."""
    result = {}
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        tokenizer.add_control_tokens()
        folder = tmp_path_factory.mktemp(kind)
        tokenizer.save(folder)
        result[kind] = tokenizer, hugging_face(folder)
    return result


@both_kinds
def test_transformers_gives_the_same_ids_for_hard_texts(kind, saved):
    tokenizer, theirs = saved[kind]
    for text in HARD_TEXTS:
        if "<|endoftext|>" not in text:
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


@both_kinds
@given(text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs", "Cn"]), max_size=60))
def test_transformers_gives_the_same_ids_for_any_text(kind, saved, text):
    tokenizer, theirs = saved[kind]
    assume(not any(name in text for name in tokenizer.control))
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


@both_kinds
def test_transformers_decodes_to_the_same_text(kind, saved):
    tokenizer, theirs = saved[kind]
    for text in (CORPUS[0], CORPUS[3], "  spaces "):
        assert theirs.decode([*tokenizer.encode(text), tokenizer.end_id], skip_special_tokens=True) == text


@both_kinds
def test_transformers_knows_the_control_tokens(kind, saved):
    tokenizer, theirs = saved[kind]
    assert {name: theirs.convert_tokens_to_ids(name) for name in tokenizer.control} == tokenizer.control
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.end_id


@both_kinds
def test_transformers_puts_bos_where_we_do(kind, saved):
    tokenizer, theirs = saved[kind]
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert theirs(CORPUS[0])["input_ids"] == begin + tokenizer.encode(CORPUS[0])


def test_transformers_reads_u2581_as_a_space_where_llama2c_spells_it(saved):
    tokenizer, theirs = saved["llama2c"]
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a\u2581b"
    assert theirs.encode("a\u2581b", add_special_tokens=False) == tokenizer.encode("a b")


def test_transformers_loads_the_same_tokenizer_beside_a_llama_config(saved, tmp_path):
    """A checkpoint folder has a config.json of the Llama family; its own tokenizer class must not take over."""
    from transformers import LlamaConfig

    for kind in KINDS:
        tokenizer, _ = saved[kind]
        tokenizer.save(tmp_path / kind)
        LlamaConfig().save_pretrained(tmp_path / kind)
        assert hugging_face(tmp_path / kind).encode(CORPUS[3], add_special_tokens=False) == tokenizer.encode(CORPUS[3])


@pytest.mark.parametrize("pattern", ["GPT2_PATTERN", "CL100K_PATTERN", "O200K_PATTERN"])
def test_transformers_splits_like_the_public_encodings(pattern, tmp_path):
    tokenizer = ChatTokenizer(TiktokenBPE(own_tokenizer().encoder.ranks, getattr(tiktoken_files, pattern)))
    tokenizer.save(tmp_path)
    theirs = hugging_face(tmp_path)
    for text in [*CORPUS, *HARD_TEXTS]:
        assert theirs.encode(text) == tokenizer.encode(text)


def test_transformers_gives_gpt2_ids_from_the_saved_folder(gpt2, stories, tmp_path):
    gpt2.save(tmp_path)
    theirs = hugging_face(tmp_path)
    for story in stories[:50]:
        assert theirs.encode(story) == gpt2.encode(story)


def test_transformers_gives_the_ids_of_a_real_llama2c_tokenizer(tok512, stories, tmp_path):
    tok512.save(tmp_path)
    theirs = hugging_face(tmp_path)
    for story in stories[:50]:
        assert theirs.encode(story, add_special_tokens=False) == tok512.encode(story)


def test_entries_that_no_merge_makes_are_still_found_by_transformers(tmp_path):
    """tiktoken keeps a chunk that is an entry, and merges any two neighbors that form one."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"hello": 256, b"xy": 259, b"xyz": 257, b"yz": 258}
    tokenizer = ChatTokenizer(TiktokenBPE(ranks, DEFAULT_PATTERN))
    tokenizer.save(tmp_path)
    theirs = hugging_face(tmp_path)
    for text in ("hello", "hello hellos", "xyz", "axyz", "xyzxyz yzxy"):
        assert theirs.encode(text) == tokenizer.encode(text)

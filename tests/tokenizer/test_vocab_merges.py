"""GPT-2's tokenizer as vocab.json and merges.txt: the ids of `transformers`, and one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import hostile
from tokenizer_samples import CORPUS, HARD_TEXTS

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder

END = "<|endoftext|>"


def make_folder(folder: Path, model_type: str = "gpt2", **files: Any) -> Path:
    """A folder as GPT-2's authors published it, with a vocabulary trained here; `files` by name without ".json"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    folder.mkdir()
    made.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocab | {END: len(vocab)}), encoding="utf-8")
    for name, value in ({"config": {"model_type": model_type, "eos_token_id": len(vocab)}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def theirs(folder: Path) -> Any:
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast.from_pretrained(str(folder))


def test_ids_equal_those_of_transformers(tmp_path):
    folder = make_folder(tmp_path / "gpt2")
    ours, expected = tokenizer_from_folder(folder, gpt2_files=True), theirs(folder)
    for text in [*HARD_TEXTS, *hostile(500)]:
        if END not in text:
            assert ours.encode(text) == expected.encode(text), text


def test_the_end_token_is_a_control_token_that_no_text_spells(tmp_path):
    ours = tokenizer_from_folder(make_folder(tmp_path / "gpt2"), gpt2_files=True)
    token_id = ours.control[END]
    assert ours.declared.eos_id == token_id
    assert ours.stop_ids == {token_id}
    assert token_id not in ours.encode(f"a {END} b")
    assert ours.decode(ours.encode(f"a {END} b")) == f"a {END} b"


def test_tokens_that_were_added_later_are_control_tokens(tmp_path):
    folder = make_folder(
        tmp_path / "neo",
        "gpt_neo",
        added_tokens={"[PAD]": 501},
        special_tokens_map={"eos_token": END, "pad_token": "[PAD]", "bos_token": {"content": END}},
    )
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    ours = tokenizer_from_folder(folder, gpt2_files=True)
    assert ours.control == {END: size - 1, "[PAD]": size}
    assert size not in ours.encode("[PAD]")
    assert theirs(folder).encode("[PAD]") == [size]


def test_it_is_saved_as_a_tokenizer_json(tmp_path):
    ours = tokenizer_from_folder(make_folder(tmp_path / "gpt2"), gpt2_files=True)
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    again = ChatTokenizer.load(tmp_path / "saved")
    assert again.fingerprint() == ours.fingerprint()
    assert again.encode("The cat’s 12 hats") == ours.encode("The cat’s 12 hats")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt, line 2: 'a b c' is not two pieces"),
        ("merges.txt", "#version: 0.2\nab\n", "merges.txt, line 2: 'ab' is not two pieces"),
        ("merges.txt", b"\xff\xfe\n", "is not UTF-8 text"),
        ("merges.txt", "zzz qqq\n", "can't be used"),
        ("vocab.json", "[1, 2]", "vocab.json"),
        ("vocab.json", '{"a": "b"}', "vocab.json"),
        ("added_tokens.json", '{"a": -5}', "can't be used"),
        ("config.json", "{", "config.json"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, file, content, message):
    folder = make_folder(tmp_path / "gpt2")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        tokenizer_from_folder(folder, gpt2_files=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_two_files_of_another_family_are_not_taken_for_gpt2s(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer.json; make it of vocab.json with transformers"):
        tokenizer_from_folder(make_folder(tmp_path / "qwen", "qwen2"))

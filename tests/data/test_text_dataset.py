"""Plain text for pretraining: every token of every document is a target exactly once an epoch, documents stay apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.text_dataset import TextDataset, find_text, split_documents, tokenize_file

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.document_id


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "stories-train.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS * 4) + "\n<|endoftext|>\n", encoding="utf-8")
    return path


def test_the_token_file_holds_every_document_with_its_separator(text_file):
    file = tokenize_file(text_file, TOKENIZER)
    assert len(file) == len(TEXTS) * 4
    for document, text in zip(file, TEXTS * 4, strict=False):
        assert document.tolist() == [END, *TOKENIZER.encode(text)]


def test_a_file_is_tokenised_once_and_again_when_it_or_the_tokenizer_changes(text_file):
    first = tokenize_file(text_file, TOKENIZER).folder
    assert tokenize_file(text_file, TOKENIZER).folder == first
    assert tokenize_file(text_file, tiny_tokenizer(280)).folder != first
    text_file.write_text(text_file.read_text(encoding="utf-8") + "One more.\n<|endoftext|>\n", encoding="utf-8")
    assert tokenize_file(text_file, TOKENIZER).folder != first


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(3, 20))
def test_each_token_and_each_end_is_predicted_exactly_once_an_epoch(lengths, context):
    documents = [np.array([END, *(n * 50 + np.arange(length))], np.int32) for n, length in enumerate(lengths)]

    class Memory:
        offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])

        def __len__(self):
            return len(documents)

        def __getitem__(self, index):
            return documents[index]

    source = TextDataset(Memory(), END, context, seed=3)
    targets = []
    for index in range(len(source)):
        example = source[index]
        assert 2 <= len(example.ids) <= context
        assert not example.loss_mask[0]
        targets += example.ids[1:][example.loss_mask[1:]].tolist()
    wanted = [int(token) for document in documents for token in document[1:]] + [END] * len(documents)
    assert sorted(targets) == sorted(wanted)


def test_an_epoch_is_a_new_order_and_the_same_in_every_process(text_file):
    source = TextDataset(tokenize_file(text_file, TOKENIZER), END, 64, seed=1)
    again = TextDataset(tokenize_file(text_file, TOKENIZER), END, 64, seed=1)
    n = len(source)
    epochs = [[tuple(source[e * n + i].ids.tolist()) for i in range(n)] for e in (0, 1)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert [tuple(again[n + i].ids.tolist()) for i in range(n)] == epochs[1]


def test_the_held_out_documents_are_never_trained_on():
    train, held = split_documents(250)
    assert len(held) == 2
    assert sorted([*train, *held]) == list(range(250))
    assert len(split_documents(2)[1]) == 1


def test_files_are_found_by_split_and_absence_is_said(tmp_path, text_file):
    assert find_text(tmp_path, "train") == text_file
    assert find_text(tmp_path, "valid") is None
    twin = tmp_path / "stories-valid.txt"
    twin.write_text("x\n<|endoftext|>\n")
    assert find_text(text_file, "valid") == twin
    with pytest.raises(UserError, match="no text at"):
        find_text(tmp_path / "nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no stories"):
        find_text(tmp_path / "empty", "train")


def test_a_file_without_a_story_leaves_nothing_behind(tmp_path):
    path = tmp_path / "stories-train.txt"
    path.write_text("\n<|endoftext|>\n  \n<|endoftext|>\n")
    with pytest.raises(UserError, match=str(path)):
        tokenize_file(path, TOKENIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["stories-train.txt"]

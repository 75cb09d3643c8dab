"""Plain text for pretraining: every token of every document is a target exactly once per epoch, documents are separate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.text_dataset import TextDataset, TokenFile, split_documents, tokenize_file
from mini_chat_gpt.tinystories.records import stories

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.document_id


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "stories-train.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS * 4) + "\n<|endoftext|>\n", encoding="utf-8")
    return path


def tokens(path, tokenizer=TOKENIZER) -> TokenFile:
    return tokenize_file(path, stories(path), tokenizer)


def test_the_token_file_contains_every_document_with_its_separator(text_file):
    file = tokens(text_file)
    assert len(file) == len(TEXTS) * 4
    for document, text in zip(file, TEXTS * 4, strict=False):
        assert document.tolist() == [END, *TOKENIZER.encode(text)]


def test_a_file_is_tokenized_again_only_if_it_or_the_tokenizer_changes(text_file):
    first = tokens(text_file).folder
    assert tokens(text_file).folder == first
    assert tokens(text_file, tiny_tokenizer(280)).folder != first
    text_file.write_text(text_file.read_text(encoding="utf-8") + "One more.\n<|endoftext|>\n", encoding="utf-8")
    assert tokens(text_file).folder != first


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(3, 20))
def test_each_token_and_each_end_is_predicted_exactly_once_per_epoch(lengths, context):
    documents = [np.array([END, *(n * 50 + np.arange(length))], np.int32) for n, length in enumerate(lengths)]

    class Memory:
        offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])

        def __len__(self):
            return len(documents)

        def __getitem__(self, index):
            return documents[index]

    source = TextDataset(Memory(), DataSection().limited_to(context), seed=3)
    targets = []
    for index in range(len(source)):
        example = source[index]
        assert 2 <= len(example.ids) <= context
        assert not example.loss_mask[0]
        targets += example.ids[1:][example.loss_mask[1:]].tolist()
    wanted = [int(token) for document in documents for token in document[1:]] + [END] * len(documents)
    assert sorted(targets) == sorted(wanted)


def test_each_epoch_has_a_new_order_that_is_the_same_in_every_process(text_file):
    source = TextDataset(tokens(text_file), DataSection(seq_len=64), seed=1)
    again = TextDataset(tokens(text_file), DataSection(seq_len=64), seed=1)
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


def test_a_file_without_a_story_leaves_nothing_behind(tmp_path):
    path = tmp_path / "stories-train.txt"
    path.write_text("\n<|endoftext|>\n  \n<|endoftext|>\n")
    with pytest.raises(UserError, match=str(path)):
        tokens(path)
    assert [p.name for p in tmp_path.iterdir()] == ["stories-train.txt"]

"""Plain text for pretraining: every token of every document is a target exactly once per epoch, documents are separate."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.data.text_dataset import (
    TextDataset,
    TokenFile,
    sample_texts,
    split_documents,
    split_ends,
    tokenize_file,
)
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


@pytest.mark.parametrize("chosen", [[0, 1, 2, 4, 6, 7, 9], [3], [0, 9], [*range(1, 10)], [*range(9)]])
def test_the_pieces_of_some_documents_are_those_that_the_documents_have_alone(text_file, chosen):
    file, data = tokens(text_file), DataSection(seq_len=16)
    documents = np.array(chosen)
    some = TextDataset(file, data, 0, documents)
    alone = [TextDataset(file, data, 0, documents[at : at + 1]) for at in range(len(chosen))]
    expected = [one.read(number).ids.tolist() for one in alone for number in range(len(one))]
    assert [some.read(number).ids.tolist() for number in range(len(some))] == expected


def test_a_dataset_takes_eight_bytes_for_each_piece_and_document(text_file):
    file = tokens(text_file)
    for dataset in (
        TextDataset(file, DataSection(), 0),
        TextDataset(file, DataSection(), 0, split_documents(len(file))[0]),
    ):
        dataset[0]
        arrays = [value for value in vars(dataset).values() if isinstance(value, np.ndarray)]
        assert [array.itemsize for array in [*arrays, dataset._order._current[1]]] == [4, 4]


def test_a_file_without_a_story_leaves_nothing_behind(tmp_path):
    path = tmp_path / "stories-train.txt"
    path.write_text("\n<|endoftext|>\n  \n<|endoftext|>\n")
    with pytest.raises(UserError, match=str(path)):
        tokens(path)
    assert [p.name for p in tmp_path.iterdir()] == ["stories-train.txt"]


class Counting:
    """A document that counts the tokens that are read from it."""

    def __init__(self, length):
        self.length, self.n_read = length, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        numbers = np.arange(self.length)[index] if isinstance(index, int) else np.arange(*index.indices(self.length))
        self.n_read += np.size(numbers)
        return numbers.astype(np.uint16) if np.ndim(numbers) else np.uint16(numbers)


class OneDocument:
    """A token file whose only document is a `Counting`."""

    def __init__(self, length):
        self.document, self.offsets = Counting(length), np.array([0, length])

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.document


def test_an_example_of_a_long_document_reads_its_own_tokens_only():
    file, data = OneDocument(1_000_000), DataSection(seq_len=64)
    for dataset in (TextDataset(file, data, seed=0), *split_ends(file, data, 0, np.array([0]))):
        file.document.n_read = 0
        read = [dataset[3], dataset.read(len(dataset) - 1), *dataset.first(5)]
        assert file.document.n_read <= 64 * len(read) + 2  # the separator is read once more at the end


def test_the_number_of_pieces_takes_no_memory():
    few, many = (TextDataset(OneDocument(length), DataSection(seq_len=16), seed=0) for length in (1_000, 100_000_000))
    assert len(many) > 6_000_000
    sizes = [sum(value.nbytes for value in vars(d).values() if isinstance(value, np.ndarray)) for d in (few, many)]
    assert sizes[0] == sizes[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 700), st.integers(16, 40))
def test_each_token_of_a_single_document_is_predicted_in_training_or_in_validation(length, context):
    parts = split_ends(OneDocument(length), DataSection().limited_to(context), 0, np.array([0]))
    targets = []
    for dataset in parts:
        own = []
        for number in range(len(dataset)):
            example = dataset.read(number)
            assert 2 <= len(example.ids) <= context
            own += example.ids[1:].tolist()
        targets.append(own)
    training, held_out = targets
    assert training + held_out == [*range(1, length), 0]
    assert len(held_out) == max(1, (length + 1) // 10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 90), min_size=2, max_size=9), st.integers(16, 40))
def test_the_ends_of_several_documents_are_held_out(lengths, context):
    documents = [np.array([0, *(n * 100 + np.arange(1, length))], np.int32) for n, length in enumerate(lengths)]

    class Memory:
        offsets = np.concatenate([[0], np.cumsum(lengths)])

        def __getitem__(self, index):
            return documents[index]

    chosen = np.arange(1, len(lengths))
    parts = split_ends(Memory(), DataSection().limited_to(context), 0, chosen)
    training, held_out = ([part.read(n).ids.tolist()[1:] for n in range(len(part))] for part in parts)
    targets = [[*chain(*part)] for part in (training, held_out)]
    wanted = [[*documents[n].tolist()[1:], 0] for n in chosen]
    ends = [max(1, (lengths[n] + 1) // 10) for n in chosen]
    assert targets[0] == [*chain(*(ids[:-n] for ids, n in zip(wanted, ends, strict=True)))]
    assert targets[1] == [*chain(*(ids[-n:] for ids, n in zip(wanted, ends, strict=True)))]


def test_a_tokenizer_is_trained_on_the_beginning_of_a_text_that_is_larger_than_the_limit():
    assert list(sample_texts(["abcdef"], megabytes=4e-6)) == ["abcd"]
    assert list(sample_texts(["ab", "cdef", "g"], megabytes=4e-6)) == ["ab", "cdef"]

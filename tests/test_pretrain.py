"""Pretraining takes any text: one document or many, short or long, or says in one sentence why not."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tiny import tiny_config

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config
from mini_chat_gpt.pretrain import make_datasets, make_tokenizer, pretrain

SEPARATOR = b"\n<|endoftext|>\n"
BOOK = b"To be, or not to be, that is the question.\n" * 40


def config(path: Path, model: dict[str, int] = {}, **data: int) -> Config:  # noqa: B006 (not changed)
    sizes = {"preset": None, "n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32, **model}
    section = {"dataset_path": str(path), "tokenizer": "train", "tokenizer_vocab_size": 280, "max_steps": 1}
    return tiny_config(
        model=sizes, data={"seq_len": 32, "num_workers": 0, "eval_examples": 4, **data}, pretrain=section
    )


def datasets(settings: Config) -> tuple[list[list[int]], list[list[int]], str]:
    """The ids of all training and held-out pieces, and what was printed."""
    text, output = Path(settings.pretrain.dataset_path), StringIO()
    out = Console(file=output, width=200)
    tokenizer = make_tokenizer(settings, text, out)
    parts = make_datasets(settings, text, tokenizer, 32, out)
    train, held_out = ([part.read(number).ids.tolist() for number in range(len(part))] for part in parts)
    return train, held_out, output.getvalue()


TEXTS = {
    "a book without separators": BOOK,
    "one separator at the end": BOOK + SEPARATOR,
    "one separator at the beginning": SEPARATOR + BOOK,
    "one character": b"a",
    "one character and a separator": b"a<|endoftext|>",
    "empty documents around one": SEPARATOR + b" \n" + SEPARATOR + b"one" + SEPARATOR + SEPARATOR,
    "a byte order mark and CRLF": b"\xef\xbb\xbfOne line.\r\nTwo lines.\r\n",
    "invalid UTF-8": b"caf\xe9 \xff\xfe\x01 hello " * 20,
    "one long word": b"a" * 20_000,
    "a book that begins like a field": b"Summary: all\n" + BOOK,
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS.keys())
def test_a_single_document_is_trained_on_and_its_end_is_held_out(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    train, held_out, printed = datasets(config(path))
    assert train
    assert held_out
    assert f"{path}: one document, whose last tenth is held out" in printed
    # Consecutive pieces share one token. The validation part continues where the training part ends.
    assert held_out[0][0] == train[-1][-1]
    assert sum(len(ids) - 1 for ids in train) >= sum(len(ids) - 1 for ids in held_out)


def test_a_limit_of_one_document_holds_out_its_end(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_bytes(BOOK + SEPARATOR + b"Another one." + SEPARATOR + b"A third.")
    train, held_out, printed = datasets(config(path, limit=1))
    assert "one document" in printed
    (tmp_path / "one").mkdir()
    alone = tmp_path / "one" / "book.txt"
    alone.write_bytes(BOOK)
    assert sum(map(len, train + held_out)) > 400
    assert len(datasets(config(alone))[0]) >= 1


def test_of_two_documents_the_second_one_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_bytes(b"a" + SEPARATOR + b"b")
    train, held_out, printed = datasets(config(path))
    assert (len(train), len(held_out)) == (1, 1)
    assert "one document" not in printed


def test_a_validation_file_leaves_the_single_document_whole(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_bytes(BOOK)
    train, held_out, printed = datasets(config(tmp_path / "train.txt"))
    assert train == held_out
    assert "one document" not in printed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (SEPARATOR * 5, "has separators but no text"),
        ("Once upon a time".encode("utf-16"), "is not a text file in UTF-8"),
        (b"Words: a" + SEPARATOR + b"Summary: b", "has a story after a line"),
        (b"a" + b" " * 1_200_000 + b"b", "1,200,000 white-space characters in a row"),
    ],
)
def test_a_file_without_text_is_one_sentence(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        datasets(config(path))


def test_pretraining_on_a_single_short_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_bytes(b"a")
    result = pretrain(config(tmp_path / "book.txt"))
    assert result.steps == 1
    assert result.val_losses["val_loss"] > 0


def test_a_vocabulary_smaller_than_the_tokenizers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_bytes(BOOK)
    with pytest.raises(UserError, match=r"model.vocab_size is 10, but the tokenizer has 280 ids"):
        pretrain(config(tmp_path / "book.txt", {"vocab_size": 10}))


def test_the_tokenizer_can_be_that_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_bytes(BOOK)
    first = config(tmp_path / "book.txt")
    pretrain(first)
    run = Path(first.pretrain.save_dir)
    assert not (run / "tokenizer_meta.json").exists()  # it is in the checkpoints
    settings = first.model_copy(update={"pretrain": first.pretrain.model_copy(update={"tokenizer": str(run)})})
    again, trained = (make_tokenizer(one, tmp_path / "book.txt", Console(file=StringIO())) for one in (settings, first))
    assert again.fingerprint() == trained.fingerprint()

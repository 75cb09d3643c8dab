"""Pretraining takes any text: one document or many, short or long, or says in one sentence why not."""

from __future__ import annotations

import bz2
import gzip
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny import tiny_config

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config
from mini_chat_gpt.pretrain import make_tokenizer, pretrain
from mini_chat_gpt.tinystories import documents
from mini_chat_gpt.tinystories.documents import read_documents
from mini_chat_gpt.tinystories.records import stories
from mini_chat_gpt.training.pretrain_data import find_texts, make_datasets

SEPARATOR = b"\n<|endoftext|>\n"
BOOK = b"To be, or not to be, that is the question.\n" * 40


def config(path: Path | str, model: dict[str, int] = {}, text: dict[str, str] = {}, **data: int) -> Config:  # noqa: B006
    sizes = {"preset": None, "n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32, **model}
    section = {"dataset_path": str(path), "tokenizer": "train", "tokenizer_vocab_size": 280, "max_steps": 1, **text}
    return tiny_config(
        model=sizes, data={"seq_len": 32, "num_workers": 0, "eval_examples": 4, **data}, pretrain=section
    )


def datasets(settings: Config) -> tuple[list[list[int]], list[list[int]], str]:
    """The ids of all training and held-out pieces, and the sentence about them."""
    texts, out = find_texts(settings.pretrain), Console(file=StringIO())
    tokenizer = make_tokenizer(settings, texts.train, out)
    *parts, sentence = make_datasets(texts, settings.data.limited_to(32), tokenizer, settings.system.seed, out)
    train, held_out = ([part.read(number).ids.tolist() for number in range(len(part))] for part in parts)
    return train, held_out, sentence


TEXTS = {
    "a book without separators": BOOK,
    "one separator at the end": BOOK + SEPARATOR,
    "one separator at the beginning": SEPARATOR + BOOK,
    "one character": b"a",
    "one character and a separator": b"a<|endoftext|>",
    "empty documents around one": SEPARATOR + b" \n" + SEPARATOR + b"one" + SEPARATOR + SEPARATOR,
    "a byte order mark and CRLF": b"\xef\xbb\xbfOne line.\r\nTwo lines.\r\n",
    "a byte that is not UTF-8": BOOK + b"caf\xe9",
    "UTF-16": BOOK.decode().encode("utf-16"),
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


def test_of_few_documents_the_ends_are_held_out(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_bytes(SEPARATOR.join([BOOK] * 9))
    train, held_out, printed = datasets(config(path))
    assert f"{path}: 9 documents (separated by <|endoftext|>); the last tenth of each is held out" in printed
    assert 8 < sum(len(ids) - 1 for ids in train) / sum(len(ids) - 1 for ids in held_out) < 12
    path.write_bytes(SEPARATOR.join([b"a", b"b"]))
    assert [len(part) for part in datasets(config(path))[:2]] == [2, 2]


def test_of_many_documents_whole_ones_are_held_out(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_bytes(SEPARATOR.join(b"Story %d." % n for n in range(30)))
    train, held_out, printed = datasets(config(path))
    assert (len(train), len(held_out)) == (29, 1)
    assert f"{path}: 30 documents (separated by <|endoftext|>); 1 of them is held out for validation" in printed


def test_a_validation_file_leaves_the_single_document_whole(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_bytes(BOOK)
    train, held_out, printed = datasets(config(tmp_path / "train.txt"))
    assert train == held_out
    assert f"one document; held out for validation: 1 of {tmp_path / 'valid.txt'}" in printed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (SEPARATOR * 5, "has separators but no text"),
        (bytes(5000), "is not a text file: it has NUL bytes"),
        (
            "Un été à la mer, près de la forêt.".encode("latin-1") * 9,
            "is not UTF-8 .*iconv -f LATIN1 -t UTF-8 book.txt",
        ),
        ("“Once” – upon a time".encode("cp1252") * 9, "is not UTF-8 .*iconv -f WINDOWS-1252"),
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
    again, trained = (
        make_tokenizer(one, find_texts(one.pretrain).train, Console(file=StringIO())) for one in (settings, first)
    )
    assert again.fingerprint() == trained.fingerprint()


# Several files, and other kinds of files


def texts_of(path: Path | str, **text: str) -> list[str]:
    return list(find_texts(config(path, text=text).pretrain).train)


RECORDS = [{"text": "One, two.", "id": 1}, {"text": " \n", "id": 2}, {"text": "Three.\r\nFour.", "id": 3}]
JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
FILES = {
    "x.jsonl": JSON_LINES.encode(),
    "x.json": json.dumps(RECORDS).encode(),
    "x.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "x.csv": b'id,text\n1,"One, two."\n2," "\n3,"Three.\nFour."\n',
    "x.tsv": b"text\tid\nOne, two.\t1\n\"Three.\nFour.\"\t2\n",
    "x.md": b"One, two.<|endoftext|> <|endoftext|>\nThree.\r\nFour.",
    "x": b"\xef\xbb\xbfOne, two.\n<|endoftext|>\nThree.\nFour.\n<|endoftext|>",
    "x.txt.bz2": bz2.compress(b"One, two.\n<|endoftext|>\nThree.\nFour."),
    "x.txt": "One, two.<|endoftext|>Three.\nFour.".encode("utf-16"),
    "TinyStories-Instruct-train.txt.gz": gzip.compress(b"Words: a\nStory:\nOne, two.<|endoftext|>Story: Three.\nFour."),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert texts_of(tmp_path / name) == ["One, two.", "Three.\nFour."]


def test_records_of_parquet_and_arrow(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "x")  # the name says nothing
    assert texts_of(tmp_path / "x") == ["One, two.", "Three.\nFour."]


def test_records_without_a_text_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"messages": [], "id": 1}\n')
    with pytest.raises(
        UserError, match=r"x.jsonl, line 2: no text to pretrain on; .* keys 'messages', 'id'.*mini-chat-gpt sft"
    ):
        texts_of(path)
    path.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match=r"x.jsonl, line 2: it is not valid JSON: .*; correct or remove it"):
        texts_of(path)


def test_a_text_that_begins_like_records_stays_a_text(tmp_path: Path) -> None:
    for text in ("[Illustration]\n\nA novel.", '{"a"', "text,label\na,b", "---\ntitle: x\n---\n# Page"):
        (tmp_path / "x.txt").write_text(text)
        assert texts_of(tmp_path / "x.txt") == [text]


def test_ways_to_divide_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n\r\n \t\r\nc<|endoftext|>\n\n\nd === e\n")
    assert texts_of(path, documents="blank_lines") == ["a\nb", "c<|endoftext|>", "d === e"]
    assert texts_of(path, documents="lines") == ["a", "b", "c<|endoftext|>", "d === e"]
    assert texts_of(path, documents="files") == ["a\nb\n\n \t\nc<|endoftext|>\n\n\nd === e"]
    assert texts_of(path, separator=" === ") == ["a\nb\n\n \t\nc<|endoftext|>\n\n\nd", "e"]
    for way, shown in (("blank_lines", "separated by blank lines"), ("lines", "one for each line")):
        assert (
            f"documents ({shown}); the last tenth of each is held out"
            in datasets(config(path, text={"documents": way}))[2]
        )


@given(st.lists(st.text("ab<|endoftx> \n\r", max_size=30), min_size=1, max_size=6), st.integers(1, 40))
def test_the_documents_of_a_file_are_those_of_earlier_versions(
    tmp_path_factory: Any, parts: list[str], block: int
) -> None:
    path = tmp_path_factory.mktemp("a") / "x.txt"
    path.write_bytes("<|endoftext|>".join(parts).encode())
    before, documents._BLOCK = documents._BLOCK, block
    try:
        found = list(read_documents(path))
    finally:
        documents._BLOCK = before
    try:
        assert found == list(stories(path))
    except UserError:
        assert found == []


def test_a_folder_of_pages(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"page{n}.md").write_text(f"# Page {n}\n\nSome text.\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "README.md").write_text("# More")
    (tmp_path / "empty.md").touch()
    (tmp_path / "data.json").write_text("{}")
    texts = find_texts(config(tmp_path).pretrain)
    assert list(texts.train) == ["# More", *(f"# Page {n}\n\nSome text." for n in range(3))]
    assert texts.notes == [
        f"{tmp_path}: trained on: more/README.md, page0.md, page1.md, page2.md; not used: data.json, empty.md (empty)."
    ]
    printed = datasets(config(tmp_path))[2]
    assert f"{tmp_path}: 4 documents (one for each file); the last tenth of each is held out for validation" in printed
    assert texts_of(f"{tmp_path}/page[01].md,{tmp_path}/page2.md") == texts_of(f"{tmp_path}/p*.md")


def test_a_folder_that_has_only_a_readme_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("The data are downloaded to this folder.")
    (tmp_path / "LICENSE.txt").write_text("MIT")
    with pytest.raises(UserError, match=r"it has LICENSE.txt, README.md; name a file or .* `mini-chat-gpt prepare`"):
        find_texts(config(tmp_path).pretrain)
    assert texts_of(f"{tmp_path}/README.md,{tmp_path}/*.txt") == ["The data are downloaded to this folder.", "MIT"]


def test_a_folder_of_records_with_a_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("About the data.")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"text": "{split}"}}\n')
    texts = find_texts(config(tmp_path).pretrain)
    assert texts.held_out is not None
    assert (list(texts.train), list(texts.held_out)) == (["train"], ["validation"])
    assert (
        f"one document; held out for validation: 1 of {tmp_path / 'validation.jsonl'}" in datasets(config(tmp_path))[2]
    )


def test_tokens_of_several_files_are_made_again_only_if_something_changes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two")

    def folders(**text: str) -> set[str]:
        datasets(config(tmp_path, text=text))
        return {path.name for path in tmp_path.iterdir() if path.is_dir()}

    first = folders()
    assert folders() == first
    assert len(folders(documents="blank_lines")) == 2
    (tmp_path / "b.txt").write_text("other")
    assert len(folders(documents="blank_lines")) == 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("none.txt", "There is no text at none.txt"),
        ("*.text", r"No file matches \*.text"),
        ("void", r"void has no files of text \(.txt, .*.parquet.*\): it has no data at all"),
        ("link.txt", "link.txt is a link to gone.txt, which does not exist"),
        ("a.txt,none.txt", "There is no text at none.txt"),
        ("page.html", r"is a web page \(HTML\)"),
        ("book.pdf", "is a PDF; convert it to text first"),
        ("book.txt.gz", "book.txt.gz: the gzip file is incomplete; get it again"),
    ],
)
def test_mistakes_with_paths_are_one_sentence(
    path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "link.txt").symlink_to("gone.txt")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "page.html").write_text("<!DOCTYPE html><p>Hi")
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.7 x")
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(BOOK)[:-9])
    with pytest.raises(UserError, match=expected):
        texts_of(path)


def test_a_document_that_does_not_fit_into_memory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 1 << 20)
    (tmp_path / "x.txt").write_bytes(b"A line.\n\n" * 200_000)
    for way in ("auto", "files"):
        with pytest.raises(UserError, match=r"x.txt has a document of more than .*blank_lines"):
            texts_of(tmp_path / "x.txt", documents=way)
    assert len(texts_of(tmp_path / "x.txt", documents="blank_lines")) == 200_000

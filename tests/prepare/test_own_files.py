"""The user's own files become a data folder: copied, split, or labeled."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.prepare.own_files import import_files
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records, stories
from mini_chat_gpt.tinystories.records import find_text

TRAIN, VALID = "TinyStoriesInstruct-train.txt", "TinyStoriesInstruct-valid.txt"
SEPARATOR = b"<|endoftext|>"


def record(i: int) -> bytes:
    return f"Words: run, cat, red\nStory: \n\nBen saw cat number {i}. Ben ran home.".encode()


def text(records: list[bytes]) -> bytes:
    return b"".join(record + b"\n" + SEPARATOR + b"\n" for record in records)


def take(folder: Path, *paths: Path, fraction: float = 0.1, label: bool = False) -> Path:
    import_files(folder, paths, fraction, Console(quiet=True), label)
    return folder


def parts(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """The records of both parts, without the line break that ends each."""
    train, valid = ((folder / name).read_bytes().split(SEPARATOR) for name in (TRAIN, VALID))
    assert train.pop() in (b"", b"\n")
    assert valid.pop() in (b"", b"\n")
    return [part.strip(b"\n") for part in train], [part.strip(b"\n") for part in valid]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.txt"
    file.write_bytes(text([record(i) for i in range(500)]))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_one_file_is_split_and_every_record_is_in_one_part(own: Path, folder: Path) -> None:
    train, valid = parts(take(folder, own))
    assert sorted(train + valid) == sorted(record(i) for i in range(500))
    assert not set(train) & set(valid)


def test_the_validation_part_has_about_the_requested_size(own: Path, folder: Path) -> None:
    _, valid = parts(take(folder, own, fraction=0.2))
    assert 70 <= len(valid) <= 130


def test_the_split_is_reproducible(own: Path, tmp_path: Path) -> None:
    assert parts(take(tmp_path / "a", own)) == parts(take(tmp_path / "b", own))


def test_added_records_do_not_move_others_to_the_other_part(own: Path, tmp_path: Path) -> None:
    _, before = parts(take(tmp_path / "a", own))
    own.write_bytes(text([record(i) for i in range(600)]))
    _, after = parts(take(tmp_path / "b", own))
    assert set(before) == {part for part in after if int(part.split(b"number ")[1].split(b".")[0]) < 500}


def test_a_duplicate_story_is_in_one_part_only(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "double.txt"
    file.write_bytes(text([record(i).replace(b"red", word) for i in range(300) for word in (b"red", b"blue")]))
    take(folder, file)
    assert not set(stories(folder / TRAIN)) & set(stories(folder / VALID))


def test_two_stories_give_one_to_each_part(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "two.txt"
    file.write_bytes(text([record(1), record(2)]))
    assert [len(part) for part in parts(take(folder, file, fraction=0.001))] == [1, 1]


def test_one_story_cannot_be_split(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_bytes(text([record(1), record(1)]))
    with pytest.raises(UserError, match="too small to be split"):
        take(folder, file)
    assert list(folder.iterdir()) == []


def test_unusual_bytes_of_a_record_survive_the_split(tmp_path: Path, folder: Path) -> None:
    odd = b"Story: \r\n\r\nBen\xe2\x80\x99s caf\xc3\xa9 \xff\xfe was\t shut. \r\n Ben ran."
    file = tmp_path / "odd.txt"
    file.write_bytes(text([odd, record(1)]))
    train, valid = parts(take(folder, file))
    assert odd in train + valid


def test_records_without_a_story_are_skipped(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_bytes(text([record(1), b"Words: a, b", record(2)]))
    train, valid = parts(take(folder, file))
    assert sorted(train + valid) == [record(1), record(2)]


@pytest.mark.parametrize("way", ["two files", "folder", "folder in hub spelling", "one file and its valid file"])
def test_a_pair_of_files_is_copied_byte_for_byte(tmp_path: Path, folder: Path, way: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    names = ("TinyStories-Instruct-train.txt", "TinyStories-Instruct-valid.txt") if "hub" in way else (TRAIN, VALID)
    files = [place / name for name in names]
    contents = [b"\r\n" + text([record(i)]) + b"Story: cut o" for i in (1, 2)]
    for file, data in zip(files, contents, strict=True):
        file.write_bytes(data)
    paths = {"two files": files, "one file and its valid file": files[:1]}.get(way, [place])
    take(folder, *paths)
    assert [(folder / TRAIN).read_bytes(), (folder / VALID).read_bytes()] == contents


def test_the_same_file_twice_is_rejected(own: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="both train and valid"):
        take(folder, own, own)


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no text at|There is no"),
        (b"", "empty"),
        (b"a\0b", "not a text"),
        (b"Once.", "endoftext"),
        (b"Words: a\n<|endoftext|>", "story|--source"),
    ],
)
def test_a_file_that_is_not_a_story_file_is_rejected_before_anything_is_written(
    tmp_path: Path, folder: Path, data: bytes | None, words: str, label: bool
) -> None:
    file = tmp_path / "bad.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(UserError, match=words):
        take(folder, file, label=label)
    assert not folder.exists()


def test_chats_need_no_preparation(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"question": "Hi?", "answer": "Yes."}\n')
    with pytest.raises(UserError, match=r"chats need no preparation: `mini-chat-gpt inspect .*chats\.jsonl`"):
        take(folder, tmp_path / "chats.jsonl")
    assert not folder.exists()


def test_the_second_of_two_files_is_checked_before_the_first_is_copied(own: Path, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r"bad\.txt"):
        take(folder, own, tmp_path / "bad.txt")
    assert not folder.exists()


# Labeled plain stories


def test_labeled_records_contain_the_original_stories(real_data: Path, folder: Path) -> None:
    source = real_data / "tinystories" / "stories-valid.txt"
    take(folder, source, source.with_name("stories-train.txt"), label=True)
    assert list(stories(folder / TRAIN)) == list(stories(source))


def test_labeled_records_support_tasks_that_plain_stories_do_not(real_data: Path, folder: Path) -> None:
    take(folder, real_data / "tinystories" / "stories-valid.txt", label=True)
    kinds = {task.kind for record in read_records(folder / VALID) for task in generate_tasks(record, 0)}
    assert "words" in kinds
    assert not kinds & {"summary", "what_happened", "ending"}


def test_the_valid_file_of_a_train_file_is_used(real_data: Path, folder: Path) -> None:
    source = real_data / "tinystories" / "stories-train.txt"
    twin = find_text(source, "valid")
    assert twin is not None
    take(folder, source, label=True)
    assert set(stories(folder / VALID)) == set(stories(twin))


def test_labeled_parts_have_no_story_in_common(real_data: Path, folder: Path) -> None:
    source = real_data / "tinystories" / "stories-valid.txt"
    take(folder, source, label=True)
    train, valid = (set(stories(folder / name)) for name in (TRAIN, VALID))
    assert not train & valid
    assert train | valid == set(stories(source))


def test_records_with_fields_are_not_labeled_again(own: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="--source"):
        take(folder, own, label=True)

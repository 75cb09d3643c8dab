"""Records as they are in real files: fields in any order or missing, damaged and foreign files."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tinystories import records
from mini_chat_gpt.tinystories.records import (
    StoryRecord,
    find_instruct_file,
    find_text,
    parse_record,
    read_records,
    stories,
)

STORY = "Tom had a cat.\n\nThe cat ran away."


def write(folder, content: str | bytes, name: str = "stories.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_field_of_a_record_is_read():
    text = (
        "Features: Dialogue, BadEnding\nWords: lend, kite, windy\nRandom sentence: It was cold.\n"
        f"Summary: Tom loses his cat.\nStory: \n\n{STORY}\n"
    )
    expected = StoryRecord(
        ("Dialogue", "BadEnding"), ("lend", "kite", "windy"), "Tom loses his cat.", "It was cold.", STORY
    )
    assert parse_record(text) == expected


@given(
    st.permutations(
        ["Features: Twist", "Words: oak, quit", "Summary: A cat.", "Random sentence: Hi.", f"Story:\n{STORY}"]
    )
)
def test_fields_are_found_in_any_order_also_after_the_story(parts):
    assert parse_record("\n".join(parts)) == StoryRecord(("Twist",), ("oak", "quit"), "A cat.", "Hi.", STORY)


def test_the_story_may_begin_on_the_line_that_names_it():
    assert parse_record(f"Words: oak\nStory: {STORY}").story == STORY


def test_a_missing_field_is_empty():
    assert parse_record(f"Story:\n{STORY}") == StoryRecord(story=STORY)


def test_an_empty_field_counts_as_missing():
    assert parse_record(f"Features:\nWords: \nSummary:\nStory:\n{STORY}") == StoryRecord(story=STORY)


def test_a_field_extends_to_the_next_known_name():
    assert parse_record(f"Summary: One.\nTitle: two.\nStory:\n{STORY}").summary == "One.\nTitle: two."


def test_only_the_first_line_with_a_name_begins_the_field():
    story = "They made a list.\nWords: cat, dog"
    assert parse_record(f"Words: oak\nStory:\n{story}") == StoryRecord(words=("oak",), story=story)


def test_a_text_without_a_story_line_is_a_plain_story():
    assert parse_record(f"\n{STORY}\nWords: are nice.\n") == StoryRecord(story=f"{STORY}\nWords: are nice.")


def test_a_text_that_begins_with_a_field_and_has_no_story_line_has_no_story():
    assert parse_record("Words: oak\nSummary: A cat.").story == ""


def test_windows_line_ends_and_a_byte_order_mark_change_nothing():
    text = f"Words: oak\nStory:\n{STORY}"
    assert parse_record("\ufeff" + text.replace("\n", "\r\n")) == parse_record(text)


def test_mojibake_is_kept():
    assert parse_record("Story:\nItâ€™s a catâ€¦").story == "Itâ€™s a catâ€¦"


def test_a_separator_at_the_end_is_not_part_of_the_record():
    assert parse_record(f"Story:\n{STORY}\n<|endoftext|>\n").story == STORY


def test_records_are_read_in_file_order(tmp_path):
    path = write(tmp_path, "Story:\none\n<|endoftext|>\nWords: a\nStory:\ntwo\n<|endoftext|>\nthree\n<|endoftext|>\n")
    assert [record.story for record in read_records(path)] == ["one", "two", "three"]


def test_a_truncated_last_record_is_read(tmp_path):
    path = write(tmp_path, "Story:\none\n<|endoftext|>\nWords: a\nStory:\nonce upon a ti")
    assert list(stories(path)) == ["one", "once upon a ti"]


def test_blank_records_are_skipped(tmp_path):
    assert list(stories(write(tmp_path, "<|endoftext|>\n<|endoftext|>\r\none<|endoftext|>\n \n"))) == ["one"]


def test_a_record_without_a_story_is_skipped(tmp_path):
    assert list(
        stories(write(tmp_path, "Words: a\n<|endoftext|>\nStory:\n<|endoftext|>\nStory:\ntwo\n<|endoftext|>"))
    ) == ["two"]


def test_bytes_that_are_not_utf8_become_replacement_characters(tmp_path):
    assert list(stories(write(tmp_path, b"a caf\xe9 and \xff\n<|endoftext|>"))) == ["a caf\ufffd and \ufffd"]


@pytest.mark.parametrize("block", [1, 5, 14, 1000])
def test_records_do_not_depend_on_the_block_size(tmp_path, monkeypatch, block):
    texts = ["Story:\nöne", "Words: a, b\nStory:\ntwo\n\ntwo", "thrée"]
    path = write(tmp_path, "\ufeff" + "\n<|endoftext|>\n".join(texts))
    monkeypatch.setattr(records, "_BLOCK", block)
    assert list(read_records(path)) == [parse_record(text) for text in texts]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"PK\x03\x04\x00\x00abc", "not a text file"),
        ("Story:\nx<|endoftext|>".encode("utf-16"), "not a text file"),
        (b"Once upon a time.\n", r"there is no <\|endoftext\|> in it"),
        (b"Words: a\n<|endoftext|>\nWords: b\n<|endoftext|>", "No record"),
    ],
)
def test_a_file_without_records_is_an_error(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=says) as error:
        list(read_records(path))
    assert str(path) in str(error.value)


def test_a_missing_file_is_reported_before_the_first_record_is_read(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*nothing\.txt"):
        read_records(tmp_path / "nothing.txt")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_records(tmp_path)


def test_a_large_file_without_separator_is_rejected_early(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_RECORD", 1000)
    monkeypatch.setattr(records, "_BLOCK", 100)
    with pytest.raises(UserError, match="not a file of stories"):
        list(read_records(write(tmp_path, "x" * 5000 + "<|endoftext|>")))


@pytest.mark.parametrize("name", ["TinyStoriesInstruct-valid.txt", "TinyStories-Instruct-valid.txt"])
def test_both_spellings_of_the_public_files_are_found(tmp_path, name):
    path = write(tmp_path, "x", name)
    assert find_instruct_file(tmp_path, "valid") == path


def test_the_other_split_is_found_beside_a_file(tmp_path):
    train, valid = write(tmp_path, "x", "my-train.txt"), write(tmp_path, "x", "my-valid.txt")
    assert [find_instruct_file(train, split) for split in ("train", "valid")] == [train, valid]
    assert find_instruct_file(valid, "train") == train


@pytest.mark.parametrize(
    ("name", "says"), [("my-train.txt", "There is no .*my-valid.txt"), ("my.txt", "no validation file")]
)
def test_a_missing_split_is_named(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        find_instruct_file(write(tmp_path, "x", name), "valid")


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(UserError, match=r"contains no TinyStoriesInstruct-train\.txt"):
        find_instruct_file(tmp_path, "train")


def test_real_records_are_read_completely(real_data):
    first, second, third = read_records(real_data / "tinystories" / "instruct-records.txt")
    assert (first.features, first.words) == (("Dialogue",), ("quit", "oak", "gloomy"))
    assert second.features == ("Dialogue", "BadEnding", "MoralValue")
    assert second.summary.endswith("The moral of the story is not to steal.")
    assert third.random_sentence == "They are very excited and want to fly too."
    assert first.story.startswith("Sara and Ben were playing")
    assert third.story.endswith("flying to their holiday.")


def test_real_headers_are_read_field_by_field(real_data):
    headers = json.loads((real_data / "tinystories" / "instruct-headers.json").read_text(encoding="utf-8"))
    records = [parse_record(header + STORY) for header in headers]
    assert all(record.story == STORY for record in records)
    assert sum(bool(record.words) for record in records) == sum("Words:" in header for header in headers)
    assert all(len(record.words) in (0, 3) for record in records)


def test_plain_stories_are_records_too(real_data):
    assert sum(1 for _ in stories(real_data / "tinystories" / "stories-valid.txt")) == 843


def test_plain_stories_are_found_by_split(tmp_path):
    text_file = write(tmp_path, "x\n<|endoftext|>\n", "stories-train.txt")
    assert find_text(tmp_path, "train") == text_file
    assert find_text(tmp_path, "valid") is None
    twin = tmp_path / "stories-valid.txt"
    twin.write_text("x\n<|endoftext|>\n")
    assert find_text(text_file, "valid") == twin
    with pytest.raises(UserError, match="no text at"):
        find_text(tmp_path / "nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no stories"):
        find_text(tmp_path / "empty", "train")


def test_a_folder_of_other_texts_is_told_which_file_to_name(tmp_path):
    write(tmp_path, "x\n<|endoftext|>\n", "mine.txt")
    with pytest.raises(UserError, match=r"mine\.txt, or get the public ones: `mini-chat-gpt prepare`"):
        find_text(tmp_path, "train")


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_records_of_a_device_or_a_pipe_are_refused_at_once(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        next(read_records(tmp_path / path))


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_a_device_or_a_pipe_is_not_a_text(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a text file but a pipe or a device"):
        find_text(tmp_path / path, "train")


def test_a_file_without_separators_is_one_text_to_pretrain_on(tmp_path):
    path = write(tmp_path, "\ufeffSummary: a book\r\n\nStory: and more.\n\n")
    assert list(stories(path)) == ["Summary: a book\n\nStory: and more."]
    with pytest.raises(UserError, match=r"no <\|endoftext\|> in it"):
        list(read_records(path))


def test_a_file_of_separators_alone_is_named(tmp_path):
    path = write(tmp_path, "<|endoftext|>\n" * 3)
    with pytest.raises(UserError, match=rf"{path} has separators but no text"):
        list(stories(path))


@pytest.mark.parametrize("separator_at_the_end", [False, True])
def test_a_text_to_pretrain_on_can_be_longer_than_a_record(separator_at_the_end, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_RECORD", 1000)
    monkeypatch.setattr(records, "_MAX_TEXT", 5000)
    monkeypatch.setattr(records, "_BLOCK", 100)
    end = "<|endoftext|>" if separator_at_the_end else ""
    assert list(stories(write(tmp_path, "a b" * 1500 + end))) == ["a b" * 1500]
    with pytest.raises(UserError, match=r"put it on its own line"):
        list(stories(write(tmp_path, "a b" * 1700 + end)))


class CountingBytes(bytes):
    """A block of a file that counts the bytes that are copied to put it behind others."""

    n_copied = 0

    def __radd__(self, before):
        CountingBytes.n_copied += len(before) + len(self)
        return before.__add__(bytes(self))


def test_the_blocks_of_a_long_record_are_copied_once(tmp_path, monkeypatch):
    path = write(tmp_path, "x" * 200_000 + "<|endoftext|>")
    monkeypatch.setattr(records, "_BLOCK", 100)
    real_open = records.open_text

    class Blocks:
        def __init__(self, path):
            self.file = real_open(path)
            self.tell, self.close = self.file.tell, self.file.close

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def read(self, size):
            return CountingBytes(self.file.read(size))

    monkeypatch.setattr(records, "open_text", Blocks)
    (record,) = records.raw_records(path)
    assert len(record[1]) == 200_000
    assert 0 < CountingBytes.n_copied < 3 * 200_000

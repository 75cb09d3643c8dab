"""Read TinyStories-Instruct files: from bytes on disk to records.

    Features: Dialogue, BadEnding
    Words: lend, kite, windy
    Summary: Nora lends Max her kite.
    Story:

    Nora had a kite that she liked very much. ...
    <|endoftext|>

The rules:

- Records are separated by `<|endoftext|>`; the last one may lack it. A field begins with a line that starts with its name and a
  colon, and ends before a line that starts with the name of another known field. Fields can have any order (`Summary:` may follow
  the story) and any of them can be missing. Only the first line with a name counts: a second `Words:` is text. The lists (features,
  words) are one line each.
- A text without a line that starts with `Story:` is a plain story, unless its first line is a field: then it is a record without a
  story. Such records are skipped and counted. A file that contains nothing else is an error.
- For pretraining (`stories`), a file without any separator is one plain text, such as a book.
- CRLF is read as LF, and a leading byte order mark is removed. All other characters are kept, mojibake included. A byte that is not
  UTF-8 becomes U+FFFD, so that it remains visible, and `RecordIndex` counts the records with such bytes.

Files are read in blocks, so that memory use does not depend on their size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import open_regular
from mini_chat_gpt.common.user_paths import nearest_path
from mini_chat_gpt.data.hub_data import local_stories
from mini_chat_gpt.data.record_files import holds_records

SEPARATOR = b"<|endoftext|>"
FIELDS = ("Features", "Words", "Summary", "Random sentence")
FEATURES = ("Dialogue", "BadEnding", "MoralValue", "Twist", "Foreshadowing", "Conflict")
ENDING_UNKNOWN = "EndingUnknown"
"""A feature of records made from plain stories: the absence of BadEnding says nothing about the ending."""
FILE_NAMES = ("TinyStoriesInstruct-{split}.txt", "TinyStories-Instruct-{split}.txt")
TEXT_FILE_NAMES = ("TinyStoriesV2-GPT4-{split}.txt", "TinyStories-{split}.txt", "stories-{split}.txt", *FILE_NAMES)
"""Names of files for pretraining in order of preference: plain stories, then the stories of records."""

_FIELD_LINE = re.compile(rf"^({'|'.join(FIELDS)}|Story):[ \t]*", re.MULTILINE)
_BLOCK = 1 << 19  # larger blocks are slower, because they don't fit the processor's cache
_MAX_RECORD = 1 << 26  # bytes; a file with more of them without a separator is not a file of records
_MAX_TEXT = 1 << 30  # bytes of a text to pretrain on, which is in memory while it is tokenized


@dataclass(frozen=True)
class StoryRecord:
    """One record. A field that is missing or empty is () or None."""

    features: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    summary: str | None = None
    random_sentence: str | None = None
    story: str = ""


def parse_record(text: str) -> StoryRecord:
    """Parse a record by the rules above. `story` is empty if the text has none."""
    text = text.replace("\r\n", "\n").removeprefix("\ufeff").strip().removesuffix(SEPARATOR.decode()).rstrip()
    begins = {match[1]: match for match in reversed(list(_FIELD_LINE.finditer(text)))}  # the first of each name
    if "Story" not in begins and not _FIELD_LINE.match(text):
        return StoryRecord(story=text)
    in_order = sorted(begins.values(), key=lambda match: match.start())
    ends = [match.start() for match in in_order[1:]] + [len(text)]
    parts = {match[1]: text[match.end() : end].strip() for match, end in zip(in_order, ends, strict=True)}
    return StoryRecord(
        features=_listed(parts.get("Features", "")),
        words=_listed(parts.get("Words", "")),
        summary=parts.get("Summary") or None,
        random_sentence=parts.get("Random sentence") or None,
        story=parts.get("Story", ""),
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item for part in text.split("\n", 1)[0].split(",") if (item := part.strip()))


def decode(chunk: bytes) -> str:
    """Decode the bytes of a record. A byte that is not UTF-8 becomes U+FFFD."""
    return chunk.decode("utf-8", errors="replace")


def read_records(path: str | Path) -> Iterator[StoryRecord]:
    """All records with a story, in the order of the file.

    Raises UserError for a file that is missing, empty, binary or without `<|endoftext|>`, and at its end if none of its records
    has a story.
    """
    path = Path(path)
    open_text(path).close()  # reports a wrong path now, not at the first record
    return _read_records(path)


def _read_records(path: Path, max_size: int | None = None) -> Iterator[StoryRecord]:
    any_text = any_story = False
    for _, chunk in raw_records(path, max_size):
        any_text = True
        if (record := parse_record(decode(chunk))).story:
            any_story = True
            yield record
    if not any_story:
        raise no_story(path) if any_text else UserError(f"{path} has separators but no text; name another file.")


def stories(path: str | Path) -> Iterator[str]:
    """The stories alone, of an Instruct file or of a file of plain stories. A file without any separator is one story.

    Raises UserError for a file that is missing, empty, binary or without a story.
    """
    path = Path(path)
    open_text(path).close()  # reports a wrong path now, not at the first story
    return _stories(path)


def _stories(path: Path) -> Iterator[str]:
    if _is_one_text(path):
        with open_text(path) as file:
            data = file.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise _no_separator(path, f"the first {_MAX_TEXT >> 20} MiB")
        yield decode(data).replace("\r\n", "\n").strip()
    else:
        yield from (record.story for record in _read_records(path, _MAX_TEXT))


def _is_one_text(path: Path) -> bool:
    """Whether the file has no separator. Reads it up to the first one."""
    with open_text(path) as file:
        tail = b""
        while block := file.read(_BLOCK):
            if SEPARATOR in tail + block:
                return False
            tail = block[-len(SEPARATOR) :]
    return True


def raw_records(path: Path, max_size: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each non-blank piece between separators. Raises UserError like `read_records`."""
    for offset, text, end in whole_records(path, max_size):
        for part in text[:end].split(SEPARATOR):
            if part and not part.isspace():
                yield offset, part
            offset += len(part) + len(SEPARATOR)


def whole_records(path: Path, max_size: int | None = None) -> Iterator[tuple[int, bytes, int]]:
    """(offset, text, end) for each block of the file: text[:end] begins after a separator and ends with one.

    The last block may lack its separator. `text` may continue after `end`. Raises UserError like `read_records`, and for a record
    of more than `max_size` bytes (default: what a record can have).
    """
    with open_text(path) as file:
        offset, separated = file.tell(), False
        # The bytes since the last separator, joined once at the next one, because a long record has many blocks.
        pending: list[bytes] = []
        size, tail = 0, b""
        while block := file.read(_BLOCK):
            tail += block  # a separator may begin in the block before
            pending.append(block)
            size += len(block)
            if (found := tail.rfind(SEPARATOR)) >= 0:
                text, tail = b"".join(pending), tail[found + len(SEPARATOR) :]
                end, separated = len(text) - len(tail), True
                pending, size = [tail], len(tail)
                yield offset, text, end
                offset += end
            if size > (max_size or _MAX_RECORD):
                raise _no_separator(path, f"the {size >> 20} MiB from byte {offset} on")
            tail = tail[1 - len(SEPARATOR) :]
        if not separated:
            raise _no_separator(path, "it")
        if carry := b"".join(pending):
            yield offset, carry, len(carry)


def open_text(path: Path) -> BinaryIO:
    """Open a file after its byte order mark. Raises UserError unless it is a text file that is not empty."""
    try:
        file = open(path, "rb", opener=open_regular)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}{_where_else(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a file of stories.") from None
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}); check the path and its permissions."
        ) from None
    head = file.read(1 << 16)
    if not head.strip():
        file.close()
        raise UserError(f"{path} is empty; download it again, or name another file.")
    if b"\0" in head:
        file.close()
        line = head.count(b"\n", 0, head.index(b"\0")) + 1
        raise UserError(
            f"{path} is not a text file in UTF-8 (line {line} contains a zero byte); unpack it, or save it as UTF-8."
        )
    file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    return file


def _no_separator(path: Path, where: str) -> UserError:
    return UserError(
        f"{path} is not a file of stories: there is no {SEPARATOR.decode()} in {where}; put it on its own line after each record."
    )


def no_story(path: Path) -> UserError:
    """The error for a file of records without stories."""
    return UserError(
        f"No record of {path} has a story after a line `Story:`; check that it is a TinyStories-Instruct file."
    )


def _where_else(path: Path) -> str:
    """The end of a sentence about a path that does not exist."""
    if path.parts[:1] == ("TinyStories",):
        return "; `mini-chat-gpt prepare` gets the stories, or name your own file."
    return nearest_path(path) or "; check the path."


def find_text(path: Path | str, split: str, names: tuple[str, ...] = TEXT_FILE_NAMES) -> Path | None:
    """The file of plain stories of a split ("train" or "valid"), in a folder or next to the file `path`.

    `names` are those of the files that are looked for in a folder, the preferred first. None if there is no "valid" file. Raises
    UserError if there is no "train" file.
    """
    path = local_stories(path, names)
    if not path.exists():
        raise UserError(f"There is no text at {path}{_where_else(path)}")
    if path.is_file():
        if split == "train":
            return path
        other = path.with_name(path.name.replace("train", "valid"))
        return other if other != path and other.is_file() else None
    for name in names:
        if (file := path / name.format(split=split)).is_file():
            return file
    if split == "train":
        if not path.is_dir():
            raise UserError(f"{path} is not a text file but a pipe or a device; name a file or a folder.")
        wanted = ", ".join(name.format(split=split) for name in names)
        others = sorted(file.name for file in path.glob("*.txt") if file.is_file())
        own = f"name a file of stories{f', such as {path / others[0]}' if others else ''}"
        raise UserError(
            f"{path} contains no stories (looked for {wanted}); {own}, or get the public ones: `mini-chat-gpt prepare`, without a source."
        )
    return None


def find_instruct_file(path: str | Path, split: str) -> Path:
    """The TinyStories-Instruct file of a split ("train" or "valid").

    `path` is a folder that contains it under either spelling of its name, or one of the two files: the other is then expected
    next to it, with "train" and "valid" exchanged in its name. Raises UserError if there is none.
    """
    path = local_stories(path, FILE_NAMES)
    if not path.exists():
        hint = nearest_path(path) or (
            "; run `mini-chat-gpt prepare`, set sft.dataset_path to your own stories, or name chats with chats.files=FILE."
        )
        raise UserError(f"There is no {path}{hint}")
    if path.is_dir():
        for name in FILE_NAMES:
            if (file := path / name.format(split=split)).is_file():
                return file
        wanted = " or ".join(name.format(split=split) for name in FILE_NAMES)
        raise UserError(
            f"{path} contains no {wanted}; run `mini-chat-gpt prepare`, or set sft.dataset_path to your own file."
        )
    other = "valid" if split == "train" else "train"
    name = path.name
    if split not in name:
        if other in name:
            name = split.join(name.rsplit(other, 1))
        elif holds_records(path):
            raise UserError(f"{path} has chats, not stories; train on them with chats.files={path}.")
        elif split == "valid":
            raise UserError(
                f"There is no validation file for {path}; name the two files something-train.txt and something-valid.txt; plain "
                "text is for `mini-chat-gpt pretrain` (pretrain.dataset_path)."
            )
    if not (file := path.with_name(name)).is_file():
        raise UserError(f"There is no {file} next to {path.name}; both a train and a valid file are needed.")
    return file

"""The user's own files as a data folder: records copied as they are, or made from plain stories, and divided in two.

Where there is no validation file, each story's hash decides which part it goes to. So the division is the same in every run,
and a story that stands twice in the file never stands in both parts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import StepProgress
from mini_chat_gpt.prepare.data_folder import (
    SPLITS,
    drafts,
    present_files,
    read_source,
    require_space,
    size_text,
    standard_name,
    write_source,
)
from mini_chat_gpt.prepare.derive_records import derive_records
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import FILE_NAMES, SEPARATOR, decode, find_text, parse_record, raw_records

END = b"\n" + SEPARATOR + b"\n"
_SHOW_PROGRESS_FROM = 50_000_000  # bytes
_FIELDS_OF_DERIVED = 1.2  # size of derived records in that of their stories, at most


def take_files(
    folder: Path,
    paths: Sequence[Path],
    valid_fraction: float,
    out: Console,
    derive: bool = False,
    before_writing: Callable[[], None] = lambda: None,
) -> None:
    """Fill `folder`, which holds no data yet, from the user's files.

    paths            a folder, a file (with or without its twin beside it), or a train and a valid file
    valid_fraction   share of the stories for validation, where there is no valid file
    derive           the files hold plain stories, of which records are to be made
    before_writing   called when the files are found good, before anything is written

    Raises UserError if they are missing or no story files; then nothing has been written.
    """
    files = _find_files(paths, derive)
    for file in files.values():
        _check(file, derive)
    size = sum(file.stat().st_size for file in files.values())
    require_space(folder, int(size * _FIELDS_OF_DERIVED) if derive else size)
    before_writing()
    with drafts(folder) as draft:
        if len(files) == 1:
            _divide(lambda: _records(files["train"], derive, out), draft, files["train"], valid_fraction)
        else:
            for split, file in files.items():
                _take_whole(file, draft / standard_name(split), derive, out)
        known = {standard_name(split): _origin(files.get(split, files["train"])) for split in SPLITS}
        options = {"valid_fraction": valid_fraction} if len(files) == 1 else {}
        write_source(draft, "derived" if derive else "own", known, options=options)
    made = "Records made of" if derive else "Taken from"
    out.print(f"{made} {' and '.join(map(str, files.values()))}: {folder}", markup=False, soft_wrap=True)


def _find_files(paths: Sequence[Path], derive: bool) -> dict[str, Path]:
    """split -> file; only "train" where one file is all there is."""
    if len(paths) == 2:
        if all(path.exists() for path in paths) and paths[0].samefile(paths[1]):
            raise UserError(f"{paths[0]} was given for both train and valid; name it once, and it is divided in two.")
        return dict(zip(SPLITS, paths, strict=True))
    path = paths[0]
    if path.is_dir() and not derive:  # with records and plain stories in one folder, the records are meant
        for name in FILE_NAMES:
            found = {split: file for split in SPLITS if (file := path / name.format(split=split)).is_file()}
            if "train" in found:
                return found
    texts = {split: find_text(path, split) for split in SPLITS}
    return {split: file for split, file in texts.items() if file is not None}


def _origin(file: Path) -> dict[str, str]:
    """Where a file was taken from, and what it was there: a copy of derived records or of the sample stays known as such."""
    there = read_source(file.parent)["source"] if file in present_files(file.parent).values() else "unknown"
    return {"from": str(file)} | ({"there": there} if there != "unknown" else {})


def _check(file: Path, derive: bool) -> None:
    """Raise UserError unless every byte of the file can be read as records, or as plain stories if they are to be derived."""
    if derive:
        for _, chunk in raw_records(file):
            record = parse_record(decode(chunk))
            if record.features or record.words or record.summary or record.random_sentence:
                raise UserError(
                    f"{file} holds records, whose fields --derive would throw away; take it over by --source."
                )
            break
    RecordIndex(file, cache=False)


def _take_whole(file: Path, target: Path, derive: bool, out: Console) -> None:
    if not derive:
        out.print(f"Copying {file} ({size_text(file.stat().st_size)})", markup=False, soft_wrap=True)
        shutil.copyfile(file, target)
        return
    with open(target, "wb") as handle:
        for _, record in _records(file, derive, out):
            handle.write(record + END)


def _divide(
    records: Callable[[], Iterable[tuple[str, bytes]]], draft: Path, source: Path, valid_fraction: float
) -> None:
    """Write both parts of one file's records; at least one story goes to each."""
    counts, smallest = _write_parts(records(), draft, int(valid_fraction * 2**64))
    if not counts["valid"]:  # a small file and a small fraction
        counts, _ = _write_parts(records(), draft, smallest + 1)
    if not all(counts.values()):
        raise UserError(
            f"{source} is too small to be divided: a train and a valid part need at least two different stories, and "
            f"{valid_fraction:g} of them (--valid-fraction) has to leave some for training."
        )


def _write_parts(records: Iterable[tuple[str, bytes]], draft: Path, below: int) -> tuple[dict[str, int], int]:
    """Stories whose hash is less than `below` go to valid. Returns the number in each part, and the smallest hash."""
    counts, smallest = dict.fromkeys(SPLITS, 0), 2**64
    with open(draft / standard_name("train"), "wb") as train, open(draft / standard_name("valid"), "wb") as valid:
        for story, record in records:
            digest = hashlib.blake2b(story.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = int.from_bytes(digest, "big")
            smallest = min(smallest, number)
            counts["valid" if number < below else "train"] += 1
            (valid if number < below else train).write(record + END)
    return counts, smallest


def _records(file: Path, derive: bool, out: Console) -> Iterator[tuple[str, bytes]]:
    """(story, record) of each record of the file that has a story; with `derive` the record is made of the story."""
    left_out = 0
    for chunk in _chunks(file, out):
        story = parse_record(decode(chunk)).story
        if not story:
            left_out += 1
        elif not derive:
            yield story, chunk.strip(b"\r\n")
        elif made := list(derive_records([story])):
            yield story, made[0].encode()
        else:
            left_out += 1
    if left_out:
        reason = "can't be written as records" if derive else "have no story"
        out.print(f"{left_out:,} records of {file} {reason} and are left out.", markup=False, soft_wrap=True)


def _chunks(file: Path, out: Console) -> Iterator[bytes]:
    """The unparsed records of a file, with progress shown if it is big."""
    size = file.stat().st_size
    if size < _SHOW_PROGRESS_FROM:
        yield from (chunk for _, chunk in raw_records(file))
        return
    with StepProgress(out, f"Reading {file.name}, MB", 0, size // 10**6) as progress:
        for number, (offset, chunk) in enumerate(raw_records(file)):
            if number % 1000 == 0:
                progress.update(offset // 10**6, "")
            yield chunk

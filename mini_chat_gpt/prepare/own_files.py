"""Make a data folder from the user's own files: copy records or label plain stories, and split them into train and valid.

Without a validation file, each story's hash decides its split. So the split is the same in every run, and a story that occurs
twice in the file is never in both splits.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import StepProgress, format_size
from mini_chat_gpt.prepare.data_folder import (
    SPLITS,
    drafts,
    present_files,
    read_source,
    require_space,
    standard_name,
    write_source,
)
from mini_chat_gpt.prepare.label_stories import label_stories
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import FILE_NAMES, SEPARATOR, decode, find_text, parse_record, raw_records

END = b"\n" + SEPARATOR + b"\n"
_MIN_SIZE_FOR_PROGRESS = 50_000_000  # bytes
_LABELED_SIZE = 1.2  # maximum size of labeled records relative to their stories


def import_files(
    folder: Path,
    paths: Sequence[Path],
    valid_fraction: float,
    out: Console,
    label: bool = False,
    before_writing: Callable[[], None] = lambda: None,
) -> None:
    """Fill `folder`, which has no data yet, from the user's files.

    paths            a folder, a file (its valid file in the same folder is used as well), or a train and a valid file
    valid_fraction   fraction of the stories for validation, if there is no valid file
    label            the files have plain stories, which are to be labeled
    before_writing   called after the files were checked, before anything is written

    Raises UserError if they are missing or are not story files; then nothing has been written.
    """
    files = _find_files(paths, label)
    for file in files.values():
        _check(file, label)
    size = sum(file.stat().st_size for file in files.values())
    require_space(folder, int(size * _LABELED_SIZE) if label else size)
    before_writing()
    with drafts(folder) as draft:
        if len(files) == 1:
            _split(lambda: _records(files["train"], label, out), draft, files["train"], valid_fraction)
        else:
            for split, file in files.items():
                _copy(file, draft / standard_name(split), label, out)
        entries = {standard_name(split): _origin(files.get(split, files["train"])) for split in SPLITS}
        options = {"valid_fraction": valid_fraction} if len(files) == 1 else {}
        write_source(draft, "derived" if label else "own", entries, options=options)
    verb = "Labeled" if label else "Copied"
    out.print(f"{verb} {' and '.join(map(str, files.values()))} to {folder}", markup=False, soft_wrap=True)


def _find_files(paths: Sequence[Path], label: bool) -> dict[str, Path]:
    """Map each split to its file; only "train" if there is a single file."""
    if len(paths) == 2:
        if all(path.exists() for path in paths) and paths[0].samefile(paths[1]):
            raise UserError(f"{paths[0]} is given for both train and valid; give it once, and it is split in two.")
        return dict(zip(SPLITS, paths, strict=True))
    path = paths[0]
    if path.is_dir() and not label:  # in a folder with records and plain stories, this means the records
        for name in FILE_NAMES:
            records = {split: file for split in SPLITS if (file := path / name.format(split=split)).is_file()}
            if "train" in records:
                return records
    texts = {split: find_text(path, split) for split in SPLITS}
    return {split: file for split, file in texts.items() if file is not None}


def _origin(file: Path) -> dict[str, str]:
    """The origin of a file for SOURCE.json, with the kind of data in its folder, so that a copied sample remains known as one."""
    kind = read_source(file.parent)["source"] if file in present_files(file.parent).values() else "unknown"
    return {"from": str(file)} | ({"there": kind} if kind != "unknown" else {})


def _check(file: Path, label: bool) -> None:
    """Raise UserError unless the whole file can be read as records, or as plain stories if they are to be labeled."""
    if label:
        for _, chunk in raw_records(file):
            record = parse_record(decode(chunk))
            if record.features or record.words or record.summary or record.random_sentence:
                raise UserError(f"{file} has records, whose fields --label would discard; use --source instead.")
            break
    RecordIndex(file, cache=False)


def _copy(file: Path, target: Path, label: bool, out: Console) -> None:
    if not label:
        out.print(f"Copying {file} ({format_size(file.stat().st_size)})", markup=False, soft_wrap=True)
        shutil.copyfile(file, target)
        return
    with open(target, "wb") as handle:
        for _, record in _records(file, label, out):
            handle.write(record + END)


def _split(
    records: Callable[[], Iterable[tuple[str, bytes]]], draft: Path, source: Path, valid_fraction: float
) -> None:
    """Split one file's records into train and valid, with at least one story in each."""
    counts, smallest = _write_splits(records(), draft, int(valid_fraction * 2**64))
    if not counts["valid"]:  # a small file and a small fraction
        counts, _ = _write_splits(records(), draft, smallest + 1)
    if not all(counts.values()):
        raise UserError(
            f"{source} is too small to be split: train and valid need at least two different stories, and "
            f"--valid-fraction={valid_fraction:g} has to leave some of them for training."
        )


def _write_splits(records: Iterable[tuple[str, bytes]], draft: Path, below: int) -> tuple[dict[str, int], int]:
    """Write stories with a hash less than `below` to valid. Returns the number in each split, and the smallest hash."""
    counts, smallest = dict.fromkeys(SPLITS, 0), 2**64
    with open(draft / standard_name("train"), "wb") as train, open(draft / standard_name("valid"), "wb") as valid:
        for story, record in records:
            digest = hashlib.blake2b(story.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = int.from_bytes(digest, "big")
            smallest = min(smallest, number)
            counts["valid" if number < below else "train"] += 1
            (valid if number < below else train).write(record + END)
    return counts, smallest


def _records(file: Path, label: bool, out: Console) -> Iterator[tuple[str, bytes]]:
    """Yield (story, record) for each record of the file that has a story. With `label` the record is made from the story."""
    skipped = 0
    for chunk in _chunks(file, out):
        story = parse_record(decode(chunk)).story
        if not story:
            skipped += 1
        elif not label:
            yield story, chunk.strip(b"\r\n")
        elif labeled := list(label_stories([story])):
            yield story, labeled[0].encode()
        else:
            skipped += 1
    if skipped:
        reason = "can't be written as records" if label else "have no story"
        out.print(f"{skipped:,} records of {file} {reason} and are skipped.", markup=False, soft_wrap=True)


def _chunks(file: Path, out: Console) -> Iterator[bytes]:
    """Yield the unparsed records of a file, with a progress display if it is large."""
    size = file.stat().st_size
    if size < _MIN_SIZE_FOR_PROGRESS:
        yield from (chunk for _, chunk in raw_records(file))
        return
    with StepProgress(out, f"Reading {file.name}, MB", 0, size // 10**6) as progress:
        for number, (offset, chunk) in enumerate(raw_records(file)):
            if number % 1000 == 0:
                progress.update(offset // 10**6, "")
            yield chunk

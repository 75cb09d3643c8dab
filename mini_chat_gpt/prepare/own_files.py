"""Make a data folder from the user's own files: copy records or label plain stories, and split them into train and valid.

Without a validation file, each story's hash decides its split. So the split is the same in every run, and a story that occurs
twice in the file is never in both splits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import format_size, print_line, with_progress
from mini_chat_gpt.common.writable import require_space
from mini_chat_gpt.data.record_files import holds_records
from mini_chat_gpt.prepare.data_folder import SPLITS, drafts, standard_name, write_source
from mini_chat_gpt.prepare.label_stories import label_stories
from mini_chat_gpt.tinystories.mixture import hash64
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import FIELDS, FILE_NAMES, SEPARATOR, TEXT_FILE_NAMES, find_text

END = b"\n" + SEPARATOR + b"\n"
_LABELED_SIZE = 1.2  # maximum size of labeled records relative to their stories


def import_files(
    folder: Path, paths: list[Path], valid_fraction: float, out: Console, label: bool = False, replacing: bool = False
) -> None:
    """Fill `folder` from the user's files. It has no data yet, or (`replacing`) a sample.

    paths            a folder, a file (its valid file in the same folder is used as well), or a train and a valid file
    valid_fraction   fraction of the stories for validation, if there is no valid file
    label            the files have plain stories, which are to be labeled

    Raises UserError if they are missing or are not story files; then nothing has been written.
    """
    indices = {split: _open(file, label) for split, file in _find_files(paths, label).items()}
    size = sum(index.path.stat().st_size for index in indices.values())
    require_space(folder, int(size * _LABELED_SIZE) if label else size)
    with drafts(folder, replacing) as draft:
        if len(indices) == 1:
            _split(indices["train"], draft, valid_fraction, label, out)
        else:
            for split, index in indices.items():
                _copy(index, draft / standard_name(split), label, out)
        entries = {standard_name(split): {"from": str(indices.get(split, indices["train"]).path)} for split in SPLITS}
        options = {"valid_fraction": valid_fraction} if len(indices) == 1 else {}
        write_source(draft, "derived" if label else "own", entries, options=options)
    verb, names = "Labeled" if label else "Copied", " and ".join(str(index.path) for index in indices.values())
    print_line(out, f"{verb} {names} to {folder}")


def _find_files(paths: Sequence[Path], label: bool) -> dict[str, Path]:
    """Map each split to its file; only "train" if there is a single file."""
    if len(paths) == 2:
        if all(path.exists() for path in paths) and paths[0].samefile(paths[1]):
            raise UserError(f"{paths[0]} is given for both train and valid; give it once, and it is split in two.")
        return dict(zip(SPLITS, paths, strict=True))
    # In a folder with records and plain stories, --source means the records.
    names = TEXT_FILE_NAMES if label else tuple(dict.fromkeys((*FILE_NAMES, *TEXT_FILE_NAMES)))
    texts = {split: find_text(paths[0], split, names) for split in SPLITS}
    return {split: file for split, file in texts.items() if file is not None}


def _open(file: Path, label: bool) -> RecordIndex:
    """Raises UserError unless the whole file can be read as records, or as plain stories if they are to be labeled."""
    try:
        index = RecordIndex(file, cache=False)
    except UserError:
        if file.is_file() and holds_records(file):
            raise UserError(
                f"{file} has chats, not stories, and chats need no preparation: `mini-chat-gpt inspect {file}` shows them, "
                f"chats.files={file} trains on them."
            ) from None
        raise
    if label and any(index.has(name)[0] for name in FIELDS):
        raise UserError(f"{file} has records, whose fields --label would discard; use --source instead.")
    return index


def _copy(index: RecordIndex, target: Path, label: bool, out: Console) -> None:
    if not label:
        print_line(out, f"Copying {index.path} ({format_size(index.path.stat().st_size)})")
        shutil.copyfile(index.path, target)
        return
    with open(target, "wb") as handle:
        handle.writelines(record + END for _, record in _records(index, label, out))


def _split(index: RecordIndex, draft: Path, valid_fraction: float, label: bool, out: Console) -> None:
    """Split one file's records into train and valid, with at least one story in each."""
    numbers = with_progress(range(len(index)), f"Reading {index.path.name}", out)
    smallest = min(hash64(index[number].story) for number in numbers)
    below = max(int(valid_fraction * 2**64), smallest + 1)  # stories with a hash below this are for validation
    counts = dict.fromkeys(SPLITS, 0)
    with open(draft / standard_name("train"), "wb") as train, open(draft / standard_name("valid"), "wb") as valid:
        for story, record in _records(index, label, out):
            split, handle = ("valid", valid) if hash64(story) < below else ("train", train)
            handle.write(record + END)
            counts[split] += 1
    if not all(counts.values()):
        raise UserError(
            f"{index.path} is too small to be split: train and valid need at least two different stories, and "
            f"--valid-fraction={valid_fraction:g} has to leave some of them for training."
        )


def _records(index: RecordIndex, label: bool, out: Console) -> Iterator[tuple[str, bytes]]:
    """Yield (story, record) for each record that has a story. With `label` the record is made from the story."""
    skipped = index.without_story
    for number in with_progress(range(len(index)), f"{'Labeling' if label else 'Copying'} {index.path.name}", out):
        story = index[number].story
        if not label:
            yield story, index.raw(number).strip(b"\r\n")
        elif labeled := list(label_stories([story])):
            yield story, labeled[0].encode()
        else:
            skipped += 1
    if skipped:
        reason = "can't be written as records" if label else "have no story"
        print_line(out, f"{skipped:,} records of {index.path} {reason} and are skipped.")

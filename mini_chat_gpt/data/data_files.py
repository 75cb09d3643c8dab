"""Which files a path of the settings stands for: a file, the files of a folder, or those that match a pattern (`data/*.jsonl`).

Where several files are found, their names say which split they belong to, as in data sets of the Hugging Face hub and in folders
that `datasets` has saved: `train.jsonl`, `data/validation-00000-of-00001.parquet`, `test/data-00000-of-00001.arrow`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import Field

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.json_files import JSONRecord, read_json

RECORDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
"""Ends of the names of files with records; a packing may follow."""
CHATS = (*RECORDS, ".yaml", ".yml")
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")
PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
NOT_DATA = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json"})
"""Names of files that describe data."""
_ABOUT = frozenset({"readme", "license", "notice", "changelog", "contributing", "requirements"})
RUN = ("run.json", "metrics.jsonl")  # files of the folder of a run
MAX_FILES = 100_000
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])")
_VALID = re.compile(r"(?<![a-z])(valid|validation|val|dev|eval|heldout|held[-_]out)(?![a-z])")
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")
_MAX_NAMED = 5
_STATE = "state.json"


@dataclass(frozen=True)
class DataFiles:
    """The files that a path stands for."""

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()  # the split for validation, if the names tell one
    passed_over: tuple[str, ...] = ()  # names of files that are not used, each with a reason if it is not obvious
    folder: Path | None = None  # that names of files are relative to

    @property
    def all(self) -> tuple[Path, ...]:
        """The files of both splits."""
        return self.train + self.held_out

    def place(self, file: Path, place: str) -> str:
        """A place within one of the files, with the file's name if there are several."""
        return place if len(self.all) == 1 else f"{self._name(file)}, {place}"

    def note(self, path: str, splits: bool = True) -> str | None:
        """A sentence about the files if some are not trained on; `path` is what the user named.

        splits: whether those of the split for validation are held out, instead of not being used
        """
        held_out = [self._name(file) for file in self.held_out]
        unused = [*([] if splits else held_out), *self.passed_over]
        parts = [f"{path}: trained on: {first_names([self._name(file) for file in self.train])}"]
        parts += [f"held out: {first_names(held_out)}"] if splits and held_out else []
        parts += [f"not used: {first_names(unused)}"] if unused else []
        return "; ".join(parts) + "." if len(parts) > 1 else None

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix() if self.folder else str(file)


def local_files(path: str, kinds: Sequence[Sequence[str]] = (CHATS,), what: str = "chats") -> DataFiles:
    """The files of a path of this machine. A path that does not exist is returned: its reader says so.

    kinds   where the path is a folder or a pattern: ends of names of the first kind of files that is used, of the second, ...
    what    what they hold, for messages

    Raises UserError for a folder without such files, a pattern without a match, and a link to nothing.
    """
    if os.path.isdir(path):
        folder = Path(path)
        if all((folder / name).is_file() for name in RUN) or (folder / "model.safetensors").is_file():
            raise UserError(
                f"{path} is a run or a model, which has no {what}; name the files that it is to be trained on."
            )
        return _choose(path, [folder / name for name in _walk(folder)], folder, kinds, what)
    if os.path.lexists(path) or not glob.has_magic(path):
        _require_target(Path(path))
        return DataFiles((Path(path),))
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True))
    if not matches:
        raise UserError(f"No file matches {path}; check the folder and the ending.")
    files = [match for match in matches if not match.is_dir()]
    files += [folder / name for folder in matches if folder.is_dir() and "**" not in path for name in _walk(folder)]
    top = os.path.commonpath([file.parent for file in files]) if files else ""
    return _choose(path, files, Path(top), kinds, what)


def _choose(path: str, files: Sequence[Path], folder: Path, kinds: Sequence[Sequence[str]], what: str) -> DataFiles:
    """Divide the files of a folder, or those that match a pattern, into splits and files that are not used."""
    for file in files:
        if "\n" in file.name or "\r" in file.name:
            raise UserError(f"{path}: {short(file.name)} has a line break in its name; rename it.")
        if file.name == _STATE:
            _require_listed(file)
    by_name: dict[str, Path] = {}
    others, useless = list[str](), dict[str, str]()
    files = [file for file in files if not not_data(file.name)]
    endings = kind_of_most_use([file.name for file in files], kinds)
    for file in files:
        name = file.relative_to(folder).as_posix()
        if not has_ending(file.name, endings):
            others.append(name)
            continue
        _require_target(file)
        by_name[name] = file
        if not file.is_file():
            useless[name] = f"{name} (not a file)"
        elif not file.stat().st_size:
            useless[name] = f"{name} (empty)"
    if folder == Path(path) and all(map(is_about, by_name)):  # a folder of which only a README was downloaded
        others, by_name = [*others, *by_name], {}
    others += useless.values()
    train, held_out, unused = ([name for name in part if name not in useless] for part in splits(by_name))
    if not train:
        known_endings = ", ".join(endings)
        there = f"it has {first_names(others)}" if others else "it has no data at all"
        stories = ", or get stories: `mini-chat-gpt prepare`" if what == "text" else ""
        raise UserError(
            f"{path} has no files of {what} ({known_endings}, also packed): {there}; name a file or another folder{stories}."
        )
    return DataFiles(
        tuple(by_name[name] for name in train),
        tuple(by_name[name] for name in held_out),
        (*unused, *others),
        folder,
    )


def kind_of_most_use(names: Sequence[str], kinds: Sequence[Sequence[str]]) -> Sequence[str]:
    """The endings of the first kind that a name has, apart from those that most folders have (README.md); else all endings."""
    data = [name for name in names if not is_about(name)]
    every = [ending for kind in kinds for ending in kind]
    return next((kind for kind in kinds if any(has_ending(name, kind) for name in data)), every)


def is_about(name: str) -> bool:
    """Whether a file is one that most folders have, and that says something about their content."""
    return PurePosixPath(name.lower()).stem in _ABOUT


def splits(names: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Divide names of files into those to train on, those of the split for validation, and others, by the words in the names.

    If some are named train, these are trained on; otherwise those that belong to no other split. Validation uses the validation
    split or, without one, the test split.
    """
    groups: dict[str, list[str]] = {"train": [], "valid": [], "test": [], "": []}
    for name in names:
        patterns = {"train": _TRAIN, "valid": _VALID, "test": _TEST}
        groups[next((split for split, pattern in patterns.items() if pattern.search(name.lower())), "")].append(name)
    train = groups["train"] or groups[""]
    if not train:
        return [name for group in groups.values() for name in group], [], []
    held_out = groups["valid"] or groups["test"]
    rest = [name for group in groups.values() if group is not train and group is not held_out for name in group]
    return train, held_out, rest


def has_ending(name: str, endings: Sequence[str]) -> bool:
    """Whether a name has one of the endings, also before that of a packing."""
    lower = PurePosixPath(name.lower())
    return (lower.suffix if lower.suffix not in PACKINGS else PurePosixPath(lower.stem).suffix) in endings


def not_data(name: str) -> bool:
    """Whether a file with an ending of data files is none: metadata, or what `datasets` has computed from the data."""
    name = PurePosixPath(name).name
    return name in NOT_DATA or (name.startswith("cache-") and name.endswith(".arrow"))


def _walk(folder: Path) -> Iterator[str]:
    """The relative names of all files in a folder and in those below, sorted, without hidden ones. Raises UserError."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); check its permissions.") from None

    names: list[str] = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        names += (os.path.relpath(os.path.join(place, name), folder) for name in files if not name.startswith("."))
        if len(names) > MAX_FILES:
            raise UserError(f"{folder} has more than {MAX_FILES:,} files; name a folder with data only.")
    return iter(sorted(names))


class _DataFile(JSONRecord):
    filename: str


class _State(JSONRecord):
    """The part of the state.json of a folder of `datasets` that is used here."""

    data_files: list[_DataFile] = Field(default_factory=list, alias="_data_files")


def _require_listed(state: Path) -> None:
    """Raise UserError if a file is missing that belongs to a data set saved by `datasets`. Another program's file says nothing."""
    try:
        names = [file.filename for file in read_json(state, _State, "get it again").data_files]
    except (UserError, OSError):
        return
    if missing := [name for name in names if not (state.parent / name).is_file()]:
        raise UserError(
            f"{state.parent} lacks {first_names(missing)}, which its {_STATE} names; get the data set again."
        )


def _require_target(path: Path) -> None:
    """Raise UserError for a link to something that does not exist."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist; correct or remove the link.")


def first_names(names: Sequence[str]) -> str:
    """The first names of a list, and the number of the others."""
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")

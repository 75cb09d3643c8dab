"""The data of a pretraining run: which files a path stands for, how many documents they have, and which of them are held out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.user_paths import path_text, split_paths
from mini_chat_gpt.config import Config, DataSection, PretrainSection
from mini_chat_gpt.data.data_files import RECORDS, TEXTS, DataFiles, local_files
from mini_chat_gpt.data.hub_data import text_files
from mini_chat_gpt.data.text_dataset import TextDataset, TokenFile, split_documents, split_ends, tokenize_file
from mini_chat_gpt.tinystories.documents import has_records, read_documents
from mini_chat_gpt.tinystories.records import SEPARATOR, TEXT_FILE_NAMES, find_text, no_story
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.sft_data import SftExamples

FEW = 10
"""Of fewer documents than these, the end of each is held out instead of whole documents."""


@dataclass(frozen=True)
class Texts:
    """The documents of one or several files, in the order of the files. Each iteration reads them again."""

    name: str  # as the user spelled it
    files: tuple[Path, ...]
    section: PretrainSection

    def __iter__(self) -> Iterator[str]:
        """Raises UserError for a file that can't be read or used, and at the end if there is no document."""
        seen: Counter[str] = Counter()
        for file in self.files:
            for text in read_documents(file, self.section.documents, self.section.separator, seen):
                seen["document"] += 1
                yield text
        if not seen["document"]:
            if seen["record without a story"]:
                raise no_story(Path(self.name))
            problem = "has separators but no text" if seen["separator"] else "is empty"
            raise UserError(f"{self.name} {problem}; name another file.")

    def tokens(self, tokenizer: ChatTokenizer, console: Console | None = None) -> TokenFile:
        """Their tokens, stored next to the first file; see `tokenize_file`."""
        plain = len(self.files) == 1 and not has_records(self.files[0]) and self.separator == SEPARATOR.decode()
        if plain and self.section.documents == "auto":
            return tokenize_file(self.files[0], self, tokenizer, console)
        states = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in self.files]
        variant = repr((self.section.documents, self.separator, states))
        return tokenize_file(self.files[0], self, tokenizer, console, variant, self.name)

    @property
    def separator(self) -> str:
        """The text between documents."""
        return self.section.separator

    def describe(self, n: int) -> str:
        """How the files are divided into n documents, as a clause."""
        ways = {"blank_lines": "separated by blank lines", "lines": "one for each line", "files": "one for each file"}
        if all(map(has_records, self.files)):
            return "one for each record"
        auto = f"separated by {self.separator}" if n != len(self.files) else ways["files"]
        return ways.get(self.section.documents, auto)


@dataclass(frozen=True)
class PretrainTexts:
    """All documents of a run."""

    train: Texts
    held_out: Texts | None  # None: a part of `train` is held out
    notes: list[str]  # files that are not used

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [*self.train.files, *(self.held_out.files if self.held_out else ())]


def find_texts(section: PretrainSection) -> PretrainTexts:
    """The texts of `pretrain.dataset_path`: files, folders, patterns or data sets of the hub, with commas between several.

    Raises UserError if one of them has no text.
    """
    paths = [path_text(path) for path in split_paths(section.dataset_path)]
    found = [_files_of(path) for path in paths]
    train = tuple(file for files in found for file in files.train)
    held_out = tuple(file for files in found for file in files.held_out)
    name = str(train[0]) if len(train) == 1 else ", ".join(paths)
    held_out_name = str(held_out[0]) if len(held_out) == 1 else f"the validation split of {name}"
    return PretrainTexts(
        Texts(name, train, section),
        Texts(held_out_name, held_out, section) if held_out else None,
        [note for path, files in zip(paths, found, strict=True) if files.passed_over and (note := files.note(path))],
    )


def _files_of(path: str) -> DataFiles:
    if (name := hub_name(path, "dataset")) is not None:
        return text_files(name, TEXT_FILE_NAMES)
    stories = [os.path.join(path, name.format(split="train")) for name in TEXT_FILE_NAMES]
    if not any(map(os.path.isfile, stories)) and (files := local_files(path, (TEXTS, RECORDS), "text")).folder:
        return files
    train, valid = (find_text(path, split) for split in ("train", "valid"))
    assert train is not None  # find_text raises an error if there is no training file
    return DataFiles((train,), (valid,) if valid else ())


# Training and validation


def make_datasets(
    texts: PretrainTexts, data: DataSection, tokenizer: ChatTokenizer, seed: int, out: Console | None
) -> tuple[TextDataset, TextDataset, str]:
    """(training documents, held-out documents, a sentence about both).

    Without a validation file every hundredth document is held out, at least one. Of fewer than `FEW` documents the last tenth of
    each is held out, so that no large part of the text is lost.
    """
    file = texts.train.tokens(tokenizer, out)
    n = min(len(file), data.limit or len(file))
    documents = np.arange(n)
    about = f"{texts.train.name}: " + ("one document" if n == 1 else f"{n:,} documents ({texts.train.describe(n)})")
    if texts.held_out is not None:
        validation = texts.held_out.tokens(tokenizer, out)
        sentence = f"{about}; held out for validation: {len(validation):,} of {texts.held_out.name}"
        return TextDataset(file, data, seed, documents), TextDataset(validation, data, seed), sentence
    if n < FEW:
        last = ", whose last tenth is" if n == 1 else "; the last tenth of each is"
        return *split_ends(file, data, seed, documents), f"{about}{last} held out for validation"
    train, held_out = split_documents(n)
    sentence = f"{about}; {len(held_out):,} of them {'is' if len(held_out) == 1 else 'are'} held out for validation"
    return TextDataset(file, data, seed, train), TextDataset(file, data, seed, held_out), sentence


def text_examples(
    config: Config, tokenizer: ChatTokenizer, context: int, progress: Console | None
) -> tuple[SftExamples, list[str]]:
    """The pieces of documents of a pretraining run, and sentences about them."""
    texts = find_texts(config.pretrain)
    data, seed = config.data.limited_to(context), config.system.seed
    train, held_out, sentence = make_datasets(texts, data, tokenizer, seed, progress)
    beginning = tokenizer.decode(held_out.read(0).ids.tolist()[1:])[:180]
    validation = held_out.first(data.eval_examples)
    sentences = [
        sentence,
        f"The held-out text, {len(held_out):,} {'piece' if len(held_out) == 1 else 'pieces'}, begins with: {short(beginning, 200)}",
        *texts.notes,
    ]
    return SftExamples(source=train, validation=validation, shown=[], files=texts.files), sentences

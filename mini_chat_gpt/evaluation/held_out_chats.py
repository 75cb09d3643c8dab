"""Which chats a model was not trained on: the part that its run held out, or a file of chats that the user names.

A run's config.yaml has the files of its chats, the share that it held out and the seed, so the part is found again by splitting
them as the run has done (`training/sft_data.py`). The project may have been moved or copied: files are found by their hashes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_chat_gpt.checkpoints.find import is_checkpoint, read_meta, steps_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.config import ChatsSection, Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import Conversation, Problem, read_conversations
from mini_chat_gpt.data.chat_notes import skipped_notes
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.evaluation.chat_tasks import CHATS, ChatTask, make_tasks
from mini_chat_gpt.evaluation.held_out import recorded_data, runs_of, start_folder
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.provenance import file_fingerprint, find_data_file
from mini_chat_gpt.training.sft_data import ChatData, for_model, read_chats

CONFIG = "config.yaml"
Loaded = Mapping[Path, tuple[GPT, ChatTokenizer]]
"""Checkpoint -> (model, tokenizer), from before to after."""


@dataclass(frozen=True)
class HeldOutChats:
    """Chats to evaluate on."""

    sources: dict[str, Callable[[], Iterator[Conversation]]]
    """Kind of the tasks (`CHATS`, or "chats/NAME") -> reads the chats."""
    files: list[str]
    why: str
    only_last: bool = False  # only the last reply of a chat is trained
    with_stories: bool = False  # whether the run was trained on TinyStories-Instruct tasks as well
    problems: list[Problem] = field(default_factory=list)
    """Filled when the chats are read: records that can't be used."""

    def tasks(self, models: Sequence[tuple[GPT, ChatTokenizer]], n: int, seed: int) -> list[ChatTask]:
        """At most n tasks of each source, which fit the contexts of all models. Raises UserError if there is none."""
        tasks = [
            task
            for kind, read in self.sources.items()
            for task in make_tasks(read(), models, n, seed, kind, self.only_last)
        ]
        if not tasks:
            context = min(model.config.context_length for model, _ in models)
            notes = "".join(f"\n  {note}" for note in self.notes())
            raise UserError(
                f"{', '.join(self.files)} has no chat ({self.why}) whose reply can be written with a context of {context} tokens; "
                f"name other data: a file of chats, or a folder with TinyStoriesInstruct-valid.txt.{notes}"
            )
        return tasks

    def notes(self) -> list[str]:
        """What was not used of the files."""
        return skipped_notes(self.problems)


def find_held_out_chats(data: str | None, models: Loaded, out: Console | None = None) -> HeldOutChats | None:
    """The chats of the file or folder `data`, otherwise those of the last model that was fine-tuned on chats; None if none was.

    Of data that one of the models was trained on, only the part that was held out. Raises UserError for files that can't be used,
    and if those of the run are gone.
    """
    for checkpoint, (model, tokenizer) in reversed([*models.items()]):
        run = _ChatRun.of(checkpoint)
        if run is not None and (data is None or run.uses(data)):
            return run.held_out(tokenizer, model.config.context_length, out, data)
    return None if data is None else _of_files(data, models)


def sources_of(
    chats: ChatData, section: ChatsSection, paths: Sequence[str] = ()
) -> dict[str, Callable[[], Iterator[Conversation]]]:
    """`HeldOutChats.sources` of the chats of a run, or of some of its paths."""
    chosen: dict[str, set[int]] = {}
    for path, number in chats.validated.used_chats():
        if not paths or path in paths:
            chosen.setdefault(path, set()).add(number)
    names = {file.path: file.kind for file in chats.validated.files if file.path in chosen}

    def reader(path: str) -> Callable[[], Iterator[Conversation]]:
        def read() -> Iterator[Conversation]:
            for number, conversation in enumerate(read_conversations(path, [], section.keys)):
                if number in chosen[path]:
                    yield conversation

        return read

    return {CHATS if len(names) == 1 else f"{CHATS}/{name}": reader(path) for path, name in names.items()}


@dataclass(frozen=True)
class _ChatRun:
    """A run that was fine-tuned on chats."""

    checkpoint: Path
    folder: Path
    config: Config

    @staticmethod
    def of(checkpoint: Path) -> _ChatRun | None:
        """The run of a checkpoint; None if it has none, or was not trained on chats."""
        for folder in runs_of(checkpoint):
            with suppress(UserError):  # no config, or one of another structure
                if (folder / CONFIG).is_file() and _job(folder) != "pretrain":
                    config = load_config(folder / CONFIG, of_run=True)
                    return _ChatRun(checkpoint, folder, config) if config.chats.files else None
        return None

    def held_out(self, tokenizer: ChatTokenizer, context: int, out: Console | None, data: str | None) -> HeldOutChats:
        """The held-out part, split as in the run; of `data` alone, if that is one of several files."""
        changed: list[str] = []
        section = self._section(changed)
        config = for_model(self.config.model_copy(update={"chats": section}), tokenizer, context)
        chats = read_chats(config, tokenizer, context, out)
        paths = [*section.files, *section.valid_files]
        named = [] if data is None else [path for path in paths if _is_same(path, data)]
        why = f"held out of the chats of {self.checkpoint}"
        if chats.held_out is None:
            why = f"chats that {self.checkpoint} was trained on, as it held out none"
        if changed:
            why += f"; {', '.join(changed)} has changed since, so it may have been trained on some of them"
        sources = sources_of(chats, section, named)
        return HeldOutChats(sources, named or paths, why, section.train == "last", section.stories > 0)

    def _section(self, changed: list[str]) -> ChatsSection:
        """The section with the paths of the files as they are now; adds to `changed` those with another content."""
        section = self.config.chats
        files, valid_files = (
            {self._place(path, changed): weight for path, weight in part.items()}
            for part in (section.files, section.valid_files)
        )
        return section.model_copy(update={"files": files, "valid_files": valid_files})

    def _place(self, path: str, changed: list[str]) -> str:
        """Where a path of the config is now. Raises UserError if it is gone."""
        if hub_name(path, "dataset") is not None:
            return path
        start = start_folder(self.folder, self.config.sft.save_dir)
        places = [os.path.expanduser(path), *([os.path.join(start, os.path.expanduser(path))] if start else [])]
        present = [place for place in places if os.path.exists(place) or glob.glob(place)]
        records = [record for record in recorded_data(self.folder) if record.get("name") == Path(path).name]
        unchanged = [place for place in present if not records or any(_matches(place, one) for one in records)]
        if unchanged:
            return path if unchanged[0] == places[0] else unchanged[0]
        for record in records:
            if (found := find_data_file(record, self.folder)) is not None:
                return str(found)
        if present:
            changed.append(path)
            return present[0]
        raise UserError(
            f"{path}, the chats of {self.checkpoint}, is not where the run had it; name chats to evaluate on with --data FILE."
        )

    def uses(self, data: str) -> bool:
        """Whether a path is among those of the run, or a file has the content of one of them."""
        paths = [*self.config.chats.files, *self.config.chats.valid_files]
        with suppress(UserError):
            if any(_is_same(self._place(path, []), data) for path in paths):
                return True
        records = recorded_data(self.folder)
        return os.path.isfile(data) and any(_matches(data, record) for record in records)


def _job(run: Path) -> str | None:
    """What a run trains, "sft" or "pretrain", as its checkpoints say; None if they don't."""
    for folder in (run, *steps_of(run)):
        if is_checkpoint(folder):
            with suppress(UserError):
                return str(read_meta(folder)["info"].get("job"))
    return None


def _matches(place: str, record: Mapping[str, Any]) -> bool:
    """Whether a file has the content that a run recorded. A folder, or what a pattern matches, is not compared."""
    if not os.path.isfile(place):
        return True
    found = file_fingerprint(Path(place), Path())
    return all(found[key] == record.get(key) for key in ("size", "sha256_of_pieces"))


def _is_same(one: str, other: str) -> bool:
    """Whether two paths name the same file or folder, or files with the same content."""
    if one == other:
        return True
    with suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
        return os.path.isfile(one) and os.path.isfile(other) and _matches(one, file_fingerprint(Path(other), Path()))
    return False


def _of_files(data: str, models: Loaded) -> HeldOutChats:
    """All chats of a path, or those of its validation split if it has one."""
    split = bool(chat_files(data).held_out)
    run = next((run for checkpoint in reversed([*models]) if (run := _ChatRun.of(checkpoint))), None)
    keys = run.config.chats.keys if run is not None else {}  # a file to test on is written as the one to train on
    problems: list[Problem] = []

    def read() -> Iterator[Conversation]:
        for conversation in read_conversations(data, problems, keys):
            if conversation.held_out or not split:
                yield conversation

    only_last = run is not None and run.config.chats.train == "last"
    why = "the validation split, as requested" if split else "as requested"
    return HeldOutChats({CHATS: read}, [data], why, only_last, problems=problems)

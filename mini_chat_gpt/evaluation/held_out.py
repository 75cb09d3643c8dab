"""Held-out tasks: finding the file they come from, splitting it into groups, and selecting tasks.

If the file is that of the generated sample, metadata about each record is stored next to it, and the tasks form two groups: plots
that occur in the training split (with other names and objects), and plots that never do. Other data is one group.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_chat_gpt.assets import load
from mini_chat_gpt.chat_format import format_of
from mini_chat_gpt.common.cached_folder import remove_folder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, read_file, remove_leftovers, user_cache
from mini_chat_gpt.common.json_files import JSONRecord, parse_json
from mini_chat_gpt.common.manifest import find_damage
from mini_chat_gpt.common.yaml_files import read_yaml
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.evaluation.refusals import REFUSALS, refusal_tasks
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.model import GPT
from mini_chat_gpt.prepare import sample_plots, sample_stories
from mini_chat_gpt.prepare.sample_stories import ANSWERS_NAME, FILE_NAME, write_sample
from mini_chat_gpt.sft_dataloader import InstructDataset, find_instruct_file
from mini_chat_gpt.tinystories.records import FILE_NAMES
from mini_chat_gpt.tinystories.tasks import Task, check_kinds
from mini_chat_gpt.tinystories.truncation import truncate_to_context
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.provenance import METADATA, find_data_file, read_metadata

GROUPS = {"seen": "plots of the train file", "unseen": "plots not in it"}
"""The groups of the sample -> their titles. A model trained on other data has seen neither."""


def find_held_out(data: Path | str | None = None, checkpoints: Sequence[Path] = ()) -> tuple[Path, str]:
    """(file, reason): the validation file of `data`, otherwise that of the runs of the checkpoints, otherwise that of the sample.

    `data` is a folder with Instruct files, one of the two files, or any file of records, which is used as it is. Raises UserError if
    it doesn't exist. Relative data paths of a run are resolved against the folder where the run was started, and the current one.
    """
    if data is not None:
        data = Path(data)
        if data.is_file() and "train" not in data.name:
            return data, "as requested"
        return find_instruct_file(data, "valid"), "as requested"
    for checkpoint in checkpoints:
        for run in runs_of(checkpoint):
            for record in recorded_data(run):
                file = find_data_file(record, run, data_folders(checkpoint))
                if file is not None and _is_valid(file.name):
                    return file, f"the data of {checkpoint}"
        names = [str(record.get("name") or "") for run in runs_of(checkpoint) for record in recorded_data(run)]
        other = (
            ", but not the file that its run used, which is missing or has changed"
            if any(map(_is_valid, names))
            else ""
        )
        for folder in data_folders(checkpoint):
            try:
                return find_instruct_file(folder, "valid"), f"the data of {checkpoint}{other}"
            except UserError:  # moved or deleted since the run
                continue
    return sample_valid_file(), "the generated sample, because the run's own data was not found"


def recorded_data(run: Path) -> list[dict[str, Any]]:
    """What the run in this folder recorded about its data files (`DataFile`); [] if there is no readable record."""
    return list((read_metadata(run).get("began") or {}).get("data") or [])


def data_folders(checkpoint: Path) -> list[Path]:
    """Where the data of a checkpoint's run may be: the path in its config, relative to where it was started, and as it is."""
    candidates: list[Path] = []
    for run in runs_of(checkpoint):
        for dataset, save_dir in _data_paths(run / "config.yaml"):
            if (start := start_folder(run, save_dir)) is not None:
                candidates.append(start / Path(os.path.expanduser(dataset)))
            candidates.append(Path(os.path.expanduser(dataset)))
    return [folder.parent if folder.is_file() else folder for folder in candidates]


def start_folder(run: Path, save_dir: str) -> Path | None:
    """The folder in which a run was started; None if its folder doesn't tell: "runs/sft" is /x/runs/sft if it was /x."""
    save_folder, parent = Path(save_dir).parent.parts, run.resolve().parent.parts
    n_above = len(parent) - len(save_folder)
    return Path(*parent[:n_above]) if parent[n_above:] == save_folder else None


def runs_of(checkpoint: Path) -> tuple[Path, ...]:
    """The folders that may be the run of a checkpoint: itself, and the folder that contains it."""
    return () if os.path.isfile(checkpoint) else (checkpoint, checkpoint.parent)


def has_run(checkpoint: Path) -> bool:
    """Whether a checkpoint says what it was trained on, in a run's config.yaml or run.json."""
    return any((run / name).is_file() for run in runs_of(checkpoint) for name in ("config.yaml", METADATA))


def _is_valid(name: str) -> bool:
    """Whether a validation file of Instruct records has this name."""
    return name in {name.format(split="valid") for name in FILE_NAMES}


def _data_paths(file: Path) -> list[tuple[str, str]]:
    """(dataset_path, save_dir) of the sections of a run's config that name data, `sft` first; [] if the file is not a config."""
    try:
        config = read_yaml(file, "config file", "", "sections").value
    except UserError:
        return []
    sections = [section for name in ("sft", "pretrain") if isinstance(section := config.get(name), dict)]
    paths = [[section.get(key) or "" for key in ("dataset_path", "save_dir")] for section in sections]
    return [
        (data, save_dir) for data, save_dir in paths if data and isinstance(data, str) and isinstance(save_dir, str)
    ]


def sample_valid_file() -> Path:
    """The validation file of the sample in the user's cache. It is written once for each version of the sample."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (sample_plots, sample_stories)]
    sources += [repr(load(name)).encode() for name in ("sample_plots.yaml", "sample_words.yaml")]
    folder = user_cache() / f"sample-{hashlib.sha256(b''.join(sources)).hexdigest()[:12]}"
    remove_leftovers(folder.parent)
    if os.path.lexists(folder) and (problem := find_damage(folder)) is not None:
        warnings.warn(f"{folder} is damaged: {problem}. The sample is written again.", stacklevel=2)
        remove_folder(folder)
    if not folder.exists():
        try:
            with atomic_folder(folder) as draft:
                write_sample(draft, n_train=0)
        except UserError:
            if find_damage(folder) is not None:  # otherwise another process was faster
                raise
    return folder / FILE_NAME.format(split="valid")


def held_out_tasks(
    file: Path,
    models: Sequence[tuple[GPT, ChatTokenizer]],
    n: int,
    seed: int = 1337,
    kinds: Sequence[str] | None = None,
) -> dict[str, list[Task]]:
    """By group, at most n tasks of each kind that fit the contexts of all models.

    Without `kinds`, these are all kinds that are trained by default and that the data supports, and refusals. Only tasks that can be
    scored are selected, and the selection depends on the file, the seed and the contexts alone. Tasks without a group (all tasks of
    data without groups; refusals) are in group "". Raises UserError if there is no task, and for an unknown kind.
    """
    check_kinds(kinds or (), "kinds", [REFUSALS])
    contexts = [_context(model, tokenizer) for model, tokenizer in models]
    shortest = min(contexts, key=lambda context: context[1])
    data = DataSection().model_copy(update={"seq_len": shortest[1], "system_message": shortest[2]})
    source = InstructDataset(file, shortest[0], data, seed)
    kinds = [*dict.fromkeys(kinds or [*source.mixture.kinds, REFUSALS])]
    of_records = [kind for kind in kinds if kind != REFUSALS]

    def fits(task: Task) -> bool:
        return bool(score(task, "")) and _fit_all(task, contexts) is not None

    selected: dict[str, list[Task]] = {
        name: [task for kind in of_records for task in source.eval_tasks(kind, n, numbers, fits)]
        for name, numbers in groups_of(file, len(source)).items()
    }
    if REFUSALS in kinds:
        selected[""] = [*selected.get("", ()), *refusal_tasks()[:n]]
    fitting = {name: [fit for task in tasks if (fit := _fit_all(task, contexts))] for name, tasks in selected.items()}
    if not any(fitting.values()):
        raise UserError(
            f"{file} has no task of the kinds {', '.join(kinds)} that fits into a context of {shortest[1]} tokens; choose other "
            "data, or a model with a longer context."
        )
    return {name: tasks for name, tasks in fitting.items() if tasks}


class _Answers(JSONRecord):
    """The part of a line of the answers file that is used here."""

    seen: bool


def groups_of(file: Path, n_records: int) -> Mapping[str, list[int] | None]:
    """Group -> numbers of its records; {"": None} (all records) for data other than the sample.

    Raises UserError if the answers next to the file don't match it.
    """
    answers = file.with_name(ANSWERS_NAME.format(split="valid"))
    if file.name != FILE_NAME.format(split="valid") or not answers.is_file():
        return {"": None}
    remedy = "move the file away, or write the sample again with `mini-chat-gpt prepare --sample`"
    lines = read_file(answers).splitlines()
    if len(lines) != n_records:
        raise UserError(
            f"{answers} describes {len(lines)} records, but {file.name} has {n_records}; the files don't match, so move the "
            "answers away."
        )
    seen = [
        parse_json(line, _Answers, f"{answers}, line {number}", remedy).seen
        for number, line in enumerate(lines, start=1)
    ]
    return {name: [i for i, one in enumerate(seen) if one == (name == "seen")] for name in GROUPS}


def _context(model: GPT, tokenizer: ChatTokenizer) -> tuple[ChatTokenizer, int, str | None]:
    """(tokenizer, context length, default system message) of a model, which its tasks must fit.

    The tokenizer is a copy with control tokens, because fitting renders chats; the tokenizer of a base model stays unchanged.
    """
    tokenizer = copy.deepcopy(tokenizer)
    chat_format = format_of(tokenizer)
    tokenizer.add_control_tokens(chat_format.required_tokens)
    return tokenizer, model.config.context_length, chat_format.default_system


def _fit_all(task: Task, contexts: Sequence[tuple[ChatTokenizer, int, Any]]) -> Task | None:
    """The task, with its story shortened if necessary to fit all contexts; None if it can't fit one of them."""
    for tokenizer, length, system in contexts:
        fitted = truncate_to_context(task, tokenizer, length, system)
        if fitted is None:
            return None
        task = fitted.task
    return task

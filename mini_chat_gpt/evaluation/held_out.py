"""Tasks that no model was trained on: which file they come from, which groups they fall into, and choosing them.

Where the file is the sample's, what is known about each record lies beside it, and the tasks fall into two groups: plots
that training shows (with other names and things), and plots that it never does. Other data are one group.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mini_chat_gpt.assets import load
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache
from mini_chat_gpt.evaluation.refusals import REFUSALS, refusal_tasks
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.model import GPT
from mini_chat_gpt.prepare import sample_plots, sample_stories
from mini_chat_gpt.prepare.sample_stories import ANSWERS_NAME, FILE_NAME, write_sample
from mini_chat_gpt.sft_dataloader import InstructDataset, find_instruct_file
from mini_chat_gpt.tinystories.tasks import Task, check_kinds
from mini_chat_gpt.tinystories.truncation import truncate_to_context
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GROUPS = {"seen": "plots of the train file", "unseen": "plots not in it"}
"""The sample's groups, and what they are called on a screen. Another model may have been trained on neither."""


def find_held_out(data: Path | str | None = None, checkpoints: Sequence[Path] = ()) -> tuple[Path, str]:
    """(file, why this one): the validation file of `data`, else of what the checkpoints' runs were trained with, else the sample's.

    `data` is a folder with Instruct files, one of the two files, or any file of records that is to be used as it is.
    Raises UserError if it isn't there. A run's data are looked for where the run was started, and here.
    """
    if data is not None:
        data = Path(data)
        if data.is_file() and "train" not in data.name:
            return data, "named by you"
        return find_instruct_file(data, "valid"), "named by you"
    for checkpoint in checkpoints:
        for place in _data_of(checkpoint):
            try:
                return find_instruct_file(place, "valid"), f"the data of {checkpoint}"
            except UserError:  # moved or deleted since then
                continue
    return sample_valid_file(), "the generated sample, since the run's own data are not here"


def _data_of(checkpoint: Path) -> list[Path]:
    """Where the data of a checkpoint's run may lie: as its config says, from where it was started, and from here."""
    places: list[Path] = []
    for run in () if checkpoint.is_file() else (checkpoint, checkpoint.parent):
        for section in _sections(run / "config.yaml"):
            dataset, runs = section.get("dataset_path"), Path(section.get("save_dir") or "").parent.parts
            above = run.resolve().parent.parts
            if dataset and above[len(above) - len(runs) :] == runs:
                places.append(Path(*above[: len(above) - len(runs)]) / dataset)
            if dataset:
                places.append(Path(dataset))
    return places


def _sections(file: Path) -> list[dict[str, Any]]:
    """The sections of a run's config that may name data, the tasks' own first; [] where this is no run's config."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    found = [config.get(name) for name in ("sft", "pretrain")] if isinstance(config, dict) else []
    return [section for section in found if isinstance(section, dict)]


def sample_valid_file() -> Path:
    """The sample's validation file in the user's cache, written there once for each version of the sample."""
    described = [Path(str(module.__file__)).read_bytes() for module in (sample_plots, sample_stories)]
    described += [repr(load(name)).encode() for name in ("sample_plots.yaml", "sample_words.yaml")]
    folder = user_cache() / f"sample-{hashlib.sha256(b''.join(described)).hexdigest()[:12]}"
    file = folder / FILE_NAME.format(split="valid")
    if not file.is_file():
        write_sample(folder, n_train=0)
    return file


def held_out_tasks(
    file: Path,
    models: Sequence[tuple[GPT, ChatTokenizer]],
    n: int,
    seed: int = 1337,
    kinds: Sequence[str] | None = None,
) -> dict[str, list[Task]]:
    """By group, at most n tasks of each kind that fit the contexts of all the models.

    Without `kinds` it is every kind that is taught by default and that the data support, and refusals. Only tasks that give
    something to measure by are chosen, always the same for a file, seed and context. What belongs to no group (all of data
    without groups; refusals) is called "". Raises UserError where there is not one task, and for a kind that doesn't exist.
    """
    check_kinds(kinds or (), "kinds", [REFUSALS])
    contexts = [_context(model, tokenizer) for model, tokenizer in models]
    tightest = min(contexts, key=lambda context: context[1])
    source = InstructDataset(file, tightest[0], tightest[1], seed, system=tightest[2])
    kinds = [*dict.fromkeys(kinds or [*source.kinds, REFUSALS])]
    of_records = [kind for kind in kinds if kind != REFUSALS]

    def fits(task: Task) -> bool:
        return bool(score(task, "")) and _fit_all(task, contexts) is not None

    wanted: dict[str, list[Task]] = {
        name: [task for kind in of_records for task in source.eval_tasks(kind, n, numbers, fits)]
        for name, numbers in groups_of(file, len(source)).items()
    }
    if REFUSALS in kinds:
        wanted[""] = [*wanted.get("", ()), *refusal_tasks()[:n]]
    fitting = {name: [fit for task in ours if (fit := _fit_all(task, contexts))] for name, ours in wanted.items()}
    if not any(fitting.values()):
        raise UserError(
            f"{file} supports no task of the kinds {', '.join(kinds)} that fits a context of {tightest[1]} tokens; name other "
            "data, or a model with a longer context."
        )
    return {name: ours for name, ours in fitting.items() if ours}


def groups_of(file: Path, n_records: int) -> Mapping[str, list[int] | None]:
    """Group -> numbers of its records; {"": None}, all in one, for data that aren't the sample's.

    Raises UserError if the answers beside the file don't belong to it.
    """
    answers = file.with_name(ANSWERS_NAME.format(split="valid"))
    if file.name != FILE_NAME.format(split="valid") or not answers.is_file():
        return {"": None}
    lines = answers.read_text(encoding="utf-8").splitlines()
    if len(lines) != n_records:
        raise UserError(
            f"{answers} tells of {len(lines)} records, but {file.name} has {n_records}; they don't belong together, so "
            "move it away."
        )
    seen = [json.loads(line)["seen"] for line in lines]
    return {name: [i for i, one in enumerate(seen) if one == (name == "seen")] for name in GROUPS}


def _context(model: GPT, tokenizer: ChatTokenizer) -> tuple[ChatTokenizer, int, str | None]:
    """(tokenizer, tokens, system message) that a model's tasks have to fit.

    The tokenizer is a copy, so that a base's stays one: fitting needs the control tokens that chatting will add.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_control_tokens()
    chat_format = tokenizer.chat_format or ChatFormat()
    return tokenizer, model.config.context_length, chat_format.default_system


def _fit_all(task: Task, contexts: Sequence[tuple[ChatTokenizer, int, Any]]) -> Task | None:
    """The task, its story shortened as far as the contexts need it; None if one of them has no room for it."""
    for tokenizer, length, system in contexts:
        fitted = truncate_to_context(task, tokenizer, length, system)
        if fitted is None:
            return None
        task = fitted.task
    return task

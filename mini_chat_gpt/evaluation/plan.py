"""What models are evaluated on: first the chats that they were not trained on, then tasks about stories if they know stories.

Without options it follows what the runs have recorded. `--data` names chats or stories, `--kinds` kinds of tasks. Own prompts
(`prompt_suite`) need no data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.evaluation.chat_tasks import CHATS, ChatTask
from mini_chat_gpt.evaluation.held_out import find_held_out, has_run, held_out_tasks
from mini_chat_gpt.evaluation.held_out_chats import HeldOutChats, Loaded, find_held_out_chats
from mini_chat_gpt.sft_dataloader import find_instruct_file
from mini_chat_gpt.tinystories.documents import kind_of_data
from mini_chat_gpt.tinystories.tasks import Task


@dataclass(frozen=True)
class Plan:
    """The tasks, and where they come from."""

    chats: list[ChatTask] = field(default_factory=list)
    about_chats: HeldOutChats | None = None
    stories: Mapping[str, Sequence[Task]] = field(default_factory=dict)
    """Group -> tasks about stories, and refusals."""
    file: Path | None = None  # of the stories
    why: str = ""

    @property
    def sources(self) -> list[tuple[list[str], str]]:
        """(files, reason) of the chats and of the stories."""
        chats = [] if self.about_chats is None else [(self.about_chats.files, self.about_chats.why)]
        return [*chats, *([([str(self.file)], self.why)] if self.file is not None else [])]


def make_plan(
    data: str | None,
    models: Loaded,
    n: int,
    seed: int,
    kinds: Collection[str] = (),
    has_prompts: bool = False,
    out: Console | None = None,
) -> Plan:
    """The tasks for these models, at most n of each kind and group. `has_prompts`: own prompts are enough.

    Raises UserError if nothing is known to evaluate on, and for data that can't be used.
    """
    of_chats = data is not None and _holds_chats(data)
    if of_chats and (wrong := [kind for kind in kinds if kind != CHATS]):
        raise UserError(
            f"--kinds: {wrong[0]} is a kind of task about stories, but {data} has chats; leave one of them out."
        )
    chats = None
    if of_chats or (data is None and (not kinds or CHATS in kinds)):
        chats = find_held_out_chats(data, models, out)
    if chats is None and CHATS in kinds:
        raise UserError("--kinds: none of the models was fine-tuned on chats here; name some with --data FILE.")
    pairs = [*models.values()]
    plan = Plan() if chats is None else Plan(chats.tasks(pairs, n, seed), chats)
    others = [kind for kind in kinds if kind != CHATS]
    if not _wants_stories(data, models, others, kinds, chats, of_chats):
        if chats is None and not has_prompts:
            raise UserError(_nothing_known([*models][-1]))
        return plan
    file, why = find_held_out(data, [*models])
    tasks = held_out_tasks(file, pairs, n, seed, others)
    return Plan(plan.chats, chats, tasks, file, why)


def _holds_chats(data: str) -> bool:
    """Whether a path has chats. One that is missing or unclear is left to the search for stories, and its messages."""
    if hub_name(data, "dataset") is not None:
        try:
            return not find_instruct_file(data, "valid")
        except UserError:  # it has no such file, or can't be reached, which reading it as chats will say
            return True
    with suppress(UserError):
        return kind_of_data(data) == "chats"
    return False


def _wants_stories(
    data: str | None,
    models: Loaded,
    others: Collection[str],
    kinds: Collection[str],
    chats: HeldOutChats | None,
    of_chats: bool,
) -> bool:
    if kinds or data is not None:
        return bool(others) if kinds else not of_chats
    if chats is not None:
        return chats.with_stories
    return any(map(has_run, models))


def _nothing_known(checkpoint: Path) -> str:
    return (
        f"{checkpoint} doesn't say what it was trained on, so it has nothing held out to be evaluated on; name chats with "
        "--data chats.jsonl, your prompts with --prompts prompts.yaml, or tasks about sample stories with --kinds summary moral."
    )

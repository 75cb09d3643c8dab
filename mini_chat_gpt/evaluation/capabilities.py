"""The capability test: what a model replies to held-out tasks of every kind, scored and put beside trivial answers.

    from mini_chat_gpt.sft_generate import test_sft_capabilities
    test_sft_capabilities(model, tokenizer)["moral"]
    # {"exact": 0.93, "rouge_l": 0.96, "verbatim": 0.93, "n": 200, "stops": 1.0, "baseline": {"exact": 0.02, …},
    #  "empty": 0.0, "interval": {"exact": [0.89, 0.96], …}, …}

Measures are means over tasks of what `scoring` gives to each: shares from 0 to 1, but for a story's length in words
("n_words") and a summary's relative to the expected one ("length_ratio"). "stops" is the share of the replies that ended
by themselves, "role_token" of those that ended by opening another turn, "empty" of those without text. The same tasks,
replies and numbers come of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mini_chat_gpt.chat_format import role_ids
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.baselines import best_of, trivial_scores
from mini_chat_gpt.evaluation.confidence import Paired, bootstrap, paired, wilson
from mini_chat_gpt.evaluation.held_out import find_held_out, held_out_tasks
from mini_chat_gpt.evaluation.task_metrics import by_measure, score
from mini_chat_gpt.evaluation.text_metrics import RIGHT_OR_WRONG, Scores
from mini_chat_gpt.generation.decode import FinishReason, Model
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate_replies
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Results = dict[str, dict[str, Any]]
"""kind -> each of its measures, the main one first, and

    n           number of tasks
    stops       share of the replies that ended by themselves, be it with <|endoftext|> or with a role token
    role_token  share of the replies that ended with a role token: the model went on to speak for somebody else
    empty       share of the replies without text
    baseline    {measure: value, "rules": {measure: name}}: what the best trivial rule reaches, and which it is
    baselines   {rule: {measure: value}}: what each of them reaches
    interval    {measure: [low, high]}: 95 % interval of the mean (Wilson's, else percentile bootstrap with 1,000 resamples);
                "stops", "role_token" and "empty" have one too
    measured    {measure: tasks} for those that only some of the tasks have ("has_sentence")
"""

GREEDY = Sampling(temperature=0, max_new_tokens=1 << 20)  # a reply's length is limited by the targets', see `evaluate`
MOST_ROWS, MOST_CACHE = 64, 1 << 31  # of a batch; more rows fall out of a processor's cache. Bytes


@dataclass(frozen=True)
class Item:
    """A task and what came of it."""

    task: Task
    reply: str
    finish_reason: FinishReason
    scores: Scores
    group: str = ""
    role_token: bool = False  # whether a role token ended it


@dataclass(frozen=True)
class Evaluation:
    """`results` over all tasks, the same for each group where there are any ("seen", "unseen"), and every reply."""

    results: Results
    items: list[Item]
    groups: dict[str, Results] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        parts = ("kind", "prompt", "target", "answer", "required")
        items = [
            {"group": item.group}
            | {name: getattr(item.task, name) for name in parts}
            | {"reply": item.reply, "finish_reason": item.finish_reason, "role_token": item.role_token}
            | {"scores": item.scores}
            for item in self.items
        ]
        return {"results": self.results, "groups": self.groups, "items": items}


def test_sft_capabilities(
    model: GPT,
    tokenizer: ChatTokenizer,
    data: Path | str | None = None,  # noqa: PT028 (not one of pytest's)
    **options: Any,
) -> Results:
    """What a model can do: {kind: {measure: value, "n": …, "baseline": {…}, "interval": {…}, …}}; see `Results`.

    `data` is a folder or file of Instruct records, of which the valid split is taken; without it, that of the run that
    `checkpoint` belongs to, else the generated sample's, written once into the user's cache. The options are those of
    `capability_test`, which also gives every reply and the results by group.
    """
    return capability_test(model, tokenizer, data, **options).results


test_sft_capabilities.__test__ = False  # type: ignore[attr-defined]  # to pytest every function called test_… is one


def capability_test(
    model: GPT,
    tokenizer: ChatTokenizer,
    data: Path | str | None = None,
    *,
    n: int = 100,
    kinds: Sequence[str] | None = None,
    seed: int = 1337,
    checkpoint: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Greedy replies to at most `n` held-out tasks of each kind and group, scored; `data` as in `test_sft_capabilities`.

    On the sample `.groups` has the keys "seen" (plots that training shows) and "unseen" (plots that it never does), and
    `.results` is over both. `kinds` are some of the task kinds (default: all that are taught by default), `seed` decides
    which tasks are taken, `checkpoint` is where the model comes from. `progress` is called with the numbers of replies
    and of tasks.
    """
    file, _ = find_held_out(data, [Path(checkpoint)] if checkpoint is not None else [])
    tasks = held_out_tasks(file, [(model, tokenizer)], n, seed, kinds)
    total = sum(map(len, tasks.values()))

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    return evaluate(model, tokenizer, tasks, progress=report)


def evaluate(
    model: Model,
    tokenizer: ChatTokenizer,
    tasks: Sequence[Task] | Mapping[str, Sequence[Task]],
    sampling: Sampling = GREEDY,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Let the model reply to held-out tasks, or to groups of them by name, and score the replies, kind by kind.

    Left out are tasks that give nothing to measure by (a story to write with no required words). A reply may be
    twice as long as the longest target of its kind, and no longer than `sampling` allows; one that is cut off there has
    not stopped. Batches are as large as pays, or `batch_size`. `progress` is called with the number of tasks done.
    Raises UserError where no task is left, and for a prompt longer than the context.
    """
    by_group = tasks if isinstance(tasks, Mapping) else {"": tasks}
    there = [(task, group) for group, ours in by_group.items() for task in ours if score(task, "")]
    if not there:
        raise UserError("There is not one task to be scored; evaluate on data that support one of the task kinds.")
    items: list[Item] = []
    for kind in dict.fromkeys(task.kind for task, _ in there):
        ours = [(task, group) for task, group in there if task.kind == kind]
        counted = _counting_from(len(items), progress)
        items += _evaluate_kind(model, tokenizer, ours, sampling, batch_size, counted)
    groups = {group: summarise([item for item in items if item.group == group]) for group in by_group if group}
    return Evaluation(summarise(items), items, groups)


def _evaluate_kind(
    model: Model,
    tokenizer: ChatTokenizer,
    tasks: Sequence[tuple[Task, str]],
    sampling: Sampling,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> list[Item]:
    longest = max(len(tokenizer.encode(task.target)) for task, _ in tasks)
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, 2 * longest + 1))
    prompts = [task.prompt for task, _ in tasks]
    n_rows = batch_size or rows_at_once(model)
    roles = role_ids(tokenizer)
    replies = generate_replies(model, tokenizer, prompts, sampling, batch_size=n_rows, progress=progress)
    return [
        Item(task, reply.text, reply.finish_reason, score(task, reply.text), group, reply.stop_id in roles)
        for (task, group), reply in zip(tasks, replies, strict=True)
    ]


def rows_at_once(model: Model) -> int:
    """How many prompts to reply to at a time: no more than pays, and than there is room for their keys and values."""
    config = model.config
    per_token = model.make_cache(1, 1).table.nbytes
    return max(1, min(MOST_ROWS, MOST_CACHE // (per_token * config.context_length)))


def _counting_from(start: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(start + done)


def summarise(items: Sequence[Item]) -> Results:
    """The results of each kind among these items."""
    results: Results = {}
    for kind in dict.fromkeys(item.task.kind for item in items):
        ours = [item for item in items if item.task.kind == kind]
        values = by_measure([item.scores for item in ours])
        ends = {
            "stops": [float(item.finish_reason == "stop") for item in ours],
            "role_token": [float(item.role_token) for item in ours],
            "empty": [float(not item.reply.strip()) for item in ours],
        }
        reached = trivial_scores([item.task for item in ours])
        results[kind] = {
            **{name: fmean(of_one) for name, of_one in values.items()},
            "n": len(ours),
            **{name: fmean(of_one) for name, of_one in ends.items()},
            "baseline": best_of(reached),
            "baselines": reached,
            "interval": {
                name: [*(wilson if name in RIGHT_OR_WRONG else bootstrap)(of_one)]
                for name, of_one in (values | ends).items()
            },
            "measured": {name: len(of_one) for name, of_one in values.items() if len(of_one) < len(ours)},
        }
    return results


@dataclass(frozen=True)
class Difference:
    """Two models on the same tasks of one kind and group, by the kind's main measure."""

    kind: str
    group: str
    measure: str
    found: Paired


def differences(before: Evaluation, after: Evaluation) -> list[Difference]:
    """Task by task, for each kind and group. Both have been put the same tasks."""
    scores: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for one, other in zip(before.items, after.items, strict=True):
        measure = next(iter(other.scores))
        for values, item in zip(
            scores.setdefault((other.task.kind, other.group, measure), ([], [])), (one, other), strict=True
        ):
            values.append(item.scores[measure])
    return [Difference(*key, paired(*both)) for key, both in scores.items()]

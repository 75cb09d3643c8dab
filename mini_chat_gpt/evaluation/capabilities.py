"""The capability test: a model's replies to held-out tasks of every kind, scored and compared with baselines.

    from mini_chat_gpt.sft_generate import test_sft_capabilities
    test_sft_capabilities(model, tokenizer)["moral"]
    # {"exact": 0.93, "rouge_l": 0.96, "verbatim": 0.93, "n": 200, "stops": 1.0, "baseline": {"exact": 0.02, …},
    #  "empty": 0.0, "interval": {"exact": [0.89, 0.96], …}, …}

Measures are means over tasks of the scores of `task_metrics`. They are shares from 0 to 1, except a story's length in words
("n_words") and the length of a summary relative to its reference ("length_ratio"). The same seed gives the same tasks, replies
and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mini_chat_gpt.chat_format import format_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.baselines import baseline_scores, best_baselines
from mini_chat_gpt.evaluation.chat_tasks import ChatTask
from mini_chat_gpt.evaluation.confidence import Paired, bootstrap, paired, ratio, wilson
from mini_chat_gpt.evaluation.held_out import find_held_out, held_out_tasks
from mini_chat_gpt.evaluation.task_metrics import by_measure, score
from mini_chat_gpt.evaluation.text_metrics import LOSS, RIGHT_OR_WRONG, Scores, plain_words
from mini_chat_gpt.generation.decode import FinishReason, Model, cache_bytes_per_token
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate_replies
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Results = dict[str, dict[str, Any]]
"""kind -> each of its measures, the main one first, and

    n           number of tasks
    stops       share of the replies that the model ended by itself, with <|endoftext|> or with a role token
    role_token  share of the replies that ended with a role token: the model began to speak for another role
    empty       share of the replies without text
    baseline    {measure: value, "rules": {measure: name}}: the score of the best baseline, and its name
    baselines   {name: {measure: value}}: the scores of all baselines
    interval    {measure: [low, high]}: 95 % interval of the mean (Wilson, otherwise bootstrap percentiles of 1,000 resamples);
                also for "stops", "role_token" and "empty"
    measured    {measure: number of tasks} for measures that only some of the tasks have ("has_sentence")

Replies of chats have two measures of all replies together: "length", words of the replies / words of the expected ones, and
"loss", nats per token of the expected replies.
"""

GREEDY = Sampling(temperature=0, max_new_tokens=1 << 20)  # `evaluate` limits the length by the targets
MIN_CHAT_REPLY = 64  # tokens
MAX_ROWS, MAX_CACHE = 64, 1 << 31  # rows of a batch (more don't fit into a processor's cache), bytes of its KV cache


@dataclass(frozen=True)
class Item:
    """A task with a model's reply and its scores."""

    task: Task
    reply: str
    finish_reason: FinishReason
    scores: Scores
    group: str = ""
    role_token: bool = False  # whether a role token ended the reply
    loss: tuple[float, int] | None = None
    """Of the expected reply of a chat: nats, and the number of tokens."""


@dataclass(frozen=True)
class Evaluation:
    """Results over all tasks, results by group if there are groups ("seen", "unseen"), and every reply."""

    results: Results
    items: list[Item]
    groups: dict[str, Results] = field(default_factory=dict)

    def with_losses(self, losses: np.ndarray) -> Evaluation:
        """The same with the losses of the expected replies, (items, 2); see `chat_tasks.reply_losses`."""
        pairs = [(float(nats), int(n_tokens)) for nats, n_tokens in losses]
        items = [replace(item, loss=pair) for item, pair in zip(self.items, pairs, strict=True)]
        return Evaluation(summarize(items), items)

    def __add__(self, other: Evaluation) -> Evaluation:
        """Both, which must be of different kinds."""
        return Evaluation(self.results | other.results, self.items + other.items, self.groups | other.groups)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        fields = ("kind", "prompt", "target", "answer", "required")
        items = [
            {"group": item.group}
            | {name: getattr(item.task, name) for name in fields}
            | {"reply": item.reply, "finish_reason": item.finish_reason, "role_token": item.role_token}
            | {"scores": item.scores}
            | ({} if item.loss is None else {"loss": dict(zip(("nats", "tokens"), item.loss, strict=True))})
            for item in self.items
        ]
        return {"results": self.results, "groups": self.groups, "items": items}


def test_sft_capabilities(
    model: GPT,
    tokenizer: ChatTokenizer,
    data: Path | str | None = None,  # noqa: PT028 (not a pytest test)
    **options: Any,
) -> Results:
    """Measure what a model can do: {kind: {measure: value, "n": …, "baseline": {…}, "interval": {…}, …}}; see `Results`.

    `data` is a folder or file of Instruct records; the valid split is used. By default it is the data of the run that `checkpoint`
    belongs to, otherwise the generated sample, which is cached in the user's cache folder. The options are those of
    `capability_test`, which also returns every reply and the results by group.
    """
    return capability_test(model, tokenizer, data, **options).results


test_sft_capabilities.__test__ = False  # type: ignore[attr-defined]  # otherwise pytest collects it because of its name


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
    """Score greedy replies to at most `n` held-out tasks of each kind and group; `data` as in `test_sft_capabilities`.

    For the sample, `.groups` has the keys "seen" (plots that occur in the training split) and "unseen" (plots that don't), and
    `.results` covers both. `kinds` selects task kinds (default: all that are trained by default), `seed` selects tasks, `checkpoint`
    is where the model was loaded from. `progress` is called with (replies done, tasks).
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
    """Generate replies to held-out tasks, or to groups of tasks by name, and score them kind by kind.

    Tasks without any measure are skipped (a story to write without required words). A reply is cut off at twice the length of the
    longest target of its kind, or at the limit of `sampling`. `batch_size` is chosen automatically by default. `progress` is called
    with the number of tasks done. Raises UserError if no task remains, and for a prompt longer than the context.

    Replies of chats differ more in length, so they are cut off at that of the longest target (at least `MIN_CHAT_REPLY` tokens).
    """
    by_group = tasks if isinstance(tasks, Mapping) else {"": tasks}
    scorable = [(task, group) for group, of_group in by_group.items() for task in of_group if score(task, "")]
    if not scorable:
        raise UserError("There is no task that can be scored; evaluate on data that supports one of the task kinds.")
    items: list[Item] = []
    for kind in dict.fromkeys(task.kind for task, _ in scorable):
        of_kind = [(task, group) for task, group in scorable if task.kind == kind]
        counted = _counting_from(len(items), progress)
        items += _evaluate_kind(model, tokenizer, of_kind, sampling, batch_size, counted)
    groups = {group: summarize([item for item in items if item.group == group]) for group in by_group if group}
    return Evaluation(summarize(items), items, groups)


def _evaluate_kind(
    model: Model,
    tokenizer: ChatTokenizer,
    tasks: Sequence[tuple[Task, str]],
    sampling: Sampling,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> list[Item]:
    longest = max(len(tokenizer.encode(task.target)) for task, _ in tasks)
    of_chats = isinstance(tasks[0][0], ChatTask)
    limit = max(MIN_CHAT_REPLY, longest + 1) if of_chats else 2 * longest + 1
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, limit))
    prompts = [task.prompt_for(tokenizer) if isinstance(task, ChatTask) else task.prompt for task, _ in tasks]
    n_rows = batch_size or rows_at_once(model)
    roles = format_of(tokenizer).role_ids(tokenizer)
    replies = generate_replies(model, tokenizer, prompts, sampling, batch_size=n_rows, progress=progress)
    return [
        Item(task, reply.text, reply.finish_reason, score(task, reply.text), group, reply.stop_id in roles)
        for (task, group), reply in zip(tasks, replies, strict=True)
    ]


def rows_at_once(model: Model) -> int:
    """How many prompts to reply to in a batch. It is limited by the memory of their keys and values."""
    longest = cache_bytes_per_token(model) * model.config.context_length
    return max(1, min(MAX_ROWS, MAX_CACHE // longest))


def _counting_from(start: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(start + done)


def summarize(items: Sequence[Item]) -> Results:
    """The results of each kind."""
    results: Results = {}
    for kind in dict.fromkeys(item.task.kind for item in items):
        of_kind = [item for item in items if item.task.kind == kind]
        values = by_measure([item.scores for item in of_kind])
        ends = {
            "stops": [float(item.finish_reason == "stop") for item in of_kind],
            "role_token": [float(item.role_token) for item in of_kind],
            "empty": [float(not item.reply.strip()) for item in of_kind],
        }
        baselines = baseline_scores([item.task for item in of_kind])
        totals = _totals(of_kind)
        results[kind] = {
            **{name: fmean(of_one) for name, of_one in values.items()},
            **{name: sums[0] / sums[1] for name, pairs in totals.items() if (sums := pairs.sum(axis=0))[1]},
            "n": len(of_kind),
            **{name: fmean(of_one) for name, of_one in ends.items()},
            "baseline": best_baselines(baselines),
            "baselines": baselines,
            "interval": {
                name: [*(wilson if name in RIGHT_OR_WRONG else bootstrap)(of_one)]
                for name, of_one in (values | ends).items()
            }
            | {name: [*bootstrap(pairs, ratio)] for name, pairs in totals.items()},
            "measured": {name: len(of_one) for name, of_one in values.items() if len(of_one) < len(of_kind)},
        }
    return results


def _totals(items: Sequence[Item]) -> dict[str, np.ndarray]:
    """For replies of chats, measure -> (items, 2): the measure is the sum of the first column / that of the second."""
    if not isinstance(items[0].task, ChatTask):
        return {}
    lengths = [(len(plain_words(one.reply)), max(1, len(plain_words(one.task.target)))) for one in items]
    losses = [one.loss for one in items if one.loss is not None]
    return {"length": np.array(lengths, float)} | ({LOSS: np.array(losses, float)} if losses else {})


@dataclass(frozen=True)
class Difference:
    """The paired difference of two models on the tasks of one kind and group, by the main measure of the kind, or by the loss."""

    kind: str
    group: str
    measure: str
    paired: Paired


def differences(before: Evaluation, after: Evaluation) -> list[Difference]:
    """The paired difference for each kind and group. Both evaluations must be of the same tasks.

    For replies of chats the difference of the losses as well, unless the tokenizers differ: then tokens are not the same.
    """
    scores: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for one, other in zip(before.items, after.items, strict=True):
        measure = next(iter(other.scores))
        for values, item in zip(
            scores.setdefault((other.task.kind, other.group, measure), ([], [])), (one, other), strict=True
        ):
            values.append(item.scores[measure])
    return [Difference(*key, paired(*both)) for key, both in scores.items()] + list(_loss_differences(before, after))


def _loss_differences(before: Evaluation, after: Evaluation) -> Iterator[Difference]:
    """In nats per token: of each reply its nats / the mean number of tokens, so that the mean is the difference of the losses."""
    by_kind: dict[str, list[tuple[tuple[float, int], tuple[float, int]]]] = {}
    for one, other in zip(before.items, after.items, strict=True):
        if one.loss is not None and other.loss is not None:
            by_kind.setdefault(one.task.kind, []).append((one.loss, other.loss))
    for kind, pairs in by_kind.items():
        nats, counts = np.array(pairs).transpose(2, 1, 0)  # (before and after, items) each
        if (counts[0] == counts[1]).all():
            yield Difference(kind, "", LOSS, paired(*(nats / counts[0].mean())))

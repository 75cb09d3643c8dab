"""Measure models on the held-out parts of a recipe: greedy replies, checks, shares with intervals, and paired tests.

A part's result is a dict of plain values, which results.json has as it is:

    file, shows, n                 the part, and its number of records
    rows                           a list of {"group", "check", "n", "values": {model: {"value", "low", "high"}}, "difference", "p"}:
                                   shares of replies that pass a check; "group" is "" for all records
    overlap                        a list of {"measure", "n", "values"}: BLEU, ROUGE-L and chrF, from 0 to 1
    confusion                      {model: {right label: {reply: number}}}, of a part with labels
    baselines                      a list of {"name", "n", "value", "low", "high"}, of a part with labels
    openings                       {model: number of different polite openings}, of a part with `polite`
    replies                        a list of {"prompt", "expected", "replies": {model: {"text", "finish", "checks"}}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.chrf import chrf
from mini_chat_gpt.evaluation.confidence import bootstrap, paired, wilson
from mini_chat_gpt.evaluation.held_out_part import CodeChecks, HeldOut, Item, openings, reply_checks
from mini_chat_gpt.evaluation.prompt_suite import Prompts
from mini_chat_gpt.evaluation.text_metrics import rouge_l
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, Reply, System, generate_replies
from mini_chat_gpt.model import GPT
from mini_chat_gpt.recipe.bag_of_words import bag_of_words_labels
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

ALL_CHECKS = "all checks"
INVALID = "(none of the labels)"
PIP_LINE = "pip install 'mini-chat-gpt[recipes]'"
BATCH = 16
Checks = list[dict[str, bool]]
"""The checks of each record's reply, in order."""


@dataclass(frozen=True)
class Part:
    """A held-out part with the records to use."""

    spec: HeldOut
    items: Sequence[Item]


def require_libraries(parts: Sequence[Part]) -> None:
    """Raise UserError, with the line that installs it, if a part needs a library of the extra `recipes` that is missing."""
    needed = {
        "sacrebleu": ("BLEU", any("bleu" in part.spec.overlap for part in parts)),
        "sklearn": ("the bag-of-words classifier", any(part.spec.labels for part in parts)),
    }
    for module, (purpose, is_needed) in needed.items():
        if is_needed:
            try:
                __import__(module)
            except ImportError:
                raise UserError(
                    f"This recipe measures {purpose}, which needs another library: {PIP_LINE} installs it."
                ) from None


def prompts_for(items: Sequence[Item], tokenizer: ChatTokenizer) -> list[str | list[Message]]:
    """The prompts of records. A base model without a chat format continues the texts of the messages."""
    if tokenizer.chat_format is None:
        return [item.text for item in items]
    return [list(item.prompt) for item in items]


def answer(
    model: GPT,
    tokenizer: ChatTokenizer,
    part: Part,
    system: System = USE_FORMAT_DEFAULT,
    progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """Greedy replies to the records of a part."""
    sampling = Sampling(max_new_tokens=part.spec.max_new_tokens, temperature=0.0)
    prompts = prompts_for(part.items, tokenizer)
    return generate_replies(model, tokenizer, prompts, sampling, system, BATCH, progress)


def score_part(
    part: Part,
    replies: Mapping[str, Sequence[Reply]],
    prompts: Prompts,
    code_checks: CodeChecks | None,
    training: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The result of a part, from the replies of each model (the base first). `training` has (prompt, reply) pairs for baselines."""
    spec = part.spec
    checks = {
        name: [
            reply_checks(spec, item, reply.text, prompts.polite_signs, prompts.refusal_signs, code_checks)
            for item, reply in zip(part.items, of_model, strict=True)
        ]
        for name, of_model in replies.items()
    }
    result: dict[str, Any] = {"file": spec.file, "shows": spec.shows, "n": len(part.items)}
    result["rows"] = [row for group, numbers in _groups(part) for row in _rows(group, numbers, checks)]
    result["overlap"] = [_overlap(measure, part, replies) for measure in spec.overlap]
    if spec.labels:
        result["confusion"] = {name: _confusion(part, of_model) for name, of_model in replies.items()}
        result["baselines"] = list(_baselines(part, training))
    if spec.polite:
        texts = {name: [reply.text for reply in of_model] for name, of_model in replies.items()}
        result["openings"] = {name: len(set(openings(of, prompts.polite_signs))) for name, of in texts.items()}
    result["replies"] = [_listed(item, number, replies, checks) for number, item in enumerate(part.items)]
    return result


def _groups(part: Part) -> Iterator[tuple[str, list[int]]]:
    """(name, numbers of its records) of all records together, and of each value of `group_by`."""
    everything = list(range(len(part.items)))
    key = part.spec.group_by
    if key is None:
        yield "", everything
        return
    values = [str(item.record.get(key)) for item in part.items]
    if not _mixed_checks(part):
        yield "", everything
    for value in dict.fromkeys(values):
        yield f"{key}: {value}", [number for number in everything if values[number] == value]


def _mixed_checks(part: Part) -> bool:
    """Whether code may apply other checks to other groups, so that shares of all records would mix them."""
    return part.spec.checklist


def _rows(group: str, numbers: Sequence[int], checks: Mapping[str, Checks]) -> Iterator[dict[str, Any]]:
    """The shares of each check, and of replies that pass all of their checks."""
    first = next(iter(checks.values()))
    names = dict.fromkeys(name for number in numbers for name in first[number])
    by_name: dict[str, list[int]] = {name: [number for number in numbers if name in first[number]] for name in names}
    for name, of_check in by_name.items():
        yield _row(group, name, {model: [met[number][name] for number in of_check] for model, met in checks.items()})
    if len(names) > 1 and any(len(first[number]) > 1 for number in numbers):
        values = {model: [all(met[number].values()) for number in numbers] for model, met in checks.items()}
        yield _row(group, ALL_CHECKS, values)


def _row(group: str, check: str, values: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    numbers = {model: [float(value) for value in of_model] for model, of_model in values.items()}
    row: dict[str, Any] = {"group": group, "check": check, "n": len(next(iter(numbers.values())))}
    row["values"] = {model: _estimate(of_model) for model, of_model in numbers.items()}
    if len(numbers) > 1:  # McNemar's test, as the values are 0 or 1
        before, *_, after = numbers.values()
        difference = paired(before, after)
        row |= {"difference": difference.difference, "p": difference.p}
    return row


def _estimate(values: Sequence[float]) -> dict[str, float]:
    low, high = wilson(values)
    return {"value": sum(values) / len(values), "low": low, "high": high}


def _overlap(measure: str, part: Part, replies: Mapping[str, Sequence[Reply]]) -> dict[str, Any]:
    """BLEU of all replies together, or the mean of a measure of each reply, against the replies of the records."""
    for item in part.items:
        if item.expected is None:
            raise UserError(
                f"{item.place}: it has no reply, which overlap in prompts.yaml needs; add it to the record."
            )
    expected = [item.expected or "" for item in part.items]
    values = {}
    for name, of_model in replies.items():
        texts = [reply.text for reply in of_model]
        if measure == "bleu":
            values[name] = _bleu(texts, expected)
            continue
        function = rouge_l if measure == "rouge" else chrf
        scores = [function(right, text) for right, text in zip(expected, texts, strict=True)]
        low, high = bootstrap(scores)
        values[name] = {"value": sum(scores) / len(scores), "low": low, "high": high}
    title = {"bleu": "BLEU", "rouge": "ROUGE-L", "chrf": "chrF"}[measure]
    return {"measure": title, "n": len(expected), "values": values}


def _bleu(texts: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """sacrebleu's BLEU of a corpus, from 0 to 1, with the interval of its bootstrap."""
    from sacrebleu.metrics import BLEU

    score: Any = BLEU().corpus_score(list(texts), [list(expected)], n_bootstrap=1000)
    return {
        "value": score.score / 100,
        "low": max(0.0, (score._mean - score._ci) / 100),
        "high": (score._mean + score._ci) / 100,
    }


def _confusion(part: Part, replies: Sequence[Reply]) -> dict[str, dict[str, int]]:
    """{right label: {reply: number}}; what is not a label counts as INVALID."""
    labels = part.spec.labels
    table = {label: dict.fromkeys([*labels, INVALID], 0) for label in labels}
    for item, reply in zip(part.items, replies, strict=True):
        text, right = reply.text.strip(), (item.expected or "").strip()
        if right not in table:
            raise UserError(
                f"{item.place}: its reply {right!r} is not one of labels in prompts.yaml; correct one of them."
            )
        table[right][text if text in labels else INVALID] += 1
    return table


def _baselines(part: Part, training: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The shares of right labels of the most frequent label and of a classifier that counts words."""
    if not training:
        return
    right = [(item.expected or "").strip() for item in part.items]
    ((most, _),) = Counter(label for _, label in training).most_common(1)
    yield _baseline(f"always {most}", [most] * len(right), right)
    predicted = bag_of_words_labels(training, [item.text for item in part.items])
    yield _baseline("bag of words", predicted, right)


def _baseline(name: str, predicted: Sequence[str], right: Sequence[str]) -> dict[str, Any]:
    values = [float(one == other) for one, other in zip(predicted, right, strict=True)]
    return {"name": name, "n": len(values), **_estimate(values)}


def _listed(
    item: Item, number: int, replies: Mapping[str, Sequence[Reply]], checks: Mapping[str, Checks]
) -> dict[str, Any]:
    by_model = {
        name: {"text": of[number].text, "finish": of[number].finish_reason, "checks": checks[name][number]}
        for name, of in replies.items()
    }
    return {"prompt": item.text, "expected": item.expected, "replies": by_model}

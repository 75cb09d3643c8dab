"""How good are replies to story tasks? One measure for each kind of task, and beside it what trivial rules reach.

All measures are shares from 0 to 1, means over tasks:

    main_character         accuracy   the reply names the right one (and no second one)
    ending, dialogue       accuracy   the reply begins with the right one of "yes" and "no"
    moral                  rouge_l    overlap with the target; exact: the same words, whatever the case and punctuation
    summary, what_happened, why, quote  rouge_l
    words                  used       share of the required words that the story has, in whichever form; all_used: every one
    all of them            stops      the reply ended by itself

Overlap is the F-measure of ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"), computed by
Google's rouge_score without stemming. A trivial rule's replies go through the same scoring, on the same tasks; the best
rule of each kind is the baseline.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mini_chat_gpt.errors import UserError
from mini_chat_gpt.generation import FinishReason, generate_replies
from mini_chat_gpt.main_character import is_opener
from mini_chat_gpt.model import GPT
from mini_chat_gpt.sampling import Sampling
from mini_chat_gpt.story_facts import sentence_spans
from mini_chat_gpt.story_tasks import Task
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.word_forms import uses, words_of

if TYPE_CHECKING:
    from rich.table import Table

Scores = dict[str, float]
Results = dict[str, dict[str, Any]]
GREEDY = Sampling(temperature=0)


# Scores


def score(task: Task, reply: str) -> Scores:
    """The scores of one reply, the kind's main measure first; {} where the task gives nothing to measure by.

    A kind without a measure of its own is measured by its overlap with the target.
    """
    return SCORERS.get(task.kind, _overlap)(task, reply)


def _overlap(task: Task, reply: str) -> Scores:
    return {"rouge_l": rouge_l(task.target, reply)}


def _moral(task: Task, reply: str) -> Scores:
    return _overlap(task, reply) | {"exact": float(words_of(reply) == words_of(task.target))}


def _yes_no(task: Task, reply: str) -> Scores:
    return {"accuracy": float(yes_or_no(reply) == task.answer)} if task.answer else {}


def _main_character(task: Task, reply: str) -> Scores:
    if not task.answer:
        return {}
    named = named_character(reply)
    return {"accuracy": float(named is not None and _bare(named) == _bare(task.answer))}


def _words(task: Task, reply: str) -> Scores:
    if not task.required:
        return {}
    used = [uses(reply, word) for word in task.required]
    return {"used": fmean(used), "all_used": float(all(used))}


SCORERS: dict[str, Callable[[Task, str], Scores]] = {
    "main_character": _main_character,
    "ending": _yes_no,
    "dialogue": _yes_no,
    "moral": _moral,
    "words": _words,
}


def yes_or_no(reply: str) -> str | None:
    """ "yes" or "no" if the reply begins with the word, else None."""
    match = re.match(r"\W*(yes|no)\b", reply, re.IGNORECASE)
    return match[1].lower() if match else None


_STATED = re.compile(r"\bmain character\b[^.!?\n]*?\b(?:is|was)\b([^.!?;,\n]*)", re.IGNORECASE)
_INTRODUCED = re.compile(r"\b(?:named|called) (.+)")
_CAPITALISED = re.compile(r"\b[A-Z][\w-]*(?: [A-Z][\w-]*)*")
_TITLE_DOT = re.compile(r"\b(Mrs?|Ms|Dr|St)\.")


def named_character(reply: str) -> str | None:
    """Whom a reply names as the main character.

    Where it says so ("The main character is Tom.", "... is a boy named Tom"), all that stands there: "Tom and Sue" are
    two. Otherwise, as from a model that only goes on with the text, the first name it mentions. None if there is none.
    """
    text = _TITLE_DOT.sub(r"\1", reply)
    if match := _STATED.search(text):
        introduced = _INTRODUCED.search(match[1])
        return (introduced[1] if introduced else match[1]).strip() or None
    for run in _CAPITALISED.findall(text):
        words = run.split()
        while words and is_opener(words[0]):
            words = words[1:]
        if words:
            return " ".join(words)
    return None


def _bare(name: str) -> list[str]:
    """A name for comparison: "the Little Mermaid's" and "Little Mermaid" are the same."""
    words = words_of(name)
    return words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words


def rouge_l(target: str, reply: str) -> float:
    """F-measure of the longest common subsequence of words."""
    return float(_rouge_scorer().score(target, reply)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


# Trivial replies


@dataclass(frozen=True)
class Rule:
    """A way to reply without having understood anything; it may look at the targets of all tasks of its kind."""

    name: str
    replies: Callable[[Sequence[Task]], list[str]]


def _always(reply: str) -> Rule:
    return Rule(f"always “{reply}”", lambda tasks: [reply] * len(tasks))


def _sentence(which: int, name: str) -> Rule:
    def replies(tasks: Sequence[Task]) -> list[str]:
        return [([*_sentences(task)] or [""])[which] for task in tasks]

    return Rule(f"{name} sentence of the story", replies)


def _with_because(tasks: Sequence[Task]) -> list[str]:
    return [next((sentence for sentence in _sentences(task) if "because" in sentence), "") for task in tasks]


def _most_common(tasks: Sequence[Task]) -> list[str]:
    target = Counter(task.target for task in tasks).most_common(1)[0][0]
    return [target] * len(tasks)


def _somebody_elses(tasks: Sequence[Task]) -> list[str]:
    return [task.target for task in [*tasks[1:], *tasks[:1]]]


MOST_COMMON = Rule("the most common answer", _most_common)
FIRST_SENTENCE = _sentence(0, "the first")
RULES: dict[str, tuple[Rule, ...]] = {
    # Not "the first name in the story": that is nearly the labels' own definition (see main_character.py), and so always
    # right. What the kind tests is whether a model finds and copies it.
    "main_character": (MOST_COMMON,),
    "ending": (_always("Yes"), _always("No")),
    "dialogue": (_always("Yes"), _always("No")),
    "moral": (MOST_COMMON, _sentence(-1, "the last")),
    "summary": (FIRST_SENTENCE,),
    "what_happened": (FIRST_SENTENCE,),
    "why": (MOST_COMMON, Rule("the first sentence with “because”", _with_because)),
    "quote": (FIRST_SENTENCE, _sentence(-1, "the last")),
    "words": (Rule("the story of another task", _somebody_elses),),
}


def baseline(tasks: Sequence[Task]) -> dict[str, Any]:
    """{"rule": name, measure: value, ...} of the rule that is best by the main measure; tasks are of one kind."""
    reached = []
    for rule in RULES.get(tasks[0].kind, (MOST_COMMON,)):
        scores = [score(task, reply) for task, reply in zip(tasks, rule.replies(tasks), strict=True)]
        reached.append({"rule": rule.name} | _means(scores))
    main_measure = next(iter(score(tasks[0], "")))
    return max(reached, key=lambda values: values[main_measure])


def _story(task: Task) -> str:
    return task.prompt[slice(*task.story_span)] if task.story_span else ""


def _sentences(task: Task) -> list[str]:
    story = _story(task)
    return [story[start:end] for start, end in sentence_spans(story)]


def _means(scores: Sequence[Scores]) -> Scores:
    return {name: fmean(values[name] for values in scores) for name in scores[0]}


# A model's replies


@dataclass(frozen=True)
class Item:
    """A task and what came of it."""

    task: Task
    reply: str
    finish_reason: FinishReason
    scores: Scores


@dataclass(frozen=True)
class Evaluation:
    """`results[kind]` has each measure of the kind, "n", "stops" and "baseline" (see there); `items` shows every reply."""

    results: Results
    items: list[Item]


def evaluate(
    model: GPT,
    tokenizer: ChatTokenizer,
    tasks: Sequence[Task],
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Let the model reply to held-out tasks and score the replies, kind by kind.

    Left out are tasks that give nothing to measure by (a story to write with no required words). A reply may be
    twice as long as the longest target of its kind, and no longer than `sampling` allows; one that is cut off there has
    not stopped. `progress` is called with the number of tasks done. Raises UserError where no task is left, and for a prompt
    longer than the context.
    """
    items: list[Item] = []
    results: Results = {}
    for kind in dict.fromkeys(task.kind for task in tasks):
        ours = [task for task in tasks if task.kind == kind and score(task, "")]
        if ours:
            found = _evaluate_kind(model, tokenizer, ours, sampling, batch_size, _counting_from(len(items), progress))
            items += found
            stops = fmean(item.finish_reason == "stop" for item in found)
            results[kind] = _means([item.scores for item in found])
            results[kind] |= {"n": len(found), "stops": stops, "baseline": baseline(ours)}
    if not items:
        raise UserError("There is not one task to be scored; evaluate on data that support one of the task kinds.")
    return Evaluation(results, items)


def _evaluate_kind(
    model: GPT,
    tokenizer: ChatTokenizer,
    tasks: Sequence[Task],
    sampling: Sampling,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> list[Item]:
    longest = max(len(tokenizer.encode(task.target)) for task in tasks)
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, 2 * longest + 1))
    prompts = [task.prompt for task in tasks]
    replies = generate_replies(model, tokenizer, prompts, sampling, batch_size=batch_size, progress=progress)
    return [
        Item(task, reply.text, reply.finish_reason, score(task, reply.text))
        for task, reply in zip(tasks, replies, strict=True)
    ]


def _counting_from(start: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(start + done)


def table(*results: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ("reply",)) -> Table:
    """The results of one model, or of several side by side under their names; all numbers are percentages."""
    from rich.table import Table

    shown = Table("kind", "n", "measure", title="in %", title_justify="left")
    for name in names:
        shown.add_column(name, justify="right")
    shown.add_column("trivial", justify="right")
    shown.add_column("trivial rule")
    for kind in dict.fromkeys(kind for result in results for kind in result):
        values = next(result[kind] for result in results if kind in result)
        measures = [measure for measure in values if measure not in ("n", "baseline")]
        for row, measure in enumerate(measures):
            head = (kind, str(values["n"])) if row == 0 else ("", "")
            of_models = [_percent(result.get(kind, {}).get(measure)) for result in results]
            trivial = values["baseline"].get(measure)
            rule = values["baseline"]["rule"] if row == 0 else ""
            shown.add_row(*head, measure, *of_models, _percent(trivial), rule, end_section=measure == measures[-1])
    return shown


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"

"""How good is a reply to a story task? One measure for each kind of task, and what trivial rules reach by it.

A score is a number from 0 to 1; the first one of a kind is its main measure.

    main_character         accuracy   the reply names the right one (and no second one)
    ending, dialogue       accuracy   the reply begins with the right one of "yes" and "no"
    moral, quote           exact      the words of the target, whatever the case and punctuation; rouge_l; verbatim: to the letter
    copyedit               verbatim
    why                    rouge_l    overlap with the target; exact
    summary, what_happened rouge_l
    words                  used       share of the required words that the story has, in whichever form; all_used: every one

Overlap is the F-measure of ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"), computed by
Google's rouge_score without stemming. A trivial rule's replies go through the same scoring, on the same tasks; by each
measure the best of a kind's rules is its baseline.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from mini_chat_gpt.main_character import is_opener
from mini_chat_gpt.story_facts import sentence_spans
from mini_chat_gpt.story_tasks import Task
from mini_chat_gpt.word_forms import uses, words_of

Scores = dict[str, float]


# Scores


def score(task: Task, reply: str) -> Scores:
    """The scores of one reply, the kind's main measure first; {} where the task gives nothing to measure by.

    A kind without a measure of its own is measured by its overlap with the target.
    """
    return SCORERS.get(task.kind, _overlap)(task, reply)


def _overlap(task: Task, reply: str) -> Scores:
    return {"rouge_l": rouge_l(task.target, reply)}


def _the_same(task: Task, reply: str) -> Scores:
    exact, verbatim = normalised_match(task.target, reply), exact_match(task.target, reply)
    return {"exact": float(exact), **_overlap(task, reply), "verbatim": float(verbatim)}


def _to_the_letter(task: Task, reply: str) -> Scores:
    return {"verbatim": float(exact_match(task.target, reply))}


def _why(task: Task, reply: str) -> Scores:
    return _overlap(task, reply) | {"exact": float(normalised_match(task.target, reply))}


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
    "moral": _the_same,
    "quote": _the_same,
    "copyedit": _to_the_letter,
    "why": _why,
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


def exact_match(target: str, reply: str) -> bool:
    """Whether the reply is the target to the letter, but for white space around it."""
    return reply.strip() == target.strip()


def normalised_match(target: str, reply: str) -> bool:
    """Whether the reply has the words of the target and no others; case, punctuation and white space don't matter."""
    return _plain(reply) == _plain(target)


def _plain(text: str) -> list[str]:
    return re.findall(r"\w+(?:'\w+)*", text.casefold().replace("’", "'"))


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
    "copyedit": (Rule("the words as they are", lambda tasks: [_story(task) for task in tasks]),),
    "words": (Rule("the story of another task", _somebody_elses),),
}


def baseline(tasks: Sequence[Task]) -> dict[str, Any]:
    """{measure: value, ..., "rules": {measure: name, ...}}: what the best rule reaches by each measure; tasks are of one kind."""
    reached = {}
    for rule in RULES.get(tasks[0].kind, (MOST_COMMON,)):
        replies = rule.replies(tasks)
        reached[rule.name] = means([score(task, reply) for task, reply in zip(tasks, replies, strict=True)])
    best = {measure: max(reached, key=lambda name: reached[name][measure]) for measure in score(tasks[0], "")}
    return {measure: reached[name][measure] for measure, name in best.items()} | {"rules": best}


def _story(task: Task) -> str:
    return task.prompt[slice(*task.story_span)] if task.story_span else ""


def _sentences(task: Task) -> list[str]:
    story = _story(task)
    return [story[start:end] for start, end in sentence_spans(story)]


def means(scores: Sequence[Scores]) -> Scores:
    """The mean of each measure; all scores are of one kind."""
    return {name: fmean(values[name] for values in scores) for name in scores[0]}

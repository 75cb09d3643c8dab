"""What rules that understand nothing reach by each measure: always "Yes", the story's first sentence, somebody else's answer.

A rule's replies go through the same scoring as a model's, on the same tasks. By each measure the best of a kind's rules is
its baseline; by a measure that has no better and worse (`story_metrics.NEUTRAL`) it is the rule that is best by the main one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.evaluation.refusals import DECLINED, REFUSALS
from mini_chat_gpt.evaluation.task_metrics import means, score
from mini_chat_gpt.evaluation.text_metrics import NEUTRAL, Scores
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.tasks import Task


@dataclass(frozen=True)
class Rule:
    """A way to reply without having understood anything; it may look at the targets of all tasks of its kind."""

    name: str
    replies: Callable[[Sequence[Task]], list[str]]
    is_answer: bool = True
    """Whether it could pass for a reply at all; if not it shows what a measure doesn't see, and is nobody's baseline."""


def trivial_scores(tasks: Sequence[Task]) -> dict[str, Scores]:
    """Rule -> measure -> its mean over the tasks, which are of one kind."""
    return {
        rule.name: means([score(task, reply) for task, reply in zip(tasks, rule.replies(tasks), strict=True)])
        for rule in RULES.get(tasks[0].kind, (MOST_COMMON,))
    }


def best_of(reached: Mapping[str, Scores]) -> dict[str, Any]:
    """{measure: value, ..., "rules": {measure: name}}: the best of what `trivial_scores` gives, by each measure."""
    reached = {name: scores for name, scores in reached.items() if name not in NO_ANSWERS}
    main, *_ = measures = list(next(iter(reached.values())))
    best = {
        measure: max(reached, key=lambda name: reached[name][main if measure in NEUTRAL else measure])
        for measure in measures
    }
    return {measure: reached[name][measure] for measure, name in best.items()} | {"rules": best}


def baseline(tasks: Sequence[Task]) -> dict[str, Any]:
    """What the best rule reaches by each measure, and which it is; as `best_of`. The tasks are of one kind."""
    return best_of(trivial_scores(tasks))


def _always(reply: str) -> Rule:
    return Rule(f"always “{reply}”", lambda tasks: [reply] * len(tasks))


def _sentence(which: int, name: str) -> Rule:
    def replies(tasks: Sequence[Task]) -> list[str]:
        return [([*_sentences(task)] or [""])[which] for task in tasks]

    return Rule(f"{name} sentence of the story", replies)


def _lead(n: int, name: str) -> Rule:
    """The first sentences, which are hard to beat as a summary of news (lead-3; See et al. 2017, "Get to the point")."""
    return Rule(f"the first {name} sentences", lambda tasks: [" ".join(_sentences(task)[:n]) for task in tasks])


def _with_because(tasks: Sequence[Task]) -> list[str]:
    return [next((sentence for sentence in _sentences(task) if "because" in sentence), "") for task in tasks]


def _most_common(tasks: Sequence[Task]) -> list[str]:
    target = Counter(task.target for task in tasks).most_common(1)[0][0]
    return [target] * len(tasks)


def somebody_elses(tasks: Sequence[Task]) -> list[str]:
    """To each task the answer of the next one; nothing where there is no other."""
    return [task.target for task in [*tasks[1:], *tasks[:1]]] if len(tasks) > 1 else [""] * len(tasks)


def _story(task: Task) -> str:
    return task.prompt[slice(*task.story_span)] if task.story_span else ""


def _sentences(task: Task) -> list[str]:
    story = _story(task)
    return [story[start:end] for start, end in sentence_spans(story)]


MOST_COMMON = Rule("the most common answer", _most_common)
FIRST_SENTENCE = _sentence(0, "the first")
OF_A_SUMMARY = (
    FIRST_SENTENCE,
    _lead(3, "three"),
    Rule("the whole story", lambda tasks: [_story(task) for task in tasks]),
    Rule("the summary of another task", somebody_elses),
)
RULES: dict[str, tuple[Rule, ...]] = {
    # Not "the first name in the story": that is nearly the labels' own definition (see main_character.py), and so always
    # right. What the kind tests is whether a model finds and copies it.
    "main_character": (MOST_COMMON,),
    "ending": (_always("Yes"), _always("No")),
    "dialogue": (_always("Yes"), _always("No")),
    "moral": (MOST_COMMON, _sentence(-1, "the last")),
    "summary": OF_A_SUMMARY,
    "what_happened": OF_A_SUMMARY,
    "why": (MOST_COMMON, Rule("the first sentence with “because”", _with_because)),
    "quote": (FIRST_SENTENCE, _sentence(-1, "the last")),
    "copyedit": (Rule("the words as they are", lambda tasks: [_story(task) for task in tasks]),),
    REFUSALS: (_always(DECLINED), Rule("the request said back", lambda tasks: [task.prompt for task in tasks])),
    "words": (
        Rule("the story of another task", somebody_elses),
        Rule("the prompt said back, no story", lambda tasks: [task.prompt for task in tasks], is_answer=False),
    ),
}
NO_ANSWERS = frozenset(rule.name for rules in RULES.values() for rule in rules if not rule.is_answer)

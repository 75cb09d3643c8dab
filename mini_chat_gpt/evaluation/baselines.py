"""Baselines: scores of simple rules that do not understand the task, such as always "Yes" or the first sentence of the story.

The replies of a rule are scored like those of a model, on the same tasks. For each measure, the baseline is the best rule of the
kind. For a measure without a better direction (`text_metrics.NEUTRAL`), it is the best rule by the main measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.evaluation.chat_tasks import ChatTask
from mini_chat_gpt.evaluation.refusals import DECLINED, REFUSALS
from mini_chat_gpt.evaluation.task_metrics import means, score
from mini_chat_gpt.evaluation.text_metrics import NEUTRAL, Scores
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.tasks import Task


@dataclass(frozen=True)
class Rule:
    """A way to reply without understanding the task. It may use the targets of all tasks of its kind."""

    name: str
    replies: Callable[[Sequence[Task]], list[str]]
    is_answer: bool = True
    """Whether its replies are answers at all. If not, it is shown as a weakness of a measure, but not used as a baseline."""


def baseline_scores(tasks: Sequence[Task]) -> dict[str, Scores]:
    """Rule -> measure -> mean over the tasks. All tasks must be of one kind."""
    rules = OF_CHATS if isinstance(tasks[0], ChatTask) else RULES.get(tasks[0].kind, (MOST_COMMON,))
    return {
        rule.name: means([score(task, reply) for task, reply in zip(tasks, rule.replies(tasks), strict=True)])
        for rule in rules
    }


def best_baselines(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """{measure: value, ..., "rules": {measure: name}}: the best of `baseline_scores` by each measure."""
    scores = {name: of_rule for name, of_rule in scores.items() if name not in NO_ANSWERS}
    main, *_ = measures = list(next(iter(scores.values())))
    best = {
        measure: max(scores, key=lambda name: scores[name][main if measure in NEUTRAL else measure])
        for measure in measures
    }
    return {measure: scores[name][measure] for measure, name in best.items()} | {"rules": best}


def baseline(tasks: Sequence[Task]) -> dict[str, Any]:
    """`best_baselines` of tasks of one kind."""
    return best_baselines(baseline_scores(tasks))


def _always(reply: str) -> Rule:
    return Rule(f"always “{reply}”", lambda tasks: [reply] * len(tasks))


def _sentence(which: int, name: str) -> Rule:
    def replies(tasks: Sequence[Task]) -> list[str]:
        return [([*_sentences(task)] or [""])[which] for task in tasks]

    return Rule(f"{name} sentence of the story", replies)


def _lead(n: int, name: str) -> Rule:
    """The first n sentences, a strong baseline for summaries of news (lead-3; See et al. 2017, "Get to the point")."""
    return Rule(f"the first {name} sentences", lambda tasks: [" ".join(_sentences(task)[:n]) for task in tasks])


def _with_because(tasks: Sequence[Task]) -> list[str]:
    return [next((sentence for sentence in _sentences(task) if "because" in sentence), "") for task in tasks]


def _most_common(tasks: Sequence[Task]) -> list[str]:
    target = Counter(task.target for task in tasks).most_common(1)[0][0]
    return [target] * len(tasks)


def shifted_targets(tasks: Sequence[Task]) -> list[str]:
    """For each task the target of the next task; "" if there is only one task."""
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
    Rule("the summary of another task", shifted_targets),
)
OF_CHATS = (
    MOST_COMMON,
    Rule("the reply of another chat", shifted_targets),
    Rule("a copy of the question", lambda tasks: [task.prompt for task in tasks], is_answer=False),
)
RULES: dict[str, tuple[Rule, ...]] = {
    # "The first name in the story" is not a baseline: the labels are defined nearly like that (see main_character.py), so it is
    # always right. The kind tests whether a model finds the name and copies it.
    "main_character": (MOST_COMMON,),
    "ending": (_always("Yes"), _always("No")),
    "dialogue": (_always("Yes"), _always("No")),
    "moral": (MOST_COMMON, _sentence(-1, "the last")),
    "summary": OF_A_SUMMARY,
    "what_happened": OF_A_SUMMARY,
    "why": (MOST_COMMON, Rule("the first sentence with “because”", _with_because)),
    "quote": (FIRST_SENTENCE, _sentence(-1, "the last")),
    "copyedit": (Rule("an unchanged copy of the words", lambda tasks: [_story(task) for task in tasks]),),
    REFUSALS: (_always(DECLINED), Rule("a copy of the request", lambda tasks: [task.prompt for task in tasks])),
    "words": (
        Rule("the story of another task", shifted_targets),
        Rule("a copy of the prompt, not a story", lambda tasks: [task.prompt for task in tasks], is_answer=False),
    ),
}
NO_ANSWERS = frozenset(rule.name for rules in (*RULES.values(), OF_CHATS) for rule in rules if not rule.is_answer)

"""Refusals: how they are detected, and the requests that measure them."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from mini_chat_gpt.evaluation.baselines import baseline_scores, best_baselines
from mini_chat_gpt.evaluation.refusals import (
    ANSWER,
    DECLINE,
    DECLINED,
    declines,
    refusal_tasks,
    reply_signs,
    sign_pattern,
)
from mini_chat_gpt.evaluation.task_metrics import score

TASKS = refusal_tasks()
RECIPE = Path(__file__).parent.parent.parent / "recipes" / "polite_helper"


@pytest.mark.parametrize(
    ("reply", "declined"),
    [
        (DECLINED, True),
        ("Sorry, I can’t help with that", True),
        ("Tom asked. I'm UNABLE TO ASSIST you.", True),
        ("I can help with that!", False),
        ("", False),
        ("I can't helpfully say", False),
        ("I'm sorry, but I cannot do this.", True),
        ("I'm not able to help you there.", True),
        ('"I can\'t do that," said Tom, and they played all day.', False),
        ("“I cannot help,” said Sue.", False),
    ],
)
def test_a_refusal_contains_one_of_the_signs_as_whole_words(reply, declined):
    assert declines(reply) == declined


def test_signs_at_the_beginning_are_whole_words_too():
    assert not sign_pattern(["hi"], start=True).search("His dog")
    assert sign_pattern(["hi"], start=True).search('  "Hi, Tom')
    assert not sign_pattern(["hi"], start=True).search("Tom said hi")


def test_requests_come_in_pairs_that_share_words():
    assert [task.answer for task in TASKS] == [DECLINE, ANSWER] * (len(TASKS) // 2)
    assert len(TASKS) >= 60
    assert len({task.prompt for task in TASKS}) == len(TASKS)
    for harmful, harmless in list(pairwise(TASKS))[::2]:
        first, second = (set(re.findall(r"\w+", task.prompt.lower())) for task in (harmful, harmless))
        assert len(first & second) >= 0.25 * len(first), (harmful.prompt, harmless.prompt)


def test_no_recipe_trains_on_or_asks_one_of_the_requests():
    texts = [json.dumps(json.loads(line)) for line in (RECIPE / "train_300.jsonl").read_text().splitlines()]
    texts.append((RECIPE / "prompts.yaml").read_text())
    assert not [task.prompt for task in TASKS for text in texts if task.prompt in text]


def test_expected_replies_are_right_and_those_of_the_other_half_are_wrong():
    for number, task in enumerate(TASKS):
        assert set(score(task, task.target).values()) == {1.0}
        assert set(score(task, TASKS[number ^ 1].target).values()) == {0.0}
    assert score(TASKS[0], "")["refused"] == 0
    assert score(TASKS[1], " ") == {"accuracy": 0, "answered": 0}


def test_always_and_never_declining_are_right_half_of_the_time():
    scores_by_rule = baseline_scores(TASKS)
    assert [scores["accuracy"] for scores in scores_by_rule.values()] == [0.5, 0.5]
    assert [(scores["refused"], scores["answered"]) for scores in scores_by_rule.values()] == [(1, 0), (0, 1)]
    assert best_baselines(scores_by_rule)["accuracy"] == 0.5


def test_the_signs_are_those_that_recipes_use():
    assert set(reply_signs()) == {"polite_signs", "refusal_signs"}

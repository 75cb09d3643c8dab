"""Reasons that a story states, as question and answer."""

import pytest

from mini_chat_gpt.tinystories.reasons import past_to_base, stated_reasons
from mini_chat_gpt.tinystories.records import stories


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Tom was sad because he lost his ball.", "Why was Tom sad?", "Because he lost his ball."),
        (
            "But the little cat ran home, because it was cold!",
            "Why did the little cat run home?",
            "Because it was cold.",
        ),
        (
            "Tom and Sue were very happy because of the cake.",
            "Why were Tom and Sue very happy?",
            "Because of the cake.",
        ),
        ("Lily did not like it because it was sour.", "Why did Lily not like it?", "Because it was sour."),
        ("Tim couldn't sleep because it was loud.", "Why couldn't Tim sleep?", "Because it was loud."),
        ("Tim's mom had to go because it was late.", "Why did Tim's mom have to go?", "Because it was late."),
        ("Ann climbed the tree so that she could see.", "Why did Ann climb the tree?", "So that she could see."),
        ("One day, Tim felt jealous because Sue won.", "Why did Tim feel jealous?", "Because Sue won."),
    ],
)
def test_a_reason_becomes_question_and_answer(sentence, question, answer):
    (reason,) = stated_reasons("Hello there. " + sentence)
    assert (reason.question, reason.answer) == (question, answer)


@pytest.mark.parametrize(
    "sentence",
    [
        "He was sad because he lost his ball.",
        "Then they ran because it was cold.",
        '"Tom was sad because he lost it," said Sue.',
        '"Look. Tom was sad because he lost it. Bye."',
        "Tom went home and cried because he was sad.",
        "Tom thought Sue was sad because it rained.",
        "Tom was sad because he fell because it was icy.",
        "Everyone laughed because it was fun.",
        "Tom said no because he was full.",
        "Tom was sad only because he lost.",
        "It was cold, so Tom ran because he froze.",
        "Because it was cold, Tom ran.",
    ],
)
def test_ambiguous_sentences_are_skipped(sentence):
    assert stated_reasons(sentence) == []


def test_the_span_of_the_sentence_is_returned():
    story = "Hi. Tom was sad because he lost. The end."
    assert story[slice(*stated_reasons(story)[0].span)] == "Tom was sad because he lost."


def test_base_forms_of_verbs_are_known():
    table = past_to_base()
    assert (table["went"], table["cried"], table["baked"], table["played"]) == ("go", "cry", "bake", "play")


def test_real_stories_give_hundreds_of_reasons(real_data):
    found = [
        reason for story in stories(real_data / "tinystories" / "stories-train.txt") for reason in stated_reasons(story)
    ]
    assert len(found) > 500
    assert all(reason.question.startswith("Why ") and reason.question.endswith("?") for reason in found)
    assert all(reason.answer.startswith(("Because ", "So that ")) and reason.answer.endswith(".") for reason in found)

"""The diff of a reply loses nothing of it, and marks the right words as right."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import about, writing

from mini_chat_gpt.evaluation.refusals import refusal_tasks
from mini_chat_gpt.reports.reply_diff import diff_reply


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_parts_joined_are_the_reply(target, reply):
    for task in (about("moral", target), writing("cat", "ran"), refusal_tasks()[0]):
        parts = diff_reply(task, reply).parts
        assert "".join(text for text, _ in parts) == reply
        assert all(text for text, _ in parts)


@given(st.lists(st.sampled_from(["a", "B", "c."]), max_size=8), st.lists(st.sampled_from(["a", "b", "c"]), max_size=8))
def test_right_and_missing_words_together_are_the_expected_words(expected, replied):
    diff = diff_reply(about("moral", " ".join(expected)), " ".join(replied))
    right = [word for text, mark in diff.parts if mark == "right" for word in text.split()]
    assert sorted([*right, *diff.missing]) == sorted(word.lower().strip(".") for word in expected)


def test_words_are_compared_without_case_and_punctuation():
    diff = diff_reply(about("moral", "Be kind to all."), "be KIND, or not ")
    assert diff.parts == [("be KIND,", "right"), (" or not", "wrong"), (" ", "plain")]
    assert diff.missing == ["to", "all"]


def test_required_words_are_found_in_any_form():
    diff = diff_reply(writing("cat", "run", "oak"), "Two cats ran. A cat")
    assert diff.parts == [
        ("Two ", "plain"), ("cats", "required"), (" ", "plain"), ("ran", "required"), (". A cat", "plain"),
    ]  # fmt: skip
    assert (diff.missing, diff.used) == (["oak"], [("cat", "cats"), ("run", "ran")])


def test_refusals_are_not_compared_word_by_word():
    diff = diff_reply(refusal_tasks()[0], "I won't help with that.")
    assert (diff.parts, diff.missing) == ([("I won't help with that.", "plain")], [])

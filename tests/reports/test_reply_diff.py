"""What is marked in a reply: nothing of it is lost, and the right words are right."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import about, writing

from mini_chat_gpt.evaluation.refusals import refusal_tasks
from mini_chat_gpt.reports.reply_diff import marked


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_letter_of_a_reply_is_lost(target, reply):
    for task in (about("moral", target), writing("cat", "ran"), refusal_tasks()[0]):
        parts = marked(task, reply).parts
        assert "".join(text for text, _ in parts) == reply
        assert all(text for text, _ in parts)


@given(st.lists(st.sampled_from(["a", "B", "c."]), max_size=8), st.lists(st.sampled_from(["a", "b", "c"]), max_size=8))
def test_what_is_right_and_what_is_missing_make_up_the_expected_words(wanted, given_words):
    found = marked(about("moral", " ".join(wanted)), " ".join(given_words))
    right = [word for text, mark in found.parts if mark == "right" for word in text.split()]
    assert sorted([*right, *found.missing]) == sorted(word.lower().strip(".") for word in wanted)


def test_words_are_compared_without_case_and_punctuation():
    found = marked(about("moral", "Be kind to all."), "be KIND, or not ")
    assert found.parts == [("be KIND,", "right"), (" or not", "wrong"), (" ", "plain")]
    assert found.missing == ["to", "all"]


def test_required_words_are_found_in_any_form():
    found = marked(writing("cat", "run", "oak"), "Two cats ran. A cat")
    assert found.parts == [
        ("Two ", "plain"), ("cats", "required"), (" ", "plain"), ("ran", "required"), (". A cat", "plain"),
    ]  # fmt: skip
    assert (found.missing, found.used) == (["oak"], [("cat", "cats"), ("run", "ran")])


def test_refusals_are_not_compared_word_by_word():
    found = marked(refusal_tasks()[0], "I won't help with that.")
    assert (found.parts, found.missing) == ([("I won't help with that.", "plain")], [])

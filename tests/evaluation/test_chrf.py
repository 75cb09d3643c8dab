"""chrF equals that of sacrebleu, and ROUGE counts words of every alphabet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.evaluation.chrf import chrf
from mini_chat_gpt.evaluation.text_metrics import rouge, rouge_l

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ab c\n", max_size=40),
    st.lists(st.sampled_from(["the", "cat", "sat", "naïve", "東京", "on", "."]), max_size=12).map(" ".join),
)


@given(target=TEXTS, reply=TEXTS)
def test_a_reply_scores_as_in_sacrebleu(target, reply):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed; `pip install -e .[dev]` has it")
    theirs = sacrebleu.CHRF().sentence_score(reply, [target]).score
    assert 100 * chrf(target, reply) == pytest.approx(theirs, abs=1e-6)


def test_the_score_by_hand():
    # Reply "ab": 1-grams a, b; 2-gram ab. Target "abc": a, b, c; ab, bc. P = (2/2 + 1/1) / 2, R = (2/3 + 1/2) / 2.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf("abc", "a b") == pytest.approx(5 * precision * recall / (4 * precision + recall))


@pytest.mark.parametrize(
    ("target", "reply", "score"), [("", "", 0), ("a", "", 0), ("", "a", 0), ("東京 です", "東京です", 1)]
)
def test_scores_of_special_texts(target, reply, score):
    assert chrf(target, reply) == pytest.approx(score)


def test_a_missing_part_costs_more_than_a_superfluous_one():
    whole, half = "the cat sat on the mat", "the cat sat"
    assert chrf(whole, half) < chrf(half, whole)


@given(target=st.text(alphabet="ab C1_'.-\n", max_size=30), reply=st.text(alphabet="ab C1_'.-\n", max_size=30))
def test_rouge_of_ascii_text_is_that_of_the_package(target, reply):
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge2", "rougeL"]).score(target, reply)
    ours = rouge(target, reply)
    assert (ours["rouge_2"], ours["rouge_l"]) == (theirs["rouge2"].fmeasure, theirs["rougeL"].fmeasure)


def test_rouge_counts_words_of_other_alphabets():
    assert rouge_l("Привет, мир", "мир") == pytest.approx(2 / 3)
    assert rouge_l("café au lait", "caf au lait") < 1

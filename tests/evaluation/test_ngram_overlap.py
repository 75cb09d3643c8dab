"""N-gram overlap and longest shared runs equal a naive definition; passages are quoted as written."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation import ngram_overlap as module
from mini_chat_gpt.evaluation.ngram_overlap import _WORD, cut_to_same_length, ngram_overlap, words_of

# Few different words, so that long runs are shared; "d" occurs in training texts only.
TEXT = st.lists(st.sampled_from("aabbc"), max_size=14).map(" ".join)
TRAINING = st.lists(st.sampled_from("aabbcd"), max_size=20).map(" ".join)


def naive(text: str, training: list[str], n: int) -> tuple[int, float | None]:
    """(words of the longest shared run, share of the n-grams that occur in a training text)"""
    padded = [f" {' '.join(words_of(one))} " for one in training]
    words = words_of(text)

    def occurs(start: int, stop: int) -> bool:
        return any(f" {' '.join(words[start:stop])} " in one for one in padded)

    runs = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1) if occurs(i, j)]
    ngrams = [(i, i + n) in runs for i in range(len(words) - n + 1)]
    return max((j - i for i, j in runs), default=0), sum(ngrams) / len(ngrams) if ngrams else None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["a a a a"], ["a a a a", "a a a a"], ["a a a"], 2, 1)
@example([""], [], [], 1, 1)
@example(["a b"], ["b a"], ["a", "b", "", "b"], 1, 2)
@given(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(TEXT, max_size=3),
    st.lists(TRAINING, max_size=6),
    st.integers(1, 9),
    st.integers(1, 30),
)
def test_it_equals_searching_for_every_run_in_every_text(monkeypatch, texts, references, training, n, block):
    monkeypatch.setattr(module, "BLOCK", block)
    groups = {"texts": texts, "references": references, "reversed": texts[::-1]}
    groups = {name: group for name, group in groups.items() if group}
    overlaps, n_texts = ngram_overlap(groups, iter(training), n)
    assert list(overlaps) == list(groups)
    assert n_texts == len(training)
    for group, overlap in zip(groups.values(), overlaps.values(), strict=True):
        assert list(zip(overlap.longest, overlap.shares, strict=True)) == [naive(text, training, n) for text in group]
        if overlap.passage is None:
            assert max(overlap.longest) == 0
            continue
        assert overlap.passage.n_words == len(words_of(overlap.passage.text)) == max(overlap.longest)
        assert any(overlap.passage.text in text for text in group)
        assert naive(overlap.passage.text, [overlap.passage.source], 1)[0] == overlap.passage.n_words


@settings(max_examples=300)
@example("Isn't it? ’Tis—the dogs' “rock'n''roll”_x, İstanbul’s STRASSE ß.")
@given(st.text(st.one_of(st.sampled_from("aZ9 '’_-.\n\x1cßİŉé٣“"), st.characters())))
def test_the_fast_path_for_ascii_finds_the_same_words(text):
    expected = [match[0].casefold().replace("'", "").replace("’", "") for match in _WORD.finditer(text)]
    assert words_of(text) == expected
    ascii_only = text.encode("ascii", "replace").decode()
    assert words_of(ascii_only) == words_of(ascii_only + "“")


def test_case_and_punctuation_are_ignored():
    assert words_of("“Don’t!” said Tom's dog-sitter, 3 times.") == words_of("don't SAID toms dog sitter 3 times")


STORY = "Once upon a time, there was a cat. She couldn't find her red ball, and so she cried."


def test_the_longest_passage_is_quoted_as_written_with_the_beginning_of_its_source():
    training = ["Another story.", "Look! She COULDN’T find her red ball and ran. " + "x" * 300, STORY[:30]]
    generated = ["Nothing.", "Tom: she couldn't find her red ball — and sat."]
    overlaps, _ = ngram_overlap({"generated": generated, "reference": [STORY]}, training)
    passage = overlaps["generated"].passage
    assert passage is not None
    assert passage.n_words == 7
    assert passage.text == "she couldn't find her red ball — and"
    assert passage.source == training[1][: module.SOURCE_LENGTH]
    assert overlaps["reference"].longest == (7,)


def test_a_copied_story_is_found_as_a_whole_and_its_share_is_1():
    overlap = ngram_overlap({"": [STORY, "A cat."]}, [f"Before. {STORY} After."], n=4)[0][""]
    assert overlap.longest == (18, 2)
    assert overlap.shares == (1.0, None)


def test_no_run_crosses_from_one_training_text_into_the_next():
    overlap = ngram_overlap({"": ["a b c d"]}, ["a b", "c d"])[0][""]
    assert overlap.longest == (2,)
    assert overlap.shares == (None,)


def test_each_of_many_equal_texts_is_found():
    overlaps, _ = ngram_overlap({"one": [STORY] * 50, "other": [STORY] * 50}, [STORY[10:]], n=2)
    assert set(overlaps["one"].longest) == {len(words_of(STORY[10:]))}
    assert overlaps["one"] == overlaps["other"]


def test_progress_reports_the_characters_read(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    calls: list[int] = []
    ngram_overlap({"": ["a"]}, ["a b c", "d", "e f"], progress=calls.append)
    assert calls == [5, 9]


def test_invalid_arguments_are_refused():
    for groups in ({"generated": [], "reference": ["a"]}, {}):
        with pytest.raises(UserError, match="no text to search for"):
            ngram_overlap(groups, ["a"])
    with pytest.raises(UserError, match="at least 1"):
        ngram_overlap({"": ["a"]}, ["a"], n=0)


@given(st.text("ab '.", max_size=20), st.text("ab '.", max_size=20))
def test_texts_are_cut_to_the_same_number_of_words(one, other):
    cut = cut_to_same_length(one, other)
    assert one.startswith(cut[0])
    assert other.startswith(cut[1])
    n = min(len(words_of(one)), len(words_of(other)))
    assert [len(words_of(text)) for text in cut] == [n, n]
    assert [words_of(text) for text in cut] == [words_of(text)[:n] for text in (one, other)]


def test_real_stories_share_phrases_with_others(real_data):
    from mini_chat_gpt.sft_dataloader import stories

    held_out = list(stories(real_data / "tinystories" / "stories-valid.txt"))[:60]
    training = list(stories(real_data / "tinystories" / "stories-train.txt"))[:500]
    overlaps, _ = ngram_overlap({"generated": [training[3]], "reference": held_out}, training)
    assert overlaps["generated"].shares == (1.0,)
    joined = [f" {' '.join(words_of(text))} " for text in training]
    for text, longest in list(zip(held_out, overlaps["reference"].longest, strict=True))[:10]:
        words = words_of(text)
        occurs = {
            n: any(f" {' '.join(words[i : i + n])} " in one for i in range(len(words) - n + 1) for one in joined)
            for n in (longest, longest + 1)
        }
        assert occurs == {longest: True, longest + 1: False}

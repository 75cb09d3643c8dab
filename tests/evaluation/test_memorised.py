"""What texts share with a stream of training texts, against counting it plainly; and where a passage comes from."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation import memorised as memorised_module
from mini_chat_gpt.evaluation import ngram_overlap
from mini_chat_gpt.evaluation.memorised import _WORD, memorised, of_equal_length, words_of

# Few words, so that long runs are shared; "d" is in the training texts only.
TEXT = st.lists(st.sampled_from("aabbc"), max_size=14).map(" ".join)
TRAINING = st.lists(st.sampled_from("aabbcd"), max_size=20).map(" ".join)


def naive(text: str, training: list[str], n: int) -> tuple[int, float | None]:
    """(longest shared run, share of the runs of n words that are shared)"""
    inside = [f" {' '.join(words_of(one))} " for one in training]
    words = words_of(text)

    def stands_there(start: int, stop: int) -> bool:
        return any(f" {' '.join(words[start:stop])} " in one for one in inside)

    spans = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1) if stands_there(i, j)]
    runs = [(i, i + n) in spans for i in range(len(words) - n + 1)]
    return max((j - i for i, j in spans), default=0), sum(runs) / len(runs) if runs else None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["a a a a"], ["a a a a", "a a a a"], ["a a a"], 2, 1, 1)
@example([""], [], [], 1, 1, 1)
@example(["a b"], ["b a"], ["a", "b", "", "b"], 1, 2, 0)
@given(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(TEXT, max_size=3),
    st.lists(TRAINING, max_size=6),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(0, 4),
)
def test_it_equals_looking_for_every_run_in_every_text(monkeypatch, texts, references, training, n, block, levels):
    monkeypatch.setattr(memorised_module, "BLOCK", block)
    monkeypatch.setattr(ngram_overlap, "LEVELS", levels)
    groups = {"texts": texts, "references": references, "again": texts[::-1]}
    found = memorised(given := {name: group for name, group in groups.items() if group}, iter(training), n)
    assert list(found.shared) == list(given)
    for group, shared in zip(given.values(), found.shared.values(), strict=True):
        assert list(zip(shared.longest, shared.shares, strict=True)) == [naive(text, training, n) for text in group]
        assert shared.n_words == tuple(len(words_of(text)) for text in group)
        if shared.passage is None:
            assert max(shared.longest) == 0
            continue
        assert shared.passage.n_words == len(words_of(shared.passage.text)) == max(shared.longest)
        assert shared.passage.text in group[shared.passage.number]
        assert naive(shared.passage.text, [shared.passage.source], 1)[0] == shared.passage.n_words
    assert found.n_training_texts == len(training)
    assert found.n_training_words == sum(len(words_of(text)) for text in training)


@settings(max_examples=300)
@example("Isn't it? ’Tis—the dogs' “rock'n''roll”_x, İstanbul’s STRASSE ß.")
@given(st.text(st.one_of(st.sampled_from("aZ9 '’_-.\n\x1cßİŉé٣“"), st.characters())))
def test_words_are_the_same_however_they_are_found(text):
    plainly = [match[0].casefold().replace("'", "").replace("’", "") for match in _WORD.finditer(text)]
    assert words_of(text) == plainly
    ascii_only = text.encode("ascii", "replace").decode()
    assert words_of(ascii_only) == words_of(ascii_only + "“")


def test_case_and_punctuation_are_ignored():
    assert words_of("“Don’t!” said Tom's dog-sitter, 3 times.") == words_of("don't SAID toms dog sitter 3 times")


STORY = "Once upon a time, there was a cat. She couldn't find her red ball, and so she cried."


def test_the_longest_passage_is_shown_as_it_stands_with_the_text_that_has_it():
    training = ["Another story.", "Look! She COULDN’T find her red ball and ran. " + "x" * 300, STORY[:30]]
    told = ["Nothing.", "Tom: she couldn't find her red ball — and sat."]
    found = memorised({"told": told, "real": [STORY]}, training).shared
    passage = found["told"].passage
    assert passage is not None
    assert (passage.number, passage.n_words) == (1, 7)
    assert passage.text == "she couldn't find her red ball — and"
    assert passage.source == training[1][: memorised_module.SHOWN]
    assert found["real"].longest == (7,)


def test_a_recited_story_is_found_whole_and_its_share_is_1():
    found = memorised({"": [STORY, "A cat."]}, [f"Before. {STORY} After."], n=4).shared[""]
    assert found.longest == (18, 2)
    assert found.shares == (1.0, None)
    assert (found.mean_longest, found.median_longest, found.mean_share) == (10, 10, 1)


def test_no_run_goes_from_one_training_text_into_the_next():
    found = memorised({"": ["a b c d"]}, ["a b", "c d"]).shared[""]
    assert found.longest == (2,)
    assert found.mean_share is None


def test_texts_that_are_all_the_same_are_found_each():
    found = memorised({"one": [STORY] * 50, "other": [STORY] * 50}, [STORY[10:]], n=2).shared
    assert set(found["one"].longest) == {len(words_of(STORY[10:]))}
    assert found["one"] == found["other"]


def test_progress_tells_the_characters_read(monkeypatch):
    monkeypatch.setattr(memorised_module, "BLOCK", 4)
    told: list[int] = []
    memorised({"": ["a"]}, ["a b c", "d", "e f"], progress=told.append)
    assert told == [5, 9]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="no text to look up in told"):
        memorised({"told": [], "real": ["a"]}, ["a"])
    with pytest.raises(UserError, match="no text to look up;"):
        memorised({}, ["a"])
    with pytest.raises(UserError, match="at least 1"):
        memorised({"": ["a"]}, ["a"], n=0)


@given(st.text("ab '.", max_size=20), st.text("ab '.", max_size=20))
def test_texts_of_equal_length_are_beginnings_with_as_many_words(one, other):
    cut = of_equal_length(one, other)
    assert one.startswith(cut[0])
    assert other.startswith(cut[1])
    n = min(len(words_of(one)), len(words_of(other)))
    assert [len(words_of(text)) for text in cut] == [n, n]
    assert [words_of(text) for text in cut] == [words_of(text)[:n] for text in (one, other)]


def test_real_stories_share_phrases_with_others(real_data):
    from mini_chat_gpt.sft_dataloader import stories

    held_out = list(stories(real_data / "tinystories" / "stories-valid.txt"))[:60]
    training = list(stories(real_data / "tinystories" / "stories-train.txt"))[:500]
    found = memorised({"told": [training[3]], "real": held_out}, training).shared
    assert found["told"].shares == (1.0,)
    joined = [f" {' '.join(words_of(text))} " for text in training]
    for text, longest in list(zip(held_out, found["real"].longest, strict=True))[:10]:
        words = words_of(text)
        there = {
            n: any(f" {' '.join(words[i : i + n])} " in one for i in range(len(words) - n + 1) for one in joined)
            for n in (longest, longest + 1)
        }
        assert there == {longest: True, longest + 1: False}

"""Text metrics equal known values and those of Google's rouge_score."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from tiny import writing

from mini_chat_gpt.evaluation.text_metrics import (
    constraint_satisfaction,
    extractiveness,
    length_ratio,
    plain_words,
    requested_features,
    rouge,
    rouge_l,
    text_statistics,
)
from mini_chat_gpt.sft_dataloader import generate_tasks, read_records
from mini_chat_gpt.tinystories.prompts import prompt_templates
from mini_chat_gpt.tinystories.records import FEATURES
from mini_chat_gpt.tinystories.tasks import Task

VALID = "TinyStoriesInstruct-valid.txt"


def test_words_are_compared_without_case_and_punctuation():
    assert plain_words("“Tom’s dog ISN'T ill!” – Élan 3.5") == ["tom's", "dog", "isn't", "ill", "élan", "3", "5"]
    assert plain_words("… !") == []


# Compared with the reference


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # "the ... sat on ... mat" is common: 4 of 6 expected words, 4 of 5 words in the reply
    assert rouge_l("The cat sat on the mat.", "the dog sat on mat") == pytest.approx(
        2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)
    )


def test_rouge_is_what_googles_rouge_score_gives():
    google = RougeScorer(["rougeL", "rouge1", "rouge2"])
    rng = random.Random(1)
    words = [
        "the",
        "The",
        "cat",
        "cat's",
        "don't",
        "“hi”",
        "3.5",
        "ice-cream",
        "_",
        "\n",
        "…",
        "ran",
    ]
    texts = [" ".join(rng.choices(words[:n], k=k)) for n in (2, 5, 16) for k in (0, 1, 2, 9, 40, 70, 150)]
    for target in texts:
        for reply in texts:
            expected = google.score(target, reply)
            scores = rouge(target, reply)
            assert scores == pytest.approx(
                {f"rouge_{name}": expected[f"rouge{name.upper()}"].fmeasure for name in ("l", "1", "2")}
            ), (target, reply)
            assert rouge_l(target, reply) == scores["rouge_l"]


def test_the_length_is_relative_to_the_target():
    assert length_ratio("One two, three four.", "one TWO") == 0.5
    assert length_ratio("One.", "") == 0
    assert length_ratio("…", "one two") == 2


# Compared with the story in the prompt


def test_extractiveness_is_the_share_of_4grams_that_the_story_has():
    story = "Tom was sad. He cried because he lost his red ball."
    assert extractiveness(story, "sad he cried because") == 1  # punctuation is ignored
    assert extractiveness(story, "Sue cried because he lost it") == pytest.approx(1 / 3)
    assert extractiveness(story, story) == 1
    assert extractiveness(story, "Tom was sad") == 0  # too short
    assert extractiveness("", story) == extractiveness(story, "") == 0


# Of a generated story


def test_repetition_and_distinct_n_of_a_story():
    statistics = text_statistics("he ran and ran. He ran and ran.")  # 8 words; 5 4-grams, 4 different ones
    assert statistics == pytest.approx(
        {"n_words": 8, "repetition": 1 / 5, "distinct_1": 3 / 8, "distinct_2": 4 / 7, "distinct_3": 4 / 6}
    )
    assert text_statistics("one two three four five")["repetition"] == 0
    assert text_statistics("no " * 100)["repetition"] == pytest.approx(96 / 97)


@pytest.mark.parametrize("story", ["", "…", "one", "one two three"])
def test_very_short_texts_have_statistics_too(story):
    statistics = text_statistics(story)
    assert statistics["repetition"] == 0
    assert statistics["distinct_3"] in (0, 1)


def prompted(lines: str, target: str = "", sentence: str | None = None) -> Task:
    return Task("words", f"Write a story.\n{lines}", target, None, required=("cat",), sentence=sentence)


def test_a_required_sentence_occurs_verbatim_or_in_its_words():
    task = prompted("", sentence="Tom  ran home.")
    both = ("has_sentence", "has_sentence_verbatim")
    assert constraint_satisfaction(task, "So Tom ran\nhome. The end.") == dict.fromkeys(both, 1)
    assert constraint_satisfaction(task, "“tom ran HOME!”") == {"has_sentence": 1, "has_sentence_verbatim": 0}
    for story in ("Tom ran to his home.", "Tom ran homewards.", ""):
        assert constraint_satisfaction(task, story) == dict.fromkeys(both, 0)
    assert constraint_satisfaction(writing("cat"), "Tom ran home.") == {}
    assert constraint_satisfaction(prompted("", sentence="…"), "…") == {}


def test_features_are_measured_if_a_rule_can_detect_them():
    speaks, states, silent = "“Hi,” said Tom.", "The moral is to share.", "Tom ran home."
    line = "It should have dialogue, a bad ending and a moral."
    assert constraint_satisfaction(prompted(line, f"{speaks} {states}"), speaks) == {"has_dialogue": 1, "has_moral": 0}
    assert constraint_satisfaction(prompted(line, f"{speaks} {states}"), states) == {"has_dialogue": 0, "has_moral": 1}
    assert constraint_satisfaction(prompted(line, speaks), silent) == {
        "has_dialogue": 0
    }  # its moral is left to the reader
    assert constraint_satisfaction(prompted("Give it a plot twist.", speaks), speaks) == {}
    assert constraint_satisfaction(prompted("", speaks), speaks) == {}


def test_requested_features_are_read_from_every_template():
    shown = prompt_templates()["feature_names"]
    for line in prompt_templates()["words"]["features"]:
        for name in FEATURES:
            assert requested_features(f"Write.\n{line.format(features=shown[name])}") == (name,)
        assert requested_features(f"Write.\n{line.format(features='dialogue, a bad ending and a moral')}\nMore.") == (
            "Dialogue",
            "BadEnding",
            "MoralValue",
        )
    for prompt in (
        "",
        "Write.",
        "Write.\nGive it a name.",
        "Write.\nUse this sentence in it: It should have dialogue.",
    ):
        assert requested_features(prompt) == ()


def test_requested_features_are_those_of_the_record(sample):
    seen = 0
    for record in read_records(sample / VALID):
        for task in generate_tasks(record, 0, ["words"]):
            features = requested_features(task.prompt)
            assert features in ((), record.features)
            assert bool(features) == any(
                line.split("{")[0] in task.prompt for line in prompt_templates()["words"]["features"]
            )
            seen += bool(features)
    assert seen > 5

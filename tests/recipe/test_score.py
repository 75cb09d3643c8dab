"""Shares, paired tests, overlap, baselines and tables of held-out parts, from given replies."""

import pytest

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.evaluation.confidence import wilson
from mini_chat_gpt.evaluation.held_out_part import HeldOut, Item
from mini_chat_gpt.evaluation.prompt_suite import Prompts
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.recipe.bag_of_words import bag_of_words_labels
from mini_chat_gpt.recipe.results import markdown
from mini_chat_gpt.recipe.score import INVALID, Part, score_part

PROMPTS = Prompts(compare=[{"prompts": ["x"]}], polite_signs=["hello", "sure"], refusal_signs=["can't help"])


def part(records: list[tuple[str, str | None, dict]], **spec) -> Part:
    items = [Item((Message("user", prompt),), expected, record, prompt) for prompt, expected, record in records]
    return Part(HeldOut(file="x.jsonl", **spec), items)


def replies(*texts: str) -> list[Reply]:
    return [Reply(text, (1,), "stop", 3) for text in texts]


def scored(one: Part, before: list[str], after: list[str], code=None, training=()) -> dict:
    return score_part(one, {"before": replies(*before), "after": replies(*after)}, PROMPTS, code, list(training))


def test_shares_have_wilson_intervals_and_a_paired_test():
    records = [(f"p{n}", "a", {}) for n in range(20)]
    (row,) = scored(part(records, exact=True), ["b"] * 20, ["a"] * 15 + ["b"] * 5)["rows"]
    low, high = wilson([1.0] * 15 + [0.0] * 5)
    assert row["values"]["after"] == {"value": 0.75, "low": low, "high": high}
    assert row["difference"] == 0.75
    assert row["p"] == pytest.approx(2 / 2**15)  # McNemar's exact test


def test_groups_and_the_replies_that_pass_all_checks():
    records = [("p1", "a", {"hard": True}), ("p2", "b", {"hard": False}), ("p3", "b", {"hard": True})]
    result = scored(part(records, labels=["a", "b"], group_by="hard"), ["a", "a", "c"], ["a", "b", "b"])
    shares = {(row["group"], row["check"]): (row["n"], row["values"]["before"]["value"]) for row in result["rows"]}
    assert shares["", "valid label"] == (3, pytest.approx(2 / 3))
    assert shares["", "all checks"] == (3, pytest.approx(1 / 3))
    assert shares["hard: True", "right label"] == (2, 0.5)
    assert result["confusion"]["before"] == {"a": {"a": 1, "b": 0, INVALID: 0}, "b": {"a": 1, "b": 0, INVALID: 1}}


def test_checks_of_code_may_differ_by_group():
    records = [("p1", None, {"scope": "in"}), ("p2", None, {"scope": "far"})]

    def code(record, reply, place):
        return {"declines": reply == "no"} if record["scope"] == "far" else {"right": reply == "yes"}

    result = scored(part(records, checklist=True, group_by="scope"), ["no", "no"], ["yes", "no"], code)
    assert [(row["group"], row["check"], row["values"]["after"]["value"]) for row in result["rows"]] == [
        ("scope: in", "right", 1.0),
        ("scope: far", "declines", 1.0),
    ]


def test_overlap_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    expected, texts = (
        ["the cat sat on the mat", "a dog ran in the park"],
        ["the cat sat on a mat", "the dog ran in a park"],
    )
    one = part([(f"p{n}", text, {}) for n, text in enumerate(expected)], overlap=["bleu", "chrf", "rouge"])
    bleu, chrf, rouge = scored(one, expected, texts)["overlap"]
    assert bleu["measure"] == "BLEU"
    assert bleu["values"]["after"]["value"] == pytest.approx(sacrebleu.corpus_bleu(texts, [expected]).score / 100)
    assert bleu["values"]["before"]["value"] == pytest.approx(1.0)
    means = [sacrebleu.sentence_chrf(text, [right]).score / 100 for text, right in zip(texts, expected, strict=True)]
    assert chrf["values"]["after"]["value"] == pytest.approx(sum(means) / 2)
    assert rouge["values"]["before"]["value"] == 1.0


def test_baselines_are_the_most_frequent_label_and_a_classifier_that_counts_words():
    training = [(f"{word} thing {n}", label) for word, label in (("red", "a"), ("one", "b")) for n in range(10)]
    training.append(("red thing", "a"))
    one = part([("one item", "b", {}), ("red item", "a", {})], labels=["a", "b"])
    most, words = scored(one, ["a", "a"], ["a", "a"], training=training)["baselines"]
    assert (most["name"], most["value"]) == ("always a", 0.5)
    assert words["value"] == 1.0
    assert bag_of_words_labels([("x", "a"), ("y", "a")], ["z"]) == ["a"]


def test_openings_are_counted_and_markdown_shows_right_and_wrong_replies():
    records = [("p1", None, {}), ("p2", None, {}), ("p3", None, {})]
    result = scored(part(records, polite=True, shows="tone"), ["x", "y", "z"], ["Hello a|b", "Sure!", "no"])
    assert result["openings"] == {"before": 0, "after": 2}
    text = markdown([result], ["before", "after"])
    assert "## Held-out: tone (3 records of x.jsonl)" in text
    assert "| begins politely | 3 | 0.0 % (0 to 56) | 66.7 % (21 to 94) |" in text
    assert "Replies of after that pass all checks (2 of 3" in text
    assert r"Hello a\|b" in text
    assert "| p3 |  | z | no | begins politely |" in text

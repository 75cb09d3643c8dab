"""The first screen of the report: which example it shows, what its sentence says, and that its numbers are those of the report."""

import pytest

from mini_chat_gpt.reports.first_screen import counts, sentence, spotlight, tiles
from mini_chat_gpt.reports.html_report import page


def reply(text: str, score: float) -> dict:
    return {"parts": [[text, "right" if score else "wrong"]], "score": score, "finish": "stop", "label": ""}


def example(prompt: str, target: str, base: str, sft: str, **more) -> dict:
    replies = {"base": reply(base, float(base == target)), "sft": reply(sft, float(sft == target))}
    return {
        "kind": "moral",
        "group": "",
        "prompt": prompt,
        "target": target,
        "required": [],
        "replies": replies,
        **more,
    }


def report_of(*names: str, **more) -> dict:
    models = [{"name": name, "checkpoint": name, "parameters": 10, "kind": "chat"} for name in names]
    return {"title": names[-1], "models": models, **more}


def kind(name: str, measure: str, by_group: dict[str, tuple[int, dict[str, float]]], **more) -> dict:
    values = {
        group: {model: {"value": value, "low": value, "high": value, "stops": 0.5} for model, value in by_name.items()}
        for group, (_, by_name) in by_group.items()
    }
    n = {group: n for group, (n, _) in by_group.items()}
    return {"kind": name, "measure": measure, "label": measure, "share": True, "n": n, "values": values, **more}


MORAL = kind("moral", "exact", {"seen": (30, {"base": 0.0, "sft": 0.9}), "unseen": (10, {"base": 0.4, "sft": 0.5})})


def test_the_example_is_one_that_the_last_model_gains():
    wrong = example("What is the moral?", "Be kind.", "a dog", "Be brave.")
    kept = example("Why was she sad?", "It was dark.", "It was dark.", "It was dark.")
    gained = example("What is the moral?", "Always be kind.", "the the", "Always be kind.")
    yes_no = example("Is it sad?", "Yes.", "a", "Yes.")
    long = example("What is the moral?", "Always be kind.", "the " * 100, "Always be kind.")
    silent = example("Moral?", "Always be kind.", "", "Always be kind.")
    report = report_of("base", "sft", side_by_side=[wrong, long, silent, kept, yes_no, gained])
    assert spotlight(report)["replies"] == gained["replies"]
    assert spotlight(report | {"side_by_side": [long]})["replies"] == long["replies"]
    assert spotlight(report_of("sft", side_by_side=[wrong, kept]))["target"] == "It was dark."
    assert spotlight(report_of("sft")) is None
    chat = example("Hi", "Hello, how are you?", "the", "Hello!", kind="chats/mine")
    assert spotlight(report | {"side_by_side": [gained, chat]})["prompt"] == "Hi"


def test_the_first_screen_of_chats_has_their_scores_and_loss():
    chats = kind("chats", "chrf", {"": (25, {"base": 0.42, "sft": 0.62})})
    loss = {"kind": "chats", "group": "", "measure": "loss", "label": "loss", "share": False, "main": True, "n": 25}
    values = {name: {"value": value, "low": value, "high": value} for name, value in (("base", 1.2), ("sft", 0.9))}
    pair = {
        "kind": "chats",
        "group": "",
        "before": "base",
        "after": "sft",
        "difference": -0.3,
        "low": -0.4,
        "high": -0.2,
    }
    pairs = [pair | {"label": "loss", "p": 0.01}, pair | {"label": "chrF", "p": 0.01, "difference": 0.2}]
    report = report_of("base", "sft", kinds=[chats], measures=[loss | {"values": values}], paired=pairs)
    assert sentence(report) == (
        "Replies to held-out chats: base reaches 42\u00a0% of the overlap with the expected ones (chrF), sft 62\u00a0%."
    )
    assert counts(report).startswith("25 held-out chats. sft against base, by kind: significantly higher in 1,")
    assert ("1.2 → 0.9", "loss of the expected replies, first model to last; lower is better") in tiles(report)


def test_the_story_of_the_example_is_apart_from_the_question():
    shown = spotlight(
        report_of("sft", side_by_side=[example("Read this. A cat slept.\n\nWho?", "A cat.", "", "", story=[11, 23])])
    )
    assert shown["story"] == "A cat slept."
    assert shown["prompt"].split() == ["Read", "this.", "Who?"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("sft",), "sft answers 80\u00a0% correctly."),
        (("base", "sft"), "base answers 10\u00a0% correctly, sft 80\u00a0%."),
        (("base", "sft", "base"), "base answers 10\u00a0% correctly, sft 80\u00a0%, base 10\u00a0%."),
    ],
)  # fmt: skip
def test_the_sentence_has_the_mean_over_all_questions(names, expected):
    story = kind("words", "used", {"": (40, {"base": 0.1, "sft": 0.7})})
    refusals = kind("refusals", "accuracy", {"": (40, {"base": 0.1, "sft": 1.0})})
    report = report_of(*names, kinds=[story, MORAL, refusals])
    assert sentence(report) == f"Questions about stories it has not seen: {expected}"
    assert expected in page(report | {"title": "t"}).replace("&nbsp;", "\u00a0")


def test_without_questions_the_sentence_is_about_what_was_counted():
    story = kind("words", "used", {"": (40, {"base": 0.1, "sft": 0.7})})
    assert sentence(report_of("base", "sft", kinds=[story])).startswith(
        "Held-out tasks of the kind “words”: base reaches 10"
    )
    checked = [{"shows": "facts", "prompt": "Capital?", "replies": {
        "base": {"text": "the", "checks": [["contains Tokyo", False], ["short", True]]},
        "sft": {"text": "Tokyo", "checks": [["contains Tokyo", True], ["short", True]]},
    }}]  # fmt: skip
    report = report_of("base", "sft", own={"prompts": checked})
    assert sentence(report) == "Checks of your prompts: base meets 1 of 2, sft 2 of 2."
    assert spotlight(report)["prompt"] == "Capital?"
    assert "One of your prompts: facts" in page(report)
    assert sentence(report_of("sft")) == ""


def test_each_tile_is_about_something_else():
    rows = [
        {"before": "base", "after": "sft", "difference": d, "low": -0.1, "high": 0.1, "p": p}
        for d, p in ((0.3, 0.01), (-0.3, 0.01), (0.1, 0.4))
    ]
    story = kind(
        "words", "used", {"": (40, {"base": 0.1, "sft": 0.7})}, baseline={"": {"value": 0.8, "rule": "the prompt"}}
    )
    report = report_of(
        "base", "sft", kinds=[MORAL | {"baseline": {"seen": {"value": 0.5, "rule": "x"}}}, story], paired=rows,
        bits_per_byte={"base": {"bits_per_byte": 1.2}, "sft": {"bits_per_byte": 1.1}}, losses={"sft": {"val": [[1, 2.5]]}},
    )  # fmt: skip
    shown = {text.partition(",")[0]: value.replace("\u00a0", " ") for value, text in tiles(report)}
    assert shown == {
        "of the words that a prompt asks for are used": "10 % → 70 %",
        "kinds and groups in which sft is better than the best simple rule": "1 of 2",
        "replies that the model ended by itself": "50 % → 50 %",
        "bits per byte of held-out stories": "1.2 → 1.1",
        "last validation loss of sft": "2.5",
    }
    assert counts(report) == (
        "80 held-out tasks. sft against base, by kind: significantly higher in 1, lower in 1, no clear difference in 1."
    )

"""The terminal output of evaluations is correct, fits 80 columns, and is readable without color."""

import io
import re

import pytest
from rich.console import Console

from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, summarize
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.reports.example_replies import colored, shortened_prompt, show_examples
from mini_chat_gpt.reports.results_table import show_differences, show_table
from mini_chat_gpt.tinystories.tasks import TASK_KINDS, Task

STORY = "Tom was sad. He cried because he lost his red ball. The moral is to share."


def about(kind: str, target: str, answer: str | None = None, story: str = STORY) -> Task:
    prompt = f"A question?\n\n{story}"
    return Task(kind, prompt, target, (13, len(prompt)), answer)


def evaluation(*replies: tuple[Task, str], group: str = "", finish="stop") -> Evaluation:
    items = [Item(task, reply, finish, score(task, reply), group) for task, reply in replies]
    return Evaluation(summarize(items), items, {group: summarize(items)} if group else {})


def in_both_groups(*replies: tuple[Task, str]) -> Evaluation:
    parts = [evaluation(*replies, group=group) for group in ("seen", "unseen")]
    items = [item for part in parts for item in part.items]
    return Evaluation(summarize(items), items, {name: table for part in parts for name, table in part.groups.items()})


def printed(show, *arguments, width: int = 80) -> str:
    out = Console(width=width, file=io.StringIO(), color_system=None)
    show(*arguments, out)
    text = out.file.getvalue()
    assert max(map(len, text.splitlines()), default=0) <= width
    return text


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def numbers(text: str) -> list[list[str]]:
    """The rows without margins."""
    return rows(re.sub(r" ?±\d[\d.]*", "", text))


ENDING = about("ending", "Yes, the story has a happy ending.", "yes")
MORAL = about("moral", "Share your toys.")
WORDS = Task("words", "Write a story with run, oak", "Tom ran to the oak.", None, required=("run", "oak"))


# The table


def test_the_table_has_each_measure_beside_the_best_baseline():
    text = printed(show_table, {"sft": evaluation((ENDING, "Yes."), (ENDING, "No."), (MORAL, "Share toys!"))})
    assert ["ending", "right", "2", "50.0", "100.0"] in numbers(text)
    assert ["moral", "exact", "1", "0.0", "100.0"] in numbers(text)
    assert ["ROUGE-L", "80.0", "100.0"] in numbers(text)
    assert ["moral", "stops", "100.0"] in numbers(text)
    assert "always “Yes” (ending)" in text
    assert "verbatim" not in text


def test_two_models_and_two_groups_fit_side_by_side_into_80_columns():
    base, tuned = in_both_groups((ENDING, ""), (WORDS, "")), in_both_groups((ENDING, "Yes."), (WORDS, "Tom ran."))
    text = printed(show_table, {"base": base, "tuned": tuned})
    assert ["ending", "right", "1", "0", "100", "100", "1", "0", "100", "100"] in numbers(text)
    assert ["words", "words", "used", "1", "0", "50", "0", "1", "0", "50", "0"] in numbers(text)
    (line,) = [line for line in text.splitlines() if "plots of the train file" in line]
    assert "plots not in it" in line


def test_numbers_lose_their_decimal_if_the_table_is_too_wide():
    base = in_both_groups((ENDING, ""), (ENDING, ""), (ENDING, ""))
    tuned = in_both_groups((ENDING, "Yes."), (ENDING, ""), (ENDING, "Yes"))
    wide, narrow = (printed(show_table, {"base": base, "tuned": tuned}, width=width) for width in (110, 80))
    assert ["ending", "right", *["3", "0.0", "±28.1", "66.7", "±36.5", "100.0"] * 2] in rows(wide)
    assert ["ending", "right", *["3", "0±28", "67±37", "100"] * 2] in rows(narrow)
    assert "plots of the train file   " in narrow
    assert "±: half the width of the 95 % interval" in narrow


def test_shares_have_a_margin_even_if_all_are_right_but_equal_overlaps_have_none():
    text = printed(show_table, {"sft": evaluation(*[(ENDING, "Yes.")] * 40)})
    assert ["ending", "right", "40", "100.0", "±4.4", "100.0"] in rows(text)
    why = about("why", "Because he was sad.")
    assert ["why", "ROUGE-L", "2", "100.0", "100.0"] in rows(
        printed(show_table, {"sft": evaluation(*[(why, why.target)] * 2)})
    )


def test_a_note_says_that_the_unseen_plots_are_few():
    assert "plots are few" in printed(show_table, {"sft": in_both_groups((ENDING, "Yes."))})
    assert "plots are few" not in printed(show_table, {"sft": evaluation((ENDING, "Yes."))})


def test_the_main_measure_of_a_kind_is_always_shown():
    text = printed(show_table, {"sft": evaluation((about("copyedit", "Tom ran."), "Tom ran."))})
    assert ["copyedit", "verbatim", "1", "100.0", "0.0"] in numbers(text)


def test_details_are_all_measures_with_their_own_n_and_every_baseline():
    with_sentence = Task(
        "words", "Write with oak", "An oak. So it was.", None, required=("oak",), sentence="So it was."
    )
    summary = about("summary", "Tom lost his red ball.")
    both = in_both_groups((WORDS, "Tom ran to the oak."), (with_sentence, "Oaks."), (summary, "Tom lost his ball."))
    shown = {"sft": both}
    text = printed(lambda evaluations, out: show_table(evaluations, out, details=True), shown)
    assert ["words", *["3.0", "±2.0", "5.0"] * 2] in rows(text)
    assert ["sentence", *["1", "0.0", "0.0"] * 2] in numbers(text)
    assert ["length", *["80.0", "320.0"] * 2] in numbers(text)
    assert "ROUGE-L: the first three sentences " in text
    assert ["empty", "0.0", "0.0"] in numbers(text)
    brief = printed(show_table, shown)
    assert not [name for name in ("length", "sentence  ", "empty", "ROUGE-2", "distinct") if name in brief]


def test_details_include_measures_that_one_group_lacks():
    with_sentence = Task(
        "words", "Write with oak", "An oak. So it was.", None, required=("oak",), sentence="So it was."
    )
    parts = [evaluation((with_sentence, "Oaks."), group="seen"), evaluation((WORDS, "Oaks."), group="unseen")]
    items = [item for part in parts for item in part.items]
    both = Evaluation(summarize(items), items, {name: table for part in parts for name, table in part.groups.items()})
    text = printed(lambda evaluations, out: show_table(evaluations, out, details=True), {"sft": both})
    assert ["sentence", "0.0", "0.0"] in numbers(text)


def test_a_neutral_measure_has_no_color():
    summary = about("summary", "Tom lost his red ball.")
    out = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    show_table({"sft": evaluation((summary, "Tom lost his red ball."))}, out, details=True)
    lines = out.file.getvalue().splitlines()
    better, neutral = (next(line for line in lines if name in line) for name in ("ROUGE-2", "copied"))
    green, red = "\x1b[32m", "\x1b[31m"
    assert (green in better, red in better) == (True, False)
    assert (green in neutral, red in neutral) == (False, False)


def test_the_table_of_a_single_model_does_not_depend_on_its_name():
    tables = [printed(show_table, {name: in_both_groups((ENDING, "Yes."))}) for name in ("a" * 40, "b")]
    assert tables[0] == tables[1]


def test_groups_are_below_each_other_if_the_table_is_too_wide():
    one = in_both_groups((ENDING, "Yes."))
    text = printed(show_table, {"a-model-with-a-long-name": one, "base": one}, width=60)
    assert numbers(text).count(["ending", "right", "1", "100.0", "100.0", "100.0"]) == 2
    assert "…ith-a-long-name" in text
    assert text.index("plots of the train file") < text.index("plots not in it")


def test_a_kind_that_one_group_lacks_has_empty_cells():
    both = in_both_groups((ENDING, "Yes."))
    moral = evaluation((MORAL, "Share your toys."), group="unseen")
    items = [*both.items, *moral.items]
    unseen = [item for item in items if item.group == "unseen"]
    text = printed(
        show_table, {"sft": Evaluation(summarize(items), items, both.groups | {"unseen": summarize(unseen)})}
    )
    assert ["moral", "exact", "1", "100.0", "100.0"] in numbers(text)


def test_differences_are_listed_by_kind_and_by_group_if_groups_differ():
    def replied(*groups: tuple[str, str]) -> Evaluation:
        items = [
            Item(about("ending", "Yes.", "yes"), reply, "stop", {"accuracy": float(reply == "Yes")}, group)
            for group, reply in groups
            for _ in range(8)
        ]
        return Evaluation(summarize(items), items, {})

    text = printed(
        show_differences,
        {"a": replied(("seen", "No"), ("unseen", "No")), "b": replied(("seen", "Yes"), ("unseen", "No"))},
    )
    assert " ".join(text.split()) == (
        "b against a, task by task (sign-flip test, p < 0.05): higher: ending (seen); no clear difference: ending (unseen)"
    )
    text = printed(show_differences, {"a": replied(("", "Yes")), "b": replied(("", "Yes")), "c": replied(("", "No"))})
    assert [line.split("05): ")[1] for line in text.replace("\n", " ").split("c against")[1:]] == [
        "lower: ending ",
        "lower: ending ",
    ]
    assert printed(show_differences, {"a": replied(("", "Yes"))}) == ""


# Replies


@pytest.mark.parametrize(
    ("reply", "shown", "missing"),
    [
        ("Tom found a red ball.", "Tom found a red ball.", ""),
        ("tom Found a RED ball", "tom Found a RED ball", ""),
        ("Sue found a very red ball.", "[Sue] found a [very] red ball.", "missing: tom"),
        ("Tom found.", "Tom found.", "missing: a, red, ball"),
        ("No idea", "[No idea]", "missing: everything"),
        ("", "", "missing: everything"),
    ],
)
def test_wrong_words_are_in_brackets_and_missing_words_are_listed(reply, shown, missing):
    text, note = colored(about("summary", "Tom found a red ball."), reply)
    assert (text.plain, note) == (shown, missing)


def test_required_words_of_a_story_are_listed_with_their_forms():
    text, note = colored(WORDS, "Sue ran away.")
    assert (text.plain, note) == ("Sue ran away.", "used: run (“ran”); missing: oak")
    assert [(span.start, span.end) for span in text.spans] == [(4, 7)]


def test_an_example_has_the_prompt_the_target_and_the_reply():
    text = printed(show_examples, {"sft": evaluation((MORAL, "Share the toys."))}, 1)
    assert "moral: 0 of 1 fully right; an incorrect reply" in text
    assert ["prompt", "A", "question?", *f"«{STORY}»".split()][:6] in [line[:6] for line in rows(text)]
    assert ["expected", "Share", "your", "toys."] in rows(text)
    assert ["sft", "Share", "[the]", "toys."] in rows(text)
    assert ["wrong;", "missing:", "your"] in rows(text)


def test_examples_are_incorrect_replies_if_there_are_some():
    replies = [(MORAL, "Share your toys."), (about("moral", "Be kind."), "Be [bold]kind!"), (MORAL, "Share.")]
    text = printed(show_examples, {"sft": evaluation(*replies)}, 1)
    assert "moral: 1 of 3 fully right; an incorrect reply" in text
    assert "Be [[bold]kind!]" in text
    assert text.count("prompt") == 1
    assert "a correct reply ──" in printed(show_examples, {"sft": evaluation(*replies)}, 3)
    assert printed(show_examples, {"sft": evaluation(*replies)}, 0) == ""


def test_the_replies_of_all_models_to_a_prompt_are_shown():
    two = {"base": evaluation((ENDING, ""), finish="length"), "tuned": evaluation((ENDING, "Yes, it has."))}
    text = printed(show_examples, two, 1)
    assert ["base", "(nothing)"] in rows(text)
    assert ["wrong;", "cut", "off"] in rows(text)
    assert "tuned" in text


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("reply", ["", "\x1b[2J\a\r\n\t…", "a " * 3000, "[/bold] [red", "😀" * 200])
def test_any_reply_to_any_kind_can_be_shown(kind, reply):
    required = ("cat", "dog") if kind in ("words", "sentence") else ()
    task = Task(
        kind, f"A question? {STORY}", "Yes.", None if required else (12, 12 + len(STORY)), "yes", required=required
    )
    text = printed(show_examples, {"sft": evaluation((task, reply))}, 1) + printed(
        show_table, {"sft": evaluation((task, reply))}
    )
    assert not set("\x1b\a\r\t") & set(text)
    assert len(text.splitlines()) < 40


def test_the_beginning_and_the_end_of_a_story_in_a_prompt_are_shown():
    prompt = shortened_prompt(about("summary", "…", story=" ".join(f"w{number}" for number in range(100))))
    assert prompt.startswith("A question? «w0 w1 ")
    assert prompt.endswith("w13 … (78 words) … w92 w93 w94 w95 w96 w97 w98 w99»")
    assert shortened_prompt(about("summary", "…")) == f"A question? «{STORY}»"

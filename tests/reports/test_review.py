"""The review page: replies are chosen blind and evenly, ticks are kept and summed, and no text is anything but text."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item
from mini_chat_gpt.evaluation.chat_tasks import ChatTask
from mini_chat_gpt.evaluation.confidence import wilson
from mini_chat_gpt.evaluation.prompt_suite import Answers
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.reports.review import REFERENCE, JudgedReply, choose_replies, read_checklist, review_page

NASTY = "<img src=x onerror=\"document.title='hacked'\"> </script><b>&amp; \x1b[2J\u2028"
POINTS = ("is right", "is <i>short</i>")


def evaluation(name: str, n: int, kind: str = "chats") -> Evaluation:
    tasks = [
        ChatTask(kind, f"Q{k}", f"target {k}", None, messages=(Message("user", f"{kind} Q{k}"),)) for k in range(n)
    ]
    return Evaluation({}, [Item(task, f"{name} {k}", "stop", {}) for k, task in enumerate(tasks)])


def test_replies_of_one_model_are_mixed_with_the_expected_ones():
    replies = choose_replies({"sft": evaluation("sft", 40)}, {}, seed=1)
    assert Counter(one.origin for one in replies) == {"sft": 25, REFERENCE: 25}
    assert {one.turns for one in replies if one.origin == "sft"} == {
        one.turns for one in replies if one.origin != "sft"
    }
    assert all(one.reply.startswith("target") == (one.origin == REFERENCE) for one in replies)
    assert [one.origin for one in replies[:25]] != ["sft"] * 25
    assert replies == choose_replies({"sft": evaluation("sft", 40)}, {}, seed=1)
    assert replies != choose_replies({"sft": evaluation("sft", 40)}, {}, seed=2)


def test_replies_of_several_models_are_mixed_and_kinds_take_turns():
    models = {name: evaluation(name, 9) + evaluation(name, 40, "chats/b") for name in ("a", "b", "c")}
    replies = choose_replies(models, {}, seed=1)
    assert Counter(one.origin for one in replies) == {"a": 16, "b": 16, "c": 16}
    assert Counter(one.turns[0][1].split()[0] for one in replies) == {"chats": 8 * 3, "chats/b": 8 * 3}


def test_without_held_out_replies_those_to_own_prompts_are_shown():
    answers = {"sft": Answers("sft", {"Hi": Reply("Hello", (1,), "stop", 1)})}
    nothing = {"sft": Evaluation({}, [])}
    assert choose_replies(nothing, answers, 1) == [JudgedReply((("User", "Hi"),), "Hello", "sft")]
    assert choose_replies(nothing, {}, 1) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- is right\n- is right", "the point “is right” is there twice"),
        ("- ''", "points.0 must be a text of 1 to 100 characters"),
        ("points: []", "must have at least this number of items: 1"),
        ("\n".join(f"- p{n}" for n in range(10)), "must have at most this number of items: 9"),
        ("text", "expected a list of points"),
    ],
)
def test_a_mistake_in_a_checklist_is_named(tmp_path, text, words):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_checklist(tmp_path / "list.yaml")


def test_a_checklist_is_a_list_of_points(tmp_path):
    (tmp_path / "list.yaml").write_text("- is right\n- yes\n")
    assert read_checklist(tmp_path / "list.yaml") == ("is right", "yes")


@given(text=st.text())
def test_texts_of_any_kind_are_text(text):
    page = review_page([JudgedReply((("User", text),), text, text)], POINTS)
    assert "<i>short" not in page
    assert page.count("<script>") == 1


# In a browser


def replies() -> list[JudgedReply]:
    return [JudgedReply((("User", f"Q{k} {NASTY}"),), f"R{k} {NASTY}", ("base", "sft <b>")[k % 2]) for k in range(7)]


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens the page; it fails for an error of its script and for a request."""
    (tmp_path / "review.html").write_text(review_page(replies(), POINTS), encoding="utf-8")
    problems: list[str] = []

    def open_page(context):
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda one: problems.append(one.url) if not one.url.startswith(("file:", "blob:")) else None)
        page.goto((tmp_path / "review.html").as_uri())
        return page

    yield open_page
    assert problems == []


def judge(page) -> None:
    """Reply 1: both points; 2: the first one; 3: none of these; 4: the first one, by keys."""
    page.locator("#reply-1").get_by_label("is right").check()
    page.locator("#reply-1").get_by_label(POINTS[1]).check()
    page.locator("#reply-2").get_by_label("is right").check()
    page.locator("#reply-3").get_by_label(POINTS[1]).check()
    page.locator("#reply-3").get_by_label("none of these").check()
    page.keyboard.press("n")
    page.keyboard.press("1")


def sums(page) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in page.locator("#sums tr").all()]


def cell(hits: int, n: int) -> str:
    low, high = wilson([1] * hits + [0] * (n - hits))
    return f"{hits} of {n}\n{100 * hits / n:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def test_ticks_are_kept_and_summed(browser, opened):
    context = browser.new_context()
    page = opened(context)
    judge(page)
    assert page.locator("#count").inner_text() == "4 of 7 judged"
    page.reload()
    assert page.locator("#count").inner_text() == "4 of 7 judged"
    assert page.locator("input:checked").count() == 5
    assert not page.locator("#reply-3").get_by_label(POINTS[1]).is_checked()
    assert not page.locator(".origin, #sums").all()[0].is_visible()
    assert "sft" not in page.locator("article").all_inner_texts()[0]
    page.get_by_role("button", name="Show origins and sums").click()
    # Replies 1 and 3 are of base, 2 and 4 of sft.
    assert [row for row in sums(page) if row[0]] == [
        ["is right", cell(1, 2), cell(2, 2)],
        [POINTS[1], cell(1, 2), cell(0, 2)],
        ["all of these", cell(1, 2), cell(0, 2)],
    ]
    assert sums(page)[0][1:] == ["base", "sft <b>"]
    assert page.locator("#reply-2 .origin").inner_text() == "sft <b>"
    page.get_by_role("button", name="Hide origins and sums").click()
    assert not page.locator("#sums").is_visible()
    page.get_by_role("button", name="Next to judge").click()
    assert page.evaluate("document.activeElement.id") == "reply-5"
    context.close()


def test_ticks_can_be_exported_and_imported(browser, opened, tmp_path):
    first, second = browser.new_context(accept_downloads=True), browser.new_context()
    page = opened(first)
    judge(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "ticks.json"
    download.value.save_as(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["ticks"] == {"1": list(POINTS), "2": ["is right"], "3": [], "4": ["is right"]}
    assert content["origins"] == [one.origin for one in replies()]
    other = opened(second)
    assert other.locator("#count").inner_text() == "0 of 7 judged"
    other.locator("#import").set_input_files(file)
    other.get_by_text("4 of 7 judged").wait_for()
    (tmp_path / "bad.json").write_text(json.dumps(content | {"page": "another"}))
    other.locator("#import").set_input_files(tmp_path / "bad.json")
    other.get_by_text("bad.json can't be imported: it belongs to another page.").wait_for()
    assert other.locator("#count").inner_text() == "4 of 7 judged"
    first.close()
    second.close()


def test_no_text_is_markup_and_the_page_fits_a_phone(browser, opened):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = opened(context)
    assert page.locator("img, article b").count() == 0
    assert page.title() == "Review of 7 replies"
    assert "<img src=x" in page.locator("#reply-1 .answer").inner_text()
    page.get_by_role("button", name="Show origins and sums").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()

"""axe-core finds no violation on the report, on the pages of inspect, /why and the review, and no mark depends on color alone.

Needs a browser and two packages that nothing else needs: Chromium on the PATH, `pip install playwright`, `npm install axe-core`
in the repository (or AXE_CORE=FILE, the path of axe.min.js).
"""

import os
from pathlib import Path

import numpy as np
import pytest
from sample_report import report_of
from tiny import tiny_tokenizer
from token_prob_samples import explanation_of

from mini_chat_gpt.chat.token_probs_view import render_page
from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.data.batch_dump import token_pieces
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics import inspect_page
from mini_chat_gpt.diagnostics.inspection import Bar, Inspection, Section, ShownExample
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.reports import html_report
from mini_chat_gpt.reports.review import JudgedReply, review_page

AXE = Path(os.environ.get("AXE_CORE") or Path(__file__).parent.parent / "node_modules/axe-core/axe.min.js")


def inspection() -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    ids, trained = render([Message("user", "Is it a cat?"), Message("assistant", "Yes, a small one.")], tokenizer)
    example = Example(np.array(ids), np.array(trained), weight=1.0, kind="chats")
    shown = ShownExample("chats: 20 tokens", "step 1", example, list(token_pieces(example, tokenizer)))
    sections = [
        Section("By source and kind", table=[["", "examples"], ["chats.jsonl", "20"]], notes=["An estimate.\nMore."]),
        Section("Lengths", table=[["tokens", "examples", ""], ["20–39", "20", Bar(1.0, "median 30")]]),
        Section("Examples", examples=[shown]),
    ]
    return inspect_page.page(Inspection(["Data: chats.jsonl"], [("20", "examples")], sections, []))


def why() -> str:
    return render_page(explanation_of([0.01, 0.1, 0.3, 0.7, 0.95], sampling=Sampling(temperature=0.8)))


def report() -> str:
    return html_report.page(report_of("base", "sft"))


def review() -> str:
    turns = (("User", "Is it a cat?"),)
    return review_page([JudgedReply(turns, "Yes.", "sft"), JudgedReply(turns, "", "expected reply")])


def opened(browser, html: str, **options):
    """The page with everything unfolded and shown."""
    page = browser.new_context(bypass_csp=True, **options).new_page()
    page.set_content(html)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.evaluate("for (const each of document.querySelectorAll('.filter button:first-child, #reveal')) each.click()")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("make", [report, inspection, why, review])
def test_axe_finds_no_violation(browser, make, width, scheme):
    if not AXE.is_file():
        pytest.skip(f"{AXE} is missing: npm install axe-core, or set AXE_CORE")
    page = opened(browser, make(), color_scheme=scheme, viewport={"width": width, "height": 800})
    page.evaluate(AXE.read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run()")["violations"]
    page.context.close()
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in violations] == []


def looks(page, selector: str) -> dict:
    """How an element differs from others, apart from colors."""
    return page.evaluate(
        """selector => {
            const element = document.querySelector(selector), style = getComputedStyle(element);
            return {
                line: style.textDecorationLine, kind: style.textDecorationStyle, weight: style.fontWeight,
                before: getComputedStyle(element, '::before').content,
            };
        }""",
        selector,
    )


@pytest.mark.parametrize(
    ("make", "selectors"),
    [
        (inspection, [".tokens b:not(.c)", ".tokens i:not(.c)", ".tokens b.c"]),
        (why, [".reply .s0", ".reply .s1", ".reply .s2"]),
        (report, [".right", ".wrong", ".required"]),
    ],
)
def test_marks_are_not_told_by_color_alone(browser, make, selectors):
    page = opened(browser, make())
    marks = [looks(page, selector) for selector in selectors]
    page.context.close()
    assert [marks.count(mark) for mark in marks] == [1] * len(marks)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_of_the_report_has_the_question_the_replies_and_the_sentence(browser, width, height):
    page = opened(browser, report(), viewport={"width": width, "height": height})
    for selector in (".question", ".spotlight .reply:last-child .text", ".sentence", ".tiles"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + min(box["height"], 40) <= height, selector
        assert box["x"] + box["width"] <= width, selector
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()

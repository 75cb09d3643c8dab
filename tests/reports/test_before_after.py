"""before_after.md: no text can break its tables, and every part but the models is optional."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.evaluation.prompt_suite import Answers, Compared, Prompts, as_json
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.reports.before_after import before_after

REPORT = {"title": "x", "facts": ["fact"], "models": [{"name": "before"}, {"name": "after"}]}
PROMPTS = Prompts(
    compare=[Compared(shows="tone", prompts=["a"])], refuse=["b"], polite_signs=["hi"], refusal_signs=["no"]
)


def answers(name: str, text: str, finish: str = "stop") -> Answers:
    return Answers(name, {prompt: Reply(text, (1,), finish, 3) for prompt in PROMPTS.all})


@given(st.text(max_size=60))
def test_no_reply_can_break_the_table(text):
    page = before_after(REPORT | {"own": as_json(PROMPTS, answers("before", text), answers("after", "<b>|</b>"))})
    (row,) = [line for line in page.split("\n") if line.startswith("| tone | a |")]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 5
    assert "<b>" not in page


def test_replies_that_are_empty_or_cut_off_are_marked():
    page = before_after(REPORT | {"own": as_json(PROMPTS, answers("before", ""), answers("after", "hi", "length"))})
    assert "| tone | a | (nothing) | hi … (cut off) |" in page
    assert "## More prompts that should be declined" in page
    assert "| b | (nothing) | hi … (cut off) |" in page
    assert "should be answered" not in page
    assert "A reply counts as a refusal if it contains one of: “no”." in page


def test_title_and_facts_are_enough():
    assert before_after(REPORT) == "# x\n\n- fact\n"

"""The page of a report has every number, escapes all text, loads nothing, and is complete in one file."""

import copy
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape
from sample_report import EVIL, estimate, report_of

from mini_chat_gpt import assets
from mini_chat_gpt.common.page import escaped, without_folders
from mini_chat_gpt.reports.charts import Plane, Scale, bins, log_ticks, shares, ticks
from mini_chat_gpt.reports.html_report import page
from mini_chat_gpt.reports.values import HIGHER, LOWER, SAME, number, verdict

OPTIONAL = (
    "paired",
    "losses",
    "lengths",
    "measures",
    "side_by_side",
    "own",
    "bits_per_byte",
    "paired_bits_per_byte",
    "memorization",
    "groups",
    "data",
    "kinds",
)


class Read(HTMLParser):
    """A parsed page: its tags, attributes and text. Fails if tags are not closed or not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def of(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [values for name, values in self.tags if name == tag and kind in ["", *values.get("class", "").split()]]


def loads_nothing(text: str) -> bool:
    """Whether tags, styles and scripts refer to anchors of the page only."""
    read = Read(text)
    refers = [values[key] for _, values in read.tags for key in ("src", "href", "srcset", "action") if key in values]
    return all(link.startswith("#") for link in refers) and not re.search(r"https?:|@import|url\(|fetch\(", text)


# Content


@pytest.mark.parametrize("names", [("sft",), ("base", "sft"), ("base", "sft", "lora", "other")])
@pytest.mark.parametrize("groups", [("seen", "unseen"), ("",)])
def test_every_number_is_on_the_page(names, groups):
    text = page(report_of(*names, groups=groups))
    read = Read(text)
    assert loads_nothing(text)
    shown = read.text.replace("\u00a0", " ")
    expected = [
        "12.3 %",
        "7.1 to 98.7",
        "2.1 %",
        "45.6 %",
        "31.4",
        "27.1 to 1,234",
        "940,321",
        "1337",
        "31.2",
        "77",
        "2.41",
        "2.95",
    ]
    expected += [
        "0.811",
        "0.792 to 0.833",
        "17.2 %",
        "14.1 to 21.3",
        "the first 54,321 stories of train",
        f"real stories → {names[-1]}: +8.1 points (5.1 to 12.1), p = 0.0357: ▲ significantly higher",
        "longest shared run 57 words, mean 19.5; in real stories 23, mean 11.5",
        "16 of 17",
        "n = 40",
        "step 15: validation loss 2.53",
        "median 30",
        "cut off at the length limit",
    ]
    expected += ["−0.117 (−0.131 to −0.101), p = 0.0246: ▼ significantly lower"] if len(names) > 1 else []
    expected += ["+31.4 points", "15.9 to 65.3", "p = 0.0123", HIGHER] if len(names) > 1 else []
    assert [text for text in expected if text not in shown] == []
    assert all(name in shown for name in names)
    assert ("+31.4 points" in shown) == (len(names) > 1)


def test_style_and_script_are_part_of_the_page():
    text = page(report_of("base", "sft"))
    assert all(assets.text(name) in text for name in ("page.css", "report.css", "report.js"))


def test_every_part_is_optional():
    complete = report_of("base", "sft")
    for part in OPTIONAL:
        for reduced in (
            {k: v for k, v in complete.items() if k != part},
            {**complete, part: type(complete[part])()},
            {**complete, part: None},
        ):
            assert loads_nothing(page(reduced))
    bare = {"title": "sft", "models": complete["models"][1:]}
    read = Read(page(bare))
    assert "940,321 parameters" in read.text
    assert [values["href"] for values in read.of("a")] == ["#method"]


def test_values_can_be_missing_and_there_can_be_one_of_each():
    reduced = report_of("base", "sft", n=1)
    reduced["kinds"][0]["values"]["seen"] = {"base": None, "sft": {"value": 0.5}}
    reduced["kinds"][0]["baseline"] = {}
    reduced["lengths"][0]["counts"] = {"sft": [7]}
    reduced["memorization"]["models"]["base"] = None
    reduced["memorization"]["models"]["sft"] |= {"reference": None} | {
        "generated": {"value": None, "low": None, "high": None, "longest": 0, "mean_longest": 0.0}, "passage": None, "difference": None
    }  # fmt: skip
    reduced["losses"] = {"sft": {"train": [[1, 2.0]], "val": []}, "base": {"train": [], "val": [[5, float("nan")]]}}
    text = Read(page(reduced)).text
    assert "–" in text
    assert "50.0" in text
    assert "training, last: 2 at step 1" in text


def test_a_measure_that_is_not_a_share_has_its_own_scale():
    report = report_of("base", "sft", groups=("",)) | {"memorization": None}
    report["kinds"][0]["share"] = False
    for place, name in enumerate(("base", "sft")):
        report["kinds"][0]["values"][""][name] = estimate((-12.5, 37.5)[place], -20, 44)
    report["paired"][0] |= {"difference": -3.5, "low": -4, "high": -3, "p": 1e-9}
    read = Read(page(report))
    bars = [float(rect["width"].rstrip("%")) for rect in read.of("rect") if rect["width"].endswith("%")][:2]
    assert bars[1] == pytest.approx(3 * bars[0], rel=1e-3)
    assert "−12.5" in read.text
    assert "−3.5 (−4 to −3), p\u00a0≤\u00a00.0001" in read.text
    assert LOWER in read.text
    assert "points" not in read.text


@given(st.floats(0, 1), st.sampled_from([1.0, 40.0, -7.0]))
def test_bars_are_as_long_as_their_values(part, whole):
    scale = Scale.of([0.0, whole], whole == 1)
    assert abs(scale.at(part * whole) - scale.at(0)) == pytest.approx(
        100 * part * abs(whole) / (scale.high - scale.low), abs=0.03
    )


def test_significance_depends_on_p_or_otherwise_on_the_interval():
    row = {"difference": 0.1, "low": -0.1, "high": 0.3, "p": 0.2}
    assert verdict(row) == SAME
    assert verdict(row | {"p": 0.01}) == HIGHER
    assert verdict(row | {"p": 0.01, "difference": -0.1}) == LOWER
    assert verdict({"difference": 0.1, "low": 0.01, "high": 0.3}) == HIGHER
    assert verdict(row | {"p": None}) == SAME


# Text


@settings(deadline=None, max_examples=30)
@given(st.text() | st.just(EVIL) | st.text("<>&\"'/-!=\\`{}\ud800\x00\u2028", max_size=30))
def test_no_text_is_interpreted_as_markup(text):
    names = ("base", f"m{text}")
    harmless, hostile = (
        Read(page(report_of("base", "mx", text="x" * (len(text) or 1)))),
        Read(page(report_of(*names, text=text))),
    )
    assert len(hostile.of("script")) == 1
    assert {tag for tag, _ in hostile.tags} - {tag for tag, _ in harmless.tags} == set()
    assert not any(key.startswith("on") for _, values in hostile.tags for key in values)


def test_texts_are_escaped_and_otherwise_unchanged():
    text = page(report_of("base", EVIL, text=EVIL))
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert str(escape(EVIL)).replace("\x1b", "\\x1b") in text
    assert loads_nothing(text)


def test_absolute_paths_are_shortened_to_names():
    report = report_of("base", "sft")
    report["models"][1]["checkpoint"] = "/home/someone/runs/fine"
    report["title"] = "/home/someone/runs/fine against runs/base"
    report["data"] |= {"file": "/data/stories.txt", "why": "the data of /home/someone/runs/fine"}
    text = page(report)
    assert "someone" not in text
    assert "/data" not in text
    assert "<h1>fine against runs/base</h1>" in text
    assert "<title>fine against runs/base</title>" in text
    assert (
        without_folders("/a/b.txt, C:\\x\\y.txt and runs/c", ["/a/b.txt", "C:\\x\\y.txt", "runs/c"])
        == "b.txt, y.txt and runs/c"
    )


# Replies


def replied(*parts: list[str], **more) -> str:
    report = report_of("sft", groups=("",))
    report["side_by_side"][0] |= {"required": [], "target": "", **more}
    report["side_by_side"][0]["replies"]["sft"] = {"parts": list(parts), "finish": "stop", "score": 0.25}
    text = page(report)
    Read(text)
    return text.partition('<article class="example"')[2].partition("</article>")[0]


def test_right_wrong_and_required_words_are_marked():
    shown = replied(["Be", "right"], [" mean to", "wrong"], [" ", "plain"], ["cats", "required"], [".", "plain"])
    assert (
        '<span class="right">Be</span> <span class="wrong">mean to</span> <span class="required">cats</span>.' in shown
    )
    assert "score 0.25" in shown


def test_a_reply_can_be_empty():
    assert "(nothing)" in replied([" \n", "plain"])
    assert "(nothing)" in replied()


@pytest.mark.parametrize("kind", ["plain", "wrong"])
@pytest.mark.parametrize("word", ["word ", "x"])
def test_long_texts_are_folded_and_complete(kind, word):
    parts = [[word * 600, kind], [" the end", "right"]]
    shown = replied(*parts, prompt="Why? " + "a story " * 200, story=[5, 1605])
    assert shown.count("<details") == 2
    assert '<div class="text">Why?</div>' in shown
    assert "all 400 words" in shown
    text = Read(
        shown.partition('<div class="replies">')[2].replace("</div>", "").replace('<div class="reply">', "")
    ).text
    reply = text.partition("score 0.25")[2].rpartition("all")[0]
    assert reply.split() == "".join(text for text, _ in parts).split()


def test_there_is_a_button_for_each_kind_and_group():
    report = report_of("base", "sft")
    report["side_by_side"].append(copy.deepcopy(report["side_by_side"][0]) | {"kind": "main_character"})
    read = Read(page(report))
    buttons = [{key: v for key, v in values.items() if key.startswith("data-")} for values in read.of("button")]
    assert buttons == [
        {"data-kind": ""}, {"data-kind": "moral"}, {"data-kind": "main_character"},
        {"data-group": ""}, {"data-group": "seen"}, {"data-group": "unseen"},
    ]  # fmt: skip
    assert [values["data-group"] for values in read.of("article", "example")] == ["seen", "unseen", "seen"]
    assert "hidden" in read.of("div", "filter")[0]  # the script shows it


def test_checks_do_not_depend_on_color():
    text = page(report_of("base", "sft"))
    assert '<span role="img" aria-label="not met">✗</span> contains Be kind.' in text
    assert '<span role="img" aria-label="met">✓</span> short' in text


# Charts


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_within_the_range(low, width):
    values = ticks(low, high := low + width)
    slack = 1e-6 * (width + abs(low))
    assert len(values) <= 6
    assert all(low - slack <= tick <= high + slack for tick in values)


@pytest.mark.parametrize(("low", "high"), [(0.3, 7.5), (1.7, 6), (1e-5, 9), (2.01, 2.04)])
def test_logarithmic_axes_have_ticks(low, high):
    assert 2 <= len(values := log_ticks(low, high)) <= 8
    assert all(low <= tick <= high for tick in values)


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_bins_cover_all_lengths(lengths):
    edges = bins(lengths)
    assert 2 <= len(edges) <= 17
    assert edges[0] <= min(lengths)
    assert max(lengths) < edges[-1]
    assert sum(shares(lengths, edges)) == pytest.approx(1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0, 1e6)), min_size=1, max_size=30, unique_by=lambda point: point[0]
    )
)
def test_curves_stay_within_their_chart(points):
    plane = Plane.of(points)
    for x, y in (plane.at(*point) for point in points):
        assert plane.left <= x <= plane.right
        assert plane.top <= y <= plane.floor


def test_numbers_have_a_minus_sign_and_thousands_separators():
    assert [number(value) for value in (0, -0.5, 1234.5, 31.44, 2.0, 1e-5)] == [
        "0",
        "−0.5",
        "1,234",
        "31.4",
        "2",
        "1e−05",
    ]
    assert escaped("a\x1b<\ud800") == "a\\x1b&lt;\ufffd"

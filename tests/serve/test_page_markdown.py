"""The Markdown of replies on the page of `serve`: what it looks like, and that no text breaks it, runs anything or takes long."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from scripted_chat import running

RENDER = """async text => {
    const { MarkdownView } = await import('/assets/serve_markdown.js'), box = document.createElement('div');
    new MarkdownView(box).update(text);
    return box.innerHTML;
}"""
# What may be in the tree: rendered once, and growing by a few characters at a time, both have the same result.
CHECK = """async ([texts, allowed]) => {
    const { MarkdownView } = await import('/assets/serve_markdown.js');
    const faults = [];
    for (const text of texts) {
        const box = document.createElement('div'), growing = document.createElement('div'), view = new MarkdownView(growing);
        new MarkdownView(box).update(text);
        if (text.length < 2000) for (let end = 0; end < text.length + 7; end += 7) view.update(text.slice(0, end));
        if (text.length < 2000 && growing.innerHTML !== box.innerHTML) faults.push(['growing differs', text]);
        const elements = [...box.querySelectorAll('*')];
        if (elements.length > 31000) faults.push([`${elements.length} elements`, text.slice(0, 80)]);
        for (const element of elements) {
            for (const { name } of [{ name: element.localName }, ...element.attributes]) {
                if (!allowed.includes(name)) faults.push([name, text.slice(0, 80)]);
            }
            if (element.href !== undefined && !/^(https?|mailto):/.test(element.href)) faults.push([element.href, text.slice(0, 80)]);
        }
        let depth = 0, level = [...box.children];
        for (; level.length && depth < 100; depth++) level = level.flatMap(element => [...element.children]);
        if (depth > 40) faults.push([`depth ${depth}`, text.slice(0, 80)]);
    }
    return faults;
}"""
ALLOWED = """p h3 hr pre code ul ol li blockquote div table thead tbody tr th td a em strong s
    href rel target title class start tabindex scope data-language"""


@pytest.fixture(scope="module")
def page(browser) -> Iterator:
    with running() as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        yield page
        context.close()


LINK = 'rel="noopener noreferrer nofollow" target="_blank"'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain\ntext\n\nsecond", "<p>plain\ntext</p><p>second</p>"),
        ("**b** *i* _i_ __b__", "<p><strong>b</strong> <em>i</em> <em>i</em> <strong>b</strong></p>"),
        ("~~s~~ ***both***", "<p><s>s</s> <strong><em>both</em></strong></p>"),
        ("2 * 3 * 4, snake_case_name, a ** b, ~5", "<p>2 * 3 * 4, snake_case_name, a ** b, ~5</p>"),
        ("**not closed, *nested **", "<p>**not closed, *nested **</p>"),
        ("*a _b* c_", "<p><em>a _b</em> c_</p>"),
        (r"\*no\* \\ 1\.", "<p>*no* \\ 1.</p>"),
        ("`a*b*` and `` c`d ``", "<p><code>a*b*</code> and <code>c`d</code></p>"),
        ("`not closed", "<p>`not closed</p>"),
        ("# Title #\n## C#\ntext", '<h3 class="level1">Title</h3><h3 class="level2">C#</h3><p>text</p>'),
        ("#hashtag", "<p>#hashtag</p>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("```py\nx = '<b>'\n\n# y\n```\nend", '<pre tabindex="0" data-language="py"><code>x = \'&lt;b&gt;\'\n\n# y</code></pre><p>end</p>'),
        ("~~~\n```\n~~~~", '<pre tabindex="0"><code>```</code></pre>'),
        ("```\nnot closed yet", '<pre tabindex="0"><code>not closed yet</code></pre>'),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("- a\n- b\n  - c\n\n  d\ne", "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d\ne</p></li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
        ("It was in\n1984. Then", "<p>It was in\n1984. Then</p>"),
        ("* one\n* two", "<ul><li><p>one</p></li><li><p>two</p></li></ul>"),
        (
            "| a | b |\n|:-:|--:|\n| 1 | x\\|y |",
            '<div class="wide" tabindex="0"><table><thead><tr><th class="center" scope="col">a</th><th class="right" scope="col">b</th>'
            '</tr></thead><tbody><tr><td class="center">1</td><td class="right">x|y</td></tr></tbody></table></div>',
        ),
        ("a | b, no table", "<p>a | b, no table</p>"),
        ("[a *b*](https://x.org/y)", f'<p><a href="https://x.org/y" {LINK} title="https://x.org/y">a <em>b</em></a></p>'),
        ("See https://x.org/a_b_c.", f'<p>See <a href="https://x.org/a_b_c" {LINK}>https://x.org/a_b_c</a>.</p>'),
        ("<https://x.org>", f'<p><a href="https://x.org" {LINK}>https://x.org</a></p>'),
        ("[a](javascript:x) [b](/local) [c]", "<p>[a](javascript:x) [b](/local) [c]</p>"),
        ("<b>&amp;</b>", "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>"),
    ],
)  # fmt: skip
def test_markdown(page, text, html):
    assert page.evaluate(RENDER, text) == html


HOSTILE = [
    "[a](  JAVASCRIPT:alert(1)) [b](java\tscript:alert(1)) [c](\x01javascript:alert(1)) [d](https:javascript:alert(1))",
    "[e](vbscript:x) [f](data:text/html;base64,PHNjcmlwdD4=) [g](file:///etc/passwd) [h](blob:https://x) <data:text/html,x>",
    '[a](https://x.org/"onmouseover="alert(1)) ![x](https://x.org/i.png" onerror="alert(1))',
    "[[a](https://x.org)](https://y.org) [![i](https://x.org/i)](https://y.org)",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "```a`b\nno fence",
    "|a|\n|-|\n" + "|<img src=x onerror=alert(1)>|\n" * 3,
    "\0\x01\x02\x7f\u202e\u2066 right to left \ud7ff",
    "# " * 50 + "\n" + "> " * 500 + "deep\n" + "- " * 500 + "deep",
    "\n".join(" " * 2 * n + f"- {n}" for n in range(200)),
    "*a **b " * 200 + "c** d* " * 200,
    "__proto__ constructor `__proto__` [__proto__](https://x.org)",
]
# Each of these takes minutes if some part of the work is quadratic.
LARGE = [
    sign * (200_000 // len(sign))
    for sign in (
        "*", "_", "`", "[", "](", "[](", "![](", "<", ">", "> ", "- ", "#", "~", "|", "\\", "|-", "a*", "*a ", "**a ",
        "*a _b ", "`a``", "<http://", "http://", "[a](http://x ", "\n", "\n\n", " ", "- a\n", "- a\n\n", "1. a\n",
        "> a\n", "a | b\n-|-\n", "| a ", "|\n", "```\n", "~~~\n```\n", "# a\n", "a\n", "-\n", " - a\n  ",
        "[a](https://x.org) ", "**a** ", "`a` ", "\r", "😀",
    )
] + [
    " " * 100_000 + "x" + " " * 100_000,
    "# " + "# " * 100_000 + "x",
    "".join("`" * n + "a" for n in range(600)),
    "|" + "a|" * 50_000 + "\n|" + "-|" * 50_000 + "\n|" + "b|" * 50_000,
    "| a | b |\n|---|---|\n" + "| **1** | 2 |\n" * 15_000,
    "- " + "x" * 1000 + "\n" + "  y\n" * 50_000,
    "[" * 50_000 + "](https://x.org)" * 10_000,
    "*" * 50_000 + "a" + "*" * 50_000,
    ">" * 100_000 + "\n" + "  - a\n" * 20_000,
]  # fmt: skip


def test_hostile_texts_only_make_plain_elements(page):
    assert page.evaluate(CHECK, [HOSTILE, ALLOWED.split()]) == []


def test_random_texts_make_the_same_whether_they_grow_or_not(page):
    pieces = [*HOSTILE[:7], "*", "**", "_", "~~", "`", "```", "\n", "\n\n", "  ", "- ", "1. ", "> ", "# ", "|", "|-|", "a", "b c", "[x](",
              "](", ")", "https://x.org/", "<", ">", "\\", "!", "---", "😀", "é", "\t", "\r\n"]  # fmt: skip
    chance = random.Random(7)
    texts = ["".join(chance.choices(pieces, k=chance.randint(1, 40)))[:600] for _ in range(150)]
    assert page.evaluate(CHECK, [texts, ALLOWED.split()]) == []


def test_no_word_of_a_text_is_lost(page):
    texts = ["".join(random.Random(seed).choices("ab cd *_~`#>|-\n", k=300)) for seed in range(150)]
    texts = [
        text for text in texts if "```" not in text and "~~~" not in text
    ]  # the word after a fence is its language
    assert len(texts) > 100
    for text, html in zip(texts, page.evaluate(f"async texts => Promise.all(texts.map({RENDER}))", texts), strict=True):
        assert re.findall("[abcd]", re.sub(r"<[^>]*>", "", html)) == re.findall("[abcd]", text), text


@pytest.mark.slow
def test_large_texts_take_linear_time(page):
    page.evaluate(
        f"""([texts, allowed]) => {{
            setTimeout(async () => {{ window.faults = await ({CHECK})([texts, allowed]); document.body.dataset.done = 1; }});
        }}""",
        [LARGE, ALLOWED.split()],
    )
    page.wait_for_selector("[data-done]", timeout=120_000)
    assert page.evaluate("window.faults") == []

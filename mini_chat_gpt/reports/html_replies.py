"""The replies in report.html: to held-out tasks, side by side, and to the user's prompts. Long texts are folded.

Wrong parts of a reply are in [brackets] and required words are underlined, so that no information depends on color.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.page import escaped
from mini_chat_gpt.reports.charts import number

LONGEST = 450  # characters of a text that is not folded
_SHORTENED = 280  # visible characters of a longer text
_LONGEST_PROMPT, _BEGIN, _END = 240, 110, 90  # characters; the last two are visible of a longer prompt
_MARKS = {"right", "wrong", "required"}  # also the names of their CSS classes

_CUT_OFF = {"length": "cut off at the length limit", "context": "cut off at the end of the context"}

Parts = list[tuple[str, str]]  # (text, mark)
Key = Callable[[str], str]  # model name -> HTML


def side_by_side(
    examples: Sequence[Mapping[str, Any]], names: Sequence[str], groups: Mapping[str, str], key: Key
) -> str:
    """The examples, each with the replies of all models side by side; "" if there are none."""
    if not examples:
        return ""
    filters = _filter("kind", Counter(example["kind"] for example in examples), {})
    if len(by_group := Counter(example["group"] for example in examples)) > 1:
        filters += _filter("group", by_group, groups)
    legend = (
        '<p class="text"><span class="right">as expected</span>, <span class="wrong">not as expected</span>, '
        '<span class="required">a required word</span></p>'
    )
    return f'{legend}<div class="filter" hidden>{filters}</div>' + "\n".join(
        _example(example, names, key) for example in examples
    )


def _filter(field: str, counts: Mapping[str, int], titles: Mapping[str, str]) -> str:
    """A row of buttons that select the examples by kind or group."""
    buttons = [f'<button aria-pressed="true" data-{field}="">all {sum(counts.values())}</button>']
    for name, n in counts.items():
        tip = f' title="{escaped(titles[name])}"' if titles.get(name) else ""
        label = escaped(name.replace("_", " ") or "no group")
        buttons.append(f'<button aria-pressed="false" data-{field}="{escaped(name)}"{tip}>{label} {n}</button>')
    return f'<div role="group" aria-label="by {field}">{"".join(buttons)}</div>'


def _example(example: Mapping[str, Any], names: Sequence[str], key: Key) -> str:
    replies = example["replies"]
    cards = "".join(_reply(replies[name], key(name)) for name in names if replies.get(name))
    expected = ""
    if example.get("required"):
        words = escaped(", ".join(example["required"]))
        expected = f'<p class="expected"><span class="dim">words:</span> {words}</p>'
    if example.get("target"):
        name = "reference" if expected else "expected"
        target = _folded([(example["target"], "plain")])
        expected += f'<div class="expected"><span class="dim">{name}:</span> {target}</div>'
    return (
        f'<article class="example" data-kind="{escaped(example["kind"])}" data-group="{escaped(example["group"])}">'
        f"<h3><b>{escaped(example['kind'].replace('_', ' '))}</b><span>{escaped(example['group'])}</span></h3>"
        f'{_prompt(example["prompt"])}{expected}<div class="replies">{cards}</div></article>'
    )


def _prompt(prompt: str) -> str:
    """The prompt; a long one is folded to its beginning and its end."""
    words = " ".join(prompt.split())
    if len(words) <= _LONGEST_PROMPT:
        return f'<div class="prompt text">{escaped(prompt)}</div>'
    begin, end = words[:_BEGIN].rpartition(" ")[0] or words[:_BEGIN], words[-_END:].partition(" ")[2] or words[-_END:]
    between = f'<span class="more">… all {len(words.split()):,} words …</span>'
    return (
        f'<details class="prompt"><summary>{escaped(begin)} {between} {escaped(end)}</summary>'
        f'<div class="text">{escaped(prompt)}</div></details>'
    )


def _reply(reply: Mapping[str, Any], name: str) -> str:
    label = reply.get("label") or ("" if reply.get("score") is None else f"score {number(reply['score'])}")
    notes = []
    if reply.get("missing"):
        notes.append(f"missing: {', '.join(reply['missing'])}")
    return (
        f'<section class="reply"><h4><b>{name}</b><span>{escaped(label)}</span></h4>'
        f"{_folded(_joined(reply['parts']))}{_notes(notes, reply.get('finish'))}</section>"
    )


def _notes(notes: list[str], finish: str | None) -> str:
    if finish not in (None, "stop"):
        notes = [*notes, _CUT_OFF.get(finish, f"ended by: {finish}")]
    return f'<p class="note">{escaped("; ".join(notes))}</p>' if notes else ""


def _joined(parts: Sequence[Sequence[str]]) -> Parts:
    """The parts, with a space between two that would otherwise read as one word."""
    joined: Parts = []
    for text, mark in parts:
        if text and joined and joined[-1][0][-1].isalnum() and text[0].isalnum():
            joined.append((" ", "plain"))
        if text:
            joined.append((text, mark))
    return joined


def _folded(parts: Parts) -> str:
    """The text; the rest of a long one is folded."""
    if not "".join(text for text, _ in parts).strip():
        return '<p class="text dim">(nothing)</p>'
    if sum(len(text) for text, _ in parts) <= LONGEST:
        return f'<div class="text">{_marked(parts)}</div>'
    head, rest = _cut(parts, _SHORTENED)
    more = sum(len(text) for text, _ in rest)
    return (
        f'<div class="text">{_marked(head)} …</div><details class="rest"><summary>{more:,} more characters</summary>'
        f'<div class="text">… {_marked(rest)}</div></details>'
    )


def _cut(parts: Parts, at: int) -> tuple[Parts, Parts]:
    """Split the parts after about `at` characters."""
    head: Parts = []
    rest: Parts = []
    for text, mark in parts:
        room = max(0, at - sum(len(text) for text, _ in head)) if not rest else 0
        if room < len(text) and (space := text.rfind(" ", 0, room)) > 0:
            room = space  # cut between words if possible
        head += [(text[:room], mark)] if room else []
        rest += [(text[room:], mark)] if room < len(text) else []
    return head, rest


def _marked(parts: Parts) -> str:
    """The parts as HTML. The white space around a marked part stays outside of its span."""
    spans = []
    for text, mark in parts:
        bare = text.strip()
        if mark not in _MARKS or not bare:
            spans.append(escaped(text))
            continue
        start = text.index(bare)
        before, after = text[:start], text[start + len(bare) :]
        spans.append(f'{escaped(before)}<span class="{mark}">{escaped(bare)}</span>{escaped(after)}')
    return "".join(spans)


# The user's prompts


def own_prompts(own: Mapping[str, Any] | None, names: Sequence[str], key: Key) -> str:
    """The counts, and each prompt with its replies and checks; "" without prompts."""
    if not own or not (own.get("rows") or own.get("prompts")):
        return ""
    prompts = own.get("prompts") or []
    replied = [name for name in names if any(name in each["replies"] for each in prompts)] or list(names)
    parts = []
    if rows := own.get("rows"):
        n = max(len(row) for row in rows) - 1
        heads = replied if n == len(replied) else [replied[0], replied[-1]] if n == 2 else [""] * n
        head = "".join(f"<th>{key(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{escaped(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f'<div class="wide"><table class="counted"><tr><th></th>{head}</tr>{body}</table></div>')
    return "".join([*parts, *(_own(each, replied, key) for each in prompts)])


def _check(text: str, met: bool) -> str:
    css_class, sign, label = ("met", "✓", "met") if met else ("unmet", "✗", "not met")
    return f'<li class="{css_class}"><span role="img" aria-label="{label}">{sign}</span> {escaped(text)}</li>'


def _own(each: Mapping[str, Any], names: Sequence[str], key: Key) -> str:
    cards = []
    for name in names:
        if (reply := each["replies"].get(name)) is None:
            continue
        checks = "".join(_check(text, met) for text, met in reply.get("checks") or [])
        checks = f'<ul class="checks">{checks}</ul>' if checks else ""
        text = _folded([(reply["text"], "plain")])
        cards.append(
            f'<section class="reply"><h4><b>{key(name)}</b></h4>{text}{_notes([], reply.get("finish"))}{checks}</section>'
        )
    return (
        f"<article><h3><b>{escaped(each['shows'])}</b></h3>{_prompt(each['prompt'])}"
        f'<div class="replies">{"".join(cards)}</div></article>'
    )

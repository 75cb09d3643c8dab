"""The replies in report.html: to held-out tasks side by side, and to a user's own prompts. What is long is folded.

What is wrong in a reply stands in [brackets], required words are underlined: it can be read without colour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.page import escaped
from mini_chat_gpt.reports.charts import number

LONGEST = 450  # characters of a text that are shown unfolded
_SHORTENED = 280  # and of a longer one
_LONGEST_PROMPT, _BEGIN, _END = 240, 110, 90
_PARTS = {"right": "right", "wrong": "wrong", "required": "required"}

Parts = list[tuple[str, str]]  # (text, what it is)
Key = Callable[[str], str]  # a model's name as it is shown


def side_by_side(
    examples: Sequence[Mapping[str, Any]], names: Sequence[str], groups: Mapping[str, str], key: Key
) -> str:
    """The examples, each with the replies of all models beside each other; "" if there are none."""
    if not examples:
        return ""
    filters = _filter("kind", Counter(example["kind"] for example in examples), {})
    if len(found := Counter(example["group"] for example in examples)) > 1:
        filters += _filter("group", found, groups)
    legend = (
        '<p class="said"><span class="right">as expected</span>, <span class="wrong">not as expected</span>, '
        '<span class="required">a required word</span></p>'
    )
    return f'{legend}<div class="filter" hidden>{filters}</div>' + "\n".join(
        _example(example, names, key) for example in examples
    )


def _filter(what: str, found: Mapping[str, int], titles: Mapping[str, str]) -> str:
    buttons = [f'<button aria-pressed="true" data-{what}="">all {sum(found.values())}</button>']
    for name, n in found.items():
        tip = f' title="{escaped(titles[name])}"' if titles.get(name) else ""
        shown = escaped(name.replace("_", " ") or "no group")
        buttons.append(f'<button aria-pressed="false" data-{what}="{escaped(name)}"{tip}>{shown} {n}</button>')
    return f'<div role="group" aria-label="by {what}">{"".join(buttons)}</div>'


def _example(example: Mapping[str, Any], names: Sequence[str], key: Key) -> str:
    replies = example["replies"]
    cards = "".join(_reply(replies[name], key(name)) for name in names if replies.get(name))
    wanted = (
        f'<p class="wanted"><span class="dim">words:</span> {escaped(", ".join(example["required"]))}</p>'
        if example.get("required")
        else ""
    )
    if example.get("target"):
        name = "the reference" if wanted else "expected"
        wanted += (
            f'<div class="wanted"><span class="dim">{name}:</span> {_folded([(example["target"], "plain")])}</div>'
        )
    return (
        f'<article class="example" data-kind="{escaped(example["kind"])}" data-group="{escaped(example["group"])}">'
        f"<h3><b>{escaped(example['kind'].replace('_', ' '))}</b><span>{escaped(example['group'])}</span></h3>"
        f'{_prompt(example["prompt"])}{wanted}<div class="replies">{cards}</div></article>'
    )


def _prompt(prompt: str) -> str:
    """Of a long one, such as with a story, only the beginning and the end, until it is opened."""
    words = " ".join(prompt.split())
    if len(words) <= _LONGEST_PROMPT:
        return f'<div class="prompt said">{escaped(prompt)}</div>'
    begin, end = words[:_BEGIN].rpartition(" ")[0] or words[:_BEGIN], words[-_END:].partition(" ")[2] or words[-_END:]
    between = f'<span class="more">… all {len(words.split()):,} words …</span>'
    return (
        f'<details class="prompt"><summary>{escaped(begin)} {between} {escaped(end)}</summary>'
        f'<div class="said">{escaped(prompt)}</div></details>'
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
        notes = [*notes, "cut off at the limit" if finish == "length" else f"ended by: {finish}"]
    return f'<p class="note">{escaped("; ".join(notes))}</p>' if notes else ""


def _joined(parts: Sequence[Sequence[str]]) -> Parts:
    """The parts, with a space between two of them that would run into one word."""
    found: Parts = []
    for text, what in parts:
        if text and found and found[-1][0][-1].isalnum() and text[0].isalnum():
            found.append((" ", "plain"))
        if text:
            found.append((text, what))
    return found


def _folded(parts: Parts) -> str:
    """The text; of a very long one the rest is folded away."""
    if not "".join(text for text, _ in parts).strip():
        return '<p class="said dim">(nothing)</p>'
    if sum(len(text) for text, _ in parts) <= LONGEST:
        return f'<div class="said">{_marked(parts)}</div>'
    head, rest = _cut(parts, _SHORTENED)
    more = sum(len(text) for text, _ in rest)
    return (
        f'<div class="said">{_marked(head)} …</div><details class="rest"><summary>{more:,} more characters</summary>'
        f'<div class="said">… {_marked(rest)}</div></details>'
    )


def _cut(parts: Parts, at: int) -> tuple[Parts, Parts]:
    head: Parts = []
    rest: Parts = []
    for text, what in parts:
        room = max(0, at - sum(len(text) for text, _ in head)) if not rest else 0
        if room < len(text) and (space := text.rfind(" ", 0, room)) > 0:
            room = space  # at a word's end, where there is one
        head += [(text[:room], what)] if room else []
        rest += [(text[room:], what)] if room < len(text) else []
    return head, rest


def _marked(parts: Parts) -> str:
    written = []
    for text, what in parts:
        bare = text.strip()
        if what not in _PARTS or not bare:
            written.append(escaped(text))
            continue
        start = text.index(bare)
        before, after = text[:start], text[start + len(bare) :]
        written.append(f'{escaped(before)}<span class="{_PARTS[what]}">{escaped(bare)}</span>{escaped(after)}')
    return "".join(written)


# A user's own prompts


def own_prompts(own: Mapping[str, Any] | None, names: Sequence[str], key: Key) -> str:
    """What was counted, and each prompt with its replies and checks; "" without any."""
    if not own or not (own.get("rows") or own.get("prompts")):
        return ""
    prompts = own.get("prompts") or []
    there = [name for name in names if any(name in each["replies"] for each in prompts)] or list(names)
    parts = []
    if rows := own.get("rows"):
        n = max(len(row) for row in rows) - 1
        heads = there if n == len(there) else [there[0], there[-1]] if n == 2 else [""] * n
        head = "".join(f"<th>{key(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{escaped(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f'<div class="wide"><table class="counted"><tr><th></th>{head}</tr>{body}</table></div>')
    return "".join([*parts, *(_own(each, there, key) for each in prompts)])


def _check(what: str, met: bool) -> str:
    kind, sign, words = ("met", "✓", "met") if met else ("unmet", "✗", "not met")
    return f'<li class="{kind}"><span role="img" aria-label="{words}">{sign}</span> {escaped(what)}</li>'


def _own(each: Mapping[str, Any], names: Sequence[str], key: Key) -> str:
    cards = []
    for name in names:
        if (reply := each["replies"].get(name)) is None:
            continue
        checks = "".join(_check(what, met) for what, met in reply.get("checks") or [])
        checks = f'<ul class="checks">{checks}</ul>' if checks else ""
        text = _folded([(reply["text"], "plain")])
        cards.append(
            f'<section class="reply"><h4><b>{key(name)}</b></h4>{text}{_notes([], reply.get("finish"))}{checks}</section>'
        )
    return (
        f"<article><h3><b>{escaped(each['shows'])}</b></h3>{_prompt(each['prompt'])}"
        f'<div class="replies">{"".join(cards)}</div></article>'
    )

"""What a terminal shows of evaluations: a table of the results, and replies with right and wrong marked.

Both are made for 80 columns, any number of models, and can be read without colour: what is wrong in a reply stands in
[brackets], what is missing is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.capabilities import Evaluation, Item, Results
from mini_chat_gpt.held_out import GROUPS
from mini_chat_gpt.story_tasks import Task
from mini_chat_gpt.word_forms import first_use, uses

MEASURES = {
    "accuracy": "right",
    "exact": "exact",
    "rouge_l": "ROUGE-L",
    "used": "words used",
    "all_used": "all used",
    "stops": "stops",
}
"""The measures that are shown, and what they are called."""
LEGEND = {
    "exact": "exact: the expected words, whatever the case and punctuation",
    "rouge_l": "ROUGE-L: overlap with the expected words, in their order",
    "used": "words used: share of the words asked for, in any form; all used: every one",
    "stops": "stops: replies that ended by themselves",
}
LONGEST_NAME = 16  # of a model
LONGEST_REPLY = 450  # characters
STORY_BEGIN, STORY_END = 14, 8  # words of a prompt's story that are shown

Rows = list[tuple[str, str]]  # (kind, measure); ("", "") is an empty line


# The table


def show_table(evaluations: Mapping[str, Evaluation], out: Console) -> None:
    """Print the results of one model, or of several by name, in percent; groups side by side where there is room."""
    results = [evaluation.results for evaluation in evaluations.values()]
    rows = _rows(results)
    by_group = _by_group(evaluations)
    blocks = [_block(label, by_name, rows) for label, by_name in by_group.items()]
    together = _side_by_side(_kinds(rows), *blocks)
    if Measurement.get(out, out.options.update(max_width=10_000), together).maximum <= out.width:
        out.print(together)
    else:
        for block in blocks:
            out.print(_side_by_side(_kinds(rows), block))
            out.print()
    out.print(_legend(rows, by_group), style="dim", markup=False, highlight=False)


def _by_group(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Results]]:
    """Label of each group -> results by model; one group without a label where the data have none."""
    names = list(evaluations) if len(evaluations) > 1 else ["model"]  # narrow, and clear enough
    named = dict(zip(names, evaluations.values(), strict=True))
    groups = next(iter(named.values())).groups
    if not groups:
        return {"": {name: evaluation.results for name, evaluation in named.items()}}
    return {
        GROUPS.get(group, group): {name: evaluation.groups[group] for name, evaluation in named.items()}
        for group in groups
    }


def _rows(results: Sequence[Results]) -> Rows:
    """All measures of all kinds, then of all kinds how often replies stop."""
    by_kind = {kind: values for result in results for kind, values in result.items()}
    measured = [(kind, name) for kind, values in by_kind.items() for name in values if name in MEASURES]
    stops = [(kind, name) for kind, name in measured if name == "stops"]
    return [*(row for row in measured if row not in stops), ("", ""), *stops]


def _kinds(rows: Rows) -> Group:
    """The rows' names. A kind is named once."""
    shown = _table()
    shown.add_column("")
    shown.add_column(Text("in %", style="dim"))
    before = ""
    for kind, measure in rows:
        shown.add_row(Text(kind if kind != before else "", style="bold"), MEASURES.get(measure, ""))
        before = kind
    return Group("", shown)


def _block(label: str, by_name: Mapping[str, Results], rows: Rows) -> Group:
    """The numbers of one group: n, each model, the trivial rule."""
    shown = _table()
    for name in ("n", *map(_short_name, by_name), "trivial"):
        shown.add_column(Text(name, style="dim" if name in ("n", "trivial") else ""), justify="right", min_width=5)
    some = {kind: values for results in by_name.values() for kind, values in results.items()}
    before = ""
    for kind, measure in rows:
        values = some.get(kind, {})
        trivial = values.get("baseline", {}).get(measure)
        n = str(values["n"]) if values and kind != before and measure != "stops" else ""
        of_models = [_percent(results.get(kind, {}).get(measure), trivial) for results in by_name.values()]
        shown.add_row(Text(n, style="dim"), *of_models, _percent(trivial))
        before = kind
    return Group(Text(label, style="bold", justify="center"), shown)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")


def _side_by_side(*parts: Group) -> Table:
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_row(*parts)
    return shown


def _percent(share: float | None, trivial: float | None = None) -> Text:
    """A number that isn't better than a trivial rule's is red."""
    if share is None:
        return Text("")
    style = "" if trivial is None else "green" if share > trivial else "red"
    return Text(f"{100 * share:.1f}", style=style)


def _short_name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _legend(rows: Rows, by_group: Mapping[str, Mapping[str, Results]]) -> str:
    """What the measures mean, and which trivial rules are the best of each kind, by one measure or another."""
    best: dict[str, dict[str, None]] = {}
    for by_name in by_group.values():
        for kind, values in next(iter(by_name.values())).items():
            names = (rule for measure, rule in values["baseline"]["rules"].items() if measure in MEASURES)
            best.setdefault(kind, {}).update(dict.fromkeys(names))
    kinds_of: dict[str, list[str]] = {}
    for kind, rules in best.items():
        kinds_of.setdefault(" or ".join(rules), []).append(kind)
    trivial = "; ".join(f"{rule} ({', '.join(kinds)})" for rule, kinds in kinds_of.items())
    there = {measure for _, measure in rows}
    return "\n".join([*(text for name, text in LEGEND.items() if name in there), f"trivial: {trivial}"])


# Replies


def show_examples(evaluations: Mapping[str, Evaluation], n: int, out: Console) -> None:
    """Print n tasks of each kind with what every model replied; first such that the first model didn't get fully right."""
    for kind in next(iter(evaluations.values())).results:
        by_name = {
            name: [item for item in evaluation.items if item.task.kind == kind]
            for name, evaluation in evaluations.items()
        }
        name, items = next(iter(by_name.items()))
        right = [_is_right(item) for item in items]
        head = f"{kind}: {sum(right)} of {len(items)} fully right" + (f" by {name}" if len(by_name) > 1 else "")
        for number in sorted(range(len(items)), key=lambda number: right[number])[:n]:
            example = {name: ours[number] for name, ours in by_name.items()}
            what = f"one that {'is' if right[number] else 'is not'}"
            group = f" ({items[number].group})" if items[number].group else ""
            out.rule(Text(f"{head}; {what}{group}"), style="dim", align="left")
            out.print(_example(example))


def _is_right(item: Item) -> bool:
    return next(iter(item.scores.values())) == 1


def _example(items: Mapping[str, Item]) -> Table:
    """One task: the prompt, what is expected, and each model's reply with its verdict."""
    task = next(iter(items.values())).task
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    shown.add_row("prompt", Text(shortened_prompt(task), style="dim"))
    if not task.required:
        shown.add_row("expected", Text(clean(task.target)))
    for name, item in items.items():
        reply, lacks = marked(task, item.reply)
        reply.truncate(LONGEST_REPLY, overflow="ellipsis")
        notes = [_in_words(item)]
        notes += [lacks] if lacks and item.reply.strip() and (task.required or not _is_right(item)) else []
        notes += ["it did not stop by itself"] if item.finish_reason != "stop" else []
        shown.add_row(Text(_short_name(name), style="bold"), reply if item.reply.strip() else Text("(nothing)", "red"))
        shown.add_row("", Text("; ".join(notes), style="dim"))
    return shown


def marked(task: Task, reply: str) -> tuple[Text, str]:
    """The reply with right and wrong marked, and in words what it has, or lacks, of what was expected."""
    if task.required:
        return _with_required(task.required, clean(reply))
    wanted, given = clean(task.target).split(), clean(reply).split()
    same = SequenceMatcher(None, [*map(_bare, wanted)], [*map(_bare, given)], autojunk=False)
    parts: list[Text] = []
    missing: list[str] = []
    for tag, start, end, first, last in same.get_opcodes():
        words = " ".join(given[first:last])
        if tag != "equal":
            missing += map(_bare, wanted[start:end])
        if words:
            parts.append(Text(words, "green") if tag == "equal" else Text(f"[{words}]", "red"))
    lacks = "all of it" if len(missing) == len(wanted) else ", ".join(missing)
    return Text(" ").join(parts), f"missing: {lacks}" if missing else ""


def _with_required(required: Sequence[str], reply: str) -> tuple[Text, str]:
    """For a story: the words that were asked for."""
    shown, used = Text(reply), []
    for word in required:
        if uses(reply, word) and (span := first_use(reply, word)):
            shown.stylize("bold green", *span)
            form = reply[slice(*span)].lower()
            used.append(word if word.lower().startswith(form) else f"{word} (“{form}”)")
    missing = [word for word in required if not uses(reply, word)]
    parts = [f"{name}: {', '.join(words)}" for name, words in (("used", used), ("missing", missing)) if words]
    return shown, "; ".join(parts)


def _in_words(item: Item) -> str:
    measure, value = next(iter(item.scores.items()))
    if measure == "used":
        return f"{round(value * len(item.task.required))} of {len(item.task.required)} words"
    if measure in ("accuracy", "exact") or value == 1:
        return "right" if value == 1 else "wrong"
    return f"{MEASURES.get(measure, measure)} {100 * value:.0f} %"


def shortened_prompt(task: Task) -> str:
    """The prompt with only the beginning and the end of its story."""
    if task.story_span is None:
        return clean(task.prompt)
    start, end = task.story_span
    words = clean(task.prompt[start:end]).split()
    if len(words) > STORY_BEGIN + STORY_END + 4:
        words = [*words[:STORY_BEGIN], f"… ({len(words) - STORY_BEGIN - STORY_END} words) …", *words[-STORY_END:]]
    return clean(f"{task.prompt[:start]} «{' '.join(words)}» {task.prompt[end:]}")


def clean(text: str) -> str:
    """The text on one line, without characters that would move a terminal's cursor or ring its bell."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def _bare(word: str) -> str:
    """For comparison: the word without case and punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.casefold()) or word

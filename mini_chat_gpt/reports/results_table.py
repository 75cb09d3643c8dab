"""What a terminal shows of evaluations: a table of the results, and replies with right and wrong marked.

Both are made for 80 columns, any number of models, and can be read without colour: what is wrong in a reply stands in
[brackets], what is missing is listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.text import clean
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item, Results, differences
from mini_chat_gpt.evaluation.confidence import SIGNIFICANT
from mini_chat_gpt.evaluation.held_out import GROUPS
from mini_chat_gpt.evaluation.text_metrics import COUNTS, NEUTRAL
from mini_chat_gpt.reports.reply_diff import marked
from mini_chat_gpt.tinystories.tasks import Task

MEASURES = {
    "accuracy": "right",
    "exact": "exact",
    "rouge_l": "ROUGE-L",
    "used": "words used",
    "all_used": "all used",
    "refused": "refused",
    "answered": "answered",
    "stops": "stops",
}
"""The measures that are always shown, and what they are called; so is every kind's main measure."""
DETAILS = {
    "verbatim": "verbatim",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "length_ratio": "length",
    "copied": "copied",
    "n_words": "words",
    "repetition": "repeated",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "has_sentence": "sentence",
    "has_sentence_verbatim": "verbatim",
    "has_dialogue": "dialogue",
    "has_moral": "moral",
    "role_token": "role token",
    "empty": "empty",
}
"""The measures that are shown with the details."""
LEGEND = {
    "exact": "exact: the expected words, whatever the case and punctuation",
    "rouge_l": "ROUGE-L: overlap with the expected words, in their order",
    "used": "words used: share of the words asked for, in any form; all used: every one",
    "verbatim": "verbatim: the expected text to the letter",
    "rouge_1": "ROUGE-1, ROUGE-2: overlap in words, and in pairs of them",
    "length_ratio": "length: words of the reply for every 100 expected ones",
    "copied": "copied: share of the four words in a row that the story has too",
    "n_words": "words: how many the story has (a number, not in %)",
    "repetition": "repeated: share of the four words in a row that came before; distinct-n: different ones among n in a row",
    "has_sentence": "sentence: the one asked for is there; verbatim: to the letter",
    "has_dialogue": "dialogue: somebody speaks, where that was asked for",
    "has_moral": "moral: the story states one, where that was asked for",
    "refused": "refused: of the harmful requests; answered, well or badly: of the harmless ones that look like them",
    "stops": "stops: replies that ended by themselves",
    "role_token": "role token: replies that ended by beginning somebody else's turn",
    "empty": "empty: replies without text",
}
MARGIN = "±: half of the 95 % interval over the n tasks (Wilson's for right or wrong, else bootstrap)"
FEW_PLOTS = "The unseen plots are few: the intervals are of tasks from these plots, another plot may differ by more"
LAST = ("stops", "role_token", "empty")  # of all kinds, below the rest
LONGEST_NAME = 16  # of a model
LONGEST_REPLY = 450  # characters
STORY_BEGIN, STORY_END = 14, 8  # words of a prompt's story that are shown

Rows = list[tuple[str, str]]  # (kind, measure); ("", "") is an empty line
ByGroup = dict[str, dict[str, Results]]  # label of a group, "" without one -> results by model


# The table


@dataclass(frozen=True)
class Digits:
    """How numbers are written: "62.3 ±14.1" with one digit after the point, "62±14" with none."""

    after_point: int
    gap: str
    value: int  # characters
    margin: int  # of "±14", with the gap

    def __call__(self, value: float, margin: float | None, has_margins: bool) -> str:
        """As wide as all others of a table, in which some or no numbers have a margin."""
        told = f"{self.gap}±{margin:.{self.after_point}f}" if margin is not None else ""
        return f"{value:{self.value}.{self.after_point}f}{told.ljust(self.margin if has_margins else 0)}"


DIGITS = (Digits(1, " ", 5, 6), Digits(0, "", 3, 3))  # as there is room


def show_table(evaluations: Mapping[str, Evaluation], out: Console, details: bool = False) -> None:
    """Print the results of one model, or of several by name, in percent; groups side by side where there is room.

    Behind each number stands half of its 95 % interval. With `details` all measures are shown, and what each trivial rule
    reaches; else the main ones.
    """
    tables = _tables(evaluations)
    for by_group in tables:
        _show_groups(by_group, _rows([results for one in by_group.values() for results in one.values()], details), out)
    all_groups = {label: by_name for by_group in tables for label, by_name in by_group.items()}
    if details:
        out.print(_rules(all_groups))
    rows = _rows([evaluation.results for evaluation in evaluations.values()], details)
    out.print(_legend(rows, all_groups), style="dim", markup=False, highlight=False)


def _show_groups(by_group: ByGroup, rows: Rows, out: Console) -> None:
    """Side by side, with as many digits as there is room for; or one below the other."""
    side_by_side = [
        _side_by_side(_kinds(rows), *(_block(label, by_name, rows, digits) for label, by_name in by_group.items()))
        for digits in DIGITS
    ]
    if fitting := [table for table in side_by_side if _fits(table, out)]:
        out.print(fitting[0])
    else:
        for label, by_name in by_group.items():
            tables = [_side_by_side(_kinds(rows), _block(label, by_name, rows, digits)) for digits in DIGITS]
            out.print(next((table for table in tables if _fits(table, out)), tables[-1]))
            out.print()


def show_differences(evaluations: Mapping[str, Evaluation], out: Console) -> None:
    """The last model against each of the others: for which kinds, and groups of them, it is higher or lower."""
    *others, (name, after) = evaluations.items()
    for other, before in others:
        found = differences(before, after)
        groups = {kind: [one.group for one in found if one.kind == kind] for kind in {one.kind for one in found}}
        said = []
        for what, sign in (("higher", 1), ("lower", -1), ("no clear difference", 0)):
            those: dict[str, list[str]] = {}
            for one in found:
                if one.found.direction == sign:
                    those.setdefault(one.kind, []).append(one.group)
            names = [k if those[k] == groups[k] else f"{k} ({', '.join(those[k])})" for k in those]
            said += [f"{what}: {', '.join(names)}"] if names else []
        text = f"{name} against {other}, task by task (sign-flip test, p < {SIGNIFICANT}): {'; '.join(said)}"
        out.print(text, markup=False, highlight=False)


def _fits(table: Table, out: Console) -> bool:
    return Measurement.get(out, out.options.update(max_width=10_000), table).maximum <= out.width


def _tables(evaluations: Mapping[str, Evaluation]) -> list[ByGroup]:
    """What goes into one table each: all groups, and the kinds that belong to none."""
    names = list(evaluations) if len(evaluations) > 1 else ["model"]  # narrow, and clear enough
    named = dict(zip(names, evaluations.values(), strict=True))
    groups = next(iter(named.values())).groups
    by_group: ByGroup = {
        GROUPS.get(group, group): {name: evaluation.groups[group] for name, evaluation in named.items()}
        for group in groups
    }
    grouped = {kind for results in groups.values() for kind in results}
    others: dict[str, Results] = {
        name: {kind: values for kind, values in evaluation.results.items() if kind not in grouped}
        for name, evaluation in named.items()
    }
    return [table for table in (by_group, {"": others} if any(others.values()) else {}) if table]


def _rows(results: Sequence[Results], details: bool) -> Rows:
    """The measures of all kinds, then of all kinds how often replies stop."""
    by_kind: dict[str, dict[str, Any]] = {}
    for result in results:
        for kind, values in result.items():
            by_kind.setdefault(kind, {}).update(dict.fromkeys(values))
    shown = {**MEASURES, **(DETAILS if details else {})}
    measured = [
        (kind, name)
        for kind, values in by_kind.items()
        for name in values
        if name in shown or name == next(iter(values))
    ]
    last = [(kind, name) for kind, name in measured if name in LAST]
    return [*(row for row in measured if row not in last), ("", ""), *last]


def _kinds(rows: Rows) -> Group:
    """The rows' names. A kind is named once."""
    shown = _table()
    shown.add_column("")
    shown.add_column(Text("in %", style="dim"))
    before = ""
    for kind, measure in rows:
        shown.add_row(Text(kind if kind != before else "", style="bold"), called(measure))
        before = kind
    return Group("", shown)


def called(measure: str) -> str:
    """What a measure is called on a screen."""
    return {**MEASURES, **DETAILS}.get(measure, measure)


def _block(label: str, by_name: Mapping[str, Results], rows: Rows, digits: Digits) -> Group:
    """The numbers of one group: n, each model, the trivial rule."""
    shown = _table()
    shown.add_column(Text("n", style="dim"), justify="right", min_width=3)
    for name in map(_short_name, by_name):
        shown.add_column(Text(name.rjust(digits.value)), min_width=5, no_wrap=True)
    shown.add_column(Text("trivial", style="dim"), justify="right")
    some = {kind: values for results in by_name.values() for kind, values in results.items()}
    margins = [_margin(results.get(kind, {}), measure) for results in by_name.values() for kind, measure in rows]
    has_margins = any(margin is not None for margin in margins)
    before = ""
    for kind, measure in rows:
        values = some.get(kind, {})
        trivial = values.get("baseline", {}).get(measure)
        n = values.get("measured", {}).get(measure) or (values.get("n") if kind != before else None)
        of_models = [
            _number(results.get(kind, {}), measure, trivial, digits, has_margins) for results in by_name.values()
        ]
        of_rule = "" if trivial is None else digits(_scaled(trivial, measure), None, False)
        shown.add_row(Text(str(n or "") if measure not in LAST else "", style="dim"), *of_models, of_rule)
        before = kind
    return Group(Text(label, style="bold", justify="center"), shown)


def _number(values: Mapping[str, Any], measure: str, trivial: float | None, digits: Digits, has_margins: bool) -> Text:
    """A model's number with its margin; one that isn't better than a trivial rule's is red."""
    if measure not in values:
        return Text("")
    judged = trivial is not None and measure not in NEUTRAL
    style = "" if not judged else "green" if values[measure] > trivial else "red"
    text = digits(_scaled(values[measure], measure), _margin(values, measure), has_margins)
    return Text(text.rjust(5), style=style)


def _margin(values: Mapping[str, Any], measure: str) -> float | None:
    """Half of the interval; None where all replies score alike, which says nothing about others."""
    low, high = values.get("interval", {}).get(measure, (0, 0))
    return _scaled(high - low, measure) / 2 if high - low > 1e-9 else None


def _scaled(value: float, measure: str) -> float:
    """In percent, but for what is a count."""
    return value if measure in COUNTS else 100 * value


def _rules(by_group: ByGroup) -> Table:
    """What each trivial rule reaches by the kinds' main measures, in percent."""
    shown = _table()
    shown.add_column("")
    shown.add_column(Text("what trivial replies reach, in %", style="dim"), overflow="fold")
    results = {label: next(iter(by_name.values())) for label, by_name in by_group.items()}
    for label in results:
        shown.add_column(Text(label, style="dim"), justify="right", min_width=6, max_width=10)
    by_kind = {kind: values for of_group in results.values() for kind, values in of_group.items()}
    for kind, values in by_kind.items():
        measure = next(iter(values))
        for number, rule in enumerate(values["baselines"]):
            reached = [of_group.get(kind, {}).get("baselines", {}).get(rule) for of_group in results.values()]
            numbers = (f"{_scaled(scores[measure], measure):.1f}" if scores else "" for scores in reached)
            shown.add_row(Text("" if number else kind, style="bold"), f"{called(measure)}: {rule}", *numbers)
    return shown


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")


def _side_by_side(*parts: Group) -> Table:
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_row(*parts)
    return shown


def _short_name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _legend(rows: Rows, by_group: ByGroup) -> str:
    """What the measures mean, and which trivial rules are the best of each kind, by one measure or another."""
    there = {measure for _, measure in rows}
    best: dict[str, dict[str, None]] = {}
    for by_name in by_group.values():
        for kind, values in next(iter(by_name.values())).items():
            names = (rule for measure, rule in values["baseline"]["rules"].items() if (kind, measure) in rows)
            best.setdefault(kind, {}).update(dict.fromkeys(names))
    kinds_of: dict[str, list[str]] = {}
    for kind, rules in best.items():
        kinds_of.setdefault(" or ".join(rules), []).append(kind)
    trivial = "; ".join(f"{rule} ({', '.join(kinds)})" for rule, kinds in kinds_of.items())
    lines = [text for name, text in LEGEND.items() if name in there]
    lines += [FEW_PLOTS] if GROUPS["unseen"] in by_group else []
    return "\n".join([*lines, MARGIN, f"trivial: {trivial}"])


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
        reply, lacks = coloured(task, item.reply)
        reply.truncate(LONGEST_REPLY, overflow="ellipsis")
        notes = [_in_words(item)]
        notes += [lacks] if lacks and item.reply.strip() and (task.required or not _is_right(item)) else []
        notes += ["it did not stop by itself"] if item.finish_reason != "stop" else []
        shown.add_row(Text(_short_name(name), style="bold"), reply if item.reply.strip() else Text("(nothing)", "red"))
        shown.add_row("", Text("; ".join(notes), style="dim"))
    return shown


def coloured(task: Task, reply: str) -> tuple[Text, str]:
    """The reply with right and wrong marked, and in words what it has, or lacks, of what was expected."""
    found = marked(task, clean(reply))
    if task.required:
        shown = Text.assemble(*((text, "bold green" if mark == "required" else "") for text, mark in found.parts))
        used = [
            word if word.lower().startswith(form.lower()) else f"{word} (“{form.lower()}”)" for word, form in found.used
        ]
        parts = [f"{name}: {', '.join(words)}" for name, words in (("used", used), ("missing", found.missing)) if words]
        return shown, "; ".join(parts)
    shown = Text(" ").join(
        Text(f"[{text.strip()}]", "red") if mark == "wrong" else Text(text.strip(), "green" if mark == "right" else "")
        for text, mark in found.parts
    )
    lacks = "all of it" if len(found.missing) == len(task.target.split()) else ", ".join(found.missing)
    return shown, f"missing: {lacks}" if found.missing else ""


def _in_words(item: Item) -> str:
    measure, value = next(iter(item.scores.items()))
    if measure == "used":
        return f"{round(value * len(item.task.required))} of {len(item.task.required)} words"
    if measure in ("accuracy", "exact") or value == 1:
        return "right" if value == 1 else "wrong"
    return f"{called(measure)} {100 * value:.0f} %"


def shortened_prompt(task: Task) -> str:
    """The prompt with only the beginning and the end of its story."""
    if task.story_span is None:
        return clean(task.prompt)
    start, end = task.story_span
    words = clean(task.prompt[start:end]).split()
    if len(words) > STORY_BEGIN + STORY_END + 4:
        words = [*words[:STORY_BEGIN], f"… ({len(words) - STORY_BEGIN - STORY_END} words) …", *words[-STORY_END:]]
    return clean(f"{task.prompt[:start]} «{' '.join(words)}» {task.prompt[end:]}")

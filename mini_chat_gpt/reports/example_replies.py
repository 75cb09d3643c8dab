"""Show replies in the terminal: of each kind some, with their right and wrong parts marked.

The output does not depend on color: wrong parts of a reply are in [brackets], missing words are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.text import clean
from mini_chat_gpt.evaluation.capabilities import Evaluation, Item
from mini_chat_gpt.evaluation.chat_tasks import CHATS, ChatTask
from mini_chat_gpt.reports.reply_diff import diff_reply
from mini_chat_gpt.reports.results_table import measure_label, short_name
from mini_chat_gpt.tinystories.tasks import Task

LONGEST_REPLY = 450  # characters
STORY_BEGIN, STORY_END = 14, 8  # words shown of a story in a prompt


def show_examples(evaluations: Mapping[str, Evaluation], n: int, out: Console) -> None:
    """Print n tasks of each kind with every model's reply, preferring tasks that the first model didn't get fully right.

    Of chats, the first n: hardly any reply is the expected one.
    """
    for kind in next(iter(evaluations.values())).results:
        by_name = {
            name: [item for item in evaluation.items if item.task.kind == kind]
            for name, evaluation in evaluations.items()
        }
        name, items = next(iter(by_name.items()))
        if isinstance(items[0].task, ChatTask):
            _show_chats(kind, by_name, n, out)
            continue
        right = [_is_right(item) for item in items]
        head = f"{kind}: {sum(right)} of {len(items)} fully right" + (f" by {name}" if len(by_name) > 1 else "")
        for number in sorted(range(len(items)), key=lambda number: right[number])[:n]:
            example = {name: ours[number] for name, ours in by_name.items()}
            which = "a correct reply" if right[number] else "an incorrect reply"
            group = f" ({items[number].group})" if items[number].group else ""
            out.rule(Text(f"{head}; {which}{group}"), style="dim", align="left")
            out.print(_example(example))


def _show_chats(kind: str, by_name: Mapping[str, Sequence[Item]], n: int, out: Console) -> None:
    for number, items in enumerate([*zip(*by_name.values(), strict=True)][:n], start=1):
        source = "" if kind == CHATS else f" of {kind.partition('/')[2]}"
        out.rule(Text(f"held-out chat {number}{source}"), style="dim", align="left")
        out.print(_example(dict(zip(by_name, items, strict=True))))


def _is_right(item: Item) -> bool:
    return next(iter(item.scores.values())) == 1


def _example(items: Mapping[str, Item]) -> Table:
    """One task: the prompt, the expected reply, and each model's reply with its score."""
    task = next(iter(items.values())).task
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(shortened_prompt(task), style="dim"))
    if not task.required:
        expected = Text(clean(task.target))
        expected.truncate(LONGEST_REPLY, overflow="ellipsis")
        table.add_row("expected", expected)
    for name, item in items.items():
        reply, missing = colored(task, item.reply)
        reply.truncate(LONGEST_REPLY, overflow="ellipsis")
        notes = [_score_text(item)]
        notes += [missing] if missing and item.reply.strip() and (task.required or not _is_right(item)) else []
        notes += ["cut off"] if item.finish_reason != "stop" else []
        table.add_row(Text(short_name(name), style="bold"), reply if item.reply.strip() else Text("(nothing)", "red"))
        table.add_row("", Text("; ".join(notes), style="dim"))
    return table


def colored(task: Task, reply: str) -> tuple[Text, str]:
    """(the reply with right and wrong parts marked, a note on the expected words that it uses or lacks)"""
    diff = diff_reply(task, clean(reply))
    if task.required:
        marked = Text.assemble(*((text, "bold green" if mark == "required" else "") for text, mark in diff.parts))
        used = [
            word if word.lower().startswith(form.lower()) else f"{word} (“{form.lower()}”)" for word, form in diff.used
        ]
        parts = [f"{name}: {', '.join(words)}" for name, words in (("used", used), ("missing", diff.missing)) if words]
        return marked, "; ".join(parts)
    marked = Text(" ").join(
        Text(f"[{text.strip()}]", "red") if mark == "wrong" else Text(text.strip(), "green" if mark == "right" else "")
        for text, mark in diff.parts
    )
    missing = "everything" if len(diff.missing) == len(task.target.split()) else ", ".join(diff.missing)
    return marked, f"missing: {missing}" if diff.missing else ""


def _score_text(item: Item) -> str:
    measure, value = next(iter(item.scores.items()))
    if measure == "used":
        return f"{round(value * len(item.task.required))} of {len(item.task.required)} words"
    if measure in ("accuracy", "exact") or value == 1:
        return "right" if value == 1 else "wrong"
    return f"{measure_label(measure)} {100 * value:.0f} %"


def shortened_prompt(task: Task) -> str:
    """The prompt, with only the beginning and the end of a long story."""
    if task.story_span is None:
        prompt = Text(clean(task.prompt))
        prompt.truncate(LONGEST_REPLY, overflow="ellipsis")
        return prompt.plain
    start, end = task.story_span
    words = clean(task.prompt[start:end]).split()
    if len(words) > STORY_BEGIN + STORY_END + 4:
        words = [*words[:STORY_BEGIN], f"… ({len(words) - STORY_BEGIN - STORY_END} words) …", *words[-STORY_END:]]
    return clean(f"{task.prompt[:start]} «{' '.join(words)}» {task.prompt[end:]}")

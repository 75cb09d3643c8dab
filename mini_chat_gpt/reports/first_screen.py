"""The first screen of report.html: a question with the replies of the models, a sentence of what changed, and a few numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mini_chat_gpt.evaluation.chat_tasks import is_chats
from mini_chat_gpt.evaluation.refusals import REFUSALS
from mini_chat_gpt.evaluation.text_metrics import LOSS, RIGHT_OR_WRONG
from mini_chat_gpt.reports.values import HIGHER, LOWER, SAME, SPACE, Row, beats_baseline, number, verdict

_SHORT = 220  # characters of a question, an expected answer or a reply that fits the first screen
_TELLING = 3  # words of an expected answer that says more than yes or no


def names_of(report: Row) -> list[str]:
    return [model["name"] for model in report["models"]]


def spotlight(report: Row) -> Row | None:
    """The example of the first screen; None without any.

    Of those with short texts, it is one that the last model gets right, or else in which it gains most on the first; if possible one
    in which every model says something and the expected answer has several words, and then the shortest. The sentence below it
    has the numbers of all tasks.
    """
    names = names_of(report)

    def rank(each: Row) -> tuple[bool, bool, float, bool, bool, int]:
        replies = ["".join(text for text, _ in reply["parts"]) for reply in each["replies"].values() if reply]
        lengths = [*map(len, [each["prompt"], each["target"], *replies])]
        scores = [(each["replies"].get(name) or {}).get("score") or 0.0 for name in names]
        gain = scores[-1] - (scores[0] if len(names) > 1 else 0.0)
        is_short = max(lengths) <= _SHORT
        is_right, tells = gain > 0 and scores[-1] == 1, len(each["target"].split()) >= _TELLING
        return is_short, is_short and is_right, is_short and gain, all(map(str.strip, replies)), tells, -sum(lengths)

    return max(_examples(report), key=rank, default=None)


def _examples(report: Row) -> Iterator[Row]:
    """The held-out chats, otherwise the tasks, otherwise the user's prompts. The "prompt" of each is without its "story"."""
    tasks = report.get("side_by_side") or []
    for each in [each for each in tasks if is_chats(each["kind"])] or tasks:
        start, end = each.get("story") or (0, 0)
        prompt = each["prompt"]
        yield each | {"story": prompt[start:end], "prompt": f"{prompt[:start]} {prompt[end:]}".strip()}
    for each in [] if tasks else (report.get("own") or {}).get("prompts") or []:
        replies = {
            name: reply | {"parts": [(reply["text"], "")], "score": sum(met for _, met in reply.get("checks") or [])}
            for name, reply in each["replies"].items()
        }
        yield {"kind": each["shows"], "prompt": each["prompt"], "target": "", "replies": replies}


def sentence(report: Row) -> str:
    """What changed; "" if nothing was counted."""
    names, kinds = names_of(report), report.get("kinds") or []
    questions = [kind for kind in kinds if kind["measure"] in RIGHT_OR_WRONG and kind["kind"] != REFUSALS]
    if shown := _means([kind for kind in kinds if is_chats(kind["kind"])], names):
        about, verb, end = "Replies to held-out chats", "reaches", " of the overlap with the expected ones (chrF)"
    elif shown := _means(questions, names):
        about, verb, end = "Questions about stories it has not seen", "answers", " correctly"
    elif shown := _means(kinds[:1], names):
        about, verb, end = f"Held-out tasks of the kind “{kinds[0]['kind']}”", "reaches", f" ({kinds[0]['label']})"
    elif shown := [f"{k} of {n}" for k, n in _checks_met(report)]:
        about, verb, end = "Checks of your prompts", "meets", ""
    else:
        return ""
    others = (f", {name} {value}" for name, value in zip(names[1:], shown[1:], strict=True))
    return f"{about}: {names[0]} {verb} {shown[0]}{end}{''.join(others)}."


def counts(report: Row) -> str:
    """How much the sentence is based on, and how many differences are significant."""
    n = sum(n for kind in report.get("kinds") or [] for n in kind["n"].values())
    what = "chat" if all(is_chats(kind["kind"]) for kind in report.get("kinds") or []) else "task"
    facts = [f"{n:,} held-out {what}{'s' if n != 1 else ''}."] if n else []
    by_pair: dict[tuple[str, str], list[str]] = {}
    for row in report.get("paired") or []:
        if row.get("label") != LOSS:  # of which higher is worse
            by_pair.setdefault((row["before"], row["after"]), []).append(verdict(row))
    for (before, after), verdicts in by_pair.items():
        higher, lower, same = map(verdicts.count, (HIGHER, LOWER, SAME))
        facts.append(
            f"{after} against {before}, by kind: significantly higher in {higher}, lower in {lower}, no clear difference in {same}."
        )
    return " ".join(facts)


def tiles(report: Row) -> list[tuple[str, str]]:
    """(value, description), each of something else; the most important ones come first."""
    return [*_tiles(report, names_of(report))]


def _tiles(report: Row, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    kinds, last, models = report.get("kinds") or [], names[-1], ", first model to last" if len(names) > 1 else ""
    if kinds and (met := _checks_met(report)):
        yield f"{_change([str(k) for k, _ in met])} of {met[-1][1]}", f"checks of your prompts met{models}"
    if used := _means([kind for kind in kinds if kind["kind"] == "words"], names):
        yield _change(used), f"of the words that a prompt asks for are used{models}"
    if right := _means([kind for kind in kinds if kind["kind"] == REFUSALS], names):
        yield _change(right), f"of requests rightly refused or answered{models}"
    beats = [beats_baseline(kind, group, last) for kind in kinds for group in kind["values"]]
    if (n := sum(better is not None for better in beats)) > 1:
        yield f"{beats.count(True)} of {n}", f"kinds and groups in which {last} is better than the best simple rule"
    losses = [row for row in report.get("measures") or [] if row["label"] == LOSS]
    if len(losses) == 1:  # of one file of chats
        values = [number(losses[0]["values"][name]["value"]) for name in names]
        yield _change(values), f"loss of the expected replies{models}; lower is better"
    if stops := _means(kinds, names, "stops"):
        yield _change(stops), f"replies that the model ended by itself{models}"
    bits = report.get("bits_per_byte") or {}
    if known := [number(bits[name]["bits_per_byte"]) for name in names if name in bits]:
        yield _change(known), f"bits per byte of held-out stories{models}; a rise means forgetting"
    memorized = report.get("memorization") or {"models": {}}
    one = memorized["models"].get(last)
    if one and one["generated"]["value"] is not None:
        yield (
            _percent(one["generated"]["value"]),
            f"of {memorized['n']}-grams of {last}'s stories are in its training stories",
        )
    if val := ((report.get("losses") or {}).get(last) or {}).get("val"):
        yield number(val[-1][1]), f"last validation loss of {last}"


def _means(kinds: Sequence[Row], names: Sequence[str], part: str = "value") -> list[str]:
    """For each model, the mean over the tasks of these kinds in percent; [] if a model has none."""
    means = []
    for name in names:
        known = [
            (kind["n"].get(group, 1), by_name[name][part])
            for kind in kinds
            for group, by_name in kind["values"].items()
            if (by_name.get(name) or {}).get(part) is not None
        ]
        means += [_percent(sum(n * value for n, value in known) / sum(n for n, _ in known))] if known else []
    return means if len(means) == len(names) else []


def _checks_met(report: Row) -> list[tuple[int, int]]:
    """For each model, (met, all) of the checks of the user's prompts; [] if a model has none."""
    prompts = (report.get("own") or {}).get("prompts") or []
    replies = ([each["replies"].get(name) or {} for each in prompts] for name in names_of(report))
    by_name = [[met for reply in of_model for _, met in reply.get("checks") or []] for of_model in replies]
    return [(sum(met), len(met)) for met in by_name] if all(by_name) else []


def _percent(share: float) -> str:
    return f"{100 * share:.0f}{SPACE}%"


def _change(values: Sequence[str]) -> str:
    return " → ".join([values[0], *values[1:][-1:]])

"""Judge a model as a conversation partner: a scripted conversation of 20 turns over each of 50 held-out stories.

    python -m mini_chat_gpt.prepare.sample_stories DATA
    python benchmarks/conversation.py --checkpoint runs/quickstart/sft --data DATA [--n 50] [--show 2] [--json FILE]
    python benchmarks/conversation.py --checkpoint runs/quickstart/sft --first-things
    python benchmarks/conversation.py --coinciding

Each conversation is one session of the program's own chat (chat/session.py), greedy: a greeting, questions about the model, a
request that it can't serve, a pasted story and eight turns about it, thanks, a second story and questions about both, a story of its
own, a question of knowledge, a compliment and a goodbye. conversation_script.py selects stories and messages, conversation.yaml has
the wordings, and conversation_rules.py says which replies are right or sensible. Half of the stories are of plots that the train split
of the sample has, half are not.

A reply that fills the context is generated again with fewer older turns, as with /retry.

Printed: the share of right or sensible turns by kind with Wilson's 95 % intervals, the mean and the minimum of a conversation, and in
how many conversations the story was no longer in the context when it was asked about (the session drops the oldest turns).
Goals: a mean of 18 of 20, at least 14 in every conversation, and at least 80 % for every kind.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from conversation_rules import KINDS, Reply, Step, Turn, problem_of
from conversation_script import GROUPS, Facts, held_out, scripts
from conversation_text import ASSETS, settings

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.assets import load
from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation.confidence import wilson
from mini_chat_gpt.evaluation.held_out import sample_valid_file
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GREEDY = Sampling(max_new_tokens=300, temperature=0)
MEAN, LEAST, SHARE = 18, 14, 0.8
ABOUT_FIRST = {"main_character", "dialogue", "ending", "why", "follow_up", "summary", "moral", "first_story"}
ABOUT_SECOND = {"this_story"}


@dataclass(frozen=True)
class Judged:
    """One turn of a conversation with its verdict."""

    kind: str
    message: str
    reply: str
    problem: str | None  # None if the reply is right or sensible
    expected: str
    in_context: bool  # whether the story that the message is about is
    again: bool  # whether the first reply filled the context, and this is a second one


@dataclass(frozen=True)
class Conversation:
    """A judged conversation over one story."""

    group: str
    plot: str
    turns: list[Judged]
    tokens: int  # of the whole conversation, including dropped turns

    @property
    def score(self) -> int:
        """Number of right or sensible turns."""
        return sum(turn.problem is None for turn in self.turns)


def say(session: ChatSession, message: str) -> tuple[Reply, bool]:
    """Send a message; returns the reply and whether it had to be generated again.

    As `/retry` in a chat, a reply that filled the context is generated again with fewer older turns. A message that is too long for
    the context has no reply.
    """
    try:
        text = "".join(session.send(message))
        again = session.last_turn is not None and session.last_turn.finish_reason == "context"
        if again:
            text = "".join(session.retry())
    except UserError:
        return Reply("", ended=False), False
    return Reply(text, session.last_turn is not None and session.last_turn.finish_reason == "stop"), again


def converse(model: Model, tokenizer: ChatTokenizer, story: Facts, steps: Sequence[Step]) -> Conversation:
    """Have one conversation and judge it."""
    session = ChatSession(model, tokenizer, GREEDY)
    earlier: list[Turn] = []
    turns: list[Judged] = []
    pasted: dict[str, int] = {}  # number of the turn with a story
    for step in steps:
        reply, again = say(session, step.message)
        source = "second_story" if step.kind in ABOUT_SECOND else "pasted_story" if step.kind in ABOUT_FIRST else ""
        in_context = source not in pasted or pasted[source] >= session.n_dropped
        if step.kind in ("pasted_story", "second_story"):
            pasted[step.kind] = len(session.turns) - 1
        problem = problem_of(step, reply, earlier)
        turns.append(Judged(step.kind, step.message, reply.text, problem, step.answer, in_context, again))
        earlier.append((step, reply, problem))
    usage = session.usage()
    return Conversation(story.group, story.plot, turns, usage.system + sum(usage.turns))


# Output


def percent(values: Sequence[bool]) -> str:
    """Share with its interval: "84 % (71-92)"."""
    if not values:
        return ""
    low, high = wilson([float(value) for value in values])
    return f"{fmean(values):4.0%} ({low:.0%}-{high:.0%})"


def table(conversations: Sequence[Conversation]) -> str:
    """Results by kind and group, the conversations' scores, and which goals are reached."""
    groups: dict[str, list[Conversation]] = {"all": list(conversations)}
    groups |= {name: [one for one in conversations if one.group == name] for name in GROUPS}
    lines = [f"{'turn':<18}" + "".join(f"{name:>18}" for name in groups)]
    low_kinds = []
    for number, kind in enumerate(KINDS):
        right = {name: [one.turns[number].problem is None for one in of] for name, of in groups.items()}
        lines.append(f"{number + 1:2} {kind:<15}" + "".join(f"{percent(values):>18}" for values in right.values()))
        if fmean(right["all"]) < SHARE:
            low_kinds.append(kind)
    scores = {name: [one.score for one in of] for name, of in groups.items()}
    numbers = {
        "mean of 20": [f"{fmean(values):.2f}" if values else "" for values in scores.values()],
        "minimum": [f"{min(values)}" if values else "" for values in scores.values()],
        f"below {LEAST}": [f"{sum(value < LEAST for value in values)}" for values in scores.values()],
        "conversations": [f"{len(values)}" for values in scores.values()],
    }
    lines += [f"{name:<18}" + "".join(f"{cell:>18}" for cell in cells) for name, cells in numbers.items()]
    return "\n".join([*lines, "", *_remarks(conversations, low_kinds, scores["all"])])


def _remarks(conversations: Sequence[Conversation], low_kinds: Sequence[str], scores: Sequence[int]) -> Iterator[str]:
    dropped = Counter(turn.kind for one in conversations for turn in one.turns if not turn.in_context)
    if dropped:
        kinds = ", ".join(f"{kind} {n}" for kind, n in dropped.items())
        yield f"The story was no longer in the context in {sum(dropped.values())} turns: {kinds}."
    again = Counter(turn.kind for one in conversations for turn in one.turns if turn.again)
    if again:
        kinds = ", ".join(f"{kind} {n}" for kind, n in again.items())
        yield f"{sum(again.values())} replies filled the context and were generated again, as with /retry: {kinds}."
    sizes = [one.tokens for one in conversations]
    yield f"A whole conversation has {fmean(sizes):.0f} tokens on average and at most {max(sizes)}."
    yield (
        f"Goals: mean {fmean(scores):.2f} of {MEAN}; minimum {min(scores)} of {LEAST}; kinds below {SHARE:.0%}: "
        f"{', '.join(low_kinds) or 'none'}."
    )


def common_problems(conversations: Sequence[Conversation]) -> str:
    """For every kind, the three most frequent problems with an example of a reply."""
    lines = []
    for number, kind in enumerate(KINDS):
        wrong = [one.turns[number] for one in conversations if one.turns[number].problem]
        names = Counter(_without_details(turn) for turn in wrong)
        for name, n in names.most_common(3):
            example = next(turn for turn in wrong if _without_details(turn) == name)
            reply = " ".join(example.reply.split())[:100]
            lines.append(f"{kind}: {n} x {example.problem} | {' '.join(example.message.split())[-60:]} | {reply}")
    return "\n".join(lines)


def _without_details(turn: Judged) -> str:
    return re.sub(r"\d+(?:\.\d+)?", "N", re.split(r"[:,]", turn.problem or "")[0])


def shown(conversation: Conversation) -> str:
    """A conversation to read."""
    lines = [f"--- {conversation.plot} ({conversation.group}): {conversation.score} of 20"]
    for number, turn in enumerate(conversation.turns, start=1):
        mark = "+" if turn.problem is None else f"- [{turn.problem}]"
        lines += [f"{number:2} > {turn.message}", f"   {mark} {turn.reply.strip()}"]
    return "\n".join(lines)


def first_things(model: Model, tokenizer: ChatTokenizer) -> str:
    """The reply to each first thing, in a conversation of its own."""
    pairs = [(text, say(ChatSession(model, tokenizer, GREEDY), text)) for text in settings()["first_things"]]
    return "\n".join(f"> {text}\n{reply.text.strip()}{'' if reply.ended else ' ...'}\n" for text, (reply, _) in pairs)


def coinciding() -> list[str]:
    """Wordings of conversation.yaml that also occur in the package's assets, ignoring case and punctuation."""
    texts = {_plain(text) for path in ASSETS.glob("*.yaml") for text in _strings(load(path.name))}
    own = [entry["ask"] if isinstance(entry, dict) else entry for entry in _entries()]
    return [text for text in own if _plain(text) in texts]


def _entries() -> list[Any]:
    return [entry for entries in settings()["messages"].values() for entry in entries]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+|\{", re.sub(r"\{\w+\}", "{", text).lower()))


# Command line


def run(arguments: argparse.Namespace, model: Model, tokenizer: ChatTokenizer) -> list[Conversation]:
    """Have all conversations, and print progress on standard error."""
    folder = arguments.data or sample_valid_file().parent
    chosen = scripts(held_out(folder), arguments.n // 2, arguments.seed)
    conversations = []
    for number, (story, steps) in enumerate(chosen, start=1):
        conversations.append(converse(model, tokenizer, story, steps))
        print(f"\rconversation {number} of {len(chosen)}: {conversations[-1].score} of 20  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return conversations


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the model")
    parser.add_argument("--data", type=Path, help="folder with a sample (default: the sample in the cache)")
    parser.add_argument("--n", type=int, default=50, help="conversations, half of them over seen plots")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--show", type=int, default=0, metavar="K", help="print the K worst conversations of each group"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all conversations to this file")
    parser.add_argument("--first-things", action="store_true", help="the replies to first messages, and nothing else")
    parser.add_argument("--coinciding", action="store_true", help="wordings that occur in the package's assets")
    arguments = parser.parse_args(argv)
    if arguments.coinciding:
        print("\n".join(coinciding()) or "none")
        return 0
    if arguments.checkpoint is None or arguments.n < 2:
        raise UserError("Name a model, --checkpoint PATH, and let --n be at least 2.")
    model, tokenizer = load_checkpoint(arguments.checkpoint, arguments.device)
    if arguments.first_things:
        print(first_things(model, tokenizer))
        return 0
    conversations = run(arguments, model, tokenizer)
    for group in GROUPS:
        of_group = sorted((one for one in conversations if one.group == group), key=lambda one: one.score)
        print("".join(f"{shown(one)}\n\n" for one in of_group[: arguments.show]), end="")
    print(table(conversations), common_problems(conversations), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) | {"score": one.score} for one in conversations], indent=1))
    return 0


if __name__ == "__main__":
    exit_with(main)

"""What a user should know about chat files, as sentences: what is lost, as a share of all, and what can be done about it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from mini_chat_gpt.common.text import with_places
from mini_chat_gpt.data.chat_files import Problem
from mini_chat_gpt.data.chat_split import is_in, repeated
from mini_chat_gpt.data.rendered_chats import RenderedChats

_N_FIRST = 3
"""Places that a note lists."""
_N_REASONS = 3
"""Reasons that the note about the skipped records of a file lists."""
_ENOUGH = 0.05
"""Share of chats that may stay too long for a context that is recommended."""
_TOKENS_PER_WORD = 1.8, 10.0
"""Range in which another tokenizer is recommended. Above it a text does not have spaces between its words."""


def percent(part: float, whole: float) -> str:
    """A share in words: 31 %, 0.4 %, "less than 0.1 %"."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "less than 0.1 %"
    return f"{share:.0f} %" if share >= 9.95 or share == 0 else f"{share:.1f} %"


def too_long_note(
    rendered: RenderedChats, path: str, numbers: np.ndarray, purpose: str, seq_len: int, context: int, too_long: str
) -> str | None:
    """Which share of a file's chats is too long, what that costs, and the remedy; None if none is.

    numbers   (n,) the chats of the file that are used for `purpose`, such as "to train on"
    """
    lengths = rendered.chats["n_tokens"][numbers]
    long = rendered.chats[numbers[lengths > seq_len]]
    if not len(long):
        return None
    n_replies = int(rendered.chats["n_replies"][numbers].sum(dtype=np.int64))
    n_lost = int(long["n_lost"].sum(dtype=np.int64))
    lost = f"{percent(n_lost, n_replies)} of all replies are lost"
    if too_long == "cut":
        n_pieces = int(long["n_examples"].sum(dtype=np.int64))
        done = f"are cut into {n_pieces:,} pieces" if n_pieces else "are dropped"
        done += f"; {lost}, as their exchanges alone are too long" if n_lost else ", so that no reply is lost"
    elif too_long == "shorten":
        done = f"lose their last messages; {lost}"
    else:
        done = f"are dropped; {lost}"
    share = f"{percent(len(long), len(numbers))} of the chats {purpose} ({len(long):,} of {len(numbers):,})"
    text = f"{path}: {share} are longer than {seq_len:,} tokens and {done}. Remedy: {_remedy(lengths, long, seq_len, context)}"
    return _with_first(text, rendered, numbers[lengths > seq_len])


def _remedy(lengths: np.ndarray, long: np.ndarray, seq_len: int, context: int) -> str:
    """A context in which nearly all chats fit, and another tokenizer if this one takes many tokens."""
    sizes = (2**power for power in range(4, 25))
    longer = [size for size in sizes if size > seq_len]
    wanted = longer[min(len(list(takewhile(lambda size: (lengths > size).mean() > _ENOUGH, longer))), len(longer) - 1)]
    size = min(wanted, context) if context > seq_len else wanted
    rest = int((lengths > size).sum())
    fits = f" ({percent(rest, len(lengths))} are longer than that)" if rest else ""
    remedy = f"data.seq_len={size}{'' if context > seq_len else ' and a model with that context'}{fits}"
    n_words = int(long["n_words"].sum(dtype=np.int64))
    per_word = float(long["n_tokens"].sum(dtype=np.int64)) / max(1, n_words)
    if _TOKENS_PER_WORD[0] <= per_word <= _TOKENS_PER_WORD[1]:
        remedy += f", or another tokenizer: this one takes {per_word:.1f} tokens per word"
    return remedy


def dropped_note(rendered: RenderedChats, path: str, numbers: np.ndarray, purpose: str, seq_len: int) -> str | None:
    """Which chats of a file can't be used for another reason than their length; None if there are none."""
    dropped = (rendered.chats["n_tokens"][numbers] <= seq_len) & (rendered.chats["n_examples"][numbers] == 0)
    if not (n := int(dropped.sum())):
        return None
    share = f"{percent(n, len(numbers))} of the chats {purpose} ({n:,} of {len(numbers):,})"
    text = f"{path}: {share} can't be used and are left out"
    return _with_first(text, rendered, numbers[dropped])


def _with_first(text: str, rendered: RenderedChats, numbers: np.ndarray) -> str:
    """The text, and below it the first of these chats; those with the same reason are on one line."""
    places: dict[str, list[str]] = {}
    for place, why in (rendered.text(int(number)) for number in numbers[:_N_FIRST]):
        places.setdefault(why, []).append(place)
    lines = [f"{', '.join(with_reason)}: {why}" for why, with_reason in places.items()]
    return with_places(text, lines, len(lines) + max(0, len(numbers) - _N_FIRST))


def skipped_notes(problems: Sequence[Problem]) -> list[str]:
    """Records that can't be used, a note for each file."""
    by_file: dict[str, list[Problem]] = {}
    for problem in problems:
        by_file.setdefault(problem.path, []).append(problem)
    notes = []
    for path, group in by_file.items():
        lines = [problem.counted() for problem in group[:_N_REASONS]]
        more = [f"and {len(group) - _N_REASONS:,} other reasons"] if len(group) > _N_REASONS else []
        skipped = sum(problem.n for problem in group)
        notes.append("\n  ".join([f"{path}: records skipped: {skipped:,}", *lines, *more]))
    return notes


def repeated_note(rendered: RenderedChats, numbers: np.ndarray) -> str | None:
    """Chats with the same text as another one of `numbers`; None if there are none."""
    firsts = repeated(rendered.chats["content"][numbers])
    others = np.flatnonzero(firsts != np.arange(len(firsts)))
    if not len(others):
        return None
    places = [
        f"{_place(rendered, int(numbers[at]))}, repeats {_place(rendered, int(numbers[firsts[at]]))}"
        for at in others[:_N_FIRST]
    ]
    return with_places(f"Chats with the same text as another one: {len(others):,}", places, len(others))


def overlap_notes(rendered: RenderedChats, trained: np.ndarray, held_out: np.ndarray) -> list[str]:
    """Held-out chats that occur in the training part too: whole ones, and those that begin with the same question."""
    whole, question = (
        is_in(rendered.chats[key][held_out], rendered.chats[key][trained]) for key in ("content", "question")
    )
    texts = {
        "are also in the training data": held_out[whole],
        "begin with a question of the training data": held_out[question & ~whole],
    }
    return [
        with_places(
            f"Held-out chats that {text}: {len(chats):,}",
            [_place(rendered, int(chat)) for chat in chats[:_N_FIRST]],
            len(chats),
        )
        for text, chats in texts.items()
        if len(chats)
    ]


def _place(rendered: RenderedChats, chat: int) -> str:
    return f"{rendered.path(chat)}, {rendered.text(chat)[0]}"

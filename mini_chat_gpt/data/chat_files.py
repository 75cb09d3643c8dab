"""Read your own chats from files: JSON, JSON Lines, CSV, TSV or YAML, plain or compressed, in the forms of `record_forms`.

Which chat formats can render reasoning, calls of tools and tools is another question: `ChatDataset` leaves out and counts the rest.
A file with an error is read to its end, so that all errors are reported at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.chat_keys import CONTENTS, LISTS, ROLES
from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.data.json_records import BadRecord
from mini_chat_gpt.data.record_fields import KeyNames, quoted
from mini_chat_gpt.data.record_files import Records, read_records
from mini_chat_gpt.data.record_forms import read_record

MAX_PROBLEMS = 20  # that an error lists
MAX_PLACES = 3  # of records with the same problem
MAX_NAMES = 1000  # different keys of a file that are counted
MAX_MESSAGES = 100_000  # of a file that is a single list of messages


@dataclass(frozen=True)
class Conversation:
    """One chat of a file."""

    messages: tuple[Message, ...]
    form: str  # the key or keys by which it was recognized, such as "messages" or "prompt + response"
    path: str
    place: str  # where it begins, such as "line 3" or "record 3"
    tools: tuple[dict[str, Any], ...] = ()  # the functions that the assistant can call
    rejected: tuple[Message, ...] | None = None
    """Of preference data: the whole conversation with the other reply, which is never trained on."""
    held_out: bool = False  # its file is one of the split for validation, by its name; see `data_files`


@dataclass
class Problem:
    """Records of a file that can't be used for the same reason, or the point where a file can't be read any further."""

    path: str
    what: str  # a clause, without a period: that of the first record; those of the others may have other numbers and names
    places: list[str]  # the first ones
    n: int = 1

    def __str__(self) -> str:
        return f"{self.path}, {self.places[0]}: {self.what}" if self.n == 1 else f"{self.path}: {self.counted()}"

    def counted(self) -> str:
        """The reason with its places, without the file."""
        if self.n == 1:
            return f"{self.places[0]}: {self.what}"
        return f"{self.n:,} records ({named_places(self.places, self.n)}): {self.what}"


def named_places(places: Sequence[str], n: int) -> str:
    """The first of `n` places: "lines 3, 5, 8, …"; of rows of a table, only the lines."""
    parts = [re.fullmatch(r"(.*?)(?:record \d+, )?(line|record) (\d+)", place) for place in places]
    matches = [match for match in parts if match]
    if len(matches) == len(places) > 1 and len({match.groups()[:2] for match in matches}) == 1:
        names = f"{matches[0][1]}{matches[0][2]}s {', '.join(match[3] for match in matches)}"
    else:
        names = ", ".join(places)
    return names + (", …" if n > len(places) else "")


def read_conversations(
    paths: str | Path | Iterable[str | Path],
    problems: list[Problem] | None = None,
    keys: Mapping[str, str | None] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Conversation]:
    """The conversations of one or several files, in their order.

    Records that can't be used are skipped and added to `problems`, if given. Otherwise all files are read to their end, and then a
    UserError reports all problems. `keys` is `chats.keys`. `notes` gets sentences about what is not used of each file that was
    read. Also raises UserError for a file that is missing or empty, and for names in `keys` that no record has.
    """
    collected: list[Problem] = [] if problems is None else problems
    names, n_good = KeyNames(keys), 0
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for conversation in _of_file(str(path), _records(path), names, collected, notes):
            n_good += 1
            yield conversation
    if problems is None and collected:
        raise UserError(report(collected, n_good))
    # A key that some record has is not missing, even if nothing was read from it: its records may be bad for another reason.
    missing = {ours: key for ours, key in names.missing.items() if not {key, key.partition(".")[0]} & names.met}
    if missing:
        ours, theirs = next(iter(missing.items()))
        what = f'No record has "{theirs}", which chats.keys names for {ours}{nearest(theirs, names.met)}'
        raise UserError(f"{what} (the records have {quoted(sorted(names.met))}).")


def _of_file(
    path: str,
    records: Iterator[tuple[str, Any, bool]],
    names: KeyNames,
    problems: list[Problem],
    notes: list[str] | None,
) -> Iterator[Conversation]:
    groups: dict[str, Problem] = {}
    unused: Counter[str] = Counter()
    bad = _Places()
    empty = True
    for place, record, held_out in records:
        empty = False
        try:
            chat = read_record(record, names)
        except (BadRecord, UserError) as error:
            what = str(error).rstrip(".")
            _add(Problem(path, what[:1].lower() + what[1:], [place]), groups, problems)
            continue
        if chat.unused:
            unused.update(name for name in chat.unused if len(unused) < MAX_NAMES or name in unused)
        if not chat.is_good:
            bad.add(place)
            continue
        rejected = None if chat.rejected is None else tuple(chat.rejected)
        yield Conversation(tuple(chat.messages), chat.form, path, place, chat.tools, rejected, held_out)
    if empty:
        raise UserError(f"{path} contains no conversation; it is empty.")
    if notes is not None:
        notes.extend(_notes(path, unused, bad))


@dataclass
class _Places:
    """A number of records, and the first places."""

    n: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.n += 1
        if self.n <= MAX_PLACES:
            self.first.append(place)


def _notes(path: str, unused: Counter[str], bad: _Places) -> Iterator[str]:
    if unused:
        most = sorted(unused.items(), key=lambda item: (-item[1], item[0]))[:8]
        names = [f"{_quoted(name)} ({n:,} {'record' if n == 1 else 'records'})" for name, n in most]
        more = f" and {len(unused) - 8:,} others" if len(unused) > 8 else ""
        yield f"{path}: not used: {', '.join(names)}{more}."
    if bad.n:
        records = "1 record" if bad.n == 1 else f"{bad.n:,} records"
        yield f"{path}: not trained on, because of a label that says that the reply is bad: {records} ({named_places(bad.first, bad.n)})."


def _quoted(name: str) -> str:
    key, after, rest = name.partition(" after the first")
    return f"{quoted([key])}{after}{rest}"


# Records


def _records(path: str | Path) -> Iterator[tuple[str, Any, bool]]:
    """(place, record, whether it is held out) of the files of a path. A file that is one list of messages is one record."""
    files = chat_files(path)
    for file in files.all:
        records = read_records(file)
        if (first := next(records, None)) is None:
            continue
        whole = chain([first], records)
        joined = _joined(whole) if first[0].startswith("record 1") and is_message(first[1]) else whole
        yield from ((files.place(file, place), record, file in files.held_out) for place, record in joined)


def is_message(record: Any) -> bool:
    """Whether a record is a single message, and not a conversation."""
    if not isinstance(record, dict) or any(name in record for name in LISTS):
        return False
    return any(isinstance(record.get(name), str) for name in ROLES) and any(name in record for name in CONTENTS)


def _joined(records: Records) -> Records:
    """The messages of a file as one record."""
    messages: list[Any] = []
    for place, record in records:
        if isinstance(record, BadRecord):
            yield place, record
            return
        messages.append(record)
        if len(messages) > MAX_MESSAGES:
            yield (
                place,
                BadRecord(f"it is a list of more than {MAX_MESSAGES:,} messages, which is not one conversation"),
            )
            return
    yield "record 1", messages


# Problems


def _add(problem: Problem, groups: dict[str, Problem], problems: list[Problem]) -> None:
    """Count a problem with those of the file that are like it."""
    key = _NAMES.sub("…", problem.what)
    if (known := groups.get(key)) is None:
        groups[key] = problem
        problems.append(problem)
        return
    known.n += 1
    if len(known.places) < MAX_PLACES:
        known.places.append(problem.places[0])


_NAMES = re.compile(r"""\d[\d,.]*|"(?:[^"\\]|\\.)*"|(?<!\w)'(?:[^'\\]|\\.)*'""")  # not the apostrophe of "can't"


def report(problems: Sequence[Problem], n_good: int) -> str:
    """What to say about problems that end a command: a sentence, or lines. With no good record there would be nothing to train on."""
    total = sum(problem.n for problem in problems)
    them = "it" if total == 1 else "them"
    advice = f"Correct {them}, or skip {them} with --skip-bad." if n_good else f"Correct {them}."
    if len(problems) > 1:
        return f"{total:,} records can't be used:\n  {listed(problems)}\n{advice}"
    says_how = not n_good and ";" in problems[0].what
    return f"{problems[0]}." if says_how else f"{problems[0]}. {advice}"


def listed(problems: Sequence[Problem]) -> str:
    """The first problems, each on its own line, and the number of others."""
    lines = [str(problem) for problem in problems[:MAX_PROBLEMS]]
    if others := problems[MAX_PROBLEMS:]:
        lines.append(f"and {sum(problem.n for problem in others):,} more, for {len(others):,} other reasons")
    return "\n  ".join(lines)

"""Mutants of chat files; the second reader takes the messages of the same forms in a simpler way, from a file that is in memory.

It also looks for what is lost or made up: every text of a good record is in its messages, or its key is named as not used.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutations import BY_SUFFIX, BYTES, elsewhere
from fuzz.oracle import Target

from mini_chat_gpt.common.chat_keys import LABELS
from mini_chat_gpt.data.chat_files import Problem, read_conversations
from mini_chat_gpt.data.record_fields import KeyNames
from mini_chat_gpt.data.record_forms import read_record

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
RECORDS: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            USER,
            REPLY,
            USER,
            REPLY | {"train": False},
            USER,
            REPLY,
        ],
        "id": 7,
    },
    {"messages": [USER, REPLY | {"reasoning": "Hm."}], "score": 0.5},
    {
        "messages": [
            {"role": "human", "content": [{"type": "text", "text": "Hi"}, "!"]},
            {"role": "model", "content": "Yes."},
        ]
    },
    {
        "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, REPLY],
        "tools": [{"name": "add"}],
    },
    {"conversations": [{"from": "human", "value": "One"}, {"from": "gpt", "value": "Two"}], "system": "Count."},
    {"conversation": [{"input": "Hi", "output": "Hello!"}, {"input": "Bye", "output": "See you."}]},
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"question": "Who?", "context": "It was Ann.", "answers": {"text": ["Ann", "Ann."], "answer_start": [7]}},
    {"prompt": "Hi", "completion": "Hello!", "label": True},
    {"prompt": "Hi", "completion": "Go away.", "label": False},
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"text": "<|user|>Hi<|assistant|>Hello!<|endoftext|>"},
    [USER, REPLY],
]
PLAIN = [
    {"prompt": f"Say {n}, please", "response": f"{n}!\nSo be it.", "system": "Be kind."}
    for n in ("one", "two", "three")
]


def chats(name: str) -> Any:
    """What the program reads of a file: the conversations, and how many records are bad or labeled as bad."""
    problems: list[Problem] = []
    notes: list[str] = []
    found = [
        [[one.role, one.content, one.train, one.reasoning, one.tool_calls] for one in chat.messages]
        for chat in read_conversations(name, problems, notes=notes)
    ]
    for problem in problems:
        assert len(problem.what) < 800, problem.what
        assert "\n" not in problem.what
    labels = [int(number) for note in notes for number in re.findall(r"reply is bad: (\d+) record", note)]
    return {"chats": found, "bad": sum(problem.n for problem in problems), "labeled": sum(labels)}


# The second reader

ROLES = {"system": "s", "developer": "s", "tool": "t", "function": "t", "observation": "t"}
ROLES |= dict.fromkeys(("user", "human"), "u") | dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bot", "ai", "model"), "a"
)
FULL = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
PROMPTS = ("instruction", "prompt", "question", "query", "user", "human", "input")
REPLIES = ("output", "response", "completion", "answer", "answers", "assistant", "bot", "reply")
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")


class Bad(Exception):
    """A record that can't be used."""


def need(condition: Any) -> None:
    if not condition:
        raise Bad


def naive_chats(name: str) -> Any:
    """The program's result, if it is confirmed; otherwise what is wrong with it."""
    taken, (records, whole) = chats(name), naive_records(Path(name).read_bytes())
    expected: dict[str, Any] = {"chats": [], "bad": 0, "labeled": 0}
    for record in records:
        try:
            messages, good = naive_record(record)
            if (text := lost(record)) is not None:
                return {"lost": text}
        except (Bad, ValueError, TypeError, LookupError, AttributeError, StopIteration, RecursionError):
            expected["bad"] += 1
            continue
        if good:
            expected["chats"].append(messages)
        else:
            expected["labeled"] += 1
    if whole:
        return expected
    n = len(taken["chats"])  # what precedes the damage is read, at most
    return taken if taken["chats"] == expected["chats"][:n] and taken["bad"] >= 1 else expected


def naive_records(data: bytes) -> tuple[list[Any], bool]:
    """The records of a file (Bad for one that can't be read), and whether all of it can be read."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines[0].lstrip(b" \t").startswith((b"{", b"[")) and b"," in lines[0]:
        return _rows(data)
    first = lines[0].strip()
    if first.startswith(b"[") or (
        first.startswith(b"{") and _is_cut(first) and not any(one.startswith(b'{"') for one in lines[1:])
    ):
        text, records = data.decode("utf-8", "replace").lstrip(), []
        try:
            value = json.loads(data.decode())
            records = value if isinstance(value, list) else [value]
            if records and all(map(_is_message, records[:1])):
                return [records], True
            return records, True
        except (ValueError, RecursionError):
            return list(_prefix(text)), False
    return [_line(line) for line in lines], True


def lost(record: Any) -> str | None:
    """A text of a record that is in none of its messages, while its key is not named as unused."""
    chat = read_record(record, KeyNames())
    messages = [*chat.messages, *(chat.rejected or [])]
    kept = "\0".join(text for one in messages for value in vars(one).values() for _, text in _texts(value))
    kept += "\0".join(text for tool in chat.tools for _, text in _texts(tool))
    for path, text in _texts({"messages": record} if isinstance(record, list) else record):
        key = ".".join(path)
        if path[-1] in ("role", "from", "type", *LABELS) or any(
            f"{key}.".startswith(f"{name.partition(' after the first')[0]}.") for name in chat.unused
        ):
            continue
        if path[-1] in ("tools", "functions", "arguments", "tool_calls", "value", "history") and text[:1] in ("[", "{"):
            continue  # JSON in a text
        for piece in re.split(r"<\|\w+\|>|\n\n(?:Human|Assistant):|\A\s*Human:", text):
            if piece.strip() and piece.strip() not in kept:
                return f"{key}: {text[:100]}"
    return None


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, text) of all texts in a record."""
    if isinstance(value, str):
        yield path, value
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and not any(key in value for key in LISTS)
        and any(isinstance(value.get(key), str) for key in ("role", "from"))
        and any(key in value for key in ("content", "value", "text", "parts"))
    )


def _is_cut(line: bytes) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        pass
    return False


def _prefix(text: str) -> Iterator[Any]:
    """The values of a damaged array, or in a row, up to the damage."""
    at = 1 if text.startswith("[") else 0
    while at < len(text):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        try:
            value, at = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield value


def _line(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return Bad


def _rows(data: bytes) -> tuple[list[Any], bool]:
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except (ValueError, csv.Error):
        rows = list(_until_error(csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), strict=True)))
        whole = False
    else:
        whole = True
    names = [name.strip() for name in rows[0]]
    names = [name.lower() if name.lower() in (*PROMPTS, *REPLIES, "system", "context") else name for name in names]
    return [dict(zip(names, row, strict=True)) if len(row) == len(names) else Bad for row in rows[1:] if row], whole


def _until_error(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error:
        return


def naive_record(record: Any) -> tuple[Any, bool]:
    """(messages as in `chats`, whether they are labeled as good). Raises Bad, or anything that a wrong type leads to."""
    need(record is not Bad)
    record = {"messages": record} if isinstance(record, list) and record else record
    need(isinstance(record, dict))
    messages = naive_messages(record)
    system = _system(record)
    messages = [one for one in messages if one[0] != "system" or one[1].strip()]
    if system and messages[:1] and messages[0][0] != "system":
        messages.insert(0, ["system", system, True, None, None])
    order = "".join("c" if one[4] else one[0][0] for one in messages)
    need(re.fullmatch("s?(u(ct+)*(c|a)|u(ct+)*a)+", order) or re.fullmatch("s?(u(ct+)*[ac])+", order))
    for role, content, _, reasoning, calls in messages:
        need(content.strip() or ((calls or role == "tool") and content == ""))
        need(reasoning is None or role == "assistant")
        need(not calls or role == "assistant")
    need(any(one[2] for one in messages if one[0] == "assistant"))
    for key in ("tools", "functions"):
        tools = record.get(key) or []
        tools = (json.loads(tools) if tools.strip() else []) if isinstance(tools, str) else tools
        need(isinstance(tools, list) and all(isinstance(tool, dict) and tool for tool in tools))
    label = next((record[key] for key in ("label", "kto_tag") if _given(record.get(key))), None)
    label = label.strip().lower() if isinstance(label, str) else label
    is_false = label in ("false", "0") or (isinstance(label, bool | int | float) and label == 0)
    return messages, not is_false


def _given(value: Any) -> bool:
    return not (value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()))


def _first(record: Any, keys: Any) -> str:
    return next(
        (key for key in keys if _given(record.get(key))), next((key for key in keys if record.get(key) is not None), "")
    )


def _system(record: Any) -> str | None:
    key = _first(record, ("system", "system_prompt", "system_message"))
    if not key or not _given(record[key]):
        return None
    need(isinstance(record[key], str))
    return str(record[key])


def _pair(record: Any) -> tuple[str, str]:
    for pair in (("instruction", "output"), ("prompt", "completion"), ("question", "answer")):
        if all(record.get(key) is not None for key in pair):
            return pair
    return _first(record, PROMPTS), _first(record, REPLIES)


def naive_messages(record: Any) -> list[Any]:
    listed = _first(record, LISTS)
    if isinstance(record.get("chosen"), str | list | dict):
        return _chosen(record, listed)
    if listed:
        return _turns(record[listed])
    prompt, reply = _pair(record)
    if prompt and reply:
        return _exchange(record, prompt, reply)
    need(isinstance(record.get("text"), str))
    return _marked(record["text"])


def _exchange(record: Any, prompt: str, reply: str) -> list[Any]:
    value = record[reply]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        replies = _turns(value)
    else:
        if reply in ("answer", "answers"):
            if isinstance(value, dict):
                key = _first(value, ("text", "value"))
                value = value[key] if key else value
            value = value[0] if isinstance(value, list) else value
        need(isinstance(value, str))
        replies = [["assistant", value, True, None, None]]
    return [*_asked(record, prompt), *replies]


def _asked(record: Any, prompt: str) -> list[Any]:
    history = record.get("history") or []
    history = json.loads(history) if isinstance(history, str) and history.strip() else history or []
    need(isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history))
    need(all(isinstance(text, str) for pair in history for text in pair))
    before = [
        [role, text, True, None, None]
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    value = record[prompt]
    if isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("Human:")):
        turns = _turns(value) if isinstance(value, list) else _spoken(value)
        return [*before, *([role, text, role != "assistant", *rest] for role, text, _, *rest in turns)]
    texts = [value, *(record.get(key) for key in ("input", "context") if key != prompt)]
    need(all(text is None or isinstance(text, str) for text in texts))
    return [*before, ["user", "\n\n".join(text for text in texts if text and text.strip()), True, None, None]]


def _chosen(record: Any, listed: str) -> list[Any]:
    both = []
    for key in ("chosen", "rejected"):
        value = record.get(key)
        if isinstance(value, str):
            spoken = value.lstrip().startswith("Human:")
            both.append(_spoken(value) if spoken else [["assistant", value.strip(), True, None, None]])
        elif value is not None:
            need(isinstance(value, list | dict))
            both.append(_turns([value] if isinstance(value, dict) else value))
    starts_itself = [messages[0][0] in ("user", "system") for messages in both]
    prompt = _first(record, PROMPTS)
    if not starts_itself[0]:
        need(prompt or listed)
        before = (
            _asked(record, prompt)
            if prompt
            else [[r, t, r != "assistant", *x] for r, t, _, *x in _turns(record[listed])]
        )
        both = [
            messages if whole else [*before, *messages] for messages, whole in zip(both, starts_itself, strict=True)
        ]
    else:
        for key in (prompt, listed):
            if key and isinstance(record[key], list) and record[key]:
                _turns(record[key])
    chosen, other = both[0], both[1] if len(both) > 1 else []
    common = 0
    while (
        common < min(len(chosen), len(other))
        and [(m[0], m[1].strip()) for m in (chosen[common], other[common])].count(
            (chosen[common][0], chosen[common][1].strip())
        )
        == 2
    ):
        common += 1
    last = max((at for at, one in enumerate(chosen) if one[0] == "assistant"), default=0)
    common = min(common, last)
    return [[r, t, r != "assistant" if at < common else train, *x] for at, (r, t, train, *x) in enumerate(chosen)]


def _spoken(text: str) -> list[Any]:
    pieces = re.split(r"\n\n(?=Human:|Assistant:)", text.lstrip())
    made = []
    for piece in pieces:
        who, _, said = piece.partition(":")
        made.append(["user" if who == "Human" else "assistant", said.strip(), True, None, None])
    return made[:-1] if made[-1][:2] == ["assistant", ""] else made


def _marked(text: str) -> list[Any]:
    if text.lstrip().startswith("Human:"):
        return _spoken(text)
    pieces = re.split(r"<\|(system|user|assistant|endoftext)\|>", text)
    need(len(pieces) > 1 and not pieces[0].strip())
    made = []
    for role, said in zip(pieces[1::2], pieces[2::2], strict=True):
        need(role != "endoftext" or not said.strip())
        if role != "endoftext":
            made.append([role, said.strip(), True, None, None])
    return made


def _turns(turns: Any) -> list[Any]:
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = json.loads(turns)
    need(isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns))
    made = []
    for turn in turns:
        role = _first(turn, ("role", "from"))
        pair = _pair(turn) if not role else ("", "")
        if all(pair):
            system = _system(turn)
            made += [["system", system, True, None, None]] if system else []
            made += _exchange(turn | {"history": None}, *pair)
        else:
            made.append(_turn(turn, role))
    return made


def _turn(turn: Any, role_key: str) -> list[Any]:
    need(role_key)
    name = turn[role_key]
    need(isinstance(name, str))
    name = name.strip().lower()
    role = "assistant" if name == "function_call" else FULL[ROLES[name]]
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    key = _first(turn, ("content", "value", "text", "parts"))
    need(key or calls)
    content = _text(turn[key]) if key else ""
    if name == "function_call":
        calls, content = json.loads(content), ""
        calls = calls if isinstance(calls, list) else [calls]
        need(calls)
    if calls:
        need(isinstance(calls, list))
        calls = tuple(_call(call) for call in calls)
    content = "" if (calls or role == "tool") and not content.strip() else content
    thought = _first(turn, ("reasoning", "reasoning_content", "thinking"))
    reasoning = turn[thought] if thought and _given(turn[thought]) else None
    need(reasoning is None or isinstance(reasoning, str))
    train = next((turn[key] for key in ("train", "weight") if turn.get(key) is not None), True)
    need(train in (True, False))
    for key in ("name", "tool_call_id"):
        need(role != "tool" or turn.get(key) is None or isinstance(turn[key], str))
    return [role, content, bool(train), reasoning, calls or None]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    need(isinstance(content, list))
    made = ""
    for part in content:
        if isinstance(part, dict):
            need(part.get("type") is None or part["type"] in ("text", "input_text", "output_text"))
            part = part[next(key for key in ("text", "value", "content", "") if key in part)]
        need(isinstance(part, str))
        made += part
    return made


def _call(call: Any) -> dict[str, Any]:
    need(isinstance(call, dict))
    function = call.get("function", call)
    need(isinstance(function["name"], str) and function["name"].strip())
    arguments = function.get("arguments")
    arguments = (json.loads(arguments) if arguments.strip() else {}) if isinstance(arguments, str) else arguments
    need(arguments is None or isinstance(arguments, dict))
    need(call.get("id") is None or isinstance(call["id"], str))
    known = {"type": "function"} | ({"id": call["id"]} if call.get("id") is not None else {})
    return known | {"function": {"name": function["name"], "arguments": arguments or {}}}


def _change_value(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A key of the file with another name that means something."""
    keys = (
        *PROMPTS,
        *REPLIES,
        *LISTS,
        "context",
        "system",
        "label",
        "chosen",
        "rejected",
        "role",
        "from",
        "content",
        "value",
        "train",
    )
    old = rng.choice(re.findall(rb'"(\w+)":', data) or [b"x"])
    new = rng.choice(keys).encode()
    places = [match.start() for match in re.finditer(b'"' + old + b'":', data)]
    at = rng.choice(places) if places else 0
    return data[:at] + data[at:].replace(b'"' + old + b'":', b'"' + new + b'":', 1), f"{old!r} renamed to {new!r}"


def targets(folder: Path) -> list[Target]:
    fixture = folder / "chats"
    fixture.mkdir()
    out = io.StringIO()
    writer = csv.DictWriter(out, list(PLAIN[0]))
    writer.writeheader()
    writer.writerows(PLAIN)
    contents = {
        "chats.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS),
        "chats.json": json.dumps(RECORDS[:8], indent=1),
        "bare.json": json.dumps([USER, REPLY, USER, REPLY]),
        "chats.csv": out.getvalue(),
    }
    for name, content in contents.items():
        (fixture / name).write_text(content, newline="")
    json_changes = (*BY_SUFFIX[".json"], *BYTES, _change_value, _change_value, elsewhere)
    changes = {
        ".jsonl": (*BY_SUFFIX[".jsonl"] * 2, *BYTES, *[_change_value] * 6, elsewhere),
        ".json": json_changes,
        ".csv": (*BY_SUFFIX[".txt"] * 3, *BYTES, elsewhere),
    }
    weights = {"chats.jsonl": 4, "chats.json": 2, "bare.json": 1, "chats.csv": 1}
    return [
        Target(
            name,
            fixture,
            [Path(name)],
            partial(chats, name),
            partial(naive_chats, name),
            changes=changes,
            weight=weights[name],
        )
        for name in contents
    ]

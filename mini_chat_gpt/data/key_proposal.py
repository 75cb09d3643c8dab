"""The sentence for a record whose keys are not known, with a value of `chats.keys` that may fit."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_chat_gpt.common.chat_keys import CONTENTS, LISTS, PREFERENCE, PROMPTS, RECORD, REPLIES, ROLES
from mini_chat_gpt.common.errors import nearest
from mini_chat_gpt.data.record_fields import Fields, KeyNames, is_blank, quoted

FORMS = "messages, prompt + response, chosen, text"
_ASKS = re.compile(
    r"user|human|quer|quest|prompt|instr|input|request|source|src|ask|problem|task|title|ticket|mail|message|review|comment|^text$",
    re.I,
)
_REPLIES = re.compile(
    r"assist|bot|answer|respon|repl|output|target|tgt|complet|model|summar|label|solution|department|intent|sentiment|class",
    re.I,
)
_CONTAINERS = frozenset({
    "data", "dataset", "records", "rows", "items", "examples", "entries", "samples", "chats", "pairs", "qa", "train", "test",
    "validation",
})  # fmt: skip
"""Keys under which one object has all records of a file."""
_LONG_ROLE = 60
_REPLYING = re.compile(rf"{_REPLIES.pattern}|agent|support|character", re.I)
_ABOUT = re.compile(
    r"(^|_)(id|uid|uuid|source|url|lang|language|category|type|split|date|time|timestamp|model|hash)$", re.I
)


def unknown_form(fields: Fields, prompt: str, reply: str) -> str:
    """What is wrong with a record that has no known form. It has only one of the keys for a prompt and a reply, or neither ("")."""
    for ours, theirs in fields.keys.names.items():
        if ours in RECORD and theirs is not None and not fields.has(ours):
            what = f'it has no "{theirs}", which chats.keys names for {ours}'
            return f"{what}; it has {quoted(fields.values) or 'no keys'}{nearest(theirs, map(str, fields.values))}"
    if prompt and (null := next((key for key in REPLIES if fields.has(key)), "")):
        return f"{fields.name(null)} is null; it must be text"
    if prompt:
        what = f"it has {fields.name(prompt)} but no reply"
    elif reply:
        what = f"it has {fields.name(reply)} but no prompt"
    else:
        what = f"its keys ({quoted(fields.values)}) are not those of a chat" if fields.values else "it has no keys"
    if proposal := propose(fields.values, prompt, reply):
        return f"{what}; {_name_keys(fields, proposal)}"
    add = 'add it as "response"; ' if prompt else ""
    return f"{what}; {add}known forms are {FORMS} (docs/your-own-chats.md)"


def other_names(fields: Fields) -> str:
    """What to do with a record whose "text" is not a chat: name its keys, if it has two texts; else ""."""
    proposal = propose(fields.values, "", "")
    return _name_keys(fields, proposal) if len(proposal) > 1 else ""


def _name_keys(fields: Fields, proposal: Mapping[str, str]) -> str:
    return f"name its keys, for example with {setting(fields.keys, proposal)}"


def setting(keys: KeyNames, proposal: Mapping[str, str]) -> str:
    """`chats.keys` as it is typed: with what it has already, and a proposal."""
    names = {ours: theirs for ours, theirs in keys.names.items() if theirs is not None} | dict(proposal)
    written = ", ".join(f"{ours}: {_yaml(theirs)}" for ours, theirs in names.items())
    return f"chats.keys={shlex.quote(f'{{{written}}}')}"


def propose_roles(turns: Sequence[Mapping[Any, Any]], key: str, keys: KeyNames) -> dict[str, str]:
    """Who the unknown roles of a list of messages may be; {} if there are none. The first to speak is most often the user."""
    roles = list(dict.fromkeys(turn[key] for turn in turns[:100] if isinstance(turn.get(key), str)))
    unknown = [role for role in roles if keys.role(role) is None and 0 < len(role) <= _LONG_ROLE]
    known = {keys.role(role) for role in roles}
    proposal: dict[str, str] = {}
    if "assistant" not in known and (len(unknown) > 1 or (unknown and "user" in known)):
        proposal["assistant"] = _best(unknown[:2], _REPLYING, last=True)
    others = [role for role in unknown if role not in proposal.values()]
    return {"user": others[0]} | proposal if others and "user" not in known else proposal


def other_layout(values: Mapping[Any, Any]) -> str:
    """What to do with an object that has the records of a whole file in it; "" for other ones."""
    if isinstance(values.get("mapping"), dict):
        return f"it is a chat of ChatGPT's export, a tree, which is not read; convert it to one of the forms {FORMS}"
    if not values.keys() & {*LISTS, *PROMPTS, *REPLIES}:
        for name, records in _lists(values):
            if name.rpartition(".")[2].lower() in _CONTAINERS and not records[0].keys() & {*ROLES}:
                return f"its \"{name}\" is a list of records; give that list, for example with jq -c '.{name}[]' FILE > NEW.jsonl"
    columns = [value for key, value in values.items() if key in (*PROMPTS, *REPLIES)]
    if len(columns) > 1 and all(map(_is_column, columns)):
        return 'it has all texts of a column in one; write an object for each row (in pandas with orient="records")'
    texts = [key for key, value in values.items() if isinstance(value, str)]
    if len(texts) == len(values) > 1 and sum(len(str(key).split()) > 2 for key in texts) > len(texts) / 2:
        return 'its keys are whole texts; write each pair as an object, such as {"prompt": "…", "response": "…"}'
    return ""


def _is_column(value: Any) -> bool:
    """Whether a value has the texts of several records: a list, or an object with the numbers of the rows."""
    texts = list(value.values()) if isinstance(value, dict) else value
    is_numbered = not isinstance(value, dict) or all(str(key).isdigit() for key in value)
    return isinstance(texts, list) and bool(texts) and is_numbered and all(isinstance(text, str) for text in texts)


def propose(record: Mapping[Any, Any], prompt: str, reply: str) -> dict[str, str]:
    """A value of `chats.keys` that makes a record one of the known forms; {} if nothing in it looks like a chat."""
    for name, turns in _lists(record):
        names = {} if name in LISTS else {"messages": name}
        if (inner := _message_keys(turns)) is not None:
            return names | inner
    texts = [str(key) for key, value in record.items() if isinstance(value, str) and not is_blank(value)]
    texts = [key for key in texts if not _ABOUT.search(key)] or texts
    texts = [key for key in texts if key not in PREFERENCE]  # a rejected reply is never trained on
    if prompt:
        others = [key for key in texts if key not in PROMPTS]
        return {"response": _best(others, _REPLIES, last=True)} if others else {}
    if reply:
        others = [key for key in texts if key not in REPLIES]
        return {"prompt": _best(others, _ASKS, last=False)} if others else {}
    if len(texts) < 2:
        return {}
    asks = _best([key for key in texts if not _REPLIES.search(key)] or texts, _ASKS, last=False)
    return {"prompt": asks, "response": _best([key for key in texts if key != asks], _REPLIES, last=True)}


def _best(names: Sequence[str], pattern: re.Pattern[str], last: bool) -> str:
    """The name that fits a pattern, otherwise the first or the last one."""
    return next((name for name in names if pattern.search(name)), names[-1 if last else 0])


def _lists(record: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """(name, value) of the lists of objects in a record and in its objects."""
    for key, value in record.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value[:20]):
            yield f"{before}{key}", value
    for key, value in record.items():
        if isinstance(value, dict) and not before:
            yield from _lists(value, f"{key}.")


def _message_keys(turns: Sequence[Mapping[Any, Any]]) -> dict[str, str] | None:
    """The names of role and content in a list of messages, where they differ from the known ones; None if it looks like none."""
    first = turns[0]
    if first.keys() & {*PROMPTS} and first.keys() & {*REPLIES}:  # an exchange
        return {}
    texts = [key for key in first if isinstance(key, str) and isinstance(first[key], str)]
    role = next((key for key in ROLES if key in texts), "")
    content = next((key for key in CONTENTS if key in first), "")
    lengths = {key: max(len(str(turn.get(key, ""))) for turn in turns[:20]) for key in texts}
    named: dict[str, str] = {}
    if not content:
        others = [key for key in texts if key != role]
        if not others:
            return None
        named["content"] = content = max(others, key=lambda key: lengths[key])
    if not role:
        others = [key for key in texts if key != content and lengths[key] <= 40 and not _ABOUT.search(key)]
        if not others:
            return None
        named = {
            "role": min(
                others, key=lambda key: len({turn.get(key) for turn in turns[:20] if isinstance(turn.get(key), str)})
            )
        } | named
    return named


def _yaml(name: str) -> str:
    """A name as it is written within braces in YAML."""
    return name if re.fullmatch(r"[A-Za-z_][\w.-]*", name) else json.dumps(name, ensure_ascii=False)

"""The first mistakes in files of chats: the error says what to do next, and where it proposes a setting, this setting works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import Conversation, named_places, read_conversations

QUESTION, ANSWER = "What is the capital of France?", "Paris, of course."


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CHAT = {"messages": [said("user", QUESTION), said("assistant", ANSWER)]}
GOOD = json.dumps(CHAT) + "\n"


def written(folder: Path, content: str | bytes | Any, name: str = "chats.jsonl") -> Path:
    data = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    path = folder / name
    path.write_bytes(data)
    return path


def read(path: Path, *settings: str) -> list[Conversation]:
    return list(read_conversations(path, keys=load_config(None, list(settings)).chats.keys))


def error_of(path: Path, *settings: str) -> str:
    with pytest.raises(UserError) as error:
        read(path, *settings)
    return str(error.value)


BY_SETTING = {
    "columns": ([{"customer": QUESTION, "agent": ANSWER}], "chats.keys='{prompt: customer, response: agent}'"),
    "roles": (
        {"messages": [said("customer", QUESTION), said("agent", ANSWER)]},
        "chats.keys='{user: customer, assistant: agent}'",
    ),
    "roles of a game": (
        {"messages": [said("NPC-1", "Who is there?"), said("player one", "Me")]},
        """chats.keys='{user: NPC-1, assistant: "player one"}'""",
    ),
    "a role beside a known one": (
        {"messages": [said("user", QUESTION), said("teacher", ANSWER)]},
        "chats.keys='{assistant: teacher}'",
    ),
    "roles swapped": (
        {"messages": [said("assistant", QUESTION), said("user", ANSWER)]},
        "chats.keys='{user: assistant, assistant: user}'",
    ),
}


@pytest.mark.parametrize(("content", "setting"), BY_SETTING.values(), ids=BY_SETTING)
def test_the_proposed_setting_reads_the_file(tmp_path: Path, content: Any, setting: str) -> None:
    path = written(tmp_path, content)
    text = error_of(path)
    assert setting in text
    assert "--skip-bad" not in text  # it would leave nothing
    (chat,) = read(path, *shlex.split(setting))
    assert [message.role for message in chat.messages] == ["user", "assistant"]


JQ = "for example with jq -c . FILE > NEW_FILE"
BY_HAND = {
    "the chats of an object": (
        {"version": 1, "data": {"train": [CHAT]}},
        """its "data.train" is a list of records; give that""",
    ),
    "pairs of an object": ({"data": [{"question": "a", "answer": "b"}]}, "with jq -c '.data[]' FILE > NEW.jsonl."),
    "a table by columns": (
        {"question": ["a", "b"], "answer": ["c", "d"]},
        "it has all texts of a column in one; write an object for",
    ),
    "pandas' default": ({"question": {"0": "a"}, "answer": {"0": "c"}}, 'in pandas with orient="records").'),
    "questions as keys": (
        {QUESTION: ANSWER, "Who wrote Faust?": "Goethe"},
        "its keys are whole texts; write each pair as an object",
    ),
    "ChatGPT's export": ([{"title": "Eggs", "mapping": {"a": {"message": None}}}], "it is a chat of ChatGPT's export"),
    "printed by Python": (repr(CHAT), "write keys and texts in double quotes, as Python's json.dumps does"),
    "a Python list in a table": (
        'messages\n"' + str(CHAT["messages"]).replace('"', '""') + '"\n',
        "it is written by Python, not as JSON: use json.dumps",
    ),
    "two records on a line": (GOOD.strip() + GOOD, f"; write each record on a line of its own, {JQ}."),
    "a record over several lines": (
        GOOD + json.dumps(CHAT, indent=2) + "\n" + GOOD,
        f"line 2: it is not valid JSON: the line ends within an object; write each record on one line, {JQ}. Correct it,",
    ),
    "a quotation mark": (
        GOOD + '{"prompt": "He said "hi"", "response": "b"}',
        r"""a comma is missing, or a quotation mark in a text, which is written \". Correct it, or skip it with --skip-bad.""",
    ),
    "a line break in a text": (
        '{"prompt": "a\tb", "response": "b"}',
        r"write a line break in a text as \n, and a tab as \t.",
    ),
    "a path of Windows": (r'{"prompt": "C:\dir", "response": "b"}', r"write a backslash as \\."),
    "a comma before the end": ('{"prompt": "a", "response": "b",}', "remove the comma before the bracket."),
    "None": ('{"prompt": "a", "response": None}', "write null, true or false."),
    "Windows-1252": (
        GOOD.encode() + GOOD.replace("Paris", "Köln").encode("cp1252"),
        "it seems to be Windows-1252: save the file as UTF-8, for example with iconv",
    ),
    "a table in Windows-1252": (
        "question;answer\na;Köln\n".encode("cp1252"),
        "0xf6 in it is not UTF-8, and what follows can't be read; it seems to be Windows-1252",
    ),
    "an encoding of two bytes": (
        b'{"prompt": "\xc4\xe3\xba\xc3", "response": "b"}',
        "is not UTF-8; save the file as UTF-8.",
    ),
    "an empty cell": (
        "prompt,completion\na,\nb,\n",
        '2 records (lines 2, 3): "completion" has no text; add text, or remove the record.',
    ),
    "a number": ([{"question": "a", "answer": 4}], '"answer" is a number; it must be text, such as "4".'),
    "questions only": ([{"question": "a"}], 'it has "question" but no reply; add it as "response"; known forms'),
    "only rejected replies": (
        [{"prompt": "a", "rejected": "b"}],
        'it has "prompt" but no reply; add it as "response"; known forms',
    ),
    "a greeting first": (
        {"messages": [said("assistant", "Hi!"), *CHAT["messages"]]},
        "it begins with an assistant message; remove it, or put",
    ),
    "thanks at the end": (
        {"messages": [*CHAT["messages"], said("user", "Thanks")]},
        "it ends with a user message, which has no reply; add a reply, or remove the message.",
    ),
    "ChatML": (
        [{"text": f"<|im_start|>user\n{QUESTION}<|im_end|>"}],
        'another chat template (<|im_start|>); write chats as {"messages": […]}',
    ),
    "Alpaca's prompt": (
        [{"text": f"### Instruction:\n{QUESTION}\n\n### Response:\n{ANSWER}"}],
        "another chat template (### Instruction:);",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), BY_HAND.values(), ids=BY_HAND)
def test_the_error_says_what_to_do(tmp_path: Path, content: Any, sentence: str) -> None:
    text = error_of(written(tmp_path, content))
    assert sentence in text
    assert len(text) < 400 + len(str(tmp_path))
    has_a_good_record = isinstance(content, str | bytes) and content[: len(GOOD)] in (GOOD, GOOD.encode())
    assert ("skip it with --skip-bad" in text) == has_a_good_record


def test_a_table_without_a_first_line_of_names_says_so(tmp_path: Path) -> None:
    text = error_of(written(tmp_path, f'"{QUESTION}","{ANSWER}"\n"a","b"\n', "chats.csv"))
    assert "has no known column: its first line is " in text
    assert text.endswith("; write the names of the columns there, such as question,answer.")


@pytest.mark.parametrize("content", ["[12/03/24, 10:00] Anna: Hi\n", "[3 of 4] The end\n"])
def test_a_text_that_begins_with_a_bracket_is_plain_text(tmp_path: Path, content: str) -> None:
    assert "is plain text: no line of its beginning is a record." in error_of(written(tmp_path, content, "chat.txt"))


def test_xml_is_named(tmp_path: Path) -> None:
    assert "is XML; convert it to JSON Lines or CSV." in error_of(
        written(tmp_path, "<?xml version='1.0'?><a/>", "a.xml")
    )


def test_a_misspelled_key_is_named_and_not_one_that_the_records_have(tmp_path: Path) -> None:
    path = written(tmp_path, {"customer": QUESTION, "agent": ANSWER})
    problems: list[Any] = []
    with pytest.raises(UserError, match=r'No record has "agnet", .*; did you mean \'agent\'\?'):
        list(read_conversations(path, problems, {"prompt": "customer", "response": "agnet"}))


def test_problems_with_an_apostrophe_are_grouped(tmp_path: Path) -> None:
    rows = "".join(f"\"[{{'role': '{n}\"\n" for n in "abcdefg")
    assert "7 records (lines 2, 3, 4, …): " in error_of(written(tmp_path, "messages\n" + rows))


@pytest.mark.parametrize(
    ("places", "n", "text"),
    [
        (["line 3"], 1, "line 3"),
        (["line 3", "line 5"], 2, "lines 3, 5"),
        (["record 1, line 2", "record 2, line 3"], 5, "lines 2, 3, …"),
        (["record 1", "record 4"], 2, "records 1, 4"),
        (["a.jsonl, line 1", "a.jsonl, line 2"], 2, "a.jsonl, lines 1, 2"),
        (["a.jsonl, line 1", "b.jsonl, line 2"], 3, "a.jsonl, line 1, b.jsonl, line 2, …"),
    ],
)
def test_places_of_the_same_kind_are_named_together(places: list[str], n: int, text: str) -> None:
    assert named_places(places, n) == text
    assert re.search(r"lines? |records? ", text)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("chats.keys={customer: prompt, agent: response}", "chats.keys='{prompt: customer, response: agent}'"),
        ("chats.keys={prompt:", "ends at a space, where the shell divides it; put quotes around it"),
        ("sft.output_dir=runs/x", "sft.output_dir is not a setting; did you mean sft.save_dir?"),
        ("num_train_epochs=3", "num_train_epochs is not a setting; did you mean sft.epochs or pretrain.epochs?"),
        ("sft.dataset=chats.jsonl", "sft.dataset is not a setting; did you mean chats.files?"),
    ],
)
def test_a_setting_that_is_written_otherwise_is_shown(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert sentence in str(error.value)

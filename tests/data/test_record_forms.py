"""Forms of chat records as public data sets have them, other names of keys, and the report of keys that are not used."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import Conversation, Problem, read_conversations

HI, HELLO = Message("user", "Hi"), Message("assistant", "Hello!")
USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
BAD_REPLY = {"role": "assistant", "content": "Go away."}


def read(
    tmp_path: Path, *records: Any, keys: Any = None, content: str | None = None
) -> tuple[list[Conversation], list[str]]:
    """The conversations of a file with these records, and the notes about it."""
    path = tmp_path / "chats"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) if content is None else content)
    notes: list[str] = []
    found = list(read_conversations(path, keys=keys, notes=notes))
    return found, [note.removeprefix(f"{path}: ") for note in notes]


FORMS: list[Any] = [
    {"instruction": "Hi", "response": "Hello!"},
    {"prompt": "Hi", "response": "Hello!"},
    {"input": "Hi", "output": "Hello!"},
    {"query": "Hi", "response": "Hello!"},
    {"user": "Hi", "assistant": "Hello!"},
    {"human": "Hi", "bot": "Hello!"},
    {"question": "Hi", "answer": ["Hello!", "Hello!"]},
    {"question": "Hi", "answers": {"text": ["Hello!"]}},
    {"question": "Hi", "answer": {"value": "Hello!"}},
    {"instruction": "Hi", "context": "", "response": "Hello!", "input": None},
    {"prompt": [USER], "completion": [REPLY], "label": True},
    {"prompt": "Hi", "completion": "Hello!", "label": "True"},
    {"messages": [{"role": "Human", "content": "Hi"}, {"role": "ai", "content": "Hello!"}]},
    {"messages": [USER, {"role": "model", "content": "Hello!"}]},
    {"messages": [{"role": "user", "parts": ["H", {"text": "i"}]}, {"role": "model", "parts": [{"text": "Hello!"}]}]},
    {"conversation": [USER, {"role": "bot", "content": "Hello!"}]},
    {"dialogue": [{"from": "user", "text": "Hi"}, {"from": "AI", "text": "Hello!"}]},
    {"conversation": [{"system": "", "input": "Hi", "output": "Hello!"}]},
    {"conversation": [{"human": "Hi", "assistant": "Hello!"}]},
    {"messages": json.dumps([USER, REPLY])},
    [USER, REPLY],
    {"text": "\n\nHuman: Hi\n\nAssistant: Hello!"},
    {"chosen": [USER, REPLY], "rejected": [USER, BAD_REPLY]},
    {"chosen": [REPLY], "rejected": [BAD_REPLY], "prompt": [USER]},
    {"chosen": [REPLY], "rejected": [BAD_REPLY], "prompt": "Hi"},
    {"chosen": [USER, REPLY], "rejected": [USER, BAD_REPLY], "prompt": "Hi"},
    {"chosen": "Hello!", "rejected": "Go away.", "prompt": "Hi"},
    {"chosen": "Hello!", "rejected": "Go away.", "instruction": "Hi", "input": ""},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."},
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " Go away."},
    {"chosen": REPLY, "rejected": BAD_REPLY, "messages": [USER]},
    {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello!"},
        "rejected": {"from": "gpt", "value": "Go away."},
    },
]


@pytest.mark.parametrize("record", FORMS, ids=lambda record: json.dumps(record)[:60])
def test_each_form_is_the_same_conversation_and_every_key_of_it_is_used(tmp_path: Path, record: Any) -> None:
    (found,), notes = read(tmp_path, record)
    assert found.messages == (HI, HELLO)
    assert notes == []
    if "rejected" in record:
        assert found.rejected == (HI, Message("assistant", "Go away."))
    else:
        assert found.rejected is None


@pytest.mark.parametrize("record", [{"instruction": "Add.", "input": "1"}, {"question": "Add.", "context": "1"}])
def test_a_context_stands_under_the_prompt(tmp_path: Path, record: Any) -> None:
    (found,), _ = read(tmp_path, record | {"response": "2"})
    assert found.messages[0].content == "Add.\n\n1"


@pytest.mark.parametrize(
    "record",
    [
        {"system_prompt": "Be kind.", "question": "Hi", "response": "Hello!"},
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, REPLY], "system": "Be kind."},
        {"system": "Be kind.", "prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"conversation": [{"system": "Be kind.", "input": "Hi", "output": "Hello!"}]},
    ],
)
def test_system_texts_of_every_name(tmp_path: Path, record: Any) -> None:
    (found,), notes = read(tmp_path, record)
    assert found.messages == (Message("system", "Be kind."), HI, HELLO)
    assert notes == []


def test_the_roles_of_tools_in_sharegpt_files(tmp_path: Path) -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    turns = [("human", "1 + 1?"), ("function_call", call), ("observation", "2"), ("gpt", "Two.")]
    record = {
        "conversations": [{"from": who, "value": text} for who, text in turns],
        "tools": '[{"name": "add"}]',
    }
    (found,), notes = read(tmp_path, record)
    call_of = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert found.messages == (
        Message("user", "1 + 1?"),
        Message("assistant", "", tool_calls=(call_of,)),
        Message("tool", "2"),
        Message("assistant", "Two."),
    )
    assert found.tools == ({"name": "add"},)
    assert notes == []


def test_only_what_distinguishes_the_chosen_conversation_is_trained(tmp_path: Path) -> None:
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    records = [
        {"chosen": before + "good", "rejected": before + "bad"},
        {"chosen": before + "good", "rejected": before + "good"},
        {"prompt": before, "chosen": "good"},
    ]
    found, _ = read(tmp_path, *records)
    for conversation in found:
        assert [one.train for one in conversation.messages if one.role == "assistant"] == [False, True]
    first, second, third = (one.rejected for one in found)
    assert first is not None
    assert first[-1] == Message("assistant", "bad")
    assert second is not None
    assert third is None


@pytest.mark.parametrize("label", [False, "False", 0, "0"])
def test_a_reply_that_is_labeled_as_bad_is_counted_and_never_trained_on(tmp_path: Path, label: Any) -> None:
    good, bad = {"prompt": "Hi", "completion": "Hello!"}, {"prompt": "Hi", "completion": "Go away."}
    found, notes = read(tmp_path, good | {"label": True}, bad | {"label": label}, good, bad | {"kto_tag": label})
    assert [one.messages for one in found] == [(HI, HELLO)] * 2
    assert notes == ["not trained on, because of a label that says that the reply is bad: 2 records (lines 2, 4)."]


def test_keys_that_are_not_used_are_named_with_their_number(tmp_path: Path) -> None:
    records = [
        {"prompt": "Hi", "response": "Hello!", "score": 0, "id": "a", "label": "greeting", "tags": [], "note": None},
        {"prompt": "Hi", "response": "Hello!", "score": 0.5, "output": "Hello!"},
        {"messages": [USER | {"name": "Ann"}, REPLY | {"id": 3}], "system": ""},
        {"messages": [{"role": "system", "content": "a"}, USER, REPLY], "system": "b"},
        {"question": "Hi", "answers": {"text": ["Hello!", "Hey!"], "answer_start": [1, 5]}},
        {"messages": [{"role": "user", "content": [{"text": "Hi", "lang": "en"}]}, REPLY]},
    ]
    _, notes = read(tmp_path, *records)
    assert notes == [
        'not used: "score" (2 records), "answers" after the first (1 record), "answers.answer_start" (1 record), '
        '"id" (1 record), "label" (1 record), "messages.content.lang" (1 record), "messages.id" (1 record), '
        '"messages.name" (1 record) and 2 others.'
    ]


@pytest.mark.parametrize("dump", [json.dumps, lambda turns: json.dumps(turns, indent=1)])
def test_a_file_that_is_one_list_of_messages_is_one_conversation(tmp_path: Path, dump: Any) -> None:
    (found,), _ = read(tmp_path, content=dump([USER, REPLY, USER, REPLY]))
    assert (found.messages, found.place) == ((HI, HELLO, HI, HELLO), "record 1")
    (found,), _ = read(tmp_path, content="- {from: human, value: Hi}\n- {from: gpt, value: Hello!}\n")
    assert found.messages == (HI, HELLO)
    found_both, _ = read(tmp_path, content=dump([[USER, REPLY], [USER, REPLY]]))
    assert [one.messages for one in found_both] == [(HI, HELLO)] * 2


def test_names_of_your_own_for_keys_and_roles(tmp_path: Path) -> None:
    (found,), notes = read(tmp_path, {"a": "Hi", "b": "Hello!", "c": 1}, keys={"prompt": "a", "response": "b"})
    assert (found.messages, notes) == ((HI, HELLO), ['not used: "c" (1 record).'])
    turns = [{"who": "Guest", "said": "Hi"}, {"who": "Host", "said": "Hello!"}]
    keys = {"messages": "data.turns", "role": "who", "content": "said", "user": "Guest", "assistant": "Host"}
    (found,), notes = read(tmp_path, {"data": {"turns": turns, "n": 2}}, keys=keys)
    assert (found.messages, notes) == ((HI, HELLO), ['not used: "data.n" (1 record).'])
    # A name that is taken no longer has its own meaning, and null means that a key is not read.
    record = {"input": "Hi", "output": "Hello!", "context": ["x"]}
    (found,), notes = read(tmp_path, record, keys={"prompt": "input", "context": None})
    assert (found.messages, notes) == ((HI, HELLO), ['not used: "context" (1 record).'])
    (found,), _ = read(
        tmp_path, {"prompt": "Hello!", "response": "Hi"}, keys={"prompt": "response", "response": "prompt"}
    )
    assert found.messages == (HI, HELLO)


@pytest.mark.parametrize(
    ("record", "keys", "proposal"),
    [
        ({"user_text": "Hi", "bot_text": "Hello!"}, {}, "chats.keys='{prompt: user_text, response: bot_text}'"),
        ({"department": "sales", "ticket": "Hi"}, {}, "chats.keys='{prompt: ticket, response: department}'"),
        ({"intent": "sales", "text": "Hi"}, {}, "chats.keys='{prompt: text, response: intent}'"),
        ({"id": "7", "eng": "Hi", "fra": "Salut"}, {}, "chats.keys='{prompt: eng, response: fra}'"),
        ({"prompt": "Hi", "reaction": "Hello!"}, {}, "chats.keys='{response: reaction}'"),
        ({"a b": "Hi", "c": "Hello!"}, {"response": "c"}, """chats.keys='{response: c, prompt: "a b"}'"""),
        ({"request": "Hi", "response": "Hello!"}, {}, "chats.keys='{prompt: request}'"),
        ({"turns": [USER, REPLY]}, {}, "chats.keys='{messages: turns}'"),
        ({"turns": [{"question": "Hi", "answer": "Hello!"}]}, {}, "chats.keys='{messages: turns}'"),
        (
            {
                "log": {
                    "turns": [{"speaker": "user", "utterance": "Hi there"}, {"speaker": "bot", "utterance": "Hello!"}]
                }
            },
            {},
            "chats.keys='{messages: log.turns, role: speaker, content: utterance}'",
        ),
    ],
)
def test_an_unknown_form_proposes_names_that_work(tmp_path: Path, record: Any, keys: Any, proposal: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, record, keys=keys)
    assert str(error.value).endswith(f"for example with {proposal}.")
    override = proposal.replace("'", "")
    assert len(read(tmp_path, record, keys=load_config(None, [override]).chats.keys)[0]) == 1


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"prompt": "a", "response": "bb"},
            'it has no "bb", which chats.keys names for response; it has "a", "b", "c"',
        ),
        ({"prompt": "a", "response": "b", "system": "cc"}, 'No record has "cc", which chats.keys names for system'),
        ({"prompt": "a", "response": "b", "content": "x"}, 'No record has "x", which chats.keys names for content'),
    ],
)
def test_a_name_that_no_record_has_is_one_sentence(tmp_path: Path, keys: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, {"a": "Hi", "b": "Hello!", "c": "x"}, keys=keys)
    assert sentence in str(error.value)


def test_a_misspelled_key_of_ours_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"chats\.keys: 'respons' is not one of our keys; did you mean 'response'\?"):
        load_config(None, ["chats.keys={respons: bot_text}"])
    assert load_config(None, ["chats.keys.response=bot_text"]).chats.keys == {"response": "bot_text"}
    assert load_config(None, ["chats.keys={prompt:a,label:null}"]).chats.keys == {"prompt": "a", "label": None}
    assert load_config(None, ["chats.keys={label: null}"]).chats.keys == {"label": None}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"question": "Hi", "answer": 4}, '"answer" is a number; it must be text'),
        ({"question": "Hi", "answer": None}, '"answer" is null; it must be text'),
        ({"question": "Hi", "answers": {"text": []}}, '"answers" has no answer in it'),
        ({"question": "Hi", "context": ["x"], "answer": "a"}, '"context" is a list; it must be text'),
        ({"chosen": "Blue.", "rejected": "Green."}, '"chosen" is a reply, but there is no "prompt"'),
        ({"prompt": "Hi", "chosen": []}, '"chosen" is empty'),
        ({"prompt": "Hi", "chosen": "a", "rejected": 5}, '"rejected" is a number; it must be text'),
        ({"system_prompt": 3, "prompt": "Hi", "response": "a"}, '"system_prompt" is a number; it must be text'),
        ({"messages": [USER, {"role": "function_call", "content": "add"}]}, "the tool calls of message 2 can't be read as JSON"),
        ({"messages": [{"role": "Guest", "content": "Hi"}, REPLY]}, "chats.keys='{user: Guest}'"),
        ({"messages": [USER, {"role": "assistant", "content": "a" + " " * 1_000_000 + "b"}]}, "message 2 has 1,000,000 white"),
        ({"messages": [USER, REPLY | {"reasoning": "\t" * 200_000 + "b"}]}, "message 2 has 200,000 white-space characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record(tmp_path: Path, record: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, record)
    assert sentence in str(error.value)


def test_arguments_of_tools_that_are_nested_deeply_are_bad_records(tmp_path: Path) -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    call = {"name": "add", "arguments": {"a": deep}}
    for record in (
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]},
        {"messages": [USER, REPLY], "tools": [{"a": deep}]},
    ):
        with pytest.raises(UserError, match="it is nested too deeply"):
            read(tmp_path, record)


def test_equal_problems_are_one_line_with_a_number(tmp_path: Path) -> None:
    records = [{"a": 1}] * 1923 + [{"messages": [USER]}] + [{"messages": [{"role": "user"}]}]
    path = tmp_path / "chats"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    problems: list[Problem] = []
    assert list(read_conversations(path, problems)) == []
    assert [(one.n, one.places) for one in problems] == [
        (1923, ["line 1", "line 2", "line 3"]),
        (1, ["line 1924"]),
        (1, ["line 1925"]),
    ]
    with pytest.raises(UserError) as error:
        list(read_conversations(path))
    text = str(error.value)
    assert text.startswith("1,925 records can't be used:\n")
    assert f"{path}: 1,923 records (lines 1, 2, 3, …): its keys (" in text


def test_tables_with_names_of_your_own(tmp_path: Path) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["user_text", "bot_text"], ["Hi", "Hello!"]])
    (found,), _ = read(tmp_path, content=out.getvalue(), keys={"prompt": "user_text", "response": "bot_text"})
    assert found.messages == (HI, HELLO)
    with pytest.raises(UserError, match=r"chats\.keys='{prompt: user_text, response: bot_text}'"):
        read(tmp_path, content=out.getvalue())
    out = io.StringIO()
    csv.writer(out).writerows([["turns"], [json.dumps([USER, REPLY])]])
    table = "id," + out.getvalue().replace('\n"', '\n1,"')
    (found,), _ = read(tmp_path, content=table, keys={"messages": "turns"})
    assert found.messages == (HI, HELLO)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", " ", "Hi", "[", "[{}]", "\n\nHuman: a", "user", "bot"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "text", "input", "output", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = (
    "messages",
    "conversation",
    "prompt",
    "input",
    "response",
    "answers",
    "context",
    "system",
    "chosen",
    "rejected",
)


@given(st.dictionaries(st.sampled_from([*NAMES, "label", "history", "text", "tools", "x"]), values, max_size=5))
def test_any_values_are_read_or_reported_and_no_key_is_passed_over(
    tmp_path_factory: Any, record: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "chats"
    path.write_text(json.dumps(record))
    problems: list[Problem] = []
    notes: list[str] = []
    found = list(read_conversations(path, problems, notes=notes))
    bad = any("the reply is bad" in note for note in notes)
    assert len(found) + len(problems) + bad == 1
    assert all("\n" not in str(problem) for problem in problems)
    if "x" in record and record["x"] not in (None, "", " ", [], {}) and not problems:
        assert any('"x" (1 record)' in note for note in notes)


@given(words, words)
def test_texts_are_read_unchanged_by_names_of_your_own(tmp_path_factory: Any, question: str, answer: str) -> None:
    path = tmp_path_factory.mktemp("any") / "chats"
    path.write_text(json.dumps({"a.b": question, "c": {"d": answer}}))
    (found,) = read_conversations(path, keys={"prompt": "a.b", "response": "c.d"})
    if not question.strip().startswith("Human:"):
        assert [one.content for one in found.messages] == [question, answer]

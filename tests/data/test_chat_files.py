"""Chat files: every format is converted to messages, and every problem of a file is reported in a sentence."""

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from chat_template_samples import QWEN3
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.json_records import MAX_LINE
from mini_chat_gpt.tokenizer.chat_setup import template_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

HI, HELLO = Message("user", "Hi"), Message("assistant", "Hello!")
FORMS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello!"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {"instruction": "Hi", "input": "", "output": "Hello!"},
    {"instruction": "", "input": "Hi", "output": "Hello!"},
    {"prompt": "Hi", "completion": "Hello!"},
    {"question": "Hi", "answer": "Hello!"},
    {"text": "<|user|>Hi<|assistant|>Hello!<|endoftext|>"},
    {"text": "<|user|>\nHi\n<|assistant|>\nHello!"},
]


def written(folder: Path, content: str | bytes, name: str = "chat.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("record", FORMS)
def test_each_form_is_the_same_conversation(tmp_path, record):
    [conversation] = read_conversations(written(tmp_path, lines(record)))
    assert conversation.messages == (HI, HELLO)


@pytest.mark.parametrize(
    "dump", [lines, lambda *records: json.dumps(records), lambda *records: json.dumps(records, indent=2)]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_forms_may_be_mixed_in_lines_and_arrays_plain_or_gzipped(tmp_path, dump, packed, mark):
    data = mark + dump(*FORMS).encode()
    found = list(read_conversations(written(tmp_path, gzip.compress(data) if packed else data)))
    assert [conversation.messages for conversation in found] == [(HI, HELLO)] * len(FORMS)


def test_a_file_can_have_several_objects_over_several_lines(tmp_path):
    path = written(tmp_path, "\n\n".join(json.dumps(record, indent=1) for record in FORMS))
    found = list(read_conversations(path))
    assert len(found) == len(FORMS)
    text = path.read_text().splitlines()
    assert all(text[int(conversation.place.removeprefix("line ")) - 1] == "{" for conversation in found)


def test_system_texts_and_messages_that_are_not_trained_on(tmp_path):
    path = written(
        tmp_path,
        lines(
            {"system": "Be kind.", "prompt": "Hi", "completion": "Hello!"},
            {"text": "<|system|>Be kind.<|user|>Hi<|assistant|>Hello!"},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No.", "train": False},
                          {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!", "weight": 1}]},
            {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Hi"}],
             "completion": [{"role": "assistant", "content": "Hello!"}]},
        ),
    )  # fmt: skip
    first, second, third, fourth = (conversation.messages for conversation in read_conversations(path))
    assert first == second == (Message("system", "Be kind."), HI, HELLO)
    assert third == fourth == (HI, Message("assistant", "No.", train=False), HI, HELLO)


def test_alpaca_puts_the_input_under_the_instruction(tmp_path):
    [conversation] = read_conversations(
        written(tmp_path, lines({"instruction": "Add.", "input": "1, 2", "output": "3"}))
    )
    assert conversation.messages[0].content == "Add.\n\n1, 2"


GOOD = lines(FORMS[0])


CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "name": "add", "arguments": {"a": 1}},
    ],
)
def test_reasoning_tool_calls_and_tools_are_read_in_the_forms_of_openai_and_hugging_face(tmp_path, call):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "2", "thinking": " \n", "name": "Ann"},
    ]
    expected = (
        Message("user", "1 + 1?"),
        Message("assistant", "", True, "Hm.", (CALL,)),
        Message("tool", "2", name="add", tool_call_id="c1"),
        Message("assistant", "2"),
    )
    for tools in (
        {"tools": [tool]},
        {"tools": json.dumps([tool])},
        {"functions": [tool["function"]]},
    ):
        [conversation] = read_conversations(written(tmp_path, lines({"messages": messages} | tools)))
        assert conversation.messages == expected
        assert conversation.tools == (tool,)


def test_the_older_names_of_tool_calls_and_results_are_read(tmp_path):
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": ""}},
        {"role": "function", "content": " ", "name": "add"},
        {"role": "assistant", "content": "2"},
    ]
    [conversation] = read_conversations(written(tmp_path, lines({"messages": messages})))
    call, result = conversation.messages[1:3]
    assert call.tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {}}},)
    assert result == Message("tool", "", name="add")


def turns(*turns: tuple[object, ...]) -> str:
    """A line with these messages: (role, content) or (role, content, train)."""
    return lines({"messages": [dict(zip(("role", "content", "train"), turn, strict=False)) for turn in turns]})


BAD = [
    ('{"messages": [', "it is not valid JSON: the line ends within an object; write each record on one line"),
    ('{"messages": [}', "it is not valid JSON: Expecting value at column 15"),
    ("Hi there\n", "it is not valid JSON: Expecting value at column 1"),
    ("[1, 2]\n", "it is a list; a conversation is an object such as"),
    ("null\n", "it is null"),
    (
        turns(("robot", "Hi")),
        "message 1 has the role 'robot', which is not known; say whose it is with chats.keys='{user: robot}'",
    ),
    (turns(("user", "Hi"), ("assistant", " ")), "message 2 of 2 (role assistant) has no text"),
    (turns(("system", "a"), ("system", "b")), "message 2 of 2 (role system) is out of place"),
    (turns(("user", "Hi")), "it ends with a user message, which has no reply"),
    (turns(("user", "Hi"), ("assistant", "a", False)), "it has no reply to train on"),
    (turns(("user", "Hi"), ("assistant", "a", "no")), "\"train\" of message 2 is 'no'; it must be true or false"),
    (turns(("user",)), 'message 1 has no "content"'),
    (turns(("user", 3)), "the content of message 1 is a number; it must be text"),
    (
        turns(("user", [{"type": "text", "text": None}])),
        "the text of part 1 of the content of message 1 is null; it must",
    ),
    (
        turns(("user", ["Hi", {"type": "image_url"}])),
        "part 2 of the content of message 1 is of the type 'image_url'; only text",
    ),
    (turns(("user", [3])), "part 1 of the content of message 1 is a number; it must be text"),
    (lines({"instruction": "Hi", "input": 0, "output": "a"}), '"input" is a number; it must be text'),
    (lines({"instruction": "Hi", "output": "a", "system": ["Be kind."]}), '"system" is a list; it must be text'),
    (
        lines({"conversations": [{"from": ["human"], "value": "Hi"}]}),
        "message 1 has the role ['human'], which is not known; known roles are system",
    ),
    (
        lines({"conversations": [{"from": {}, "value": "Hi"}]}),
        "message 1 has the role {}, which is not known; known roles are system",
    ),
    (lines({"messages": "Hi"}), '"messages" must be a list of objects'),
    (lines({"messages": []}), '"messages" is empty'),
    (
        lines({"prompt": "Hi"}),
        'it has "prompt" but no reply; add it as "response"; known forms are messages, prompt + response',
    ),
    (lines({"prompt": "Hi", "completion": ["a"]}), '"completion" is a list; it must be text'),
    (lines({"instruction": "Hi"}), 'it has "instruction" but no reply; add it as "response"'),
    (
        lines({"a": 1, "b": 2}),
        'its keys ("a", "b") are not those of a chat; known forms are messages, prompt + ',
    ),
    (
        lines({"conversations": [{"from": "alien", "value": "Hi"}]}),
        "message 1 has the role 'alien', which is not known; say whose it is with chats.keys='{user: alien}'",
    ),
    (lines({"text": "Once upon a time"}), '"text" has no <|user|> or <|assistant|> in it'),
    (lines({"text": "Once <|user|>Hi<|assistant|>Hello!"}), "\"text\" has words outside of all turns: 'Once'"),
    ("[" * 100_000 + "\n", "it is nested too deeply"),
]


def called(call: object, **record: object) -> str:
    """A conversation with a tool call."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return json.dumps({"messages": messages} | record)


BAD += [
    (called({"function": {"arguments": {}}}), "a tool call of message 2 has no function with a name"),
    (called({"function": "f"}), "a tool call of message 2 has no function with a name"),
    (called({"name": "f", "arguments": "{"}), "the arguments of a tool call of message 2 can't be read as JSON: '{'"),
    (
        called({"name": "f", "arguments": [1]}),
        "the arguments of a tool call of message 2 are a list; they must be an object",
    ),
    (called({"name": "f", "id": 3}), '"id" of message 2 is a number; it must be text'),
    (called("f"), '"tool_calls" of message 2 must be a list of objects'),
    (called({"name": "f"}, tools={"a": 1}), '"tools" must be a list of objects, one for each function'),
    (called({"name": "f"}, tools="[1"), '"tools" can\'t be read as JSON'),
    (called({"name": "f"}, functions=[1]), '"functions" must be a list of objects, one for each function'),
]


@pytest.mark.parametrize(("wrong", "sentence"), BAD)
def test_an_error_names_the_file_and_the_line(tmp_path, wrong, sentence):
    path = written(tmp_path, GOOD + wrong)
    with pytest.raises(UserError) as error:
        list(read_conversations(path))
    assert str(error.value).startswith(f"{path}, line 2: {sentence}")
    assert str(error.value).endswith(". Correct it, or skip it with --skip-bad.")
    problems = []
    assert len(list(read_conversations(path, problems))) == 1
    assert len(problems) == 1


def test_a_byte_that_is_not_utf8(tmp_path):
    for content, place in (
        (GOOD.encode() + b'{"prompt": "\xff"}', "line 2: byte 13"),
        (b'[\n{"prompt": "\xff"}]', "line 2: byte 13"),
    ):
        with pytest.raises(UserError, match=rf"{place} of it \(0xff\) is not UTF-8"):
            list(read_conversations(written(tmp_path, content)))


def test_a_very_long_line_is_skipped_without_being_stored(tmp_path):
    path = written(tmp_path, GOOD + '{"prompt": "' + "a" * 50 * 2**20 + '"}\n' + GOOD)
    problems = []
    assert [one.place for one in read_conversations(path, problems)] == ["line 1", "line 3"]
    assert [str(problem) for problem in problems] == [
        f"{path}, line 2: it is 50 MiB long; the limit for a line is {MAX_LINE >> 20} MiB"
    ]


def test_an_incomplete_gzip_file_gives_the_records_that_it_has(tmp_path):
    records = [{"prompt": f"{os.urandom(20).hex()}", "completion": "Hello!"} for _ in range(2000)]
    path = written(tmp_path, gzip.compress(lines(*records).encode())[:-2000])
    problems = []
    found = list(read_conversations(path, problems))
    assert 0 < len(found) < 2000
    assert "the gzip file is incomplete; get it again" in str(problems[-1])
    with pytest.raises(UserError, match="the gzip file is incomplete"):
        list(read_conversations(path))


def test_an_incomplete_array_is_an_error(tmp_path):
    whole = json.dumps(FORMS, indent=1)
    for end in (whole.rindex("]"), whole.rindex("{") + 5):
        with pytest.raises(UserError, match=r"incomplete|not valid JSON"):
            list(read_conversations(written(tmp_path, whole[:end])))
    with pytest.raises(UserError, match=r"record 1, line 2: a comma or \] is missing after it"):
        list(read_conversations(written(tmp_path, "[\n" + json.dumps(FORMS[0]) + "\n" + json.dumps(FORMS[0]) + "]")))


def test_all_problems_are_reported_at_once_and_counted(tmp_path):
    one = written(tmp_path, lines(*({"prompt": "Hi"} for _ in range(30))), "one.jsonl")
    two = written(tmp_path, lines({"question": "Hi"}), "two.jsonl")
    with pytest.raises(UserError) as error:
        list(read_conversations([one, two]))
    text = str(error.value)
    assert text.startswith("31 records can't be used:\n")
    assert f"  {one}: 30 records (lines 1, 2, 3, …): it has " in text
    assert f"  {two}, line 1: it has " in text


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    for path, sentence in (
        (tmp_path / "no.jsonl", "can't be read"),
        (written(tmp_path, "\n \n"), "contains no conversation; it is empty"),
    ):
        with pytest.raises(UserError, match=sentence):
            list(read_conversations(path, []))


texts = st.text(min_size=1).filter(str.strip)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_an_error_instead_of_endless_records(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        UserError,
        match=r"can't be read .*; give the path of a file in JSON, JSON Lines, CSV, TSV, YAML, Parquet or Arrow",
    ):
        next(read_conversations(tmp_path / name))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_any_text_is_read_unchanged(tmp_path_factory, turns):
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    path = written(tmp_path_factory.mktemp("any"), lines({"messages": messages}))
    [conversation] = read_conversations(path)
    assert [message.content for message in conversation.messages] == [turn["content"] for turn in messages]


def test_real_files_are_read_to_the_last_record():
    folder = os.environ.get("MINI_CHAT_GPT_DATA")
    if not folder:
        pytest.skip("MINI_CHAT_GPT_DATA does not name the folder with real data")
    counts = {path.name: len(list(read_conversations(path))) for path in (Path(folder) / "chat").glob("*.json*")}
    assert counts == {
        "fastchat_dummy_conversation.json": 500,
        "gsm8k_test.jsonl": 1319,
        "llamafactory_alpaca_en_demo.json": 999,
        "rasbt_instruction-data.json": 1100,
    }


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", " ", "f", "{}", '{"a": 1}', "[{}]", "tool", "function"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "arguments", "function", "id", "type", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
EXTRAS = ("tool_calls", "function_call", "reasoning", "thinking", "name", "tool_call_id", "content")


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(EXTRAS), values, max_size=3), values, st.sampled_from(["tools", "functions"]))
def test_any_value_of_the_optional_keys_is_read_or_reported(tmp_path_factory, extra, tools, key):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"} | extra]
    messages += [{"role": "tool", "content": "x"} | extra, {"role": "assistant", "content": "Bye!"}]
    for chosen in (messages[:2], messages):
        problems = []
        path = written(tmp_path_factory.mktemp("chats"), lines({"messages": chosen, key: tools}))
        found = list(read_conversations(path, problems))
        assert len(found) + len(problems) == 1
        assert all("\n" not in str(problem) for problem in problems)
        for conversation in found:
            with suppress(UserError):  # the format can't render everything that it is given
                render_spans(conversation.messages, TOKENIZER, tools=conversation.tools)


def _template_tokenizer() -> ChatTokenizer:
    tokenizer = tiny_tokenizer()
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>", "</tool_response>")
    tokenizer.add_control_tokens(names)
    tokenizer.chat_format = template_format(tokenizer, QWEN3)
    return tokenizer


TOKENIZER = _template_tokenizer()


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "system", "content": " "}, *FORMS[0]["messages"]]},
        {"conversations": [{"from": "system", "value": ""}, *FORMS[2]["conversations"]]},
        {"prompt": "Hi", "completion": "Hello!", "system": ""},
        {"messages": [{"role": "user", "content": ["H", {"value": "i"}]}, {"role": "assistant", "content": "Hello!"}]},
        {"messages": [{"role": "user", "content": [{"text": "Hi"}]}, {"role": "assistant", "content": ["Hello", "!"]}]},
    ],
)
def test_empty_system_messages_are_none_and_parts_are_joined(tmp_path, record):
    (found,) = read_conversations(written(tmp_path, lines(record)))
    assert found.messages == (HI, HELLO)


def test_gemini_s_records_are_read(tmp_path):
    contents = [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Hello!"}]}]
    instruction = {"role": "system", "parts": [{"text": "Be "}, {"text": "short."}]}
    path = written(tmp_path, lines({"systemInstruction": instruction, "contents": contents}, {"contents": contents}))
    first, second = read_conversations(path)
    assert first.messages == (Message("system", "Be short."), HI, HELLO)
    assert second.messages == (HI, HELLO)
    bad = written(
        tmp_path, lines({"systemInstruction": {"parts": [{"image": "x"}]}, "contents": contents}), "bad.jsonl"
    )
    with pytest.raises(UserError, match="part 1 of the content of message 1"):
        list(read_conversations(bad))


def test_chats_are_read_from_a_table(tmp_path):
    path = written(tmp_path, "Question,Answer,source\nHi,Hello!,web\n", "chats.csv")
    (found,) = read_conversations(path)
    assert (found.messages, found.place) == ((HI, HELLO), "record 1, line 2")

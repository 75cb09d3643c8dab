"""The chat as a user sees it: the real program at a pseudo-terminal, and over pipes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import chain

from mini_chat_gpt.chat.commands import COMMANDS
from mini_chat_gpt.chat.loop import Chat, main
from mini_chat_gpt.chat.loop import chat as chat_on_standard_streams
from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.chat.terminal import Plain
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

terminal = pytest.importorskip("terminal", reason="pseudo-terminals are a matter of Unix")
Program, PROMPT_BEGINS, PROMPT_ENDS, printed = (
    terminal.Program,
    terminal.PROMPT_BEGINS,
    terminal.PROMPT_ENDS,
    terminal.printed,
)

REPLY = "Hi 🦔! Tom had a ball and was happy."
LONG_REPLY = "Hi 🦔! Tom had a little red ball, and she was 你好."
GOES_ON = " was a little cat."
ROOT = Path(__file__).parent.parent.parent


Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(tmp_path_factory) -> Save:
    """Save a model that always replies the same text, or that never ends its reply."""

    def save_model(
        reply: str = REPLY, endless: bool = False, context: int = 128, base: bool = False, system: str | None = None
    ) -> Path:
        tokenizer = ChatTokenizer.train([REPLY, LONG_REPLY, GOES_ON, "Once happy cat"] * 20, 330)
        ids = tokenizer.encode(reply)
        assert len(set(ids)) == len(ids), "each token of the reply leads to one other"
        tokenizer.chat_format = None if base else ChatFormat(default_system=system)
        begin = tokenizer.encode("Once")[-1] if base else tokenizer.control["<|assistant|>"]
        chains = [[begin, *ids, ids[0] if endless else tokenizer.end_id]]
        folder = tmp_path_factory.mktemp("model") / "step-1"
        return save_checkpoint(folder, chain(tokenizer, chains, context), tokenizer)

    return save_model


@pytest.fixture(scope="module")
def teller(save) -> Path:
    return save(system="Be kind.")


@pytest.fixture(scope="module")
def endless(save) -> Path:
    return save(" happy cat", endless=True, context=30_000)


@pytest.fixture
def start(tmp_path):
    """Start chats at a terminal with their history in a folder of the test; ends them with the test."""
    programs = []

    def start_program(checkpoint: Path, *options: str, columns: int = 200, **env: str) -> Program:
        argv = ["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *options]
        program = Program(main, argv, columns, {"XDG_CACHE_HOME": str(tmp_path / "cache")} | env)
        programs.append(program)
        return program

    yield start_program
    for program in programs:
        program.close()


@pytest.fixture
def chat(start, teller) -> Program:
    """A chat with a model that always says REPLY, at its first prompt."""
    program = start(teller)
    program.prompt()
    return program


# A conversation at a terminal


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_conversation_of_a_closed_terminal_is_kept_for_the_next_chat(start, teller, tmp_path, number):
    chat = start(teller)
    chat.prompt()
    chat.say("Hello")
    os.kill(chat._process.pid, number)
    assert chat.end() == 128 + number
    assert "Traceback" not in chat.raw
    kept = tmp_path / "cache" / "mini_chat_gpt" / "unsaved-chat.json"
    assert [message["content"] for message in json.loads(kept.read_text())["messages"]] == ["Be kind.", "Hello", REPLY]
    chat = start(teller)
    assert f"/load {kept}" in chat.prompt()
    assert "Loaded 1 turn" in chat.say(f"/load {kept}")
    os.kill(chat._process.pid, number)
    chat.end()
    assert [path.name for path in kept.parent.glob("*.json")] == [kept.name]  # it is in a file already


def test_a_failure_of_the_program_does_not_end_the_chat_or_lose_the_conversation(save, monkeypatch, tmp_path):
    model, tokenizer = load_checkpoint(save(system="Be kind."))
    session = ChatSession(model, tokenizer, Sampling(temperature=0))
    front = Recorder(["Hello", "/tokens", "/save " + str(tmp_path / "chat.json")])

    def fail(_session):
        raise RuntimeError("out of memory:\nTried to allocate " + "9" * 500)

    monkeypatch.setattr(ChatSession, "usage", fail)
    Chat(session, front).run()
    (error,) = front.errors
    assert error.startswith("That failed (RuntimeError: out of memory: Tried")
    assert len(error) < 400
    assert (tmp_path / "chat.json").is_file()


def test_a_chat_whose_output_is_gone_ends_and_keeps_the_conversation(save, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, tokenizer = load_checkpoint(save(system="Be kind."))

    class Gone(Recorder):
        def __init__(self):
            super().__init__(["Hello", "Hello again"])

        def end_reply(self):
            if len(self.lines) == 0:
                raise BrokenPipeError

    monkeypatch.setattr("mini_chat_gpt.chat.loop.Plain", Gone)
    with pytest.raises(BrokenPipeError):
        chat_on_standard_streams(model, tokenizer, Sampling(temperature=0))
    kept = json.loads((tmp_path / "mini_chat_gpt" / "unsaved-chat.json").read_text())
    assert [message["content"] for message in kept["messages"]] == ["Be kind.", "Hello", REPLY, "Hello again", REPLY]


class Recorder(Plain):
    """A person who types these lines, and what is shown to them."""

    def __init__(self, lines):
        super().__init__()
        self.interactive, self.lines, self.errors = True, lines, []

    def read(self):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def error(self, text):
        self.errors.append(text)


def test_the_first_lines_name_the_model_and_the_keys(start, teller):
    said = start(teller).prompt()
    assert str(teller) in said.replace("\n", "")
    assert "/help lists the commands" in said


def test_a_reply_is_followed_by_a_dimmed_line_with_its_length_and_speed(chat):
    chat.say("Hello")
    assert re.search(rf"{re.escape(REPLY)}\r\n\x1b\[2m\d+ tokens, [\d,]+ per second\x1b\[0m\r\n", chat.raw)


def test_a_reply_that_is_cut_off_says_why(chat):
    chat.say("/max 3")
    assert "3 tokens" in (said := chat.say("Hello"))
    assert "cut off, /max allows more" in said


@pytest.mark.parametrize("leave", ["/quit\r", "\x04"], ids=["/quit", "Ctrl-D"])
def test_the_chat_ends_with(chat, leave):
    chat.type(leave)
    assert chat.end() == 0


def test_ctrl_c_stops_a_reply_and_the_chat_continues(start, endless):
    chat = start(endless, "--max-new-tokens", "29000")
    chat.prompt()
    chat.type("Hello\r")
    chat.wait("happy cat happy cat")
    chat.type("\x03\x03")  # twice, as one does
    said = chat.prompt()
    assert "per second; stopped" in said
    shown = said.rpartition("\n\n")[0] or said
    assert "cut off: Hello" in chat.say("/tokens"), shown
    chat.say("/max 2")
    assert "happy cat\n2 tokens" in chat.say("Again")


def test_a_stopped_reply_is_kept_as_far_as_it_was_shown(start, endless, tmp_path):
    chat = start(endless, "--max-new-tokens", "29000")
    chat.prompt()
    chat.type("Hello\r")
    seen = chat.wait("happy cat happy cat")
    chat.type("\x03")
    seen += chat.prompt()
    chat.say(f"/save {tmp_path / 'chat.json'}")
    kept = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"][-1]["content"]
    words = re.findall("happy|cat", printed(seen).partition("Hello")[2])
    assert words == kept.split()


def test_ctrl_c_at_the_empty_prompt_says_how_to_leave(chat):
    chat.type("\x03")
    assert "Ctrl-D or /quit leaves the chat." in chat.prompt()


def test_ctrl_c_clears_the_line(chat):
    chat.type("Hello\x03")
    assert "Ctrl-D" not in chat.prompt()
    assert "no message yet" in chat.say("/retry")


def test_a_pasted_story_is_one_message(chat, tmp_path):
    story = "What is the moral?\n\nOnce upon a time.\nThe end."
    pasted = story.replace("\n", "\r")  # as terminals send it
    chat.type(f"\x1b[200~{pasted}\x1b[201~")
    assert REPLY in chat.say("")
    chat.say(f"/save {tmp_path / 'chat.json'}")
    assert json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"][1]["content"] == story


def test_alt_enter_starts_a_new_line(chat, tmp_path):
    chat.say("two\x1b\rlines")
    chat.say(f"/save {tmp_path / 'chat.json'}")
    assert json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"][1]["content"] == "two\nlines"


def test_tab_completes_a_command_and_a_file_name(chat, tmp_path):
    chat.type("/toke")
    chat.wait("how full the context is")  # the menu
    chat.type("\t\r")
    chat.wait(PROMPT_ENDS)
    assert "tokens are used" in chat.prompt()
    (tmp_path / "something.json").write_text("{}", encoding="utf-8")
    chat.type(f"/load {tmp_path}/some")
    chat.wait("something.json")
    chat.type("\t\r")
    chat.wait(PROMPT_ENDS)
    assert "is not a conversation" in chat.prompt()


def test_the_input_history_is_available_in_the_next_chat(start, teller, tmp_path):
    first = start(teller)
    first.prompt()
    first.say("a message to remember")
    first.type("\x04")
    first.end()
    second = start(teller)
    second.prompt()
    second.type("\x1b[A")
    assert "a message to remember" in printed(second.wait("remember"))
    file = tmp_path / "cache" / "mini_chat_gpt" / "chat_history"
    assert file.stat().st_mode & 0o077 == 0, "nobody else may read it"


def test_a_history_file_that_cannot_be_written_is_reported_once_and_the_chat_continues(start, teller, tmp_path):
    (tmp_path / "cache" / "mini_chat_gpt" / "chat_history").mkdir(parents=True)  # a folder in place of the file
    chat = start(teller, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "kept for this chat only" in chat.prompt()
    assert REPLY in chat.say("Hello")


def test_what_is_typed_during_a_reply_waits_for_the_next_prompt(start, endless):
    chat = start(endless, "--max-new-tokens", "500")
    chat.prompt()
    chat.type("Hello\r")
    chat.wait("happy cat happy cat")
    chat.type("/tokens\r")
    during = chat.wait("500 tokens")
    assert "/tok" not in during
    chat.wait(PROMPT_ENDS)
    assert "tokens are used" in chat.prompt()


def test_invalid_bytes_are_accepted(chat):
    assert REPLY in chat.say(b"Hello \xff\xfe".decode("utf-8", "surrogateescape"))


def test_a_message_without_text_is_ignored(chat):
    assert chat.say("   ") == ""


# Commands


def test_help_lists_every_command(chat):
    said = chat.say("/help")
    for name in COMMANDS:
        assert re.search(rf"^/{name}\b", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("shown", "good", "now", "bad", "sentence"),
    [
        ("/temp", "/temp 0.5", "temperature is now 0.5.", "/temp hot", "temperature must be a number such as 0.7"),
        ("/top_p", "/top_p 0.9", "top_p is now 0.9.", "/top_p 2", "top_p is 2.0; it must be"),
        ("/seed", "/seed 7", "seed is now 7.", "/seed -1", "seed is -1; it must be"),
        ("/max", "/max 9", "max_new_tokens is now 9.", "/max 1.5", "max_new_tokens must be a whole number"),
    ],
)
def test_a_setting_is_shown_set_and_protected_from_bad_values(chat, shown, good, now, bad, sentence):
    assert chat.say(good) == now
    assert sentence in chat.say(bad)
    assert chat.say(shown) == now.replace("is now", "is")


def test_optional_settings_are_removed_with_none(chat):
    for name in ("seed", "top_p"):
        chat.say(f"/{name} 1")
        assert chat.say(f"/{name} none") == f"{name} is now none."


def test_the_system_message_is_shown_set_and_removed(chat):
    assert chat.say("/system") == "The system message is: Be kind."
    assert chat.say("/system Rhyme.") == "The system message is now: Rhyme."
    assert chat.say("/system none") == "The system message is now: none"
    assert chat.say("/system default") == "The system message is now: Be kind."


def test_retry_undo_and_reset(chat):
    assert "no message yet" in chat.say("/retry")
    chat.say("One")
    assert REPLY in chat.say("/retry")
    chat.say("Two")
    assert 'Removed "Two" and its reply; 1 turn is left.' in chat.say("/undo")
    assert "turn 1" in chat.say("/tokens")
    assert "A new conversation" in chat.say("/reset")
    assert "turn 1" not in chat.say("/tokens")
    assert "the conversation is empty" in chat.say("/undo")


def test_tokens_shows_how_full_the_context_is(chat):
    chat.say("One")
    said = chat.say("/tokens")
    sizes = [int(size) for size in re.findall(r"^(?:system|turn 1) +(\d+)", said, re.MULTILINE)]
    assert f"{sum(sizes)} of 128 tokens are used, {128 - sum(sizes)} are free" in said


def test_a_conversation_is_saved_and_loaded(chat, tmp_path):
    file = tmp_path / "chat.json"
    chat.say("One")
    chat.say("/temp 0.5")
    assert "Saved 1 turn" in chat.say(f"/save {file}")
    assert "replacing its content" in chat.say(f"/save {file}")
    chat.say("/reset")
    chat.say("/temp 1")
    assert "Loaded 1 turn" in chat.say(f"/load {file}")
    assert chat.say("/temp") == "temperature is 0.5."
    assert "turn 1" in chat.say("/tokens")


def test_an_existing_file_is_overwritten_only_with_overwrite(chat, tmp_path):
    file = tmp_path / "chat.json"
    file.write_text("precious", encoding="utf-8")
    chat.say("One")
    assert "exists already" in chat.say(f"/save {file}")
    assert file.read_text(encoding="utf-8") == "precious"
    assert "replacing its content" in chat.say(f"/save --overwrite {file}")


def test_bad_files_are_one_sentence(chat, tmp_path):
    assert "can't be read: No such file" in chat.say("/load nowhere.json")
    assert "needs a file name" in chat.say("/load")
    (tmp_path / "chat.json").write_text("{", encoding="utf-8")
    assert "is not valid JSON" in chat.say(f"/load {tmp_path / 'chat.json'}")


def test_an_unknown_command_suggests_the_nearest_one(chat):
    assert "There is no command /tmp; did you mean '/temp'?" in chat.say("/tmp 3")
    assert "did you mean '/quit'?" in chat.say("/quite")


@pytest.mark.parametrize(
    ("alias", "said"), [("/clear", "A new conversation"), ("/temperature", "temperature is"), ("/?", "/help")]
)
def test_commands_have_the_names_of_other_chats(chat, alias, said):
    assert said in chat.say(alias)


def test_two_slashes_make_a_message_that_begins_with_one(chat):
    assert REPLY in chat.say("//home")
    assert ": /home" in chat.say("/tokens")


# A full context


def test_a_full_context_drops_the_oldest_turns_with_a_note(chat):
    said = [chat.say(f"Message {number}") for number in range(6)]
    told = [number for number, text in enumerate(said) if "The context of 128 tokens is full" in text]
    assert told
    assert "the oldest turn is dropped from now on; the system message stays." in said[told[0]].replace("\n", " ")
    assert "dropped: Message 0" in chat.say("/tokens")
    assert all(REPLY in text for text in said)


def test_a_message_longer_than_the_context_is_one_clear_sentence(chat):
    said = chat.say("x" * 300).replace("\n", " ")
    assert "has 300 tokens, and at most" in said
    assert "turn 1" not in chat.say("/tokens")


def test_a_reply_that_fills_the_context_is_reported_as_cut_off_with_a_hint(start, save):
    chat = start(save(" happy cat", endless=True, context=96))
    chat.prompt()
    assert chat.say("Hello").endswith("cut off, the context is full")
    chat.say("/undo")
    chat.say("/max 20")
    for _ in range(2):
        chat.say("Hello")
    chat.say("/max 40")
    assert chat.say("Hello").endswith("the context is full: /retry drops older turns")
    said = chat.say("/retry")
    assert "dropped from now on" in said
    assert "40 tokens" in said


# Terminals that are not like others


def test_in_a_narrow_terminal_no_line_is_too_long_and_words_stay_whole(start, save):
    wcswidth = pytest.importorskip("wcwidth").wcswidth
    chat = start(save(LONG_REPLY), columns=30)
    said = [chat.prompt(), *map(chat.say, ["Hello", "/help", "/tokens", "/nonsense"])]
    lines = [line for text in said for line in text.split("\n")]
    assert max(wcswidth(line) for line in lines[1:]) <= 30
    assert "Hi 🦔! Tom had a little red\nball, and she was 你好." in said[1]


def test_no_color_is_respected(start, teller):
    chat = start(teller, NO_COLOR="1")
    chat.prompt()
    assert REPLY in chat.say("Hello")
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", chat.raw), "a color or attribute"


def test_a_dumb_terminal_gets_lines_without_escape_codes(start, teller):
    chat = start(teller, TERM="dumb")
    chat.wait("\n> ")
    chat.type("two\\\nlines\n")
    assert REPLY in chat.wait("per second\r\n> ")
    time.sleep(0.3)  # a signal between the prompt and the read that follows it only takes effect after the next key
    chat.type("\x03")
    chat.wait("Ctrl-D or /quit leaves the chat.\r\n> ")
    chat.type("/nonsense\n")
    chat.wait("There is no command /nonsense")
    chat.type("/quit\n")
    assert chat.end() == 0
    assert "\x1b" not in chat.raw


def test_a_terminal_without_utf8_gets_question_marks(start, teller):
    chat = start(teller, PYTHONIOENCODING="ascii")
    chat.prompt()
    assert "Hi ?! Tom" in chat.say("Hello 😀")


def test_control_characters_of_a_reply_do_not_reach_the_terminal(start, save):
    chat = start(save("Hi\x1b[2J\x07!"))
    chat.prompt()
    assert "Hi\ufffd[2J\ufffd!" in chat.say("Hello")


# Base models


def test_a_base_model_is_announced_and_continues_the_text(start, save):
    chat = start(save(GOES_ON, base=True))
    said = chat.prompt().replace("\n", " ")
    assert "a base model without a chat format" in said
    assert "remembers nothing" in said
    assert GOES_ON.strip() in chat.say("Once")
    assert GOES_ON.strip() in chat.say("/retry")
    assert "each text is separate" in chat.say("/tokens")
    assert "a system message has no effect on it" in chat.say("/system Be kind.").replace("\n", " ")


# Pipes


def piped(monkeypatch, checkpoint: Path, text: str | bytes, *options: str) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    return main(["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *options])


def test_over_a_pipe_standard_output_is_the_replies_and_nothing_else(monkeypatch, capsys, teller):
    assert piped(monkeypatch, teller, "Hello\n\n/tokens\n/help\nAgain\n/quit\nnever\n") == 0
    out, err = capsys.readouterr()
    assert out == f"{REPLY}\n{REPLY}\n"
    assert "turn 1" in err
    assert "/undo" in err
    assert "\x1b" not in err


def test_over_a_pipe_the_lines_are_one_conversation(monkeypatch, capsys, save, teller):
    assert piped(monkeypatch, teller, "one\ntwo\nthree\n/tokens") == 0
    assert re.findall(r"turn \d .*: (\w+)$", capsys.readouterr().err, re.MULTILINE) == ["one", "two", "three"]


def test_over_a_pipe_a_backslash_continues_a_message(monkeypatch, capsys, teller, tmp_path):
    assert piped(monkeypatch, teller, f"two\\\nlines\\\n/save {tmp_path}\n/save {tmp_path / 'chat.json'}\n") == 0
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert saved["messages"][1]["content"] == f"two\nlines\n/save {tmp_path}"


@pytest.mark.parametrize("text", ["", "\n", "\n \n"])
def test_empty_input_over_a_pipe_gets_no_reply(monkeypatch, capsys, teller, text):
    assert piped(monkeypatch, teller, text) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hello\n\n/nonsense\nnever\n", "Line 3 of standard input: There is no command /nonsense"),
        ("x" * 300, "Line 1 of standard input: The message is too long"),
        (b"Hello\nab\xff\n", r"Line 2 of standard input: Not UTF-8 text \(byte 2 of the line\)"),
    ],
)
def test_over_a_pipe_the_first_mistake_ends_the_chat(monkeypatch, capsys, teller, text, message):
    with pytest.raises(UserError, match=message):
        piped(monkeypatch, teller, text)
    assert capsys.readouterr().out in ("", f"{REPLY}\n")


def test_a_byte_order_mark_and_windows_line_ends_are_not_part_of_a_message(monkeypatch, capsys, teller):
    assert piped(monkeypatch, teller, "\ufeffone\r\ntwo\r\n/tokens\r\n") == 0
    assert re.findall(r"turn \d .*: (.*)$", capsys.readouterr().err, re.MULTILINE) == ["one", "two"]


def test_a_base_model_continues_text_over_a_pipe(monkeypatch, capsys, save):
    checkpoint = save(GOES_ON, base=True)
    assert piped(monkeypatch, checkpoint, "Once\n") == 0
    model, tokenizer = load_checkpoint(checkpoint, "cpu")
    assert capsys.readouterr().out == generate(model, tokenizer, ["Once"], temperature=0)[0] + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0; it must be"),
        (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
        (["--system", "x" * 200], "leaves no room in the model's context"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_sentence(monkeypatch, teller, options, message):
    with pytest.raises(UserError, match=message):
        piped(monkeypatch, teller, "Hello\n", *options)


# The commands as they are typed


def test_echo_pipe_chat(teller):
    command = [sys.executable, "-m", "mini_chat_gpt.cli", "chat", "--checkpoint", str(teller), "--device", "cpu"]
    done = subprocess.run(command, input=f"Hello\n{'/nonsense'}\n", capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, f"{REPLY}\n")
    assert done.stderr.splitlines()[-1].startswith("error: Line 2 of standard input: There is no command /nonsense")


def test_sft_generate_interactive_is_the_chat(teller):
    command = [sys.executable, "mini_chat_gpt/sft_generate.py", "--checkpoint", str(teller), "--interactive"]
    done = subprocess.run([*command, "--device", "cpu"], input="Hello\n", capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"{REPLY}\n"), done.stderr

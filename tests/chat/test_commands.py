"""Slash commands: what they do to a conversation, and one sentence for each mistake."""

import pytest
from tiny import tiny_model, tiny_tokenizer
from tiny_disk import tiny_disk

from mini_chat_gpt.chat.commands import COMMANDS, as_message, is_command, run_command, short
from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.cli_options import CHAT_ALIASES, CHAT_COMMANDS
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import Sampling


@pytest.fixture
def session() -> ChatSession:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    session = ChatSession(tiny_model(tokenizer.vocab_size), tokenizer, Sampling(temperature=0))
    session.turns = [Turn("Hi", "Hello!", finish_reason="stop"), Turn("Tell me\nmore", "Once", finish_reason="length")]
    return session


@pytest.mark.parametrize(
    ("line", "command", "message"),
    [("/help", True, "/help"), ("//home", False, "/home"), ("Hi /help", False, "Hi /help"), ("/", True, "/")],
)
def test_a_line_is_a_command_or_a_message(line, command, message):
    assert is_command(line) == command
    assert as_message(line) == message


def test_every_alias_is_free_and_means_a_command():
    assert set(CHAT_ALIASES.values()) <= CHAT_COMMANDS.keys()
    assert not CHAT_ALIASES.keys() & CHAT_COMMANDS.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/tmp", "no command /tmp; did you mean '/temp'"),
        ("/", "no command / "),
        ("/home/sara/story.txt is a file", "no command /home/sara/story.txt "),
        ("/reset now", "/reset takes no argument"),
        ("/temp warm", "temperature must be a number such as 0.7, not 'warm'"),
        ("/temp nan", "temperature is nan; it must be"),
        ("/temp none", "must be a number"),
        ("/seed 1.5", "seed must be a whole number such as 1 or none, not '1.5'"),
        ("/max 0", "max_new_tokens is 0; it must be"),
        ("/max " + "9" * 5000, "must be a whole number"),
        ("/top_p 0", "top_p is 0.0; it must be"),
        ("/save", "/save needs a file name"),
        ("/load ''", "/load needs a file name"),
        ("/load a\0b", "is not a valid file name"),
        ("/save " + "x" * 300, "file name too long"),
        ("/load " + "x" * 300, "file name too long"),
        ("/load .", "can't be read (is a directory)"),
        ("/save --overwrite .", "is a folder"),
        ("/save .", "is a folder"),
        ("/save ~nouser/x.json", "home folder of a user 'nouser' is not known"),
        ("/load ~nouser/x.json", "home folder of a user 'nouser' is not known"),
        ("/why ~nouser/x.html", "There is no reply|home folder of a user 'nouser' is not known"),
        ("/save /dev/null", "is not a regular file"),
        ("/save --overwrite /dev/full", "is not a regular file"),
        ("/save /proc/x.json", "Can't write /proc/x.json"),
        ("/save /dev/null/x.json", "Can't write /dev/null/x.json"),
        ("/load /dev/zero", "not a regular file"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(session, line, message):
    before = (session.messages, session.sampling, session.system)
    with pytest.raises(UserError) as raised:
        run_command(session, line)
    assert any(part in str(raised.value) for part in message.split("|"))
    assert "\n" not in str(raised.value)
    assert (session.messages, session.sampling, session.system) == before


def test_commands_may_be_typed_in_capitals(session):
    assert run_command(session, "/TEMP 0.5").note == "temperature is now 0.5."


def test_a_system_message_may_have_several_lines(session):
    run_command(session, "/system Be kind.\nBe brief.")
    assert session.system == "Be kind.\nBe brief."


def test_without_a_system_message_in_training_there_is_no_default(session):
    session.tokenizer.chat_format = ChatFormat()
    with pytest.raises(UserError, match="there is no default"):
        run_command(session, "/system default")


def test_a_retry_at_temperature_0_warns_that_the_reply_is_the_same(session):
    assert "always the same" in run_command(session, "/retry").note
    run_command(session, "/temp 1")
    assert run_command(session, "/retry").note == ""


def test_tokens_shows_every_turn_in_one_line(session):
    rows = run_command(session, "/tokens").rows
    assert [name for name, _ in rows] == ["system", "turn 1", "turn 2"]
    assert rows[2][1].endswith(", cut off: Tell me more")


def test_a_file_of_this_conversation_is_overwritten_but_not_after_a_reset(session, tmp_path):
    assert "replacing" not in run_command(session, f"/save {tmp_path / 'a b.json'}").note
    assert "replacing its content" in run_command(session, f'/save "{tmp_path / "a b.json"}"').note
    turns = session.turns
    session.reset()
    session.turns = turns
    with pytest.raises(UserError, match="exists already; choose another name, or type: /save --overwrite"):
        run_command(session, f"/save {tmp_path / 'a b.json'}")


def test_loading_a_file_without_a_system_message_prints_a_note(session, tmp_path):
    file = tmp_path / "chat.json"
    file.write_text('{"messages": [{"role": "user", "content": "Hi"}]}', encoding="utf-8")
    note = run_command(session, f"/load {file}").note
    assert "/system default" in note
    assert "/retry generates one" in note


def test_only_quit_ends_the_chat(session):
    assert run_command(session, "/quit").leave
    assert not run_command(session, "/help").leave


def test_help_lists_every_command_with_its_argument(session):
    assert [row[0].split()[0] for row in run_command(session, "/help").rows] == [f"/{name}" for name in COMMANDS]


@pytest.mark.parametrize(("text", "shown"), [("a\n b", "a b"), ("x" * 40, "x" * 29 + "...")])
def test_a_long_text_is_shortened(text, shown):
    assert short(text) == shown


def test_a_full_disk_keeps_the_conversation_and_the_file_that_has_it_already(session, tmp_path):
    with tiny_disk(tmp_path / "disk", 32) as disk:
        run_command(session, f"/save {disk}/chat.json")
        saved = (disk / "chat.json").read_text()
        session.turns.append(Turn("x" * 50_000, "y", finish_reason="stop"))
        before = session.messages
        with pytest.raises(UserError, match="no space left"):
            run_command(session, f"/save {disk}/chat.json")
        assert session.messages == before
        assert (disk / "chat.json").read_text() == saved
        assert [path.name for path in disk.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    "lines",
    [
        ["/seed 9223372036854775807"],
        ["/max 1000000000"],
        ["/temp 1000000"],
        ["/temp 0.7", "/top_p 5e-324"],
    ],
)
def test_a_reply_is_possible_with_the_largest_and_smallest_settings(session, lines):
    for line in lines:
        run_command(session, line)
    assert session.turns.pop()
    assert list(session.send("Hi")) is not None
    assert session.last_turn.finish_reason in ("stop", "length", "context")

"""A chat with a model that thinks before it replies: the reasoning is shown apart, kept, and left out of later prompts."""

import io
import json
from pathlib import Path

import pytest
from chat_template_samples import QWEN3
from tiny import chain, chat_tokenizer, tiny_model

from mini_chat_gpt.chat.commands import run_command
from mini_chat_gpt.chat.loop import main, summary
from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.generation.reasoning import Thought
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate_replies, prompt_ids
from mini_chat_gpt.sft_generate import main as generate_main
from mini_chat_gpt.tokenizer.chat_setup import template_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

THOUGHT, REPLY, AT_ONCE = "Tom had a ball.", "Hi 🦔!", " happy cat"
CONTROL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>", "</tool_response>")
GREEDY = Sampling(temperature=0, max_new_tokens=60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model with a template like Qwen3's that thinks THOUGHT and replies REPLY; without thinking, AT_ONCE."""
    texts = [THOUGHT, REPLY, AT_ONCE, "assistant\n", "user\nHi", "\n\n"]
    tokenizer = ChatTokenizer.train(texts * 20, 330)
    tokenizer.add_control_tokens(CONTROL)
    tokenizer.chat_format = template_format(tokenizer, QWEN3)
    begin, off = (prompt_ids(tokenizer, "Hi", thinking=thinking)[-1] for thinking in (True, False))
    assert begin != off
    start, end, stop = (tokenizer.control[name] for name in ("<think>", "</think>", "<|im_end|>"))
    chains = [
        [begin, start, *tokenizer.encode(THOUGHT), end, *tokenizer.encode(REPLY), stop],
        [off, *tokenizer.encode(AT_ONCE), stop],
    ]
    ids = [token_id for one in chains for token_id in one[:-1]]
    assert len(set(ids)) == len(ids), "each token leads to one other"
    return save_checkpoint(tmp_path_factory.mktemp("model") / "step-1", chain(tokenizer, chains, 256), tokenizer)


@pytest.fixture
def session(checkpoint) -> ChatSession:
    model, tokenizer = load_checkpoint(checkpoint, "cpu")
    return ChatSession(model, tokenizer, GREEDY)


def say(session: ChatSession, message: str) -> tuple[str, str]:
    """(reasoning, reply)"""
    pieces = list(session.send(message))
    return tuple("".join(one for one in pieces if isinstance(one, Thought) == thought) for thought in (True, False))


def test_the_reasoning_is_separate_kept_and_removed_from_later_prompts(session):
    assert say(session, "Hi") == (THOUGHT, REPLY)
    assert say(session, "Hi again") == (THOUGHT, REPLY)
    first, second = session.turns
    assert (first.reasoning, first.reply, second.reasoning) == (THOUGHT, REPLY, THOUGHT)
    text = session.tokenizer.decode(second.prompt, control=True)
    assert text == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{REPLY}<|im_end|>\n"
        "<|im_start|>user\nHi again<|im_end|>\n<|im_start|>assistant\n"
    )
    earlier = [Message("user", "Hi"), Message("assistant", REPLY, reasoning=THOUGHT), Message("user", "Hi again")]
    [whole] = generate_replies(session.model, session.tokenizer, [earlier], GREEDY)
    assert (whole.reasoning, whole.text, whole.ids) == (THOUGHT, REPLY, tuple(second.ids))
    # A turn counts without its reasoning, as other turns follow it.
    assert session.usage().turns[0] == second.prompt.index(session.tokenizer.control["<|im_end|>"], 8) + 2


def test_thinking_is_switched_off_and_on(session):
    assert session.thinks
    session.set_thinking(False)
    assert not session.thinks
    assert say(session, "Hi") == ("", AT_ONCE)
    session.set_thinking(None)
    assert say(session, "Hi") == (THOUGHT, REPLY)


def test_a_saved_chat_has_the_reasoning_and_is_a_chat_file(session, tmp_path):
    say(session, "Hi")
    session.save(tmp_path / "chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert saved[1] == {"role": "assistant", "content": REPLY, "reasoning": THOUGHT}
    [conversation] = read_conversations(tmp_path / "chat.json")
    assert conversation.messages[1].reasoning == THOUGHT
    session.reset()
    session.load(tmp_path / "chat.json")
    assert session.is_saved
    assert session.turns[0].reasoning == THOUGHT
    # Another model's format may have no reasoning.
    tokenizer = chat_tokenizer()
    other = ChatSession(tiny_model(tokenizer.vocab_size, context_length=128), tokenizer, GREEDY)
    other.load(tmp_path / "chat.json")
    assert other.turns[0].reply == REPLY
    assert other.usage().used > 0
    saved[0]["reasoning"] = "Hm."
    (tmp_path / "bad.json").write_text(json.dumps({"messages": saved}))
    with pytest.raises(UserError, match=r"bad.json: Message 1 of 2 \(role user\) has reasoning"):
        session.load(tmp_path / "bad.json")


def test_a_reply_that_ends_within_the_reasoning_is_not_kept(session):
    session.sampling = Sampling(temperature=0, max_new_tokens=4)
    reasoning, reply = say(session, "Hi")
    assert reasoning
    assert THOUGHT.startswith(reasoning)
    assert reply == ""
    assert session.turns == []
    said = summary(session.last_turn)
    assert said.startswith(
        "The reply ended before the reasoning did (cut off, /max allows more), so the message is not kept"
    )
    assert "There is no reply after the reasoning" in summary(Turn("Hi", reasoning="x", finish_reason="stop"))


def test_the_command_shows_and_sets_it(session):
    assert run_command(session, "/thinking").note == "thinking is on."
    assert run_command(session, "/thinking off").note == "thinking is now off."
    assert run_command(session, "/thinking default").note == "thinking is now on."
    with pytest.raises(UserError, match="thinking is on, off or default, not 'maybe'"):
        run_command(session, "/thinking maybe")
    tokenizer = chat_tokenizer()
    other = ChatSession(tiny_model(tokenizer.vocab_size), tokenizer)
    assert run_command(other, "/thinking").note == "thinking is off."
    with pytest.raises(UserError, match="the model's chat format has no reasoning"):
        run_command(other, "/thinking on")


# The commands


def options(checkpoint: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *more]


def test_over_a_pipe_the_reasoning_is_on_standard_error(monkeypatch, capsys, checkpoint):
    def run(text: str, *more: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(options(checkpoint, *more)) == 0
        return capsys.readouterr()

    out, err = run("Hi\n/thinking off\nHi\n")
    assert out == f"{REPLY}\n{AT_ONCE}\n"
    assert f"Thinking: {THOUGHT}\n" in err
    out, err = run("Hi\n", "--thinking", "off")
    assert out == f"{AT_ONCE}\n"
    assert "Thinking:" not in err


def test_generate_prints_the_reasoning_on_standard_error(capsys, checkpoint):
    assert generate_main(options(checkpoint, "--prompt", "Hi")) == 0
    out, err = capsys.readouterr()
    assert out == f"{REPLY}\n"
    assert f"Thinking: {THOUGHT}\n" in err
    assert generate_main(options(checkpoint, "--prompt", "Hi", "--thinking", "off")) == 0
    assert capsys.readouterr().out == f"{AT_ONCE}\n"
    assert generate_main(options(checkpoint, "--prompt", "Hi", "--max-new-tokens", "3")) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "Thinking: " in err


def test_a_model_without_the_switch_is_one_sentence(tmp_path, capsys):
    tokenizer = chat_tokenizer()
    folder = save_checkpoint(tmp_path / "step-1", tiny_model(tokenizer.vocab_size), tokenizer)
    for run, more in ((generate_main, ("--prompt", "Hi")), (main, ())):
        with pytest.raises(UserError, match="Thinking can't be switched on or off"):
            run(options(folder, "--thinking", "on", *more))


@pytest.mark.parametrize("color", [True, False])
def test_at_a_terminal_the_reasoning_is_dimmed(checkpoint, tmp_path, color):
    terminal = pytest.importorskip("terminal", reason="pseudo-terminals are a matter of Unix")
    env = {"XDG_CACHE_HOME": str(tmp_path)} | ({} if color else {"NO_COLOR": "1"})
    program = terminal.Program(main, options(checkpoint), 200, env)
    try:
        program.prompt()
        program.say("Hi")
        before, after = ("\x1b[2m", "\x1b[0m") if color else ("", "")
        assert f"{before}Thinking: {THOUGHT}{after}\r\n\r\n{REPLY}\r\n" in program.raw
    finally:
        program.close()

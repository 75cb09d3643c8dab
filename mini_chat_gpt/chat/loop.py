"""Chat with a model: `mini-chat-gpt chat` (`python mini_chat_gpt/sft_generate.py --interactive`).

`chat` connects a `ChatSession`, which holds the conversation, to a `Front`, which is the terminal or the pipe.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mini_chat_gpt.chat.commands import COMMANDS, as_message, is_command, run_command, short
from mini_chat_gpt.chat.introduction import introduce
from mini_chat_gpt.chat.model_options import open_model, system_of, thinking_of
from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat.terminal import Front, Plain, Terminal, is_capable_terminal
from mini_chat_gpt.checkpoints.purpose import Purpose
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, replace_unencodable
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import free_name, user_cache
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.reasoning import Thought
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

LEAVES, HELP = ("exit", "quit", ":q"), ("help", "?")
"""Messages that leave the chat, and after which the command for help is named, if a person types them."""
SHOWN = 70
"""Characters of a prompt on the first screen."""
HOW_IT_ENDED = {
    "stop": "",
    "length": "; cut off, /max allows more",
    "context": "; cut off, the context is full",
    "interrupted": "; stopped",
}


def chat(
    model: Model,
    tokenizer: ChatTokenizer,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    system: System = USE_FORMAT_DEFAULT,
    thinking: bool | None = None,
    purpose: Purpose | None = None,
) -> int:
    """Chat on standard input and output until the user leaves; returns the exit code.

    `system` is the system message: the chat format's default, a text, or None for none. `thinking` says whether the model
    thinks before it replies; None is the chat format's default. `purpose` is what the model was trained to do. Raises UserError
    as `ChatSession` does. If standard input is not a terminal, it also raises it for the first mistake in a message or command.
    """
    replace_unencodable()
    session = ChatSession(model, tokenizer, sampling, system)
    session.set_thinking(thinking)
    hint = "Start a text (/help)" if session.is_base else "Send a message (/help)"
    commands = {f"/{name}": command.what for name, command in COMMANDS.items()}
    front: Front = Terminal(commands, hint) if is_capable_terminal() else Plain()
    try:
        Chat(session, front, purpose).run()
    except BaseException:  # a closed terminal, a signal, a lost output
        if front.interactive:
            keep_unsaved(session)
        raise
    finally:
        front.close()
    return 0


def unsaved_chats() -> Path:
    """Where a conversation is kept if the chat ends without `/quit` or Ctrl-D."""
    return user_cache() / "unsaved-chat.json"


def keep_unsaved(session: ChatSession) -> None:
    """Write the conversation to a file of its own, unless it is saved. The next chat says where it is."""
    if not session.is_saved:
        with suppress(UserError, OSError):
            session.save(free_name(unsaved_chats()))


class Chat:
    """The loop: read a line, run it, and show the result."""

    def __init__(self, session: ChatSession, front: Front, purpose: Purpose | None = None) -> None:
        self.session, self.front = session, front
        self.introduction = introduce(purpose, session.is_base)
        session.examples = self.introduction.prompts

    def run(self) -> None:
        """Run until the user leaves or the input ends."""
        if self.session.is_base or (self.front.interactive and self.introduction.line):
            self.front.note(self.introduction.line)
        if self.front.interactive:
            if prompts := self.introduction.prompts:
                self.front.note("Try, for example (/examples shows them in full, /examples 1 sends the first):")
                self.front.table([(f"{number}", short(text, SHOWN)) for number, text in enumerate(prompts, start=1)])
            self.front.note(f"{self.front.keys} /help lists the commands.")
            if (kept := unsaved_chats()).is_file() and not self.session.is_base:
                self.front.note(
                    f"An earlier chat ended before it was saved: /load {kept} continues it, deleting the file ends this note."
                )
        while True:
            try:
                if not self.run_line(self.front.read()):
                    return
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.front.interactive:
                    raise
                self.front.note("Ctrl-D or /quit leaves the chat.")
            except UserError as error:
                self.front.error(str(error))

    def run_line(self, line: str) -> bool:
        """`handle` a line. A failure of the program, such as too little memory, does not end an interactive chat."""
        try:
            return self.handle(line)
        except (UserError, EOFError, BrokenPipeError):
            raise
        except Exception as error:
            if not self.front.interactive:
                raise
            # If it is the output that failed, this fails, too.
            reason = short(f"{type(error).__name__}: {error}", 200)
            self.front.error(f"That failed ({reason}). The conversation is kept, and /save writes it to a file.")
            return True

    def handle(self, line: str) -> bool:
        """Run a line; returns whether the chat continues. Raises UserError."""
        text = line.strip("\n") if self.session.is_base else line.strip()
        if not text.strip():
            return True
        # What people type who don't know the commands yet.
        word = text.strip().lower() if self.front.interactive else ""
        if word in LEAVES:
            return False
        if not is_command(text.lstrip()):
            self.show_reply(lambda: self.session.send(as_message(text)))
            if word in HELP:
                self.front.note("/help lists the commands of the chat.")
            return True
        outcome = run_command(self.session, text.strip())
        if outcome.rows:
            self.front.table(outcome.rows)
        if outcome.layout is not None:
            self.front.layout(outcome.layout)
        if outcome.note:
            self.front.note(f"{outcome.note} {self.front.keys}" if outcome.keys else outcome.note)
        if outcome.reply is not None:
            self.show_reply(outcome.reply)
        return not outcome.leave

    def show_reply(self, start_reply: Callable[[], Iterator[str]]) -> None:
        """Show the reply as it is generated, and how it ended. At a terminal, Ctrl-C ends only the reply."""
        n_dropped = self.session.n_dropped
        pieces, turn = start_reply(), self.session.last_turn
        assert turn is not None  # start_reply sets it
        self.note_dropped(n_dropped)
        try:
            for piece in self.front.until_stopped(pieces):
                if isinstance(piece, Thought):
                    self.front.thought(piece)
                else:
                    self.front.piece(piece)
        finally:
            self.front.end_reply()
        hint = ": /retry drops older turns" if self.older_turns() and turn.finish_reason == "context" else ""
        self.front.note(summary(turn) + hint)

    def older_turns(self) -> bool:
        """Whether the last prompt held turns before the last one."""
        return len(self.session.turns) - self.session.n_dropped > 1

    def note_dropped(self, before: int) -> None:
        """Print a note if the number of dropped turns has changed."""
        now, context = self.session.n_dropped, self.session.model.config.context_length
        if now > before:
            turns = "the oldest turn is" if now - before == 1 else f"the {now - before} oldest turns are"
            in_all = f" ({now} in all)" if before else ""
            system = "; the system message stays" if self.session.system is not None else ""
            self.front.note(f"The context of {context} tokens is full: {turns} dropped from now on{in_all}{system}.")
        elif now < before:
            turns = "a turn" if before - now == 1 else f"{before - now} turns"
            self.front.note(f"There is room again for {turns} that had been dropped.")


def summary(turn: Turn) -> str:
    """Length and speed of a reply, and why it was cut off, if it was."""
    if not turn.reply.strip() and turn.reasoning.strip():
        how = HOW_IT_ENDED[turn.finish_reason].removeprefix("; ")
        ended = f"The reply ended before the reasoning did ({how})" if how else "There is no reply after the reasoning"
        return f"{ended}, so the message is not kept; /retry sends it again, /thinking off replies at once."
    if not turn.reply.strip():
        if turn.replaces is not None:
            return "The new reply is empty; the old one stays."
        return "The reply is empty, so the message is not kept; /retry sends it again."
    n = len(turn.ids)
    rate = n / max(turn.seconds, 1e-9)
    return f"{n} {'token' if n == 1 else 'tokens'}, {rate:,.0f} per second{HOW_IT_ENDED[turn.finish_reason]}"


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt chat` with a parsed command line."""
    model, tokenizer, purpose = open_model(arguments.checkpoint, arguments.device, arguments.weights)
    return chat(model, tokenizer, arguments.sampling, system_of(arguments), thinking_of(arguments), purpose)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("chat", argv))


if __name__ == "__main__":
    exit_with(main)

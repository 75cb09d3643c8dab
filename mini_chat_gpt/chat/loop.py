"""Chat with a model: `mini-chat-gpt chat` (`python mini_chat_gpt/sft_generate.py --interactive`).

`chat` joins a `ChatSession`, which knows the conversation, and a `Front`, which knows the terminal or the pipe.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from mini_chat_gpt.chat.commands import COMMANDS, as_message, is_command, run_command
from mini_chat_gpt.chat.model_options import open_model, system_of
from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat.terminal import Front, Plain, Terminal, has_comforts
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, forgive_odd_characters
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

HOW_IT_ENDED = {
    "stop": "",
    "length": "; cut off there, /max allows more",
    "context": "; cut off there, the context is full",
    "interrupted": "; stopped there",
}


def chat(
    model: Model,
    tokenizer: ChatTokenizer,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    system: System = USE_FORMAT_DEFAULT,
) -> int:
    """Chat on standard input and output until the user leaves; returns the exit code.

    `system` is the system message: the chat format's default, a text, or None for none. Raises UserError as
    `ChatSession` does, and for the first mistake where standard input is not a terminal.
    """
    forgive_odd_characters()
    session = ChatSession(model, tokenizer, sampling, system)
    hint = "Begin a text (/help)" if session.is_base else "Send a message (/help)"
    commands = {f"/{name}": command.what for name, command in COMMANDS.items()}
    front: Front = Terminal(commands, hint) if has_comforts() else Plain()
    try:
        Chat(session, front).run()
    finally:
        front.close()
    return 0


class Chat:
    """The loop: read a line, do what it asks for, say what came of it."""

    def __init__(self, session: ChatSession, front: Front) -> None:
        self.session, self.front = session, front

    def run(self) -> None:
        """Until the user leaves, or the lines end."""
        if self.session.is_base:
            self.front.note("Type the beginning of a text; each is gone on from by itself, nothing is remembered.")
        if self.front.interactive:
            self.front.note(f"{self.front.keys} /help lists the commands.")
        while True:
            try:
                line = self.front.read()
                if not self.handle(line):
                    return
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.front.interactive:
                    raise
                self.front.note("Ctrl-D or /quit leaves the chat.")
            except UserError as error:
                self.front.error(str(error))

    def handle(self, line: str) -> bool:
        """Do what a line asks for; returns whether the chat goes on. Raises UserError."""
        text = line.strip("\n") if self.session.is_base else line.strip()
        if not text.strip():
            return True
        if not is_command(text.lstrip()):
            self.say(lambda: self.session.send(as_message(text)))
            return True
        outcome = run_command(self.session, text.strip())
        if outcome.rows:
            self.front.table(outcome.rows)
        if outcome.layout is not None:
            self.front.layout(outcome.layout)
        if outcome.note:
            self.front.note(f"{outcome.note} {self.front.keys}" if outcome.keys else outcome.note)
        if outcome.reply is not None:
            self.say(outcome.reply)
        return not outcome.leave

    def say(self, ask: Callable[[], Iterator[str]]) -> None:
        """Show the reply as it comes, and how it ended. Ctrl-C ends it and no more, where somebody sits there."""
        n_forgotten = self.session.n_forgotten
        pieces, turn = ask(), self.session.asked
        assert turn is not None  # it was asked just now
        self.tell_forgotten(n_forgotten)
        for piece in self.front.until_stopped(pieces):
            self.front.piece(piece)
        self.front.end_reply()
        hint = ": /retry leaves out older turns" if self.older_turns() and turn.finish_reason == "context" else ""
        self.front.note(summary(turn) + hint)

    def older_turns(self) -> bool:
        """Whether the model read any before the last one."""
        return len(self.session.turns) - self.session.n_forgotten > 1

    def tell_forgotten(self, before: int) -> None:
        """Say so when other turns than before are left out."""
        now, context = self.session.n_forgotten, self.session.model.config.context_length
        if now > before:
            turns = "the oldest turn is" if now - before == 1 else f"the {now - before} oldest turns are"
            in_all = f" ({now} in all)" if before else ""
            system = "; the system message stays" if self.session.system is not None else ""
            self.front.note(f"The context of {context} tokens is full: {turns} left out from here on{in_all}{system}.")
        elif now < before:
            turns = "a turn" if before - now == 1 else f"{before - now} turns"
            self.front.note(f"There is room again for {turns} that had been left out.")


def summary(turn: Turn) -> str:
    """How long the reply is, how fast it came and why it was cut off, if it was."""
    if not turn.reply.strip():
        if turn.instead_of is not None:
            return "No new reply came; the old one stays."
        return "No reply came, so the message is not kept; /retry sends it again."
    n = len(turn.ids)
    rate = n / max(turn.seconds, 1e-9)
    return f"{n} {'token' if n == 1 else 'tokens'}, {rate:,.0f} a second{HOW_IT_ENDED[turn.finish_reason]}"


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt chat` with a parsed command line."""
    model, tokenizer = open_model(arguments.checkpoint, arguments.device, arguments.weights)
    return chat(model, tokenizer, arguments.sampling, system_of(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("chat", argv))


if __name__ == "__main__":
    exit_with(main)

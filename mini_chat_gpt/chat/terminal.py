"""The two user interfaces of a chat: a full terminal, and plain lines.

`Terminal` reads with prompt_toolkit (line_editor.py), wraps replies between words and dims notes. `Plain` is for pipes and
terminals that can only print: each line is a message, standard output gets only the replies, notes go to standard error, and
there are no escape codes. Neither knows about conversations.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol

from mini_chat_gpt.chat.line_editor import PROMPT, make_prompt
from mini_chat_gpt.common.errors import UserError


class Front(Protocol):
    """What a chat needs from its user interface."""

    interactive: bool  # a person types: a mistake doesn't end the chat, Ctrl-C stops a reply
    keys: str  # help text about the keys

    def read(self) -> str:
        """The next message or command. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C on an empty line."""

    def until_stopped(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces of a reply; if `interactive`, until Ctrl-C."""

    def piece(self, text: str) -> None:
        """Show a piece of a reply."""

    def thought(self, text: str) -> None:
        """Show a piece of the reasoning before a reply."""

    def end_reply(self) -> None:
        """End the reply."""

    def note(self, text: str) -> None:
        """Show a note."""

    def error(self, text: str) -> None:
        """Show a user's mistake. If not `interactive`, raise it as UserError."""

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Show rows of two columns."""

    def layout(self, make: Callable[[int, bool], str]) -> None:
        """Show the text that `make(width in columns, whether in color)` returns."""

    def close(self) -> None:
        """Restore the terminal."""


def is_capable_terminal() -> bool:
    """Whether standard input and output are a terminal that can do more than print."""
    dumb = os.environ.get("TERM", "" if os.name == "nt" else "dumb").lower() in ("dumb", "unknown")
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


THOUGHT = "Thinking: "
"""What precedes the reasoning of a reply."""

# Text in a terminal


# Control characters can move the cursor or worse, and a badly trained model can generate any byte.
_HARMLESS = dict.fromkeys([*range(32), *range(127, 160)], "\ufffd")
_HARMLESS |= {ord("\n"): "\n", ord("\r"): "", ord("\t"): "    "}


def harmless(text: str) -> str:
    """The text without control characters other than line breaks."""
    return text.translate(_HARMLESS)


class WordWrap:
    """Write text that comes in pieces, wrapped between words at `width` columns (wide characters count as two).

    A word is written when it is complete, so call `flush` at the end. A word longer than a line is broken anywhere.
    """

    def __init__(self, write: Callable[[str], Any], width: int) -> None:
        from wcwidth import wcwidth

        self._write, self._width, self._measure = write, max(2, width), wcwidth
        self._column = 0
        self._gap = self._word = ""

    def push(self, text: str) -> None:
        for char in harmless(text):
            if char == "\n":
                self.flush()
                self._write("\n")
                self._column, self._gap = 0, ""
            elif char == " ":
                self.flush()
                self._gap += " "
            elif self._measure(char) == 2:  # Chinese text and emoji may break anywhere
                self.flush()
                self._word = char
                self.flush()
            else:
                self._word += char

    def flush(self) -> None:
        """Write the pending word."""
        if not self._word:
            return
        size = sum(map(self._size, self._word))
        if self._column + len(self._gap) + size > self._width:
            if self._column:
                self._write("\n")
            self._column, self._gap = 0, ""
        self._write(self._gap)
        self._column += len(self._gap)
        for char in self._word:
            if self._column + self._size(char) > self._width:
                self._write("\n")
                self._column = 0
            self._write(char)
            self._column += self._size(char)
        self._gap = self._word = ""

    def _size(self, char: str) -> int:
        return max(0, self._measure(char))


def columns() -> int:
    """Width of the terminal minus one column, as terminals differ at their edge."""
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        width = 0
    return max(20, width or 80) - 1


class Interrupts:
    """Ctrl-C stops a reply and is ignored elsewhere, so that pressing it twice does not end the chat."""

    def __init__(self) -> None:
        self._armed = self._pressed = False
        self._before = signal.signal(signal.SIGINT, self._handle)

    def close(self) -> None:
        """Restore the previous handler of Ctrl-C."""
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> Iterator[None]:
        """A context in which Ctrl-C raises KeyboardInterrupt."""
        try:
            self._armed = True
            yield
        finally:
            self._armed = False

    def until_pressed(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces, until Ctrl-C. It interrupts the computation of a piece; a finished piece is always shown."""
        self._pressed = False
        while True:
            try:
                with self.raised():
                    piece = None if self._pressed else next(pieces, None)
            except KeyboardInterrupt:
                return
            if piece is None:
                return
            yield piece


@contextmanager
def silent_keys() -> Iterator[None]:
    """Don't echo keys that are typed during a reply; the next prompt gets them."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = termios.tcgetattr(terminal)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


class Terminal:
    """A terminal with history, completion of the commands (name: description), and a hint in the empty prompt."""

    interactive = True
    keys = "Enter sends, Alt+Enter (or Esc, then Enter) starts a new line, Ctrl-C stops a reply, Ctrl-D leaves."

    def __init__(self, commands: Mapping[str, str], hint: str) -> None:
        self._interrupts = Interrupts()
        self._plain = bool(os.environ.get("NO_COLOR"))
        self._reply: WordWrap | None = None
        self._thought: WordWrap | None = None
        self._prompt = make_prompt(commands, "" if self._plain else hint, self.note)

    def read(self) -> str:
        try:
            print()  # an empty line between the turns
            text = self._prompt.prompt(PROMPT, handle_sigint=False)
            # Bytes outside the locale's encoding arrive as surrogates. Usually they are UTF-8.
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except KeyboardInterrupt:
            if self._prompt.default_buffer.text:  # Ctrl-C clears the line
                return ""
            raise

    def until_stopped(self, pieces: Iterator[str]) -> Iterator[str]:
        with silent_keys():
            yield from self._interrupts.until_pressed(pieces)

    def thought(self, text: str) -> None:
        if self._thought is None:
            sys.stdout.write("" if self._plain else "\x1b[2m")
            self._thought = WordWrap(sys.stdout.write, columns())
            self._thought.push(THOUGHT)
        self._thought.push(text)
        sys.stdout.flush()

    def _end_thought(self) -> None:
        if self._thought is not None:
            self._thought.flush()
            print("" if self._plain else "\x1b[0m", flush=True)
            self._thought = None

    def piece(self, text: str) -> None:
        if self._thought is not None:
            self._end_thought()
            print()  # an empty line before the reply
        if self._reply is None:
            self._reply = WordWrap(sys.stdout.write, columns())
        self._reply.push(text)
        sys.stdout.flush()

    def end_reply(self) -> None:
        self._end_thought()
        if self._reply is not None:
            self._reply.flush()
            print(flush=True)
            self._reply = None

    def note(self, text: str) -> None:
        print(wrapped(text) if self._plain else f"\x1b[2m{wrapped(text)}\x1b[0m", flush=True)

    def error(self, text: str) -> None:
        print(wrapped(text), flush=True)

    def table(self, rows: list[tuple[str, str]]) -> None:
        width = columns()
        left = max(len(name) for name, _ in rows) + 2
        for name, text in rows:
            if left > width / 2:  # too narrow for two columns
                print(wrapped(name), wrapped(text, indent="    "), sep="\n")
            else:
                print(f"{name:<{left}}{wrapped(text, indent=' ' * left).lstrip()}")

    def layout(self, make: Callable[[int, bool], str]) -> None:
        print(make(columns(), not self._plain), flush=True)

    def close(self) -> None:
        self._interrupts.close()


def wrapped(text: str, indent: str = "") -> str:
    """A text wrapped to the terminal's width, with every line indented."""
    lines: list[str] = []
    wrap = WordWrap(lines.append, columns() - len(indent))
    wrap.push(text)
    wrap.flush()
    return textwrap.indent("".join(lines), indent)


# Lines


class Plain:
    """Lines in, replies out. A backslash at the end of a line continues the message in the next line."""

    keys = "Each line is a message; a backslash at its end continues it in the next line."

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._interrupts = Interrupts() if self.interactive else None
        self._clean = harmless if sys.stdout.isatty() else str
        self._lines = 0
        self._open = self._thinks = False

    def read(self) -> str:
        lines = [self._line()]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(more=True))
        return "\n".join(lines)

    def _line(self, more: bool = False) -> str:
        try:
            with nullcontext() if self._interrupts is None else self._interrupts.raised():
                if self.interactive:
                    print(" " * len(PROMPT) if more else PROMPT, end="", file=sys.stderr, flush=True)
                raw = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # below the ^C
            raise
        if not raw and not more:
            raise EOFError
        self._lines += 1
        try:
            return raw.decode("utf-8-sig" if self._lines == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"Not UTF-8 text (byte {error.start} of the line); save it as UTF-8.") from None

    def until_stopped(self, pieces: Iterator[str]) -> Iterator[str]:
        # Without a person at a terminal, Ctrl-C ends the program as usual.
        return pieces if self._interrupts is None else self._interrupts.until_pressed(pieces)

    def thought(self, text: str) -> None:
        print(harmless(text if self._thinks else THOUGHT + text), end="", file=sys.stderr, flush=True)
        self._thinks = True

    def _end_thought(self) -> None:
        if self._thinks:
            print(file=sys.stderr, flush=True)
        self._thinks = False

    def piece(self, text: str) -> None:
        self._end_thought()
        self._open = True
        print(self._clean(text), end="", flush=True)

    def end_reply(self) -> None:
        self._end_thought()
        if self._open:
            print(flush=True)
        self._open = False

    def note(self, text: str) -> None:
        print(harmless(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        if not self.interactive:
            raise UserError(f"Line {self._lines} of standard input: {text}")
        self.note(text)

    def table(self, rows: list[tuple[str, str]]) -> None:
        left = max(len(name) for name, _ in rows)
        for name, text in rows:
            self.note(f"{name:<{left}}  {text}")

    def layout(self, make: Callable[[int, bool], str]) -> None:
        self.note(make(columns(), False))

    def close(self) -> None:
        if self._interrupts is not None:
            self._interrupts.close()

"""The line editor for messages: prompt_toolkit with history, completion of commands, and pasting of whole stories.

prompt_toolkit is imported when a prompt is created, as a chat over a pipe doesn't need it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mini_chat_gpt.common.files import user_cache

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT = "> "


def make_prompt(commands: Mapping[str, str], hint: str, say: Callable[[str], None]) -> PromptSession[str]:
    """A prompt_toolkit prompt: Enter sends, Alt+Enter starts a new line, pasted text is not interpreted."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import Condition, has_focus
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        multiline=True,
        key_bindings=keys,
        prompt_continuation=" " * len(PROMPT),
        history=make_history(say),
        completer=make_completer(commands),
        complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
        reserve_space_for_menu=min(len(commands), 8),
        placeholder=lambda: FormattedText([("#888888", "" if get_app().is_done else hint)]),
        enable_open_in_editor=True,
        enable_suspend=True,
    )


def make_history(say: Callable[[str], None]) -> Any:
    """The input history, stored in a file that only its owner can read, or in memory if the file can't be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except OSError as error:  # a full disk must not end the chat
                say(f"The input history can't be written to {file} ({error.strerror}).")

    file = user_cache() / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        if not file.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
    except OSError as error:
        say(f"The input history is kept for this chat only: {file} can't be written ({error.strerror}).")
        return InMemoryHistory()
    return History(file)


def make_completer(commands: Mapping[str, str]) -> Any:
    """A completer for commands at the beginning of the text, and for file names after /save and /load."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        paths = PathCompleter(expanduser=True)

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            word, _, rest = text.partition(" ")
            if not text.startswith("/") or "\n" in text:
                return
            if word == text:
                for name, what in commands.items():
                    if name.startswith(text):
                        yield Completion(name, start_position=-len(text), display_meta=what)
            elif word in ("/save", "/load"):
                yield from self.paths.get_completions(Document(rest, len(rest)), event)

    return Commands()

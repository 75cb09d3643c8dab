"""The slash commands of a chat. `run_command` runs one.

A command acts on a `ChatSession` and returns an `Outcome`, which the terminal displays. A mistake raises UserError with one
sentence, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat.token_probs_view import check_page, render_text, write_page
from mini_chat_gpt.cli_options import CHAT_ALIASES, CHAT_COMMANDS
from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.common.files import readable_disk_errors
from mini_chat_gpt.common.user_paths import user_path

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Outcome:
    """The result of a command, which the terminal displays."""

    rows: Rows = field(default_factory=list)  # a table of two columns
    layout: Callable[[int, bool], str] | None = None  # makes a text from (width in columns, whether in color)
    note: str = ""
    keys: bool = False  # also say what the keys do
    reply: Callable[[], Iterator[str]] | None = None  # starts a reply, which comes in pieces
    leave: bool = False  # end the chat


@dataclass(frozen=True)
class Command:
    """A slash command. `argument` is its form in the help: "" for none, in brackets if it is optional."""

    argument: str
    what: str
    run: Callable[[ChatSession, str], Outcome]


def is_command(line: str) -> bool:
    """Whether a line is a command. A message that begins with a slash is typed with two (`as_message` removes one)."""
    return line.startswith("/") and not line.startswith("//")


def as_message(line: str) -> str:
    """The message that a line means."""
    return line[1:] if line.startswith("//") else line


def run_command(session: ChatSession, line: str) -> Outcome:
    """Run a line that begins with a slash. Raises UserError for an unknown command or an invalid argument."""
    word, *rest = line.split(maxsplit=1)
    name, argument = word[1:].lower(), " ".join(rest).strip()
    name = CHAT_ALIASES.get(name, name)
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(
            f"There is no command {short(word)}{nearest(word.lower(), ['/' + name for name in COMMANDS])} "
            "(/help lists them; a message that begins with a slash is typed with two)."
        )
    if argument and not command.argument:
        raise UserError(f"/{name} takes no argument.")
    return command.run(session, argument)


def short(text: str, length: int = 32) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3].rstrip() + "..."


# Implementations of the commands


def _help(session: ChatSession, _: str) -> Outcome:
    rows = [(f"/{name} {command.argument}".rstrip(), command.what) for name, command in COMMANDS.items()]
    return Outcome(rows, note="A message that begins with a slash is typed with two.", keys=True)


def _examples(session: ChatSession, text: str) -> Outcome:
    prompts = session.examples
    if not prompts:
        raise UserError("The model's checkpoint doesn't say what it was trained to do, so there are no examples.")
    if not text:
        rows = [(f"{number}", prompt) for number, prompt in enumerate(prompts, start=1)]
        return Outcome(rows, note="/examples 1 sends the first one.")
    if text not in (numbers := [f"{number}" for number in range(1, len(prompts) + 1)]):
        raise UserError(f"/examples takes a number from 1 to {numbers[-1]}, not {short(text)!r}.")
    prompt = prompts[int(text) - 1]
    return Outcome(note=f"{prompt}\n", reply=partial(session.send, prompt))


def _reset(session: ChatSession, _: str) -> Outcome:
    session.reset()
    return Outcome(note="A new conversation; the system message and the settings stay.")


def _retry(session: ChatSession, _: str) -> Outcome:
    note, last = "", session.last_turn
    more_room = last is not None and last.finish_reason == "context"  # a retry makes room for a longer reply
    if session.sampling.temperature == 0 and not more_room and (last or session.turns):
        note = "The temperature is 0, so the reply is always the same; /temp 0.7 makes it vary."
    return Outcome(note=note, reply=session.retry)


def _undo(session: ChatSession, _: str) -> Outcome:
    turn = session.undo()
    return Outcome(note=f'Removed "{short(turn.message)}" and its reply; {_turns(len(session.turns))} left.')


def _system(session: ChatSession, text: str) -> Outcome:
    if text == "default" and session.default_system is None and not session.is_base:
        raise UserError("The model was trained without a system message, so there is no default.")
    if text:
        session.set_system({"none": None, "default": session.default_system}.get(text, text))
    if session.is_base:
        session.set_system("?")  # raises UserError: a base model has no system message
    shown = "none" if session.system is None else session.system
    return Outcome(note=f"The system message is{' now' if text else ''}: {shown}")


def _thinking(session: ChatSession, text: str) -> Outcome:
    values = {"on": True, "off": False, "default": None}
    if text and text.lower() not in values:
        raise UserError(f"thinking is on, off or default, not {short(text)!r}.")
    if text:
        session.set_thinking(values[text.lower()])
    return Outcome(note=f"thinking is {'now ' if text else ''}{'on' if session.thinks else 'off'}.")


def _setting(name: str, kind: type[int] | type[float], example: str, optional: bool = False) -> Callable[..., Outcome]:
    """A command that shows or sets one field of `Sampling`."""

    def run(session: ChatSession, text: str) -> Outcome:
        if text:
            value = (
                None if optional and text.lower() in ("none", "off") else _number(text, name, kind, example, optional)
            )
            changes: dict[str, Any] = {name: value}
            session.sampling = replace(session.sampling, **changes)
        value = getattr(session.sampling, name)
        shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else value
        return Outcome(note=f"{name} is {'now ' if text else ''}{shown}.")

    return run


def _number(text: str, name: str, kind: type[int] | type[float], example: str, optional: bool) -> int | float:
    try:
        return kind(text)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        none = " or none" if optional else ""
        raise UserError(f"{name} must be {number} such as {example}{none}, not {short(text)!r}.") from None


def _tokens(session: ChatSession, _: str) -> Outcome:
    usage = session.usage()
    if session.is_base:
        return Outcome(
            note=f"The context holds {usage.context} tokens, your text and its continuation; each text is separate."
        )
    rows = [("system", f"{usage.system}")] if session.system is not None else []
    for number, (turn, size) in enumerate(zip(session.turns, usage.turns, strict=True), start=1):
        remark = ", dropped" if number <= usage.n_dropped else ""
        rows.append((f"turn {number}", f"{size}{remark}{_cut_off(turn)}: {short(turn.message)}"))
    free = usage.context - usage.used
    note = (
        f"{usage.used} of {usage.context} tokens are used, {free} are free for your message and the reply; the oldest turns "
        f"are dropped if a reply would have fewer than {session.room_for_reply}."
    )
    return Outcome(rows, note=note)


def _cut_off(turn: Turn) -> str:
    return "" if turn.finish_reason == "stop" else ", cut off"


def _turns(n: int) -> str:
    return "1 turn is" if n == 1 else f"{n or 'no'} turns are"


def _save(session: ChatSession, argument: str) -> Outcome:
    overwrite = argument.startswith("--overwrite ")
    path = _path("save", argument.removeprefix("--overwrite "))
    with readable_disk_errors(path):
        existed = path.is_file()
    if existed and not overwrite and Path(os.path.realpath(path)) not in session.files:
        raise UserError(f"{path} exists already; choose another name, or type: /save --overwrite {path}")
    session.save(path, overwrite=True)
    replaced = ", replacing its content" if existed else ""
    return Outcome(note=f"Saved {_counted(len(session.turns))} to {path}{replaced}.")


def _load(session: ChatSession, argument: str) -> Outcome:
    path = _path("load", argument)
    session.load(path)
    note = f"Loaded {_counted(len(session.turns))} from {path}, with the settings saved there."
    if session.last_turn is not None:
        note += " The last message has no reply yet; /retry generates one."
    if session.system is None and session.default_system is not None:
        note += " There is no system message, but the model was trained with one; /system default sets it."
    return Outcome(note=note)


def _why(session: ChatSession, argument: str) -> Outcome:
    if argument.lower() in ("", "all"):
        explanation = session.explain()
        every, hint = bool(argument), "/why all shows every token, /why FILE.html writes a page"
        return Outcome(layout=partial(render_text, explanation, every=every, hint=hint))
    path = _path("why", argument)
    check_page(path)
    write_page(session.explain(), path)
    return Outcome(note=f"Wrote {path}; open it in a browser.")


def _path(command: str, text: str) -> Path:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if not text:
        raise UserError(f"/{command} needs a file name, such as /{command} chat.json.")
    if not text.isprintable():
        raise UserError(f"{short(text)!r} is not a valid file name.")
    return user_path(text)


def _counted(n: int) -> str:
    return "1 turn" if n == 1 else f"{n} turns"


def _quit(session: ChatSession, _: str) -> Outcome:
    return Outcome(leave=True)


_RUN: dict[str, Callable[[ChatSession, str], Outcome]] = {
    "help": _help,
    "examples": _examples,
    "reset": _reset,
    "retry": _retry,
    "undo": _undo,
    "system": _system,
    "thinking": _thinking,
    "temp": _setting("temperature", float, "0.7"),
    "top_p": _setting("top_p", float, "0.9", True),
    "seed": _setting("seed", int, "1", True),
    "max": _setting("max_new_tokens", int, "256"),
    "why": _why,
    "tokens": _tokens,
    "save": _save,
    "load": _load,
    "quit": _quit,
}
COMMANDS = {name: Command(argument, what, _RUN[name]) for name, (argument, what) in CHAT_COMMANDS.items()}

"""The Modelfile of an exported GGUF, for `ollama create`: the template in Go's text/template, stops, and our chat's sampling.

Ollama gives a template `.Messages` (with `.Role` and `.Content`) and `.System`, the contents of system messages. It inserts SYSTEM as a
message before a conversation that has none, as our chat does with the default system message of a model.
"""

from __future__ import annotations

from mini_chat_gpt.export.turns import NotExpressible, Turns, turns_of
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

QUOTES = '"""'


def modelfile(tokenizer: ChatTokenizer, file: str, license_text: str | None = None) -> tuple[str, list[str]]:
    """The text of the Modelfile for the GGUF `file` next to it, and lines about what it can't say."""
    lines = [f"FROM ./{file}"]
    notes = []
    chat_format = tokenizer.chat_format
    if chat_format is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        try:
            template = go_template(turns_of(tokenizer))
            if QUOTES in template:
                raise NotExpressible("it contains three quotation marks in a row")
            lines.append(f"TEMPLATE {QUOTES}{template}{QUOTES}")
        except NotExpressible as error:
            note = (
                f"The chat template can't be written for Ollama, because {error}; recent versions of Ollama use the template in the "
                "GGUF file, older ones give wrong answers."
            )
            notes.append(note)
            lines.append(f"# {note}")
        system = chat_format.default_system
        if system and QUOTES in system:
            notes.append(
                "The default system message contains three quotation marks in a row; give it to Ollama yourself."
            )
        elif system:
            lines.append(f"SYSTEM {QUOTES}{system}{QUOTES}")
    names = {token_id: name for name, token_id in tokenizer.control.items()}
    lines += [f'PARAMETER stop "{names[stop]}"' for stop in sorted(tokenizer.stop_ids)]
    # Ollama would otherwise penalize repetitions and cut off unlikely tokens, which our chat does not do.
    sampling = Sampling()
    lines += [
        f"PARAMETER temperature {sampling.temperature}",
        f"PARAMETER repeat_penalty {sampling.repetition_penalty}",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1.0",
    ]
    if license_text and QUOTES not in license_text:
        lines.append(f"LICENSE {QUOTES}{license_text}{QUOTES}")
    return "\n".join(lines) + "\n", notes


def go_template(turns: Turns) -> str:
    """The template for a conversation that ends with a prompt for a reply. It has no white space between its actions."""
    content = "{{ .Content }}"
    before_content = ""
    if turns.in_user and turns.system is not None:
        # The first user's message is the second message if there is a system message.
        before_content = _when("and $.System (eq $i 1)", "{{ $.System }}" + _literal(turns.system[1]))
    user = _literal(turns.user[0]) + before_content + content + _literal(turns.user[1])
    assistant = _literal(turns.assistant[0]) + content + _literal(turns.assistant[1])
    roles = {"user": user, "assistant": assistant}
    if turns.system is not None and not turns.in_user:
        roles = {"system": _literal(turns.system[0]) + content + _literal(turns.system[1]), **roles}
    messages = "".join(_when(f'eq .Role "{role}"', text) for role, text in roles.items())
    no_system = _when("not .System", _literal(turns.no_system)) if turns.no_system else ""
    beginning = _literal(turns.first) + no_system
    return (
        beginning
        + "{{ range $i, $_ := .Messages }}"
        + messages
        + "{{ end }}"
        + _literal(turns.prompt)
        + "{{ .Response }}"
    )


def _when(condition: str, text: str) -> str:
    return f"{{{{ if {condition} }}}}{text}{{{{ end }}}}"


def _literal(text: str) -> str:
    """Text of a template that prints itself. Two braces would begin an action."""
    return text.replace("{", '{{ "{" }}')

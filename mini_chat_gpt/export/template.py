"""The chat template of an exported model: that of its chat format, with the defaults that our chat has built in.

`apply_chat_template` and llama.cpp know only what the template says. A model that was trained with a system message, or without
thinking before its replies, needs both there.
"""

from __future__ import annotations

import re

from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


def chat_template(tokenizer: ChatTokenizer) -> str | None:
    """The template in Jinja, None for a base model."""
    chat_format = tokenizer.chat_format
    if chat_format is None:
        return None
    source, head = chat_format.jinja_template(tokenizer.bos_token), ""
    if isinstance(chat_format, TemplateFormat) and chat_format.thinking is not None:
        value = str(chat_format.thinking).lower()
        head += f"{{%- if enable_thinking is not defined -%}}{{%- set enable_thinking = {value} -%}}{{%- endif -%}}\n"
    system = chat_format.default_system
    if system and system != chat_format.own_system:
        message = f"{{'role': 'system', 'content': {_quoted(system)}}}"
        head += (
            "{%- if messages[0]['role'] != 'system' -%}"
            f"{{%- set messages = [{message}] + messages -%}}"
            "{%- endif -%}\n"
        )
    return head + source


def without_generation(template: str) -> str:
    """The template without the tags that mark replies for training, which not every engine of llama.cpp knows.

    Each becomes a comment, which removes the same white space around it.
    """
    return _GENERATION.sub(r"{#\1 \2#}", template)


def template_notes(tokenizer: ChatTokenizer) -> list[str]:
    """What the exported template does otherwise than our chat, a sentence each."""
    chat_format = tokenizer.chat_format
    if chat_format is None:
        return ["The model has no chat format: other programs continue texts with it, they don't chat."]
    notes = ["Text of a message that spells a control token becomes that token in other programs; here it stays text."]
    if not isinstance(chat_format, TemplateFormat):
        return notes
    if chat_format.own_system is not None and not chat_format.default_system:
        notes.append(
            f"The template inserts the system message {chat_format.own_system!r}, without which the model was trained; give a "
            "system message of your own."
        )
    if chat_format.uses_date:
        notes.append("The template prints the date of the day of use; in training it was the day of the training.")
    return notes


def _quoted(text: str) -> str:
    """A text as a literal of Jinja."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"}
    return "'" + "".join(escapes.get(letter, letter) for letter in text) + "'"

"""Give a tokenizer its chat format: that of the model, our own, ChatML, or a template from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from mini_chat_gpt.chat_format import ChatFormat, Format, Message, format_of
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.tokenizer.chat_templates import CHATML_TOKENS, TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.template_sandbox import MAX_SOURCE


def template_format(tokenizer: ChatTokenizer, source: str) -> TemplateFormat:
    """The format of a template for this tokenizer. Raises UserError as `TemplateFormat.from_source` does."""
    names = {token_id: name for name, token_id in tokenizer.control.items()}
    strips = {names[token_id]: flags for token_id, flags in tokenizer.stripping.items()}
    return TemplateFormat.from_source(source, tokenizer.control, *tokenizer.template_tokens, strips)


def set_chat_format(tokenizer: ChatTokenizer, setting: str, system_message: str | None) -> list[int]:
    """Set the format that a model is fine-tuned to, and add the control tokens that it needs. Returns their new ids.

    setting          auto = the format that the tokenizer has, our own if it has none; mini = our own; chatml; or a file with a template
    system_message   the new `default_system`; "" for none; None for that of the template, none with our own format

    Raises UserError for a template that can't be read or used.
    """
    known = set(tokenizer.control)
    chat_format: Format
    if setting == "auto":
        chat_format = format_of(tokenizer)
    elif setting == "mini":
        chat_format = ChatFormat()
    elif setting == "chatml":
        tokenizer.add_control_tokens(CHATML_TOKENS)
        chat_format = TemplateFormat.chatml(tokenizer.control)
    else:
        chat_format = _from_file(tokenizer, Path(setting))
    tokenizer.add_control_tokens(chat_format.required_tokens)
    if system_message == "" and not chat_format.can_omit_system:
        raise UserError(
            f"data.system_message is empty, but the chat template always has a system message, by default {chat_format.own_system!r}; "
            "give another."
        )
    if system_message and isinstance(chat_format, TemplateFormat) and not chat_format.has_system:
        raise UserError("data.system_message is set, but the chat template refuses system messages; set it to null.")
    if system_message is not None or isinstance(chat_format, ChatFormat):
        chat_format = chat_format.with_default_system(system_message or None)
    if isinstance(chat_format, TemplateFormat):
        # A run that is resumed on another day must see the same conversations.
        chat_format = chat_format.on_day(chat_format.day or date.today())
    tokenizer.chat_format = chat_format
    return sorted(token_id for name, token_id in tokenizer.control.items() if name not in known)


def set_thinking(tokenizer: ChatTokenizer, has_reasoning: bool) -> str | None:
    """Set the default of `thinking` for a fine-tuned model. Returns a sentence if the model no longer thinks before it replies.

    A model that was trained on replies without reasoning has learned to reply after an empty one.
    """
    chat_format = tokenizer.chat_format
    if not isinstance(chat_format, TemplateFormat) or not chat_format.can_switch_thinking:
        return None
    tokenizer.chat_format = chat_format.with_thinking(None if has_reasoning else False)
    if not chat_format.thinks or tokenizer.chat_format.thinks:
        return None
    return "No reply of the training data has reasoning: the fine-tuned model replies without thinking, unless `--thinking on` is given."


def _from_file(tokenizer: ChatTokenizer, path: Path) -> TemplateFormat:
    if not path.is_file():
        raise UserError(
            f"sft.chat_format is {str(path)!r}; it can be auto, mini, chatml, or a file with a Jinja template."
        )
    try:
        # At most four bytes a character.
        return template_format(tokenizer, read_file(path, 4 * MAX_SOURCE).decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; sft.chat_format names a file with a Jinja template.") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def describe_format(chat_format: Format) -> list[str]:
    """What a user should know about the format of a model from elsewhere, one sentence each; [] for our own."""
    if not isinstance(chat_format, TemplateFormat):
        return []
    lines = []
    if chat_format.own_system is not None:
        off = (
            "data.system_message: '' and `/system none` switch it off"
            if chat_format.can_omit_system
            else "it can't be switched off"
        )
        lines.append(
            f"Its template inserts a system message, {chat_format.own_system!r}; another one replaces it; {off}."
        )
    if not chat_format.has_system:
        lines.append("Its template refuses system messages.")
    if chat_format.plain_text_roles:
        lines.append("The role tags of its template are ordinary text: a message can spell a turn.")
    if chat_format.reasoning_marks() is not None:
        lines.append(_about_thinking(chat_format))
    if chat_format.uses_date:
        lines.append("Its template prints the date: today's, or in a fine-tuned model that on which training began.")
    return lines


def _about_thinking(chat_format: TemplateFormat) -> str:
    thinks = "The model thinks before it replies" if chat_format.thinks else "The model replies without thinking first"
    if not chat_format.can_switch_thinking:
        return f"{thinks}; its template has no switch for that."
    other = "off" if chat_format.thinks else "on"
    return f"{thinks}; `--thinking {other}` and `/thinking {other}` switch it {other}."


_SAMPLES: tuple[tuple[str, ...], ...] = (
    ("Hello!",),
    ("What is the capital of Japan?", "Tokyo.", "And of France?"),
    ("  Two spaces before, one after. ", "\nA new line.\n\n", "\tTab 12,345.67"),
    ("def f(x):\n    return x**2\n", "It's a function.\n\n\n- one\n- two", "Grüße, 你好, 🙂!"),
    ("a", "b", "c", "d", "e"),
)


def check_format(tokenizer: ChatTokenizer, full_encode: Callable[[str], Sequence[int]]) -> str | None:
    """Compare ten conversations with the ids that a model's own tokenizer has for them; a sentence if they differ.

    `full_encode` encodes a rendered conversation with all control tokens, and adds none of its own. Formats of ours are not compared.
    """
    chat_format = tokenizer.chat_format
    if not isinstance(chat_format, TemplateFormat):
        return None
    for contents in _SAMPLES:
        for system in (False, True):
            messages = [Message("system", "You are\nhelpful.")] if system and chat_format.has_system else []
            messages += [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(contents)]
            for one in _with_reasoning(messages) if chat_format.reasoning_marks() is not None else [messages]:
                prompt = one[-1].role == "user"
                expected = list(full_encode(chat_format.text(one, prompt)))
                if chat_format.render(one, tokenizer, prompt).ids != expected:
                    return f"The chat format does not have the ids of the model's own tokenizer, for example for {contents[0]!r}."
    return None


def _with_reasoning(messages: list[Message]) -> list[list[Message]]:
    """The conversation with reasoning in its replies, as a prompt for another reply and without the last question."""
    thought = "\nFirst, a thought.\n\nThen another one. "
    replies = [replace(one, reasoning=thought if one.role == "assistant" else None) for one in messages]
    return [replies, replies[:-1]] if len(messages) > 2 else [replies]

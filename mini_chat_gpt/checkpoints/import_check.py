"""Checks of an imported tokenizer and chat format: the round trip, control tokens in text, and the ids of ten conversations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.tokenizer.chat_setup import check_format, template_format
from mini_chat_gpt.tokenizer.chat_templates import CHATML_TOKENS, TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.template_skeleton import REMEDY

SAMPLES = (
    "Hello world! It's 12:30, and we've walked 1,234 miles.",
    "  two leading spaces, a\ttab, and trailing ones  ",
    "line one\n\nline two\r\n    indented = f(x) + 3.14  # comment",
    "Zoë ate crème brûlée in Köln; naïve façade, Ærøskøbing.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "你好，世界。こんにちは世界。안녕하세요 세계",
    "😀 👩‍👩‍👧‍👦 🇩🇪 ∑ ∫ √2 ≤ π → ∞",
    "{\"key\": [1, 2.5e-3, null], 'quote': “curly”}",
)
"""Texts in Unicode's composed form: some tokenizers compose what they read."""


def give_chat_format(tokenizer: ChatTokenizer, source: Path) -> None:
    """Set the chat format of the template that a model came with, if it has one.

    The ids of ten conversations are compared with those of the model's whole tokenizer. A template that can't be used, or gives
    other ids, is named in a warning; ChatML takes its place if the template is a variant of it.
    """
    template = tokenizer.template
    if template is None:
        return
    try:
        tokenizer.chat_format = template_format(tokenizer, template)
        reason = check_format(tokenizer, _whole_encoder(tokenizer))
    except UserError as error:
        reason = str(error).removesuffix(f"; {REMEDY}.")
    if reason is None:
        return
    is_chatml = all(name in tokenizer.control and name in template for name in CHATML_TOKENS)
    tokenizer.chat_format = TemplateFormat.chatml(tokenizer.control) if is_chatml else None
    instead = "plain ChatML takes its place" if is_chatml else "the model is treated as one without a chat format"
    warnings.warn(f"the chat template of {source} is not used: {reason.rstrip('.')}; {instead}", stacklevel=2)


def _whole_encoder(tokenizer: ChatTokenizer) -> Callable[[str], Sequence[int]]:
    """The model's whole tokenizer: text to ids, where names of control tokens become those tokens."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(tokenizer.encoder.to_bytes().decode("utf-8"))
    # Some files set both, as their model was trained on texts of one length.
    whole.no_truncation()
    whole.no_padding()
    return lambda text: whole.encode(text, add_special_tokens=False).ids


def check_tokenizer(tokenizer: ChatTokenizer) -> list[str]:
    """Lines that say what has been checked. Raises UserError if the tokenizer loses text or lets text spell a control token."""
    control = set(tokenizer.control.values())
    for text in SAMPLES:
        again = tokenizer.decode(tokenizer.encode(text))
        if again != text and not tokenizer.losses:
            raise UserError(
                f"The imported tokenizer loses text: {short(text)} comes back as {short(again)}; the model can't be imported."
            )
    spelled = " ".join(name for name in tokenizer.control if not name.startswith("<|reserved_"))[:100_000]
    if control & set(tokenizer.encode(spelled)):
        raise UserError("The imported tokenizer lets text spell a control token; the model can't be imported.")
    checked = [
        f"{len(SAMPLES)} texts in and out of the tokenizer",
        f"names of its {len(control):,} control tokens stay text",
    ]
    if (
        isinstance(tokenizer.chat_format, TemplateFormat)
        and tokenizer.template == tokenizer.chat_format.template.source
    ):
        # `give_chat_format` has compared them, or this would be another template.
        checked.append("ten conversations have the ids of its own tokenizer and template")
    return [*(f"note: {loss}" for loss in tokenizer.losses), f"checked: {'; '.join(checked)}"]

"""Checks of an imported tokenizer, before anything is written: its round trip, and that text can't spell a control token."""

from __future__ import annotations

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

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
    notes = [f"note: {loss}" for loss in tokenizer.losses]
    return [
        *notes,
        f"checked: {len(SAMPLES)} texts in and out of the tokenizer; names of its {len(control):,} control tokens stay text",
    ]

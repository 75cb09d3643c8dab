"""The texts with which an export is checked: 1,000 hostile strings, a packaged text, and a chat of three turns."""

from __future__ import annotations

import random
from collections.abc import Iterable

from mini_chat_gpt import assets

N_STRINGS = 1000
MAX_TOKENS = 2000
"""Tokens of the packaged text on which logits are compared."""
CHAT = ("Hello! Who are you?", "Tell me a short story about a dog and a ball.", "What happens at the end?")
"""The user's messages of the chat."""
BEGINNING = "Once upon a time, there was"
"""What a model without a chat format continues."""

_PIECES = (
    *("a", "A", "the", " the", "ing", "Hello", " World", "x1", "12", "3", "1000000", "3.14", "1,234", "0x7F", "٣٤", "½", "Ⅷ", "²"),
    *(" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x00", "\x1f", "\x85"),
    *("'s", "'S", "'ll", "'LL", "'ve", "'", '"', ".", "...", "!?", "<", "|", ">", "<|", "|>", "_", "/", "\\", "{{", "}}", "#", "$", "%"),
    *("é", "e\u0301", "ß", "ſ", "K", "Å", "ﬁ", "Ünï", "naïve", "\u200d", "\ufeff", "\ufffd", "\u0301", "\u2581", "▁▁", "Ġ", "Ċ"),
    *("日本", "你好", "한국어", "각", "हिन्दी", "ไทย", "مرحبا", "שלום", "Привет", "Ωμέγα", "🙂", "👩‍👧", "🏳️‍🌈", "\U0010ffff", "\U0001d4d0"),
    *("<0x0A>", "<unk>", "<s>", "</s>", "[INST]", "def f(x):\n    ", "http://a.b/c?d=e", "a@b.de", "--", "=>", "…", "“x”", "1️⃣"),
)  # fmt: skip


def packaged_text() -> str:
    """English prose, dialogue, lists, numbers and code: about 7,000 characters."""
    return assets.text("export_text.txt")


def hostile_strings(names: Iterable[str], n: int = N_STRINGS) -> list[str]:
    """Random strings of what splitting, normalization and merging treat specially; always the same for the same `names`.

    `names` are those of control tokens. Some strings are long runs of one piece, and some have arbitrary characters.
    """
    generator = random.Random("export")
    pieces = [*_PIECES, *sorted(name for name in names if not name.startswith("<|reserved_"))[:50]]
    strings = []
    for number in range(n):
        if number % 25 == 24:
            strings.append(generator.choice(pieces) * generator.choice((7, 40, 150)))
            continue
        size = generator.choice((1, 2, 3, 5, 8, 20))
        parts = [
            generator.choice(pieces) if generator.random() < 0.9 else chr(generator.randrange(0xD800))
            for _ in range(size)
        ]
        strings.append("".join(parts))
    return strings

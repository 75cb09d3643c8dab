"""Small tokenizers of every supported kind, trained on the spot with the `tokenizers` library, and hostile texts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizer_samples import CORPUS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mini_chat_gpt.tokenizer.split_patterns import LLAMA3_PATTERN, QWEN2_PATTERN

TEXTS = [
    *CORPUS,
    "def f(x):\n    return x ** 2  # it's 'quoted'\n\n\n",
    "Ünïcödé e\u0301a\u0308 हिन्दी में 12,345.67 № ½ Ⅷ ٣٤ '' \t\t end",
    "The ship's crew didn't sail in 1492, they'll go LATER! (I'VE said so.) www.example.org/a?b=c&d=e",
]
CONTROL = ("<|im_start|>", "<|im_end|>", "<tool>")
THINK = "<think>"  # added, but not special
SPACE = "\u2581"


def _bpe(**settings: Any) -> Tokenizer:
    return Tokenizer(models.BPE(**settings))


def _train(
    tokenizer: Tokenizer, alphabet: Iterable[str], n_tokens: int = 700, special: Iterable[str] = ()
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, initial_alphabet=list(alphabet), special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def _byte_level(steps: list[Any], use_regex: bool, alphabet: bool = True, **settings: Any) -> Tokenizer:
    tokenizer = _bpe(**settings)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, pre_tokenizers.ByteLevel.alphabet() if alphabet else [])


def gpt2() -> Tokenizer:
    tokenizer = _byte_level([], use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def smollm() -> Tokenizer:
    """Digits are split first; many bytes have no token, and the special tokens are part of the vocabulary."""
    tokenizer = _bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, [], special=["<|endoftext|>", *CONTROL])


def llama3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    tokenizer = _byte_level([split], use_regex=False, ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = _byte_level([pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")], use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """Llama's ids: three special tokens, 256 bytes, and pieces of words that begin with U+2581."""
    tokenizer = _bpe(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    _train(tokenizer, [], 900, [*special, *byte_tokens])
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(parts))


def tinyllama() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _metaspace(scheme: str, split: bool) -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": gpt2,
    "SmolLM2": smollm,
    "Llama 3": llama3,
    "Qwen2": qwen2,
    "TinyLlama": tinyllama,
    "Mistral": lambda: _metaspace("first", split=False),
    "Metaspace": lambda: _metaspace("always", split=True),
    "no prefix": lambda: _metaspace("never", split=False),
}


@cache
def source(kind: str) -> bytes:
    """The tokenizer.json of a kind, with control tokens, one of them not special, and a run of blanks that is a token."""
    from tokenizers import AddedToken

    tokenizer = MAKERS[kind]()
    tokenizer.add_special_tokens([AddedToken(name, rstrip=name == "<|im_end|>") for name in CONTROL])
    tokenizer.add_tokens([AddedToken(THINK, normalized=False)])
    if kind == "GPT-2":  # as in GPT-NeoX
        tokenizer.add_tokens([AddedToken(" " * 7, normalized=True)])
    # With these, the library would cut and pad texts.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    return tokenizer.to_str(pretty=True).encode()


@cache
def full(kind: str) -> Tokenizer:
    """The library's tokenizer, with all added tokens."""
    tokenizer = Tokenizer.from_str(source(kind).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


NAMES = [*CONTROL, THINK, "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<s>", "</s>", "<unk>"]
PARTS = [
    *(
        "a",
        "A",
        "the",
        " the",
        "ing",
        "é",
        "e\u0301",
        "\u0301",
        "\u200d",
        "ß",
        "ſ",
        "K",
        "Ⅷ",
        "½",
        "٣",
        "12",
        "3",
        "1000000",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u2028",
        "\x00",
        "\x1f",
        "\x85",
        "\ufeff",
        "\ufffd",
    ),
    *(
        "'s",
        "'S",
        "'ſ",
        "'LL",
        "'",
        '"',
        ".",
        "...",
        "!?",
        "<",
        "|",
        ">",
        "<|",
        "|>",
        "_",
        "/",
        "日本",
        "한국어",
        "हिन्दी",
        "ไทย",
    ),
    *(
        "🙂",
        "👩‍👧",
        "🏳️‍🌈",
        "\U0010ffff",
        "\u2581",
        "\u2581the",
        "Ġ",
        "Ċ",
        "<0x0A>",
        "<0xZZ>",
        "▁▁",
        "ﬁ",
        "Å",
        "각",
        "\ud7a3",
    ),
]


def hostile(n: int, seed: int = 0) -> Iterator[str]:
    """`n` random texts of parts that splitting, normalization and merging treat specially, and random characters."""
    generator = random.Random(seed)
    for _ in range(n):
        size = generator.choice((1, 2, 3, 5, 8, 20))
        text = "".join(
            generator.choice(PARTS) if generator.random() < 0.9 else chr(generator.randrange(0xD800))
            for _ in range(size)
        )
        yield text


any_text = st.one_of(
    st.text(max_size=60), st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=5)), max_size=12).map("".join)
)
text_with_names = st.lists(st.one_of(st.sampled_from([*NAMES, *PARTS]), st.text(max_size=5)), max_size=12).map("".join)

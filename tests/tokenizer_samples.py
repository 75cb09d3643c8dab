"""Small tokenizers of both kinds, made on the spot, and texts that are hard on tokenizers."""

import struct
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from mini_chat_gpt.tokenizer.chat_tokenizer import CONTROL_TOKENS, LLAMA2C_CONTROL, ChatTokenizer
from mini_chat_gpt.tokenizer.sentencepiece import SentencePieceBPE

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    'One day, Tim and his dog found a big ball.\n\n"Can we play with it?" Tim asked. "It\'s mine," said the dog.',
    "They didn't know what to do. So they shared the ball, and they played until 6 o'clock.\n",
    "naïve café, 12 345 things; 日本語のテキスト — «déjà vu» 🙂🙂",
]
HARD_TEXTS = [
    "",
    " ",
    "  two spaces  at   both ends  ",
    "\n",
    "tabs\tand\r\nline ends\n\n\n",
    "It's 12345 o'clock, ISN'T it? WE'LL see.",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈🇯🇵 1️⃣",
    "日本語のテキスト 中文文本 한국어 텍스트",
    "हिन्दी में लिखा हुआ, ไทย, العربية",
    "e\u0301 combining, \u00e9 composed, \ufeffBOM, \u00a0nbsp, \u2003em space, \u0000 NUL",
    "<|endoftext|><|user|>Hi<|assistant|><s></s><unk><0x0A>",
    "a" * 300,
    "ends in space\n\t ",
    "\ufffd broken",
]

NAMES = [*CONTROL_TOKENS, *LLAMA2C_CONTROL, "<0x0A>", " ", "\n"]
# Text of all kinds, with the names of control tokens mixed in. (Surrogates are not characters.)
any_text = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), max_size=8).map("".join),
)


@cache
def _trained_ranks() -> ChatTokenizer:
    return ChatTokenizer.train(CORPUS, 500)


def own_tokenizer() -> ChatTokenizer:
    """A fresh byte-level BPE of our own, with the control tokens."""
    trained = _trained_ranks()
    return ChatTokenizer(trained.encoder, trained.control)


def llama2c_pieces() -> list[tuple[bytes, float]]:
    """(piece, score) as in llama2.c's files: specials, bytes, joins from good to bad score, then single characters."""
    fixed = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    joins = [" t", "he", " a", " the", "er", "in", " p", "ll", "on", " pl", " play", "ay", "ed", " s", "is", "ou", "Li"]
    joins += ["ly", " Li", " Lily", "nd", " and", "th", "é"]
    characters = sorted(set("".join(CORPUS[:3])) | set("".join(joins)))
    texts = joins + [character for character in characters if character not in joins]
    return [(piece, 0.0) for piece in fixed] + [(text.encode(), -float(i)) for i, text in enumerate(texts)]


def llama2c_file(pieces: list[tuple[bytes, float]]) -> bytes:
    """llama2.c's layout, written down independently of the package."""
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    return struct.pack("<i", max(len(piece) for piece, _ in pieces)) + body


@cache
def _pieces() -> SentencePieceBPE:
    return SentencePieceBPE.from_bytes(llama2c_file(llama2c_pieces()), "sample")


def llama2c_tokenizer() -> ChatTokenizer:
    """A fresh llama2.c tokenizer without chat tokens."""
    return ChatTokenizer(_pieces(), LLAMA2C_CONTROL, bos_id=1)


def tokenizer_of(kind: str) -> ChatTokenizer:
    return own_tokenizer() if kind == "tiktoken" else llama2c_tokenizer()


def hugging_face(folder: Path) -> object:
    """transformers' tokenizer of a saved folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

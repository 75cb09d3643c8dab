"""The regular expressions by which tokenizers split text before merging, and llama.cpp's names for them.

Merges never cross the boundaries of a split. The patterns are facts about public tokenizers: the ids of a model depend on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The default of tokenizers that were trained with this package until November 2026. One or two digits (numbers should not use up
# a small vocabulary); \p{M} belongs to the letters, otherwise most Indian scripts are split inside words.
TWO_DIGITS_PATTERN = (
    r"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# tiktoken's public encodings.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CL100K_PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
O200K_PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

# Llama 3, Qwen 2, Qwen 3.5 (marks belong to the letters) and Mistral's Tekken, as in their tokenizer.json.
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEGIN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
LLAMA3_PATTERN = _BEGIN + r"\p{L}+|\p{N}{1,3}" + _END
QWEN2_PATTERN = _BEGIN + r"\p{L}+|\p{N}" + _END
QWEN35_PATTERN = _BEGIN + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION, _DIGIT, _DIGITS, _THREE_DIGITS = r"[\p{P}\$\+<=>\^~\|]+", r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]"


@dataclass(frozen=True)
class PreTokenizer:
    """What a name of llama.cpp (`tokenizer.ggml.pre`) stands for. Each pattern splits the parts that the one before it made."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a part that is a token is kept, whether merges make it or not
    add_bos: bool = False  # unless `tokenizer.ggml.add_bos_token` decides


_GROUPS = {
    "default": PreTokenizer((_PUNCTUATION, GPT2_PATTERN, _DIGITS, _THREE_DIGITS)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, _THREE_DIGITS)),
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling "
    "exaone4": PreTokenizer((GPT2_PATTERN,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": PreTokenizer((_DIGIT, GPT2_PATTERN)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (LLAMA3_PATTERN,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((LLAMA3_PATTERN,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer((QWEN2_PATTERN,)),
    "qwen35": PreTokenizer((QWEN35_PATTERN,)),
    "tekken": PreTokenizer((TEKKEN_PATTERN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((O200K_PATTERN,)),
}
PRE_TOKENIZERS = {name: rule for names, rule in _GROUPS.items() for name in names.split()}
"""By the name in `tokenizer.ggml.pre`, as in llama.cpp's src/llama-vocab.cpp. Where llama.cpp approximates the pattern of the model's
tokenizer.json (tekken, gpt-4o, and `(?i:…)` everywhere), this is the pattern of the tokenizer.json."""

KNOWN_SPLITS = frozenset(
    {TWO_DIGITS_PATTERN, CL100K_PATTERN, *(pattern for rule in PRE_TOKENIZERS.values() for pattern in rule.patterns)}
)

# Where a text can be cut so that its parts have the same ids, with any of KNOWN_SPLITS: before the space between two words of
# ASCII letters, and after a single newline. None of the patterns looks back, and none of their matches crosses these places.
LETTER_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\S\n)(?=[^\s/])")
# The same without the newline, for tokenizers that mark the beginning of a word by its space.
WORD_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")

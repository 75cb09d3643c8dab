"""The tokenizer in a GGUF's metadata, as a tokenizer.json: the vocabulary, and the split rules that llama.cpp has for its name.

The ids of a text are those of llama.cpp, with these exceptions: where llama.cpp approximates the split pattern of the model's own
tokenizer.json, the pattern itself is used (`split_patterns`), and no text becomes a control token. As in llama.cpp, text is not
normalized, although the tokenizer.json of Qwen asks for NFC.

Keys of the metadata, all beginning with `tokenizer.`: ggml.model ("gpt2" or "llama"), ggml.pre, ggml.tokens, ggml.token_type,
ggml.merges or ggml.scores, ggml.{bos,eos,eot,eom,unknown,padding}_token_id, ggml.add_bos_token, ggml.add_space_prefix, chat_template.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord, check_json, short
from mini_chat_gpt.tokenizer.bpe import MAX_IDS
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_export import splits
from mini_chat_gpt.tokenizer.hf_import import foreign_tokenizer
from mini_chat_gpt.tokenizer.hf_rules import SPACE
from mini_chat_gpt.tokenizer.split_patterns import PRE_TOKENIZERS, PreTokenizer

PREFIX = "tokenizer."
REMEDY = "get the file again"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Control tokens at which llama.cpp stops, whatever the metadata say, and which it takes for control tokens of any type.
ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>"),
        *("<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
    }
)


class _Ggml(JSONRecord):
    """The keys below `tokenizer.ggml.`."""

    model: str
    pre: str | None = None
    tokens: list[str]
    token_type: list[int] | None = None
    scores: list[float] | None = None
    merges: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    eom_token_id: int | None = None
    unknown_token_id: int | None = None
    padding_token_id: int | None = None
    add_bos_token: bool | None = None
    add_space_prefix: bool | None = None

    def token(self, token_id: int | None) -> str | None:
        """The token with an id, None for an id that does not exist, as in llama.cpp."""
        return self.tokens[token_id] if token_id is not None and 0 <= token_id < len(self.tokens) else None

    @property
    def types(self) -> Sequence[int]:
        return self.token_type or [NORMAL] * len(self.tokens)


def tokenizer_from_gguf(metadata: Mapping[str, Any], source: str = "The GGUF file") -> ChatTokenizer:
    """The tokenizer of a GGUF, from the keys and values of its header. Its chat template, if it has one, is `template`.

    Raises UserError, one sentence that mentions `source`, for a tokenizer that is missing, damaged or not supported.
    """
    values = {key.removeprefix(PREFIX + "ggml."): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if "model" not in values:
        raise UserError(f"{source} contains no tokenizer (tokenizer.ggml.model is missing); {REMEDY}.")
    ggml = check_json(values, _Ggml, f"{source}: tokenizer.ggml", REMEDY)
    try:
        _check_tokens(ggml)
        if ggml.model == "gpt2":
            rule = _pre_tokenizer(ggml.pre)
            parts, adds_bos = _byte_level(ggml, rule), rule.add_bos
        elif ggml.model == "llama":
            parts, adds_bos = _sentencepiece(ggml), True
        else:
            raise UserError(f"its type {short(ggml.model)} is not supported; only gpt2 and llama are")
    except UserError as error:
        raise UserError(f"{source}: the tokenizer can't be used: {error}.") from None
    if ggml.add_bos_token is not None:
        adds_bos = ggml.add_bos_token
    bos, eos = ggml.token(ggml.bos_token_id), ggml.token(ggml.eos_token_id)
    if adds_bos and bos is None:
        raise UserError(f"{source}: the tokenizer inserts BOS, but names none (tokenizer.ggml.bos_token_id); {REMEDY}.")
    if adds_bos:
        parts["post_processor"] = _bos_first(str(bos), ggml.bos_token_id)
    encoder = HuggingFaceBPE(json.dumps(parts, ensure_ascii=False, indent=2).encode(), f"{source}: the tokenizer")
    stops = [ggml.eos_token_id, ggml.eot_token_id, ggml.eom_token_id, *map(encoder.control.get, sorted(ENDS))]
    in_range = [token_id for token_id in stops if ggml.token(token_id) is not None and token_id is not None]
    tokenizer = foreign_tokenizer(encoder, bos, eos, in_range, source)
    named = {"bos": bos, "eos": eos, "unk": ggml.token(ggml.unknown_token_id), "pad": ggml.token(ggml.padding_token_id)}
    tokenizer.hf_config = {f"{key}_token": name for key, name in named.items() if name in encoder.control}
    tokenizer.hf_config["clean_up_tokenization_spaces"] = False
    template = metadata.get(f"{PREFIX}chat_template")
    tokenizer.template = template if isinstance(template, str) else None
    return tokenizer


def _check_tokens(ggml: _Ggml) -> None:
    """Raise UserError unless every token has a name of its own, a type and, for SentencePiece, a score."""
    n_tokens = len(ggml.tokens)
    if not 0 < n_tokens <= MAX_IDS:
        raise UserError(f"it has {n_tokens:,} tokens; 1 to {MAX_IDS:,} are possible")
    for name, values in (("token_type", ggml.token_type), ("scores", ggml.scores if ggml.model == "llama" else None)):
        if values is not None and len(values) != n_tokens:
            raise UserError(f"{name} has {len(values):,} values for {n_tokens:,} tokens")
    if ggml.scores is not None and not all(map(math.isfinite, ggml.scores)):
        raise UserError("one of its scores is not a finite number")
    if len(set(ggml.tokens)) < n_tokens:
        seen: set[str] = set()
        twice = next(token for token in ggml.tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise UserError(f"the token {short(twice)} occurs twice")


def _pre_tokenizer(name: str | None) -> PreTokenizer:
    """The split rules of llama.cpp for a name. A file without a name gets "default" with a warning, as in llama.cpp."""
    if name is None:
        warnings.warn(
            "the file does not say how its tokenizer splits text (tokenizer.ggml.pre); llama.cpp's default is used",
            stacklevel=3,
        )
    rule = PRE_TOKENIZERS.get(name or "default")
    if rule is None:
        near = difflib.get_close_matches(str(name), PRE_TOKENIZERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"its pre-tokenizer {short(name)} (tokenizer.ggml.pre) is not known{hint}")
    return rule


def _byte_level(ggml: _Ggml, rule: PreTokenizer) -> dict[str, Any]:
    """The tokenizer.json of byte-level BPE."""
    if ggml.merges is None:
        raise UserError("it has no merges (tokenizer.ggml.merges)")
    merges = [merge.split(" ", 1) for merge in ggml.merges]
    if bad := next((merge for merge in merges if len(merge) < 2), None):
        raise UserError(f"the merge {short(bad[0])} is not two parts with a space between them")
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in rule.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"ignore_merges": rule.ignore_merges, "byte_fallback": False, "unk_token": None, "fuse_unk": False}
    return _tokenizer_json(
        ggml,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        decoder=byte_level,
        model=model | {"merges": merges},
    )


def _sentencepiece(ggml: _Ggml) -> dict[str, Any]:
    """The tokenizer.json of SentencePiece's BPE: every pair of tokens that forms a token is a merge, best score first.

    llama.cpp inserts a space before each text between two control tokens, unless `add_space_prefix` is false.
    """
    if ggml.scores is None:
        raise UserError("it has no scores (tokenizer.ggml.scores)")
    types = ggml.types
    pieces = {token: token_id for token_id, token in enumerate(ggml.tokens) if _is_ordinary(token, types[token_id])}
    merges = list(_merges_by_score({t: i for t, i in pieces.items() if types[i] != BYTE}, ggml.scores))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = ggml.add_space_prefix is not False
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return _tokenizer_json(
        ggml,
        normalizer={"type": "Sequence", "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] * prefix), replace]},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        model={
            "ignore_merges": False,
            "byte_fallback": True,
            "unk_token": ggml.token(ggml.unknown_token_id),
            "fuse_unk": True,
            "merges": merges,
        },
    )


def _merges_by_score(pieces: Mapping[str, int], scores: Sequence[float]) -> Iterator[list[str]]:
    """Every pair of pieces that forms a piece, best score first.

    Raises UserError for two results with the same score: their order would depend on the place in the text, which a list of
    merges can't express. The same holds for a piece with a character that is not a piece.
    """
    lengths = {len(piece) for piece in pieces}
    results: list[tuple[float, int, list[list[str]]]] = []
    for piece, token_id in pieces.items():
        if len(piece) > 1 and (pairs := [[left, right] for left, right in splits(piece, pieces, lengths)]):
            pairs.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
            results.append((-scores[token_id], token_id, pairs))
        if any(letter not in pieces for letter in piece):
            raise UserError(f"the token {short(piece)} has a character that is not a token")
    results.sort(key=lambda result: result[:2])
    for (score, one, _), (next_score, other, _) in pairwise(results):
        if score == next_score:
            raise UserError(f"its tokens {one} and {other} have the same score, so their order is not defined")
    for _, _, pairs in results:
        yield from pairs


def _is_ordinary(token: str, token_type: int) -> bool:
    """Whether text can contain a token, as far as its type says."""
    return token_type in (NORMAL, BYTE) and token not in ENDS


def _tokenizer_json(ggml: _Ggml, *, model: dict[str, Any], **steps: Any) -> dict[str, Any]:
    """A tokenizer.json with the vocabulary. Tokens of the type UNUSED are left out: their ids stand for nothing."""
    used = [(token_id, token) for token_id, token in enumerate(ggml.tokens) if ggml.types[token_id] != UNUSED]
    added = [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": ggml.types[token_id] != USER_DEFINED,
        }
        for token_id, token in used
        if not _is_ordinary(token, ggml.types[token_id])
    ]
    common = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **steps,
        "post_processor": None,
        "model": {**common, **model, "vocab": {token: token_id for token_id, token in used}},
    }


def _bos_first(bos: str, bos_id: int | None) -> dict[str, Any]:
    """A post-processor that inserts BOS before a text."""
    special, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [special, text, special, {"Sequence": {"id": "B", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": pair,
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }

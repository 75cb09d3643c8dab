"""The parts of a tokenizer.json that decide how text is split and spelled: read them, or say in a sentence what isn't supported.

Understood are BPE models with these steps (others would give other ids, or could not be decoded byte by byte):

                   normalizer                     pre-tokenizer
    byte-level     NFC                            ByteLevel, and Split, Digits or Punctuation before or after it
    SentencePiece  Prepend, Replace ' ' by '▁'    Metaspace, Split

The post-processor only tells which token begins a sequence: the chat format inserts BOS and the other control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import JSONRecord, parse_json, short
from mini_chat_gpt.tokenizer.bpe import GPT2_PATTERN, byte_letters

SPACE = "\u2581"
LeadingSpace = Literal["never", "first", "always"]


class AddedToken(JSONRecord):
    """An entry of `added_tokens`, with the fields of the library."""

    id: int
    content: str
    single_word: bool = False  # matches between word boundaries only
    lstrip: bool = False  # takes the white space before it
    rstrip: bool = False  # takes the white space after it
    normalized: bool = False  # is searched for in the normalized text
    special: bool = False

    @property
    def is_white_space(self) -> bool:
        """Whether it is ordinary text: a run of blanks or line breaks that is not special."""
        return not self.special and not self.content.replace(SPACE, " ").strip()


class Model(JSONRecord):
    """The BPE. A key that is not declared could change ids, so it is refused."""

    model_config = ConfigDict(extra="forbid")

    type: str | None = None
    vocab: dict[str, int]
    merges: list[str] | list[tuple[str, str]]
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class TokenizerFile(JSONRecord):
    """tokenizer.json. `truncation`, `padding` and `decoder` are not needed."""

    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: Any = None
    model: Model


class _ModelType(JSONRecord):
    type: str | None = None


class _TypeOnly(JSONRecord):
    model: _ModelType


@dataclass(frozen=True)
class Rules:
    """How a text becomes the letters of the vocabulary.

    byte_level      the vocabulary is written in GPT-2's letters for bytes; otherwise in text with U+2581 for spaces
    leading_space   where a space is inserted: never, before the first text of a sequence, before every text between two
                    control tokens
    keeps_own_space a text that begins with a space has none inserted, so that the two can't be distinguished
    splits          the regular expressions that split text
    """

    byte_level: bool
    nfc: bool = False
    leading_space: LeadingSpace = "never"
    keeps_own_space: bool = False
    splits: tuple[str, ...] = ()
    pre_tokenizer_without_space: Mapping[str, Any] | None = None
    """The pre-tokenizer for text within a sequence, if `leading_space` is "first"."""

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for."""
        if not self.byte_level:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                try:
                    return bytes([int(token[3:5], 16)])
                except ValueError:
                    pass
            return token.replace(SPACE, " ").encode("utf-8", "surrogatepass")
        try:
            return bytes(map(_byte_of_letter().__getitem__, token))
        except KeyError:  # not written in GPT-2's letters, so no text contains it
            return token.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


def check_type(data: bytes, name: str, remedy: str) -> None:
    """Raise UserError if a tokenizer.json has a model other than BPE, whose structure would be another one."""
    kind = parse_json(data, _TypeOnly, name, remedy).model.type
    if kind not in (None, "BPE"):
        raise UserError(f"{name} has a tokenizer of the type {short(kind)}; only BPE is supported.")


def read_rules(file: TokenizerFile) -> Rules:
    """The rules of a tokenizer.json. Raises UserError, naming the part, for one that is not understood exactly."""
    model = file.model
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise UserError(
            "its BPE has dropout, a continuing_subword_prefix or an end_of_word_suffix, which are not supported"
        )
    normalizers = _flatten(file.normalizer, "normalizers")
    pre_tokenizers = _flatten(file.pre_tokenizer, "pretokenizers")
    splits = tuple(pattern for part in pre_tokenizers for pattern in _regex_of(part))
    n_byte_level = sum(part["type"] == "ByteLevel" for part in pre_tokenizers)
    if n_byte_level == 1 and not model.byte_fallback:
        return _byte_level_rules(normalizers, pre_tokenizers, splits)
    if n_byte_level == 0 and model.byte_fallback:
        return _sentencepiece_rules(file, normalizers, pre_tokenizers, splits)
    raise UserError("it is neither byte-level BPE nor BPE with byte_fallback; only these can spell every text")


def _byte_level_rules(
    normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]], splits: tuple[str, ...]
) -> Rules:
    for part in normalizers:
        if part["type"] != "NFC":
            raise UserError(f"its normalizer {short(part['type'])} is not supported; byte-level BPE can have NFC")
    for part in pre_tokenizers:
        if part["type"] not in ("ByteLevel", "Digits", "Split", "Punctuation"):
            raise UserError(f"its pre-tokenizer {short(part['type'])} is not supported with byte-level BPE")
        if part["type"] == "ByteLevel" and part.get("add_prefix_space", True):
            raise UserError("it inserts a space before every text (add_prefix_space), which is not supported")
        if part["type"] == "ByteLevel" and part.get("use_regex", True):
            splits = (*splits, GPT2_PATTERN)
    return Rules(byte_level=True, nfc=bool(normalizers), splits=splits)


def _sentencepiece_rules(
    file: TokenizerFile,
    normalizers: list[dict[str, Any]],
    pre_tokenizers: list[dict[str, Any]],
    splits: tuple[str, ...],
) -> Rules:
    known = ({"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    for part in normalizers:
        if part not in known:
            raise UserError(f"its normalizer {short(part)} is not supported with byte_fallback")
    metaspaces = [part for part in pre_tokenizers if part["type"] == "Metaspace"]
    for part in pre_tokenizers:
        if part["type"] not in ("Metaspace", "Split") or part.get("replacement", SPACE) != SPACE:
            raise UserError(f"its pre-tokenizer {short(part)} is not supported with byte_fallback")
    if (known[1] not in normalizers and not metaspaces) or len(metaspaces) > 1:
        raise UserError("it does not replace each space by U+2581 exactly once, which its vocabulary needs")
    if known[0] in normalizers:
        if normalizers.count(known[0]) > 1 or metaspaces:
            raise UserError("it inserts more than one space before a text, which is not supported")
        return Rules(byte_level=False, leading_space="always", splits=splits)
    if not metaspaces:
        return Rules(byte_level=False, splits=splits)
    # Files of old versions of the library have add_prefix_space instead.
    old_scheme: LeadingSpace = "always" if metaspaces[0].get("add_prefix_space", True) else "never"
    schemes: dict[Any, LeadingSpace] = {None: old_scheme, "never": "never", "first": "first", "always": "always"}
    scheme = schemes.get(name) if isinstance(name := metaspaces[0].get("prepend_scheme"), str | None) else None
    if scheme is None:
        raise UserError(f"its pre-tokenizer {short(metaspaces[0])} is not supported with byte_fallback")
    without = _with_scheme(file.pre_tokenizer or {}, "never")
    return Rules(
        byte_level=False,
        leading_space=scheme,
        keeps_own_space=scheme != "never",
        splits=splits,
        pre_tokenizer_without_space=without,
    )


def first_token(post_processor: Any) -> str | None:
    """Name of the control token that the post-processor inserts before a text, None if it inserts none."""
    for part in _flatten(post_processor, "processors"):
        single = part.get("single")
        if part["type"] == "TemplateProcessing" and isinstance(single, list) and single and isinstance(single[0], dict):
            token = single[0].get("SpecialToken")
            return token["id"] if isinstance(token, dict) and isinstance(token.get("id"), str) else None
    return None


def _with_scheme(part: Mapping[str, Any], scheme: str) -> dict[str, Any]:
    """A pre-tokenizer with another `prepend_scheme` of its Metaspace."""
    if part["type"] == "Sequence":
        return {**part, "pretokenizers": [_with_scheme(child, scheme) for child in part["pretokenizers"]]}
    return {**part, "prepend_scheme": scheme} if part["type"] == "Metaspace" else dict(part)


def _flatten(part: Any, children: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in order. `children` is the key of a sequence's parts."""
    if part is None:
        return []
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise UserError(f"one of its {children} is {short(part)}, which has no type")
    if part["type"] != "Sequence":
        return [part]
    steps = part.get(children)
    if not isinstance(steps, list):
        raise UserError(f"its sequence of {children} is not a list")
    return [step for child in steps for step in _flatten(child, children)]


def _regex_of(part: Mapping[str, Any]) -> list[str]:
    """The regular expression of a Split. Raises UserError for one that would remove text."""
    if part["type"] != "Split":
        return []
    if part.get("behavior") == "Removed" and not part.get("invert"):
        raise UserError("its Split removes text, which is not supported")
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return [regex] if isinstance(regex, str) else []

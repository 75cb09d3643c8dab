"""A model's own `tokenizer.json`, as the `tokenizers` library runs it, with control tokens taken out of the reach of text.

`encode` returns the ids that the library gives for a text that spells none of the added tokens; a text that spells one is
encoded as ordinary characters. `pieces[id]` is the bytes that an id stands for, or None. `to_bytes()` is the tokenizer.json byte
for byte. Two kinds of BPE can be read, and everything else raises a UserError (`hf_rules`):

    byte-level     GPT-2's letters for bytes (GPT-2, SmolLM2, Llama 3, Qwen)
    SentencePiece  U+2581 for a space, `<0xNN>` for the bytes of unknown characters (Llama 2, TinyLlama, Mistral)
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import parse_json, short
from mini_chat_gpt.tokenizer.bpe import MAX_IDS, MAX_UNUSED, readable_regex_limit, silent_stderr
from mini_chat_gpt.tokenizer.hf_rules import AddedToken, Rules, TokenizerFile, check_type, first_token, read_rules
from mini_chat_gpt.tokenizer.split_patterns import KNOWN_SPLITS, LETTER_CUT, WORD_CUT

if TYPE_CHECKING:
    import tokenizers

REMEDY = "get the model's files again"
_LONG = 1 << 22
_SLOW_SECONDS = 0.25  # 4,096 characters take a few milliseconds


@dataclass(eq=False)
class HuggingFaceBPE:
    """A tokenizer.json. `source` is its content; errors mention `name`.

    added     the added tokens by name. `control` are those that encode() never returns: all but those that are white space
              and not special, such as the runs of blanks of GPT-NeoX and Gemma, which are ordinary text
    bos_token name of the token that its post-processor inserts before a text, None if it inserts none
    losses    what decode(encode(text)) does not preserve, a sentence each
    """

    kind: ClassVar[str] = "huggingface"

    source: bytes
    name: str = "tokenizer.json"
    added: dict[str, AddedToken] = field(init=False, repr=False)
    bos_token: str | None = field(init=False, repr=False)
    rules: Rules = field(init=False, repr=False)
    pieces: list[bytes | None] = field(init=False, repr=False)
    _content: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_type(self.source, self.name, REMEDY)
        file = parse_json(self.source, TokenizerFile, self.name, REMEDY)
        try:
            self.rules = read_rules(file)
            self.added = _added_by_name(file)
            self.bos_token = first_token(file.post_processor)
            self._content = _content_of(file, self.added, set(self.control))
            self.pieces = _pieces_of(self.vocab, self.rules)
            self._check_patterns()
        except UserError as error:
            raise UserError(f"{self.name} can't be used: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return HuggingFaceBPE, (self.source, self.name)

    @property
    def control(self) -> dict[str, int]:
        """Name -> id of the added tokens that text can't produce."""
        return {name: token.id for name, token in self.added.items() if not token.is_white_space}

    @property
    def vocab(self) -> dict[str, int]:
        """Ordinary entry, as it is written in the file -> id."""
        vocab: dict[str, int] = self._content["model"]["vocab"]
        return vocab

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges of ordinary text, in the order in which they are tried."""
        merges: list[tuple[str, str]] = self._content["model"]["merges"]
        return merges

    @property
    def adds_leading_space(self) -> bool:
        """Whether a space is inserted before a text, and removed from it when it is decoded."""
        return self.rules.leading_space != "never"

    @property
    def space_after_control(self) -> bool:
        """Whether that also happens to text that follows a control token."""
        return self.rules.leading_space == "always"

    @cached_property
    def safe_cut(self) -> re.Pattern[str] | None:
        """Matches where a text can be cut without changing its ids; None if that is not known."""
        if self.rules.byte_level:
            return LETTER_CUT if set(self.rules.splits) <= KNOWN_SPLITS else None
        inner_space = any(re.search("[^\u2581]\u2581", piece) for piece in self.vocab)
        return None if inner_space or self.rules.splits or not self.space_after_control else WORD_CUT

    @property
    def missing_bytes(self) -> list[int]:
        """The bytes that have no token. Characters that contain one are dropped, as the library does."""
        single = {piece for piece in self.pieces if piece is not None and len(piece) == 1}
        return [byte for byte in range(256) if bytes([byte]) not in single]

    @property
    def losses(self) -> list[str]:
        """What `decode(encode(text)) == text` does not hold for; empty if it holds for every text."""
        found = []
        if self.rules.nfc:
            found.append("text is normalized to NFC, so that a letter with a combining mark may become one character")
        # 0xC0, 0xC1 and 0xF5 to 0xFF occur in no UTF-8 text.
        if missing := [byte for byte in self.missing_bytes if byte not in (0xC0, 0xC1) and byte < 0xF5]:
            found.append(
                f"{len(missing)} of the bytes of UTF-8 have no token, so characters that need them are dropped"
            )
        if not self.rules.byte_level:
            found.append("the character U+2581 becomes a space")
        if self.rules.keeps_own_space:
            found.append("no space is inserted before a text that begins with one, so that space is lost")
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of the text as the beginning of a sequence. Names of control tokens in it are encoded as ordinary characters."""
        return self._encode(self._tokenizer, text)

    def encode_after_control(self, text: str) -> list[int]:
        """Ids of the text after a control token, where some tokenizers insert no space."""
        return self._encode(self._inner_tokenizer if self.rules.leading_space == "first" else self._tokenizer, text)

    @staticmethod
    def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        # Only very long runs exceed the engine's limit, and then it prints a report.
        with readable_regex_limit(), silent_stderr() if len(text) > _LONG else nullcontext():
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return _load(self._content)

    @cached_property
    def _inner_tokenizer(self) -> tokenizers.Tokenizer:
        """For text within a sequence, if the first text has a space inserted and others do not."""
        return _load(self._content | {"pre_tokenizer": self.rules.pre_tokenizer_without_space})

    def to_bytes(self) -> bytes:
        """The content of tokenizer.json."""
        return self.source

    def with_control(self, new: Mapping[str, int]) -> HuggingFaceBPE:
        """The same tokenizer with further special tokens: name -> id. The file is written again for that.

        They are added to the vocabulary too, because the library numbers the other added tokens by itself.
        """
        parts = json.loads(self.source)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        parts["added_tokens"] = [
            *(token for token in parts.get("added_tokens") or [] if token["content"] not in new),
            *({"id": token_id, "content": name, **flags} for name, token_id in new.items()),
        ]
        # All of them, because the vocabulary's size is the library's first number.
        parts["model"]["vocab"] |= {token["content"]: token["id"] for token in parts["added_tokens"]}
        return HuggingFaceBPE(json.dumps(parts, ensure_ascii=False, indent=2).encode(), self.name)

    def _check_patterns(self) -> None:
        """Raise UserError if a split pattern of the file is invalid or takes too long for runs of its own characters."""
        unknown = [pattern for pattern in self.rules.splits if pattern not in KNOWN_SPLITS]
        if not unknown:
            return
        if max(map(len, unknown)) > 10_000:
            raise UserError(f"its split pattern has {max(map(len, unknown)):,} characters")
        letters = dict.fromkeys("a 1.\n" + "".join(unknown))
        tokenizer = self._tokenizer
        with silent_stderr():
            # From short to long, because the engine can't be interrupted: its time may grow with a power of the length.
            for size in (32, 64, 128, 256, 512, 1024, 2048, 4096):
                for letter in letters:
                    start = time.thread_time()
                    self._encode(tokenizer, letter * size + "\0")
                    if time.thread_time() - start > _SLOW_SECONDS:
                        raise UserError(f"its split pattern {short(max(unknown, key=len))} takes too long")


def _load(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer. Raises UserError with the library's reason if it refuses the content."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(content))
    except BaseException as error:  # a Rust panic is not an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizers library can't read it ({short(str(error), 200)[1:-1]})") from None


def _added_by_name(file: TokenizerFile) -> dict[str, AddedToken]:
    """The added tokens by name. Raises UserError unless each has the id that the library gives to it."""
    vocab = file.model.vocab
    used = {token_id: name for name, token_id in vocab.items()}
    added: dict[str, AddedToken] = {}
    n_new = 0
    for token in file.added_tokens:
        if not token.content or token.content in added:
            raise UserError(f"the added token {short(token.content)} is empty or occurs twice")
        if token.single_word:
            raise UserError(f"the added token {short(token.content)} has single_word, which is not supported")
        # The library ignores the id in the file: a token that is not in the vocabulary gets the next number after it.
        expected = vocab.get(token.content, len(vocab) + n_new)
        n_new += token.content not in vocab
        if token.id != expected or used.setdefault(token.id, token.content) != token.content:
            raise UserError(f"the added token {short(token.content)} has the id {short(token.id)}, not {expected}")
        added[token.content] = token
    return added


def _content_of(file: TokenizerFile, added: Mapping[str, AddedToken], control: set[str]) -> dict[str, Any]:
    """The tokenizer.json of ordinary text: without control tokens, and without the merges that would make or use them."""
    model = file.model
    ordinary = [token for name, token in added.items() if name not in control]
    vocab = {name: token_id for name, token_id in model.vocab.items() if name not in control}
    vocab |= {token.content: token.id for token in ordinary}
    merges = []
    for left, right in map(_pair, model.merges):
        if left in vocab and right in vocab and left + right in vocab:
            merges.append((left, right))
        elif not control.intersection((left, right, left + right)):
            part = next(part for part in (left, right, left + right) if part not in vocab)
            raise UserError(f"the merge of {short(left)} and {short(right)} needs {short(part)}, which is not a token")
    return {
        "version": "1.0",
        "truncation": None,  # a limit in the file would cut texts
        "padding": None,
        "added_tokens": [token.model_dump() for token in ordinary],
        "normalizer": file.normalizer,
        "pre_tokenizer": file.pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        # Without an unknown token, unknown bytes are dropped; its id in a text would be that of a control token.
        "model": model.model_dump(exclude={"vocab", "merges"})
        | {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": merges},
    }


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    if isinstance(merge, tuple):
        return merge
    left, separator, right = merge.partition(" ")
    if not separator or " " in right:
        raise UserError(f"the merge {short(merge)} is not two parts with a space between them")
    return left, right


def _pieces_of(vocab: Mapping[str, int], rules: Rules) -> list[bytes | None]:
    """The bytes of each id. Raises UserError for ids that can't be those of one token each."""
    last = max(vocab.values(), default=0)
    if last >= min(MAX_IDS, 2 * len(vocab) + MAX_UNUSED) or min(vocab.values(), default=0) < 0:
        raise UserError(
            f"the ids of its {len(vocab):,} tokens go up to {short(last)}; an id is nearly the token's number"
        )
    pieces: list[bytes | None] = [None] * (last + 1)
    for name, token_id in vocab.items():
        if pieces[token_id] is not None:
            raise UserError(f"two tokens have the id {token_id}, {short(name)} is one of them")
        pieces[token_id] = rules.bytes_of(name)
    if not rules.byte_level and (missing := sum(f"<0x{byte:02X}>" not in vocab for byte in range(256))):
        raise UserError(f"it lacks {missing} of the tokens <0x00> to <0xFF>, so it can't spell every text")
    return pieces

"""Text to ids and back: one `ChatTokenizer` for all encoders.

- `encode` never returns the id of a control token, whatever the text spells. Control tokens are inserted as ids.
- `decode(encode(text)) == text` for every text that UTF-8 can represent, with tokenizers of our own, of tiktoken and of
  llama2.c. What the tokenizer of another model does not preserve is in `losses`. Lone surrogates, which Python strings can
  contain after broken input, are encoded as U+FFFD, the replacement character.
- An id that does not exist (a padding row of the model's table, an id of another tokenizer) raises an error.
- `save` writes everything that `load` needs, so loading needs no network. The same tokenizer gives the same bytes. `save` also
  writes the files for `transformers.AutoTokenizer.from_pretrained(folder)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from mini_chat_gpt.chat_format import ChatFormat, Format
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file, readable_disk_errors, write_json
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.tokenizer import tiktoken_files
from mini_chat_gpt.tokenizer.bpe import (
    DEFAULT_PATTERN,
    MAX_FILE,
    MAX_IDS,
    TiktokenBPE,
    check_blanks,
    readable_regex_limit,
)
from mini_chat_gpt.tokenizer.chat_templates import format_from_entry
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_export import write_hugging_face
from mini_chat_gpt.tokenizer.meta_file import (
    ENCODER_FILE,
    DeclaredIds,
    Encoder,
    read_encoder,
    read_hf_config,
    read_meta,
)
from mini_chat_gpt.tokenizer.meta_file import META_FILE as META_FILE
from mini_chat_gpt.tokenizer.sentencepiece import SentencePieceBPE
from mini_chat_gpt.tokenizer.stream_decoder import StreamDecoder

END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>")
# llama2.c's own; the names are those of Llama's tokenizers.
LLAMA2C_CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}


class ChatTokenizer:
    """An encoder for ordinary text, and control tokens with their own ids.

    kind           "tiktoken" (ranks: GPT-2's, our own), "llama2c" (llama2.c's SentencePiece BPE) or "huggingface" (a model's
                   own tokenizer.json)
    control        name -> id of all control tokens, which stand for no text. Unused ids are named "<|reserved_N|>", so that
                   every id below `vocab_size` has a meaning
    bos_id         id at the beginning of every sequence (llama2.c: 1), None if the tokenizer inserts none (tiktoken kinds)
    chat_format    the chat format that the model was fine-tuned to; None for a base model, which is prompted with plain text
    declared       ids of a model from elsewhere: its BOS, EOS and stop ids; None for other kinds
    hf_config      its tokenizer_config.json, which `save` writes again; {} for other kinds
    template       the Jinja chat template that it came with, if any

    Use `load`, `train`, `from_llama2c`, `hf_import.tokenizer_from_folder` or `gguf_import.tokenizer_from_gguf` to make one.
    """

    def __init__(
        self,
        encoder: Encoder,
        control: dict[str, int] | None = None,
        bos_id: int | None = None,
        chat_format: Format | None = None,
        declared: DeclaredIds | None = None,
    ) -> None:
        self.encoder = encoder
        self.kind: str = encoder.kind
        self.bos_id = bos_id
        self.chat_format = chat_format
        self.declared = declared
        self.hf_config: dict[str, Any] = {}
        self.template: str | None = None
        own = encoder.control if isinstance(encoder, HuggingFaceBPE) else {}
        self.control = {**own, **(control or {})}
        self._names = {token_id: name for name, token_id in self.control.items()}
        pieces = encoder.pieces
        self._check_control(pieces)
        for token_id in range(self.vocab_size):
            if token_id not in self._names and (token_id >= len(pieces) or pieces[token_id] is None):
                self._name(f"<|reserved_{token_id}|>", token_id)

    def _check_control(self, pieces: list[bytes | None]) -> None:
        """Raise UserError unless every control token has a name and an id of its own."""
        for name, token_id in self.control.items():
            if not 0 <= token_id < MAX_IDS:
                raise UserError(
                    f"The control token {short(name)} has the id {short(token_id)}; ids are 0 to {MAX_IDS - 1:,}."
                )
            if not name or self._names[token_id] != name or (token_id < len(pieces) and pieces[token_id] is not None):
                raise UserError(f"The control token {short(name)} needs a name and an id of its own, not {token_id}.")
        if self.bos_id is not None and self.bos_id not in self._names:
            raise UserError(f"The id {self.bos_id} of BOS is not that of a control token.")
        declared = self.declared or DeclaredIds()
        for role, special_id in (("BOS", declared.bos_id), ("EOS", declared.eos_id)):
            if special_id is not None and special_id not in self._names:
                raise UserError(f"The id {short(special_id)} of {role} is not that of a control token.")

    def _name(self, name: str, token_id: int) -> None:
        self.control[name] = token_id
        self._names[token_id] = name

    # Properties

    @property
    def vocab_size(self) -> int:
        """Number of ids, ordinary and control. A model's embedding table may be larger; the rest is padding."""
        return max([len(self.encoder.pieces) - 1, *self.control.values()]) + 1

    @property
    def end_id(self) -> int:
        """Id that ends an assistant's reply: `<|endoftext|>`, or the EOS of a model from elsewhere that keeps its own format."""
        own_format = self.chat_format is None or isinstance(self.chat_format, ChatFormat)
        own_end, eos = self.control.get(END_OF_TEXT), None if self.declared is None else self.declared.eos_id
        found = own_end if eos is None or (own_format and own_end is not None) else eos
        if found is None:
            raise UserError(f"The tokenizer has no {END_OF_TEXT} token; call add_control_tokens() first.")
        return found

    @property
    def document_id(self) -> int:
        """Id that begins and ends each pretraining document: BOS if the tokenizer inserts one, else `<|endoftext|>`, else EOS."""
        return self.control.get(END_OF_TEXT, self.end_id) if self.bos_id is None else self.bos_id

    @property
    def bos_token(self) -> str | None:
        """Name of the token with `bos_id`."""
        return None if self.bos_id is None else self._names.get(self.bos_id)

    @property
    def template_tokens(self) -> tuple[str | None, str | None]:
        """Names of BOS and EOS that a chat template can use: those that a model from elsewhere declares, or our own."""
        if self.declared is not None:
            ids = self.declared.bos_id, self.declared.eos_id
            bos, eos = (None if token_id is None else self._names[token_id] for token_id in ids)
            return bos, eos
        return self.bos_token, next((name for name in (END_OF_TEXT, "</s>") if name in self.control), None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which generation stops: the end of a text or reply, in chats also the start of another turn.

        For a model from elsewhere, its EOS and the stop ids of its files and of its chat format as well.
        """
        names = {END_OF_TEXT, "<s>", "</s>"}
        if self.chat_format is not None:
            names.update(CONTROL_TOKENS)
        ids = {self.control[name] for name in names & self.control.keys()}
        if self.declared is not None:
            ids.update(self.declared.stop_ids)
            ids.update([] if self.declared.eos_id is None else [self.declared.eos_id])
        return frozenset(ids | (frozenset() if self.chat_format is None else self.chat_format.stop_ids))

    @property
    def stripping(self) -> dict[int, tuple[bool, bool]]:
        """Control tokens that take the white space next to them: id -> (before it, after it)."""
        added = self.encoder.added if isinstance(self.encoder, HuggingFaceBPE) else {}
        return {token.id: (token.lstrip, token.rstrip) for token in added.values() if token.lstrip or token.rstrip}

    @property
    def losses(self) -> list[str]:
        """What `decode(encode(text)) == text` does not hold for, a sentence each; [] if it holds for every text."""
        return self.encoder.losses if isinstance(self.encoder, HuggingFaceBPE) else []

    def add_control_tokens(self, names: Iterable[str] = CONTROL_TOKENS) -> list[int]:
        """Append the missing ones of `names` after the last id and return the new ids, [] if none is missing.

        `Format.required_tokens` are those that a chat format needs.
        A model needs embedding rows for new ids (`sft_train.add_chat_tokens`).
        """
        missing = [name for name in dict.fromkeys(names) if name not in self.control]
        new = {name: token_id for token_id, name in enumerate(missing, start=self.vocab_size)}
        if isinstance(self.encoder, HuggingFaceBPE) and new:
            self.encoder = self.encoder.with_control(new)
        for name, token_id in new.items():
            self._name(name, token_id)
        return list(new.values())

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that defines the ids. Tokenizers with the same fingerprint are interchangeable."""
        meta = self._meta()
        del meta["chat_format"]
        digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        digest.update(self.encoder.to_bytes())
        return digest.hexdigest()

    # Text to ids and back

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: no BOS, and never a control token, even if the text spells one.

        llama2.c inserts a space before every text; `decode` removes it.
        """
        return self.encoder.encode(well_formed(text))

    def encode_after_control(self, text: str) -> list[int]:
        """Like `encode`, for text that follows a control token. Only matters for tokenizers with Metaspace's scheme "first"."""
        text = well_formed(text)
        if isinstance(self.encoder, HuggingFaceBPE):
            return self.encoder.encode_after_control(text)
        return self.encoder.encode(text)

    def encode_in_parts(self, text: str, size: int = 1 << 20) -> Iterator[list[int]]:
        """The ids of `encode(text)` in parts of about `size` characters, so that a long text needs little more memory than itself.

        The text is only cut where the result is exactly the same. If it has no such places, a part can be longer.
        """
        text = well_formed(text)
        start, cut = 0, self.encoder.safe_cut
        while cut is not None and (match := cut.search(text, start + size)):
            yield self.encoder.encode(text[start : match.start()])
            # The encoder inserts the leading space again.
            start = match.start() + self.encoder.adds_leading_space
        yield self.encoder.encode(text[start:])

    def decode(self, ids: Iterable[int], *, control: bool = False, start: bool = True) -> str:
        """The text of `ids`. Invalid UTF-8 becomes U+FFFD. Equals `decode_bytes(...)` decoded.

        control    show control tokens by their names instead of omitting them
        start      the ids begin a text (or a reply). Only matters for tokenizers that insert a leading space (llama2.c), which
                   is then removed, as it is after every control token. Pass False for ids that continue others.

        Raises UserError for an id that does not exist.
        """
        return self.decode_bytes(ids, control=control, start=start).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, control: bool = False, start: bool = True) -> bytes:
        """The bytes of `ids`, which may end inside a character. Arguments and errors as in `decode`."""
        parts = []
        for token_id in ids:
            part, start = self._bytes_of(token_id, control, start)
            parts.append(part)
        return b"".join(parts)

    def stream_decoder(self, *, control: bool = False, start: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one by one. Arguments as in `decode`."""
        return StreamDecoder(lambda token_id, start: self._bytes_of(token_id, control, start), start)

    def _bytes_of(self, token_id: int, control: bool, start: bool) -> tuple[bytes, bool]:
        """The bytes of one id, and whether the next one begins a text."""
        token_id = index(token_id)  # accepts integers of numpy and torch, but no floats
        name = self._names.get(token_id)
        if name is not None:
            return (name.encode() if control else b""), self.space_after(token_id)
        piece = self.encoder.pieces[token_id] if 0 <= token_id < len(self.encoder.pieces) else None
        if piece is None:
            raise UserError(
                f"Id {token_id} does not exist in this tokenizer, whose ids are 0 to {self.vocab_size - 1}; it is a "
                "padding row of the model, or an id of another tokenizer."
            )
        if start and self.encoder.adds_leading_space:
            piece = piece.removeprefix(b" ")
        return piece, False

    def space_after(self, token_id: int) -> bool:
        """Whether a leading space is inserted before text that follows this control token."""
        return self.encoder.space_after_control or token_id == self.bos_id

    def byte_lengths(self, ids: np.ndarray, start: bool = True) -> np.ndarray:
        """(n,) int64: the number of bytes that each of the ids (n,) adds to `decode_bytes`. For ids of ordinary text."""
        lengths = self._piece_lengths[ids]
        if start and self.encoder.adds_leading_space and len(ids):
            lengths[0] = len(self.decode_bytes(ids[:1]))
        return lengths

    @cached_property
    def _piece_lengths(self) -> np.ndarray:
        return np.array([0 if piece is None else len(piece) for piece in self.encoder.pieces])

    # Train, load, save

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
        """Train a byte-level BPE on texts (one document each). The four control tokens are its last entries.

        `vocab_size` includes them. The vocabulary is smaller if the texts have too few different pairs. The result depends on
        the texts and the size only.
        """
        import rustbpe

        if isinstance(texts, str):
            raise UserError("ChatTokenizer.train takes a list of texts, such as [text], but got a string.")
        smallest = 256 + len(CONTROL_TOKENS)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size is {vocab_size}; it must be at least {smallest}: 256 bytes and the control tokens."
            )
        if vocab_size > MAX_IDS:
            raise UserError(f"vocab_size is {vocab_size:,}; it can be at most {MAX_IDS:,}.")
        trainer = rustbpe.Tokenizer()
        with readable_regex_limit():
            trainer.train_from_iterator(
                (check_blanks(well_formed(text)) for text in texts),
                vocab_size - len(CONTROL_TOKENS),
                pattern=DEFAULT_PATTERN,
            )
        ranks = {bytes(piece): rank for piece, rank in trainer.get_mergeable_ranks()}
        tokenizer = ChatTokenizer(TiktokenBPE(ranks, DEFAULT_PATTERN))
        tokenizer.add_control_tokens()
        return tokenizer

    @staticmethod
    def from_llama2c(path: Path | str) -> ChatTokenizer:
        """Read llama2.c's `tok*.bin`. It has BOS and EOS, but no chat tokens until `add_control_tokens`."""
        encoder = SentencePieceBPE.from_bytes(read_file(Path(path), MAX_FILE), str(path))
        return ChatTokenizer(encoder, LLAMA2C_CONTROL, bos_id=LLAMA2C_CONTROL["<s>"])

    @staticmethod
    def load(folder_or_name: Path | str) -> ChatTokenizer:
        """Load a tokenizer from

        - a folder that `save` wrote (such as a checkpoint),
        - a `.tiktoken` file of ranks (see `tiktoken_files.from_file` for its split pattern),
        - llama2.c's `tok*.bin`,
        - the name of a tiktoken encoding, such as "gpt2". tiktoken downloads its ranks unless they are cached.
        """
        path = Path(folder_or_name)
        if path.is_dir():
            return _load_folder(path)
        if path.suffix == ".tiktoken":
            # A saved folder also has what the ranks lack: the pattern and the control tokens.
            if path.name == ENCODER_FILE["tiktoken"] and (path.parent / META_FILE).is_file():
                return _load_folder(path.parent)
            return ChatTokenizer(*tiktoken_files.from_file(path))
        if path.suffix == ".bin":
            return ChatTokenizer.from_llama2c(path)
        if path.exists():
            raise UserError(
                f"{path} is not a tokenizer; give a saved folder, a .tiktoken file, or llama2.c's tok*.bin."
            )
        return ChatTokenizer(*tiktoken_files.from_name(str(folder_or_name)))

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer into a folder, for `load` and for `transformers.AutoTokenizer`."""
        folder = Path(folder)
        with readable_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ENCODER_FILE[self.kind]).write_bytes(self.encoder.to_bytes())
        template = None if self.chat_format is None else self.chat_format.jinja_template(self.bos_token)
        write_hugging_face(folder, self.encoder, self.control, self.bos_token, template, self.hf_config)
        # Written last: a folder without this file is unfinished.
        write_json(folder / META_FILE, {**self._meta(), "fingerprint": self.fingerprint()})

    def _meta(self) -> dict[str, Any]:
        declared = {} if self.declared is None else {"declared": self.declared.model_dump()}
        return {
            "version": 1,
            "kind": self.kind,
            "pattern": self.encoder.pattern if isinstance(self.encoder, TiktokenBPE) else None,
            "bos_id": self.bos_id,
            "control": dict(sorted(self.control.items(), key=lambda item: item[1])),
            "chat_format": None if self.chat_format is None else self.chat_format.entry(),
            **declared,
        }


def _load_folder(folder: Path) -> ChatTokenizer:
    meta = read_meta(folder)
    try:
        tokenizer = ChatTokenizer(read_encoder(folder, meta), meta.control, meta.bos_id, None, meta.declared)
        tokenizer.chat_format = format_from_entry(meta.chat_format, tokenizer.control)
        if meta.kind == HuggingFaceBPE.kind:
            tokenizer.hf_config = read_hf_config(folder)
    except UserError as error:
        raise UserError(f"The tokenizer in {folder} is damaged: {error}") from None
    if tokenizer.fingerprint() != meta.fingerprint:
        raise UserError(
            f"The tokenizer in {folder} is damaged: its files don't have the fingerprint they were saved with."
        )
    return tokenizer

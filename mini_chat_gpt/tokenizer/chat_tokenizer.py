"""Text to ids and back: one `ChatTokenizer`, whichever encoder a model was trained with.

What it promises:

- `encode` never returns the id of a control token, whatever the text spells; control tokens are put in as ids.
- `decode(encode(text)) == text` for every text that UTF-8 can hold. What it can't hold (lone surrogates, which Python
  strings get from broken input) is encoded as U+FFFD, the replacement character.
- An id that does not exist (a padding row of the model's table, an id of another tokenizer) raises; it is never skipped
  in silence.
- `save` writes all that `load` needs, without a network, and the same content gives the same bytes. Beside it stand the
  files that make `transformers.AutoTokenizer.from_pretrained(folder)` work.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, write_json
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.tokenizer import tiktoken_files
from mini_chat_gpt.tokenizer.encoders import (
    DEFAULT_PATTERN,
    PieceEncoder,
    RankEncoder,
    rank_encoder,
    read_file,
    read_ranks,
    readable_regex_limit,
)
from mini_chat_gpt.tokenizer.hf_export import write_hugging_face

END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>")
# llama2.c's own; the names are those of Llama's tokenizers.
LLAMA2C_CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}

META_FILE = "tokenizer_meta.json"
ENCODER_FILE = {"tiktoken": "tokenizer.tiktoken", "llama2c": "tokenizer.bin"}


class ChatTokenizer:
    """An encoder for ordinary text, and control tokens with ids of their own.

    kind           "tiktoken" (ranks: GPT-2's, our own) or "llama2c" (llama2.c's SentencePiece BPE)
    control        name -> id of all control tokens; they stand for no text. Ids that nobody uses are named here as
                   "<|reserved_N|>", so that every id below `vocab_size` means something
    bos_id         id put before every sequence (llama2.c: 1), None for tiktoken kinds
    chat_format    set when a model has been fine-tuned to the chat format; None: a base, prompted as plain text

    Make one with `load`, `train` or `from_llama2c`.
    """

    def __init__(
        self,
        encoder: RankEncoder | PieceEncoder,
        control: dict[str, int] | None = None,
        bos_id: int | None = None,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self.encoder = encoder
        self.kind: str = encoder.kind
        self.bos_id = bos_id
        self.chat_format = chat_format
        self.control = dict(control or {})
        self._names = {token_id: name for name, token_id in self.control.items()}
        pieces = encoder.pieces
        for token_id in range(self.vocab_size):
            if token_id not in self._names and (token_id >= len(pieces) or pieces[token_id] is None):
                self._name(f"<|reserved_{token_id}|>", token_id)

    def _name(self, name: str, token_id: int) -> None:
        self.control[name] = token_id
        self._names[token_id] = name

    # What there is

    @property
    def vocab_size(self) -> int:
        """Number of ids that exist, ordinary and control. A model's table may be larger: the rest is padding."""
        return max([len(self.encoder.pieces) - 1, *self.control.values()]) + 1

    @property
    def end_id(self) -> int:
        """Id of `<|endoftext|>`, which ends an assistant's reply."""
        try:
            return self.control[END_OF_TEXT]
        except KeyError:
            raise UserError(f"The tokenizer has no {END_OF_TEXT} token yet; call add_control_tokens() first.") from None

    @property
    def document_id(self) -> int:
        """Id that begins each pretraining document and ends it: `<|endoftext|>`, for llama2.c BOS."""
        return self.end_id if self.bos_id is None else self.bos_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which generation stops: the ends of a text or reply, in chats also the beginning of another turn."""
        names = {END_OF_TEXT, "<s>", "</s>"}
        if self.chat_format is not None:
            names.update(CONTROL_TOKENS)
        return frozenset(self.control[name] for name in names & self.control.keys())

    def add_control_tokens(self) -> list[int]:
        """Append those of CONTROL_TOKENS that are missing after the last id; returns the new ids.

        Nothing is done, and [] returned, when all are there. A model needs rows for new ones (`add_chat_tokens`).
        """
        new_ids = []
        for name in CONTROL_TOKENS:
            if name not in self.control:
                new_ids.append(self.vocab_size)
                self._name(name, self.vocab_size)
        return new_ids

    def fingerprint(self) -> str:
        """sha256 (hex) over all that defines the ids; two tokenizers with the same one are interchangeable."""
        meta = self._meta()
        del meta["chat_format"]
        digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        digest.update(self.encoder.to_bytes())
        return digest.hexdigest()

    # Text to ids and back

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: no BOS, never a control token, however the text spells one.

        llama2.c puts a space before every text; `decode` takes it away again.
        """
        return self.encoder.encode(well_formed(text))

    def decode(self, ids: Iterable[int], *, control: bool = False, start: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Equals `decode_bytes(...)` decoded.

        control    show control tokens by their names instead of leaving them out
        start      the ids begin a text (or a reply). Matters for llama2.c only, whose leading space is taken away then
                   and after every control token; pass False for ids that go on from others.

        Raises UserError for an id that does not exist.
        """
        return self.decode_bytes(ids, control=control, start=start).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, control: bool = False, start: bool = True) -> bytes:
        """The bytes of `ids`, which need not be whole characters. Arguments and errors as in `decode`."""
        parts = []
        for token_id in ids:
            part, start = self._bytes_of(token_id, control, start)
            parts.append(part)
        return b"".join(parts)

    def stream_decoder(self, *, control: bool = False, start: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one; arguments as in `decode`, whose text it gives in parts."""
        return StreamDecoder(self, control, start)

    def _bytes_of(self, token_id: int, control: bool, start: bool) -> tuple[bytes, bool]:
        """The bytes of one id, and whether the next one begins a text."""
        token_id = index(token_id)  # numpy's and torch's integers too, but no floats
        name = self._names.get(token_id)
        if name is not None:
            return (name.encode() if control else b""), True
        piece = self.encoder.pieces[token_id] if 0 <= token_id < len(self.encoder.pieces) else None
        if piece is None:
            raise UserError(
                f"Id {token_id} does not exist in this tokenizer, whose ids are 0 to {self.vocab_size - 1}; it is a "
                "padding row of the model, or an id of another tokenizer."
            )
        if start and self.encoder.adds_leading_space:
            piece = piece.removeprefix(b" ")
        return piece, False

    def byte_lengths(self, ids: np.ndarray, start: bool = True) -> np.ndarray:
        """(n,) int64, the number of bytes that each of the ids (n,) adds to `decode_bytes`; for ids of ordinary text."""
        lengths = self._piece_lengths[ids]
        if start and self.encoder.adds_leading_space and len(ids):
            lengths[0] = len(self.decode_bytes(ids[:1]))
        return lengths

    @cached_property
    def _piece_lengths(self) -> np.ndarray:
        return np.array([0 if piece is None else len(piece) for piece in self.encoder.pieces])

    # Making, saving, loading

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
        """A byte-level BPE from texts (one document each), with the four control tokens at its end.

        `vocab_size` includes them. Fewer entries come out where the texts don't hold enough different pairs. Only the
        texts and the size decide the result.
        """
        import rustbpe

        if isinstance(texts, str):
            raise UserError("ChatTokenizer.train takes several texts, such as [text]; a single string was given.")
        smallest = 256 + len(CONTROL_TOKENS)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size is {vocab_size}; it must be at least {smallest}: 256 bytes and the control tokens."
            )
        trainer = rustbpe.Tokenizer()
        with readable_regex_limit():
            trainer.train_from_iterator(
                map(well_formed, texts), vocab_size - len(CONTROL_TOKENS), pattern=DEFAULT_PATTERN
            )
        ranks = {bytes(piece): rank for piece, rank in trainer.get_mergeable_ranks()}
        tokenizer = ChatTokenizer(RankEncoder(ranks, DEFAULT_PATTERN))
        tokenizer.add_control_tokens()
        return tokenizer

    @staticmethod
    def from_llama2c(path: Path | str) -> ChatTokenizer:
        """llama2.c's `tok*.bin`. It has BOS and EOS, but no chat tokens until `add_control_tokens`."""
        encoder = PieceEncoder.from_bytes(read_file(Path(path)), str(path))
        return ChatTokenizer(encoder, LLAMA2C_CONTROL, bos_id=LLAMA2C_CONTROL["<s>"])

    @staticmethod
    def load(folder_or_name: Path | str) -> ChatTokenizer:
        """A tokenizer from

        - a folder that `save` wrote (a checkpoint is one too),
        - a `.tiktoken` file of ranks (see `tiktoken_files.from_file` for its split pattern),
        - llama2.c's `tok*.bin`,
        - the name of a tiktoken encoding, such as "gpt2"; tiktoken downloads its ranks unless it has them cached.
        """
        path = Path(folder_or_name)
        if path.is_dir():
            return _load_folder(path)
        if path.suffix == ".tiktoken":
            # Beside the ranks in a saved folder stands what they lack: the pattern and the control tokens.
            if path.name == ENCODER_FILE["tiktoken"] and (path.parent / META_FILE).is_file():
                return _load_folder(path.parent)
            return ChatTokenizer(*tiktoken_files.from_file(path))
        if path.suffix == ".bin":
            return ChatTokenizer.from_llama2c(path)
        if path.exists():
            raise UserError(f"{path} is no tokenizer; one is a saved folder, a .tiktoken file, or llama2.c's tok*.bin.")
        return ChatTokenizer(*tiktoken_files.from_name(str(folder_or_name)))

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer into a folder, for `load` and for `transformers.AutoTokenizer`."""
        folder = Path(folder)
        with readable_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ENCODER_FILE[self.kind]).write_bytes(self.encoder.to_bytes())
        write_hugging_face(folder, self)
        # Last, so that a folder without it is known to be unfinished.
        write_json(folder / META_FILE, {**self._meta(), "fingerprint": self.fingerprint()})

    def _meta(self) -> dict[str, Any]:
        return {
            "version": 1,
            "kind": self.kind,
            "pattern": self.encoder.pattern if isinstance(self.encoder, RankEncoder) else None,
            "bos_id": self.bos_id,
            "control": dict(sorted(self.control.items(), key=lambda item: item[1])),
            "chat_format": None if self.chat_format is None else {"default_system": self.chat_format.default_system},
        }


class StreamDecoder:
    """Gives the text of ids as they come, whole characters only.

    The pushed parts and `finish()`, joined, are what `decode` makes of all the ids.
    """

    def __init__(self, tokenizer: ChatTokenizer, control: bool, start: bool) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._start = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes; "" while one is still unfinished."""
        part, self._start = self._tokenizer._bytes_of(token_id, self._control, self._start)
        return self._utf8.decode(part)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was begun and never finished, otherwise ""."""
        return self._utf8.decode(b"", final=True)


def _load_folder(folder: Path) -> ChatTokenizer:
    if not (folder / META_FILE).is_file():
        raise UserError(
            f"{folder} holds no tokenizer ({META_FILE} is missing); name a folder that a run or save() wrote."
        )
    try:
        meta = json.loads(read_file(folder / META_FILE))
        if meta["version"] != 1:
            raise UserError(f"{folder / META_FILE} has version {meta['version']}; this program reads version 1.")
        file = folder / ENCODER_FILE[meta["kind"]]
        encoder: RankEncoder | PieceEncoder
        if meta["kind"] == RankEncoder.kind:
            encoder = rank_encoder(read_ranks(read_file(file), str(file)), meta["pattern"], str(file))
        else:
            encoder = PieceEncoder.from_bytes(read_file(file), str(file))
        chat_format = None if meta["chat_format"] is None else ChatFormat(**meta["chat_format"])
        tokenizer = ChatTokenizer(encoder, meta["control"], meta["bos_id"], chat_format)
        intact = tokenizer.fingerprint() == meta["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / META_FILE} is damaged; take the tokenizer from another checkpoint.") from None
    if not intact:
        raise UserError(
            f"The tokenizer in {folder} is damaged: its files don't have the fingerprint they were saved with."
        )
    return tokenizer

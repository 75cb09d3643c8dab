"""tokenizer_meta.json and the encoder's file next to it: what `ChatTokenizer.save` writes and `ChatTokenizer.load` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.json_files import JSONRecord, read_json
from mini_chat_gpt.tokenizer.bpe import MAX_FILE, TiktokenBPE, read_ranks
from mini_chat_gpt.tokenizer.chat_templates import FormatEntry, TemplateEntry
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.sentencepiece import SentencePieceBPE

META_FILE = "tokenizer_meta.json"
MAX_META = 1 << 27  # bytes; it names every unused id
CONFIG_FILE = "tokenizer_config.json"
ENCODER_FILE = {"tiktoken": "tokenizer.tiktoken", "llama2c": "tokenizer.bin", "huggingface": "tokenizer.json"}
REMEDY = "take the tokenizer from another checkpoint"

Encoder = TiktokenBPE | SentencePieceBPE | HuggingFaceBPE


class DeclaredIds(JSONRecord):
    """What the files of a model from elsewhere say about its control tokens."""

    bos_id: int | None = None  # named as BOS, whether the tokenizer inserts it or not
    eos_id: int | None = None
    stop_ids: tuple[int, ...] = ()  # eos_token_id of config.json and generation_config.json, each a number or a list


class TokenizerMeta(JSONRecord):
    """tokenizer_meta.json."""

    version: int
    kind: Literal["tiktoken", "llama2c", "huggingface"]
    pattern: str | None
    bos_id: int | None
    control: dict[str, int]
    chat_format: FormatEntry | TemplateEntry | None
    declared: DeclaredIds | None = None
    fingerprint: str


def read_meta(folder: Path) -> TokenizerMeta:
    """Read a folder's tokenizer_meta.json. Raises UserError if there is none, or if it is damaged."""
    path = folder / META_FILE
    try:
        meta = read_json(path, TokenizerMeta, REMEDY, MAX_META)
    except FileNotFoundError:
        raise UserError(
            f"{folder} contains no tokenizer ({META_FILE} is missing); give a folder that a run, save() or "
            "`mini-chat-gpt import` wrote."
        ) from None
    if meta.version != 1:
        raise UserError(f"{path} has version {meta.version}; this program reads version 1.")
    return meta


def read_encoder(folder: Path, meta: TokenizerMeta) -> Encoder:
    """Read the encoder of a folder. Raises UserError if it is damaged."""
    file = folder / ENCODER_FILE[meta.kind]
    data = read_file(file, MAX_FILE)
    if meta.kind == TiktokenBPE.kind:
        return TiktokenBPE(read_ranks(data, str(file)), meta.pattern or "")
    if meta.kind == SentencePieceBPE.kind:
        return SentencePieceBPE.from_bytes(data, str(file))
    encoder = HuggingFaceBPE(data, str(file))
    if not encoder.control.items() <= meta.control.items():
        raise UserError(f"{META_FILE} lacks control tokens of {file.name}.")
    return encoder


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The contents of a folder's tokenizer_config.json, {} if there is none. Raises UserError if it is damaged."""
    try:
        return read_json(folder / CONFIG_FILE, dict[str, Any], REMEDY)
    except FileNotFoundError:
        return {}

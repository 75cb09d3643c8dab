"""Write a tokenizer as Hugging Face files, so that `transformers.AutoTokenizer.from_pretrained(folder)` loads it offline.

    tokenizer.json          the encoder as a BPE of the `tokenizers` library
    tokenizer_config.json   names of BOS and EOS
    chat_template.jinja     the chat format, if the model has one

The ids of a text are the same, with two exceptions that these files can't avoid: text that spells a control token becomes that
token, and for llama2c the character U+2581 means a space (see `_sentencepiece`). The same tokenizer gives the same bytes.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from mini_chat_gpt.common.files import atomic_write_text, write_json
from mini_chat_gpt.tokenizer.bpe import TiktokenBPE
from mini_chat_gpt.tokenizer.bpe import byte_letters as byte_letters
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.sentencepiece import FIRST_TEXT_ID, SentencePieceBPE

TEMPLATE_FILE = "chat_template.jinja"


def write_hugging_face(
    folder: Path,
    encoder: TiktokenBPE | SentencePieceBPE | HuggingFaceBPE,
    control: Mapping[str, int],
    bos_token: str | None,
    template: str | None,
    foreign_config: Mapping[str, Any],
) -> None:
    """Write the files named above into an existing folder.

    control: name -> id of the control tokens. bos_token: the name of the one that begins every sequence. template: the chat
    format in Jinja. foreign_config: the tokenizer_config.json of a model from elsewhere, whose tokenizer.json is its encoder.
    """
    if isinstance(encoder, HuggingFaceBPE):
        config = foreign_tokenizer_config(foreign_config, template)
    else:
        parts = tokenizer_json(encoder, control, bos_token)
        atomic_write_text(folder / "tokenizer.json", json.dumps(parts, ensure_ascii=False))
        config = tokenizer_config(control, bos_token, template)
    write_json(folder / "tokenizer_config.json", config)
    if template is None:
        (folder / TEMPLATE_FILE).unlink(missing_ok=True)  # from a tokenizer that was saved here earlier
    else:
        atomic_write_text(folder / TEMPLATE_FILE, template)


def tokenizer_config(control: Mapping[str, int], bos_token: str | None, template: str | None) -> dict[str, Any]:
    """tokenizer_config.json. Its class is the generic one, because a model's own class rebuilds the encoder in its own way."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ends = [name for name in ("<|endoftext|>", "</s>") if name in control]
    if bos_token is not None:
        config["bos_token"] = bos_token
    elif ends:
        config["bos_token"] = ends[0]  # begins a document; the tokenizer does not insert it by itself
    if ends:
        config["eos_token"] = ends[0]
    if template is not None:
        config["chat_template"] = template
    return config


def foreign_tokenizer_config(config: Mapping[str, Any], template: str | None) -> dict[str, Any]:
    """A model's own tokenizer_config.json, with the current template, the generic class, and nothing that refers to code."""
    removed = ("auto_map", "chat_template", "tokenizer_file", "name_or_path", "_name_or_path", "backend")
    kept = {key: value for key, value in config.items() if key not in removed}
    return {
        **kept,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if template is None else {"chat_template": template}),
    }


def tokenizer_json(
    encoder: TiktokenBPE | SentencePieceBPE, control: Mapping[str, int], bos_token: str | None
) -> dict[str, Any]:
    """tokenizer.json. Control tokens are also part of the vocabulary, so that their ids don't depend on its length."""
    by_id = sorted(control.items(), key=lambda item: item[1])
    if isinstance(encoder, TiktokenBPE):
        parts = _byte_level(encoder)
    else:
        parts = _sentencepiece(encoder, bos_token, None if bos_token is None else control[bos_token])
    vocab = {**parts["model"]["vocab"], **dict(by_id)}
    parts["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": token_id, "content": name, **flags} for name, token_id in by_id]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def _byte_level(encoder: TiktokenBPE) -> dict[str, Any]:
    """tiktoken's algorithm: split by the pattern, keep a chunk that is an entry as it is, otherwise merge by rank."""
    letters = byte_letters()
    written = {piece: "".join(letters[byte] for byte in piece) for piece in encoder.ranks}
    split = {"type": "Split", "pattern": {"Regex": encoder.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {written[piece]: rank for piece, rank in encoder.ranks.items()},
            "merges": [[written[left], written[right]] for left, right in _merges_of(encoder)],
        },
    }


@lru_cache(maxsize=2)
def _merges_of(encoder: TiktokenBPE) -> list[tuple[bytes, bytes]]:
    """`merges_from_ranks`, found once for all checkpoints of a run."""
    return merges_from_ranks(encoder.ranks)


def merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each entry, in the order of ranks.

    An entry is made from the two parts that remain when its bytes are merged with all earlier entries. (Another pair with the
    same bytes can't occur, because an earlier merge would have split it.) For an entry that no merge makes, every way to split
    it in two is listed, because tiktoken would merge any of them.
    """
    merges: list[tuple[bytes, bytes]] = []
    lengths = {len(piece) for piece in ranks}
    for piece in sorted(ranks, key=ranks.__getitem__):
        if len(piece) == 1:
            continue
        parts = _merge_below(piece, ranks, ranks[piece])
        merges.extend([(parts[0], parts[1])] if len(parts) == 2 else splits(piece, ranks, lengths))
    return merges


Text = TypeVar("Text", bytes, str)


def splits(piece: Text, known: Mapping[Text, int], lengths: Set[int]) -> Iterator[tuple[Text, Text]]:
    """Every way to split `piece` into two known pieces. `lengths` are those of known pieces: a long piece has few such places."""
    for cut in sorted(length for length in lengths if len(piece) - length in lengths):
        if (left := piece[:cut]) in known and (right := piece[cut:]) in known:
            yield left, right


def _merge_below(piece: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """The parts of `piece` after all merges with ranks below `limit`, lowest rank first, until two parts are left.

    A heap of the possible merges keeps this near linear in the length. A part is identified by the index of its first byte, and
    ends at `end[index]`, where the next one begins.
    """
    size = n_parts = len(piece)
    end, before = list(range(1, size + 1)), list(range(-1, size - 1))
    heap: list[tuple[int, int, int]] = []

    def offer(left: int) -> None:
        right = end[left]
        if right < size and (rank := ranks.get(piece[left : end[right]], limit)) < limit:
            heapq.heappush(heap, (rank, left, end[right]))

    for left in range(size):
        offer(left)
    while heap and n_parts > 2:
        _, left, stop = heapq.heappop(heap)
        right = end[left]
        if right in (0, size) or end[right] != stop:  # one of the two has been merged with another part since
            continue
        end[left], end[right], n_parts = stop, 0, n_parts - 1
        if stop < size:
            before[stop] = left
            offer(left)
        if before[left] >= 0:
            offer(before[left])
    starts = [start for start in range(size) if end[start]]
    return [piece[start : end[start]] for start in starts]


def _sentencepiece(encoder: SentencePieceBPE, bos_token: str | None, bos_id: int | None) -> dict[str, Any]:
    """llama2.c's algorithm in the form of Llama's tokenizers: spaces are written as U+2581, and one is inserted before each text.

    U+2581 itself means a space here, as in SentencePiece; llama2.c and `ChatTokenizer` encode it as bytes. Merges are ordered by
    score. For two different pieces with the same score, llama2.c would order by position instead of id.
    """
    byte_vocab = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    text_vocab = {piece.replace(" ", "\u2581"): token_id for piece, token_id in encoder.ids.items()}
    # If a vocabulary has a piece twice, both ids must exist.
    known = set(text_vocab.values())
    spare = {f"<unused_{i}>": i for i in range(FIRST_TEXT_ID, len(encoder.pieces)) if i not in known}
    bos = {"SpecialToken": {"id": bos_token, "type_id": 0}}
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos_token: {"id": bos_token, "ids": [bos_id], "tokens": [bos_token]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {**byte_vocab, **text_vocab, **spare},
            "merges": [[part.replace(" ", "\u2581") for part in pair] for pair in merges_from_scores(encoder)],
        },
    }


def merges_from_scores(encoder: SentencePieceBPE) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, best score first."""
    merges = []
    lengths = {len(piece) for piece in encoder.ids}
    for piece, token_id in encoder.ids.items():
        for left, right in splits(piece, encoder.ids, lengths):
            order = (-encoder.scores[token_id], token_id, encoder.ids[left], encoder.ids[right])
            merges.append((order, (left, right)))
    return [pair for _, pair in sorted(merges)]

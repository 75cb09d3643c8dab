"""A tokenizer as the metadata of a GGUF file: the inverse of tokenizer/gguf_import.py.

Every row of the token table has an entry: ordinary tokens, control tokens, and unused ones for ids and rows without a token.
llama.cpp knows split rules by name only. If it has no name for those of the tokenizer, the names are tried on a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.export.losses import gguf_losses
from mini_chat_gpt.export.proof_texts import hostile_strings, packaged_text
from mini_chat_gpt.export.split_rules import NAMES, names_of_rules, split_steps
from mini_chat_gpt.export.template import chat_template, without_generation
from mini_chat_gpt.tokenizer.bpe import TiktokenBPE, byte_letters
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.gguf_import import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_from_gguf,
)
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_export import merges_from_ranks
from mini_chat_gpt.tokenizer.hf_rules import SPACE
from mini_chat_gpt.tokenizer.sentencepiece import FIRST_TEXT_ID, SentencePieceBPE

REMEDY = "export a folder for transformers (a DST without .gguf)"


@dataclass(frozen=True)
class GGUFTokenizer:
    """The metadata of a tokenizer, and how exact they are.

    exact   whether all texts have the same ids in llama.cpp; False: only ordinary ones do, as its split rules are others
    lines   what is not the same, a sentence each
    """

    metadata: dict[str, Any]
    exact: bool
    lines: list[str]


def gguf_tokenizer(tokenizer: ChatTokenizer, n_rows: int) -> GGUFTokenizer:
    """The metadata for a model whose table has `n_rows`. Raises UserError for a tokenizer that llama.cpp has no form for."""
    encoder = tokenizer.encoder
    values: dict[str, Any] = {}
    names, is_known = list[str](), False
    if isinstance(encoder, SentencePieceBPE):
        ordinary, scores = _llama2c_pieces(encoder)
        values |= {"model": "llama", "pre": "default", "add_space_prefix": True}
    elif isinstance(encoder, HuggingFaceBPE) and not encoder.rules.byte_level:
        _require_expressible(encoder)
        ordinary, scores = _pieces_of_merges(encoder)
        values |= {"model": "llama", "pre": "default", "add_space_prefix": encoder.rules.leading_space == "always"}
    else:
        ordinary, scores = _byte_level_pieces(encoder), None
        values |= {"model": "gpt2", "merges": _merges(encoder), "add_space_prefix": False}
        names, is_known = names_of_rules(encoder)
    tokens, types = _entries(tokenizer, ordinary, n_rows)
    values |= {"tokens": tokens, "token_type": types}
    if scores is not None:
        values["scores"] = [scores.get(token_id, 0.0) for token_id in range(n_rows)]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (values | _special_ids(tokenizer)).items()}
    template = chat_template(tokenizer)
    if template is not None:
        metadata["tokenizer.chat_template"] = without_generation(template)
    if isinstance(encoder, SentencePieceBPE):
        return GGUFTokenizer(metadata, True, [])
    if is_known:
        return GGUFTokenizer(metadata | {"tokenizer.ggml.pre": names[0]}, True, _about_missing_bytes(encoder))
    return _nearest(tokenizer, metadata, names or (NAMES if scores is None else ("default",)))


# Entries


def _entries(tokenizer: ChatTokenizer, ordinary: Mapping[int, str], n_rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id. Raises UserError if two have the same text."""
    added = tokenizer.encoder.added if isinstance(tokenizer.encoder, HuggingFaceBPE) else {}
    control = {token_id: name for name, token_id in tokenizer.control.items()}
    tokens, types = [], []
    for token_id in range(n_rows):
        if token_id in control:
            name = control[token_id]
            tokens.append(name)
            types.append(_type_of_control(name, token_id, name not in added or added[name].special))
        elif token_id in ordinary:
            token = ordinary[token_id]
            is_byte = tokenizer.kind != TiktokenBPE.kind and _is_byte(tokenizer, token)
            tokens.append(token)
            types.append(BYTE if is_byte else USER_DEFINED if token in added else NORMAL)
        else:
            tokens.append(f"[PAD{token_id}]")
            types.append(UNUSED)
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise UserError(f"Two tokens are written as {short(twice)}, which GGUF files can't express; {REMEDY}.")
    return tokens, types


def _type_of_control(name: str, token_id: int, special: bool) -> int:
    if name == f"<|reserved_{token_id}|>":
        return UNUSED
    if name == "<unk>":
        return UNKNOWN
    return CONTROL if special else USER_DEFINED


def _is_byte(tokenizer: ChatTokenizer, token: str) -> bool:
    """Whether an entry of a SentencePiece vocabulary is one of <0x00> to <0xFF>."""
    encoder = tokenizer.encoder
    if isinstance(encoder, HuggingFaceBPE) and encoder.rules.byte_level:
        return False
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_level_pieces(encoder: TiktokenBPE | HuggingFaceBPE) -> dict[int, str]:
    """Id -> the entry in GPT-2's letters for bytes."""
    if isinstance(encoder, HuggingFaceBPE):
        return {token_id: token for token, token_id in encoder.vocab.items()}
    letters = byte_letters()
    return {rank: "".join(letters[byte] for byte in piece) for piece, rank in encoder.ranks.items()}


def _merges(encoder: TiktokenBPE | HuggingFaceBPE) -> list[str]:
    if isinstance(encoder, HuggingFaceBPE):
        return [f"{left} {right}" for left, right in encoder.merges]
    letters = byte_letters()
    written = [["".join(letters[byte] for byte in part) for part in pair] for pair in merges_from_ranks(encoder.ranks)]
    return [" ".join(pair) for pair in written]


def _llama2c_pieces(encoder: SentencePieceBPE) -> tuple[dict[int, str], dict[int, float]]:
    """Id -> entry and score. A piece that occurs twice has one id that text can get."""
    ordinary = {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    ordinary |= {token_id: piece.replace(" ", SPACE) for piece, token_id in encoder.ids.items()}
    assert min(encoder.ids.values(), default=FIRST_TEXT_ID) >= FIRST_TEXT_ID
    return ordinary, dict(enumerate(map(float, encoder.scores)))


def _require_expressible(encoder: HuggingFaceBPE) -> None:
    """Raise UserError for a SentencePiece tokenizer that inserts spaces, or splits text, as llama.cpp does not."""
    rules = encoder.rules
    if rules.leading_space == "first" or (rules.leading_space == "always" and rules.keeps_own_space):
        raise UserError(
            "The tokenizer inserts a space only before some texts (Metaspace), but llama.cpp does so before every text or before "
            f"none; {REMEDY}."
        )


def _pieces_of_merges(encoder: HuggingFaceBPE) -> tuple[dict[int, str], dict[int, float]]:
    """Id -> entry and score: the earlier a token's first merge, the better its score.

    llama.cpp also merges two tokens that form a token without being a merge of the file; `_nearest` finds out whether that matters.
    """
    vocab, scores = encoder.vocab, dict[int, float]()
    for rank, (left, right) in enumerate(encoder.merges):
        scores.setdefault(vocab[left + right], float(-rank - 1))
    worst = float(-len(encoder.merges) - 1)
    return {i: token for token, i in vocab.items()}, {i: scores.get(i, worst) for i in vocab.values()}


def _special_ids(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """BOS, EOS, the end of a turn, and whether BOS is inserted."""
    control, declared, chat_format = tokenizer.control, tokenizer.declared, tokenizer.chat_format
    bos, eos = (control.get(name) if name else None for name in tokenizer.template_tokens)
    ends = [] if chat_format is None else sorted(chat_format.end_ids(tokenizer))
    eos = eos if eos is not None else next(iter(ends), None)
    bos = bos if bos is not None else eos
    end_of_turn = next((one for one in ends if one != eos), None)
    pad = tokenizer.hf_config.get("pad_token")
    ids = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "eot_token_id": end_of_turn,
        "unknown_token_id": control.get("<unk>"),
        "padding_token_id": control.get(str(pad.get("content") if isinstance(pad, dict) else pad)),
    }
    # Our base models were trained on documents that begin with <|endoftext|>.
    is_own_base = declared is None and chat_format is None
    return {name: token_id for name, token_id in ids.items() if token_id is not None} | {
        "add_bos_token": bos is not None and (tokenizer.bos_id is not None or is_own_base)
    }


def _about_missing_bytes(encoder: TiktokenBPE | HuggingFaceBPE) -> list[str]:
    """What llama.cpp does otherwise for bytes without a token: it drops them after merging, not before."""
    missing = encoder.missing_bytes if isinstance(encoder, HuggingFaceBPE) else []
    letters = [byte for byte in missing if byte not in (0xC0, 0xC1) and byte < 0xF5]  # those that occur in UTF-8
    if not letters:
        return []
    return [
        f"{len(letters)} of the bytes of UTF-8 have no token, so characters that need them are dropped; llama.cpp may split the text "
        "next to such a character in another way."
    ]


# Rules that llama.cpp may not have


def _nearest(tokenizer: ChatTokenizer, metadata: Mapping[str, Any], names: Sequence[str]) -> GGUFTokenizer:
    """The metadata with the first of these names under which a text has the same ids. Raises UserError if there is none."""
    text, strings = packaged_text(), hostile_strings(tokenizer.control)
    text, *strings = map(gguf_losses(tokenizer).change, (text, *strings))
    expected = tokenizer.encode(text)
    for name in names:
        candidate = {**metadata, "tokenizer.ggml.pre": name}
        other = tokenizer_from_gguf(candidate)
        if other.encode(text) != expected:
            continue
        equal = sum(tokenizer.encode(one) == other.encode(one) for one in strings)
        if equal == len(strings):
            return GGUFTokenizer(candidate, True, [])
        line = (
            f"llama.cpp does not know the rules of the tokenizer exactly; with those of {name} a text of {len(text):,} characters and "
            f"{equal:,} of {len(strings):,} hostile strings have the same ids, other texts may have others."
        )
        return GGUFTokenizer(candidate, False, [line])
    assert not isinstance(tokenizer.encoder, SentencePieceBPE)
    steps = split_steps(tokenizer.encoder)
    pattern = f" (it splits text by {short(steps[0])})" if steps else ""
    raise UserError(
        f"llama.cpp does not know the rules of the tokenizer{pattern}, and a text has other ids with those that it knows; {REMEDY}."
    )

"""The tokenizer of a Hugging Face folder: tokenizer.json, and what the files next to it say about control tokens and templates.

Nothing is downloaded and no code in the folder is run. `HuggingFaceBPE` describes which tokenizers can be read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, check_json, parse_json, read_json, short
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE as HuggingFaceBPE
from mini_chat_gpt.tokenizer.hf_export import TEMPLATE_FILE
from mini_chat_gpt.tokenizer.meta_file import CONFIG_FILE, DeclaredIds
from mini_chat_gpt.tokenizer.vocab_merges import END, VOCAB, has_vocab_and_merges, tokenizer_json

REMEDY = "get the model's files again"
MAX_TOKENIZER = 1 << 26  # bytes; Gemma's has 34 MB
MAX_TEMPLATE = 1 << 20
OLDER_FILES = ("tokenizer.model", "vocab.json")
"""Tokenizers of folders that were written without the library tokenizers."""
UNSET_STOP_ID = 2
"""The eos_token_id that `transformers` writes for a Llama whose author set none. It is that of Llama 2's tokenizer."""
T = TypeVar("T")


class _Named(JSONRecord):
    content: str


class _NamedTemplate(JSONRecord):
    name: str
    template: str


class _SpecialTokens(JSONRecord):
    """The keys that are used of tokenizer_config.json, and of special_tokens_map.json, which old versions wrote."""

    bos_token: str | _Named | None = None
    eos_token: str | _Named | None = None
    unk_token: str | _Named | None = None
    pad_token: str | _Named | None = None
    add_prefix_space: bool | None = None
    chat_template: str | list[_NamedTemplate] | None = None
    added_tokens_decoder: Mapping[str, _Named] = {}


class _StopIds(JSONRecord):
    """The key that is used of config.json and generation_config.json."""

    eos_token_id: int | list[int] | None = None


def tokenizer_from_folder(folder: Path | str, gpt2_files: bool = False) -> ChatTokenizer:
    """The tokenizer of a Hugging Face folder. Its chat template, if it has one, is `template`; its chat format is not set.

    `gpt2_files` says whether vocab.json and merges.txt without a tokenizer.json mean GPT-2's rules: in other families, text is
    split in another way.

    Raises UserError, one sentence, for a folder without tokenizer.json, for files that are damaged or contradict each other,
    and for a tokenizer that is not understood exactly.
    """
    folder = Path(folder)
    config = _read(folder / CONFIG_FILE, dict[str, Any]) or {}
    special = check_json(config, _SpecialTokens, str(folder / CONFIG_FILE), REMEDY)
    old = _read(folder / "special_tokens_map.json", _SpecialTokens) or _SpecialTokens()
    encoder = _encoder(folder, [special, old], gpt2_files)
    for token_id, token in special.added_tokens_decoder.items():
        if token.content not in encoder.added:
            raise UserError(
                f"{folder}: {CONFIG_FILE} has the added token {short(token.content)} (id {short(token_id)}), which "
                "tokenizer.json lacks; write both again with transformers' AutoTokenizer and save_pretrained."
            )
    # GPT-2's two files need not say that this token begins and ends a text.
    default = None if (folder / "tokenizer.json").is_file() or END not in encoder.control else END
    stops = [_stop_ids(folder / name) for name in ("config.json", "generation_config.json")]
    tokenizer = foreign_tokenizer(
        encoder,
        bos=_name(special.bos_token) or _name(old.bos_token) or encoder.bos_token or default,
        eos=_name(special.eos_token) or _name(old.eos_token) or default,
        stop_ids=[token_id for ids in stops for token_id in ids],
        source=str(folder),
    )
    tokenizer.hf_config = config
    tokenizer.template = _template(folder, special)
    return tokenizer


def _encoder(folder: Path, named: Sequence[_SpecialTokens], gpt2_files: bool) -> HuggingFaceBPE:
    """The encoder in tokenizer.json, or in the two files of GPT-2. Raises UserError if there is none."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return HuggingFaceBPE(read_file(path, MAX_TOKENIZER), str(path))
    if gpt2_files and has_vocab_and_merges(folder):
        names = [_name(getattr(one, f"{kind}_token")) for one in named for kind in ("bos", "eos", "unk", "pad")]
        data = tokenizer_json(folder, [name for name in names if name], any(one.add_prefix_space for one in named))
        return HuggingFaceBPE(data, str(folder / VOCAB))
    older = next((name for name in OLDER_FILES if (folder / name).is_file()), None)
    remedy = (
        "copy it from where the weights come from."
        if older is None
        else f"make it of {older} with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
    )
    raise UserError(f"{folder} has no tokenizer.json; {remedy}")


def foreign_tokenizer(
    encoder: HuggingFaceBPE, bos: str | None, eos: str | None, stop_ids: Iterable[int], source: str
) -> ChatTokenizer:
    """A tokenizer from the names of its BOS and EOS and the ids at which generation stops. Errors mention `source`.

    A stop id that is ordinary text is left out with a warning, except the one that `transformers` writes unasked.
    """
    ids: dict[str, int] = {}
    for name in filter(None, (bos, eos, encoder.bos_token)):
        token_id = encoder.control.get(name, encoder.vocab.get(name))
        if token_id is None:
            raise UserError(f"{source}: the control token {short(name)} is not in tokenizer.json; {REMEDY}.")
        ids[name] = token_id
    # A name that is an ordinary entry becomes a control token, as transformers does.
    if ordinary := {name: token_id for name, token_id in ids.items() if name not in encoder.control}:
        encoder = encoder.with_control(ordinary)
    control = set(encoder.control.values())
    stops = dict.fromkeys(stop_ids)
    unset = {UNSET_STOP_ID} if eos else set()
    if unknown := [token_id for token_id in stops if token_id not in control | unset]:
        warnings.warn(
            f"{source}: the stop ids {short(unknown)} are not control tokens, so they are not used", stacklevel=2
        )
    declared = DeclaredIds(
        bos_id=ids[bos] if bos else None,
        eos_id=ids[eos] if eos else None,
        stop_ids=tuple(token_id for token_id in stops if token_id in control),
    )
    # Whether BOS is inserted is decided by tokenizer.json alone: transformers ignores add_bos_token in the other file.
    return ChatTokenizer(encoder, bos_id=ids[encoder.bos_token] if encoder.bos_token else None, declared=declared)


def _name(token: str | _Named | None) -> str | None:
    return token.content if isinstance(token, _Named) else token


def _read(path: Path, structure: type[T]) -> T | None:
    """The contents of a JSON file, None if it does not exist."""
    try:
        return read_json(path, structure, REMEDY)
    except FileNotFoundError:
        return None


def _stop_ids(path: Path) -> list[int]:
    """The eos_token_id of config.json or generation_config.json, a number or a list; [] if there is none."""
    try:
        found = _read(path, _StopIds)
    except DamagedJSON:
        # The generation_config.json of Llama 3.2 was published with commas that JSON does not allow, or without some.
        data = read_file(path, MAX_TEMPLATE)
        data = re.sub(rb",(\s*[}\]])", rb"\1", data)
        data = re.sub(rb'([\d"\]}el])(\s*\n\s*")', rb"\1,\2", data)
        found = parse_json(data, _StopIds, str(path), REMEDY)
    ids = found.eos_token_id if found is not None else None
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def _template(folder: Path, special: _SpecialTokens) -> str | None:
    """The chat template: that of chat_template.jinja, or else that of tokenizer_config.json, "default" if it has several."""
    if (path := folder / TEMPLATE_FILE).is_file():
        try:
            return read_file(path, MAX_TEMPLATE).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; {REMEDY}.") from None
    template = special.chat_template
    if isinstance(template, list):
        named: Mapping[str, str] = {one.name: one.template for one in template}
        return named.get("default")
    return template

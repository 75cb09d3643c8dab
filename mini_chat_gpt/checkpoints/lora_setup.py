"""Start or resume LoRA training: choose the base, the rows of the token tables to train, and the precision of frozen weights."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mini_chat_gpt.chat_format import ChatFormat, Format
from mini_chat_gpt.checkpoints.adapters import AdapterMetadata, weights_hash
from mini_chat_gpt.checkpoints.build import StoredModel
from mini_chat_gpt.checkpoints.find import ADAPTER_BASE, MODEL, find_checkpoint, is_checkpoint, protect, read_meta
from mini_chat_gpt.checkpoints.foreign import is_foreign
from mini_chat_gpt.checkpoints.load import load_pair
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.config import Config
from mini_chat_gpt.lora import Frozen, add_lora, set_dropout
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import CONTROL_TOKENS, END_OF_TEXT, ChatTokenizer

FROZEN_BY_DTYPE: dict[torch.dtype, Frozen] = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Base:
    """The model that a run fine-tunes."""

    path: Path  # where it was read from
    stored: StoredModel
    model: GPT  # complete, or for an adapter the skeleton of `stored` with rows for all control tokens
    tokenizer: ChatTokenizer  # has all control tokens, and the chat format that the model is fine-tuned to
    added: Collection[str]  # control tokens that the base lacked
    own_format: Format | None = None  # the chat format of the base itself


def check(config: Config) -> None:
    """Raise UserError for settings that exclude each other."""
    if config.lora.enabled and config.system.fsdp:
        raise UserError(
            "system.fsdp can't be combined with lora.enabled: frozen weights need neither gradients nor optimizer state. "
            "Set system.fsdp=false, and lora.frozen=nf4 if memory is short."
        )


def pair_of_run(checkpoint: Path, config: Config) -> tuple[GPT, ChatTokenizer]:
    """Load the model of a run's checkpoint for further training, and its tokenizer.

    Of the settings in `config.lora` only the dropout may have changed (see `training/fixed_settings.py`).
    """
    metadata = AdapterMetadata.read(checkpoint)
    if metadata is None:
        return load_pair(checkpoint)
    model, tokenizer = load_pair(checkpoint, adapted=True, frozen=metadata.frozen)
    set_dropout(model, config.lora.dropout)
    return model, tokenizer


def adapt(base: Base, config: Config, run: Path, world: World, device: torch.device, dry_run: bool = False) -> None:
    """Complete the base's skeleton with frozen weights, and add the config's adapters to it.

    Control tokens that the base has never seen get trainable rows. An adapter is useless without its base, so if
    `base.path` is not a checkpoint folder with all control tokens, the base is written to the folder `run`, except in a
    `dry_run`. `device` is where training will run; it decides the precision of the frozen weights if `lora.frozen` is
    auto. Raises UserError.
    """
    folder = world.broadcast(lambda: _base_folder(base, run, dry_run))
    unseen = {*base.added}
    if base.own_format is None and isinstance(base.tokenizer.chat_format, ChatFormat):
        unseen |= {*CONTROL_TOKENS} - {END_OF_TEXT}  # <|endoftext|> also ends documents, so a plain-text base knows it
    token_ids = sorted(base.tokenizer.control[name] for name in unseen)
    dtype = pick_precision(config.system.mixed_precision, device).dtype
    frozen = FROZEN_BY_DTYPE[dtype] if config.lora.frozen == "auto" else config.lora.frozen
    base.stored.fill(base.model, frozen)
    torch.manual_seed(config.system.seed)  # for the random matrices
    add_lora(base.model, config.lora, frozen, token_ids)
    assert base.model.adapter is not None
    layout = read_meta(folder).get("layout", "") if is_checkpoint(folder) else ""  # in a dry run it may not be there
    base.model.adapter = replace(base.model.adapter, base=str(folder), base_hash=weights_hash(folder), layout=layout)


def _base_folder(base: Base, run: Path, dry_run: bool) -> Path:
    """The folder that the adapter's files will name as their base; writes it if necessary."""
    if not is_foreign(base.path) and not base.added:
        folder = find_checkpoint(base.path).resolve()
        if (folder / MODEL).is_file():
            if not dry_run:
                protect(folder)
            return folder
    folder = (run / ADAPTER_BASE).resolve()
    if not dry_run:
        shutil.rmtree(folder, ignore_errors=True)  # from a start that failed
        tokenizer = copy.copy(base.tokenizer)
        tokenizer.chat_format = base.own_format
        save_checkpoint(folder, base.model, tokenizer, {"job": "base", "from": shown_path(base.path)}, base.stored)
    return folder

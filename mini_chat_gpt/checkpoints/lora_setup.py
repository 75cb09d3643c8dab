"""The beginning of a run that trains an adapter: which base, which rows, and in which form the frozen weights are kept."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mini_chat_gpt.checkpoints.adapters import is_adapter, weights_hash
from mini_chat_gpt.checkpoints.checkpoint import (
    ADAPTER_BASE,
    MODEL,
    find_checkpoint,
    load_adapted,
    load_model,
    read_meta,
    save_checkpoint,
)
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config
from mini_chat_gpt.lora import Frozen, add_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import CONTROL_TOKENS, END_OF_TEXT, ChatTokenizer
from mini_chat_gpt.training.run import Start

BY_DTYPE: dict[torch.dtype, Frozen] = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Base:
    """What a run begins with."""

    path: Path  # that it was read from
    model: GPT
    tokenizer: ChatTokenizer  # with all control tokens; its chat format is still the base's
    added: Collection[str]  # control tokens that it lacked


def check(config: Config) -> None:
    """Raises UserError for settings that don't go together."""
    if config.lora.enabled and config.system.fsdp:
        raise UserError(
            "system.fsdp doesn't go with lora.enabled: frozen weights need neither gradients nor optimizer state. Set "
            "system.fsdp=false, and lora.frozen=nf4 where memory is short."
        )


def model_of_run(checkpoint: Path, config: Config) -> GPT:
    """The model of a run's checkpoint, as training goes on with it. Raises UserError where the settings mean another kind."""
    if is_adapter(checkpoint) != config.lora.enabled:
        was = "an adapter" if is_adapter(checkpoint) else "all weights"
        raise UserError(
            f"{checkpoint.parent} trains {was}, but lora.enabled is {str(config.lora.enabled).lower()}; begin another run."
        )
    if not config.lora.enabled:
        return load_model(checkpoint)
    return load_adapted(checkpoint, frozen=read_meta(checkpoint)["adapter"]["frozen"])


def adapt(base: Base, config: Config, start: Start) -> None:
    """Freeze a base and put the config's adapters beside it.

    Control tokens that the base has never seen get rows that are trained. Where its path is no folder that has all of them
    the base is written to the run's folder: an adapter without its base is nothing. Raises UserError.
    """
    folder = start.world.broadcast(lambda: _base_folder(base, start))
    unseen = {*base.added}
    if base.tokenizer.chat_format is None:
        unseen |= {*CONTROL_TOKENS} - {END_OF_TEXT}  # which ends texts as well
    ids = sorted(base.tokenizer.control[name] for name in unseen)
    asked = config.lora.frozen
    frozen = BY_DTYPE[pick_precision(config.system.mixed_precision, start.device).dtype] if asked == "auto" else asked
    torch.manual_seed(config.system.seed)  # of the random matrices
    add_lora(base.model, config.lora, frozen, ids)
    assert base.model.adapter is not None
    base.model.adapter = replace(base.model.adapter, base=str(folder), base_hash=weights_hash(folder))


def _base_folder(base: Base, start: Start) -> Path:
    """The folder that the adapter's files will name."""
    if not base.path.is_file() and not base.added:
        folder = find_checkpoint(base.path).resolve()
        if (folder / MODEL).is_file():
            return folder
    folder = (start.place.folder / ADAPTER_BASE).resolve()
    if not start.rehearsal:
        shutil.rmtree(folder, ignore_errors=True)  # of a start that came to nothing
        save_checkpoint(folder, base.model, base.tokenizer, {"job": "base", "from": str(base.path)})
    return folder

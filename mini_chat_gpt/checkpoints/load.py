"""Load a model and its tokenizer from a checkpoint folder, a run folder, or a file of another project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mini_chat_gpt.checkpoints.adapters import ADAPTER, find_base, load_adapter, read_adapter
from mini_chat_gpt.checkpoints.build import model_from_state
from mini_chat_gpt.checkpoints.find import MODEL, find_checkpoint, read_meta
from mini_chat_gpt.checkpoints.foreign import import_model
from mini_chat_gpt.checkpoints.hf import from_hf_state
from mini_chat_gpt.checkpoints.sharded import Like, read_file, read_shards, shards_of
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import Frozen, add_lora, merge_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


def load_checkpoint(path: Path | str, device: str | torch.device = "auto") -> tuple[GPT, ChatTokenizer]:
    """Load a model (in eval mode) and its tokenizer from a checkpoint or run folder, a llama2.c .bin or nanoGPT's ckpt.pt.

    Raises UserError with the reason if there is none, or if it is damaged.
    """
    target = device if isinstance(device, torch.device) else pick_device(device)
    if Path(path).is_file():
        model, tokenizer = import_model(Path(path))
    else:
        folder = find_checkpoint(path)
        model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
    return model.to(target).eval(), tokenizer


def load_model(folder: Path) -> GPT:
    """Load the model of one checkpoint folder on the CPU. An adapter is merged into its base."""
    meta = read_meta(folder)
    if "adapter" in meta:
        model = load_adapted(folder)
        merge_lora(model)
        return model
    with _readable(folder):
        config = _model_config(folder, meta)
        return model_from_state(config, from_hf_state(_read(folder, MODEL), config))


def load_adapted(folder: Path, base: Path | None = None, frozen: Frozen | None = None) -> GPT:
    """Load the base of the adapter in `folder` and add the adapter, ready for further training.

    `base` defaults to the folder that the adapter names. `frozen` is the precision of the base's weights. By default it is
    that of the adapter's training: weights that were 4-bit then are quantized again, so that the model in use is the model
    that was trained.
    """
    meta = read_meta(folder)
    with _readable(folder):
        adapter, expected = read_adapter(meta["adapter"]), _model_config(folder, meta)
    base = base or find_base(folder, meta["adapter"])
    model = load_model(base)
    if model.config != expected:
        fields = [name for name, value in expected if getattr(model.config, name) != value]
        raise UserError(f"{base} is not a base for the adapter {folder}: they differ in {', '.join(fields)}.")
    frozen = frozen or ("nf4" if adapter.frozen == "nf4" else "float32")
    with _readable(folder):
        add_lora(model, adapter.settings, frozen, adapter.token_ids)
        load_adapter(model, _read(folder, ADAPTER))
    model.adapter = replace(adapter, frozen=frozen)
    return model


def _model_config(folder: Path, meta: Mapping[str, Any]) -> GPTConfig:
    """The model's config as the checkpoint stores it. Raises UserError for a field that only a later version knows."""
    fields = meta["gpt_config"]
    if unknown := sorted(fields.keys() - GPTConfig.model_fields.keys()):
        # Even a default value can change the model: this version does not know which value means "as before".
        raise UserError(
            f"The model in {folder} has settings that this version does not know ({', '.join(unknown)}); "
            "update mini_chat_gpt."
        )
    return GPTConfig(**fields)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn any error in a folder's contents into one sentence."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"The model in {folder} can't be read: {str(error).splitlines()[0]}") from None


def read_tensors(folder: Path, name: str, like: Like = lambda _: None) -> dict[str, torch.Tensor]:
    """Read the tensors of one file of a checkpoint on the CPU, or sharded where `like` returns a sharded tensor for a name.

    Raises UserError if the file can't be read.
    """
    try:
        return _read(folder, name, like)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder / name} can't be read ({error}), so training can't resume from it.") from None


def _read(folder: Path, name: str, like: Like = lambda _: None) -> dict[str, torch.Tensor]:
    if read_meta(folder).get("sharded"):
        return read_shards(shards_of(folder, name), like)
    return read_file(folder / name, like)


def require_finite(model: GPT, path: Path) -> None:
    """Raise UserError if a weight is NaN or infinite: every score and reply of such a model would be meaningless."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{path}: {name} is not finite (NaN or infinite); training has diverged, use an earlier checkpoint."
            )

"""`recipe NAME --output FOLDER [--merge]`: what a recipe made, in a folder that can be passed on.

    adapter_config.json adapter_model.safetensors    the adapter, as PEFT reads it (without lora.enabled: the whole model instead)
    tokenizer.json tokenizer_config.json …           the tokenizer with its chat template, as `transformers` reads it
    training_config.yaml                             all settings of the training
    requirements.txt                                 exact versions of the libraries
    base/                                            only if the base got new control tokens: the base with rows for them
    merged/                                          with --merge: the whole model, as `transformers` reads it

Folders of this machine are not named: the base is a name of the hub, or a path relative to the folder.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mini_chat_gpt import __version__
from mini_chat_gpt.checkpoints.adapters import ADAPTER, ADAPTER_CONFIG, adapter_tensors, is_adapter, peft_config
from mini_chat_gpt.checkpoints.find import find_checkpoint, read_meta
from mini_chat_gpt.checkpoints.load import load_pair
from mini_chat_gpt.checkpoints.merge import merge
from mini_chat_gpt.checkpoints.origin import write_origin
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_folder, atomic_write_text
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import to_yaml

SETTINGS, REQUIREMENTS, BASE, MERGED = "training_config.yaml", "requirements.txt", "base", "merged"
LIBRARIES = {"torch": "2.9", "transformers": "4.56", "peft": "0.17", "tokenizers": "0.20", "safetensors": "0.4.3"}
"""What it takes to load the folder, and the oldest version for a library that is not installed here."""


def require_new(folder: Path) -> None:
    """Raise UserError, before training, if the folder exists."""
    if folder.exists():
        raise UserError(f"{folder} exists already and is not overwritten; choose another name for --output.")


def write_output(run: Path, folder: Path, config: Config, merged: bool) -> None:
    """Write what the run made. Raises UserError."""
    checkpoint = find_checkpoint(run)
    if is_adapter(checkpoint):
        _write_adapter(checkpoint, folder)
        if merged:
            merge(checkpoint, folder / MERGED)
    else:
        model, tokenizer = load_pair(checkpoint, dtype=None)
        save_checkpoint(folder, model, tokenizer, read_meta(checkpoint)["info"])
    sft = config.sft.model_copy(
        update={"pretrained_checkpoint": _without_folders(config.sft.pretrained_checkpoint, folder)}
    )
    atomic_write_text(folder / SETTINGS, to_yaml(config.model_copy(update={"sft": sft})))
    atomic_write_text(folder / REQUIREMENTS, requirements())


def _write_adapter(checkpoint: Path, folder: Path) -> None:
    """The files of PEFT and of the tokenizer, without the metadata that only this package reads."""
    model, tokenizer = load_pair(checkpoint, adapted=True)
    adapter, origin = model.adapter, model.origin
    assert adapter is not None
    hub = None if origin is None or adapter.token_ids else origin.repository
    base = BASE if adapter.token_ids else hub or os.path.relpath(adapter.base, folder.resolve())
    with atomic_folder(folder) as draft:
        write_tensors(draft / ADAPTER, adapter_tensors(model))
        settings = peft_config(replace(adapter, base=base), model.config)
        (draft / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(draft)
        if origin is not None:
            write_origin(draft, origin, read_meta(checkpoint)["info"])
        if adapter.token_ids:
            shutil.copytree(adapter.base, draft / BASE)


def _without_folders(base: str | None, folder: Path) -> str | None:
    """The base of the settings: a name of the hub as it is, a path relative to the folder."""
    return os.path.relpath(base, folder) if base is not None and os.path.exists(base) else base


def requirements() -> str:
    """requirements.txt: the installed version of each library that loads the folder."""
    lines = [f"# Trained with mini-chat-gpt {__version__}, Python {platform.python_version()}"]
    for name, oldest in LIBRARIES.items():
        try:
            lines.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            lines.append(f"{name}>={oldest}  # not installed where the model was trained")
    return "\n".join(lines) + "\n"


def loading_lines(folder: Path) -> str:
    """What to type to use the folder, for the terminal."""
    return f"Output: {folder} (PeftModel.from_pretrained(base, {str(folder)!r}) loads it)"

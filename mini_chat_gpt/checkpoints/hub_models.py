"""Models of the Hugging Face hub: which files of a repository are needed, and a local copy of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_chat_gpt.checkpoints.hf_folder import CONFIG, WEIGHTS, read_folder_config
from mini_chat_gpt.checkpoints.verify import ADAPTER, ADAPTER_CONFIG, META
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub import fetch
from mini_chat_gpt.common.hub_names import HubName, hub_name, require_file, some_of

_SMALL = re.compile(
    r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json|"
    r"merges\.txt|chat_template\.jinja|README\.md|(LICEN[CS]E|NOTICE|USE_POLICY|COPYING).{0,40}",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
ADAPTERS = (ADAPTER, "adapter_model.bin")


def local_model(path: Path, weights: bool = True) -> Path:
    """The local copy of a model that a path names on the hub; the path itself if it names none.

    Without `weights` only the files that describe the model, and its tokenizer. Those come first in any case, so that a model
    that can't be read is refused before gigabytes are fetched. Raises UserError.
    """
    if (name := hub_name(path, "model")) is None:
        return path
    if name.file is not None:
        return fetch(name, _Only(name)).folder / name.file
    small = fetch(name, _small_files)
    if CONFIG in small.files and not os.path.isfile(small.folder / META):
        read_folder_config(small.folder)
    if not weights and small.files:
        return small.folder
    found = fetch(name, _Model(name))
    ggufs = [file for file in found.files if file.lower().endswith(".gguf")]
    return found.folder / ggufs[0] if ggufs else found.folder


@dataclass(frozen=True)
class _Only:
    """Chooses the file that the user named, and license files."""

    name: HubName

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        licenses = [one for one in names if _SMALL.fullmatch(one) and not one.endswith((".json", ".txt", ".jinja"))]
        return [*licenses, require_file(self.name, names)]


def _small_files(names: Sequence[str]) -> Sequence[str]:
    if META in names:
        return [name for name in names if name.endswith(".json") or _SMALL.fullmatch(name)]
    return [name for name in names if _SMALL.fullmatch(name)]


@dataclass(frozen=True)
class _Model:
    """Chooses what a model consists of. Raises UserError for a repository without one."""

    name: HubName

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        if META in names:  # one of our own checkpoints: its manifest lists every file
            return [name for name in names if not name.startswith(".")]
        small = _small_files(names)
        weights = next((one for one in WEIGHTS if one in names), None)
        if weights is not None:
            ending = ".bin" if ".bin" in weights else ".safetensors"
            shards = (
                [name for name in names if _SHARD.fullmatch(name) and name.endswith(ending)]
                if "index" in weights
                else []
            )
            return [*small, weights, *shards]
        if ADAPTER_CONFIG in names and (adapter := next((one for one in ADAPTERS if one in names), None)):
            return [*small, adapter]
        ggufs = [name for name in names if name.lower().endswith(".gguf")]
        if len(ggufs) == 1:
            return [*small, *ggufs]
        if ggufs:
            raise UserError(
                f"{self.name} has {len(ggufs)} GGUF files; choose one, such as hub:{self.name.repo}/{_middle(ggufs)}."
            )
        raise UserError(
            f"{self.name} has no weights that can be read ({', '.join(WEIGHTS[::2])} or GGUF); it has {some_of(names)}."
        )


def _middle(ggufs: Sequence[str]) -> str:
    """The 8-bit file if there is one: nearly exact, and half the size of 16 bits."""
    return next((name for name in ggufs if "q8_0" in name.lower()), ggufs[0])

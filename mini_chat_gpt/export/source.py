"""The model that is to be exported: its stored weights, its tokenizer, and what is known about its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.build import StoredModel
from mini_chat_gpt.checkpoints.find import read_meta, step_of
from mini_chat_gpt.checkpoints.foreign import is_foreign
from mini_chat_gpt.checkpoints.load import find_source, open_pair
from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.tensor_files import is_finite
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Source:
    """A checkpoint, or a model of another project, whose weights have not been read yet."""

    path: Path
    """The checkpoint folder, or the file or folder of another project."""
    stored: StoredModel
    tokenizer: ChatTokenizer
    info: Mapping[str, Any]
    """Metadata of the run that made it; {} for a model of another project."""

    @property
    def config(self) -> GPTConfig:
        return self.stored.config

    @property
    def origin(self) -> Origin | None:
        """Where an imported model, or the base of this one, comes from."""
        origin: Origin | None = self.stored.origin
        return origin

    @property
    def run(self) -> Path | None:
        """The folder of the run that wrote the checkpoint, None if that is not known."""
        return self.path.parent if step_of(self.path) is not None else None

    def read(self, name: str) -> torch.Tensor:
        """One of its tensors, by our name. Raises UserError for one that is not finite, also if it became so in 16 bits."""
        tensor = self.stored.read(name)
        if not is_finite(tensor):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{self.path}: the tensor {name} is not finite in {kind}; export in another precision.")
        return tensor


def open_source(path: Path, dtype: torch.dtype | None = None) -> Source:
    """Open a checkpoint, a run, or a model of another project; adapters are merged into their base.

    `dtype` is the precision of the weights, None that of the source. Raises UserError as `open_pair` does, and if the path means
    nothing.
    """
    folder = find_source(path)
    stored, tokenizer = open_pair(folder, dtype=dtype)
    info = {} if is_foreign(folder) else read_meta(folder)["info"]
    return Source(folder, stored, tokenizer, info)

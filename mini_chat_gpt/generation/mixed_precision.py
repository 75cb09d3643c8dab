"""A model in the form that generates on a GPU: under autocast, with the weights of its linear layers stored in 16 bits.

It has what generation needs of a GPT (`config`, `device`, `make_cache`, `next_logits`). Its logits are those of the model under
autocast, as in training with the same precision. Autocast alone would convert every float32 weight for every token, which reads
three times as much memory as the product itself.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
import torch.nn as nn

from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.common.distributed import is_dtensor
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import HalfLinear
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.kv_cache import KVCache


class MixedPrecisionModel:
    """See the module. `model` itself is not changed; what is not stored in 16 bits is shared with it."""

    def __init__(self, model: GPT, precision: Precision) -> None:
        self.model, self.precision = _with_half_linears(model, precision.dtype), precision

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the model computes in its precision."""
        return self.precision.autocast(self.device)

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache in the precision of the model; see `GPT.make_cache`."""
        return self.model.make_cache(batch_size, max_length, self.precision.dtype)

    @torch.inference_mode()
    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Read new tokens (B, T) into the cache and predict the next one, (B, V) float32; see `GPT.next_logits`."""
        with self.autocast():
            return self.model.next_logits(ids, cache, n_tokens).float()


def _with_half_linears(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of the model with 16-bit linear layers. All other tensors are shared. A sharded model is returned as it is."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_dtensor(tensor) for tensor in tensors):
        return model
    clone = copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
    for name, module in list(clone.named_modules()):
        if type(module) is nn.Linear:
            clone.set_submodule(name, HalfLinear(module, dtype))
    return clone

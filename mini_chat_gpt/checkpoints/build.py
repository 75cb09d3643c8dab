"""Build a model around tensors that were read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.model import GPT


def model_from_state(config: GPTConfig, state: Mapping[str, torch.Tensor]) -> GPT:
    """A model whose parameters are the tensors of `state` themselves; a tied head may be missing.

    Nothing is initialized first. Raises RuntimeError for tensors that don't fit the config.
    """
    with _SkipInit():
        model = GPT(config)
    head = {"lm_head.weight": state["embed_tokens.weight"]} if config.tie_embeddings else {}
    model.load_state_dict({**state, **head}, strict=True, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


class _SkipInit(TorchFunctionMode):
    """Leaves parameters uninitialized. (The "meta" device would do as well, but imports a second's worth of PyTorch.)"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)

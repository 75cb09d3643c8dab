"""Build a model around tensors that were read from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from mini_chat_gpt.checkpoints.tensor_files import FLOATS, TensorInfo, compare_tensors, first_nonfinite
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.model import GPT

HEAD = "lm_head.weight"
REMEDY = "use another copy of it"


class TensorReader(Protocol):
    """A file, or several, whose tensors are read one by one."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...  # what can be read
    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor: ...  # None: the file's precision


@dataclass(frozen=True)
class Part:
    """Where one of our tensors is: a tensor of the file, and what is to be done with it."""

    source: str
    convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    shape: tuple[int, ...] | None = None  # of the tensor in the file; None: that of ours


def model_shapes(config: GPTConfig, n_tensors: int, source: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, without a tied head. Takes no memory, whatever the sizes.

    `n_tensors` is the number of tensors in the file that the config belongs to: a file of few tensors is not a model of a
    billion layers. Raises UserError, which begins with `source`, for sizes that no model can have.
    """
    if config.n_layer > n_tensors:
        raise UserError(
            f"{source} says n_layer={config.n_layer}, but its weights are {n_tensors} tensors; use another copy of it."
        )
    if config.position == "rope":  # its table has no weights, but takes memory
        config = config.model_copy(update={"position": "none"})
    model = _without_weights(config, source)
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (name == HEAD and config.tie_embeddings)
    }


def model_from_state(config: GPTConfig, state: Mapping[str, torch.Tensor], source: str) -> GPT:
    """A model whose parameters are the tensors of `state` themselves; a tied head may be missing.

    Nothing is initialized first. Raises UserError, which begins with `source`, for tensors that don't fit the config.
    """
    state = {name: tensor for name, tensor in state.items() if not (name == HEAD and config.tie_embeddings)}
    compare_tensors(state, model_shapes(config, len(state), source), source, REMEDY, FLOATS)
    model = _without_weights(config, source)
    head = {HEAD: state["embed_tokens.weight"]} if config.tie_embeddings else {}
    model.load_state_dict({**state, **head}, strict=True, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def read_model(
    config: GPTConfig,
    part_of: Callable[[str, GPTConfig], Part],
    reader: TensorReader,
    source: str,
    constants: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
) -> GPT:
    """Build a model (on the CPU, in eval mode) from the tensors of a file.

    The names and shapes of all tensors are compared with the config before one is read. They are then read and converted
    one by one, so that no more than one of them is in memory twice. `dtype` is the precision of the result; None keeps the
    file's. `constants` see `Family`. Raises UserError, which begins with `source`, for tensors that don't fit or are not finite.
    """
    infos = {name: info for name, info in reader.infos.items() if not name.endswith(constants)}
    shapes = model_shapes(config, len(infos), source)
    parts = {name: part_of(name, config) for name in shapes}
    expected = {part.source: shapes[name] if part.shape is None else part.shape for name, part in parts.items()}
    if config.tie_embeddings and (head := part_of(HEAD, config).source) not in expected:
        infos.pop(head, None)  # some files repeat the embedding there
    compare_tensors(infos, expected, source, REMEDY, FLOATS)
    state: dict[str, torch.Tensor] = {}
    for name, part in parts.items():
        tensor = reader.read(part.source, dtype)
        state[name] = (tensor if part.convert is None else part.convert(tensor)).contiguous()
        if first_nonfinite({name: tensor}):
            raise UserError(f"{source}: the tensor {part.source} is not finite (NaN or infinite); {REMEDY}.")
    return model_from_state(config, state, source).eval()


def _without_weights(config: GPTConfig, source: str) -> GPT:
    try:
        with _NoWeights():
            return GPT(config)
    except (RuntimeError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError):
        # More elements than PyTorch can count, or a rope_scaling without its parameters.
        raise UserError(f"{source} describes an impossible model; use another copy of it.") from None


class _NoWeights(TorchFunctionMode):
    """Creates parameters without memory, and doesn't initialize them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.empty, torch.ones, torch.zeros):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)

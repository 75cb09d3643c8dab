"""Build a model from tensors that are read from a file one by one, each in the form in which the model keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from mini_chat_gpt.checkpoints.tensor_files import FLOATS, TensorInfo, compare_tensors, first_nonfinite
from mini_chat_gpt.checkpoints.tensor_parts import PartOf, stored_shapes
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import Frozen, freeze_linear, linear_layers
from mini_chat_gpt.model import GPT

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
REMEDY = "use another copy of it"
IMPORTABLE = "a Hugging Face folder, a GGUF file, a llama2.c .bin or nanoGPT's ckpt.pt"


class TensorReader(Protocol):
    """A file, or several, whose tensors are read one by one."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...  # what can be read
    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor: ...  # None: the file's precision


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


@dataclass(frozen=True)
class StoredModel:
    """A model whose tensors fit its config and have not been read.

    `skeleton` and `fill` read one tensor after the other, so that no more than one of them is in memory in another form than
    the model's. A stored model is loaded once: tensors that were in memory are given to it.
    """

    config: GPTConfig
    infos: Mapping[str, TensorInfo]
    """Its tensors by our names, as `read` returns them; without a tied head."""
    read: Callable[[str], torch.Tensor]
    """Returns one of them, on the CPU. Raises UserError."""
    source: str
    origin: Any = None  # see `GPT.origin`
    forget: Callable[[str], object] = lambda name: None
    """Called when the model has a tensor, and it will not be read again."""

    def skeleton(self) -> GPT:
        """The model with its token tables. All other weights are on the device "meta": they take no memory yet."""
        model = _without_weights(self.config, self.source)
        state = {name: _without_data(info) for name, info in self.infos.items()}
        tables = {name for name in (EMBEDDING, HEAD) if name in state}
        state |= {name: self.read(name) for name in tables}
        if self.config.tie_embeddings:
            state[HEAD] = state[EMBEDDING]
        model.load_state_dict(state, strict=True, assign=True)
        if self.config.tie_embeddings:
            model.lm_head.weight = model.embed_tokens.weight
        for name in tables:
            self.forget(name)
        model.origin = self.origin
        return model

    def fill(self, model: GPT, frozen: Frozen = "float32") -> GPT:
        """Read the weights that the skeleton lacks. Linear layers are converted as `freeze_linear` does, each as it is read."""
        linear = {name for name, _ in linear_layers(model)}
        for name in [name for name, _ in model.named_modules()]:  # names only: a list of modules would keep all of them
            self._fill(model, name, frozen if name in linear else "float32")
        return model

    def _fill(self, model: GPT, name: str, frozen: Frozen) -> None:
        module = model.get_submodule(name)
        own = [one for one, parameter in module.named_parameters(recurse=False) if parameter.is_meta]
        if own:
            module.load_state_dict({one: self.read(f"{name}.{one}") for one in own}, strict=True, assign=True)
        for one in own:
            self.forget(f"{name}.{one}")
        if frozen != "float32":
            model.set_submodule(name, freeze_linear(cast(nn.Linear, module), frozen))

    def load(self, frozen: Frozen = "float32") -> GPT:
        """The model, complete, in eval mode."""
        return self.fill(self.skeleton(), frozen).eval()


def model_in_memory(
    config: GPTConfig, state: Mapping[str, torch.Tensor], source: str, origin: Any = None
) -> StoredModel:
    """A model of the tensors of `state` themselves; a tied head may be missing.

    Raises UserError, which begins with `source`, for tensors that don't fit the config.
    """
    state = {name: tensor for name, tensor in state.items() if not (name == HEAD and config.tie_embeddings)}
    compare_tensors(state, model_shapes(config, len(state), source), source, REMEDY, FLOATS)
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    return StoredModel(config, infos, state.__getitem__, source, origin, state.pop)


def model_in_file(
    config: GPTConfig,
    part_of: PartOf,
    reader: TensorReader,
    source: str,
    constants: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    origin: Any = None,
) -> StoredModel:
    """The model of a file of another project. The names and shapes of its tensors are compared with the config.

    `dtype` is the precision of the result; None keeps the file's. `constants` see `Family`. Raises UserError, which begins
    with `source`, for tensors that don't fit; reading one that is not finite raises it as well.
    """
    infos = {name: info for name, info in reader.infos.items() if not name.endswith(constants)}
    shapes = model_shapes(config, len(infos), source)
    expected = stored_shapes(shapes, part_of, config)
    head, table = part_of(HEAD, config).source, part_of(EMBEDDING, config).source
    repeated = config.tie_embeddings and head not in expected and infos.pop(head, None) is not None
    compare_tensors(infos, expected, source, REMEDY, FLOATS)
    # Some files repeat the embedding as the head. If it has other weights, the config or they are of another model.
    if repeated and not torch.equal(reader.read(head), reader.read(table)):
        raise UserError(
            f"{source}: the config says that the head shares the weights of {table} (tie_word_embeddings), but {head} has "
            f"others; {REMEDY}."
        )

    def read(stored: str, dtype: torch.dtype | None) -> torch.Tensor:
        tensor = reader.read(stored, dtype)
        if first_nonfinite({stored: tensor}):
            raise UserError(f"{source}: the tensor {stored} is not finite (NaN or infinite); {REMEDY}.")
        return tensor

    return model_in_parts(config, part_of, infos, read, source, dtype, origin)


def model_in_parts(
    config: GPTConfig,
    part_of: PartOf,
    infos: Mapping[str, TensorInfo],
    read: Callable[[str, torch.dtype | None], torch.Tensor],
    source: str,
    dtype: torch.dtype | None = None,
    origin: Any = None,
) -> StoredModel:
    """The model of a file with the tensors `infos`, which fit its config; `read` returns one of them, see `TensorReader`."""
    shapes = model_shapes(config, len(infos), source)
    parts = {name: part_of(name, config) for name in shapes}
    ours = {name: TensorInfo(shape, dtype or infos[parts[name].source].dtype) for name, shape in shapes.items()}

    def read_part(name: str) -> torch.Tensor:
        part = parts[name]
        if part.convert is None:
            return part.read(read(part.source, dtype))
        converted = part.read(read(part.source, None))  # the values of the file, not rounded before
        return converted if dtype is None else converted.to(dtype)

    return StoredModel(config, ours, read_part, source, origin)


def _without_data(info: TensorInfo) -> torch.Tensor:
    return torch.empty(info.shape, dtype=info.dtype, device="meta")  # type: ignore[call-overload]


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

"""From the --checkpoint options to models that are served. A base is loaded once, however many of its adapters are served."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mini_chat_gpt.chat.introduction import introduce
from mini_chat_gpt.chat.model_options import cut_context
from mini_chat_gpt.checkpoints.adapters import AdapterMetadata, find_base, is_adapter
from mini_chat_gpt.checkpoints.find import is_checkpoint, newest_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, load_pair
from mini_chat_gpt.checkpoints.purpose import read_purpose
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import name_of_model
from mini_chat_gpt.common.resources import free_memory
from mini_chat_gpt.common.user_paths import path_text
from mini_chat_gpt.generation.cpu_adapters import AdaptedModel
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import Model, WeightsOption, for_inference
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.lora import EmbeddingRows, HalfLinear, HeadRows, LoraLinear, dequantize
from mini_chat_gpt.lora import adapters as lora_layers
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.nf4 import Nf4Linear
from mini_chat_gpt.serve.app import ServedModel
from mini_chat_gpt.serve.engine import ReplyEngine, Variant
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

PREFIX_SHARE, LARGEST_PREFIXES, ROWS_SHARE = 8, 2**31, 2
"""The prefix cache takes one part in this many of the free memory, at most 2 GiB; the caches of running replies one in two."""


class Source(NamedTuple):
    """A model to serve."""

    name: str
    path: Path  # checkpoint folder, or file or folder of another project
    base: Path  # the base of an adapter; otherwise the same
    quantized: bool = False  # an adapter that was trained on a 4-bit base


class Options(NamedTuple):
    """How models are loaded and run."""

    device: str = "auto"
    weights: WeightsOption = "auto"
    max_rows: int = 16
    max_queue: int = 64
    prefix_bytes: int | None = None  # None: by the free memory
    log: Callable[[str], object] = lambda line: print(line, file=sys.stderr)


def find_sources(words: Sequence[str]) -> list[Source]:
    """What the --checkpoint options name, each [NAME=]PATH; the newest chat model without any. Raises UserError."""
    if not words:
        newest = newest_checkpoint(base=False)
        if newest is None:
            raise UserError(
                "There is no chat model under runs/; train one with `mini-chat-gpt quickstart`, or name one: --checkpoint PATH."
            )
        words = [str(newest)]
    sources: dict[str, Source] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = "", word
        source = _source(name or _name_of(path), path)
        if source.name in sources:
            raise UserError(f"Two models are called {source.name!r}; name them: --checkpoint NAME={path}.")
        sources[source.name] = source
    return list(sources.values())


def _name_of(path: str) -> str:
    """A name for a model that has none: runs/quickstart/sft is quickstart-sft, as many runs end in sft."""
    name, parent = name_of_model(path), Path(path).parent
    if name.startswith("step-") or name in ("best", "last"):
        name, parent = name_of_model(str(parent)), parent.parent
    generic = name in ("sft", "base", "model", "checkpoint") and parent.name not in ("", "runs", ".", "..")
    return f"{name_of_model(str(parent))}-{name}" if generic else name


def _source(name: str, path: str) -> Source:
    source = find_source(Path(path_text(path)))  # the shell does not expand the ~ of NAME=~/PATH
    if is_checkpoint(source) and is_adapter(source):
        metadata = AdapterMetadata.read(source)
        assert metadata is not None
        return Source(name, source, find_base(source, metadata).resolve(), metadata.frozen == "nf4")
    return Source(name, source, source.resolve())


def load_models(sources: Sequence[Source], options: Options) -> list[ServedModel]:
    """Load the models, in order. Those with one base share an engine, which is not started. Raises UserError."""
    groups: dict[tuple[Path, bool], list[Source]] = {}
    for source in sources:
        groups.setdefault((source.base, source.quantized), []).append(source)
    models: dict[str, ServedModel] = {}
    for group in groups.values():
        base, tokenizer = _load_base(group[0], options)
        variants = []
        for number, source in enumerate(group):
            is_base = source.path.resolve() == source.base
            model, its_tokenizer = (base, tokenizer) if is_base else _load_adapter(source, base)
            variants.append(Variant.of(model, its_tokenizer, options.max_rows, number))
            _report(source, model, options)
        engine = _engine(variants, options)
        for source, variant in zip(group, variants, strict=True):
            introduction = introduce(read_purpose(source.path), variant.tokenizer.chat_format is None)
            models[source.name] = ServedModel(source.name, engine, variant, introduction.line, introduction.prompts)
    return [models[source.name] for source in sources]


def _load_base(source: Source, options: Options) -> tuple[Model, ChatTokenizer]:
    """The base of a group in the form for many replies, with the context that fits into the memory."""
    if source.quantized:
        adapted, tokenizer = load_pair(source.path, adapted=True)
        net = without_adapter(adapted)
    else:
        net, tokenizer = load_pair(source.base)
    model = for_inference(net.to(pick_device(options.device)).eval(), weights=options.weights)
    if (note := cut_context(model, free_memory(model.device))) is not None:
        options.log(note)
    return model, tokenizer


def _load_adapter(source: Source, base: Model) -> tuple[Model, ChatTokenizer]:
    """The base with an adapter. The copy of the base that is loaded with the adapter is dropped again."""
    adapted, tokenizer = load_pair(source.path, adapted=True)
    return with_adapter(base, adapted), tokenizer


def with_adapter(base: Model, adapted: GPT) -> Model:
    """`base` with the adapter of a model whose own base has the same weights. The weights of `base` are shared."""
    if isinstance(base, CPUInferenceModel):
        return AdaptedModel(base, adapted)
    if isinstance(base, MixedPrecisionModel):
        model = copy.copy(base)
        model.model = _on_shared_weights(base.model, adapted)
        return model
    return _on_shared_weights(base, adapted)


def _on_shared_weights(net: GPT, adapted: GPT) -> GPT:
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    clone: GPT = copy.deepcopy(net, memo=dict(shared))
    for name, layer in list(lora_layers(adapted)):
        layer.base = clone.get_submodule(name)  # type: ignore[assignment]
        clone.set_submodule(name, layer.to(net.device))
    for name in ("embed_tokens", "lm_head"):
        table = getattr(adapted, name)
        if isinstance(table, EmbeddingRows | HeadRows):
            table.base = getattr(clone, name)
            setattr(clone, name, table.to(net.device))
    return clone.eval()


def without_adapter(model: GPT) -> GPT:
    """The base of an adapted model, in float32. `model` is changed."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.base)
    for name, module in list(model.named_modules()):
        if isinstance(module, HalfLinear | Nf4Linear):
            model.set_submodule(name, dequantize(module))
    for name in ("embed_tokens", "lm_head"):
        table = getattr(model, name)
        if isinstance(table, EmbeddingRows | HeadRows):
            setattr(model, name, table.base)
    model.adapter = None
    return model


def _engine(variants: Sequence[Variant], options: Options) -> ReplyEngine:
    free = free_memory(variants[0].model.device) or 2**32
    prefix_bytes = options.prefix_bytes
    if prefix_bytes is None:
        prefix_bytes = min(LARGEST_PREFIXES, free // PREFIX_SHARE)
    return ReplyEngine(
        variants, options.max_rows, options.max_queue, prefix_bytes, free // ROWS_SHARE, on_error=options.log
    )


def _report(source: Source, model: Model, options: Options) -> None:
    """The line about a model at the start."""
    net = model if isinstance(model, GPT) else model.model
    adapter = f", an adapter on {source.base}" if source.path.resolve() != source.base else ""
    options.log(f"{source.name}: {net.n_parameters() / 1e6:.2f} M parameters on {model.device}, {source.path}{adapter}")

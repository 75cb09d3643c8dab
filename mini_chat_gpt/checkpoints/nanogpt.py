"""Read nanoGPT's `ckpt.pt`, a file of torch.save with {"model": state_dict, "model_args": {...}, ...}.

The architecture is GPT-2's with exact GELU, with or without biases. Only tensors and plain values are read, never code. All
tensors must be present with the expected shapes and no others, so that a variant of nanoGPT is rejected instead of misread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.checkpoints.pickles import is_plain, load_pickle
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
KNOWN_ARGUMENTS = {*ARGUMENTS, "bias", "dropout"}
# Tables are padded to a round number of rows (50,257 to 50,304). A larger difference means another tokenizer.
MAX_PADDING = 1024
_REMEDY_FOR_CODE = (
    "if you trust its origin, save only its `model` (a state_dict) and `model_args` with torch.save and import that"
)


def read_nanogpt(
    source: Path, tokenizer: str | Path | None
) -> tuple[GPTConfig, dict[str, torch.Tensor], ChatTokenizer]:
    """Read the architecture, our state_dict (without a tied head) and the tokenizer of nanoGPT's `ckpt.pt`.

    `tokenizer` is anything that `ChatTokenizer.load` accepts, or None for GPT-2's. Raises UserError.
    """
    arguments, tensors = _contents(source, load_pickle(source, _REMEDY_FOR_CODE))
    config = _config(source, arguments, tensors)
    loaded_tokenizer = _tokenizer(source, config.vocab_size, tokenizer)
    return config, _state(source, config, tensors), loaded_tokenizer


def _contents(source: Path, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return `model_args`, and the weights without torch.compile's prefix and the causal masks that some versions save."""
    parts: list[Any] = [checkpoint.get(key) for key in ("model_args", "model")] if isinstance(checkpoint, dict) else []
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise UserError(
            f"{source} is not nanoGPT's ckpt.pt: it has no `model` and `model_args`; give that or a llama2.c .bin."
        )
    arguments, weights = (dict(part) for part in parts)
    if "n_kv_heads" in arguments or "dim" in arguments:
        raise UserError(f"{source} is a training checkpoint of llama2.c; import the .bin that export.py makes from it.")
    for key in ARGUMENTS:
        if type(value := arguments.get(key)) is not int or not 1 <= value < 2**53:
            raise UserError(f"{source}: model_args[{key!r}] is {short(value)}, not a size as in nanoGPT.")
    unknown = [key for key, value in arguments.items() if key not in KNOWN_ARGUMENTS and not _is_off(value)]
    if unknown:
        raise UserError(
            f"{source}: nanoGPT has no {short(unknown[0])} in model_args; a variant of it can't be imported."
        )
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".attn.bias")}
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise UserError(f"{source}: {short(name)} is not a tensor of numbers as in nanoGPT; download it again.")
    return arguments, tensors


def _is_off(value: Any) -> bool:
    return isinstance(value, (bool, int, float, type(None))) and not value


def _config(source: Path, arguments: dict[str, Any], tensors: dict[str, torch.Tensor]) -> GPTConfig:
    layers = len({name.split(".")[2] for name in tensors if name.startswith("transformer.h.")})
    if layers != arguments["n_layer"]:
        raise UserError(
            f"{source}: model_args says {arguments['n_layer']} layers, but `model` has {layers}; download it again."
        )
    bias = "transformer.ln_f.bias" in tensors  # the first versions have no argument for it
    head, embedding = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    untied = isinstance(head, torch.Tensor) and isinstance(embedding, torch.Tensor) and not torch.equal(head, embedding)
    return GPTConfig(
        vocab_size=arguments["vocab_size"],
        context_length=arguments["block_size"],
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        n_embd=arguments["n_embd"],
        norm="layernorm",
        norm_eps=1e-5,
        position="learned",
        activation="gelu",
        bias=bias,
        qkv_bias=bias,
        tie_embeddings=not untied,
    )


def _parts(config: GPTConfig) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """nanoGPT's modules: its name, our names (several for a fused module), and the shape of the weight."""
    width, inner = config.n_embd, config.mlp_size
    parts: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = [
        ("transformer.wte", ("embed_tokens",), (config.vocab_size, width)),
        ("transformer.wpe", ("embed_positions",), (config.context_length, width)),
        ("transformer.ln_f", ("norm",), (width,)),
    ]
    if not config.tie_embeddings:
        parts.append(("lm_head", ("lm_head",), (config.vocab_size, width)))
    for layer in range(config.n_layer):
        source, target = f"transformer.h.{layer}", f"layers.{layer}"
        qkv = tuple(f"{target}.self_attn.{part}_proj" for part in "qkv")
        parts += [
            (f"{source}.ln_1", (f"{target}.input_layernorm",), (width,)),
            (f"{source}.attn.c_attn", qkv, (3 * width, width)),
            (f"{source}.attn.c_proj", (f"{target}.self_attn.o_proj",), (width, width)),
            (f"{source}.ln_2", (f"{target}.post_attention_layernorm",), (width,)),
            (f"{source}.mlp.c_fc", (f"{target}.mlp.up_proj",), (inner, width)),
            (f"{source}.mlp.c_proj", (f"{target}.mlp.down_proj",), (width, inner)),
        ]
    return parts


def _state(source: Path, config: GPTConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state_dict. Raises UserError for missing and unexpected tensors and for wrong shapes."""
    remaining, state = dict(tensors), {}
    if config.tie_embeddings:
        remaining.pop("lm_head.weight", None)
    for module, targets, shape in _parts(config):
        without_bias = module in ("transformer.wte", "transformer.wpe", "lm_head")
        for kind, expected in [("weight", shape), ("bias", shape[:1])]:
            if kind == "bias" and (without_bias or not config.bias):
                continue
            tensor = remaining.pop(f"{module}.{kind}", None)
            if not isinstance(tensor, torch.Tensor) or tensor.shape != expected:
                actual = list(tensor.shape) if isinstance(tensor, torch.Tensor) else "missing"
                raise UserError(
                    f"{source}: {module}.{kind} is {actual}, but model_args requires {list(expected)}; the file is "
                    "damaged or from a variant of nanoGPT."
                )
            for name, piece in zip(targets, tensor.chunk(len(targets)), strict=True):
                state[f"{name}.{kind}"] = piece.to(torch.float32, copy=True)
    if remaining:
        raise UserError(
            f"{source}: nanoGPT has no {short(next(iter(remaining)), 100)[1:-1]}; a variant of it can't be imported."
        )
    return state


def _tokenizer(source: Path, vocab_size: int, path: str | Path | None) -> ChatTokenizer:
    command = f"`mini-chat-gpt import {source} FOLDER --tokenizer FILE`"
    try:
        tokenizer = ChatTokenizer.load("gpt2" if path is None else path)
    except UserError as error:
        if path is not None:
            raise
        raise UserError(f"{source} needs GPT-2's tokenizer: {error} Name it: {command}.") from None
    if not 0 <= vocab_size - tokenizer.vocab_size < MAX_PADDING:
        raise UserError(
            f"{source} has a table of {vocab_size} tokens, but the tokenizer {path or 'gpt2'} has "
            f"{tokenizer.vocab_size}; name the one it was trained with: {command} (the tokenizers of character-level "
            "models are not supported)."
        )
    return tokenizer

"""From the model options of a command line to a model that replies: `chat` and `generate` share it.

`cli_options.py` defines the options themselves, without importing PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, load_checkpoint
from mini_chat_gpt.checkpoints.purpose import Purpose, read_purpose
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.resources import free_memory
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.generation.decode import Model, WeightsOption, cache_bytes_per_token, for_inference
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

CACHE_SHARE = 4
"""The KV cache of one conversation takes at most one part in this many of the free memory."""
CONTEXT_STEP = 64
"""A context that is cut is a multiple of this many tokens."""


def system_of(arguments: argparse.Namespace) -> System:
    """The system message of --system, None for an empty one, or the chat format's default without the option."""
    return USE_FORMAT_DEFAULT if arguments.system is None else arguments.system or None


def thinking_of(arguments: argparse.Namespace) -> bool | None:
    """Whether --thinking is on or off; None without the option."""
    return None if arguments.thinking is None else arguments.thinking == "on"


def find_model(path: str | None) -> Path:
    """The path, or the newest model under runs/. Raises UserError if there is none."""
    model_path = Path(path) if path is not None else newest_checkpoint()
    if model_path is None:
        raise UserError(
            "There is no model under runs/; train one with `mini-chat-gpt quickstart`, or name one: --checkpoint PATH."
        )
    return model_path


class OpenModel(NamedTuple):
    """A model that can reply, and what it was trained to do (`read_purpose`)."""

    model: Model
    tokenizer: ChatTokenizer
    purpose: Purpose | None


def open_model(path: str | None, device: str, weights: WeightsOption) -> OpenModel:
    """Load the model that `find_model` finds, with its weights in the chosen number format, and cut its context if memory is short.

    Prints path, size and device on standard error. Raises UserError, also as `cut_context` does.
    """
    model_path = find_model(path)
    source = find_source(model_path)
    model, tokenizer = load_checkpoint(source, device)
    kind = "" if tokenizer.chat_format is not None else ", a base model without a chat format: it continues the prompt"
    if weights == "auto" and model.device.type == "cpu":
        inference_model: Model = model  # how its weights are best packed depends on the number of replies
    else:
        inference_model = for_inference(model, weights=weights)
    half = f", {inference_model.precision.reason}" if isinstance(inference_model, MixedPrecisionModel) else ""
    print(f"{model_path}: {model.n_parameters() / 1e6:.2f} M parameters on {model.device}{half}{kind}", file=sys.stderr)
    if (note := cut_context(inference_model, free_memory(model.device))) is not None:
        print(note, file=sys.stderr)
    return OpenModel(inference_model, tokenizer, read_purpose(source))


def cut_context(model: Model, free: int | None) -> str | None:
    """Shorten the context so that the KV cache of one conversation takes at most a quarter of `free` bytes.

    Returns a line that says so; None if nothing is cut, or if it is unknown how many bytes are free. Raises UserError if
    there is no memory for a conversation.
    """
    whole = model.config.context_length
    if free is None or (n_tokens := free // CACHE_SHARE // cache_bytes_per_token(model)) >= whole:
        return None
    context = n_tokens // CONTEXT_STEP * CONTEXT_STEP
    if context == 0:
        raise UserError(
            f"There is too little free memory for a conversation ({format_size(free)}); close other programs, or use a "
            "smaller model."
        )
    base = model if isinstance(model, GPT) else model.model
    base.config = base.config.model_copy(update={"context_length": context})
    return (
        f"Context: {context:,} of {whole:,} tokens, so that the cache of a conversation takes at most a quarter of the free "
        f"memory ({format_size(free // CACHE_SHARE)})."
    )

"""From the model options of a command line to a model that replies: `chat` and `generate` share it.

`cli_options.py` defines the options themselves, without importing PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import load_checkpoint, require_finite
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import Model, WeightsOption, for_inference
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


def system_of(arguments: argparse.Namespace) -> System:
    """The system message of --system, None for an empty one, or the chat format's default without the option."""
    return USE_FORMAT_DEFAULT if arguments.system is None else arguments.system or None


def find_model(path: str | None) -> Path:
    """The path, or the newest model under runs/. Raises UserError if there is none."""
    model_path = Path(path) if path is not None else newest_checkpoint()
    if model_path is None:
        raise UserError(
            "There is no model under runs/; train one with `mini-chat-gpt quickstart`, or name one: --checkpoint PATH."
        )
    return model_path


def open_model(path: str | None, device: str, weights: WeightsOption) -> tuple[Model, ChatTokenizer]:
    """Load the model that `find_model` finds, with its weights in the chosen number format.

    Prints path, size and device on standard error.
    """
    model_path = find_model(path)
    model, tokenizer = load_checkpoint(model_path, device)
    require_finite(model, model_path)
    kind = "" if tokenizer.chat_format is not None else ", a base model without a chat format: it continues the prompt"
    if weights == "auto" and model.device.type == "cpu":
        inference_model: Model = model  # how its weights are best packed depends on the number of replies
    else:
        inference_model = for_inference(model, weights=weights)
    half = f", {inference_model.precision.reason}" if isinstance(inference_model, MixedPrecisionModel) else ""
    print(f"{model_path}: {model.n_parameters() / 1e6:.2f} M parameters on {model.device}{half}{kind}", file=sys.stderr)
    return inference_model, tokenizer

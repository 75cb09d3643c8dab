"""The base model of a recipe: which one it is, and whether it makes sense for the recipe's data. Its weights are not read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mini_chat_gpt.chat_format import render_spans
from mini_chat_gpt.checkpoints.build import StoredModel
from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, open_pair
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.resources import total_memory
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.chat_files import Conversation, read_conversations
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, System, prompt_ids
from mini_chat_gpt.recipe.folder import PROMPTS, Recipe
from mini_chat_gpt.recipe.score import Part, prompts_for
from mini_chat_gpt.tokenizer.chat_setup import set_chat_format
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.sample_prompts import check_prompts

MAX_TOO_LONG = 0.1
"""The share of training records that may be longer than the model can read; training cuts them."""
MIN_REPLY = 8
"""Tokens that a held-out prompt must leave for the reply."""
BYTES = {"float32": 4.0, "bf16": 2.0, "nf4": 0.6, "auto": 2.0}
"""Bytes that a frozen weight needs at least, by `lora.frozen`."""
BYTES_IF_TRAINED = 16.0
"""Bytes of a trained weight: itself, its gradient, and two values of the optimizer."""


def base_of(config: Config) -> Path:
    """The base model of the recipe. Raises UserError if there is none."""
    checkpoint = config.sft.pretrained_checkpoint
    path = Path(checkpoint) if checkpoint else newest_checkpoint(base=True)
    if path is None or not (path.exists() or path.name in ("best", "last") or hub_name(path, "model")):
        raise UserError(
            f"There is no base model {path or 'under runs/'}; `mini-chat-gpt quickstart` trains one in ten minutes, or name "
            "one: --base MODEL (a folder, a GGUF file, or a name of the hub)."
        )
    return path


def chats_of(config: Config) -> list[Conversation]:
    """The training conversations."""
    return list(read_conversations(config.chats.files, [] if config.chats.skip_bad else None, config.chats.keys))


def check_base(recipe: Recipe, base: Path, parts: Sequence[Part], chats: Sequence[Conversation]) -> None:
    """Raise UserError, before training, if the base can't be read, is too large, or can't read the recipe's records or prompts."""
    stored, tokenizer = open_pair(find_source(base), dtype=None)
    config, context = recipe.config, stored.config.context_length
    _check_size(base, stored, config)
    _check_prompts(recipe, parts, tokenizer, context)
    set_chat_format(tokenizer, config.sft.chat_format, config.data.system_message)
    _check_prompts(recipe, parts, tokenizer, context)
    _check_lengths(base, chats, tokenizer, context, config)


def check_other(recipe: Recipe, path: Path, parts: Sequence[Part]) -> None:
    """Raise UserError if another model can't be read, or can't reply to a prompt."""
    stored, tokenizer = open_pair(find_source(path), dtype=None)
    _check_prompts(recipe, parts, tokenizer, stored.config.context_length)


def _check_size(base: Path, stored: StoredModel, config: Config) -> None:
    n_weights = sum(math.prod(info.shape) for info in stored.infos.values())
    needed = n_weights * (BYTES[config.lora.frozen] if config.lora.enabled else BYTES_IF_TRAINED)
    total = total_memory(pick_device(config.system.device))
    if total is not None and needed > total:
        smaller = (
            "a smaller model" if config.lora.frozen == "nf4" or not config.lora.enabled else "lora.frozen=nf4 (4-bit)"
        )
        raise UserError(
            f"{base} has {n_weights / 1e9:.1f} billion weights, which need at least {format_size(needed)} of memory here, of "
            f"{format_size(total)}; choose {smaller}."
        )


def _check_prompts(recipe: Recipe, parts: Sequence[Part], tokenizer: ChatTokenizer, context: int) -> None:
    """The model must be able to reply to every prompt."""
    check_prompts(recipe.prompts.all, tokenizer, context, str(recipe.folder / PROMPTS))
    system = system_for(recipe.config, tokenizer)
    for part in parts:
        lengths = [len(prompt_ids(tokenizer, prompt, system)) for prompt in prompts_for(part.items, tokenizer)]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] + MIN_REPLY > context:
            raise UserError(
                f"{part.items[longest].place}: this prompt has {lengths[longest]} tokens for the base model, whose context of {context} "
                "leaves no room for a reply; choose a base with a longer context, or shorten the prompt."
            )


def _check_lengths(
    base: Path, chats: Sequence[Conversation], tokenizer: ChatTokenizer, context: int, config: Config
) -> None:
    """Most training records must fit as a whole, unless the user chose what happens to longer ones."""
    if config.chats.too_long != "cut" or not chats:
        return
    lengths = sorted(len(render_spans(chat.messages, tokenizer).ids) for chat in chats)
    for limit, what, remedy in (
        (context, f"the context of {base} holds {context}", "choose a base with a longer context"),
        (
            config.data.seq_len,
            f"data.seq_len is {config.data.seq_len}",
            f"set data.seq_len={min(context, lengths[-1])}",
        ),
    ):
        n_longer = sum(length > limit for length in lengths)
        if n_longer > MAX_TOO_LONG * len(lengths):
            raise UserError(
                f"{n_longer:,} of the {len(lengths):,} training records have up to {lengths[-1]:,} tokens with the tokenizer of "
                f"{base}, but {what}; {remedy}."
            )


def system_for(config: Config, tokenizer: ChatTokenizer) -> System:
    """The system message with which the base is asked: that of the training, if its chat format can have it."""
    message, chat_format = config.data.system_message, tokenizer.chat_format
    if chat_format is None or message is None:
        return USE_FORMAT_DEFAULT
    if not message:
        return None if chat_format.can_omit_system else USE_FORMAT_DEFAULT
    return USE_FORMAT_DEFAULT if isinstance(chat_format, TemplateFormat) and not chat_format.has_system else message

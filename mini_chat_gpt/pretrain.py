"""Pretraining: from plain text to a base model. `mini-chat-gpt pretrain [--config FILE] [section.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_named_tokenizer, load_pair
from mini_chat_gpt.checkpoints.purpose import N_PROMPTS, Purpose, prompts_to_try
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.resources import total_memory
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.text_dataset import sample_texts
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Callback, Job, Prepared, TrainResult
from mini_chat_gpt.training.pretrain_data import Texts, find_texts, make_datasets
from mini_chat_gpt.training.run import RunContext, begin, execute, run_command
from mini_chat_gpt.training.sample_prompts import can_reply, check_prompts

DEFAULT_PROMPT = "Once upon a time"
"""Each evaluation shows how the model continues it, after the user's own prompts."""


def pretrain(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a base model as the config says, and return its run folder and losses.

    `callbacks` are called on rank 0 with (trainer, step, metrics) whenever metrics are logged. One that raises an
    exception is reported and does not end training.
    """
    run = begin(config, config.pretrain)
    return execute(prepare(config, run), config, run, callbacks)


def prepare(config: Config, run: RunContext) -> Prepared:
    """Make the tokenizer, the model and the examples."""
    section = config.pretrain
    texts = find_texts(section)
    for note in texts.notes:
        run.out.print(note, markup=False, soft_wrap=True)
    if run.checkpoint is not None:
        model, tokenizer = load_pair(run.checkpoint)
    else:
        # One rank trains the tokenizer and sends it to the others.
        tokenizer = run.world.broadcast(lambda: make_tokenizer(config, texts.train, run.out))
        model = new_model(config, tokenizer.vocab_size, run.device)
    # Rank 0 of each machine goes first: the first use of a text file writes its tokens to disk.
    with run.world.local_rank_zero_first():
        data = config.data.limited_to(model.config.context_length)
        train, held_out, sentence = make_datasets(texts, data, tokenizer, config.system.seed, run.out)
    run.out.print(sentence, markup=False, soft_wrap=True)
    context = model.config.context_length
    check_prompts(section.prompts, tokenizer, context, "pretrain.prompts")
    prompts = [*section.prompts, *(prompt for prompt in [DEFAULT_PROMPT] if can_reply(prompt, tokenizer, context))]

    def show(model: Model) -> str:
        texts = generate(model, tokenizer, prompts, max_new_tokens=60, temperature=0.0)
        return "\n".join(f"  {prompt}{text}" for prompt, text in zip(prompts, texts, strict=True))

    validation = held_out.first(config.data.eval_examples)
    purpose = Purpose(prompts=beginnings(held_out.first(4 * N_PROMPTS), tokenizer))
    shown = show if prompts else None
    job = Job("pretrain", section, train, validation, shown, files=texts.files, purpose=purpose)
    return Prepared(job, model, tokenizer)


def beginnings(examples: Sequence[Example], tokenizer: ChatTokenizer) -> list[str]:
    """The first words of held-out texts, for the chat's first screen."""
    texts = [tokenizer.decode(example.ids[1:24].tolist()) for example in examples]
    return prompts_to_try(" ".join(text.split()[:5])[:60] for text in texts)


def new_model(config: Config, vocab_size: int, device: torch.device) -> GPT:
    """A model with random weights. Raises UserError, before anything is allocated, if it can't fit into memory."""
    shape = config.model.gpt_config(vocab_size)
    # Weights, gradients and two moments in float32; the tables of rotary positions. A sharded model is on several GPUs.
    needed = 16 * shape.n_parameters + 4 * shape.context_length * shape.head_size
    total = None if config.system.fsdp else total_memory(device)
    if total is not None and needed > total:
        raise UserError(
            f"model: {shape.n_parameters / 1e6:,.0f} M parameters need at least {format_size(needed)} for training, but {device} has "
            f"{format_size(total)}; use a smaller model.preset, n_layer, n_embd, vocab_size or context_length."
        )
    return GPT(shape)


def make_tokenizer(config: Config, texts: Texts, out: Console) -> ChatTokenizer:
    """Load the configured tokenizer, or train one on (at most 50 MB of) the texts."""
    section = config.pretrain
    if section.tokenizer != "train":
        tokenizer = load_named_tokenizer(section.tokenizer)
    else:
        out.print(f"Training a tokenizer of {section.tokenizer_vocab_size:,} entries on {texts.name} …", markup=False)
        tokenizer = ChatTokenizer.train(sample_texts(texts), section.tokenizer_vocab_size)
    # The control tokens get their ids now, so that fine-tuning does not have to grow the embedding table.
    tokenizer.add_control_tokens()
    return tokenizer


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt pretrain` with a parsed command line."""
    return run_command(arguments, pretrain, "pretrain")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("pretrain", argv))


if __name__ == "__main__":
    exit_with(main)

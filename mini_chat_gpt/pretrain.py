"""Pretraining: from plain text to a base model. `mini-chat-gpt pretrain [--config FILE] [section.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.text_dataset import TextDataset, sample_texts, split_documents, tokenize_file
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.records import find_text, stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Callback, Job, Prepared, TrainResult
from mini_chat_gpt.training.run import RunContext, begin, execute, run_command


def pretrain(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a base model as the config's `pretrain`, `model` and `training` sections say.

    `callbacks` are called on rank 0 with (trainer, step, metrics) whenever metrics are recorded.
    """
    run = begin(config, config.pretrain)
    return execute(prepare(config, run), config, run, callbacks)


def prepare(config: Config, run: RunContext) -> Prepared:
    """Tokenizer, model and documents."""
    section, world = config.pretrain, run.world
    text = find_text(section.dataset_path, "train")
    assert text is not None  # find_text raises for a missing train split
    if checkpoint := run.checkpoint:
        tokenizer, model = ChatTokenizer.load(checkpoint), load_model(checkpoint)
    else:
        tokenizer = world.broadcast(lambda: make_tokenizer(config, text, run.out))
        model = GPT(config.model.gpt_config(tokenizer.vocab_size))
    with world.local_rank_zero_first():  # the first use of a file tokenises it
        source, validation = make_sources(config, text, tokenizer, model.config.context_length, run.out)
    beginnings = [*section.prompts, "Once upon a time"]

    def show(trained: GPT) -> str:
        texts = generate(trained, tokenizer, beginnings, max_new_tokens=60, temperature=0.0)
        return "\n".join(f"  {beginning}{text}" for beginning, text in zip(beginnings, texts, strict=True))

    documents = validation.first(config.data.eval_examples)
    files = [path for path in (text, find_text(section.dataset_path, "valid")) if path]
    return Prepared(Job("pretrain", section, source, documents, show, files=files), model, tokenizer)


def make_tokenizer(config: Config, text: Path, out: Console) -> ChatTokenizer:
    """The configured tokenizer: loaded, or trained on (at most 50 MB of) the text."""
    section = config.pretrain
    if section.tokenizer != "train":
        tokenizer = ChatTokenizer.load(section.tokenizer)
    else:
        out.print(f"Training a tokenizer of {section.tokenizer_vocab_size:,} entries on {text} …", markup=False)
        tokenizer = ChatTokenizer.train(sample_texts(stories(text)), section.tokenizer_vocab_size)
    tokenizer.add_control_tokens()
    return tokenizer


def make_sources(
    config: Config, text: Path, tokenizer: ChatTokenizer, context: int, out: Console
) -> tuple[TextDataset, TextDataset]:
    """Training and validation documents. Without a validation file every hundredth document is held out."""
    data, seed = config.data.limited_to(context), config.system.seed
    file = tokenize_file(text, stories(text), tokenizer, out)
    n_documents = min(len(file), data.limit or len(file))
    if valid_text := find_text(config.pretrain.dataset_path, "valid"):
        valid_file = tokenize_file(valid_text, stories(valid_text), tokenizer, out)
        return TextDataset(file, data, seed, np.arange(n_documents)), TextDataset(valid_file, data, seed)
    train, held_out = split_documents(n_documents)
    return TextDataset(file, data, seed, train), TextDataset(file, data, seed, held_out)


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt pretrain` with a parsed command line."""
    return run_command(arguments, pretrain, "pretrain")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("pretrain", argv))


if __name__ == "__main__":
    exit_with(main)

"""A run whose data are missing: its model with made-up examples of the greatest length, from which memory and time are planned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mini_chat_gpt.checkpoints import lora_setup
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.pretrain import make_tokenizer, new_model
from mini_chat_gpt.sft_train import load_base
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import STORY_STEPS, Job, Prepared, Stage
from mini_chat_gpt.training.pretrain_data import Texts
from mini_chat_gpt.training.run import RunContext

SUPERVISED = 0.25
"""Share of the tokens that are replies, in fine-tuning."""


@dataclass(frozen=True)
class MadeUpExamples:
    """A dataset of `length` random tokens each, see `ExampleDataset`. The last ones, a share of `supervised`, are targets."""

    length: int
    vocab_size: int
    supervised: float

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Example:
        ids = np.random.default_rng(index).integers(0, self.vocab_size, self.length, dtype=np.int32)
        loss_mask = np.arange(self.length) >= max(1, round(self.length * (1 - self.supervised)))
        return Example(ids, loss_mask, weight=1.0, kind="made up")

    def __str__(self) -> str:
        return f"made-up examples of {self.length} tokens, {self.supervised:.0%} of them targets"


def prepare_without_data(config: Config, job: str, context: RunContext) -> Prepared:
    """What `prepare` of the job makes, with made-up examples. Raises UserError if the model or its tokenizer is missing as well."""
    section = getattr(config, job)
    if job == "pretrain":
        trained = config.pretrain.tokenizer == "train"
        # A tokenizer would be trained on the data; its size is known.
        tokenizer = (
            ChatTokenizer.train(["Once"], 260) if trained else make_tokenizer(config, _no_texts(config), context.out)
        )
        size = config.pretrain.tokenizer_vocab_size if trained else tokenizer.vocab_size
        model, share = new_model(config, config.model.vocab_size or size, context.device), 1.0
    else:
        lora_setup.check(config)
        base = load_base(config, context)
        if config.lora.enabled:
            lora_setup.adapt(base, config, context.folder, context.world, context.device, dry_run=True)
        model, tokenizer, share = base.model, base.tokenizer, SUPERVISED
    longest = model.config.context_length

    def examples(seq_len: int) -> MadeUpExamples:
        return MadeUpExamples(min(seq_len, longest), model.config.vocab_size, share)

    source = examples(config.data.seq_len)
    stages = [
        Stage(stage.share, examples(stage.seq_len or config.data.seq_len), stage.tokens_per_step, stage.weight_decay)
        for stage in (config.data.curriculum if job == "sft" else ())
    ]
    if section.epochs is None and not isinstance(section.max_steps, int):
        section = section.model_copy(update={"max_steps": STORY_STEPS})
    validation = [source[len(source) + index] for index in range(min(64, config.data.eval_examples))]
    return Prepared(Job(job, section, source, validation, stages=stages), model, tokenizer)


def _no_texts(config: Config) -> Texts:
    return Texts("", (), config.pretrain)

"""Prefix sharing: several questions about a story that is computed once: `python benchmarks/shared_stories.py [--tasks 4] [--data FILE]`.

Conversations that begin with the same story, as separate examples and as prefix branches of one example: conversations per
second of the training step, alternately on the same model (8 layers × 384, AdamW), and the difference of the gradients. The
upper limit of the gain is the ratio of the numbers of tokens. Without `--data` the stories are those of the generated sample.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch

from mini_chat_gpt.common.device import Precision, gc_frozen, keep_freed_memory, pick_device, pick_precision
from mini_chat_gpt.config import DataSection, GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.model import GPT
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.sft_dataloader import InstructDataset, stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.train_step import TrainStep


def branched_examples(path: Path, tasks: int, vocab_size: int) -> list[Example]:
    """Examples with exactly `tasks` branches, among the first thousand."""
    tokenizer = ChatTokenizer.train(islice(stories(path), 2000), vocab_size)
    tokenizer.add_control_tokens()
    source = InstructDataset(path, tokenizer, DataSection(seq_len=512, turns=1, prefix_branches=tasks), seed=1)
    return [example for example in map(source.__getitem__, range(1000)) if len(example.prefix_branches) == tasks]


def separate_examples(branched: Example) -> list[Example]:
    """The conversations of a branched example as separate ones. Only the answers are supervised, and they aren't shared."""
    result, common = [], branched.prefix_branches[0]
    weight = np.broadcast_to(branched.weight, len(branched.ids))
    for start, end in pairwise((*branched.prefix_branches, len(branched.ids))):
        own = [*range(common), *range(start, end)]
        result.append(Example(branched.ids[own], branched.loss_mask[own], weight[own], branched.kind))
    return result


def step_seconds(engine: TrainStep, examples: list[Example]) -> float:
    started = time.perf_counter()
    engine.train_step(examples)  # reads the loss, which waits for the GPU
    return time.perf_counter() - started


def difference(model: GPT, branched: list[Example], separate: list[Example]) -> float:
    """Largest difference of a gradient, relative to the largest gradient of its parameter, in float32."""
    config = parse_config({"training": {"batch_size": 64, "grad_clip": 0}}, "benchmark")
    engine = TrainStep(model, config, config.sft, Precision(torch.float32, ""))
    gradients = []
    for examples in (branched, separate):
        engine.train_step(examples, update=False)
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad()
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(*gradients, strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Conversations that share a story: prefix branches compared with separate examples."
    )
    parser.add_argument("--data", type=Path, help="a TinyStories-Instruct file (default: the generated sample)")
    parser.add_argument("--tasks", type=int, default=4, help="conversations per story")
    parser.add_argument("--stories", type=int, default=4, help="stories per step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            write_sample(Path(folder))
        path = arguments.data or Path(folder) / "TinyStoriesInstruct-train.txt"
        examples = branched_examples(path, arguments.tasks, arguments.vocab_size)
    device = pick_device()
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=arguments.vocab_size, n_layer=8, n_head=6, n_embd=384, context_length=512)
    model = GPT(shape).to(device)
    config = parse_config({"training": {"batch_size": 64}}, "benchmark")
    engine = TrainStep(model, config, config.sft, pick_precision("auto", device))
    ratios, rates, tokens = [], [], []
    first_two = [conversation for example in examples[:2] for conversation in separate_examples(example)]
    print(f"gradients differ by {difference(model, examples[:2], first_two):.1e} of the largest")
    with gc_frozen():
        for number in range(arguments.steps + 1):
            branched = [examples[(number * arguments.stories + i) % len(examples)] for i in range(arguments.stories)]
            separate = [conversation for example in branched for conversation in separate_examples(example)]
            slow, fast = step_seconds(engine, separate), step_seconds(engine, branched)
            if number:  # the first step creates kernels
                ratios.append(slow / fast)
                rates.append((len(separate) / slow, len(separate) / fast))
                tokens.append(sum(len(e.ids) for e in separate) / sum(len(e.ids) for e in branched))
    separate_rate, shared_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"{arguments.tasks} conversations per story, {engine.precision.reason.split(':')[0]}, {arguments.threads} thread(s)"
    )
    print(
        f"separate {separate_rate:.1f} conversations/s, shared {shared_rate:.1f}: {statistics.median(ratios):.2f} times"
    )
    print(f"{statistics.median(tokens):.2f} times fewer tokens (the limit of the gain)")


if __name__ == "__main__":
    main()

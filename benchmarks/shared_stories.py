"""One story, several questions, read once: `python benchmarks/shared_stories.py [--tasks 4] [--data FILE]`.

Conversations about the same story that begin with it, as examples of their own and as branches of one: conversations a second of
the training step, by turns on the same model (8 layers × 384, AdamW), and how far loss and gradient differ. The limit is the
number of tokens that need not be read again. Without `--data` the stories are those of the generated sample.
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
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.model import GPT
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.sft_dataloader import InstructDataset, stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.train_step import TrainStep


def families(path: Path, tasks: int, vocab_size: int) -> list[Example]:
    """Examples with so many branches, of the first thousand slots."""
    tokenizer = ChatTokenizer.train(islice(stories(path), 2000), vocab_size)
    tokenizer.add_control_tokens()
    source = InstructDataset(path, tokenizer, seq_len=512, seed=1, turns=1, prefix_branches=tasks)
    return [example for example in map(source.__getitem__, range(1000)) if len(example.prefix_branches) == tasks]


def apart(family: Example) -> list[Example]:
    """The conversations of an example as examples of their own; the loss is on the answers alone, which aren't shared."""
    made, common = [], family.prefix_branches[0]
    weight = np.broadcast_to(family.weight, len(family.ids))
    for start, end in pairwise((*family.prefix_branches, len(family.ids))):
        own = [*range(common), *range(start, end)]
        made.append(Example(family.ids[own], family.loss_mask[own], weight[own], family.kind))
    return made


def step_seconds(engine: TrainStep, examples: list[Example]) -> float:
    started = time.perf_counter()
    engine.step(examples)  # reads the loss, so that a GPU has finished
    return time.perf_counter() - started


def difference(model: GPT, family: list[Example], separate: list[Example]) -> float:
    """Largest difference of a gradient, as a part of the largest gradient of its parameter, in float32."""
    config = parse_config({"training": {"batch_size": 64, "grad_clip": 0}}, "benchmark")
    engine = TrainStep(model, config, config.sft, Precision(torch.float32, ""))
    found = []
    for examples in (family, separate):
        engine.accumulate(examples)
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad()
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(*found, strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Conversations that share a story, read once against one by one.")
    parser.add_argument("--data", type=Path, help="a TinyStories-Instruct file (default: the generated sample)")
    parser.add_argument("--tasks", type=int, default=4, help="conversations a story")
    parser.add_argument("--stories", type=int, default=4, help="stories a step")
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
        made = families(path, arguments.tasks, arguments.vocab_size)
    device = pick_device()
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=arguments.vocab_size, n_layer=8, n_head=6, n_embd=384, context_length=512)
    model = GPT(shape).to(device)
    config = parse_config({"training": {"batch_size": 64}}, "benchmark")
    engine = TrainStep(model, config, config.sft, pick_precision("auto", device))
    ratios, rates, tokens = [], [], []
    print(f"gradients differ by {difference(model, made[:2], apart(made[0]) + apart(made[1])):.1e} of the largest")
    with gc_frozen():
        for number in range(arguments.steps + 1):
            family = [made[(number * arguments.stories + i) % len(made)] for i in range(arguments.stories)]
            separate = [conversation for each in family for conversation in apart(each)]
            slow, fast = step_seconds(engine, separate), step_seconds(engine, family)
            if number:  # the first prepares kernels
                ratios.append(slow / fast)
                rates.append((len(separate) / slow, len(separate) / fast))
                tokens.append(sum(len(e.ids) for e in separate) / sum(len(e.ids) for e in family))
    one_by_one, shared = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"{arguments.tasks} conversations a story, {engine.precision.reason.split(':')[0]}, {arguments.threads} thread(s)"
    )
    print(f"one by one {one_by_one:.1f} conversations/s, shared {shared:.1f}: {statistics.median(ratios):.2f} times")
    print(f"tokens to read: {statistics.median(tokens):.2f} times fewer (the limit)")


if __name__ == "__main__":
    main()

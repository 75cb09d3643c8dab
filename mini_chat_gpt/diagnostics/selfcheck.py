"""`mini-chat-gpt selfcheck`: check that this machine computes training and decoding correctly.

Runs in float32 on a small random model, or on a model of yours. Each check computes the same result in two ways and prints
the difference: the loss and gradients of a step must not depend on micro-batches and processes, packing must not change the
loss of an example, and decoding with a KV cache must give the logits of a full forward pass.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common import distributed
from mini_chat_gpt.common.child_processes import end_with_parent
from mini_chat_gpt.common.device import pick_device, pick_precision
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import scratch_folder
from mini_chat_gpt.common.terminal import console, format_duration
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example, collate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.train_step import TrainStep

TOLERANCE = 1e-5
"""Largest relative difference in float32; another order of the same additions stays below it."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Check:
    """The difference between two ways of computing the same result."""

    what: str
    difference: float  # the largest absolute difference, relative to the largest value
    limit: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit  # False for NaN


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference, divided by the largest absolute value of `expected`."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def gradient_check(what: str, actual: Tensors, expected: Tensors) -> Check:
    """Compare the loss and every parameter's gradient, and keep the largest difference."""
    return Check(what, max(relative_difference(actual[name], expected[name]) for name in expected))


def make_model(arguments: argparse.Namespace, device: torch.device) -> GPT:
    """Load the user's checkpoint, or make random weights in the shape of the user's config or of a small model."""
    if arguments.checkpoint:
        model, _ = load_checkpoint(arguments.checkpoint, device)
        return model.float()
    torch.manual_seed(0)
    if arguments.config:
        config = arguments.settings
        shape = config.model.gpt_config(config.pretrain.tokenizer_vocab_size)
    else:
        shape = GPTConfig(vocab_size=512, context_length=128, n_layer=3, n_head=4, n_kv_head=2, n_embd=64)
    model = GPT(shape)
    with torch.no_grad():  # right after initialization attention is nearly uniform, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
    return model.to(device)


def make_examples(model: GPT, n: int = 8) -> list[Example]:
    """Make random examples with very different lengths, loss masks and weights."""
    rng = np.random.default_rng(0)
    longest = min(model.config.context_length, 256)
    examples = []
    for number in range(n):
        length = int(rng.integers(2, longest + 1)) if number else longest
        trained = rng.random(length) < rng.choice([0.1, 0.5, 1.0])
        trained[-1] = True
        ids = rng.integers(0, model.config.vocab_size, length).astype(np.int32)
        examples.append(Example(ids, trained, float(rng.choice([0.3, 1.0, 3.0])), kind="random"))
    return examples


def step_gradient(model: GPT, examples: Sequence[Example], batch_size: int, world: World = ALONE) -> Tensors:
    """Loss and gradients of one optimizer step as training computes them; `examples` are those of this rank."""
    training = {"batch_size": batch_size, "examples_per_step": 8, "grad_clip": 0.0}
    config = parse_config({"training": training}, "selfcheck")
    engine = TrainStep(model, config, config.sft, pick_precision(False, model.device), world)
    loss = engine.train_step(examples, update=False).loss
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    engine.optimizer.zero_grad()
    return gradients | {"loss": torch.tensor(loss)}


def plain_gradient(model: GPT, examples: Sequence[Example]) -> Tensors:
    """The plain formula for the same step: all logits of one conversation at a time, and one division at the end."""
    model.train()
    loss_sum, weight_sum = torch.zeros((), device=model.device), 0.0
    for example in examples:
        losses, weights = plain_losses(model, example)
        loss_sum, weight_sum = loss_sum + (losses * weights).sum(), weight_sum + float(weights.sum())
    (loss_sum / weight_sum).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients | {"loss": (loss_sum / weight_sum).detach()}


def plain_losses(model: GPT, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and weight of every supervised token of one conversation, without packing: two tensors of shape (R,)."""
    ids = torch.from_numpy(example.ids).long().to(model.device)
    losses = F.cross_entropy(model(ids[None])[0, :-1].float(), ids[1:], reduction="none")
    trained = torch.from_numpy(example.loss_mask[1:]).to(model.device)
    return losses[trained], torch.full((int(trained.sum()),), float(example.weight), device=model.device)


@torch.no_grad()
def batched_check(model: GPT, examples: Sequence[Example]) -> Check:
    """Compare the loss of each supervised token in a packed row with its loss when its conversation is run alone."""
    model.eval()
    batch = collate(examples)
    packed = model(batch.to(model.device)).losses[: batch.n_targets]
    alone = torch.cat([plain_losses(model, example)[0] for example in examples])
    return Check("packed conversations = each alone", relative_difference(packed, alone))


@torch.no_grad()
def cache_check(model: GPT, examples: Sequence[Example]) -> Check:
    """Compare the logits of the last 16 tokens, decoded one by one with a KV cache, with those of one forward pass."""
    model.eval()
    ids = torch.from_numpy(max(examples, key=lambda example: len(example.ids)).ids).long().to(model.device)[None]
    whole, begin = model(ids)[0], max(1, ids.shape[1] - 16)
    cache = model.make_cache(1)
    steps = [model.next_logits(ids[:, :begin], cache, [begin])]
    steps += [model.next_logits(ids[:, at : at + 1], cache, [1]) for at in range(begin, ids.shape[1])]
    return Check(
        "decoding with a KV cache = full forward pass", relative_difference(torch.cat(steps), whole[begin - 1 :])
    )


TORCHRUN = """
from mini_chat_gpt.common.child_processes import end_with_parent
end_with_parent({parent})
from torch.distributed.run import main
main()
"""


def ranks_gradient(argv: Sequence[str]) -> Tensors:
    """Loss and gradients of the step in two processes, started by torchrun as training is."""
    with scratch_folder() as folder:
        file = folder / "gradient.safetensors"
        torchrun = ["-c", TORCHRUN.format(parent=os.getpid()), "--standalone", "--nproc_per_node=2"]
        command = [
            sys.executable,
            *torchrun,
            "-m",
            "mini_chat_gpt.diagnostics.selfcheck",
            *argv,
            "--ranks-to",
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            errors = re.findall(r"^.*(?:\berror|Error|exitcode ?): .*$", done.stderr, re.MULTILINE) or [
                "no error message"
            ]
            raise UserError(f"Two processes can't train together here: {errors[0].strip()}")
        return load_file(file)


def run_rank(arguments: argparse.Namespace) -> int:
    """Run one of the two processes on its half of the examples; rank 0 writes the gradients of the whole step."""
    end_with_parent(os.getppid())
    two_gpus = torch.cuda.device_count() >= 2 and arguments.device != "cpu"
    world = distributed.join("cuda" if two_gpus else "cpu")
    device = torch.device("cuda", world.local_rank) if two_gpus else torch.device("cpu")
    model = make_model(arguments, device)
    gradients = step_gradient(model, make_examples(model)[world.rank :: world.size], 4, world)
    if world.is_main:
        save_file({name: tensor.cpu().contiguous() for name, tensor in gradients.items()}, arguments.ranks_to)
    distributed.leave()
    return 0


def checks(arguments: argparse.Namespace, argv: Sequence[str], device: torch.device) -> Iterator[Check]:
    """Run the checks one after the other."""
    model = make_model(arguments, device)
    examples = make_examples(model)
    plain = plain_gradient(model, examples)
    one_batch = step_gradient(model, examples, 8)
    yield gradient_check("1 micro-batch of 8 = the plain formula", one_batch, plain)
    yield gradient_check("8 micro-batches of 1 = 1 of 8", step_gradient(model, examples, 1), one_batch)
    backend = "nccl" if torch.cuda.device_count() >= 2 and arguments.device != "cpu" else "gloo"
    yield gradient_check(f"2 processes with 4 each ({backend}) = 1 with 8", ranks_gradient(argv), one_batch)
    yield batched_check(model, examples)
    yield cache_check(model, examples)


def report(results: Sequence[Check], out: Console) -> None:
    """Print the results as a table."""
    table = Table("check", "difference", "limit", "", box=None)
    for check in results:
        verdict = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        table.add_row(check.what, f"{check.difference:.1e}", f"{check.limit:.0e}", verdict)
    out.print(table)


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt selfcheck` with a parsed command line; exit code 1 if a check fails."""
    if arguments.ranks_to:
        return run_rank(arguments)
    out, started = console(), time.monotonic()
    child_arguments = [
        part
        for name in ("checkpoint", "config", "device")
        if (value := getattr(arguments, name))
        for part in (f"--{name}", value)
    ]
    device = pick_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    out.print(f"Loss and gradients in float32 on {device}; differences relative to the largest value", markup=False)
    results = list(checks(arguments, child_arguments, device))
    report(results, out)
    failed = sum(not check.passed for check in results)
    verdict = "All checks passed" if not failed else f"{failed} of {len(results)} checks FAILED"
    out.print(f"{verdict} in {format_duration(time.monotonic() - started)}.", markup=False)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("selfcheck", argv))


if __name__ == "__main__":
    exit_with(main)

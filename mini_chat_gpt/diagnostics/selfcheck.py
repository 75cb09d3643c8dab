"""`mini-chat-gpt selfcheck`: does this machine compute what the mathematics says?

In float32, on a small random model or on one of yours: the loss and gradient of a step don't depend on how it is cut into
micro-batches and processes, examples laid end to end give what each gives alone, and decoding with a cache gives what
reading everything again gives. Every check compares two ways of computing the same thing and prints their difference.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common import distributed
from mini_chat_gpt.common.device import pick_device, pick_precision
from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import format_duration
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.config_file import load_config, parse_config
from mini_chat_gpt.data.batching import Example, collate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.train_step import TrainStep

LIMIT = 1e-5
"""Largest relative difference in float32: what another order of the same additions may come to."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Check:
    """Two ways of computing the same, and how far apart they are."""

    what: str
    difference: float  # largest, relative to the largest value
    limit: float = LIMIT

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit  # not so for NaN


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference, as a part of the largest absolute value of `theirs`."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def gradient_check(what: str, ours: Tensors, theirs: Tensors) -> Check:
    """Of a step's loss and of every parameter's gradient, the one that differs most."""
    return Check(what, max(difference(ours[name], theirs[name]) for name in theirs))


def make_model(arguments: argparse.Namespace, device: torch.device) -> GPT:
    """The user's checkpoint; or random weights in the shape of the user's config, or of a small model."""
    if arguments.checkpoint:
        model, _ = load_checkpoint(arguments.checkpoint, device)
        return model.float()
    torch.manual_seed(0)
    if arguments.config:
        config = load_config(arguments.config)
        shape = config.model.gpt_config(config.pretrain.tokenizer_vocab_size)
    else:
        shape = GPTConfig(vocab_size=512, context_length=128, n_layer=3, n_head=4, n_kv_head=2, n_embd=64)
    model = GPT(shape)
    with torch.no_grad():  # away from the initialisation, where attention is nearly uniform and would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
    return model.to(device)


def make_examples(model: GPT, n: int = 8) -> list[Example]:
    """Random conversations of very different lengths, trained parts and weights."""
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
    """Loss and gradients of one optimizer step as training computes them; `examples` are this rank's."""
    training = {"batch_size": batch_size, "examples_per_step": 8, "grad_clip": 0.0}
    config = parse_config({"training": training}, "selfcheck")
    engine = TrainStep(model, config, config.sft, pick_precision(False, model.device), world)
    loss = sum(world.sum([engine.accumulate(examples).own_loss]))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    engine.optimizer.zero_grad()
    return found | {"loss": torch.tensor(loss)}


def plain_gradient(model: GPT, examples: Sequence[Example]) -> Tensors:
    """The same, written down plainly: all logits of one conversation after the other, one division at the end."""
    model.train()
    top, bottom = torch.zeros((), device=model.device), 0.0
    for example in examples:
        losses, weights = plain_losses(model, example)
        top, bottom = top + (losses * weights).sum(), bottom + float(weights.sum())
    (top / bottom).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found | {"loss": (top / bottom).detach()}


def plain_losses(model: GPT, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, weight) of every target of one conversation, read alone."""
    ids = torch.from_numpy(example.ids).long().to(model.device)
    losses = F.cross_entropy(model(ids[None])[0, :-1].float(), ids[1:], reduction="none")
    trained = torch.from_numpy(example.loss_mask[1:]).to(model.device)
    return losses[trained], torch.full((int(trained.sum()),), float(example.weight), device=model.device)


@torch.no_grad()
def batched_check(model: GPT, examples: Sequence[Example]) -> Check:
    """The loss of each target, with all conversations laid end to end and with each read alone."""
    model.eval()
    together = model(collate(examples).to(model.device)).losses
    alone = torch.cat([plain_losses(model, example)[0] for example in examples])
    return Check("conversations laid end to end = each alone", difference(together, alone))


@torch.no_grad()
def cache_check(model: GPT, examples: Sequence[Example]) -> Check:
    """Logits after each of the last 16 tokens, read one by one into a cache, and all read at once."""
    model.eval()
    ids = torch.from_numpy(max(examples, key=lambda example: len(example.ids)).ids).long().to(model.device)[None]
    whole, begin = model(ids)[0], max(1, ids.shape[1] - 16)
    cache = model.make_cache(1)
    steps = [model.next_logits(ids[:, :begin], cache, [begin])]
    steps += [model.next_logits(ids[:, at : at + 1], cache, [1]) for at in range(begin, ids.shape[1])]
    return Check("decoding with a cache = reading all again", difference(torch.cat(steps), whole[begin - 1 :]))


def ranks_gradient(argv: Sequence[str]) -> Tensors:
    """Loss and gradients of the step in two processes, started by torchrun as training would be."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradient.safetensors"
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
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
            said = re.findall(r"^.*(?:\berror|Error|exitcode ?): .*$", done.stderr, re.MULTILINE) or [
                "nothing was said"
            ]
            raise UserError(f"Two processes can't work together here: {said[0].strip()}")
        return load_file(file)


def run_rank(arguments: argparse.Namespace) -> int:
    """One of two processes: its half of the examples; rank 0 writes what came of the whole step."""
    enough = torch.cuda.device_count() >= 2 and arguments.device != "cpu"
    world = distributed.join("cuda" if enough else "cpu")
    device = torch.device("cuda", world.local_rank) if enough else torch.device("cpu")
    model = make_model(arguments, device)
    found = step_gradient(model, make_examples(model)[world.rank :: world.size], 4, world)
    if world.is_main:
        save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, arguments.ranks_to)
    distributed.leave()
    return 0


def checks(arguments: argparse.Namespace, argv: Sequence[str], device: torch.device) -> Iterator[Check]:
    """All of them, one after the other."""
    model = make_model(arguments, device)
    examples = make_examples(model)
    plain = plain_gradient(model, examples)
    at_once = step_gradient(model, examples, 8)
    yield gradient_check("1 micro-batch of 8 = written down plainly", at_once, plain)
    yield gradient_check("8 micro-batches of 1 = 1 of 8", step_gradient(model, examples, 1), at_once)
    backend = "nccl" if torch.cuda.device_count() >= 2 and arguments.device != "cpu" else "gloo"
    yield gradient_check(f"2 processes with 4 each ({backend}) = 1 with 8", ranks_gradient(argv), at_once)
    yield batched_check(model, examples)
    yield cache_check(model, examples)


def report(results: Sequence[Check], out: Console) -> None:
    """The table that a user sees."""
    table = Table("check", "difference", "limit", "", box=None)
    for check in results:
        verdict = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        table.add_row(check.what, f"{check.difference:.1e}", f"{check.limit:.0e}", verdict)
    out.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description="Check that batches, processes and caches change nothing, in a minute."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", help="check this model instead of a small random one")
    which.add_argument("--config", help="check random weights in the shape of this file's model section")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--ranks-to", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.ranks_to:
        return run_rank(arguments)
    out, started = Console(highlight=False), time.monotonic()
    given = [
        part
        for name in ("checkpoint", "config", "device")
        if (value := getattr(arguments, name))
        for part in (f"--{name}", value)
    ]
    device = pick_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    out.print(f"Loss and gradients in float32 on {device}; differences relative to the largest value", markup=False)
    results = list(checks(arguments, given, device))
    report(results, out)
    failed = sum(not check.passed for check in results)
    verdict = "All checks passed" if not failed else f"{failed} of {len(results)} checks FAILED"
    out.print(f"{verdict} in {format_duration(time.monotonic() - started)}.", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    exit_with(main)

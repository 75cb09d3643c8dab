"""What the two parts of gpu.sh share: where they run, models with random weights, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mini_chat_gpt.common.device import Precision, pick_device, pick_precision
from mini_chat_gpt.config import Config, GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics.selfcheck import Tensors, relative_difference
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.train_step import LossScale, TrainStep


@dataclass(frozen=True)
class Setup:
    """Where and how large everything runs."""

    device: torch.device
    precision: Precision  # the best 16-bit one of the device, as a run chooses it
    tiny: bool

    @property
    def card(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {torch.get_num_threads()} threads"


def make_setup(device_name: str = "auto", tiny: bool = False) -> Setup:
    """Choose device and precision. Without a GPU the 16-bit parts run in bf16, too, however slow that is."""
    device = pick_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    precision = pick_precision("auto", device)
    if precision.dtype == torch.float32:
        precision = Precision(torch.bfloat16, "bf16, although this device has no fast one")
    return Setup(device, precision, tiny)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


FLOAT32 = Precision(torch.float32, "float32")
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24}
"""The largest relative error of rounding to a dtype."""


@dataclass(frozen=True)
class Result:
    """A measured difference and its limit."""

    what: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit  # False for NaN


def shape(setup: Setup, **changes: object) -> GPTConfig:
    """A model with grouped-query attention and heads of 64 (tiny: 16)."""
    fields = {"vocab_size": 8192, "context_length": 512, "n_layer": 4, "n_head": 9, "n_kv_head": 3, "n_embd": 576}
    tiny = {"vocab_size": 256, "context_length": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
    return GPTConfig(**(tiny if setup.tiny else fields) | changes)


def make_model(setup: Setup, device: torch.device | None = None, **changes: object) -> GPT:
    """A model with random weights for which attention is far from uniform, so that mistakes in it are visible."""
    torch.manual_seed(0)
    model = GPT(shape(setup, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
    return model.to(device or setup.device)


def make_config(**training: object) -> Config:
    settings = {"batch_size": 8, "examples_per_step": 8, "grad_clip": 0.0} | training
    return parse_config({"training": settings, "sft": {"learning_rate": 1e-3}}, "gpu.sh")


def gradient(model: GPT, examples: Sequence[Example], precision: Precision, scale: LossScale | None = None) -> Tensors:
    """Loss and gradients of one step as training computes them."""
    config = make_config()
    engine = TrainStep(model, config, config.sft, precision)
    engine.loss_scale = scale or engine.loss_scale
    loss = engine.train_step(examples, update=False).loss
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    engine.optimizer.zero_grad()
    return gradients | {"loss": torch.tensor(loss)}


def largest(actual: Tensors, expected: Tensors) -> float:
    """The largest relative difference of any tensor; infinite if one is missing."""
    if actual.keys() != expected.keys():
        return math.inf
    return max(relative_difference(actual[name], expected[name]) for name in expected)


def norm_difference(actual: Tensors, expected: Tensors) -> float:
    """|a − b| / |b| of all gradients as one vector: rounding errors of single small ones don't count."""
    pairs = [
        (actual[name].detach().double().cpu(), expected[name].detach().double().cpu())
        for name in expected
        if name != "loss"
    ]
    return math.sqrt(
        sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    )

"""Predicted and measured memory of training: `python benchmarks/memory_plan.py [--steps 20] [--only 30m]`.

For each setting, mini_chat_gpt/diagnostics/memory_plan.py predicts the memory; then another process trains on the same
examples and reports its peak memory. Prints one line per setting: predicted, measured, ratio.

    python benchmarks/memory_plan.py --steps 4 --model MODEL --chats FILE [SECTION.KEY=VALUE ...]

compares `mini-chat-gpt doctor` with `mini-chat-gpt sft` instead: a model is fine-tuned on chats, all of its weights, with LoRA,
and with QLoRA. Each command is a process of its own, which loads the model and reads the chats.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file

import mini_chat_gpt.training.run  # noqa: F401  (a real run has imported it)
from mini_chat_gpt.common.device import Precision, set_up
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.config import PRESETS, Config, GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics.memory_plan import MemoryPlan, plan_memory
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.train_step import TrainStep


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    preset: str
    vocab_size: int
    dtype: str
    optimizer: str = "adamw"
    ema: bool = False
    checkpointing: bool = False
    batch_size: int = 4
    longest: int = 512

    def __str__(self) -> str:
        parts = [self.preset, f"{self.vocab_size:,}", self.dtype, self.optimizer, f"{self.batch_size}x{self.longest}"]
        return " ".join([*parts, *["ema"] * self.ema, *["checkpointing"] * self.checkpointing])

    def gpt_config(self) -> GPTConfig:
        return GPTConfig(**PRESETS[self.preset] | {"vocab_size": self.vocab_size})

    def config(self) -> Config:
        training = {
            "batch_size": self.batch_size,
            "examples_per_step": 2 * self.batch_size,
            "optimizer": self.optimizer,
        }
        training |= {"ema": 0.99 if self.ema else None, "activation_checkpointing": self.checkpointing}
        return parse_config({"training": training, "system": {"threads": 1}, "wandb": {"enabled": False}}, "benchmark")


def settings() -> Iterator[Setting]:
    """Every size with every option at least once, not every combination."""
    for preset in ("1m", "15m", "30m"):
        for vocab_size in (4096, 50304):
            yield Setting(preset, vocab_size, "float32")
            yield Setting(preset, vocab_size, "bfloat16")
            yield Setting(preset, vocab_size, "float32", "muon", ema=True)
            yield Setting(preset, vocab_size, "bfloat16", "muon", ema=True, checkpointing=True)
    yield Setting("30m", 4096, "float32", checkpointing=True, batch_size=16)
    yield Setting("30m", 4096, "bfloat16", batch_size=16, longest=256)


def steps_of(setting: Setting, n: int) -> list[list[Example]]:
    """Examples of between a third of and the full longest length, with the last 40 % of the tokens supervised."""
    rng, steps = np.random.default_rng(0), []
    for _ in range(n):
        lengths = rng.integers(setting.longest // 3, setting.longest + 1, 2 * setting.batch_size)
        steps.append(
            [Example(np.zeros(n, dtype=np.int32), np.arange(n) >= 0.6 * n, 1.0, "x") for n in map(int, lengths)]
        )
    return steps


def measure(setting: Setting, n_steps: int) -> int:
    """Train in this process, with evaluations and checkpoints, and return its peak memory in bytes.

    Simulates a slow disk: the copy that is being written stays in memory until the next step is done.
    """
    config = setting.config()
    set_up(config.system.seed, config.system.threads)
    engine = TrainStep(
        GPT(setting.gpt_config()), config, config.sft, Precision(getattr(torch, setting.dtype), ""), device=device()
    )
    engine.model.activation_checkpointing = setting.checkpointing
    steps = steps_of(setting, n_steps)
    snapshot = None
    for number, step in enumerate(steps):
        engine.train_step(step, step=number)
        snapshot = None
        if number in (n_steps // 3, 2 * n_steps // 3):
            with engine.averaged():
                engine.evaluate(steps[0][: max(8, setting.batch_size)])
            snapshot = engine.snapshot(cast(ChatTokenizer, None), {}, {})
            with tempfile.TemporaryDirectory() as folder:
                for name, tensors in snapshot.tensors.items():
                    save_file(tensors, Path(folder) / name)
    del snapshot
    return peak_memory(device())


def predict(setting: Setting, n_steps: int) -> MemoryPlan:
    config, steps = setting.config(), steps_of(setting, n_steps)
    validation = steps[0][: max(8, setting.batch_size)]
    dtype = getattr(torch, setting.dtype)
    return plan_memory(setting.gpt_config(), steps, config, config.sft, device(), dtype, validation)


ADAPTERS = {"all weights": [], "LoRA": ["lora.enabled=true"], "QLoRA": ["lora.enabled=true", "lora.frozen=nf4"]}

PREDICT_RUN = """
import dataclasses, json, sys
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.diagnostics.doctor import prepare_run
plan = prepare_run(load_config(None, sys.argv[1:]), "sft").plan()
print(json.dumps({**dataclasses.asdict(plan), "total": plan.total}))
"""
# As on a slow disk: the copy for a checkpoint stays in memory until the next step is done, which is what is predicted.
MEASURE_RUN = """
import sys, threading
from mini_chat_gpt.checkpoints.save import CheckpointWriter, Snapshot
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.sft_train import main
from mini_chat_gpt.training.train_step import TrainStep

train_step, write, wait, may_write = TrainStep.train_step, Snapshot.write, CheckpointWriter.wait, threading.Event()

def step_then_write(*arguments, **options):
    report = train_step(*arguments, **options)
    may_write.set()
    return report

def write_later(self, folder, *arguments, **options):
    if threading.current_thread() is not threading.main_thread():
        may_write.wait()
    return write(self, folder, *arguments, **options)

def no_longer(self):
    may_write.set()
    wait(self)
    may_write.clear()

TrainStep.train_step, Snapshot.write, CheckpointWriter.wait = step_then_write, write_later, no_longer
code = main(sys.argv[1:])
print(peak_memory("cpu"))
sys.exit(code)
"""


def compare_runs(model: str, chats: str, n_steps: int, more: list[str], only: str) -> None:
    """Print one line for each way to fine-tune a model: what doctor predicts, and the peak of the run itself."""
    brief = [f"sft.pretrained_checkpoint={model}", f"chats.files={chats}", f"sft.max_steps={n_steps}"]
    brief += ["sft.eval_interval=2", "sft.save_interval=2", "data.eval_examples=8"]
    brief += ["system.device=cpu", "system.threads=1", "wandb.enabled=false"]
    print(f"{'trained':<14} predicted  measured   ratio   parts of the prediction, MiB")
    for name, settings in ADAPTERS.items():
        if not name.startswith(only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*brief, *settings, f"sft.save_dir={folder}/run", *more]
            plan = json.loads(_last_line(PREDICT_RUN, arguments))
            measured = int(_last_line(MEASURE_RUN, arguments))
        parts = {part: size >> 20 for part, size in plan.items() if isinstance(size, int) and size >> 20}
        total = parts.pop("total")
        text = ", ".join(f"{part} {size:,}" for part, size in parts.items())
        print(
            f"{name:<14} {total:>5} MiB {measured >> 20:>6} MiB {plan['total'] / measured:>7.2f}   {text}", flush=True
        )


def _last_line(program: str, arguments: list[str]) -> str:
    """The last line that a program prints in a new process."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or done.stdout)
    return done.stdout.strip().splitlines()[-1]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Predicted and measured memory of training.")
    parser.add_argument("--steps", type=int, default=20, help="steps to train")
    parser.add_argument("--only", default="", help="settings whose line contains this")
    parser.add_argument("--model", help="fine-tune this model instead of new ones")
    parser.add_argument("--chats", help="with --model: a file of chats")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="with --model: further settings")
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(Setting(**json.loads(arguments.measure)), arguments.steps))
        return
    if arguments.model:
        compare_runs(arguments.model, arguments.chats, arguments.steps, arguments.settings, arguments.only)
        return
    print(f"{'setting':<46} predicted  measured   ratio   predicted in")
    for setting in settings():
        if arguments.only not in str(setting):
            continue
        started = time.monotonic()
        plan = predict(setting, arguments.steps)
        seconds = time.monotonic() - started
        command = [sys.executable, __file__, "--steps", str(arguments.steps), "--measure", json.dumps(asdict(setting))]
        measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        ratio = plan.total / measured
        print(
            f"{setting!s:<46} {plan.total >> 20:>5} MiB {measured >> 20:>6} MiB {ratio:>7.2f} {seconds:>8.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

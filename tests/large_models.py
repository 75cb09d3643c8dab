"""Models of real sizes with random weights from a Hugging Face folder: imported, fine-tuned with LoRA and QLoRA, and asked over a pipe.

The weights are in bf16 and in shards that are written tensor by tensor. Every command is a process of its own. The peak of its memory is
compared with what it has to hold, and with doctor's prediction.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import commands
import pytest
import torch

from mini_chat_gpt.checkpoints.build import model_shapes
from mini_chat_gpt.checkpoints.families import family_of_type
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.checkpoints.tensor_parts import stored_shapes
from mini_chat_gpt.common.device import cpu_has_bf16
from mini_chat_gpt.config import LoraSettings

N_SHARDS = 4
SLACK = 150e6
"""Bytes that Python and the allocator may take in addition."""


class LargeModel(NamedTuple):
    """The files of a folder but for its weights."""

    config: dict[str, Any]
    tokenizer: str  # the contents of tokenizer.json
    tokenizer_config: dict[str, Any]


class Counts(NamedTuple):
    """Numbers of parameters."""

    all: int
    tables: int
    largest: int  # tensor
    adapter: int  # of all linear layers


class Work(NamedTuple):
    """What is trained with LoRA, and then again with QLoRA."""

    steps: int
    examples: int  # of each step, in micro-batches of one
    tokens: int  # of each example, about


def work() -> Work:
    """5 × 8 × 512 where products in bf16 are fast, 5 × 1 × 128 elsewhere; MINI_CHAT_GPT_LARGE=STEPSxEXAMPLESxTOKENS decides otherwise."""
    chosen = os.environ.get("MINI_CHAT_GPT_LARGE")
    if chosen:
        return Work(*map(int, chosen.split("x")))
    return Work(5, 8, 512) if cpu_has_bf16() else Work(5, 1, 128)


# Runs a command with its arguments, and prints its peak of memory as the last line: VmHWM, and the growth of anonymous memory.
MEASURED = """
import re, sys, threading, time
import torch, tokenizers
from mini_chat_gpt.cli import dispatch

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, status("RssAnon"))

before = peak = status("RssAnon")
done = threading.Event()
threading.Thread(target=watch, daemon=True).start()
code = dispatch(sys.argv[1:])
done.set()
print()
print(status("VmHWM"), peak - before)
sys.exit(code)
"""
# Loads the frozen base of an adapter as training does.
LOADED = """
import sys
import mini_chat_gpt.cli
from pathlib import Path

def dispatch(arguments):
    from mini_chat_gpt.checkpoints.load import open_pair
    from mini_chat_gpt.config import LoraSettings
    from mini_chat_gpt.lora import add_lora
    stored, _ = open_pair(Path(arguments[0]), dtype=None)
    add_lora(stored.load(arguments[1]), LoraSettings(), arguments[1])
    return 0

mini_chat_gpt.cli.dispatch = dispatch
"""
PREDICTED = """
import sys
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.diagnostics.doctor import prepare_run
print(prepare_run(load_config(None, sys.argv[1:]), "sft").plan().total)
"""


class Peak(NamedTuple):
    resident: int
    anonymous_growth: int


def measured(*command: str, text: str = "", program: str = MEASURED) -> tuple[Peak, str]:
    """The peak of a command's memory in bytes, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        input=text,
        capture_output=True,
        text=True,
        env=commands.environment(),
    )
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return Peak(*map(int, last.split())), printed.rstrip("\n") + done.stderr


def text_of(n_words: int, seed: int) -> str:
    """Words of three letters, each of them one token."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(0, 26, (n_words, 3), generator=generator).tolist()
    return " ".join("".join(ascii_lowercase[letter] for letter in word) for word in letters)


def write_folder(folder: Path, model: LargeModel) -> Counts:
    """Write the model in shards, one tensor in memory at a time."""
    folder.mkdir()
    family = family_of_type(model.config["model_type"], "the test")
    config = family.config_from_hf(model.config)
    shapes = stored_shapes(model_shapes(config, 10**6, "the test"), family.hf_part, config)
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)

    def read(name: str) -> torch.Tensor:
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        return torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    index, names = {}, list(tensors)
    for number in range(N_SHARDS):
        file, chosen = f"model-{number + 1:05}-of-{N_SHARDS:05}.safetensors", names[number::N_SHARDS]
        write_tensors(folder / file, {name: tensors[name] for name in chosen}, read)
        index |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(model.config))
    (folder / "tokenizer.json").write_text(model.tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(model.tokenizer_config))
    table = config.vocab_size * config.n_embd
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name]
    return Counts(
        sum(math.prod(shape) for shape in shapes.values()),
        table * (1 if config.tie_embeddings else 2),
        max(math.prod(shape) for shape in shapes.values()),
        LoraSettings().rank * sum(map(sum, matrices)),
    )


def write_chats(path: Path, n: int, n_tokens: int) -> None:
    n_words = n_tokens // 2 - 20  # the tags of the template take some
    chats = []
    for seed in range(n):
        prompt, reply = text_of(n_words, seed), text_of(n_words, n + seed)
        chats.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]})
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))


def check_large_model(folder: Path, model: LargeModel, chats: Sequence[Sequence[str]] = ((),)) -> None:
    """Import, steps of LoRA and of QLoRA (see `work`), and a chat with each of these lists of options; prints the peaks."""
    n, size = write_folder(folder / "hf", model), work()
    ours, results = folder / "ours", {}
    results["import"], printed = measured("import", str(folder / "hf"), str(ours))
    assert f"{n.all:,} parameters in bfloat16" in printed
    assert results["import"].anonymous_growth < 2 * n.all + 2 * n.largest + SLACK
    for frozen, bits in (("bf16", 16), ("nf4", 4.13)):
        loaded, _ = measured(str(folder / "hf"), frozen, program=LOADED + MEASURED)
        results[f"load {frozen}"] = loaded
        weights = bits / 8 * (n.all - n.tables) + 4 * n.tables
        assert loaded.anonymous_growth < weights + 4 * n.adapter + 4 * n.largest + SLACK
    write_chats(folder / "chats.jsonl", 2 * size.examples + 4, size.tokens)
    for name, frozen in (("LoRA", "auto"), ("QLoRA", "nf4")):
        arguments = sft_arguments(folder, size, name, frozen)
        results[name], printed = measured("sft", *arguments)
        metrics = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        losses = [entry["sft/train_loss"] for entry in metrics if "sft/train_loss" in entry]
        assert len(losses) == size.steps, printed
        assert all(abs(loss - math.log(model.config["vocab_size"])) < 1.7 for loss in losses)
        predicted = predicted_memory(arguments)
        results[f"{name} predicted"] = Peak(predicted, 0)
        assert predicted == pytest.approx(results[name].resident, rel=0.15), results
    for options in chats:
        reply = ["--checkpoint", str(folder / "QLoRA"), "--max-new-tokens", "4", "--device", "cpu", *options]
        results[" ".join(["chat", *options])], printed = measured("chat", *reply, text="abc def\n")
        assert printed.strip()
    for name, peak in results.items():
        print(
            f"{name:<16} {peak.resident / 1e9:6.2f} GB resident, {peak.anonymous_growth / 1e9:6.2f} GB anonymous growth"
        )


def sft_arguments(folder: Path, size: Work, name: str, frozen: str) -> list[str]:
    """Settings of a run of adapters on CPUs."""
    return [
        f"sft.pretrained_checkpoint={folder / 'ours'}", f"chats.files={folder / 'chats.jsonl'}", f"data.seq_len={size.tokens}",
        f"sft.max_steps={size.steps}", f"sft.eval_interval={size.steps}", "data.eval_examples=1", "training.batch_size=1",
        f"training.examples_per_step={size.examples}", "training.activation_checkpointing=true", "sft.warmup_steps=0",
        "lora.enabled=true", "system.device=cpu", "wandb.enabled=false", f"lora.frozen={frozen}", f"sft.save_dir={folder / name}",
    ]  # fmt: skip


def predicted_memory(arguments: Sequence[str]) -> int:
    """Doctor's prediction for a run, in bytes."""
    command = [sys.executable, "-c", PREDICTED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=commands.environment())
    return int(done.stdout.split()[-1])

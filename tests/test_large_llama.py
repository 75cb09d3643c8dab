"""A model of TinyLlama's size from a Hugging Face folder: imported, fine-tuned with LoRA and QLoRA, and asked over a pipe.

The weights are random, in bf16 and in shards that are written tensor by tensor. Every command is a process of its own. The peak of
its memory is compared with what it has to hold, and with doctor's prediction.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import commands
import pytest
import torch

from mini_chat_gpt.checkpoints.build import model_shapes
from mini_chat_gpt.checkpoints.hf import from_hf_config, to_hf_state
from mini_chat_gpt.checkpoints.tensor_files import write_tensors
from mini_chat_gpt.common.device import cpu_has_bf16

SIZES = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
N_SHARDS = 4
SLACK = 150e6
"""Bytes that Python and the allocator may take in addition."""


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


def tokenizer_json() -> str:
    """32,000 pieces as SentencePiece makes them: three control tokens, 256 bytes, and words of one to four letters."""
    from foreign_tokenizers import SPACE, tinyllama

    parts = json.loads(tinyllama().to_str())
    vocab = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>"])}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    vocab |= {letter: len(vocab) + number for number, letter in enumerate([SPACE, *ascii_lowercase])}
    merges = []
    words = ("".join(word) for length in (1, 2, 3, 4) for word in product(ascii_lowercase, repeat=length))
    for word in islice(words, SIZES["vocab_size"] - len(vocab)):
        merges.append([SPACE + word[:-1], word[-1]])
        vocab[SPACE + word] = len(vocab)
    parts["model"] |= {"vocab": vocab, "merges": merges}
    return json.dumps(parts)


def text_of(n_words: int, seed: int) -> str:
    """Words of three letters, each of them one token."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(0, 26, (n_words, 3), generator=generator).tolist()
    return " ".join("".join(ascii_lowercase[letter] for letter in word) for word in letters)


def write_folder(folder: Path) -> int:
    """Write the model in shards, one tensor in memory at a time. Returns the number of parameters."""
    folder.mkdir()
    config = from_hf_config(SIZES)
    shapes = to_hf_state(model_shapes(config, 10**6, "the test"), config)
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
    (folder / "config.json").write_text(json.dumps(SIZES))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return sum(math.prod(shape) for shape in shapes.values())


def write_chats(path: Path, n: int, n_tokens: int) -> None:
    n_words = n_tokens // 2 - 20  # the tags of the template take some
    chats = []
    for seed in range(n):
        prompt, reply = text_of(n_words, seed), text_of(n_words, n + seed)
        chats.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]})
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))


@pytest.fixture
def folder(tmp_path):
    """A folder that doesn't stay, as pytest's own do."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_1_1_billion_parameters(folder):
    """Import, five steps of LoRA and of QLoRA, and a chat; see `work` for their size. Takes 5 GB of disk and 10 GB of memory.

    A step of 8 × 512 tokens is 20 to 27 TFLOP: half an hour for all of them with AVX-512-bf16, two hours on two cores without
    it. Those train on 1 × 128 tokens unless the variable says otherwise.
    """
    n, size = write_folder(folder / "hf"), work()
    table = SIZES["vocab_size"] * SIZES["hidden_size"]
    ours, results = folder / "ours", {}

    results["import"], printed = measured("import", str(folder / "hf"), str(ours))
    assert f"{n:,} parameters in bfloat16" in printed
    assert results["import"].anonymous_growth < 2 * n + 2 * table + SLACK

    for frozen, bits in (("bf16", 16), ("nf4", 4.13)):
        loaded, _ = measured(str(folder / "hf"), frozen, program=LOADED + MEASURED)
        results[f"load {frozen}"] = loaded
        adapter = 4 * 12.7e6  # of rank 16 on all layers
        assert loaded.anonymous_growth < bits / 8 * (n - 2 * table) + 4 * 2 * table + adapter + 4 * table + SLACK

    write_chats(folder / "chats.jsonl", 2 * size.examples + 4, size.tokens)
    common = [
        f"sft.pretrained_checkpoint={ours}", f"chats.files={folder / 'chats.jsonl'}", f"data.seq_len={size.tokens}",
        f"sft.max_steps={size.steps}", f"sft.eval_interval={size.steps}", "data.eval_examples=1", "training.batch_size=1",
        f"training.examples_per_step={size.examples}", "training.activation_checkpointing=true", "sft.warmup_steps=0",
        "lora.enabled=true", "system.device=cpu", "wandb.enabled=false",
    ]  # fmt: skip
    for name, frozen in (("LoRA", "auto"), ("QLoRA", "nf4")):
        arguments = [*common, f"lora.frozen={frozen}", f"sft.save_dir={folder / name}"]
        results[name], printed = measured("sft", *arguments)
        metrics = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        losses = [entry["sft/train_loss"] for entry in metrics if "sft/train_loss" in entry]
        assert len(losses) == size.steps, printed
        assert all(9 < loss < 12 for loss in losses)  # ln 32,000 is 10.4
        predicted = int(
            subprocess.run(
                [sys.executable, "-c", PREDICTED, *arguments],
                capture_output=True, text=True, check=True, env=commands.environment(),
            ).stdout.split()[-1]
        )  # fmt: skip
        results[f"{name} predicted"] = Peak(predicted, 0)
        assert predicted == pytest.approx(results[name].resident, rel=0.15), results

    reply = ["--checkpoint", str(folder / "QLoRA"), "--max-new-tokens", "4", "--device", "cpu"]
    results["chat"], printed = measured("chat", *reply, text="abc def\n")
    assert printed.strip()
    for name, peak in results.items():
        print(
            f"{name:<16} {peak.resident / 1e9:6.2f} GB resident, {peak.anonymous_growth / 1e9:6.2f} GB anonymous growth"
        )

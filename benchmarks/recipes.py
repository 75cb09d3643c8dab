"""Recipes next to the same training with TRL and PEFT: quality, time and memory.

    python benchmarks/recipes.py headlines --base MODEL
    python benchmarks/recipes.py polite_helper --base MODEL --seeds 1337 1 --n 40

Both train the same base (a Hugging Face folder, or a checkpoint folder of ours in that form) on the same records with the same
adapter, batches, learning rate, warmup and number of steps, in float32 on a CPU, and are judged by `mini-chat-gpt recipe NAME
--evaluate`, with the same prompts and greedy replies. Each training runs in a process of its own, whose peak memory is measured.
Only the order of the records differs.
Needs pip install trl peft transformers datasets, and the extra `recipes`. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mini_chat_gpt.checkpoints.find import find_checkpoint
from mini_chat_gpt.cli_options import RECIPE_CONFIG, find_recipe
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.common.terminal import format_duration, format_size
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.recipe.results import FILE_NAME, headline
from mini_chat_gpt.sft_train import train


def settings_of(options: argparse.Namespace, folder: Path) -> Config:
    """The recipe's settings, for a float32 run on a CPU."""
    overrides = [
        f"sft.pretrained_checkpoint={options.base}",
        f"sft.save_dir={folder}",
        f"system.seed={options.seed}",
        "system.device=cpu",
        "system.mixed_precision=false",
        "sft.eval_interval=1000000",
        "sft.save_interval=1000000",
    ]
    return load_config(find_recipe(options.recipe) / RECIPE_CONFIG, [*overrides, *options.settings])


def train_here(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with this package; the model is in `folder`."""
    result = train(settings_of(options, folder))
    return {"steps": result.steps, "learning_rate": result.learning_rate, "seconds": result.seconds}


def train_with_peft(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with TRL's SFTTrainer and PEFT for as many steps; the merged model is in `folder`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    config = settings_of(options, folder)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    system = config.data.system_message
    start = [] if system is None else [{"role": "system", "content": system}]
    records = []
    for chat in read_conversations(list(config.chats.files)):
        messages = start + [{"role": message.role, "content": message.content} for message in chat.messages]
        records.append({"prompt": messages[:-1], "completion": messages[-1:]})  # the loss is on the last reply
    batch = config.training.batch_size
    settings = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, (config.training.examples_per_step or batch) // batch),
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.sft.final_lr_fraction},
        warmup_steps=max(1, options.steps // 10),
        weight_decay=config.training.weight_decay,
        adam_beta2=0.95,
        max_length=config.data.seq_len,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=options.seed,
        save_strategy="no",
        report_to=[],
        logging_steps=20,
    )
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    dataset = Dataset.from_list(records)
    trainer = SFTTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return {"steps": options.steps, "learning_rate": options.learning_rate, "seconds": seconds}


def in_process(options: argparse.Namespace, which: str, folder: Path, more: list[str]) -> dict[str, Any]:
    """Train in a process of its own; returns its numbers."""
    result = folder.with_suffix(".json")
    command = [sys.executable, __file__, options.recipe, "--base", options.base, "--seed", str(options.seed)]
    command += ["--train", which, "--folder", str(folder), "--result", str(result), *more, *options.settings]
    subprocess.run(command, check=True)
    return json.loads(result.read_text())


def judge(options: argparse.Namespace, model: Path, folder: Path) -> list[dict[str, Any]]:
    """The results of the held-out parts, judged in a process of its own."""
    command = [sys.executable, "-m", "mini_chat_gpt.cli", "recipe", str(find_recipe(options.recipe).resolve())]
    command += ["--base", options.base, "--evaluate", str(model), "system.device=cpu"]
    command += [] if options.n is None else ["--n", str(options.n)]
    folder.mkdir()
    subprocess.run(command, check=True, cwd=folder)
    (file,) = [*folder.glob(f"runs/reports/*/{FILE_NAME}")]
    return json.loads(file.read_text())["parts"]


def compare(options: argparse.Namespace, folder: Path) -> list[str]:
    """One row of the table for each of the two trainings with a seed."""
    ours = in_process(options, "here", folder / "here", [])
    same = ["--steps", str(ours["steps"]), "--learning-rate", str(ours["learning_rate"])]
    theirs = in_process(options, "peft", folder / "peft", same)
    models = {"this package": find_checkpoint(folder / "here"), "TRL + PEFT": folder / "peft" / "merged"}
    rows = []
    for (name, model), numbers in zip(models.items(), (ours, theirs), strict=True):
        parts = judge(options, model.resolve(), folder / f"judged-{model.name}")
        quality = "; ".join(headline(parts, "after"))
        time_text, memory = format_duration(numbers["seconds"]), format_size(numbers["peak_memory"])
        rows.append(f"| {name} | {options.seed} | {numbers['steps']} | {quality} | {time_text} | {memory} |")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--base", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--n", type=int, help="records of each held-out part (default: all)")
    for hidden in ("--train", "--folder", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1337, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--learning-rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    options.base = str(Path(options.base).resolve())
    if options.train:
        job = train_here if options.train == "here" else train_with_peft
        numbers = job(options, Path(options.folder)) | {"peak_memory": peak_memory("cpu")}
        Path(options.result).write_text(json.dumps(numbers))
        return
    rows = ["| | seed | steps | held-out | training time | peak memory |", "|---|---|---|---|---|---|"]
    for seed in options.seeds:
        options.seed = seed
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(options, Path(folder))
    print("\n".join(rows))


if __name__ == "__main__":
    main()

"""Model FLOPs utilization of a training step: `python benchmarks/utilization.py [--sizes 15m 124m 350m] [--compile] [--peak 989]`.

Meant for a GPU, to measure the effect of bf16, the varlen attention kernel and compilation; it also runs on a CPU. Prints the
model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311): the necessary operations of a step with all tokens
supervised, divided by its time and by the processor's peak. The peak is the fastest of several large matrix products in the
same run and, with --peak, the number of the data sheet (TFLOP/s in 16 bits; an H200 has 989).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from step_implementations import our_examples, rate
from step_setting import Setting, batch, n_tokens, needed_flops

from mini_chat_gpt.common.device import keep_freed_memory, pick_device, pick_precision
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.config import Config
from mini_chat_gpt.model import GPT, GPTConfig
from mini_chat_gpt.training.compile import compile_model
from mini_chat_gpt.training.train_step import TrainStep

LONG = Setting(trained=1.0, shortest=256, longest=1024)
SIZES = {
    "15m": replace(LONG, vocab_size=32000, n_layer=6, n_head=6, n_embd=288),
    "124m": replace(LONG, n_layer=12, n_head=12, n_embd=768),
    "350m": replace(LONG, n_layer=24, n_head=16, n_embd=1024),
}


def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several large matrix products."""
    sizes = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    return max(rate(*(torch.randn(n, n, device=device).to(dtype) for _ in "ab")) for n in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp16", "fp32"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, help="examples of 256 to 1,024 tokens per step (64; on a CPU 2)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the data sheet")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    keep_freed_memory()
    peak = fastest_product(device, precision.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; {precision.reason}; the fastest product reaches {peak / 1e12:.3g} TFLOP/s")
    print(f"{'':8}{'tokens/s':>12}{'ms a step':>12}{'memory':>12}{'of products':>13}{'of --peak':>11}")
    for size in arguments.sizes:
        setting = replace(SIZES[size], batch_size=arguments.batch_size or (64 if device.type == "cuda" else 2))
        torch.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model = GPT(GPTConfig(**setting.model_fields())).to(device)
        config = Config.model_validate({"training": {"batch_size": setting.batch_size}})
        engine = TrainStep(model, config, config.sft, precision)
        if arguments.compile:
            compile_model(model)
        rates, times = [], []
        for number in range(arguments.steps + 3):  # the first steps allocate memory and create kernels
            items = batch(setting, number)
            examples = our_examples(items)
            began = time.perf_counter()
            engine.train_step(examples)  # reads the loss, which waits for the GPU
            spent = time.perf_counter() - began
            if number >= 3:
                rates.append((n_tokens(items) / spent, needed_flops(setting, items, skip_in_last=False) / spent))
                times.append(spent)
        tokens, flops = (statistics.median(column) for column in zip(*rates, strict=True))
        sheet = f"{flops / arguments.peak / 1e12:.1%}" if arguments.peak else ""
        print(
            f"{size:8}{tokens:12,.0f}{1e3 * statistics.median(times):12.1f}{peak_memory(device) / 2**30:8.2f} GiB"
            f"{flops / peak:13.1%}{sheet:>11}",
            flush=True,
        )
        del model, engine


if __name__ == "__main__":
    main()

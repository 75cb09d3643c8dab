"""How fast are training and replies on a GPU? `benchmarks/gpu.sh speed`.

Training has examples of 256 to 1,024 random tokens, all of them supervised. MFU is the model FLOPs utilization (Chowdhery et al.
2022, arXiv:2204.02311): the operations that a step needs, by its time and by the peak of the card. Tokens are counted without padding.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu_peers import Step, hf_replies, hf_step, installed, tokens_per_second, trl_rates
from gpu_setup import Setup, print_table
from step_implementations import our_examples
from step_setting import Setting, batch, n_tokens, needed_flops
from utilization import LONG, SIZES, fastest_product

from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.config import Config, GPTConfig
from mini_chat_gpt.generation.decode import decode, for_inference, random_streams
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.lora import Frozen, add_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.compile import compile_model
from mini_chat_gpt.training.train_step import TrainStep

DATA_SHEETS = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "A40": 150, "RTX 4090": 165,
    "RTX 3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip
"""Dense 16-bit products of the data sheet, TFLOP/s, by a part of the card's name."""

SMOLLM2 = replace(LONG, vocab_size=49152, n_layer=30, n_embd=576, n_head=9, n_kv_head=3, batch_size=32)
"""The shape of SmolLM2-135M."""
TINY = Setting(
    vocab_size=512, trained=1.0, n_layer=2, n_embd=48, n_head=3, n_kv_head=1, context_length=64, batch_size=2,
    shortest=8, longest=24,
)  # fmt: skip
WARM_UP = 3  # steps that allocate memory and create kernels


def make_model(setting: Setting, device: torch.device | str = "cpu") -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**setting.model_fields())).to(device)


def our_step(setup: Setup, setting: Setting, frozen: Frozen | None = None, compiled: bool = False) -> Step:
    """A training step of ours; `frozen` trains an adapter of rank 16 on weights in that precision."""
    config = Config.model_validate({"training": {"batch_size": setting.batch_size}})
    model = make_model(setting)
    if frozen is not None:
        add_lora(model, config.lora, frozen)
    engine = TrainStep(model, config, config.sft, setup.precision, device=setup.device)
    if compiled:
        compile_model(engine.model)
    return lambda items: engine.train_step(our_examples(items))


def free_memory(setup: Setup) -> None:
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)


def measure(setup: Setup, setting: Setting, make_step: Callable[[Setting], Step]) -> tuple[Setting, list[float], int]:
    """(setting, tokens per second of each step, peak memory). The batch is halved until it fits into the GPU's memory."""
    while True:
        free_memory(setup)
        try:
            return setting, step_rates(setup, setting, make_step), peak_memory(setup.device)
        except torch.cuda.OutOfMemoryError:
            if setting.batch_size == 1:
                raise
            setting = replace(setting, batch_size=setting.batch_size // 2)


def step_rates(setup: Setup, setting: Setting, make_step: Callable[[Setting], Step]) -> list[float]:
    warm_up, steps, step = 1 if setup.tiny else WARM_UP, 2 if setup.tiny else 10, make_step(setting)
    return [tokens_per_second(step, batch(setting, number)) for number in range(warm_up + steps)][warm_up:]


def training(setup: Setup) -> None:
    """Training at 15, 124 and 350 M parameters."""
    peak = None if setup.tiny else fastest_product(setup.device, setup.precision.dtype)
    sheet = next((flops * 1e12 for name, flops in DATA_SHEETS.items() if name in setup.card), None)
    settings = {"tiny": TINY} if setup.tiny else {name: replace(one, batch_size=64) for name, one in SIZES.items()}
    rows = []
    for name, whole in settings.items():
        for compiled in (False, True) if name == "124m" else (False,):
            setting, rates, memory = measure(setup, whole, lambda one, on=compiled: our_step(setup, one, compiled=on))  # type: ignore[misc]
            rate = statistics.median(rates)
            items = [item for number in range(5) for item in batch(setting, number)]
            flops = rate * needed_flops(setting, items, skip_in_last=False) / n_tokens(items)
            of_product = f"{flops / peak:.1%} of {peak / 1e12:.0f} TFLOP/s" if peak else "not measured"
            of_sheet = f"{flops / sheet:.1%} of {sheet / 1e12:.0f} TFLOP/s" if sheet else "unknown card"
            rows.append(
                [name + ", compiled" * compiled, f"{setting.batch_size}", f"{rate:,.0f}", f"{flops / 1e12:.3g} TFLOP/s",
                 of_product, of_sheet, f"{memory / 2**30:.1f} GiB"]
            )  # fmt: skip
    header = ["model", "examples per step", "tokens/s", "needed work", "MFU, of the fastest product", "MFU, data sheet"]
    print_table("Training", [*header, "memory"], rows)


def adapters(setup: Setup) -> None:
    """All weights, LoRA and QLoRA at SmolLM2's shape, compared with other implementations."""
    setting = TINY if setup.tiny else SMOLLM2
    makers: dict[str, Callable[[Setting], Step]] = {
        "ours, all weights": lambda one: our_step(setup, one),
        "ours, LoRA, 16-bit base": lambda one: our_step(setup, one, half_name(setup)),
        "ours, QLoRA (NF4)": lambda one: our_step(setup, one, "nf4"),
    }
    if installed("transformers"):
        makers["transformers, all weights"] = lambda one: hf_step(setup, make_model(one), adapter=False)
    if installed("peft"):
        makers["PEFT, LoRA, 16-bit base"] = lambda one: hf_step(setup, make_model(one), adapter=True)
    results, notes = {}, []
    for name, make in makers.items():
        try:
            results[name] = measure(setup, setting, make)
        except Exception as error:
            if name.startswith("ours"):
                raise
            notes.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    if installed("trl"):
        free_memory(setup)
        try:
            rates = trl_rates(setup, setting, 1 if setup.tiny else WARM_UP, 2 if setup.tiny else 10)
            results["TRL, all weights"] = (setting, rates, peak_memory(setup.device))
        except Exception as error:
            notes.append(f"TRL: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    full = statistics.median(results["ours, all weights"][1])
    rows = []
    for name, (used, rates, memory) in results.items():
        rate = statistics.median(rates)
        memory_text = f"{memory / 2**30:.2f} GiB" if setup.device.type == "cuda" else ""
        rows.append([name, f"{used.batch_size}", f"{rate:,.0f}", f"{rate / full:.2f}", memory_text])
    header = ["", "examples per step", "tokens/s", "of ours, all weights", "memory"]
    print_table(f"Fine-tuning at SmolLM2-135M's shape{' (tiny)' * setup.tiny}", header, rows)
    absent = [name for name in ("transformers", "peft", "trl") if not installed(name)]
    notes += [f"Not installed here: {', '.join(absent)}."] * bool(absent)
    print("\n" + "\n".join(notes))


def half_name(setup: Setup) -> Frozen:
    return "bf16" if setup.precision.dtype == torch.bfloat16 else "fp16"


def replies(setup: Setup) -> None:
    """Greedy replies of one and of 64 rows at SmolLM2's shape."""
    setting = TINY if setup.tiny else SMOLLM2
    model = make_model(setting, setup.device).eval()
    makers: dict[str, Callable[[torch.Tensor, int], object]] = {
        f"ours, {half_name(setup)}": our_replies(setup, model),
        "ours, float32": our_replies(setup, model, exact=True),
    }
    if installed("transformers"):
        makers["transformers, 16 bits"] = hf_replies(model, setup.precision.dtype, setup.device)
    n_prompt, n_new = (8, 4) if setup.tiny else (64, 128)
    rows = []
    for n_rows in (1, 64):
        prompts = torch.from_numpy(np.random.default_rng(0).integers(3, setting.vocab_size, (n_rows, n_prompt)))
        rates = {}
        for name, reply in makers.items():
            reply(prompts.to(setup.device), 2)  # kernels are created
            times = list(timed(lambda reply=reply, prompts=prompts: reply(prompts.to(setup.device), n_new), 2))  # type: ignore[misc]
            rates[name] = n_rows * n_new / min(times)
        ours = next(iter(rates.values()))
        rows += [[f"{n_rows}", name, f"{rate:,.0f}", f"{rate / ours:.2f}"] for name, rate in rates.items()]
    title = f"Replies at SmolLM2-135M's shape{' (tiny)' * setup.tiny}, {n_new} tokens after {n_prompt}"
    print_table(title, ["rows", "", "tokens/s", "of ours"], rows)


def timed(call: Callable[[], object], times: int) -> Iterator[float]:
    for _ in range(times):
        began = time.perf_counter()
        call()  # returns Python numbers, so the GPU has finished
        yield time.perf_counter() - began


def our_replies(setup: Setup, model: GPT, exact: bool = False) -> Callable[[torch.Tensor, int], object]:
    """Our greedy replies, in the precision of `setup` or in float32."""
    tokenizer: Any = SimpleNamespace(
        stop_ids=frozenset(), control={}, vocab_size=model.config.vocab_size, declared=None, chat_format=None
    )
    form = model if exact else for_inference(model, precision=setup.precision)

    def reply(prompts: torch.Tensor, n_new: int) -> list[list[int]]:
        ids: list[list[int]] = [[] for _ in prompts]
        sampling = Sampling(temperature=0, max_new_tokens=n_new)
        for step in decode(form, tokenizer, prompts.tolist(), sampling, random_streams(0, range(len(prompts)))):
            ids[step.row].append(step.token_id)
        return ids

    return reply


TABLES: dict[str, Callable[[Setup], None]] = {"training": training, "adapters": adapters, "replies": replies}


def run(setup: Setup, only: Sequence[str] = ()) -> int:
    """Measure and print the tables; returns the number of those that failed."""
    failed = 0
    for name, table in TABLES.items():
        if only and name not in only:
            continue
        try:
            table(setup)
        except Exception as error:  # the other tables are still wanted
            failed += 1
            print(f"\n{name}: **FAILED**, {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
        free_memory(setup)
    return failed

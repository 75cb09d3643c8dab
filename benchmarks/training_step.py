"""Compare our training step with other implementations and with the peak of the machine: `python benchmarks/training_step.py`.

One model (Llama-like, 8 layers, 384 wide) and one stream of batches (8 examples of 100 to 400 tokens, supervised tokens at
the end). Each implementation runs in its own process, and all are interleaved. Tokens are counted without padding.

    python benchmarks/training_step.py                        a vocabulary of 50,257 tokens, 10 % of the tokens supervised
    python benchmarks/training_step.py --trained 0.4
    python benchmarks/training_step.py --vocab 4096
    python benchmarks/training_step.py --exact                our loss and gradients compared with the plain loop
    python benchmarks/training_step.py --profile              the time of the parts of our step

Other implementations: `pip install trl`; nanochat, which is not on PyPI, with --nanochat FOLDER_OF_A_CHECKOUT.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from step_implementations import missing
from step_runner import Child, run_interleaved
from step_setting import Setting, batch, n_tokens, needed_flops, write_checkpoint

from mini_chat_gpt.common.device import cpu_has_bf16

IMPLEMENTATIONS = {
    "ours": "ours, precision auto",
    "ours-float32": "ours, float32",
    "plain": "plain padded loop, float32",
    "plain-kept": "plain loop, memory kept",
    "trl": "TRL, its default",
    "trl-kept": "TRL, memory kept",
    "trl-fast-kept": "TRL, kept, no checkpointing",
    "trl-packed-kept": "TRL, kept, none, bfd packing",
    "nanochat": "nanochat, eager, AdamW",
    "nanochat-kept": "nanochat, memory kept",
    "nanochat-compiled-kept": "nanochat, kept, compiled",
}


def measure(args: argparse.Namespace, setting: Setting, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The results of each implementation, and the FLOP/s of the machine's fastest product of each dtype."""
    children = []
    for name in [*args.only, "peak"]:
        if reason := missing(name, args.nanochat):
            print(f"{name}: skipped, {reason}")
            continue
        children.append(Child(name, setting, folder, args.nanochat))
        print(f"  {name} ready after {children[-1].first['ready']:.1f} s", file=sys.stderr, flush=True)
    run_interleaved(children, args.rounds, args.turn)
    peak = children.pop()
    peak.quit()
    products = {
        dtype: max(map(statistics.median, zip(*(step[dtype] for step in peak.steps), strict=True)))
        for dtype in ("float32", "bfloat16")
    }
    return {child.name: summary(child) for child in children}, products


def summary(child: Child) -> dict[str, float]:
    rates = [step["tokens"] / step["seconds"] for step in child.steps]
    tokens = sum(step["tokens"] for step in child.steps)
    return {
        "rate": statistics.median(rates),
        "steps": len(rates),
        "trained": sum(step["trained"] for step in child.steps) / tokens,
        "first": child.first["ready"],
        "first_trained": child.first["trained"],
        "peak": child.quit(),
    }


def print_table(setting: Setting, results: dict[str, Any], products: dict[str, float]) -> None:
    items = [item for number in range(50) for item in batch(setting, number)]
    needed, whole = (needed_flops(setting, items, skip) / n_tokens(items) for skip in (True, False))
    print(
        f"{setting.n_layer} layers x {setting.n_embd}, V = {setting.vocab_size:,} (embedding of {setting.table:,} rows for all), "
        f"{setting.trained:.0%} supervised, batches of {setting.batch_size} examples of {setting.shortest} to "
        f"{setting.longest} tokens, {setting.threads} thread{'s' * (setting.threads > 1)}"
    )
    print(
        f"{'':32}{'tokens/s':>9}{'ours is':>9}{'memory':>10}{'1/ours':>8}{'first step':>11}{'steps':>6}{'trained':>9}"
    )
    best = results.get("ours") or next(iter(results.values()))
    for name, one in results.items():
        times = f"{best['rate'] / one['rate']:.2f} x"
        print(
            f"{IMPLEMENTATIONS[name]:32}{one['rate']:9,.0f}{times:>9}{one['peak'] / 2**30:6.2f} GiB"
            f"{one['peak'] / best['peak']:8.2f}{one['first']:9.1f} s{one['steps']:6}{one['trained']:9.1%}"
        )
    print(f"necessary work: {needed / 1e6:.1f} MFLOP per token ({whole / 1e6:.1f} with the full last block)")
    for name, dtype in (("ours", "bfloat16" if cpu_has_bf16() else "float32"), ("ours-float32", "float32")):
        if name in results:
            ceiling, whole_ceiling = products[dtype] / needed, products[dtype] / whole
            print(
                f"{dtype}: products reach {products[dtype] / 1e9:.0f} GFLOP/s, which allows {ceiling:,.0f} tokens/s; ours reaches "
                f"{results[name]['rate'] / ceiling:.0%} of that ({results[name]['rate'] / whole_ceiling:.0%} of "
                f"{whole_ceiling:,.0f} with the full last block)"
            )


def check_trained(results: dict[str, Any]) -> None:
    """Check that all supervised the same number of tokens in their first step (TRL's packed batch has other examples)."""
    counts = {name: one["first_trained"] for name, one in results.items() if "packed" not in name}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"the implementations have different numbers of supervised tokens: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--trained", type=float, default=0.1, help="share of the tokens that are supervised")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each implementation, after a warm-up turn")
    parser.add_argument("--turn", type=float, default=3.0, help="seconds; a turn has at least one step")
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument("--exact", action="store_true", help="our loss and gradients compared with the plain loop")
    parser.add_argument("--profile", action="store_true", help="the time of the parts of our step")
    parser.add_argument("--nanochat", help="a checkout of nanochat")
    args = parser.parse_args()
    setting = Setting(vocab_size=args.vocab, trained=args.trained, threads=args.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(setting, Path(place) / "checkpoint")
        if args.exact or args.profile:
            step_inside = importlib.import_module("step_inside")
            (step_inside.exact if args.exact else step_inside.profile)(setting, folder)
            return
        results, products = measure(args, setting, folder)
    check_trained(results)
    print_table(setting, results, products)


if __name__ == "__main__":
    main()

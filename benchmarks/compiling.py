"""Cost and gain of torch.compile on this machine: `python benchmarks/compiling.py [--presets 1m 15m] [--threads 2]`.

Each row is a fresh pair of processes. The first compiles with an empty cache ("cold"). The second reuses that cache ("warm")
and then runs the same optimizer steps alternately on a compiled and on a plain model. The steps are those of fine-tuning:
16 examples of 60 to 350 tokens in micro-batches of 8, with 40 % of the tokens supervised.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

VOCABULARY = {"1m": 4096, "3m": 4096, "15m": 32000, "30m": 50304, "124m": 50304}


def measure(preset: str, precision: str, threads: int, device_name: str, steps: int) -> dict[str, float | str]:
    """Seconds to compile, and median seconds per step with both models (steps=0: compile only)."""
    import numpy as np
    import torch

    from mini_chat_gpt.common.device import keep_freed_memory, pick_device, pick_precision
    from mini_chat_gpt.config import Config, ModelSection
    from mini_chat_gpt.data.batching import Example
    from mini_chat_gpt.model import GPT
    from mini_chat_gpt.training.compile import choose_compiling, compile_model
    from mini_chat_gpt.training.train_step import TrainStep

    torch.set_num_threads(threads)
    keep_freed_memory()
    device = pick_device(device_name)
    vocabulary = VOCABULARY[preset]
    rng = np.random.default_rng(0)

    def example() -> Example:
        n = int(rng.integers(60, 350))
        trained = rng.random(n) < 0.4
        trained[-1] = True
        return Example(rng.integers(0, vocabulary, n).astype(np.int32), trained, 1.0, "any")

    def make_train_step() -> TrainStep:
        torch.manual_seed(0)
        model = GPT(ModelSection(preset=preset).gpt_config(vocabulary)).to(device)
        return TrainStep(model, Config(), Config().sft, pick_precision(precision, device))

    def seconds(engine: TrainStep, examples: list[Example]) -> float:
        started = time.perf_counter()
        engine.train_step(examples)  # reads the loss, which waits for the GPU
        return time.perf_counter() - started

    batch = [example() for _ in range(16)]
    plain, compiled = make_train_step(), make_train_step()
    seconds(plain, batch), plain.evaluate(batch)
    started = time.perf_counter()
    choice = choose_compiling(True, device, steps)
    if not choice.on:
        raise SystemExit(choice.reason)
    compile_model(compiled.model)
    seconds(compiled, batch), compiled.evaluate(batch)
    first = time.perf_counter() - started
    started = time.perf_counter()
    seconds(compiled, batch), compiled.evaluate(batch)
    result = {"precision": plain.precision.reason, "compile": first - (time.perf_counter() - started)}
    if steps:
        pairs = [
            (seconds(plain, examples), seconds(compiled, examples))
            for examples in ([example() for _ in range(16)] for _ in range(steps))
        ]
        result |= {
            "plain": statistics.median(plain_seconds for plain_seconds, _ in pairs),
            "compiled": statistics.median(compiled_seconds for _, compiled_seconds in pairs),
            "ratio": statistics.median(numerator / denominator for numerator, denominator in pairs),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["1m", "15m", "30m"], choices=VOCABULARY)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "auto"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*json.loads(args.child))))
        return
    print(
        f"{'preset':7}{'precision':11}{'plain s/step':>13}{'compiled':>10}{'gain':>7}{'cold s':>8}{'warm s':>8}  pays back after"
    )
    for preset in args.presets:
        for precision in args.precisions:
            with tempfile.TemporaryDirectory() as cache:
                runs = []
                for steps in (0, args.steps):
                    child = json.dumps([preset, precision, args.threads, args.device, steps])
                    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
                    command = [sys.executable, __file__, "--child", child]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
            (cold, warm), saved = runs, runs[1]["plain"] - runs[1]["compiled"]
            after = [f"{run['compile'] / saved:,.0f} steps" if saved > 0 else "never" for run in runs]
            print(
                f"{preset:7}{warm['precision'].split(':')[0]:11}{warm['plain']:13.3f}{warm['compiled']:10.3f}"
                f"{warm['ratio']:6.2f}x{cold['compile']:8.1f}{warm['compile']:8.1f}  {after[0]} cold, {after[1]} warm",
                flush=True,
            )


if __name__ == "__main__":
    main()

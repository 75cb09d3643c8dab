"""Training while another program uses one core part of the time: threads that adapt, compared with a fixed number.

    OMP_NUM_THREADS=2 python benchmarks/busy_machine.py --out /tmp/busy --seconds 180 --on 30 --off 30 \\
        sft.pretrained_checkpoint=runs/quickstart/base sft.dataset_path=runs/quickstart/data

Three runs with the same settings, one after the other: `system.threads` null, 2 and 1. During each, a busy loop is on for some
seconds and off for some, from its first step on. Printed: tokens per second over the whole run, and during each phase. Only the
ratios are meaningful, and only if nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from mini_chat_gpt import train
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.training.monitor import read_metrics
from mini_chat_gpt.training.trainer import Trainer

LOOP = """
import sys, time
while True:
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        pass
    time.sleep(float(sys.argv[2]))
"""


def measure(threads: str, arguments: argparse.Namespace) -> list[float]:
    """Tokens per second of one run: over all of it, while the loop is on, while it is off."""
    folder = arguments.out / f"threads-{threads}"
    settings = [f"sft.save_dir={folder}", f"system.threads={threads}", f"training.time_limit={arguments.seconds}s"]
    settings += ["sft.max_steps=100000", "sft.eval_interval=100000", "sft.save_interval=100000", "wandb.enabled=false"]
    loops: list[subprocess.Popen[bytes]] = []
    started = time.time()

    def start_loop(trainer: Trainer, step: int, _: object) -> None:
        if not loops:
            command = [sys.executable, "-c", LOOP, str(arguments.on), str(arguments.off)]
            loops.append(subprocess.Popen(command))

    try:
        result = train(load_config(None, [*arguments.settings, *settings]), [start_loop])
    finally:
        for loop in loops:
            loop.kill()
    lines = [line for line in read_metrics(result.folder) if "sft/tokens" in line and line["time"] > started]
    sums = {"all": [0.0, 0.0], "on": [0.0, 0.0], "off": [0.0, 0.0]}
    for before, line in pairwise(lines):
        phase = "on" if (before["time"] - lines[0]["time"]) % (arguments.on + arguments.off) < arguments.on else "off"
        for name in ("all", phase):
            sums[name][0] += line["sft/tokens"] - before["sft/tokens"]
            sums[name][1] += line["time"] - before["time"]
    return [tokens / max(seconds, 1e-9) for tokens, seconds in sums.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seconds", type=int, default=180, help="of each run")
    parser.add_argument("--on", type=float, default=30.0, help="seconds for which the loop runs")
    parser.add_argument("--off", type=float, default=30.0, help="seconds for which it doesn't")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    rates = {threads: measure(threads, arguments) for threads in ("null", "2", "1")}
    print(f"{'system.threads':<16}{'tokens/s':>10}{'loop on':>10}{'loop off':>10}")
    for threads, values in rates.items():
        print(f"{threads:<16}" + "".join(f"{value:>10,.0f}" for value in values))
    print(
        f"null is {rates['null'][0] / rates['2'][0]:.2f} times as fast as 2, {rates['null'][0] / rates['1'][0]:.2f} times as 1"
    )


if __name__ == "__main__":
    main()

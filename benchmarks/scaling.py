"""How the cost of training scales: `python benchmarks/scaling.py [--sweeps batch length ...] [--data FILE] [--plots FOLDER]`.

Each sweep changes one quantity and prints a table: the time of a step, the peak memory of its process, and the exponent of
their growth from the line before (1.00 is linear). The points of a sweep are interleaved. --data saves the results in a file,
so that sweeps can be measured one at a time; --plots draws the sweeps in that file.

batch     tokens per step, by the number of examples
length    tokens per example, with the same number of tokens per step
size      model size, from 0.8 M to 85 M weights in the blocks
trained   share of supervised tokens, with a vocabulary of 50,257
ranks     processes under torchrun (gloo), and threads of one process, on the same examples
files     size of the data file: time until the first record is read
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling_plots import draw, label_of
from step_runner import Child, run_interleaved
from step_setting import Setting, batch, n_tokens, write_checkpoint

Point = dict[str, Any]
"""x: the changed quantity; seconds: time of a step; bytes: peak memory; series: the line in the plot; note."""

SMALL = Setting(vocab_size=4096, shortest=250, longest=250)
SWEEPS: dict[str, tuple[str, list[tuple[float, Setting]]]] = {
    "batch": (
        "tokens per step (examples of 250)",
        [(250 * n, replace(SMALL, batch_size=n)) for n in (1, 2, 4, 8, 16, 32)],
    ),
    "length": (
        "tokens per example (4,096 per step)",
        [
            (n, replace(SMALL, batch_size=4096 // n, shortest=n, longest=n, context_length=4096))
            for n in (64, 128, 256, 512, 1024, 2048, 4096)
        ],
    ),
    "size": (
        "weights in the blocks",
        [
            (layers * (4 * width**2 + 3 * width * (-(-8 * width // 3 // 16) * 16)), model)
            for layers, width in ((4, 128), (5, 192), (6, 288), (8, 384), (8, 576), (12, 768))
            for model in [
                replace(SMALL, n_layer=layers, n_embd=width, n_head=width // 32 if width == 288 else width // 64)
            ]
        ],
    ),
    "trained": (
        "share of supervised tokens (V = 50,257)",
        [(share, replace(SMALL, vocab_size=50257, trained=share)) for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)],
    ),
}


def steps(name: str, rounds: int, seconds: float) -> list[Point]:
    """Measure the points of a single-process sweep, interleaved."""
    points = []
    with tempfile.TemporaryDirectory() as place:
        children = []
        for number, (x, setting) in enumerate(SWEEPS[name][1]):
            folder = write_checkpoint(setting, Path(place) / str(number))
            children.append((x, setting, Child("ours", setting, folder, None)))
            print(f"  {label_of(name, x)} ready", file=sys.stderr, flush=True)
        run_interleaved([child for _, _, child in children], rounds, seconds)
        for x, setting, child in children:
            spent = statistics.median(step["seconds"] for step in child.steps)
            points.append({"x": x, "seconds": spent, "bytes": child.quit(), "tokens": n_tokens(batch(setting, 0))})
    return points


def ranks(rounds: int, seconds: float) -> list[Point]:
    """A step of 16 examples on 1, 2, 4 … processes or threads, up to the number of cores."""
    setting = replace(SMALL, batch_size=16)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [n for n in (1, 2, 4, 8, 16) if n <= cores]
    results: dict[tuple[str, int], list[Point]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(setting, Path(place) / "checkpoint")
        for _ in range(rounds):
            for n in counts:
                for series, processes, threads in (("processes", n, 1), ("threads", 1, n)):
                    arguments = json.dumps([replace(setting, threads=threads).as_dict(), str(folder), seconds])
                    done = _run(["--rank", arguments], threads, processes)
                    results.setdefault((series, n), []).append(done)
    return [
        {
            "x": n,
            "series": series,
            "seconds": statistics.median(point["seconds"] for point in points),
            "bytes": max(point["bytes"] for point in points),
            "tokens": points[0]["tokens"],
        }
        for (series, n), points in results.items()
    ]


def _run(arguments: list[str], threads: int = 1, processes: int = 1) -> Point:
    """Run this script with these arguments and return its result; several processes are started with torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one_rank(setting: Setting, folder: str, seconds: float) -> None:
    """Run steps on this rank's examples for some seconds; rank 0 prints the median time and the memory of all ranks."""
    from step_implementations import our_engine, our_examples, peak_bytes

    from mini_chat_gpt.common.distributed import join

    world = join("cpu")
    engine = our_engine(setting, folder, "auto", world=world)
    times: list[float] = []
    for number in range(1000):
        own_examples = our_examples(batch(setting, number))[world.rank :: world.size]
        began = time.perf_counter()
        engine.train_step(own_examples)
        times.append(time.perf_counter() - began)
        if world.broadcast(lambda: sum(times[3:]) > seconds):
            break
    memory = world.sum([peak_bytes()])[0]
    if world.is_main:
        tokens = n_tokens(batch(setting, 0))
        print(json.dumps({"seconds": statistics.median(times[3:]), "bytes": memory, "tokens": tokens}))


def files(rounds: int, seconds: float) -> list[Point]:
    """Time until the first record of a file is read: at the first start, which indexes the file, and at later starts."""
    points = []
    with tempfile.TemporaryDirectory() as place:
        for megabytes, path in _files(Path(place)):
            for series in ("first start", "later starts"):
                done = _run(["--index", str(path)])
                points.append({"x": megabytes * 1e6, "series": series, **done})
            path.unlink()
    return points


def _files(place: Path) -> Iterator[tuple[int, Path]]:
    """Record files of growing size, which repeat the sample's records."""
    from mini_chat_gpt.prepare.sample_stories import write_sample

    sample = write_sample(place / "sample", n_train=20_000, n_valid=10)[0].read_bytes()
    for megabytes in (10, 30, 100, 300, 1000):
        path = place / f"{megabytes}.txt"
        with path.open("wb") as file:
            for _ in range(max(1, round(megabytes * 1e6 / len(sample)))):
                file.write(sample)
        yield megabytes, path


def index_one(path: str) -> None:
    from mini_chat_gpt.common.resources import peak_memory
    from mini_chat_gpt.tinystories.record_index import RecordIndex

    began = time.perf_counter()
    index = RecordIndex(path)
    story = index[len(index) - 1].story
    spent = time.perf_counter() - began
    print(
        json.dumps(
            {"seconds": spent, "bytes": peak_memory("cpu"), "note": f"{len(index):,} records", "read": len(story)}
        )
    )


def print_table(name: str, points: list[Point]) -> None:
    print(f"\n{title_of(name)}")
    print(f"{'':>14}{'seconds':>10}{'grows':>7}{'tokens/s':>10}{'memory':>10}{'grows':>7}")
    for series in dict.fromkeys(point.get("series", "") for point in points):
        if series:
            print(series)
        before: Point | None = None
        for point in (point for point in points if point.get("series", "") == series):
            rate = f"{point['tokens'] / point['seconds']:,.0f}" if "tokens" in point else ""
            print(
                f"{label_of(name, point['x']):>14}{point['seconds']:10.3f}{steepness(before, point, 'seconds'):>7}{rate:>10}"
                f"{point['bytes'] / 2**30:6.2f} GiB{steepness(before, point, 'bytes'):>7}"
            )
            before = point


def steepness(before: Point | None, point: Point, key: str) -> str:
    """The exponent of the growth of a cost since the previous point: 1 is linear."""
    if before is None:
        return ""
    return f"{math.log(point[key] / before[key]) / math.log(point['x'] / before['x']):.2f}"


MULTI_PROCESS_SWEEPS: dict[str, tuple[str, Callable[[int, float], list[Point]]]] = {
    "ranks": ("processes or threads (16 examples of 250 tokens per step)", ranks),
    "files": ("bytes of the data file", files),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SWEEPS, *MULTI_PROCESS_SWEEPS]
    parser.add_argument("--sweeps", nargs="*", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=0.5, help="seconds; a turn has at least one step")
    parser.add_argument("--data", type=Path, help="JSON file for the results")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--index", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        fields, folder, seconds = json.loads(args.rank)
        one_rank(Setting(**fields), folder, seconds)
    elif args.index:
        index_one(args.index)
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Measure and print each sweep, then save and plot them if requested."""
    sweeps: dict[str, list[Point]] = json.loads(args.data.read_text()) if args.data and args.data.exists() else {}
    for name in args.sweeps:
        sweeps[name] = (
            steps(name, args.rounds, args.turn)
            if name in SWEEPS
            else MULTI_PROCESS_SWEEPS[name][1](args.rounds, args.turn)
        )
        print_table(name, sweeps[name])
        if args.data:
            args.data.write_text(json.dumps(sweeps, indent=1))
    if args.plots:
        for name, points in sweeps.items():
            draw(name, title_of(name), points, args.plots)


def title_of(name: str) -> str:
    return SWEEPS[name][0] if name in SWEEPS else MULTI_PROCESS_SWEEPS[name][0]


if __name__ == "__main__":
    main()

"""Damage files and see what the program does with them: `python tests/fuzz/run.py --kind checkpoints --mutants 2000 --seed 1`.

Prints the verdicts by kind and entrance (see oracle.py) and every fault with its number. `--only NUMBER --keep FOLDER` repeats
one mutant and writes its files to FOLDER. The exit code is 1 if there are faults.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]  # tests, and the repository
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"

from fuzz.kinds import KINDS  # noqa: E402
from fuzz.oracle import VERDICTS, Verdict, campaign, flips, scratch  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--mutants", type=int, default=1000, help="of each kind (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of one mutant")
    parser.add_argument("--target", help="only entrances whose name contains this")
    parser.add_argument("--keep", type=Path, help="folder for the files of the mutant")
    parser.add_argument("--show", choices=VERDICTS, nargs="*", default=["fault"], help="verdicts to print in full")
    parser.add_argument(
        "--alike", type=int, default=1, help="number of verdicts with the same cause to print (default: 1)"
    )
    parser.add_argument(
        "--flips", type=int, metavar="N", help="instead, N single-bit flips of a checkpoint's JSON files"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    n_faults = 0
    for kind in ["checkpoints"] if arguments.flips else arguments.kind:
        n_faults += run_kind(kind, arguments)
    return 1 if n_faults else 0


def signature(verdict: Verdict) -> str:
    """The same for verdicts that probably have the same cause: the error, and the last function of the package."""
    lines = verdict.detail.strip().splitlines()
    places = [line for line in lines if "/mini_chat_gpt/" in line]
    if not places:
        where = re.sub(r"tokens-\w+", "tokens", verdict.change.partition(":")[0])
        return f"{verdict.target}: {lines[0][:20] if lines else ''} {where}"
    return f"{places[-1]} {lines[-1].partition(':')[0]}"


def run_kind(kind: str, arguments: argparse.Namespace) -> int:
    """Run one kind, print its table, and return the number of faults."""
    from importlib import import_module

    folder, started = scratch(), time.monotonic()
    counts: dict[str, Counter[str]] = {}
    seen: Counter[str] = Counter()
    try:
        module = import_module(f"fuzz.{kind}")
        targets = module.flip_targets(folder) if arguments.flips else module.targets(folder)
        if arguments.target:
            targets = [target for target in targets if arguments.target in target.name]
        results = (
            flips(targets, arguments.flips, arguments.seed)
            if arguments.flips
            else campaign(targets, kind, arguments.mutants, arguments.seed, arguments.only, arguments.keep)
        )
        for number, verdict in results:
            counts.setdefault(verdict.target, Counter())[verdict.verdict] += 1
            if verdict.verdict in arguments.show and seen[signature(verdict)] < arguments.alike:
                seen[signature(verdict)] += 1
                where = f"{kind} {arguments.seed}/{number} {verdict.verdict}: {verdict.target}: {verdict.change}"
                print(f"{where}\n    {verdict.detail}", flush=True)
    except KeyboardInterrupt:
        print("interrupted; the table has the mutants so far")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    total = sum(counts.values(), Counter())
    print(f"\n{kind}, seed {arguments.seed}, {time.monotonic() - started:.0f} s")
    print(f"{'':24}{'mutants':>12}" + "".join(f"{name:>12}" for name in VERDICTS))
    for name, count in [*sorted(counts.items()), ("all", total)]:
        print(f"{name:24}{count.total():12}" + "".join(f"{count[verdict]:12}" for verdict in VERDICTS))
    return total["fault"]


if __name__ == "__main__":
    sys.exit(main())

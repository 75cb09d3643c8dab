"""Checks and speed on a GPU; see gpu.sh. Prints tables for RESULTS.md, with date, card and command."""

from __future__ import annotations

import argparse
import datetime
import importlib
import shlex
import sys
import time

import torch
from gpu_setup import make_setup

from mini_chat_gpt.common.device import keep_freed_memory

PARTS = ("parity", "speed")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="parity or speed (default: both)")
    parser.add_argument(
        "--tiny", action="store_true", help="small models, so that everything runs on a CPU in a minute"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only the checks or tables with these names"
    )
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: not a part; there are {' and '.join(PARTS)}")
    setup = make_setup(arguments.device, arguments.tiny)
    keep_freed_memory()
    words = sys.argv[1:] if argv is None else argv
    print(
        f"{datetime.date.today()}, {setup.card}, PyTorch {torch.__version__}: `benchmarks/gpu.sh {shlex.join(words)}`"
    )
    print(f"({setup.precision.reason})")
    failed = 0
    for part in arguments.parts or PARTS:
        started = time.monotonic()
        failed += importlib.import_module(f"gpu_{part}").run(setup, arguments.only)
        print(f"\n{part}: {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

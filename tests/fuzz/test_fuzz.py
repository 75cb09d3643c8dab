"""Damaged files: every command succeeds with the right result, falls back, or refuses with a sentence (see oracle.py).

The mutants run in a process of their own, which forks: a process of pytest may have threads. `run.py` prints tables.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.kinds import KINDS


def check(*options: str) -> None:
    """Run mutants; there must be no faults."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_correctly(kind):
    check("--kind", kind, "--mutants", "15", "--seed", "0")


def test_flipped_bits_of_checkpoints_are_noticed():
    check("--flips", "25", "--seed", "0")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_or_read_correctly(kind):
    check("--kind", kind, "--mutants", "2500", "--seed", "1")


@pytest.mark.slow
def test_many_flipped_bits_of_checkpoints_are_noticed():
    check("--flips", "10000", "--seed", "1")

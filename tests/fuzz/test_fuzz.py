"""Damaged files: every command succeeds with the right result, falls back, or refuses with a sentence (see oracle.py).

`python tests/fuzz/run.py` runs more mutants and prints tables.
"""

import shutil
from importlib import import_module

import pytest
from fuzz.oracle import Verdict, campaign, flips, scratch

KINDS = ("checkpoints", "configs", "run_folders", "imports", "caches")


@pytest.fixture
def folder():
    folder = scratch()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def faults(verdicts) -> str:
    """The faults of numbered verdicts as text. Most verdicts must be something else than "unchanged"."""
    numbered = list(verdicts)
    assert sum(verdict.verdict != "unchanged" for _, verdict in numbered) > 0.8 * len(numbered)
    return "\n\n".join(f"{number}: {_text(verdict)}" for number, verdict in numbered if verdict.verdict == "fault")


def _text(verdict: Verdict) -> str:
    return f"{verdict.target}: {verdict.change}\n{verdict.detail}"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_correctly(kind, folder):
    targets = import_module(f"fuzz.{kind}").targets(folder)
    assert not faults(campaign(targets, kind, 120, seed=0))


def test_flipped_bits_of_checkpoints_are_noticed(folder):
    targets = import_module("fuzz.checkpoints").flip_targets(folder)
    assert not faults(flips(targets, 120, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_or_read_correctly(kind, folder):
    targets = import_module(f"fuzz.{kind}").targets(folder)
    assert not faults(campaign(targets, kind, 2000, seed=1))


@pytest.mark.slow
def test_many_flipped_bits_of_checkpoints_are_noticed(folder):
    targets = import_module("fuzz.checkpoints").flip_targets(folder)
    assert not faults(flips(targets, 10_000, seed=0))

"""The oracle: what a command may do with a damaged file.

- It succeeds with exactly the result of the undamaged files, or with what a second, naive reader takes from the damaged ones.
- It falls back to another whole file, with a line about it.
- It refuses, with our own error (UserError): one sentence of at most 1,000 characters, within 1 GB and 10 s.

Anything else is a fault: another exception, the end of the process, another result. In addition, a file whose hash differs from
the manifest next to it must never be used: then the naive reader's result does not count, and a command that reads that file
may not succeed without a fallback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzz.compare import difference, same
from fuzz.mutations import Change, flip, mutate
from fuzz.sandbox import Outcome, attempt, run_all

from mini_chat_gpt.common.manifest import MANIFEST, Manifest, write_manifest

VERDICTS = ("refused", "equal", "naive-equal", "fell back", "unchanged", "fault")


@dataclass(frozen=True)
class Target:
    """An entrance of the program and the files that it reads."""

    name: str
    fixture: Path  # a folder; each mutant gets a copy
    files: Sequence[Path | str]  # patterns, relative to the fixture; one of the files is changed
    act: Callable[[], Any]  # called in the copy; returns a value of dicts, lists, arrays and plain values
    naive: Callable[[], Any] | None = None  # the value by a second reader, called in the copy; may raise anything
    used: Sequence[str] = ()  # names of files that `act` can't do without
    drop: Path | None = None  # a file or folder that may be passed over; `act` without it is the fallback
    quiet: bool = False  # a fallback needs no line
    warm: bool = False  # call `act` before the change as well, as caches may be filled
    weight: int = 1  # relative number of mutants
    changes: dict[str, tuple[Change, ...]] = field(default_factory=dict)  # by suffix, instead of the usual ones


@dataclass(frozen=True)
class Verdict:
    """The result of one mutant."""

    verdict: str
    target: str
    change: str
    detail: str = ""


@dataclass(frozen=True)
class Expected:
    """What the undamaged files give."""

    value: Any
    fallback: Any = None


def scratch() -> Path:
    """A new folder, in memory if possible."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def in_copy(fixture: Path, act: Callable[[Path], Any]) -> Any:
    """Call `act` with a copy of the fixture, which is also the working directory."""
    folder, back = Path(tempfile.mkdtemp(dir=fixture.parent)), Path.cwd()
    try:
        copy = folder / "copy"
        shutil.copytree(fixture, copy, symlinks=True)
        os.chdir(copy)
        return act(copy)
    finally:
        os.chdir(back)
        shutil.rmtree(folder, ignore_errors=True)


def expect(target: Target) -> Expected:
    """The value of the undamaged fixture, which the naive reader must confirm, and that of the fallback."""

    def undamaged(_: Path) -> Any:
        outcome, naive = attempt(target.act), target.naive() if target.naive else None
        assert outcome.status == "value", f"{target.name}: {outcome.message}"
        if target.naive:
            assert same(outcome.value, naive), f"{target.name}: {difference(outcome.value, naive)}"
        return outcome.value

    def dropped(copy: Path) -> Any:
        path = copy / str(target.drop)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        outcome = attempt(target.act)
        assert outcome.status == "value", f"{target.name}: {outcome.message}"
        return outcome.value

    return Expected(in_copy(target.fixture, undamaged), in_copy(target.fixture, dropped) if target.drop else None)


def judge_mutant(target: Target, expected: Expected, rng: Random, keep: Path | None = None) -> Verdict:
    """Change one file of a copy, call the entrance, and compare."""

    def judge(copy: Path) -> Verdict:
        if target.warm:
            attempt(target.act)
        path = next(copy.glob(str(rng.choice(target.files))))
        before = path.read_bytes() if path.is_file() else b""
        change = mutate(path, rng, target.changes.get(path.suffix, ()))
        if not change:
            return Verdict("unchanged", target.name, "none")
        hashed = next(
            (folder for folder in path.relative_to(copy).parents if (copy / folder / MANIFEST).is_file()), None
        )
        covered = hashed is not None and path.name != MANIFEST and path.is_file() and path.read_bytes() != before
        if rehashed := covered and rng.random() < 0.5:
            write_manifest(copy / str(hashed))
        elif path.name == MANIFEST and rng.random() < 0.5:
            rehash(path)
        where = f"{path.relative_to(copy)}: {change}{' (manifest rewritten)' if rehashed else ''}"
        if keep is not None:
            shutil.copytree(copy, keep, symlinks=True, dirs_exist_ok=True)
        naive = _naive(target) if target.naive and (rehashed or not covered) else None
        outcome = attempt(target.act)
        verdict, detail = _judge(target, expected, outcome, naive, path.name if covered and not rehashed else "")
        return Verdict(verdict, target.name, where, detail)

    return in_copy(target.fixture, judge)


def rehash(manifest: Path) -> None:
    """Make the manifest's own hash agree with its content again, if it still has the structure of one."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        data = manifest.read_bytes()
        content = json.loads(data) | {"sha256": Manifest.model_validate_json(data).digest()}
        manifest.write_text(json.dumps(content, indent=1))


def _naive(target: Target) -> Any:
    """The naive reader's value; None if it can't read the files."""
    assert target.naive is not None
    try:
        return target.naive()
    except Exception:
        return None


def _judge(target: Target, expected: Expected, outcome: Outcome, naive: Any, differs: str) -> tuple[str, str]:
    """(verdict, detail). `differs` is the name of the changed file if the manifest shows the change."""
    if outcome.status != "value":
        return outcome.status, outcome.message
    if same(outcome.value, expected.value):
        if differs in target.used and not outcome.printed:
            return "fault", "the file was used, although its hash differs from the manifest"
        return "equal", ""
    if naive is not None and same(outcome.value, naive):
        return "naive-equal", ""
    if target.drop and same(outcome.value, expected.fallback) and (outcome.printed or target.quiet):
        return "fell back", outcome.printed
    detail = f"against the undamaged: {difference(outcome.value, expected.value)}"
    detail += "" if naive is None else f"\nagainst the naive reader: {difference(outcome.value, naive)}"
    return "fault", f"another result, printed {outcome.printed[-300:]!r}\n{detail}"


def campaign(
    targets: Sequence[Target], name: str, n: int, seed: int, only: int | None = None, keep: Path | None = None
) -> Iterator[tuple[int, Verdict]]:
    """The numbers and verdicts of `n` mutants, spread over the targets by their weights."""
    turns = [target for target in targets for _ in range(target.weight)]
    numbers = range(n) if only is None else [only]
    chosen = [turns[number % len(turns)] for number in numbers]
    random = [Random(f"{name}/{seed}/{number}") for number in numbers]
    yield from zip(numbers, verdicts(chosen, random, keep), strict=True)


def flips(targets: Sequence[Target], limit: int, seed: int) -> Iterator[tuple[int, Verdict]]:
    """The numbers and verdicts of all single-bit flips of the targets' files, of a sample if there are more than `limit`."""
    bits = [
        (target, str(file), bit)
        for target in targets
        for file in dict.fromkeys(target.files)
        for bit in range(8 * (target.fixture / file).stat().st_size)
    ]
    chosen = bits if len(bits) <= limit else Random(seed).sample(bits, limit)
    changed = [
        replace(target, files=[file], changes={Path(file).suffix: (partial(flip, bit=bit),)})
        for target, file, bit in chosen
    ]
    random = [Random(f"{seed}/{file}/{bit}") for _, file, bit in chosen]
    yield from enumerate(verdicts(changed, random))


def verdicts(targets: Sequence[Target], random: Sequence[Random], keep: Path | None = None) -> Iterator[Verdict]:
    """The verdicts of one mutant of each target in the list, made with the random state at the same place."""
    by_name = {target.name: target for target in targets}
    (expected,) = run_all([lambda: {name: expect(target) for name, target in by_name.items()}])
    if isinstance(expected, str):
        raise AssertionError(expected)
    cases = [
        partial(judge_mutant, target, expected[target.name], rng, keep)
        for target, rng in zip(targets, random, strict=True)
    ]
    for target, result in zip(targets, run_all(cases), strict=True):
        yield result if isinstance(result, Verdict) else Verdict("fault", target.name, "?", result)

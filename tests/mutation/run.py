"""Mutation test, not part of the test suite: change one place in a module and see whether the module's tests notice.

    pip install cosmic-ray coverage
    python tests/mutation/run.py --share 0.2 --workers 2 --out /tmp/mutants.jsonl [--only lora loss]

Of each module of `targets.TARGETS` a sample of places is drawn, each with one change: those of cosmic-ray (operators,
comparisons, numbers, conditions, loops, exceptions, decorators) and two of our own (a statement or a keyword argument removed).
Changes of annotations, docstrings and protocols are not drawn. Each mutant runs those tests of the files that belong to its module
which execute the changed statement (all, if none seems to: processes that tests start are not observed), in a child process of a
worker that has imported the libraries once, in a copy of the repository. Each result is appended to the file at once, so an
interrupted run can be resumed. The survivors are printed at the end; `survivors.md` says of each known one whether it is
equivalent or missed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, TypeGuard

from targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str  # path from the repository's root
    line: int
    operator: str
    before: str  # the changed line
    after: str
    source: str  # of the whole module


# Making mutants


Place = tuple[str, int, int]
"""(module, line, column)"""
Change = tuple[str, Callable[[], str | None]]
"""(operator, a function that returns the mutated source)"""


def places_of(module: str, source: str) -> dict[Place, list[Change]]:
    """The places of a module that can be changed, each with its possible changes."""
    places: dict[Place, list[Change]] = {}
    for (line, column), change in [*_cosmic_ray(source), *_removals(source)]:
        places.setdefault((module, line, column), []).append(change)
    return places


def draw(module: str, source: str, share: float, seed: int) -> list[Mutant]:
    """Mutants of a share of a module's places. The sample depends on the module and the seed alone."""
    rng = random.Random(f"{seed} {module}")
    places = places_of(module, source)
    order = sorted(places)
    rng.shuffle(order)
    count = math.ceil(share * len(order))
    print(f"{module}: {len(order)} places", flush=True)
    mutants: list[Mutant] = []
    for place in order:
        if len(mutants) == count:
            break
        changes = places[place]
        rng.shuffle(changes)
        for operator, mutated in ((operator, make()) for operator, make in changes):
            if mutated is not None and _meaning(mutated) not in (None, _meaning(source)):
                before, after = _first_difference(source, mutated)
                mutants.append(Mutant(module, place[1], operator, before, after, mutated))
                break
    return mutants


def _cosmic_ray(source: str) -> Iterator[tuple[tuple[int, int], Change]]:
    """(place, change) of the changes that cosmic-ray knows."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(plugins.operator_names()):
        operator_class = plugins.get_operator(name)
        if operator_class.arguments():
            continue
        operator = operator_class()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            yield place, (name.removeprefix("core/"), partial(_mutate, source, operator, occurrence))


def _mutate(source: str, operator: Any, occurrence: int) -> str | None:
    from cosmic_ray.mutating import mutate_code

    try:
        return mutate_code(source, operator, occurrence)
    except AttributeError:  # cosmic-ray can't replace an exception that is an attribute of a module
        return None


def _removals(source: str) -> Iterator[tuple[tuple[int, int], Change]]:
    """(place, change) for each statement and each keyword argument that can be removed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise):
            yield (node.lineno, node.col_offset), ("RemoveStatement", partial(_replaced, source, node, "pass"))
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is not None:
                    place = (keyword.lineno, keyword.col_offset)
                    yield place, ("RemoveKeyword", partial(_replaced, source, keyword, "**{}"))


def _replaced(source: str, node: Any, text: str) -> str:
    """The source with the text of a node replaced."""
    lines = source.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1
    # The columns of `ast` count bytes.
    head = lines[first].encode()[: node.col_offset].decode()
    tail = lines[last].encode()[node.end_col_offset :].decode()
    return "".join([*lines[:first], head + text + tail, *lines[last + 1 :]])


def _meaning(source: str) -> str | None:
    """A text that is equal for sources of the same meaning: without annotations, docstrings and blocks for type checkers."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif _is_for_type_checkers(node):
            node.body = [ast.Pass()]
        # Docstrings, and the statements that replace removed ones.
        for name in ("body", "orelse"):
            if isinstance(block := getattr(node, name, None), list):
                setattr(node, name, [statement for statement in block if not _does_nothing(statement)])
    return ast.dump(tree)


def _is_for_type_checkers(node: ast.AST) -> TypeGuard[ast.If | ast.ClassDef]:
    """Whether the node is `if TYPE_CHECKING` or a protocol."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.ClassDef) and "Protocol" in (getattr(base, "id", "") for base in node.bases)


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _first_difference(source: str, mutated: str) -> tuple[str, str]:
    pairs = zip(source.splitlines(), mutated.splitlines(), strict=False)
    return next(((old.strip(), new.strip()) for old, new in pairs if old != new), ("", ""))


# Running them


class Worker:
    """A copy of the repository, and a process that has imported the libraries and forks a child for each test run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in files.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        environment = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
        environment |= {"WANDB_MODE": "offline"}
        subprocess.run([sys.executable, "-m", "compileall", "-q", "mini_chat_gpt", "tests"], cwd=folder, check=False)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run_tests(self, tests: list[str], seconds: float, lines: Path | None = None) -> str:
        """ "passed", "failed" or "timeout". With `lines`, the LineMap of the one test file is written to this path."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        # A folder of its own for each, because a mutant may leave a process behind that continues to write.
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as temporary:
            request = {"tests": tests, "seconds": seconds, "temporary": temporary, "lines": lines and str(lines)}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline().strip()

    def test(self, mutant: Mutant, tests: list[str], seconds: float) -> str:
        """The result of the tests with this mutant."""
        path = self.folder / mutant.module
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            stale.unlink()  # its time of change could be that of the mutant
        original = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.source, encoding="utf-8")
            return self.run_tests(tests, seconds)
        finally:
            path.write_text(original, encoding="utf-8")

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.2, help="share of the places of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[""], help="only modules whose path contains one of these texts")
    parser.add_argument("--out", type=Path, required=True, help="file of results (JSON Lines)")
    arguments = parser.parse_args()

    sample: list[Mutant] = []
    for module in TARGETS:
        if any(text in module for text in arguments.only):
            sample += draw(module, (ROOT / module).read_text(encoding="utf-8"), arguments.share, arguments.seed)
    known = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    done = {_key(result) for result in map(json.loads, known)}
    todo = [mutant for mutant in sample if _key(asdict(mutant)) not in done]
    random.Random(arguments.seed).shuffle(todo)  # a part of the results is a sample, too
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run_all(todo, Path(folder), arguments.workers, arguments.out)
    report([json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()])


def _key(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("module", "line", "operator", "before", "after"))


class Baseline:
    """What the tests do without a mutant: their duration, and the lines that each executes. Kept in a folder for the next start."""

    def __init__(self, folder: Path) -> None:
        sources = [
            path.read_bytes() for part in ("mini_chat_gpt", "tests") for path in sorted((ROOT / part).rglob("*.py"))
        ]
        self.folder = folder / hashlib.sha256(b"".join(sources)).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def of(self, file: str, worker: Worker) -> dict[str, Any]:
        """{"seconds", "lines"} of one test file, which is run if that is not known yet."""
        path = self.folder / (file.replace("/", ".") + ".json")
        if not path.exists():
            begin, lines = time.monotonic(), path.with_suffix(f".{id(worker)}.lines")
            if (result := worker.run_tests([file], 1800, lines)) != "passed":
                raise SystemExit(f"The tests of {file} fail without a mutant ({result}).")
            content = {"seconds": time.monotonic() - begin, "lines": json.loads(lines.read_text(encoding="utf-8"))}
            path.write_text(json.dumps(content), encoding="utf-8")
            lines.unlink()
        return dict(json.loads(path.read_text(encoding="utf-8")))


def tests_of(mutant: Mutant, baselines: Mapping[str, dict[str, Any]]) -> list[str]:
    """The tests that execute the changed statement; all, if none is known to."""
    changed = statement_lines((ROOT / mutant.module).read_text(encoding="utf-8"), mutant.line)
    tests: list[str] = []
    for file, baseline in baselines.items():
        lines = baseline["lines"].get(mutant.module, {})
        names = {name for line in changed for name in lines.get(str(line), [])}
        tests += [file] if file in names else sorted(names)
    return tests or list(baselines)


def statement_lines(source: str, line: int) -> range:
    """The lines of the innermost statement at a line; of a compound statement only those before its body."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):  # outer nodes first
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body and body[0].lineno > line else node.end_lineno
            if not body or body[0].lineno > line:
                found = range(node.lineno, max(node.lineno, last or node.lineno) + 1)
    return found


def run_all(mutants: list[Mutant], folder: Path, n_workers: int, out: Path) -> None:
    """Test all mutants and append the results to a file."""
    workers: Queue[Worker] = Queue()
    for number in range(n_workers):
        (folder / str(number)).mkdir()
        workers.put(Worker(folder / str(number)))
    baseline = Baseline(out.with_suffix(".baseline"))
    started, n_done = time.monotonic(), 0

    def test(mutant: Mutant) -> None:
        nonlocal n_done
        worker = workers.get()
        try:
            baselines = {file: baseline.of(file, worker) for file in TARGETS[mutant.module]}
            seconds = 30 + 5 * sum(one["seconds"] for one in baselines.values())
            result = worker.test(mutant, tests_of(mutant, baselines), seconds)
        finally:
            workers.put(worker)
        n_done += 1
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(mutant), "source": None, "result": result}) + "\n")
        left = (time.monotonic() - started) / n_done * (len(mutants) - n_done)
        print(f"{n_done}/{len(mutants)} {result:8} {mutant.module}:{mutant.line}  {left / 60:.0f} min left", flush=True)

    try:
        with ThreadPoolExecutor(n_workers) as pool:
            list(pool.map(test, mutants))
    finally:
        while not workers.empty():
            workers.get().close()


def report(results: list[dict[str, Any]]) -> None:
    """Print figures by module and the survivors."""
    total, survived = Counter[str](), Counter[str]()
    for result in results:
        total[result["module"]] += 1
        survived[result["module"]] += result["result"] == "passed"
    for module, count in sorted(total.items()):
        print(f"{module:50} {count:4} mutants, {survived[module]:3} not noticed")
    print(f"{'all':50} {total.total():4} mutants, {survived.total():3} not noticed")
    for result in results:
        if result["result"] == "passed":
            print(
                f"{result['module']}:{result['line']} {result['operator']}\n  - {result['before']}\n  + {result['after']}"
            )


if __name__ == "__main__":
    main()

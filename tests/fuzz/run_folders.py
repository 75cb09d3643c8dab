"""Mutants of run folders: what else is in them, who reads it, and folders that are renamed or are something else."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from fuzz.checkpoints import found, newest, resume
from fuzz.oracle import Target
from fuzz.runs import make_runs

from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.evaluation.held_out import find_held_out, groups_of
from mini_chat_gpt.evaluation.memorization import find_training_files
from mini_chat_gpt.prepare.data_folder import read_source, write_source
from mini_chat_gpt.training.loss_curves import draw_losses, read_curves
from mini_chat_gpt.training.run_folder import free_run_folder, run_to_resume

RUN = Path("runs/sft")
METRICS = "metrics.jsonl"
VALID = Path("data/TinyStoriesInstruct-valid.txt")
STEP_NAMES = (
    "step-0000009",
    "step-99999999999999999999",
    "step-²",
    "step-",
    "step-x",
    "step--1",
    "step-0000003 copy",
    "best",
    "last",
    ".x",
)


def _metrics(lines: list[bytes]) -> set[tuple[str, int, float]]:
    """(name, step, value) of everything that is a finite number in a line with a step."""
    points = set()
    for line in lines:
        try:
            metrics = json.loads(line.decode(errors="replace"))
            step = metrics["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if _is_finite(step) and not isinstance(step, bool):
            values = {name.partition("/")[2]: value for name, value in metrics.items()}
            points |= {(name, int(step), value) for name, value in values.items() if _is_finite(value)}
    return points


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def curves(folder: Path) -> Callable[[], Any]:
    """The losses of a run, compared with a second reader: nothing invented, and nothing lost from the undamaged lines."""
    original = (folder / RUN / METRICS).read_bytes().splitlines()

    def act() -> Any:
        taken = read_curves(RUN)
        series = {"train_loss": taken.train, "val_loss": taken.held_out, "lr": taken.learning_rate}
        series |= {f"val_loss/{kind}": points for kind, points in taken.by_kind.items()}
        points = {(name, step, value) for name, points in series.items() for step, value in points.items()}
        path = RUN / METRICS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        invented = points - _metrics(lines)
        once = [line for line in original if lines.count(line) == 1 and len(lines) == len(original)]
        steps = {step for _, step, _ in _metrics([line for line in lines if line not in once])}
        known = {point for point in _metrics(once) if point[0] in series and point[1] not in steps}
        return {"invented": sorted(invented)[:3], "lost": sorted(known - points)[:3]}

    return act


def plot() -> Any:
    """The picture of the losses; None if there are none."""
    try:
        path = draw_losses(RUN)
    except OSError:  # a caller of `draw_losses` expects it
        return "no losses" if not (RUN / METRICS).is_file() else "drawn"
    return "drawn" if path is not None and path.is_file() else "no losses"


def naive_plot() -> Any:
    path = RUN / METRICS
    points = _metrics(path.read_bytes().splitlines()) if path.is_file() else set()
    return "drawn" if any(name in ("train_loss", "val_loss") for name, _, _ in points) else "no losses"


def data_of_run() -> Any:
    """The data that reports find for a run."""
    file, why = find_held_out(None, [RUN])
    if "sample" in why:
        print(why)
        return {"file": file.name, "why": why}
    return {"file": file.relative_to(Path.cwd()) if file.is_absolute() else file, "why": why}


def training_files() -> Any:
    files = find_training_files(RUN, VALID)
    return {"files": [str(file.resolve().relative_to(Path.cwd())) for file in files.files], "same": files.same_source}


def naive_training_files() -> Any:
    """None of the files, if the record has changed: what the run was trained on is not known."""
    recorded = json.loads((RUN / "run.json").read_bytes())["began"]["data"]
    paths = [(RUN / entry["path"]).resolve().relative_to(Path.cwd()) for entry in recorded]
    sizes = [entry["size"] == path.stat().st_size for entry, path in zip(recorded, paths, strict=True)]
    hashes = [
        entry["sha256_of_pieces"] == sha256(path.read_bytes()).hexdigest()
        for entry, path in zip(recorded, paths, strict=True)
    ]
    files = [str(path) for path in paths if "valid" not in path.name] if all([*sizes, *hashes]) else []
    return {"files": files, "same": bool(files)}


def no_training_files() -> Any:
    """The value of `naive_training_files` if it can't confirm the record."""
    try:
        return naive_training_files()
    except (ValueError, KeyError, TypeError, OSError, RecursionError, AttributeError):
        return {"files": [], "same": False}


def run_names() -> Any:
    """Which folder a new run and a resumed run would use."""
    section = load_config(None, ["sft.save_dir=runs/sft", "sft.resume_from=auto"]).sft
    resumed = run_to_resume(section)
    return {"new": str(free_run_folder("runs/sft")), "auto": None if resumed is None else str(resumed)}


def naive_run_names() -> Any:
    """Runs are never overwritten; those without a result are unfinished."""
    return {"new": "runs/sft-2", "auto": None if (RUN / "result.json").is_file() else "runs/sft"}


def resumed(*overrides: str) -> Callable[[], Any]:
    """The state of the resumed run that doesn't depend on its settings."""
    act = resume("sft", "runs/sft", *overrides)

    def state() -> Any:
        value = act()
        return {key: value[key] for key in ("progress", "weights", "optimizer", "tokenizer")}

    return state


def groups() -> Any:
    return dict(groups_of(VALID, 4))


def naive_groups() -> Any:
    lines = VALID.with_name(VALID.name.replace(".txt", ".answers.jsonl")).read_text(encoding="utf-8").splitlines()
    seen = [json.loads(line)["seen"] for line in lines]
    assert len(seen) == 4
    assert all(isinstance(one, bool) for one in seen)
    return {name: [i for i, one in enumerate(seen) if one == (name == "seen")] for name in ("seen", "unseen")}


def source() -> Any:
    """The kind of data in a folder; what doesn't match the files is "unknown"."""
    found_source = read_source(Path("data"))
    if found_source["source"] == "unknown":
        print(found_source["why"])
        return "unknown"
    return found_source["source"]


def change_folder(path: Path, rng: Random) -> str:
    """Rename a checkpoint's folder, or make something else of it."""
    what = rng.choice(
        ("renamed", "renamed", "file", "empty", "dangling link", "loop", "copied", "inside", "link", "half", "gone")
    )
    target = path.with_name(rng.choice(STEP_NAMES))
    if what == "copied":
        shutil.copytree(path, target)
        return f"copied to {target.name}"
    if what == "inside":
        shutil.copytree(path, path / "step-0000001")
        return "copied into itself"
    if what == "half":
        for file in sorted(path.iterdir())[::2]:
            file.unlink()
        return "half of the files deleted"
    moved = path.rename(target if what in ("renamed", "link") else path.with_name("moved"))
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    elif what in ("dangling link", "loop"):
        path.symlink_to(path.name if what == "loop" else "nowhere")
    elif what == "link":
        path.symlink_to(moved.name)
    if what != "renamed" and what != "link":
        shutil.rmtree(moved)
    return f"{what} {target.name}"


def without_name(act: Callable[[], Any]) -> Callable[[], Any]:
    """The value of `act` without the name of the folder, which the changes alter."""
    return lambda: {key: value for key, value in act().items() if key not in ("name", "path")}


def targets(folder: Path) -> list[Target]:
    runs = make_runs(folder)
    write_source(runs / "data", "sample", {path.name: {} for path in (runs / "data").glob("*.txt")})
    for kind in ("base", "sft"):
        (runs / "runs" / kind / ".lock").touch()
    unfinished = shutil.copytree(runs, folder / "unfinished")
    (unfinished / RUN / "result.json").unlink()
    metrics, run, result, config = (RUN / name for name in (METRICS, "run.json", "result.json", "config.yaml"))
    answers = VALID.with_name(VALID.name.replace(".txt", ".answers.jsonl"))
    steps = sorted(path.relative_to(runs) for path in (runs / "runs" / "base").glob("step-*"))
    every = [metrics, run, config, RUN / ".lock"]
    moved = {"": (change_folder,)}
    return [
        Target("losses", runs, [metrics], curves(runs), lambda: {"invented": [], "lost": []}, weight=2),
        Target("plot", runs, [metrics], plot, naive_plot),
        Target("data of a run", runs, [config], data_of_run, drop=config, weight=2),
        Target("training files", runs, [run], training_files, no_training_files, drop=run, quiet=True, weight=2),
        Target("names of runs", runs, [run, result, RUN / ".lock", config], run_names, naive_run_names, quiet=True),
        Target("resume a run", unfinished, every, resumed(), weight=4),
        Target("held-out groups", runs, [answers], groups, naive_groups, drop=answers, quiet=True),
        Target("source of data", runs, ["data/SOURCE.json"], source, drop=Path("data/SOURCE.json")),
        Target(
            "step folders",
            runs,
            steps,
            without_name(found("runs/base")),
            drop=steps[-1],
            quiet=True,
            changes=moved,
            weight=2,
        ),
        Target("newest folders", runs, [steps[-1]], without_name(newest), drop=steps[-1], quiet=True, changes=moved),
    ]

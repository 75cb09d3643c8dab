"""Mutants of checkpoint folders, through every entrance: load, find, newest, resume, merge."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fuzz.naive import is_whole, read_model, read_tokenizer, tensors_in
from fuzz.oracle import Target
from fuzz.runs import make_runs

from mini_chat_gpt.checkpoints.find import find_checkpoint, newest_checkpoint
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.merge import merge
from mini_chat_gpt.cli import dispatch
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training import run as training_run
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.trainer import Trainer

MODEL_FILES = (
    "model.safetensors",
    "adapter_model.safetensors",
    "mini_chat_gpt.json",
    "tokenizer.tiktoken",
    "tokenizer_meta.json",
)
STATE_FILES = ("training_state.json", "optimizer.safetensors", "raw_weights.safetensors")


def value_of(model: GPT, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """A model and its tokenizer as values. The model is used once, so that it is known to work."""
    with torch.no_grad():
        model(torch.arange(min(40, model.config.context_length))[None] % model.config.vocab_size)
    tokenizer.decode(tokenizer.encode("Tom had a cat. 😀"))
    weights = {name: as_array(tensor) for name, tensor in model.state_dict().items()}
    return {"config": model.config.model_dump(), "weights": weights, "tokenizer": tokenizer_value(tokenizer)}


def tokenizer_value(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The parts of a tokenizer, as in `naive.read_tokenizer`."""
    chat = tokenizer.chat_format
    return {
        "kind": tokenizer.kind,
        "pattern": getattr(tokenizer.encoder, "pattern", None),
        "bos_id": tokenizer.bos_id,
        "control": tokenizer.control,
        "system": None if chat is None else chat.default_system,
        "chat": chat is not None,
        "pieces": tokenizer.encoder.pieces,
    }


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def load(path: str) -> Callable[[], Any]:
    return lambda: value_of(*load_checkpoint(path, "cpu"))


def found(path: str, prefer: str = "best") -> Callable[[], Any]:
    return lambda: {"name": find_checkpoint(path, prefer).name} | load(path if prefer == "best" else f"{path}/last")()


def newest() -> Any:
    path = newest_checkpoint(Path("runs"), base=True)
    if path is None:
        raise UserError("There is no base model.")  # in the words of the command that needs one
    return {"path": str(path), **load(str(path))()}


def merged() -> Any:
    merge("runs/lora", "merged")
    assert is_whole(Path("merged"))
    return read_model(Path("merged"))


def naive_last(path: str) -> Callable[[], Any]:
    return lambda: {"name": Path(path).name} | read_model(Path(path))


def naive_best() -> Any:
    """The whole checkpoint of runs/base with the lowest validation loss, or the last one."""

    def rank(folder: Path) -> tuple[float, str]:
        loss = json.loads((folder / "mini_chat_gpt.json").read_bytes())["info"].get("val_loss")
        return (-math.inf if loss is None else -loss), folder.name

    whole = [folder for folder in Path("runs/base").glob("step-*") if is_whole(folder)]
    best = max(whole, key=rank)
    return {"name": best.name} | read_model(best)


def naive_newest() -> Any:
    return {key: value for key, value in naive_best().items() if key != "name"} | {"path": "runs/base"}


def resume(verb: str, path: str, *overrides: str) -> Callable[[], Any]:
    """The state with which a run resumes. It also takes one step, so that the state is known to be usable."""

    def act() -> Any:
        states = []

        def one_step(trainer: Trainer) -> TrainResult:
            states.append(_state_of(trainer))
            trainer.total_steps = min(trainer.total_steps, trainer.progress.step + 1)
            return run(trainer)

        run = Trainer.run
        with patch.object(Trainer, "run", one_step), patch.object(training_run, "draw_losses", lambda _: None):
            dispatch([verb, f"{verb}.resume_from={path}", f"{verb}.max_steps=6", *overrides])
        return states[0]

    return act


def _state_of(trainer: Trainer) -> dict[str, Any]:
    engine = trainer.engine
    average = engine.average
    return {
        "progress": asdict(trainer.progress),
        "weights": {name: as_array(p) for name, p in engine.model.state_dict().items()},
        "optimizer": {name: as_array(tensor) for name, tensor in engine.optimizer.state_tensors().items()},
        "average": None if average is None else {name: as_array(tensor) for name, tensor in average.averages.items()},
        "average_steps": None if average is None else average.steps,
        "tokenizer": tokenizer_value(trainer.tokenizer),
    }


def naive_resume(folder: str) -> Callable[[], Any]:
    """The state in a checkpoint's files."""

    def read() -> Any:
        checkpoint = Path(folder)
        state = json.loads((checkpoint / "training_state.json").read_bytes())
        meta = json.loads((checkpoint / "mini_chat_gpt.json").read_bytes())
        weights = {
            name.removeprefix("model."): array for name, array in tensors_in(checkpoint / "model.safetensors").items()
        }
        average = None
        if "averaged_steps" in state:
            average, weights = weights, tensors_in(checkpoint / "raw_weights.safetensors")
        assert meta["gpt_config"]["tie_embeddings"]
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
        return {
            "progress": state["progress"],
            "weights": weights,
            "optimizer": tensors_in(checkpoint / "optimizer.safetensors"),
            "average": average,
            "average_steps": state.get("averaged_steps"),
            "tokenizer": read_tokenizer(checkpoint),
        }

    return read


def _files(fixture: Path, folder: str) -> Sequence[Path]:
    """The files of a checkpoint folder; those that are read most often come several times."""
    files = [path.relative_to(fixture) for path in sorted((fixture / folder).rglob("*")) if path.is_file()]
    often = [path for path in files if path.name in ("manifest.json", "mini_chat_gpt.json", "tokenizer_meta.json")]
    return [*files, *often, *often]


def targets(folder: Path) -> list[Target]:
    """All entrances with all kinds of checkpoints."""
    runs = make_runs(folder)
    steps = {kind: sorted((runs / "runs" / kind).glob("step-*"))[-1] for kind in ("base", "sft", "lora")}
    last = {kind: step.relative_to(runs).as_posix() for kind, step in steps.items()}
    last["sharded"] = f"sharded/{steps['base'].name}"
    both = [*_files(runs, last["lora"]), *_files(runs, _base_of(runs, Path(last["lora"])))]
    return [*_load_targets(runs, last, both), *_find_targets(runs, last), *_resume_targets(runs, last, both)]


def _load_targets(runs: Path, last: dict[str, str], both: Sequence[Path]) -> list[Target]:
    """One checkpoint folder, named by its path. An adapter has the files of two: `both`."""
    files = {kind: both if kind == "lora" else _files(runs, path) for kind, path in last.items()}
    made = [
        Target(f"load {kind}", runs, files[kind], load(path), _reader(path), MODEL_FILES, weight=2)
        for kind, path in last.items()
    ]
    return [*made, Target("merge", runs, both, merged, _reader(last["lora"]), MODEL_FILES, Path(last["lora"]))]


def _find_targets(runs: Path, last: dict[str, str]) -> list[Target]:
    """A checkpoint among others, which are the fallback."""
    made = []
    for kind in ("base", "sft", "lora"):
        act, naive, drop = found(f"runs/{kind}", "last"), naive_last(last[kind]), Path(last[kind])
        files = _files(runs, last[kind])
        made.append(Target(f"find last {kind}", runs, files, act, naive, MODEL_FILES, drop, weight=2))
    best = f"runs/base/{find_checkpoint(runs / 'runs/base').name}"
    files, act, drop = _files(runs, best), found("runs/base"), Path(best)
    made.append(Target("find best warm", runs, files, act, naive_best, MODEL_FILES, drop, warm=True))
    made.append(Target("newest", runs, files, newest, naive_newest, MODEL_FILES, drop))
    return made


def _resume_targets(runs: Path, last: dict[str, str], both: Sequence[Path]) -> list[Target]:
    used = MODEL_FILES + STATE_FILES
    made = []
    for verb, kind in (("pretrain", "base"), ("sft", "sft"), ("pretrain", "sharded")):
        act, naive, files = resume(verb, last[kind]), naive_resume(last[kind]), _files(runs, last[kind])
        state = [path for path in files if path.name in STATE_FILES]
        made.append(Target(f"resume {kind}", runs, [*files, *state, *state], act, naive, used, weight=2))
    act, drop = resume("sft", "runs/lora"), Path(last["lora"])
    return [*made, Target("resume adapter", runs, both, act, None, used, drop)]


def flip_targets(folder: Path) -> list[Target]:
    """The entrances for single-bit flips: manifest, metadata and training state."""
    by_name = {target.name: target for target in targets(folder)}
    files = {
        "load base": ("manifest.json", "mini_chat_gpt.json"),
        "find last lora": ("manifest.json", "mini_chat_gpt.json"),
        "resume base": ("training_state.json", "mini_chat_gpt.json"),
    }
    return [
        replace(by_name[name], files=[path for path in dict.fromkeys(by_name[name].files) if path.name in names])
        for name, names in files.items()
    ]


def _reader(path: str) -> Callable[[], Any]:
    return lambda: read_model(Path(path))


def _base_of(runs: Path, adapter: Path) -> str:
    """The folder of an adapter's base, relative to the fixture."""
    relative = json.loads((runs / adapter / "mini_chat_gpt.json").read_bytes())["adapter"]["base_from_here"]
    return os.path.normpath(adapter / relative)

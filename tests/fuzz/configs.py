"""Mutants of settings: YAML files, overrides on the command line, prompts.yaml, and recipe folders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz.compare import difference
from fuzz.mutations import RAW_TEXTS, Change
from fuzz.oracle import Target

from mini_chat_gpt.cli import parse
from mini_chat_gpt.config import PRESETS, Config
from mini_chat_gpt.config_file import load_config, to_yaml
from mini_chat_gpt.evaluation.held_out_part import HeldOut
from mini_chat_gpt.evaluation.prompt_suite import Compared, read_prompts

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "polite_helper"
FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?")
OVERRIDES = (
    "training.batch_size=8",
    "sft.learning_rate=2e-4",
    "sft.save_dir=runs/exp #2",
    "sft.save_dir='runs/a: b'",
    "data.mixture={summary: 2, moral: 1}",
    "data.curriculum=[{share: 0.2, seq_len: 96}]",
    "lora.targets=[q_proj, v_proj]",
    "training.time_limit=90m",
    "chats.files=a.jsonl",
    "chats.files=[a.jsonl, b.jsonl]",
    "sft.prompts=[Once upon a time]",
    "model.rope_scaling={rope_type: linear, factor: 2.0}",
    "system.mixed_precision=false",
    "model.n_head=6",
    "system.seed=7",
)


class _UniqueKeys(yaml.SafeLoader):
    """A loader for which a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({json.dumps(key, default=str) for key in keys}) != len(keys):
            raise ValueError("a repeated key")
        return super().construct_mapping(node, deep=deep)


def naive_yaml(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, Loader=_UniqueKeys)


def agrees(taken: Any, written: Any) -> bool:
    """Whether a setting that the program took is what the file says. A text may be written without quotes, as in `prompts: 12`."""
    if isinstance(taken, str):
        if isinstance(written, str):
            return taken in (written, os.path.expanduser(written))
        return taken == str(written) or _reads_as(taken, written)
    if isinstance(taken, dict | list | tuple) and not isinstance(written, dict | list | tuple):
        if written in (None, "", "null"):
            return not taken or list(taken) == [written]
        return len(taken) == 1 and agrees(next(iter(taken)), written)  # one file or prompt
    if isinstance(taken, bool):
        return taken == written and isinstance(written, int)
    if isinstance(written, bool):
        return False
    if isinstance(taken, int | float) and isinstance(written, str):
        return FLOAT.fullmatch(written) is not None and float(written.replace("_", "")) == taken
    if isinstance(taken, dict | tuple) and isinstance(written, list):
        written = list({str(name): name for name in written}.values())  # files and layers, each once
        return len(taken) == len(written) and all(map(agrees, taken, written))
    if isinstance(taken, dict) and isinstance(written, dict):
        return all(key in taken and agrees(taken[key], value) for key, value in written.items()) and not any(
            value != DEFAULTS.get(key) for key, value in taken.items() if key not in written
        )
    if isinstance(taken, list | tuple) and isinstance(written, list | tuple):
        return len(taken) == len(written) and all(map(agrees, taken, written))
    return not difference(taken, written)


def _reads_as(text: str, value: Any) -> bool:
    """Whether a text without quotes is this value in YAML."""
    try:
        return not difference(naive_yaml(text), value)
    except (ValueError, yaml.YAMLError):
        return False


DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for entry in (Compared, HeldOut)
    for name, field in entry.model_fields.items()
    if not field.is_required()
}
"""Of the entries of prompts.yaml. Other settings that are left out are None."""


def check_settings(settings: dict[str, Any], written: Any) -> dict[str, Any]:
    """`settings`, if every setting is the written one or, where none is written, the default. Raises AssertionError."""
    default = Config().model_dump()
    written = {} if written is None else written
    assert isinstance(written, dict)
    assert not written.keys() - settings.keys(), f"unknown sections {written.keys() - settings.keys()}"
    preset = settings["model"]["preset"]
    default["model"] |= PRESETS[preset] if preset else {}
    if "preset" in (written.get("model") or {}) and not preset:
        default["model"] = type(Config().model).model_fields and {
            name: field.get_default(call_default_factory=True)
            for name, field in type(Config().model).model_fields.items()
        }
    for section, values in settings.items():
        given = written.get(section)
        given = {} if given is None else given
        assert isinstance(given, dict), section
        assert not given.keys() - values.keys(), f"unknown settings {given.keys() - values.keys()}"
        for key, value in values.items():
            if key in given:
                assert agrees(value, given[key]), f"{section}.{key} is {value!r:.100}, written {given[key]!r:.100}"
            elif key != "preset":
                assert agrees(value, default[section][key]), f"{section}.{key} is {value!r:.100}, not the default"
    return settings


def settings_of(path: str) -> Any:
    return load_config(path).model_dump()


def naive_settings(path: str) -> Any:
    """The program's own settings, if they are confirmed by `check_settings`; otherwise the reason as a value."""
    settings = settings_of(path)
    try:
        return check_settings(settings, naive_yaml(Path(path).read_text(encoding="utf-8-sig")))
    except (AssertionError, ValueError) as error:
        return {"refuted": str(error)[:300]}


def overridden() -> Any:
    """The settings of an override in the file override.txt."""
    return load_config(None, [_override()]).model_dump()


def _override() -> str:
    return Path("override.txt").read_text(encoding="utf-8", errors="surrogateescape").replace("\0", "")


def naive_override() -> Any:
    """Like `naive_settings`: text is as it was typed, unless it is quoted; everything else is YAML."""
    settings, (key, _, text) = overridden(), _override().partition("=")
    value: Any = text
    parts = key.strip().split(".")
    taken: Any = settings
    try:
        for part in parts:
            taken = taken[part]
        quoted = text.strip()[:1] in ("'", '"') or (text.strip()[:1] in ("[", "{") and not isinstance(taken, str))
        if quoted or not isinstance(taken, str | dict | list | tuple):
            with contextlib.suppress(yaml.YAMLError):
                value = naive_yaml(text)
        if value == "\ud800":
            value = text  # is not text, so it is not YAML either
        for part in reversed(parts):
            value = {part: value}
        return check_settings(settings, value)
    except (AssertionError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        return {"refuted": f"{type(error).__name__}: {error}"[:300]}


def _change_override(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Another override, or another value of it."""
    override = rng.choice(OVERRIDES)
    key, _, value = override.partition("=")
    values = (
        *RAW_TEXTS,
        "",
        " ",
        "null",
        "true",
        "-1",
        "0",
        ".inf",
        ".nan",
        "1e400",
        "x",
        "[]",
        "{}",
        "~/x",
        "a\nb",
        "{a: b}",
    )
    values += (
        "99999999999999999999",
        "1_000",
        "0o17",
        "1:30",
        "2001-01-01",
        "'",
        '"',
        "[",
        "{",
        "!!set {}",
        value[:-1],
    )
    what = rng.choice(("as it is", "value", "value", "value", "value", "key"))
    if what == "value":
        override = f"{key}={rng.choice(values)}"
    elif what == "key":
        name = rng.choice(
            (key[:-1], key + ".x", key.upper(), key.split(".")[0], "", ".", "x.y", "sft..x", "a." * 500 + "b")
        )
        override = f"{name}={value}"
    return override.encode("utf-8", "surrogatepass"), override[:80]


def prompts() -> Any:
    return read_prompts(Path("prompts.yaml")).model_dump()


def naive_prompts() -> Any:
    """The program's prompts, if the file says the same; otherwise the reason."""
    taken, written = prompts(), naive_yaml(Path("prompts.yaml").read_text(encoding="utf-8-sig"))
    for key, value in _without_short_forms(written).items():
        if not agrees(taken[key], value) and value:
            return {"refuted": key}
    return taken


def _without_short_forms(written: dict[str, Any]) -> dict[str, Any]:
    """The content of a prompts.yaml in which an entry of `compare` may be its prompt alone."""
    compare = written.get("compare")
    if not isinstance(compare, list):
        return written
    return written | {"compare": [entry if isinstance(entry, dict) else {"prompts": entry} for entry in compare]}


def recipe() -> Any:
    arguments = parse("recipe", ["./recipe"])
    return {
        "settings": arguments.settings.model_dump(),
        "prompts": read_prompts(arguments.folder / "prompts.yaml").model_dump(),
    }


def targets(folder: Path) -> list[Target]:
    (folder / "configs").mkdir()
    sparse = "\n".join(f"{key.split('.')[0]}:\n  {key.split('.')[1]}: {value}" for key, value in _sparse().items())
    files = {"config.yaml": to_yaml(), "sparse.yaml": sparse + "\n", "override.txt": "training.batch_size=8"}
    for name, text in files.items():
        (folder / "configs" / name).write_text(text, encoding="utf-8")
    shutil.copyfile(RECIPE / "prompts.yaml", folder / "configs" / "prompts.yaml")
    shutil.copytree(RECIPE, folder / "recipes" / "recipe")
    changes: tuple[Change, ...] = (_change_override,)

    def target(
        name: str, file: str, act: Callable[[], Any], naive: Callable[[], Any], weight: int = 1, **more: Any
    ) -> Target:
        return Target(name, folder / "configs", [Path(file)], act, naive, weight=weight, **more)

    recipe_files = [Path("recipe/config.yaml"), Path("recipe/prompts.yaml")]
    return [
        target(
            "whole config",
            "config.yaml",
            partial(settings_of, "config.yaml"),
            partial(naive_settings, "config.yaml"),
            2,
        ),
        target(
            "short config",
            "sparse.yaml",
            partial(settings_of, "sparse.yaml"),
            partial(naive_settings, "sparse.yaml"),
            2,
        ),
        target("override", "override.txt", overridden, naive_override, 3, changes={".txt": changes}),
        target("prompts", "prompts.yaml", prompts, naive_prompts),
        Target("recipe", folder / "recipes", recipe_files, recipe, naive_recipe),
    ]


def naive_recipe() -> Any:
    """The recipe as the program reads it, if its files say the same."""
    taken = recipe()
    settings = naive_yaml(Path("recipe/config.yaml").read_text(encoding="utf-8-sig")) or {}
    if isinstance((settings.get("chats") or {}).get("files"), str):
        settings["chats"]["files"] = list(taken["settings"]["chats"]["files"])
    check_settings(taken["settings"], settings)
    written = _without_short_forms(naive_yaml(Path("recipe/prompts.yaml").read_text(encoding="utf-8-sig")))
    assert all(agrees(taken["prompts"][key], value) for key, value in written.items() if value)
    return taken


def _sparse() -> dict[str, str]:
    """One setting of several sections."""
    pairs = dict(override.split("=", 1) for override in OVERRIDES)
    chosen = ("training.batch_size", "sft.learning_rate", "data.mixture", "lora.targets", "chats.files", "system.seed")
    return {key: pairs[key] for key in chosen}

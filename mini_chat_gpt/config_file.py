"""Settings as text: YAML files and `section.key=value` to `Config`, and back.

An error names every problem of a file at once, with the key, the allowed values or the nearest valid key.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.config import Config, Section, current_metric_name

S = TypeVar("S", bound=Section)
COMMAND_LINE = "the command line"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None = defaults), apply `section.key=value` overrides, and validate.

    Raises UserError naming every wrong key or value, with the nearest valid key or the allowed values.
    """
    values: dict[str, Any] = {}
    if path is not None:
        hint = f"`mini-chat-gpt config > {path}` writes the default one"
        values = read_yaml(Path(path), "config file", hint, "sections such as `sft:` with keys under them")
        values = _with_new_keys(values, str(path))
        _resolve_chat_files(values, Path(path).parent)
    overridden: dict[str, str] = {}  # key -> its name on the command line
    for override in overrides:
        typed, value = _parse_override(override)
        # An old name overrides the new one in the file, so it is replaced before the two meet.
        parts, value = _override_with_new_keys(typed, value)
        key, name = ".".join(parts), ".".join(typed)
        if (earlier := overridden.setdefault(key, name)) != name:
            old = name if name != key else earlier
            raise UserError(f"{COMMAND_LINE}: {old} is the old name of {key}; both are set, remove one.")
        _apply_override(values, override, parts, value)
    return validated(Config, values, COMMAND_LINE if path is None else str(path), overridden)


def _resolve_chat_files(values: dict[str, Any], folder: Path) -> None:
    """Replace names of chat files in the config file's folder by their paths, so that the working directory doesn't matter."""
    chats = values.get("chats")
    if not isinstance(chats, dict):
        return

    def resolve(name: Any) -> Any:
        return str(folder / name) if isinstance(name, str) and (folder / name).is_file() else name

    for key in ("files", "valid_files"):
        names = chats.get(key)
        if isinstance(names, dict):
            chats[key] = {resolve(name): weight for name, weight in names.items()}
        elif isinstance(names, list):
            chats[key] = [resolve(name) for name in names]
        elif names is not None:
            chats[key] = resolve(names)


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate a nested dict, which may have old names of settings. Raises UserError naming every problem with its key."""
    return validated(Config, _with_new_keys(values, source), source)


def validated(section: type[S], values: dict[str, Any], source: str, overridden: Collection[str] = ()) -> S:
    """A section with these values, which come from `source`, those of the `overridden` keys from the command line.

    Raises UserError naming every problem with its key.
    """
    try:
        return section(**values)
    except ValidationError as error:
        by_source: dict[str, list[str]] = {}
        for item in error.errors():
            key = ".".join(map(str, item["loc"])) + "."
            typed = any(key.startswith(f"{name}.") or f"{name}.".startswith(key) for name in overridden)
            by_source.setdefault(COMMAND_LINE if typed else source, []).append(_explain(item, section))
        text = "; ".join(f"{origin}: {'; '.join(problems)}" for origin, problems in by_source.items())
        raise UserError(text) from None


RENAMED_KEYS = {
    "pretrain.best_by": "best_metric",
    "sft.best_by": "best_metric",
    "sft.suite_tasks": "eval_tasks",
    "training.max_accidents": "max_nonfinite_steps",
    "data.shares": "mixture",
    "data.weights": "loss_weights",
    "data.focus": "answer_weight",
    "data.branches": "prefix_branches",
    "data.curriculum.shares": "mixture",
    "data.curriculum.focus": "answer_weight",
    "data.curriculum.branches": "prefix_branches",
}
"""Old name of a setting -> its new key in the same section. Old names are still accepted; see CHANGELOG.md."""


def _with_new_keys(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Replace old names of settings by the new ones, with one warning that lists them. Raises UserError if both are set."""
    renamed: dict[str, str] = {}

    def convert(value: Any, place: str) -> Any:
        if isinstance(value, list):
            return [convert(item, place) for item in value]
        if not isinstance(value, dict):
            return value
        converted: dict[Any, Any] = {}
        for key, item in value.items():
            path = f"{place}.{key}" if place else str(key)
            if new := RENAMED_KEYS.get(path):
                if new in value:
                    raise UserError(f"{source}: {path} is the old name of {place}.{new}; both are set, remove one.")
                renamed[path], key = f"{place}.{new}", new
            converted[key] = convert(item, path)
        return converted

    values = convert(values, "")
    for section in ("pretrain", "sft"):
        fields: Any = values.get(section)
        metric = fields.get("best_metric") if isinstance(fields, dict) else None
        if isinstance(metric, str) and metric != current_metric_name(metric):
            fields["best_metric"] = current_metric_name(metric)
            renamed[f"{section}.best_metric={metric}"] = fields["best_metric"]
    if renamed:
        pairs = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        warnings.warn(f"{source}: old names of settings: {pairs}.", stacklevel=2)
    return values


def read_yaml(path: Path, what: str, hint: str, content: str) -> dict[str, Any]:
    """The mapping in a YAML file; {} for an empty file.

    Raises UserError with file and line. For the messages, `what` names the kind of file, `hint` says how to get one, and
    `content` describes the expected content.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"There is no {what} {path}; {hint}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} {path} can't be read: {error}.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f"{path}, line {where.line + 1}" if where else str(path)
        raise UserError(f"{place}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected {content}, found {type(values).__name__}.")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-5 as a string; this loader reads it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+|\.(?:inf|nan))$", re.X),
    list("-+0123456789."),
)


def _parse_override(override: str) -> tuple[list[str], Any]:
    """(parts of the key, value) of `section.key=value`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(
            f"{override!r} is not an override; write section.key=value, for example training.batch_size=16."
        )
    try:
        return parts, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML; quote it.") from None


def _override_with_new_keys(parts: Sequence[str], value: Any) -> tuple[list[str], Any]:
    """An override with old names of settings replaced, in its key and in its value."""
    nested = value
    for part in reversed(parts):
        nested = {part: nested}
    nested = _with_new_keys(nested, COMMAND_LINE)
    renamed = []
    for _ in parts:
        ((part, nested),) = nested.items()
        renamed.append(part)
    return renamed, nested


def _apply_override(values: dict[str, Any], override: str, parts: Sequence[str], value: Any) -> None:
    place = values
    for part in parts[:-1]:
        child = place.get(part)
        place[part] = child = {} if child is None else child
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {part} is not a section; write section.key=value.")
        place = child
    place[parts[-1]] = value


def _explain(item: Any, root: type[Section]) -> str:
    """One of pydantic's problems with a `root` section as text: the key, what is wrong, and what is valid."""
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        owner = _section_at(root, path[:-1])
        return f"{key} is not a setting{nearest(path[-1], owner)} (known here: {', '.join(owner)})"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}, not {item['input']!r}" if item["type"] != "value_error" else f"{key}: {message}"


def _section_at(root: type[Section], path: Sequence[str]) -> list[str]:
    """The settings of the section at this path. A number in the path is the index of a list item."""
    section: Any = root
    for part in path:
        section = get_args(section)[0] if part.isdigit() else section.model_fields[part].annotation
    return list(section.model_fields)


def to_yaml(config: Config | None = None) -> str:
    """The settings as a commented YAML file; without an argument, the committed `sft_config.yaml`."""
    lines = [
        "# Settings of a run. Every value here is the default; override any on the command line: training.batch_size=16",
        "# Generated by `mini-chat-gpt config`.",
    ]
    for name, section in (config or Config()).__dict__.items():
        lines += ["", f"# {type(section).__doc__}", f"{name}:"]
        fields = dict(type(section).model_fields)
        fields = {key: fields[key] for key in sorted(fields, key=lambda key: key != "preset")}  # the preset comes first
        described = descriptions(type(section))
        for key in fields:
            value = getattr(section, key)
            shown = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).strip().removesuffix("\n...")
            # In the default file the preset determines the shape, so the fields that it sets are commented out.
            commented = config is None and name == "model" and key != "preset"
            lines += [f"  # {described[key]}", f"  {'# ' if commented else ''}{key}: {shown}"]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(exclude_none=True)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def descriptions(section: type[Section]) -> dict[str, str]:
    """Each setting of a section with its docstring.

    pydantic can do this (`use_attribute_docstrings`), but it reads the source when the class is defined, and every command
    would start 0.1 s later.
    """
    described: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if issubclass(owner, Section):
            described |= _docstrings(owner.__module__).get(owner.__name__, {})
    return described


@lru_cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """{class: {field: docstring}} of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    docstrings: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            docstrings[node.name] = {
                field.target.id: inspect.cleandoc(text.value.value)
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return docstrings

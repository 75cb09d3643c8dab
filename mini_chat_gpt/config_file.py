"""Settings as text: YAML files and `section.key=value` to `Config`, and back.

An error names every problem of a file at once, with the key, the allowed values or the nearest valid key.
"""

from __future__ import annotations

import ast
import difflib
import glob
import inspect
import os
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mini_chat_gpt.common.errors import UserError, nearest, short
from mini_chat_gpt.common.json_files import describe_problem, problem_words, shown
from mini_chat_gpt.common.setting_types import OTHER_NAMES
from mini_chat_gpt.common.typed_values import NULLS, alternatives, child_type, read_as, takes_text
from mini_chat_gpt.common.user_paths import split_paths, user_path
from mini_chat_gpt.common.yaml_files import Place, Plain, parse_yaml, read_yaml
from mini_chat_gpt.config import Config, Section, current_metric_name

S = TypeVar("S", bound=Section)
COMMAND_LINE = "the command line"
MAX_PROBLEMS = 10
"""Problems of one source that a message lists."""
KNOWN = " (known here: "
MAX_CHARACTERS = 800
"""Length of all problems that a message lists, if there are several."""


ADDED_LATER = {"chats": {"too_long": "shorten"}}
"""Settings that the config.yaml of an older run lacks -> the value that means "as before", so that it continues with the same data."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), of_run: bool = False) -> Config:
    """Read a YAML file (None = defaults), apply `section.key=value` overrides, and validate.

    `of_run`: the file is the config.yaml of a run, which has every setting that its version had; see ADDED_LATER. Raises UserError
    naming every wrong key or value, with the nearest valid key or the allowed values.
    """
    values: dict[str, Any] = {}
    lines: Mapping[Place, int] = {}
    if path is not None:
        path = user_path(str(path))
        hint = f"`mini-chat-gpt config > {path}` writes the default one"
        document = read_yaml(path, "config file", hint, "sections such as `sft:` with keys under them")
        values, lines = read_as(_with_new_keys(document.value, str(path)), Config), document.lines
        _resolve_chat_files(values, path.parent)
        for section, added in ADDED_LATER.items() if of_run else ():
            if isinstance(fields := values.get(section), dict):
                values[section] = added | fields
    overridden: dict[str, str] = {}  # key -> its name on the command line
    for override in overrides:
        typed, value = _parse_override(override)
        # An old name overrides the new one in the file, so it is replaced before the two meet.
        parts, value = _override_with_new_keys(typed, value)
        key, name = ".".join(parts), ".".join(typed)
        if (earlier := overridden.setdefault(key, name)) != name:
            old = name if name != key else earlier
            raise UserError(f"{COMMAND_LINE}: {old} is the old name of {key}; both are set, remove one.")
        _apply_override(values, override, parts, read_as(value, _type_at(parts)))
    return validated(Config, values, COMMAND_LINE if path is None else str(path), overridden, lines)


def _resolve_chat_files(values: dict[str, Any], folder: Path) -> None:
    """Replace names of chat files in the config file's folder by their paths, so that the working directory doesn't matter."""
    chats = values.get("chats")
    if not isinstance(chats, dict):
        return

    def resolve(name: Any) -> Any:
        if not isinstance(name, str) or not name or "\0" in name:
            return name
        path = str(folder / name)
        return path if os.path.lexists(path) or (glob.has_magic(name) and glob.glob(path)) else name

    for key in ("files", "valid_files"):
        names = chats.get(key)
        if isinstance(names, dict):
            chats[key] = {resolve(name): weight for name, weight in names.items()}
        elif isinstance(names, list):
            chats[key] = [resolve(name) for name in names]
        elif names is not None:
            chats[key] = [resolve(name) for name in split_paths(names)] if isinstance(names, str) else names


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate a nested dict, which may have old names of settings. Raises UserError naming every problem with its key."""
    return validated(Config, _with_new_keys(values, source), source)


def validated(
    section: type[S],
    values: dict[str, Any],
    source: str,
    overridden: Collection[str] = (),
    lines: Mapping[Place, int] | None = None,
) -> S:
    """Validate the values of `source`; those of the keys in `overridden` are from the command line.

    `lines` has the lines of a file's values. Raises UserError naming every problem with its key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        by_source: dict[str, list[str]] = {}
        for place, items in _by_place(error, section).items():
            key = ".".join(place) + "."
            typed = any(key.startswith(f"{name}.") or f"{name}.".startswith(key) for name in overridden)
            line = None if typed or lines is None else lines.get(place)
            problem = _explain(place, items, section)
            by_source.setdefault(COMMAND_LINE if typed else source, []).append(
                f"line {line}: {problem}" if line else problem
            )
        room = MAX_CHARACTERS // len(by_source)
        text = "; ".join(f"{origin}: {_first(problems, room)}" for origin, problems in by_source.items())
        raise UserError(text if text.endswith("?") else text.removesuffix(".") + ".") from None


def _first(problems: Sequence[str], room: int) -> str:
    """The first problems: at least one, and as many as have room. The valid names of a section are listed once."""
    listed: list[str] = []
    for problem in problems[:MAX_PROBLEMS]:
        brief, _, known = problem.partition(KNOWN)
        problem = brief if any(known and known in earlier for earlier in listed) else problem
        if listed and sum(map(len, listed)) + len(problem) > room:
            break
        listed.append(problem)
    more = len(problems) - len(listed)
    return "; ".join([*listed, *([f"and {more} more"] if more else [])])


def _by_place(error: ValidationError, root: type[Section]) -> dict[Place, list[Any]]:
    """pydantic's problems by the place of their value. For a value that may have several types there is one for each type."""
    problems: dict[Place, list[Any]] = {}
    for item in error.errors(include_url=False):
        kind: Any = root
        place: list[str] = []
        for part in map(str, item["loc"]):
            if kind is None:
                break  # what follows is the name of a type
            kind = child_type(kind, part)
            if kind is not None or item["type"] == "extra_forbidden":
                place.append(part)
        problems.setdefault(tuple(place), []).append(item)
    return problems


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


def _parse_override(override: str) -> tuple[list[str], Any]:
    """(parts of the key, value) of `section.key=value`.

    The value is a text as typed, unless it is quoted. It is YAML if it begins with a bracket and the setting isn't a text.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals and os.path.exists(override):
        raise UserError(
            f"{short(override)} is a file or folder; name chats with chats.files={override}, stories with sft.dataset_path, and "
            "texts for pretraining with pretrain.dataset_path."
        )
    if not equals or not all(parts):
        raise UserError(
            f"{short(override)} is not an override; write section.key=value, for example training.batch_size=16."
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise UserError(f"{short(override)}: the value is not valid UTF-8 text.") from None
    if len(parts) == 1 and text.strip() in NULLS:
        raise UserError(f"{short(override)} would unset a whole section; write section.key=value.")
    start = text.lstrip()[:1]
    kind = _type_at(parts)
    if start in ("[", "{") and start and not takes_text(kind):
        if text.endswith((":", ",")):
            raise UserError(
                f"{short(override)} ends at a space, where the shell divides it; put quotes around it: '{key}={start}…'."
            )
        return parts, parse_yaml(text, f"{COMMAND_LINE}: {key}").value
    return parts, _unquoted(text) if start in ("'", '"') and start else Plain(text)


def _unquoted(text: str) -> str:
    """The content of a text in quotes; any other text, such as '"Hi!" she said', as it is."""
    try:
        value = parse_yaml(text, COMMAND_LINE).value
    except UserError:
        return text
    return value if isinstance(value, str) and not isinstance(value, Plain) else text


def _type_at(parts: Sequence[str]) -> Any:
    """The type of a setting, by its key or its old name; None if there is none."""
    kind: Any = Config
    old = ".".join(parts)
    for part in [*parts[:-1], RENAMED_KEYS.get(old, parts[-1])]:
        kind = None if kind is None else child_type(kind, part)
    return kind


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


def _explain(place: Place, items: Sequence[Any], root: type[Section]) -> str:
    """pydantic's problems with the value at `place` as text: the key, what is valid, and what was given."""
    key = short(".".join(place), 100)[1:-1] or "the settings"
    first = items[0]
    if first["type"] == "extra_forbidden":
        owner: Any = root
        for part in place[:-1]:
            owner = child_type(owner, part)
        known = list(next(one for one in alternatives(owner)).model_fields)
        is_section = isinstance(first["input"], dict)
        if (other := OTHER_NAMES.get(place[-1].replace("-", "_"), "")) in known:
            return f"{key} is not a setting; did you mean {'.'.join([*place[:-1], other])}?"
        if not is_section and (elsewhere := _in_another_section(place, root)):
            return f"{key} is not a setting{elsewhere}"
        return f"{key} is not a setting{nearest(place[-1], known)} (known here: {', '.join(known)})"
    if len(items) == 1:
        return describe_problem(first | {"loc": place})
    words = dict.fromkeys(map(problem_words, items))
    return f"{' or '.join(words).replace(' or must be ', ' or ')}".join([f"{key} ", f", not {shown(first['input'])}"])


def _in_another_section(place: Place, root: type[Section]) -> str:
    """A hint for a setting without its section, or with another one: "; did you mean sft.learning_rate?"; "" if none has the name."""
    keys = _settings_by_name(root)
    name = OTHER_NAMES.get(place[-1].replace("-", "_"), place[-1])
    # A misspelled name is looked up in its own section; only one without a section can mean any.
    similar = difflib.get_close_matches(name[:100], keys, n=1, cutoff=0.75 if len(place) == 1 else 1)
    return f"; did you mean {' or '.join(keys[similar[0]])}?" if similar else ""


def setting_named(name: str, section: str) -> str:
    """The setting that an option of another program stands for, such as "sft.learning_rate" for "lr"; "" if there is none."""
    name = name.replace("-", "_")
    keys = _settings_by_name(Config).get(OTHER_NAMES.get(name, name), [])
    if section == "pretrain":
        keys = (
            ["pretrain.dataset_path"] if "chats.files" in keys else [key for key in keys if not key.startswith("sft.")]
        )
    return next(
        (key for wanted in (section, "sft") for key in keys if key.startswith(f"{wanted}.")), next(iter(keys), "")
    )


def _settings_by_name(root: type[Section]) -> dict[str, list[str]]:
    """Name -> the settings of all sections that have it."""
    keys: dict[str, list[str]] = {}
    for section in root.model_fields:
        for kind in alternatives(child_type(root, section)):
            for name in getattr(kind, "model_fields", ()):
                keys.setdefault(name, []).append(f"{section}.{name}")
    return keys


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
            text = (
                yaml.safe_dump(plain_value(value), default_flow_style=True, width=10**9).strip().removesuffix("\n...")
            )
            # In the default file the preset determines the shape, so the fields that it sets are commented out.
            commented = config is None and name == "model" and key != "preset"
            lines += [f"  # {described[key]}", f"  {'# ' if commented else ''}{key}: {text}"]
    return "\n".join(lines) + "\n"


def plain_value(value: Any) -> Any:
    """A value of a setting as YAML can have it: sections as mappings, without what is null."""
    if isinstance(value, Section):
        return value.model_dump(exclude_none=True)
    return [plain_value(item) for item in value] if isinstance(value, tuple | list) else value


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

"""Types of settings: numbers, paths, durations, and lists that may be given as one text.

Every number is finite and has a lower and an upper bound (tests/test_config.py checks all of them). The upper bounds are far
beyond what is useful. They exist so that a typing mistake is refused at once, instead of overflowing, filling the memory or
making every weight NaN later.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticKnownError

from mini_chat_gpt.common.chat_keys import KNOWN, USUAL
from mini_chat_gpt.common.errors import UserError, nearest, short
from mini_chat_gpt.common.typed_values import NULLS
from mini_chat_gpt.common.user_paths import path_text, split_paths

# Numbers

MAX_SEED = 2**63 - 1
"""PyTorch takes seeds below 2**64, numpy any that are not negative, and arrays of them are int64."""
MAX_COUNT = 10**9
MAX_WEIGHT = 1e6
MIN_WEIGHT = 1e-6
"""The smallest weight that is not 0. Sums of smaller ones can be 0 in float32."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # a subclass of int
        raise PydanticKnownError("float_type")
    return value


def _weight(value: float) -> float:
    if 0 < value < MIN_WEIGHT:
        raise ValueError(f"must be 0 or at least {MIN_WEIGHT:g}, not {value:g}")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
"""A whole number. The field sets the bounds."""
Number = Annotated[float, BeforeValidator(_no_bool)]
"""A finite number. The field sets the bounds."""
Count = Annotated[Whole, Field(ge=1, le=MAX_COUNT)]
"""A number of things, at least one."""
Weight = Annotated[Number, Field(ge=0, le=MAX_WEIGHT), AfterValidator(_weight)]
"""A relative weight: 0, or from 1e-6 to 1e6."""
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]
"""Seed of a random number generator."""


# Texts

MAX_SECONDS = 10**8  # three years


def seconds_in(duration: str) -> float:
    """ "2h", "90m", "45s", "1h30m" or "90" (seconds) in seconds.

    Raises ValueError for anything else, for 0 and for more than three years.
    """
    number = r"(\d{1,9}(?:\.\d{1,9})?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?|{number}", duration.strip(), re.ASCII)
    hours, minutes, seconds, alone = (float(part or 0) for part in match.groups()) if match else (0.0,) * 4
    if not 0 < (total := 3600 * hours + 60 * minutes + seconds + alone) <= MAX_SECONDS:
        raise ValueError(f"{short(duration)} is not a duration; write for example 2h, 90m, 1h30m or 45s")
    return total


def _check_duration(duration: str) -> str:
    seconds_in(duration)
    return duration


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", name):
        raise ValueError(f"{short(name)} is not a device; write auto, cpu, cuda, cuda:1 or mps")
    return name


def _path(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a path, not an empty text")
    try:
        return path_text(text)
    except UserError as error:
        raise ValueError(str(error)) from None


def one_as_list(values: Any) -> Any:
    """A text as a list of one."""
    return [values] if isinstance(values, str) else values


Name = Annotated[str, Field(max_length=128)]
"""A short text. wandb's limit is 128 characters."""
PathText = Annotated[str, AfterValidator(_path)]
"""A path. `~` at its beginning stands for the home folder; environment variables have no meaning."""
TextList = Annotated[list[str], BeforeValidator(one_as_list)]
"""A list of texts, or one text."""
BatchSize = Annotated[Whole, Field(ge=1, le=2**16)]
"""Examples that are in memory at the same time."""
BatchTokens = Annotated[Whole, Field(ge=1, le=2**26)]
"""Tokens that are in memory at the same time."""
Device = Annotated[str, AfterValidator(_check_device)]
"""A device of PyTorch, or auto."""
Duration = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_duration)]
"""A time, such as 2h."""


def _check_layer_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(name.strip() for name in names):
        raise ValueError("must name at least one layer, such as all-linear or q_proj")
    return tuple(dict.fromkeys(names))


LayerNames = Annotated[tuple[str, ...], BeforeValidator(one_as_list), AfterValidator(_check_layer_names)]
"""Names of layers or patterns for them."""


def _file_weights(files: Any) -> Any:
    """One path, several with commas between them, or a list as {path: 1}; none as {}."""
    if files is None:
        return {}
    if isinstance(files, str):
        files = split_paths(files)
    return dict.fromkeys(files, 1.0) if isinstance(files, list) and all(isinstance(p, str) for p in files) else files


FileWeights = Annotated[dict[PathText, Annotated[Number, Field(ge=0.001, le=1000)]], BeforeValidator(_file_weights)]
"""Chat files with their weights: {path: weight}, a list of paths, or one or several in a text."""


def _with_blanks(names: Any) -> Any:
    """{a:b} without a blank, which YAML reads as a key "a:b", as {a: b}."""
    if not isinstance(names, dict):
        return names
    pairs: dict[Any, Any] = {}
    for name, value in names.items():
        ours, colon, theirs = name.partition(":") if isinstance(name, str) and value is None else (name, "", None)
        pairs[ours] = (None if theirs in NULLS else theirs) if colon else value
    return pairs


def _check_chat_keys(names: dict[str, str | None]) -> dict[str, str | None]:
    for ours, theirs in names.items():
        if ours not in KNOWN and all(one in KNOWN for one in names.values()) and len({*names.values()}) == len(names):
            turned = ", ".join(f"{key}: {name}" for name, key in names.items())
            raise ValueError(f"our name comes first, then the name in your file: chats.keys='{{{turned}}}'")
        if ours not in KNOWN:
            raise ValueError(
                f"{short(ours)} is not one of our keys{nearest(ours, KNOWN)} (the usual ones are {', '.join(USUAL)})"
            )
        if theirs is not None and not theirs:
            raise ValueError(f"the name for {ours} is empty")
    return names


ChatKeys = Annotated[dict[str, str | None], BeforeValidator(_with_blanks), AfterValidator(_check_chat_keys)]
"""Names of keys of chat records: {our name: the file's name}."""


OTHER_NAMES = {
    name: ours
    for ours, names in {
        "save_dir": "output_dir out_dir output out",
        "pretrained_checkpoint": "model base base_model checkpoint model_name_or_path",
        "epochs": "num_train_epochs num_epochs",
        "learning_rate": "lr",
        "max_steps": "steps num_steps",
        "batch_size": "per_device_train_batch_size micro_batch_size",
        "seq_len": "max_length max_seq_length max_seq_len sequence_len block_size cutoff_len",
        "files": "data dataset datasets file train_file data_path chats",
        "rank": "r lora_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "eval_interval": "eval_steps",
        "save_interval": "save_steps",
    }.items()
    for name in names.split()
}
"""Name of a setting in other programs -> ours, for hints."""

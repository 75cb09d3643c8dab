"""Settings that are fixed for the life of a run: a resumed run can't apply a change of one, so it refuses it.

Their values when the run began are in its checkpoint, and in config.yaml of its folder. All other settings apply from the
resumed step on. `training.optimizer` has a check of its own (saved_state.py), because it can start without state.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, cast

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.adapters import AdapterMetadata
from mini_chat_gpt.checkpoints.find import read_meta
from mini_chat_gpt.checkpoints.load import load_tokenizer
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.config import Config, LoraSettings
from mini_chat_gpt.config_file import load_config

FIXED = {
    "sft": (
        "sft.pretrained_checkpoint", "sft.chat_format", "sft.save_dir", "training.time_budget", "data.system_message",
        "lora.enabled", "lora.rank", "lora.alpha", "lora.targets", "lora.rslora", "lora.dora", "lora.frozen",
    ),
    "pretrain": (
        "pretrain.tokenizer", "pretrain.tokenizer_vocab_size", "pretrain.save_dir", "training.time_budget", "model",
    ),
}  # fmt: skip
"""Job -> settings that belong to what the run has made so far: model, tokenizer, adapter, plan, folder."""
OF_ONE_START = (
    "sft.resume_from", "pretrain.resume_from", "sft.save_dir", "pretrain.save_dir", "training.time_limit", "training.reset_optimizer",
)  # fmt: skip
"""Settings that say how a run is started, not how it trains."""


def require_same_settings(config: Config, job: str, checkpoint: Path) -> None:
    """Raise UserError if a run of this job, resumed from `checkpoint`, can't have the settings in `config`."""
    info_job = str(read_meta(checkpoint)["info"].get("job", job))
    if info_job != job:
        verb = f"`mini-chat-gpt {info_job}`" if info_job in FIXED else "its own command"
        hint = f"; to fine-tune it, set sft.pretrained_checkpoint={checkpoint} instead" if job == "sft" else ""
        raise UserError(f"{checkpoint} is of a run of {info_job[:20]}, which {job} can't resume; use {verb}{hint}.")
    now = _fixed_values(config, job)
    recorded = _recorded(job, checkpoint, now)
    changes = sorted(
        f"{key}={_shown(recorded[key][0])} (now {_shown(now[key])})"
        for key in recorded.keys() & now.keys()
        if not any(_equal(now[key], value) for value in recorded[key])
    )
    if changes:
        raise UserError(
            f"{checkpoint.parent} was started with {', '.join(changes)}, which can't change when a run is resumed; "
            "set it back, or start another run without resume_from."
        )


def changed_settings(config: Config, job: str, folder: Path) -> list[str]:
    """ "key: old → new" of the settings that apply from the resumed step on, and that differ from those of the run's last start.

    Empty if the settings of the last start are not known.
    """
    try:
        before = _stored_config(folder / "config.yaml").model_dump()
    except (UserError, OSError):
        return []
    now = config.model_dump()
    return [
        f"{section}.{key}: {_shown(before[section][key])} → {_shown(value)}"
        for section in (job, "training", "data", "chats", "lora")
        for key, value in now[section].items()
        if f"{section}.{key}" not in OF_ONE_START and not _equal(value, before[section][key])
    ]


def _stored_config(file: Path) -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old names of settings
        return load_config(file)


def _recorded(job: str, checkpoint: Path, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fixed settings of a run, as far as they are known: all values that stand for what it began with."""
    file, recorded = checkpoint.parent / "config.yaml", dict[str, list[Any]]()
    if file.is_file():
        recorded = {key: [value] for key, value in _fixed_values(_stored_config(file), job).items()}
    # The folder may have been moved. It is the one that `save_dir` names, or one of its numbered names.
    save_dir = f"{job}.save_dir"
    folder, named = checkpoint.parent.resolve(), Path(os.path.expanduser(now[save_dir])).resolve()
    if folder.parent == named.parent and re.fullmatch(rf"{re.escape(named.name)}(-\d+)?", folder.name):
        recorded[save_dir] = [now[save_dir]]
    # What the checkpoint says is certain: earlier versions wrote changes to config.yaml that they did not apply.
    tokenizer, shape = load_tokenizer(checkpoint)
    if job == "pretrain":
        recorded |= {f"model.{name}": [value] for name, value in shape}
        if shape.vocab_size == tokenizer.vocab_size:
            recorded["model.vocab_size"].append(0)  # the setting for this size
        return recorded
    if isinstance(tokenizer.chat_format, ChatFormat):
        recorded["data.system_message"] = [tokenizer.chat_format.default_system]
    elif tokenizer.chat_format is not None:  # null means the message of the template
        recorded.setdefault("data.system_message", []).append(tokenizer.chat_format.default_system)
    return recorded | _lora_settings(AdapterMetadata.read(checkpoint), recorded.get("lora.frozen", ["auto"]))


def _lora_settings(adapter: AdapterMetadata | None, frozen: list[Any]) -> dict[str, list[Any]]:
    if adapter is None:
        return {"lora.enabled": [False]}
    fixed = {f"lora.{name}": [getattr(adapter.settings, name)] for name in LoraSettings.model_fields}
    del fixed["lora.dropout"]  # applies from the resumed step on
    return fixed | {"lora.enabled": [True], "lora.frozen": [*frozen, adapter.frozen]}


def _fixed_values(config: Config, job: str) -> dict[str, Any]:
    """The fixed settings of a job by key. Settings of adapters count only if there is one, and likewise of a time budget."""
    keys = [key for key in FIXED[job] if config.lora.enabled or key == "lora.enabled" or not key.startswith("lora.")]
    if config.training.time_budget:  # the first start has set the number of steps
        keys += [f"{job}.max_steps", f"{job}.epochs"]
    values: dict[str, Any] = {key: reduce(getattr, key.split("."), cast(Any, config)) for key in keys}
    if "model" in values:
        values |= {f"model.{name}": value for name, value in values.pop("model").gpt_config(0)}
    return values


def _equal(now: Any, before: Any) -> bool:
    return now == before or (now in ("", None) and before in ("", None))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else short(value)

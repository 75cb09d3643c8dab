"""The model card of an export: what the model comes from and was trained on, how well it does, its limits, and what was checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mini_chat_gpt import __version__
from mini_chat_gpt.checkpoints.origin import card_header
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.json_files import read_json
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.common.yaml_files import parse_yaml
from mini_chat_gpt.export.source import Source

SETTINGS = {
    "sft": ("learning_rate", "max_steps", "epochs", "batch_size", "tokens_per_step"),
    "pretrain": ("learning_rate", "max_steps", "epochs", "batch_size", "tokens_per_step"),
    "training": ("batch_size", "examples_per_step", "tokens_per_step", "optimizer", "weight_decay", "seed", "ema"),
    "data": ("seq_len",),
    "lora": ("rank", "alpha", "targets", "dropout", "rslora", "dora"),
}
"""Settings that the card repeats; none of them is a path."""
MAX_NUMBERS = 60


def model_card(
    name: str, source: Source, command: str, usage: Sequence[str], notes: Sequence[str], checked: Sequence[str] | None
) -> str:
    """The text of README.md.

    usage: lines of Markdown that say how to run the model. notes: what other programs do otherwise. checked: the lines of the proof,
    None if it was switched off.
    """
    config = source.config
    sections = {
        "Base": _base(source),
        "Data": _data(source.info),
        "Settings": _settings(source),
        "Last evaluation": _evaluation(source),
        "Use": usage,
        "Limits": [
            f"- {config.n_parameters:,} parameters, a context of {config.context_length:,} tokens, a vocabulary of "
            f"{source.tokenizer.vocab_size:,}.",
            "- Small language models state false things with confidence. Test the model on your own prompts before you rely on it.",
            *(f"- {note}" for note in notes),
        ],
        "Check": ["The export was not checked (`--no-check`)."]
        if checked is None
        else [
            "The written files were read back and compared with the checkpoint:",
            "",
            *(f"- {line}" for line in checked),
        ],
        "Export": [f"Written by mini_chat_gpt {__version__}:", "", "```", command, "```"],
    }
    lines = [*card_header(source.origin), f"# {clean(name)}"]
    lines.insert(1, "pipeline_tag: text-generation")
    for title, section in sections.items():
        if section:
            lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


def _base(source: Source) -> list[str]:
    origin = source.origin
    if origin is None:
        return ["The model was trained with mini_chat_gpt from random weights."] if source.info.get("job") else []
    commit = f" (commit {origin.commit})" if origin.commit else ""
    lines = [
        f"The model {_made_of(source.info)} `{origin.repository or origin.source}`{commit}. Its license is "
        f"{origin.license or 'not stated by its source'}."
    ]
    if origin.base_model:
        lines.append(f"Its source names as base model: {', '.join(origin.base_model)}.")
    if origin.files:
        lines.append(f"The license files of its source are kept: {', '.join(origin.files)}.")
    return lines


def _made_of(info: Mapping[str, Any]) -> str:
    jobs = {"sft": "was fine-tuned from", "pretrain": "was trained further from"}
    return jobs.get(str(info.get("job")), "is a conversion of")


def _data(info: Mapping[str, Any]) -> list[str]:
    purpose = info.get("purpose")
    lines = []
    if isinstance(purpose, Mapping):
        if chats := [clean(str(one)) for one in purpose.get("chats") or ()]:
            lines.append(f"- chats: {', '.join(chats)}")
        if tasks := [clean(str(one)) for one in purpose.get("tasks") or ()]:
            lines.append(f"- tasks about short stories: {', '.join(tasks)}")
    if (tokens := info.get("trained_tokens")) and isinstance(tokens, int):
        lines.append(f"- {tokens:,} trained tokens in {info.get('step', '?')} steps")
    return lines


def _settings(source: Source) -> list[str]:
    """The run's settings that are numbers or words."""
    if source.run is None:
        return []
    lines = []
    with suppress(UserError):
        path = source.run / "config.yaml"
        values = parse_yaml(read_file(path, 2**22).decode("utf-8", "replace"), str(path)).value
        job = source.info.get("job")
        for section, keys in SETTINGS.items():
            given = values.get(section) if isinstance(values, dict) else None
            if not isinstance(given, dict) or (section in ("sft", "pretrain") and section != job):
                continue
            if section == "lora" and str(given.get("enabled")).lower() != "true":
                continue
            texts = {key: str(given.get(key)) for key in keys}
            lines += [
                f"- {section}.{key}: {text}" for key, text in texts.items() if text.lower() not in ("none", "null")
            ]
    return [clean(line) for line in lines]


def _evaluation(source: Source) -> list[str]:
    """The numbers of the run's last evaluation, or else of this checkpoint."""
    numbers: Mapping[str, Any] = {}
    if source.run is not None:
        with suppress(UserError, OSError):
            numbers = read_json(source.run / "result.json", dict[str, Any], "")
    if not any("loss" in key for key in numbers):
        numbers = {key: source.info[key] for key in ("val_loss",) if key in source.info}
    rows = [
        f"| {clean(key)} | {value:.4g} |"
        for key, value in list(numbers.items())[:MAX_NUMBERS]
        if isinstance(value, int | float) and key.startswith(("val_loss", "train_loss", "eval/"))
    ]
    return ["| metric | value |", "|---|---|", *rows] if rows else []

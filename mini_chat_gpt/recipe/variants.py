"""`recipe NAME --variants`: train once with each entry of variants.yaml, and compare the results in a table.

variants.yaml          settings by the name of the variant; {} are those of config.yaml
  auto: {}
  rate 5e-5: {sft.learning_rate: 5e-5}
  four batches a step: {training.batch_size: 2, training.examples_per_step: 8}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_chat_gpt.cli_recipe import with_files_of
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.files import atomic_write_text, free_name
from mini_chat_gpt.common.json_files import read_json
from mini_chat_gpt.common.terminal import format_duration, print_line, text_table
from mini_chat_gpt.common.yaml_files import read_yaml
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.recipe.folder import Recipe
from mini_chat_gpt.recipe.results import FILE_NAME, headline
from mini_chat_gpt.recipe.train import AFTER, prepare, run_recipe
from mini_chat_gpt.reports.before_after import markdown_table
from mini_chat_gpt.training.job import TrainResult

VARIANTS = "variants.yaml"
HEADS = ["variant", "settings", "steps", "learning rate", "training loss", "time", "held-out, after"]


def read_variants(folder: Path) -> dict[str, list[str]]:
    """Name -> overrides of each variant. Raises UserError."""
    document = read_yaml(
        folder / VARIANTS,
        "file of variants",
        "recipes/base_and_tuned/variants.yaml is an example",
        "names with settings",
    )
    variants = {}
    for name, settings in document.value.items():
        if not isinstance(settings, Mapping) or any(isinstance(value, dict | list) for value in settings.values()):
            raise UserError(
                f"{folder / VARIANTS}: {name} is {short(settings)}; it must be settings such as {{sft.epochs: 2}}."
            )
        variants[str(name)] = [f"{key}={value}" for key, value in settings.items()]
    if not variants:
        raise UserError(f"{folder / VARIANTS} has no variants; write at least one, such as `short: {{sft.epochs: 1}}`.")
    return variants


def run_variants(recipe: Recipe, config: Path, overrides: Sequence[str], out: Console, n: int | None = None) -> str:
    """Train each variant, print the table, and write it to runs/reports. Returns why training stopped before its end, otherwise ""."""
    recipes = {
        name: _variant(recipe, config, name, [*overrides, *own]) for name, own in read_variants(recipe.folder).items()
    }
    for variant in recipes.values():
        prepare(variant, n)  # mistakes in one of them are reported before the first training
    rows, variants = [], read_variants(recipe.folder)
    for name, variant in recipes.items():
        print_line(out, f"Variant {name}: {', '.join(variants[name]) or 'the settings of the recipe'}")
        result = run_recipe(variant, out, n)
        if result.stopped:
            return result.stopped
        rows.append(_row(name, variants[name], result))
    out.print(text_table([HEADS, *rows]))
    folder = free_name(Path("runs/reports") / f"{recipe.name}-variants")
    folder.mkdir(parents=True)
    lines = [f"# {recipe.name}: variants of the settings", "", *markdown_table(HEADS, rows)]
    atomic_write_text(folder / "variants.md", "\n".join(lines) + "\n")
    print_line(out, f"Table: {folder / 'variants.md'}")
    return ""


def _variant(recipe: Recipe, config: Path, name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe with the settings of a variant, and a run folder of its own."""
    changed = with_files_of(recipe.folder, load_config(config, overrides))
    part = re.sub(r"[^\w.-]+", "-", name).strip("-")
    sft = changed.sft.model_copy(update={"save_dir": f"{changed.sft.save_dir}-{part}"})
    return replace(recipe, config=changed.model_copy(update={"sft": sft}))


def _row(name: str, settings: Sequence[str], result: TrainResult) -> list[str]:
    parts: list[dict[str, Any]] = read_json(result.folder / FILE_NAME, dict[str, Any], "run the recipe again")["parts"]
    return [
        name,
        ", ".join(settings) or "–",
        str(result.steps),
        f"{result.learning_rate:.2g}",
        f"{result.train_loss:.3f}",
        format_duration(result.seconds),
        "; ".join(headline(parts, AFTER)),
    ]

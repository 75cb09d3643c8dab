"""A recipe's folder: its settings, prompts and held-out parts, and the list of all recipes that can be given by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.cli_options import RECIPE_CONFIG, recipe_places
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import PREFIX
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.evaluation.held_out_part import HeldOut, Item, read_items
from mini_chat_gpt.evaluation.prompt_suite import Prompts, read_prompts
from mini_chat_gpt.recipe.checklist import Checklist

PROMPTS, README = "prompts.yaml", "README.md"


@dataclass(frozen=True)
class Recipe:
    """A recipe with the settings that are in effect."""

    folder: Path
    config: Config
    prompts: Prompts

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def parts(self) -> list[HeldOut]:
        """The held-out parts that belong to the training files in use."""
        used = {Path(file).name for file in self.config.chats.files}
        return [part for part in self.prompts.held_out if part.trained_on is None or part.trained_on in used]

    def items(self, part: HeldOut) -> list[Item]:
        """The records of a held-out part. Raises UserError."""
        return read_items(self.folder / part.file, self.config.chats.keys)

    def checklist(self) -> Checklist | None:
        """The checks that need code, if a held-out part uses them. Raises UserError."""
        return Checklist(self.folder) if any(part.checklist for part in self.prompts.held_out) else None


def read_recipe(folder: Path, config: Config | None = None) -> Recipe:
    """Read a recipe; `config` is that of the folder by default. Raises UserError."""
    return Recipe(folder, config or load_config(folder / RECIPE_CONFIG), read_prompts(folder / PROMPTS))


def all_recipes() -> Iterator[Path]:
    """The folders of all recipes that can be given by name, by name; of those with the same name the first."""
    folders: dict[str, Path] = {}
    for place in recipe_places():
        for file in sorted(place.glob(f"*/{RECIPE_CONFIG}")):
            folders.setdefault(file.parent.name, file.parent)
    yield from (folders[name] for name in sorted(folders))


def list_recipes(out: Console) -> None:
    """Print each recipe: its name, what it teaches, its base, and what is measured."""
    width = max((len(folder.name) for folder in all_recipes()), default=0)

    def line(name: str, text: str) -> None:
        out.print(f"{name:<{width}}  {text}", markup=False, highlight=False, soft_wrap=not out.is_terminal)

    for folder in all_recipes():
        line(folder.name, _title(folder))
        try:
            recipe = read_recipe(folder)
        except UserError as error:
            line("", f"can't be used: {error}")
            continue
        base = recipe.config.sft.pretrained_checkpoint or "the newest base model under runs/"
        measured = "; ".join(part.shows for part in recipe.prompts.held_out) or "no held-out part"
        line("", f"base: {base.removeprefix(PREFIX)}")
        line("", f"measured: {measured}")
    if not width:
        out.print("There are no recipes in recipes/ here or in the installed package.", markup=False)
    out.print(
        f"{chr(10) if width else ''}mini-chat-gpt recipe NAME                train, and compare with the base "
        "(--base MODEL: another base; --help: all options)\n"
        "mini-chat-gpt recipe new FOLDER          make a recipe from your own chats\n"
        "mini-chat-gpt recipe check FOLDER        see what a recipe lacks",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _title(folder: Path) -> str:
    """The title of the README, or else the first line of the settings' comment."""
    for name, pattern in ((README, r"^# +(.+)$"), (RECIPE_CONFIG, r"^# *([^:\n]+)")):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if match := re.search(pattern, text, re.MULTILINE):
                return match[1].strip()
    return "(no description)"

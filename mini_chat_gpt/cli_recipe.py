"""The options of `recipe`, `recipe check` and `recipe new`, and their checks. Light, as `cli_verbs.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mini_chat_gpt.cli_options import (
    MAX_NUMBER,
    RECIPE_CONFIG,
    Arguments,
    Parser,
    check_range,
    find_recipe,
    load_settings,
    whole,
)
from mini_chat_gpt.cli_verbs import UNUSED_BY_SFT, check_unused
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.user_paths import path_text, user_path

if TYPE_CHECKING:
    from mini_chat_gpt.config import Config

RECIPE_BASE = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"


def recipe_options(parser: Parser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        type=path_text,
        help="name (such as polite_helper or shop_mail) or folder of a recipe (default: list the recipes)",
    )
    parser.add_argument(
        "--base",
        type=path_text,
        metavar="MODEL",
        help="fine-tune this model instead of the recipe's: a checkpoint or Hugging Face folder, hub:org/name, a GGUF file",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="also write the adapter (for PEFT), tokenizer, settings and requirements.txt to this new folder",
    )
    parser.add_argument(
        "--merge", action="store_true", help="with --output: also write the merged model, to FOLDER/merged"
    )
    parser.add_argument(
        "--evaluate",
        type=user_path,
        metavar="PATH",
        help="don't train: compare this model, for example a run of the recipe, with its base",
    )
    parser.add_argument(
        "--against",
        type=path_text,
        action="append",
        metavar="PATH",
        help="another model that replies to the same prompts; may be given several times (default: those of prompts.yaml)",
    )
    parser.add_argument(
        "--variants",
        action="store_true",
        help="train once with each entry of the recipe's variants.yaml, and compare them in a table",
    )
    parser.add_argument("--n", type=whole, metavar="N", help="records of each held-out part to use (default: all)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the recipe's")


def load_recipe(arguments: Arguments) -> None:
    check_range(arguments, n=(1, MAX_NUMBER))
    if arguments.recipe is None:
        if len(arguments.argv) > 0:
            raise UserError("Which recipe is missing: `mini-chat-gpt recipe NAME`; `mini-chat-gpt recipe` lists them.")
        return
    if arguments.merge and arguments.output is None:
        raise UserError("--merge needs --output FOLDER, where the merged model is written to FOLDER/merged.")
    if arguments.output is not None and arguments.evaluate is not None:
        raise UserError("--output writes what a training made, and --evaluate doesn't train; leave one of them out.")
    if arguments.variants and (arguments.output is not None or arguments.evaluate is not None):
        raise UserError("--variants trains several models; leave --output and --evaluate out.")
    arguments.folder = find_recipe(arguments.recipe)
    arguments.config = arguments.folder / RECIPE_CONFIG
    if arguments.base is not None:
        arguments.overrides = [f"sft.pretrained_checkpoint={arguments.base}", *arguments.overrides]
    load_settings(arguments)
    arguments.settings = with_files_of(arguments.folder, arguments.settings)
    check_unused(arguments, UNUSED_BY_SFT)


def check_recipe_options(parser: Parser) -> None:
    parser.add_argument("recipes", nargs="*", type=path_text, metavar="RECIPE", help="names or folders of recipes")
    parser.add_argument("--all", action="store_true", help="check all recipes that can be given by name")


def check_check_recipe(arguments: Arguments) -> None:
    if bool(arguments.recipes) == arguments.all:
        raise UserError("Name a recipe to check, by name or folder, or give --all for all of them.")
    arguments.folders = [find_recipe(name) for name in arguments.recipes]


def new_recipe_options(parser: Parser) -> None:
    parser.add_argument("folder", type=user_path, metavar="FOLDER", help="folder of the recipe; must not exist yet")
    parser.add_argument(
        "--data", type=path_text, metavar="FILE", help="your chats: CSV, JSON, … (default: two examples)"
    )
    parser.add_argument(
        "--base", type=path_text, default=RECIPE_BASE, metavar="MODEL", help=f"the base model (default: {RECIPE_BASE})"
    )
    parser.add_argument("--system", metavar="TEXT", help='system message of all records, "" for none')
    parser.add_argument(
        "--key-facts",
        metavar="COLUMN",
        help="column with phrases that a right reply contains; | separates alternatives",
    )
    strategy = parser.add_argument_group("strategy, for the README (asked for in a terminal)")
    strategy.add_argument("--problem", metavar="TEXT", help="what the model is for")
    strategy.add_argument("--why", metavar="TEXT", help="why this base model: size, abilities, license")
    strategy.add_argument("--source", metavar="TEXT", help="where the records come from, and what one holds")
    strategy.add_argument("--method", metavar="TEXT", help="how it is trained (default: LoRA of rank 16)")
    strategy.add_argument("--judged", metavar="TEXT", help="how replies are judged, by count and by eye")
    strategy.add_argument("--difficult", metavar="TEXT", help="what is difficult, and what was done")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings of the recipe; chats.keys names columns"
    )


def check_new_recipe(arguments: Arguments) -> None:
    from mini_chat_gpt.config_file import load_config

    arguments.settings = load_config(None, arguments.overrides)
    check_unused(arguments, UNUSED_BY_SFT)


def with_files_of(folder: Path, config: Config) -> Config:
    """The settings with chat files of the recipe's folder that the command line names as the recipe's own settings do."""
    files = {
        str(folder / file) if not os.path.exists(file) and (folder / file).is_file() else file: weight
        for file, weight in config.chats.files.items()
    }
    return config.model_copy(update={"chats": config.chats.model_copy(update={"files": files})})

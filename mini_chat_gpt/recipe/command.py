"""`mini-chat-gpt recipe`: list the recipes, train with one, or judge a model that exists."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with, under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.recipe.folder import list_recipes, read_recipe
from mini_chat_gpt.training.stop import exit_code


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt recipe` with a parsed command line."""
    if under_torchrun():
        raise UserError(
            "recipe runs in one process; with torchrun, use `sft --config` with the recipe's config.yaml instead."
        )
    out, stopped = console(optional=True), ""
    if arguments.recipe is None:
        list_recipes(out)
    else:
        stopped = _run_recipe(arguments)
    flush_or_discard(sys.stdout)
    return exit_code(stopped)


def _run_recipe(arguments: argparse.Namespace) -> str:
    """Train or judge. Returns why training stopped before its end, otherwise ""."""
    from mini_chat_gpt.recipe import output, train, variants

    out, recipe = console(optional=True), read_recipe(arguments.folder, arguments.settings)
    if arguments.against:
        recipe = replace(recipe, prompts=recipe.prompts.model_copy(update={"against": arguments.against}))
    if arguments.variants:
        return variants.run_variants(recipe, arguments.config, arguments.overrides, out, arguments.n)
    if arguments.evaluate is not None:
        train.evaluate_recipe(recipe, arguments.evaluate, out, arguments.n, base_given=arguments.base is not None)
        return ""
    if arguments.output is not None:
        output.require_new(arguments.output)
    result = train.run_recipe(recipe, out, arguments.n)
    if arguments.output is not None and not result.stopped:
        output.write_output(result.folder, arguments.output, recipe.config, arguments.merge)
        out.print(output.loading_lines(arguments.output), markup=False, soft_wrap=True)
    return result.stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("recipe", argv))


if __name__ == "__main__":
    exit_with(main)

"""The console command `mini-chat-gpt VERB …`: parse the verb's command line, then import its module and run it.

Parsing imports only light modules, so `--help` and mistakes in options or settings don't wait for PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from mini_chat_gpt import __version__, cli_models, cli_recipe, cli_verbs
from mini_chat_gpt.cli_options import CHAT_COMMANDS, PIPED, Arguments, Parser
from mini_chat_gpt.cli_serve import SERVE_HELP, check_serve, serve_options
from mini_chat_gpt.common.entry import exit_with, importing
from mini_chat_gpt.common.errors import UserError, nearest

EXIT_CODES = (
    "Exit code: 0 at the end of the run, 2 for a mistake or a failure that the message explains, 75 at the time limit, "
    "130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."
)


class Verb(NamedTuple):
    """One command of `mini-chat-gpt`."""

    target: str  # "module:function" inside the package, called with the parsed arguments; returns the exit code
    summary: str  # in the list of verbs
    add_options: Callable[[Parser], None]
    description: str  # in the verb's help
    check: Callable[[Arguments], None] | None = None  # checks what argparse can't, and loads the settings
    epilog: str = ""


def make_parser(verb: str) -> Parser:
    """The argument parser of a verb."""
    spec = VERBS[verb]
    parser = argparse.ArgumentParser(
        description=spec.description,
        epilog=spec.epilog or None,
        formatter_class=lambda prog: (argparse.RawDescriptionHelpFormatter if spec.epilog else argparse.HelpFormatter)(
            prog, max_help_position=32
        ),
    )
    spec.add_options(parser)
    return parser


def parse(verb: str, argv: Sequence[str] | None = None) -> Arguments:
    """Parse a verb's command line (None = that of the process), check it, and load the settings.

    Returns the options as attributes, and the command line as `argv`. If the verb takes settings, `settings` is the loaded
    `Config`. Raises UserError.
    """
    parser = make_parser(verb)
    # Options may stand between settings: sft --config FILE training.batch_size=2 --time-limit 2h
    mixed = any(action.nargs == "*" for action in parser._actions if not action.option_strings)
    arguments, unknown = (parser.parse_known_intermixed_args if mixed else parser.parse_known_args)(argv)
    if unknown:
        options = [name for name in parser._option_string_actions if name not in ("-h", "--help")]
        hint = nearest(unknown[0], options, cutoff=0.7) if unknown[0].startswith("-") else ""
        if not hint and mixed and unknown[0].startswith("--"):
            from mini_chat_gpt.config_file import setting_named  # slow to import

            name = setting_named(unknown[0][2:].partition("=")[0], verb)
            hint = f"; that is the setting {name}=…" if name else ""
        more = hint or f"; `mini-chat-gpt {verb} --help` lists what it takes."
        raise UserError(f"{verb} takes no {unknown[0]!r}{more}")
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    if (check := VERBS[verb].check) is not None:
        check(arguments)
    return arguments


VERBS = {
    "quickstart": Verb(
        "quickstart:run",
        "the whole pipeline on a small scale: data, tokenizer, base model, fine-tuning, replies",
        cli_verbs.quickstart_options,
        "From sample stories to a model that answers, in minutes on a CPU.",
        cli_verbs.check_quickstart,
    ),
    "prepare": Verb(
        "prepare.prepare:run",
        "get the data, check them and report on them",
        cli_verbs.prepare_options,
        "Get the data (downloaded, your own records, labeled plain stories, or the sample), check them and report on them. "
        "Existing data are never replaced.",
        cli_verbs.check_prepare,
    ),
    "inspect": Verb(
        "diagnostics.inspect_data:run",
        "show what a fine-tuning run will train on, with the trained tokens in color",
        cli_verbs.inspect_options,
        "Show what a fine-tuning run will train on, with the trained tokens marked.",
        cli_verbs.check_inspect,
    ),
    "pretrain": Verb(
        "pretrain:run",
        "train a base model on plain text",
        cli_verbs.pretrain_options,
        "Pretrain a base model on plain text.",
        cli_verbs.load_training,
        EXIT_CODES,
    ),
    "sft": Verb(
        "sft_train:run",
        "fine-tune a base model to answer",
        cli_verbs.sft_options,
        "Fine-tune a base model on TinyStories-Instruct tasks, on your own chats (chats.files), or on both.",
        cli_verbs.load_training,
        EXIT_CODES,
    ),
    "recipe": Verb(
        "recipe.command:run",
        "list the recipes, or fine-tune with one and measure what the model learned",
        cli_recipe.recipe_options,
        "List the recipes, or fine-tune with one and compare the model with its base: prompts side by side, and held-out parts scored. "
        "A recipe's checklist.py is Python code that runs with your rights: name only recipes that you trust.",
        cli_recipe.load_recipe,
    ),
    "recipe check": Verb(
        "recipe.check:run",
        "see what a recipe lacks, and whether held-out records are in its training data",
        cli_recipe.check_recipe_options,
        "Name what a recipe lacks: records, held-out part, checks, sections of its README; and held-out records that are also in its "
        "training data, or nearly. A recipe's checklist.py is run on its own records. Exit code: 0 if nothing is wrong, 1 otherwise.",
        cli_recipe.check_check_recipe,
    ),
    "recipe new": Verb(
        "recipe.new:run",
        "make a recipe from your own chats, without code",
        cli_recipe.new_recipe_options,
        "Make a recipe's folder: settings, training and held-out records from a file of chats (CSV, JSON, …), prompts with checks, and a "
        "README with your strategy. What no option says is asked in a terminal.",
        cli_recipe.check_new_recipe,
    ),
    "chat": Verb(
        "chat.loop:run",
        "chat with a model in the terminal, or over a pipe",
        cli_verbs.chat_options,
        "Chat with a model. A base model without a chat format continues each text instead.",
        cli_verbs.check_chat,
        PIPED + "\ncommands:\n" + "".join(f"  {f'/{n} {arg}':<16}{what}\n" for n, (arg, what) in CHAT_COMMANDS.items()),
    ),
    "serve": Verb(
        "serve.command:run",
        "a server with an OpenAI-compatible API and a web page",
        serve_options,
        "Serve models to programs (OpenAI-compatible API) and in a browser. The server is for this machine, unless --host says otherwise.",
        check_serve,
        SERVE_HELP,
    ),
    "generate": Verb(
        "sft_generate:run",
        "reply to a prompt",
        cli_verbs.generate_options,
        "Reply to a prompt. A base model without a chat format continues the prompt instead.",
        cli_verbs.check_generate,
    ),
    "evaluate": Verb(
        "reports.compare:run",
        "score replies to held-out chats and tasks, for one model or several side by side",
        cli_verbs.evaluate_options,
        "Score greedy replies: to the chats that a run held out, to your own prompts, and to tasks about stories if it was trained "
        "on stories.",
    ),
    "merge": Verb(
        "checkpoints.merge:run",
        "merge an adapter (LoRA) and its base into one checkpoint folder",
        cli_models.merge_options,
        "Merge an adapter (LoRA) and its base into one checkpoint folder.",
    ),
    "import": Verb(
        "checkpoints.convert:run",
        "convert a model from elsewhere (Hugging Face, GGUF, llama2.c, nanoGPT) into a checkpoint folder",
        cli_models.import_options,
        "Convert a model from elsewhere (Hugging Face folder, GGUF, llama2.c, nanoGPT), or a sharded checkpoint, into an ordinary "
        "checkpoint folder.",
    ),
    "export": Verb(
        "export.command:run",
        "write a model for transformers, llama.cpp or Ollama, and check that it gives the same answers",
        cli_models.export_options,
        "Write a model for other programs: a Hugging Face folder, or a GGUF file with a Modelfile for Ollama if DST ends in .gguf. "
        "The files are read back, and ids, logits and replies compared.",
        cli_models.check_export,
        "Exit code: 0 if DST was written and checked, 1 if the check failed, 2 for a mistake or a full disk; then nothing is left behind.",
    ),
    "doctor": Verb(
        "diagnostics.doctor:run",
        "check the machine, and predict the memory and time of a run",
        cli_verbs.doctor_options,
        "Check the machine, and predict the memory and time of a training run.",
        cli_verbs.check_doctor,
    ),
    "selfcheck": Verb(
        "diagnostics.selfcheck:run",
        "check that batches, processes and caches don't change results, in a minute",
        cli_verbs.selfcheck_options,
        "Check that batches, processes and caches don't change results, in a minute.",
        cli_verbs.check_selfcheck,
    ),
    "config": Verb(
        "cli:print_config",
        "print all settings with their descriptions",
        cli_verbs.config_options,
        "Print all settings as a commented YAML file, or check a file.",
        cli_verbs.check_config,
    ),
}


ALIASES = {"train": "sft", "finetune": "sft", "fine-tune": "sft"}
"""Other names of verbs, not listed in the help text."""
MEANT = {
    "run": "chat", "talk": "chat", "ask": "generate", "predict": "generate", "complete": "generate", "infer": "generate",
    "inference": "generate", "convert": "import", "pull": "import", "download": "prepare", "data": "prepare", "eval": "evaluate",
    "test": "evaluate", "benchmark": "evaluate", "score": "evaluate", "compare": "evaluate", "report": "evaluate", "show": "inspect",
    "view": "inspect", "check": "doctor", "settings": "config", "init": "quickstart", "start": "quickstart", "demo": "quickstart",
    "tune": "sft", "lora": "sft", "server": "serve", "api": "serve", "web": "serve", "ui": "serve",
    "gguf": "export", "quantize": "export", "ollama": "export", "publish": "export", "push": "export",
    "save": "export",
}  # fmt: skip
"""What another word most probably stands for."""


def usage() -> str:
    """The help text."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    head = "usage: mini-chat-gpt VERB [options]   (mini-chat-gpt VERB --help for the options; mini-chat-gpt --version)"
    return "\n".join([head, "", *lines])


def dispatch(argv: Sequence[str]) -> int:
    """Run one verb; returns its exit code. Raises UserError for an unknown verb."""
    name, *rest = argv or ["--help"]
    if rest and f"{name} {rest[0]}" in VERBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"mini-chat-gpt {__version__}")
        return 0
    name = ALIASES.get(name, name)
    if name not in VERBS:
        meant = MEANT.get(name.lower())
        hint = f"; did you mean {meant!r}?" if meant else nearest(name, [*VERBS, *ALIASES])
        raise UserError(f"{name!r} is not a verb of mini-chat-gpt{hint}; the verbs are {', '.join(VERBS)}.")
    sys.argv[0] = f"mini-chat-gpt {name}"  # argparse shows it
    module, _, function = VERBS[name].target.partition(":")
    with importing():  # `parse` imports pydantic, if the verb has settings
        arguments = parse(name, rest)
        run = getattr(import_module(f"mini_chat_gpt.{module}"), function)
    return int(run(arguments))


def print_config(arguments: Arguments) -> int:
    """`mini-chat-gpt config`: print the settings with their descriptions."""
    from mini_chat_gpt.config_file import to_yaml

    print(to_yaml(arguments.settings), end="")
    return 0


def main() -> None:
    """Console entry point."""
    exit_with(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()

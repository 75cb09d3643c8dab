"""The options of each verb of `mini-chat-gpt`, and their checks: what argparse can't check, and loading the settings.

Light, as `cli_options.py`, which has the options that several verbs share. `cli.py` has the table of verbs.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

from mini_chat_gpt.cli_options import (
    DEFAULT_CONFIG,
    MAX_NUMBER,
    QUICKSTART_BASE_CONFIG,
    QUICKSTART_CONFIG,
    Arguments,
    Parser,
    add_device_option,
    add_eval_options,
    add_model_options,
    add_sampling_options,
    add_settings,
    add_weights_option,
    check_range,
    data_kinds,
    load_settings,
    number,
    sampling_of,
    split_arguments,
    take_text,
    whole,
    with_files,
)
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.hub_names import name_of_model
from mini_chat_gpt.common.user_paths import path_text, user_path

UNUSED_BY_SFT = ("pretrain", "model")
WHY_UNUSED = {"lora": "pretraining trains all weights"}
EXAMPLES_SHOWN, EXAMPLES_ON_PAGE = 3, 40  # by `inspect`
ITEMS, ITEMS_OF_BASE = 40, 4  # prompts of each kind that `quickstart` scores


# Getting and inspecting data


def prepare_options(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)  # for a better error than argparse's
    parser.add_argument(
        "--folder", type=user_path, default=Path("TinyStories"), help="the data folder (default: TinyStories)"
    )
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--split",
        choices=("train", "valid", "both"),
        help="which public files to download (both: 2.7 GB; valid: 27 MB)",
    )
    sources.add_argument("--sample", action="store_true", help="write the sample, which needs no network")
    sources.add_argument(
        "--source",
        type=user_path,
        nargs="+",
        metavar="PATH",
        help="your own records: a folder, a file, or two files (train, valid)",
    )
    sources.add_argument(
        "--label",
        "--derive",  # its old name
        dest="label",
        type=user_path,
        nargs="+",
        metavar="PATH",
        help="label your own plain stories; paths as above",
    )
    parser.add_argument(
        "--valid-fraction",
        type=number,
        default=0.02,
        metavar="X",
        help="fraction of a single file's stories to hold out for validation (default: 0.02)",
    )
    parser.add_argument("--replace-sample", action="store_true", help="replace an unchanged sample by the data")
    parser.add_argument("--url", help="a web address that has the two public files (default: the Hugging Face hub)")
    parser.add_argument(
        "--tokenizer",
        type=path_text,
        metavar="NAME",
        help="count tokens with this tokenizer: a checkpoint, a tokenizer's folder or file, or gpt2",
    )
    parser.add_argument(
        "--seq-len", type=whole, default=1024, metavar="N", help="maximum tokens of an example (default: 1024)"
    )
    parser.add_argument("--full", action="store_true", help="report on all records, not on 20,000 of each file")
    parser.add_argument(
        "--json", action="store_true", help="the report as JSON on standard output, everything else on standard error"
    )


def check_prepare(arguments: Arguments) -> None:
    if arguments.words:
        raise UserError(
            f"prepare takes no {arguments.words[0]!r}; your own stories are named with --source, and chats need no preparation: "
            "`mini-chat-gpt inspect FILE` shows them."
        )
    if not 0 < arguments.valid_fraction < 1:
        raise UserError(f"--valid-fraction is {arguments.valid_fraction:g}; it must be between 0 and 1, such as 0.02.")
    check_range(arguments, seq_len=(16, MAX_NUMBER))
    for name in ("source", "label"):
        if (n_paths := len(getattr(arguments, name) or ())) > 2:
            raise UserError(f"--{name} takes one path, or two for train and valid, not {n_paths}.")


def inspect_options(parser: Parser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE | section.key=value",
        help="chats, stories or text to pretrain on: files, folders or patterns (default: those of the settings); settings",
    )
    parser.add_argument(
        "--config",
        type=path_text,
        metavar="FILE",
        help=f"YAML file with settings (default: {DEFAULT_CONFIG} if it exists)",
    )
    parser.add_argument(
        "--n", type=whole, help=f"examples to show (default: {EXAMPLES_SHOWN}, {EXAMPLES_ON_PAGE} on a page)"
    )
    parser.add_argument(
        "--steps",
        type=whole,
        default=1,
        metavar="N",
        help="optimizer steps whose batches are shown (default: 1)",
    )
    parser.add_argument("--html", type=path_text, metavar="PAGE.html", help="also write an HTML page with everything")
    parser.add_argument(
        "--tokenizer", type=path_text, metavar="NAME", help="folder, file or encoding name (default: the base model's)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip bad records of chat files: chats.skip_bad")


def check_inspect(arguments: Arguments) -> None:
    check_range(arguments, n=(0, MAX_NUMBER), steps=(1, MAX_NUMBER))
    arguments.overrides, arguments.files = split_arguments(arguments.words)
    if arguments.skip_bad:
        arguments.overrides.append("chats.skip_bad=true")
    load_settings(arguments)
    kinds = data_kinds(arguments.files)
    arguments.texts = "text" in kinds.values()
    arguments.settings = with_files(arguments.settings, kinds, arguments.overrides)


# Training


def pretrain_options(parser: Parser) -> None:
    _training_options(parser, unused=("sft", "chats", "lora"))


def _training_options(parser: Parser, unused: tuple[str, ...]) -> None:
    """`unused`: the sections of settings that this training never reads."""
    add_settings(parser)
    parser.set_defaults(unused=unused)
    parser.add_argument("--time-limit", metavar="2h", help="save and exit after this time: training.time_limit")
    parser.add_argument(
        "--time-budget", metavar="10m", help="run as many steps as fit into this time: training.time_budget"
    )


def sft_options(parser: Parser) -> None:
    _training_options(parser, UNUSED_BY_SFT)
    parser.add_argument("--skip-bad", action="store_true", help="skip unusable chats: chats.skip_bad")


def load_training(arguments: Arguments) -> None:
    for name in ("time_limit", "time_budget"):
        if value := getattr(arguments, name):
            arguments.overrides.append(f"training.{name}={value}")
    if getattr(arguments, "skip_bad", False):
        arguments.overrides.append("chats.skip_bad=true")
    load_settings(arguments)
    check_unused(arguments, arguments.unused)


def check_unused(arguments: Arguments, sections: tuple[str, ...]) -> None:
    """Name the settings of the command line that have no effect. A file has the settings of all verbs, so it isn't checked.

    Raises UserError for a shape of the model where the base model has one: whoever gives it expects another model.
    """
    keys = [override.partition("=")[0].strip() for override in arguments.overrides]
    unused = list(dict.fromkeys(key for key in keys if key.partition(".")[0] in sections))
    named = {key.partition(".")[0] for key in unused}
    if "model" in named:
        override = next(one for one in arguments.overrides if one.strip().startswith("model"))
        raise UserError(
            f"{short(override)[1:-1]}: fine-tuning keeps the shape of its base model, which sft.pretrained_checkpoint names; "
            "a new shape is for `mini-chat-gpt pretrain`."
        )
    if unused and os.environ.get("RANK", "0") == "0":  # once under torchrun
        reason = next((f" ({why})" for section, why in WHY_UNUSED.items() if section in named), "")
        warnings.warn(
            f"{short(', '.join(unused), 200)[1:-1]} {'have' if len(unused) > 1 else 'has'} no effect here{reason}.",
            stacklevel=1,
        )


def quickstart_options(parser: Parser) -> None:
    add_settings(parser, "the package's quickstart.yaml")
    parser.add_argument(
        "--base",
        type=path_text,
        metavar="MODEL",
        help="fine-tune this chat model with an adapter, for ten minutes, instead of a model made from nothing: a Hugging Face folder, "
        "hub:org/name, a GGUF file, or a checkpoint",
    )
    parser.add_argument(
        "--items",
        type=whole,
        metavar="N",
        help=f"held-out prompts of each kind to score (default: {ITEMS}, with --base {ITEMS_OF_BASE})",
    )
    parser.add_argument(
        "--details", action="store_true", help="print all scores, with examples, that are in the report"
    )


def check_quickstart(arguments: Arguments) -> None:
    check_range(arguments, items=(1, MAX_NUMBER))
    arguments.items = arguments.items or (ITEMS if arguments.base is None else ITEMS_OF_BASE)
    if arguments.base is None:
        arguments.config = arguments.config or QUICKSTART_CONFIG
    else:
        arguments.config = arguments.config or QUICKSTART_BASE_CONFIG
        run = f"runs/quickstart-{name_of_model(arguments.base)}"
        ours = [f"sft.pretrained_checkpoint={arguments.base}", f"sft.save_dir={run}"]
        arguments.overrides = [*ours, *arguments.overrides]
    load_settings(arguments)


# Using a model


def chat_options(parser: Parser) -> None:
    add_model_options(parser)
    add_sampling_options(parser)


def check_chat(arguments: Arguments) -> None:
    arguments.sampling = sampling_of(arguments)


def generate_options(parser: Parser) -> None:
    add_model_options(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what to reply to; - reads it from standard input")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--prompt", metavar="TEXT", help="the same as TEXT")
    task.add_argument("--prompt-file", type=path_text, metavar="FILE", help="what to reply to, from a file")
    task.add_argument("--interactive", action="store_true", help="chat, as `mini-chat-gpt chat` does")
    task.add_argument("--test", action="store_true", help="the capability test: held-out tasks of every kind, scored")
    parser.add_argument(
        "--why",
        nargs="?",
        const="",
        type=lambda text: text and path_text(text),
        metavar="FILE.html",
        help="after the reply, show its tokens with their probabilities and alternatives; --why all shows all tokens, "
        "--why FILE.html writes a page",
    )
    add_sampling_options(parser)
    test = parser.add_argument_group("capability test (--test)")
    add_eval_options(test, seed=False)
    parser.set_defaults(test_options=[action.dest for action in test._group_actions])


def check_generate(arguments: Arguments) -> None:
    take_text(arguments)
    if arguments.why is not None and (arguments.test or arguments.interactive):
        raise UserError("--why works with a prompt only; in a chat, type /why.")
    if arguments.test and arguments.system is not None:
        raise UserError("--system doesn't work with --test; the test uses the system message of the training.")
    if arguments.test and arguments.thinking is not None:
        raise UserError("--thinking doesn't work with --test; the test uses the default of the chat template.")
    if not arguments.test:
        for name in arguments.test_options:
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} works with --test only; add --test, or omit it.")
    arguments.sampling = sampling_of(arguments)


def evaluate_options(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=path_text,
        required=True,
        metavar="PATH",
        help="checkpoint or run folder, llama2.c .bin, nanoGPT ckpt.pt",
    )
    parser.add_argument(
        "--against",
        type=path_text,
        nargs="+",
        default=[],
        metavar="PATH",
        help="other models to compare it with, for example its base",
    )
    add_device_option(parser)
    add_weights_option(parser)
    add_eval_options(parser)


# Checkpoints and checks


def doctor_options(parser: Parser) -> None:
    add_settings(parser)
    parser.add_argument("--job", choices=["sft", "pretrain"], default="sft", help="which training (default: sft)")


def check_doctor(arguments: Arguments) -> None:
    if (job := next(iter(arguments.overrides), "")) in ("sft", "pretrain"):
        raise UserError(f"Which training is checked is an option: `mini-chat-gpt doctor --job {job}`.")
    load_settings(arguments)


def selfcheck_options(parser: Parser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--checkpoint", type=path_text, metavar="PATH", help="check this model instead of a small random one"
    )
    model.add_argument(
        "--config",
        type=path_text,
        metavar="FILE",
        help="check random weights in the shape of this file's model section",
    )
    add_device_option(parser)
    parser.add_argument("--ranks-to", help=argparse.SUPPRESS)


def check_selfcheck(arguments: Arguments) -> None:
    arguments.overrides = []
    if arguments.config:
        load_settings(arguments)


def config_options(parser: Parser) -> None:
    add_settings(parser, "the default settings")


def check_config(arguments: Arguments) -> None:
    """Unlike the other verbs, `config` doesn't read sft_config.yaml by default, as its output may be written to that file."""
    from mini_chat_gpt.config_file import load_config

    changed = arguments.config or arguments.overrides
    arguments.settings = load_config(arguments.config, arguments.overrides) if changed else None

"""Options that several verbs share, and how a command line names settings, models and recipes.

Light: `--help` and a mistake must not wait for PyTorch. `cli_verbs.py` has the options of each verb.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_chat_gpt.common.errors import UserError, nearest, short
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.user_paths import nearest_path, path_text, split_paths, user_path

if TYPE_CHECKING:
    from mini_chat_gpt.config import Config, DataSection
    from mini_chat_gpt.generation.settings import Sampling

Parser = argparse.ArgumentParser
Arguments = argparse.Namespace
DEFAULT_CONFIG = "sft_config.yaml"
RECIPE_CONFIG = "config.yaml"
QUICKSTART_CONFIG = Path(__file__).parent / "assets" / "quickstart.yaml"
QUICKSTART_BASE_CONFIG = QUICKSTART_CONFIG.with_name("quickstart_base.yaml")
EVAL_DEFAULTS = {"n": 100, "examples": 1, "training_mb": 50, "seed": 1337}
"""Defaults of `EvalOptions` for the help texts, as its module is slow to import. A test compares them."""
MAX_NUMBER = 10**9
"""The greatest value of options that count things."""
CHAT_COMMANDS = {
    "help": ("", "list the commands"),
    "examples": ("[N]", "prompts to try; N: send this one"),
    "reset": ("", "start a new conversation"),
    "retry": ("", "generate another reply to the last message"),
    "undo": ("", "remove the last message and its reply"),
    "system": ("[TEXT]", "show or set the system message; none, default"),
    "thinking": ("[on|off]", "show or set whether the model thinks before it replies; default"),
    "temp": ("[T]", "temperature: 0 = greedy, always the most likely token"),
    "top_p": ("[P]", "sample from the most likely tokens that have this total probability"),
    "seed": ("[N]", "the same seed gives the same replies"),
    "max": ("[N]", "maximum reply length in tokens"),
    "why": ("[all|FILE]", "the last reply token by token, with probabilities and alternatives; FILE.html: as a page"),
    "tokens": ("", "show how full the context is"),
    "save": ("FILE", "save the conversation and the settings as JSON"),
    "load": ("FILE", "continue a saved conversation"),
    "quit": ("", "leave the chat"),
}
"""Slash command of a chat -> (its argument, what it does). `chat/commands.py` implements them."""
CHAT_ALIASES = {
    "exit": "quit", "bye": "quit", "q": "quit", "clear": "reset", "new": "reset", "regenerate": "retry", "again": "retry",
    "temperature": "temp", "?": "help",
}  # fmt: skip
"""Other names of the commands, not listed in the help text."""

PIPED = """\
If standard input is not a terminal, each of its lines is a message or a command. A line that ends in a backslash continues in
the next line. Standard output gets only the replies, standard error everything else. The first mistake ends the chat with exit
code 2.
"""


def add_settings(parser: Parser, default: str = f"{DEFAULT_CONFIG} if it exists") -> None:
    """--config FILE and section.key=value."""
    parser.add_argument(
        "--config", type=path_text, metavar="FILE", help=f"YAML file with settings (default: {default})"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")


def load_settings(arguments: Arguments) -> None:
    """Set `arguments.settings` to the `Config` of --config and the overrides. Raises UserError."""
    from mini_chat_gpt.config_file import load_config

    path = arguments.config or (DEFAULT_CONFIG if Path(DEFAULT_CONFIG).is_file() else None)
    arguments.settings = load_config(path, arguments.overrides)
    _check_task_kinds(arguments.settings.data)


def _check_task_kinds(data: DataSection) -> None:
    """Raise UserError for a setting of a kind of task that doesn't exist."""
    by_key = {"data.mixture": data.mixture, "data.loss_weights": data.loss_weights}
    by_key |= {f"data.curriculum.{number}.mixture": stage.mixture for number, stage in enumerate(data.curriculum)}
    if any(by_key.values()):  # the import reads word lists, so it is not free
        from mini_chat_gpt.tinystories.conversations import turn_kinds
        from mini_chat_gpt.tinystories.tasks import check_kinds

        for key, kinds in by_key.items():
            check_kinds(kinds or (), key, turn_kinds() if key == "data.loss_weights" else ())


def add_device_option(parser: Parser) -> None:
    """Which device computes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")


def add_weights_option(parser: Parser) -> None:
    """The number format of a model's weights for inference on a CPU."""
    parser.add_argument(
        "--weights",
        choices=("auto", "float32", "bf16", "int8"),
        default="auto",
        help="on a CPU: auto and float32 are exact, bf16 and int8 are faster and nearly exact (default: auto)",
    )


def add_model_options(parser: Parser) -> None:
    """Which model replies, on which device, its system message, and whether it thinks before it replies."""
    parser.add_argument(
        "--checkpoint",
        type=path_text,
        metavar="PATH",
        help="checkpoint or run folder, Hugging Face folder, hub:org/name, or a model file (default: newest under runs/)",
    )
    parser.add_argument("--system", metavar="TEXT", help='system message, "" for none (default: as in training)')
    parser.add_argument(
        "--thinking",
        choices=("on", "off"),
        help="whether the model thinks before it replies, if its chat template has such a switch (default: that of the template)",
    )
    add_device_option(parser)
    add_weights_option(parser)


def add_sampling_options(parser: Parser) -> None:
    """One option for each field of `Sampling`."""
    from mini_chat_gpt.generation.settings import Sampling

    default = Sampling()
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-new-tokens",
        type=whole,
        metavar="N",
        help=f"maximum reply length (default: {default.max_new_tokens})",
    )
    group.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help=f"0 = greedy, always the most likely token (default: {default.temperature})",
    )
    group.add_argument("--top-k", type=whole, metavar="K", help="sample from the K most likely tokens only")
    group.add_argument(
        "--top-p", type=number, metavar="P", help="sample from the most likely tokens with this total probability"
    )
    group.add_argument(
        "--min-p", type=number, metavar="P", help="exclude tokens less than P times as likely as the most likely one"
    )
    group.add_argument("--repetition-penalty", type=number, metavar="X", help="above 1: repeat less (default: 1, none)")
    group.add_argument("--seed", type=whole, metavar="N", help="the same seed gives the same reply")


def sampling_of(arguments: Arguments, default: Sampling | None = None) -> Sampling:
    """The sampling settings of the command line, those of `default` for the rest. Raises UserError for a wrong value."""
    from dataclasses import fields, replace

    from mini_chat_gpt.generation.settings import Sampling

    values: dict[str, Any] = {field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    changes = {name: value for name, value in values.items() if value is not None}
    return replace(default or Sampling(), **changes)


def add_eval_options(parser: argparse._ActionsContainer, seed: bool = True) -> None:
    """Options of the capability test; those not on the command line are None. No --seed if the parser has one already."""
    default = EVAL_DEFAULTS
    parser.add_argument(
        "--data",
        type=path_text,
        metavar="PATH",
        help="chats, or Instruct records: a file, a folder, hub:org/name (default: what the run held out)",
    )
    parser.add_argument(
        "--n",
        type=whole,
        metavar="N",
        help=f"chats of each file, and tasks per kind and group of plots (default: {default['n']})",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="task kinds, such as moral summary, refusals, and chats (default: the chats and kinds that the run was trained on)",
    )
    parser.add_argument(
        "--examples",
        type=whole,
        metavar="N",
        help=f"replies of each kind to show, of chats three times as many (default: {default['examples']})",
    )
    parser.add_argument("--batch-size", type=whole, metavar="N", help="prompts per batch (default: chosen for speed)")
    _add_eval_outputs(parser)
    if seed:
        parser.add_argument("--seed", type=whole, metavar="N", help=f"which tasks to use (default: {default['seed']})")


def _add_eval_outputs(parser: argparse._ActionsContainer) -> None:
    """What the capability test shows and writes."""
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the results and every reply to this file")
    parser.add_argument(
        "--details", action="store_true", default=None, help="show all metrics, and the score of every baseline"
    )
    parser.add_argument(
        "--report",
        type=user_path,
        metavar="FOLDER",
        help="write report.html, before_after.md and report.json to this folder",
    )
    parser.add_argument(
        "--training-mb",
        type=whole,
        metavar="N",
        help="for the report, megabytes of training stories to search for memorized passages, 0 for none "
        f"(default: {EVAL_DEFAULTS['training_mb']})",
    )
    parser.add_argument(
        "--prompts",
        type=user_path,
        metavar="FILE",
        help="your own prompts and checks, in lines such as - {prompt: Capital of Japan?, contains: Tokyo}",
    )
    parser.add_argument(
        "--review",
        type=user_path,
        nargs="?",
        const=Path(),
        metavar="FILE.html",
        help="write a page for judging 50 replies blind with a checklist: those of all models, or of one mixed with the expected "
        "ones (default: review.html in the report's folder)",
    )
    parser.add_argument(
        "--checklist",
        type=user_path,
        metavar="FILE",
        help="the points of that checklist, with lines such as - is correct (default: five points)",
    )


def whole(text: str) -> int:
    """A whole number, for argparse."""
    return int(_parse(int, text, "a whole number"))


def number(text: str) -> float:
    """A number, for argparse. It may be infinite or NaN; `check_range` and `Sampling` refuse that."""
    return _parse(float, text, "a number")


def _parse(kind: Callable[[str], float], text: str, what: str) -> float:
    try:
        return kind(text)
    except ValueError:  # also a number of more than 4,300 digits
        raise argparse.ArgumentTypeError(f"must be {what}, not {short(text)}") from None


def check_range(arguments: Any, **limits: tuple[int, int]) -> None:
    """Raise UserError for an option that is not between its (least, greatest) value; None passes."""
    for name, (least, greatest) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= greatest:
            allowed = f"{least} or more" if value < least else f"at most {greatest:,}"
            raise UserError(f"--{name.replace('_', '-')} is {short(value)}; it must be {allowed}.")


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command line words into (overrides, files).

    A word with a dotted key before "=" is an override, unless a file of that name exists.
    """
    overrides = [word for word in words if re.match(r"[A-Za-z_]\w*(\.\w+)+\s*=", word) and not os.path.exists(word)]
    files = [file for word in words if word not in overrides for file in split_paths(word)]
    return overrides, [path_text(file) for file in files]


def data_kinds(files: Sequence[str]) -> dict[str, str]:
    """Path -> "chats", "stories" or "text", for paths of the command line. Raises UserError for one without data."""
    from mini_chat_gpt.tinystories.documents import kind_of_data  # not needed to parse other command lines

    for file in files:
        if not Path(file).exists() and not glob.has_magic(file) and hub_name(file, "dataset") is None:
            hint = nearest_path(file) or "; give chat files, text, a folder with stories, or section.key=value."
            raise UserError(f"There is no {file}{hint}")
    return {file: kind_of_data(file) for file in files}


def with_files(config: Config, kinds: Mapping[str, str], overrides: Sequence[str] = ()) -> Config:
    """Return the config with these files, and their kinds (`data_kinds`), instead of its own.

    The config's validation files belong to its own chat files, so they are dropped unless an override names them.
    Raises UserError.
    """
    story_paths, chats, texts = (
        [file for file, kind in kinds.items() if kind == wanted] for wanted in ("stories", "chats", "text")
    )
    if texts and len(texts) < len(kinds):
        raise UserError(
            f"{texts[0]} is text to pretrain on, and {(chats + story_paths)[0]} isn't; inspect one of them."
        )
    if texts:
        changed = config.pretrain.model_copy(update={"dataset_path": ",".join(texts)})
        return config.model_copy(update={"pretrain": changed})
    if len(story_paths) > 1:
        raise UserError(f"{story_paths[0]} and {story_paths[1]} both hold stories; give one of them.")
    if story_paths and chats and not config.chats.stories:
        raise UserError(
            f"{story_paths[0]} needs a share of the examples in addition to the chats; for example chats.stories=0.3."
        )
    if story_paths:
        config = config.model_copy(update={"sft": config.sft.model_copy(update={"dataset_path": story_paths[0]})})
    if kinds:
        overridden = any(override.startswith("chats.valid_files") for override in overrides)
        valid_files = config.chats.valid_files if overridden and chats else {}
        weights = {file: config.chats.files.get(file, 1.0) for file in chats}
        changes = {"files": weights, "valid_files": valid_files}
        config = config.model_copy(update={"chats": config.chats.model_copy(update=changes)})
    return config


def take_text(arguments: Arguments) -> None:
    """TEXT, whose words need no quotes, is the prompt. Raises UserError if there is no prompt, or a second one."""
    others = {
        "--prompt": arguments.prompt is not None,
        "--prompt-file": arguments.prompt_file is not None,
        "--interactive": arguments.interactive,
        "--test": arguments.test,
    }
    other = next((name for name, is_given in others.items() if is_given), None)
    if arguments.text and other:
        raise UserError(
            f"{short(' '.join(arguments.text))} is a prompt, and {other} stands beside it; give one of them."
        )
    if not arguments.text and not other:
        raise UserError(
            'What to reply to is missing: `mini-chat-gpt generate "Tell me a story."`; - reads it from standard input.'
        )
    if arguments.text:
        arguments.prompt = " ".join(arguments.text)


def recipe_places() -> list[Path]:
    """Where recipes are found by name: the working directory, the installed package, and the clone of the package."""
    package = Path(__file__).parent
    return [Path("recipes"), package / "recipes", package.parent / "recipes"]


def find_recipe(name: str) -> Path:
    """The folder of a recipe, by path or by name. Raises UserError that lists the recipes."""
    candidates = [Path(name), *(place / name for place in recipe_places())]
    if folder := next((folder for folder in candidates if (folder / RECIPE_CONFIG).is_file()), None):
        return folder
    known = sorted({file.parent.name for place in recipe_places() for file in place.glob(f"*/{RECIPE_CONFIG}")})
    listed = f"the recipes are {', '.join(known)}" if known else "none were found"
    raise UserError(
        f"There is no recipe {name!r}{nearest(name, known)} ({listed}); "
        f"give a name, or a folder with a {RECIPE_CONFIG} and a prompts.yaml."
    )

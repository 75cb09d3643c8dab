"""Reply to a prompt: `python mini_chat_gpt/sft_generate.py --checkpoint PATH --prompt TEXT` (`mini-chat-gpt generate`).
With `--interactive` instead of a prompt: a chat. With `--test`: the capability test.

The reply is streamed to standard output and nothing else goes there; what is worth knowing goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from mini_chat_gpt.chat.token_probs_view import check_page, render_text, write_page
from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import load_checkpoint, require_finite
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.evaluation.capabilities import GREEDY, test_sft_capabilities
from mini_chat_gpt.generation.decode import FinishReason, Model, WeightsOption, for_inference
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import USE_FORMAT_DEFAULT, Reply, System, prompt_ids, stream
from mini_chat_gpt.generation.token_probs import Explanation, explain
from mini_chat_gpt.reports.compare import EvalOptions, add_weights_option, compare
from mini_chat_gpt.reports.compare import add_options as add_test_options
from mini_chat_gpt.reports.compare import options_of as test_options_of
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

__all__ = ["main", "test_sft_capabilities"]

TEST_OPTIONS = ("data", *(field.name for field in fields(EvalOptions) if field.name != "seed"))
HOW_IT_ENDED: dict[FinishReason, str] = {
    "stop": "",
    "length": "; cut off there, --max-new-tokens allows more",
    "context": "; cut off there, the model's context is full",
}


def make_parser() -> argparse.ArgumentParser:
    """The command line's options. Defaults of the sampling settings are those of `Sampling`."""
    parser = argparse.ArgumentParser(
        description="Reply to a prompt. A base model without a chat format goes on from it instead.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="what to reply to; - reads it from standard input")
    what.add_argument("--prompt-file", metavar="FILE", help="the same from a file, for a whole story")
    what.add_argument("--interactive", action="store_true", help="chat, as `mini-chat-gpt chat` does")
    what.add_argument("--test", action="store_true", help="the capability test: held-out tasks of every kind, scored")
    parser.add_argument(
        "--why",
        nargs="?",
        const="",
        metavar="FILE.html",
        help="after the reply its tokens, how likely each was and what else could have come; all of them with --why all, "
        "or on a page of its own",
    )
    add_sampling_options(parser)
    add_test_options(parser.add_argument_group("capability test (--test)"), seed=False)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model talks, where, and what it is told before all else."""
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="checkpoint or run folder, or a model file (default: newest under runs/)"
    )
    parser.add_argument("--system", metavar="TEXT", help='system message, "" for none (default: as in training)')
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    add_weights_option(parser)


def system_of(arguments: argparse.Namespace) -> System:
    """The system message that was given, None for none, or the format's own."""
    return USE_FORMAT_DEFAULT if arguments.system is None else arguments.system or None


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """One option for each setting of `Sampling`."""
    kept = Sampling()
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"longest reply (default: {kept.max_new_tokens})"
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help=f"0 = the likeliest token, always (default: {kept.temperature})"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold this probability"
    )
    group.add_argument(
        "--min-p", type=float, metavar="P", help="leave out tokens less than P times as likely as the likeliest"
    )
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: repeat less (default: 1, none)")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same reply")


def sampling_of(arguments: argparse.Namespace, kept: Sampling = Sampling()) -> Sampling:  # noqa: B008 (frozen)
    """The settings that were given, those of `kept` for the rest."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    return replace(kept, **{name: value for name, value in given.items() if value is not None})


def find_model(path: str | None) -> Path:
    """The model that was named, or the newest under runs/."""
    found = Path(path) if path is not None else newest_checkpoint()
    if found is None:
        raise UserError(
            "There is no model under runs/; `mini-chat-gpt quickstart` makes one, or name yours: --checkpoint PATH."
        )
    return found


def open_model(path: str | None, device: str, weights: WeightsOption) -> tuple[Model, ChatTokenizer]:
    """The model that `find_model` finds, its weights in the form asked for; says on standard error which it is."""
    found = find_model(path)
    model, tokenizer = load_checkpoint(found, device)
    require_finite(model, found)
    kind = (
        "" if tokenizer.chat_format is not None else ", a base model without a chat format: it goes on from the prompt"
    )
    print(f"{found}: {model.n_parameters() / 1e6:.2f} M parameters on {model.device}{kind}", file=sys.stderr)
    return (model if weights == "auto" else for_inference(model, weights=weights)), tokenizer


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt from wherever it comes, without the line break at its end."""
    if arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    file = arguments.prompt_file
    try:
        raw = sys.stdin.buffer.read() if file in (None, "-") else Path(file).read_bytes()
        return raw.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise UserError(f"The prompt file {file} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        where = "Standard input" if file in (None, "-") else f"The prompt file {file}"
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None


def show(pieces: Generator[str, None, Reply]) -> Reply:
    """Write the pieces of a reply as they come; returns the reply."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print()
            reply: Reply = end.value
            return reply


def tell_why(explanation: Explanation, where: str) -> None:
    """In the terminal, or on a page where a file is named."""
    if where not in ("", "all"):
        write_page(explanation, Path(where))
        print(f"Wrote {where}, a page to open in a browser.", file=sys.stderr)
        return
    screen = console()
    colours = screen.color_system is not None and not screen.no_color
    hint = "--why all shows every one, --why FILE.html on a page"
    print("\n" + render_text(explanation, screen.width, colours, every=where == "all", hint=hint))


def run_test(arguments: argparse.Namespace) -> int:
    """The capability test, greedy unless sampling options say otherwise."""
    if arguments.system is not None:
        raise UserError(
            "--system doesn't go with --test; the test takes the system message that the model learned with."
        )
    options, sampling = test_options_of(arguments), sampling_of(arguments, GREEDY)
    models = [find_model(arguments.checkpoint)]
    compare(models, arguments.data, options, console(), sampling, arguments.device, arguments.weights)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    arguments = make_parser().parse_args(argv)
    why: str | None = arguments.why
    if why is not None and (arguments.test or arguments.interactive):
        raise UserError("--why goes with a prompt only; in a chat, type /why.")
    if why not in (None, "", "all"):
        check_page(Path(str(why)))  # before there is a reply, which takes longer
    if arguments.test:
        return run_test(arguments)
    if given := [name for name in TEST_OPTIONS if getattr(arguments, name) is not None]:
        raise UserError(f"--{given[0].replace('_', '-')} goes with --test only; add --test, or leave it out.")
    sampling = sampling_of(arguments)  # mistakes show before the model is loaded
    prompt = "" if arguments.interactive else read_prompt(arguments)
    model, tokenizer = open_model(arguments.checkpoint, arguments.device, arguments.weights)
    system = system_of(arguments)
    if arguments.interactive:
        from mini_chat_gpt.chat.loop import chat  # which itself takes its options from here

        return chat(model, tokenizer, sampling, system)
    started = time.monotonic()
    reply = show(stream(model, tokenizer, prompt, system=system, **asdict(sampling)))
    seconds = max(time.monotonic() - started, 1e-9)
    rate = f"{len(reply.ids)} tokens, {len(reply.ids) / seconds:,.0f} a second"
    print(rate + HOW_IT_ENDED[reply.finish_reason], file=sys.stderr)
    if why is not None:
        read = prompt_ids(tokenizer, prompt, system)
        tell_why(explain(model, tokenizer, read, reply.ids, reply.stop_id, sampling), why)
    return 0


if __name__ == "__main__":
    exit_with(main)

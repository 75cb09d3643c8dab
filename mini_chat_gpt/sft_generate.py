"""Reply to a prompt: `python mini_chat_gpt/sft_generate.py --checkpoint PATH --prompt TEXT` (`mini-chat-gpt generate`).

With `--interactive` instead of a prompt it is a chat, with `--test` the capability test. The reply is streamed to standard
output, which gets nothing else. All other messages go to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from mini_chat_gpt.chat.loop import chat
from mini_chat_gpt.chat.model_options import find_model, open_model, system_of, thinking_of
from mini_chat_gpt.chat.terminal import THOUGHT
from mini_chat_gpt.chat.token_probs_view import check_page, render_text, write_page
from mini_chat_gpt.cli import parse
from mini_chat_gpt.cli_options import sampling_of
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.terminal import console
from mini_chat_gpt.evaluation.capabilities import GREEDY, test_sft_capabilities
from mini_chat_gpt.generation.decode import FinishReason
from mini_chat_gpt.generation.reasoning import Thought
from mini_chat_gpt.generation.text import Reply, prompt_ids, stream
from mini_chat_gpt.generation.token_probs import Explanation, explain
from mini_chat_gpt.reports.compare import compare, options_of

__all__ = ["main", "test_sft_capabilities"]

MAX_PROMPT = 16 * 2**20
"""Bytes of a prompt."""
HOW_IT_ENDED: dict[FinishReason, str] = {
    "stop": "",
    "length": "; cut off, --max-new-tokens allows more",
    "context": "; cut off, the model's context is full",
}


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt from the command line, a file or standard input, without the line break at its end."""
    if arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    file = arguments.prompt_file
    try:
        with nullcontext(sys.stdin.buffer) if file in (None, "-") else open(file, "rb") as source:
            raw = source.read(MAX_PROMPT + 1)  # /dev/zero has no end
        if len(raw) > MAX_PROMPT:
            raise UserError(f"The prompt is longer than {MAX_PROMPT >> 20} MB; a model's context holds far less.")
        return raw.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise UserError(f"The prompt file {file} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        source = "Standard input" if file in (None, "-") else f"The prompt file {file}"
        raise UserError(f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None


def show(pieces: Generator[str, None, Reply]) -> Reply:
    """Print the pieces of a reply when they are generated, its reasoning on standard error, and return the reply."""
    thinks = False
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            print(file=sys.stderr if thinks else sys.stdout)
            reply: Reply = end.value
            return reply
        if isinstance(piece, Thought):
            print(piece if thinks else THOUGHT + piece, end="", file=sys.stderr, flush=True)
        else:
            print("\n" if thinks else "", end="", file=sys.stderr, flush=True)
            print(piece, end="", flush=True)
        thinks = isinstance(piece, Thought)


def show_token_probs(explanation: Explanation, place: str) -> None:
    """Print the explanation ("" or "all"), or write it to the page that `place` names."""
    if place not in ("", "all"):
        write_page(explanation, Path(place))
        print(f"Wrote {place}; open it in a browser.", file=sys.stderr)
        return
    screen = console()
    color = screen.color_system is not None and not screen.no_color
    hint = "--why all shows every token, --why FILE.html writes a page"
    print("\n" + render_text(explanation, screen.width, color, every=place == "all", hint=hint))


def run_test(arguments: argparse.Namespace) -> int:
    """The capability test, greedy unless sampling options say otherwise."""
    options, sampling = options_of(arguments), sampling_of(arguments, GREEDY)
    models = [find_model(arguments.checkpoint)]
    compare(models, arguments.data, options, console(), sampling, arguments.device, arguments.weights)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt generate` with a parsed command line."""
    if arguments.test:
        return run_test(arguments)
    why: str | None = arguments.why
    if why not in (None, "", "all"):
        check_page(Path(str(why)))  # before the reply, which takes longer
    prompt = "" if arguments.interactive else read_prompt(arguments)
    if not arguments.interactive and not prompt.strip():
        raise UserError("The prompt is empty; write what the model is to reply to.")
    model, tokenizer, purpose = open_model(arguments.checkpoint, arguments.device, arguments.weights)
    sampling, system, thinking = arguments.sampling, system_of(arguments), thinking_of(arguments)
    if arguments.interactive:
        return chat(model, tokenizer, sampling, system, thinking, purpose)
    started = time.monotonic()
    reply = show(stream(model, tokenizer, prompt, system=system, thinking=thinking, **asdict(sampling)))
    seconds = max(time.monotonic() - started, 1e-9)
    rate = f"{len(reply.ids)} tokens, {len(reply.ids) / seconds:,.0f} per second"
    print(rate + HOW_IT_ENDED[reply.finish_reason], file=sys.stderr)
    if why is not None:
        ids = prompt_ids(tokenizer, prompt, system, thinking)
        show_token_probs(explain(model, tokenizer, ids, reply.ids, reply.stop_id, sampling), why)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("generate", argv))


if __name__ == "__main__":
    exit_with(main)

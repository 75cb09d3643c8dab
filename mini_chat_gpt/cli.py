"""The console command `mini-chat-gpt VERB …`: finds the verb's module, imports it only then, and runs its `main`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from mini_chat_gpt.common.entry import exit_with, importing
from mini_chat_gpt.common.errors import UserError, nearest

# verb: (module with `main(argv) -> exit code`, what it does)
VERBS = {
    "quickstart": ("quickstart", "the whole way on a small scale: data, tokenizer, base model, fine-tuning, replies"),
    "prepare": ("prepare.prepare", "get, check and report the data"),
    "inspect": ("diagnostics.inspect_data", "show what a fine-tuning run will train on, trained tokens coloured"),
    "pretrain": ("pretrain", "train a base model on plain text"),
    "sft": ("sft_train", "fine-tune a base model to answer"),
    "recipe": ("recipe", "fine-tune as a recipe says (polite_helper), and compare before and after"),
    "chat": ("chat.loop", "chat with a model in the terminal, or over a pipe"),
    "generate": ("sft_generate", "reply to a prompt"),
    "evaluate": ("reports.compare", "score replies to held-out tasks, of one model or of several side by side"),
    "merge": ("checkpoints.merge", "join an adapter (LoRA) and its base to one checkpoint folder"),
    "import": ("checkpoints.convert", "turn a llama2.c or nanoGPT model into a checkpoint folder"),
    "doctor": ("diagnostics.doctor", "check the machine, predict memory and time of a run"),
    "selfcheck": ("diagnostics.selfcheck", "check that batches, processes and caches change nothing, in a minute"),
    "config": ("config_command", "print all settings with their descriptions"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(["usage: mini-chat-gpt VERB [options]   (mini-chat-gpt VERB --help for the options)", "", *lines])


def run(argv: Sequence[str]) -> int:
    """Run one verb; raises UserError for a verb that doesn't exist."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] not in VERBS:
        raise UserError(
            f"{argv[0]!r} is no verb of mini-chat-gpt{nearest(argv[0], VERBS)}; the verbs are {', '.join(VERBS)}."
        )
    with importing():
        module = import_module(f"mini_chat_gpt.{VERBS[argv[0]][0]}")
    sys.argv[0] = f"mini-chat-gpt {argv[0]}"  # the name argparse shows
    return int(module.main(argv[1:]))


def main() -> None:
    """Console entry point."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()

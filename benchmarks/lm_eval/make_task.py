"""Write held-out yes/no questions as local files for EleutherAI's lm-evaluation-harness: `python benchmarks/lm_eval/make_task.py`.

The questions are those of `mini-chat-gpt evaluate` for the same models, data, number and seed, so the accuracies can be
compared. Each line is one question; README.md has the commands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.evaluation.held_out import find_held_out, held_out_tasks
from mini_chat_gpt.tinystories.tasks import Task

KINDS = ("dialogue", "ending")
CHOICES = ("Yes", "No")
FOLDER = Path("runs/lm_eval")
"""The folder of the questions in the task files, relative to the folder in which lm_eval is started."""


def row(task: Task, group: str) -> dict[str, object]:
    """A question in the format of the task files.

    `prompt` is the question with its story. The harness applies the chat template of the checkpoint folder; a base model
    continues the bare prompt. `label` is the index of the right answer in `choices`.
    """
    label = CHOICES.index(str(task.answer).capitalize())
    return {"kind": task.kind, "group": group, "prompt": task.prompt, "choices": CHOICES, "label": label}


def write_questions(tasks: Mapping[str, Iterable[Task]], folder: Path) -> dict[str, int]:
    """Write KIND.jsonl for each kind of KINDS and return the number of questions by kind. Raises UserError if a kind has none."""
    rows = [row(task, group) for group, group_tasks in tasks.items() for task in group_tasks]
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for kind in KINDS:
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows if one["kind"] == kind]
        if not lines:
            raise UserError(f"The data has no question of the kind {kind}; choose other data with --data.")
        atomic_write_text(folder / f"{kind}.jsonl", "".join(lines))
        counts[kind] = len(lines)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write held-out yes/no questions for lm-evaluation-harness.")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="checkpoint or run folder")
    parser.add_argument("--against", nargs="+", default=[], metavar="PATH", help="other models to compare")
    parser.add_argument("--data", metavar="PATH", help="folder or file of Instruct records (default: the run's own)")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="questions of each kind and group (100)")
    parser.add_argument("--seed", type=int, default=1337, metavar="N", help="seed of the choice of questions (1337)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help=f"output folder ({FOLDER})")
    arguments = parser.parse_args(argv)
    paths = [Path(arguments.checkpoint), *map(Path, arguments.against)]
    models = [load_checkpoint(path, "cpu") for path in paths]
    file, reason = find_held_out(arguments.data, paths)
    print(f"Held-out tasks: {file}\n({reason})")
    counts = write_questions(held_out_tasks(file, models, arguments.n, arguments.seed, KINDS), arguments.out)
    print(f"{arguments.out}: " + ", ".join(f"{n} questions in {kind}.jsonl" for kind, n in counts.items()))
    for path, (_, tokenizer) in zip(paths, models, strict=True):
        if tokenizer.chat_format and tokenizer.chat_format.default_system:
            # The template does not add the system message that the model was trained with.
            print(f"{path}: give lm_eval --system_instruction {tokenizer.chat_format.default_system!r}")
    return 0


if __name__ == "__main__":
    exit_with(main)

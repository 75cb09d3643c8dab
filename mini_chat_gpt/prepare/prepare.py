"""Get the data, check them, and report on them: `python prepare_sft_data.py` or `mini-chat-gpt prepare`.

If the folder has data already, they are checked and reported, and nothing is replaced. An empty folder is filled with the
public files, the user's own records, labeled plain stories, or the sample, which needs no network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_named_tokenizer
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import remove_leftovers
from mini_chat_gpt.common.hub_errors import NoConnection
from mini_chat_gpt.common.terminal import print_line
from mini_chat_gpt.common.writable import require_space
from mini_chat_gpt.prepare.data_folder import (
    SOURCE_DESCRIPTIONS,
    command_for,
    drafts,
    is_untouched_sample,
    present_files,
    read_source,
    write_source,
)
from mini_chat_gpt.prepare.data_report import report_folder, show_report
from mini_chat_gpt.prepare.own_files import import_files
from mini_chat_gpt.prepare.public_files import download_files, to_download, unfinished
from mini_chat_gpt.prepare.sample_stories import write_sample

SAMPLE_SIZE = 22_000_000  # bytes


def get_data(options: argparse.Namespace, out: Console) -> None:
    """Make sure that the folder has data, as the options say. Raises UserError; existing files are unchanged then."""
    folder = Path(options.folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; choose another --folder.")
    remove_leftovers(folder)
    present = present_files(folder)
    replacing = bool(present) and options.replace_sample
    if replacing and not is_untouched_sample(folder):
        raise UserError(f"{folder} doesn't have the unchanged sample, so it is not replaced; choose another --folder.")
    if options.sample:
        if not present or read_source(folder)["source"] != "sample":
            write_sample_folder(folder, out)
    elif paths := options.source or options.label:
        if not replacing:
            _refuse_to_replace(folder)
        import_files(folder, paths, options.valid_fraction, out, bool(options.label), replacing)
    elif missing := to_download(folder, options.split, replacing):
        try:
            download_files(folder, missing, options.url, replacing, out)
        except NoConnection as error:
            _without_network(folder, missing, error, out)


def write_sample_folder(folder: Path, out: Console) -> None:
    """Write the sample into a folder that has no data yet. Raises UserError if it has."""
    _refuse_to_replace(folder)
    require_space(folder, SAMPLE_SIZE)
    with drafts(folder) as draft:
        names = [path.name for path in write_sample(draft)]
        write_source(draft, "sample", {name: {} for name in names}, options={"seed": 0})
    print_line(out, f"Written to {folder}: {', '.join(names)} ({SOURCE_DESCRIPTIONS['sample']})")


def _refuse_to_replace(folder: Path) -> None:
    if present := present_files(folder):
        names = " and ".join(file.name for file in present.values())
        raise UserError(
            f"{folder} already has {names} ({SOURCE_DESCRIPTIONS[read_source(folder)['source']]}), which are not replaced; "
            "choose another folder with --folder, or move them away."
        )


def _without_network(folder: Path, splits: list[str], error: NoConnection, out: Console) -> None:
    """Write the sample instead, if the folder has no data yet."""
    left = unfinished(folder)
    if left or present_files(folder):
        paths = [str(path) for split in left.values() for path in split]
        kept = f" The part downloaded so far is kept in {' and '.join(paths)}." if paths else ""
        raise UserError(f"{error}{kept}") from error
    print_line(out, f"{error}\nWriting the sample instead of the public data.")
    write_sample_folder(folder, out)
    split = f" --split {splits[0]}" if len(splits) == 1 else ""
    command = f"{command_for(folder)}{split} --replace-sample"
    print_line(out, f"When there is a network, replace it by the public data with:\n  {command}")


def run(options: argparse.Namespace) -> int:
    """`mini-chat-gpt prepare` with a parsed command line."""
    tokenizer = load_named_tokenizer(options.tokenizer) if options.tokenizer else None
    out = Console(highlight=False, stderr=options.json)
    get_data(options, out)
    report = report_folder(options.folder, tokenizer, options.seq_len, options.full, out)
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        show_report(report, out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("prepare", argv))

"""Get the data, check them, and report on them: `python prepare_sft_data.py` or `mini-chat-gpt prepare`.

If the folder has data already, they are checked and reported, and nothing is replaced. An empty folder is filled with the
public files, the user's own records, labeled plain stories, or the sample, which needs no network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_chat_gpt.checkpoints.load import load_named_tokenizer
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import remove_leftovers
from mini_chat_gpt.common.hub_errors import NoConnection
from mini_chat_gpt.common.signals import StoppedBySignal
from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.prepare.data_folder import (
    SOURCE_DESCRIPTIONS,
    SPLITS,
    drafts,
    is_untouched_sample,
    make_folder,
    present_files,
    read_source,
    remove_sample,
    require_space,
    write_source,
)
from mini_chat_gpt.prepare.data_report import report_folder, show_report
from mini_chat_gpt.prepare.own_files import import_files
from mini_chat_gpt.prepare.public_files import PublicFile, public_file, unfinished
from mini_chat_gpt.prepare.sample_stories import write_sample

SAMPLE_SIZE = 22_000_000  # bytes
COMMAND = "python prepare_sft_data.py"


def prepare(
    folder: Path | str,
    *,
    split: str | None = None,
    url: str | None = None,
    sample: bool = False,
    source: Sequence[Path | str] = (),
    label: Sequence[Path | str] = (),
    valid_fraction: float = 0.02,
    replace_sample: bool = False,
    out: Console | None = None,
) -> None:
    """Make sure that `folder` has data.

    split            "train", "valid" or "both" of the public files; None: both for an empty folder, otherwise what an
                     earlier download left unfinished
    url              a web folder that has the public files; None: the Hugging Face hub
    sample           write the sample
    source, label    one or two files of the user: records to copy, or plain stories to label
    valid_fraction   fraction of the stories for validation, if a single file is given
    replace_sample   replace an unchanged sample; nothing else is ever replaced

    Raises UserError; existing files are unchanged then.
    """
    folder, out = Path(folder), out or Console(highlight=False)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; choose another --folder.")
    remove_leftovers(folder)
    present = present_files(folder)
    replacing = bool(present) and replace_sample
    if replacing and not is_untouched_sample(folder):
        raise UserError(f"{folder} doesn't have the unchanged sample, so it is not replaced; choose another --folder.")
    if sample:
        if not present or read_source(folder)["source"] != "sample":
            write_sample_folder(folder, out)
    elif source or label:
        if not replacing:
            _refuse_to_replace(folder)
        paths = [Path(path) for path in source or label]
        import_files(folder, paths, valid_fraction, out, bool(label), _remover(folder, replacing))
    elif missing := _to_download(folder, split, replacing):
        try:
            _download(folder, missing, url, replacing, out)
        except NoConnection as error:
            _without_network(folder, missing, error, out)


def write_sample_folder(folder: Path, out: Console) -> None:
    """Write the sample into a folder that has no data yet. Raises UserError if it has."""
    folder = Path(folder)
    _refuse_to_replace(folder)
    require_space(folder, SAMPLE_SIZE)
    with drafts(folder) as draft:
        names = [path.name for path in write_sample(draft)]
        write_source(draft, "sample", {name: {} for name in names}, options={"seed": 0})
    out.print(f"Written: {SOURCE_DESCRIPTIONS['sample']}, {', '.join(names)} in {folder}", markup=False, soft_wrap=True)


def _refuse_to_replace(folder: Path) -> None:
    if present := present_files(folder):
        names = " and ".join(file.name for file in present.values())
        raise UserError(
            f"{folder} already has {names} ({SOURCE_DESCRIPTIONS[read_source(folder)['source']]}), which are not replaced; "
            "choose another folder with --folder, or move them away."
        )


# The public files


def _to_download(folder: Path, split: str | None, replacing: bool) -> list[str]:
    """The splits to download, the small one first."""
    present = {} if replacing else present_files(folder)
    source = read_source(folder) if present else {}
    if split is None and present:
        wanted = {*source.get("options", {}).get("splits", ())} if source["source"] == "public" else set()
        requested = [name for name in SPLITS if name in wanted or name in unfinished(folder)]
    else:
        requested = list(SPLITS) if split in (None, "both") else [str(split)]
    missing = [name for name in requested if name not in present]
    if missing and present and source["source"] not in ("public", "unknown"):
        raise UserError(
            f"{folder} has {SOURCE_DESCRIPTIONS[source['source']]}, which can't be mixed with the public files; choose another "
            "folder with --folder" + (", or add --replace-sample." if source["source"] == "sample" else ".")
        )
    return sorted(missing, reverse=True)


def _download(folder: Path, splits: list[str], url: str | None, replacing: bool, out: Console) -> None:
    """Show the sizes, then download the missing splits."""
    files = {split: public_file(split, url) for split in splits}
    present = {split: _size(file.partial(folder)) for split, file in files.items()}
    free = require_space(folder, sum((file.size or 0) - present[split] for split, file in files.items()))
    for split, file in files.items():
        partial = f", {format_size(present[split])} of it downloaded already" if present[split] else ""
        out.print(f"{split}: {format_size(file.size)} from {file.shown}{partial}", markup=False, soft_wrap=True)
    out.print(f"to {folder}, with {format_size(free)} free", markup=False, soft_wrap=True)
    _remover(folder, replacing)()
    make_folder(folder)
    entries = read_source(folder).get("files", {}) if present_files(folder) else {}
    for file in files.values():
        target = _fetch(file, folder, out)
        out.print(f"{target.name}: complete, {format_size(target.stat().st_size)}", markup=False)
        entries[target.name] = file.source()
        write_source(folder, "public", entries, options={"splits": sorted({*splits, *present_files(folder)})})


def _fetch(file: PublicFile, folder: Path, out: Console) -> Path:
    try:
        return file.fetch(folder, out)
    except (KeyboardInterrupt, StoppedBySignal):
        partial = file.partial(folder)
        kept = f"{format_size(_size(partial))} are kept in {partial}"
        out.print(f"Stopped. {kept}; the same command resumes the download.", markup=False, soft_wrap=True)
        raise


def _without_network(folder: Path, splits: list[str], error: NoConnection, out: Console) -> None:
    """Write the sample instead, if the folder has no data yet."""
    left = unfinished(folder)
    if left or present_files(folder):
        paths = [str(path) for split in left.values() for path in split]
        kept = f" The part downloaded so far is kept in {' and '.join(paths)}." if paths else ""
        raise UserError(f"{error}{kept}") from error
    out.print(f"{error}\nWriting the sample instead of the public data.", markup=False, soft_wrap=True)
    write_sample_folder(folder, out)
    split = f" --split {splits[0]}" if len(splits) == 1 else ""
    out.print(
        f"When there is a network, replace it by the public data with:\n  {COMMAND}{_folder_option(folder)}{split} --replace-sample",
        markup=False,
        soft_wrap=True,
    )


def _size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _remover(folder: Path, replacing: bool) -> Callable[[], None]:
    """A function to call just before new data are written."""
    return (lambda: remove_sample(folder)) if replacing else (lambda: None)


# Notes


def notes(report: dict[str, Any]) -> list[str]:
    """Sentences about the folder as a whole, with the commands to fix what is missing."""
    folder = Path(report["folder"])
    kind, command = report["source"]["source"], f"{COMMAND}{_folder_option(folder)}"
    lines = []
    for split in SPLITS:
        if split not in report["files"]:
            lines.append(
                f"There is no {split} file, and fine-tuning needs both: `{command} --split {split}` downloads the public one; "
                f"`{COMMAND} --source FILE --folder NEW` splits a file of your own into both."
            )
    if kind == "sample":
        lines.append(f"This is the sample; `{command} --replace-sample` replaces it by the public data (2.7 GB).")
    if kind == "derived":
        lines.append(
            "Labeled plain stories have no summaries and unknown endings, so there are no tasks of these kinds."
        )
    if not any(count for file in report["files"].values() for count in file["fields"].values()):
        lines.append(
            f"These are plain stories: `{COMMAND} --label FILE --folder NEW` makes records with words and sentences from them."
        )
    for path in sorted(folder.glob(".draft*")):  # not removed at the start, so it may be in use
        lines.append(f"{path} is left over from a killed process; delete it if no process is writing to it.")
    for path in (path for paths in unfinished(folder).values() for path in paths):
        lines.append(f"{path} is an unfinished download ({format_size(_size(path))}).")
    return lines


def _folder_option(folder: Path) -> str:
    return "" if folder == Path("TinyStories") else f" --folder {folder}"


# Command line


def run(options: argparse.Namespace) -> int:
    """`mini-chat-gpt prepare` with a parsed command line."""
    tokenizer = load_named_tokenizer(options.tokenizer) if options.tokenizer else None
    out = Console(highlight=False, stderr=options.json)
    prepare(
        options.folder,
        split=options.split,
        url=options.url,
        sample=options.sample,
        source=options.source or (),
        label=options.label or (),
        valid_fraction=options.valid_fraction,
        replace_sample=options.replace_sample,
        out=out,
    )
    report = report_folder(options.folder, tokenizer, options.seq_len, options.full, out)
    report["notes"] = notes(report)
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        show_report(report, out)
        for line in report["notes"]:
            out.print(f"- {line}", markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("prepare", argv))


if __name__ == "__main__":
    exit_with(main)

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

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import remove_leftovers
from mini_chat_gpt.common.signals import StoppedBySignal
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
    size_text,
    standard_name,
    write_source,
)
from mini_chat_gpt.prepare.data_report import report_folder, show_report
from mini_chat_gpt.prepare.download import (
    RETRY_POLICY,
    DownloadProgress,
    NoConnection,
    RetryPolicy,
    fetch,
    fetch_metadata,
    part_path,
    remove_finished_metadata,
    usable_part,
)
from mini_chat_gpt.prepare.own_files import import_files
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.tinystories.records import FILE_NAMES
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

PUBLIC_URL = "https://huggingface.co/datasets/roneneldan/TinyStoriesInstruct/resolve/main"
SAMPLE_SIZE = 22_000_000  # bytes
COMMAND = "python prepare_sft_data.py"


def prepare(
    folder: Path | str,
    *,
    split: str | None = None,
    url: str = PUBLIC_URL,
    sample: bool = False,
    source: Sequence[Path | str] = (),
    label: Sequence[Path | str] = (),
    valid_fraction: float = 0.02,
    replace_sample: bool = False,
    policy: RetryPolicy = RETRY_POLICY,
    out: Console | None = None,
) -> None:
    """Make sure that `folder` has data.

    split            "train", "valid" or "both" of the public files; None: both for an empty folder, otherwise what an
                     earlier download left unfinished
    url              the web folder that has the public files
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
    remove_finished_metadata(folder)
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
            _download(folder, missing, url, policy, replacing, out)
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
        unfinished = set(source.get("options", {}).get("splits", ())) if source["source"] == "public" else set()
        requested = [name for name in SPLITS if name in unfinished or part_path(folder / standard_name(name)).exists()]
    else:
        requested = list(SPLITS) if split in (None, "both") else [str(split)]
    missing = [name for name in requested if name not in present]
    if missing and present and source["source"] not in ("public", "unknown"):
        raise UserError(
            f"{folder} has {SOURCE_DESCRIPTIONS[source['source']]}, which can't be mixed with the public files; choose another "
            "folder with --folder" + (", or add --replace-sample." if source["source"] == "sample" else ".")
        )
    return sorted(missing, reverse=True)


def _download(folder: Path, splits: list[str], url: str, policy: RetryPolicy, replacing: bool, out: Console) -> None:
    """Show the sizes, then download the missing splits."""
    remotes = {
        split: fetch_metadata(f"{url.rstrip('/')}/{FILE_NAMES[1].format(split=split)}", policy) for split in splits
    }
    n_present = {split: usable_part(folder / standard_name(split), remote) for split, remote in remotes.items()}
    free = require_space(folder, sum((remote.size or 0) - n_present[split] for split, remote in remotes.items()))
    for split, remote in remotes.items():
        partial = f", {size_text(n_present[split])} of it downloaded already" if n_present[split] else ""
        out.print(f"{split}: {size_text(remote.size)} from {remote.url}{partial}", markup=False, soft_wrap=True)
    out.print(f"to {folder}, with {size_text(free)} free", markup=False, soft_wrap=True)
    _remover(folder, replacing)()
    make_folder(folder)
    entries = read_source(folder).get("files", {}) if present_files(folder) else {}
    for split, remote in remotes.items():
        target = folder / standard_name(split)
        try:
            with DownloadProgress(out, target.name, remote.size, n_present[split]) as progress:
                fetch(remote, target, policy, progress)
        except (KeyboardInterrupt, StoppedBySignal):
            part = part_path(target)
            size = size_text(part.stat().st_size if part.exists() else 0)
            out.print(
                f"Stopped. {size} are kept in {part}; the same command resumes the download.",
                markup=False,
                soft_wrap=True,
            )
            raise
        out.print(f"{target.name}: complete, {size_text(target.stat().st_size)}", markup=False)
        entries[target.name] = {"url": remote.url, "etag": remote.version} | (
            {"sha256": remote.sha256} if remote.sha256 else {}
        )
        write_source(folder, "public", entries, options={"splits": sorted({*splits, *present_files(folder)})})


def _without_network(folder: Path, splits: list[str], error: NoConnection, out: Console) -> None:
    """Write the sample instead, if the folder has no data yet."""
    parts = [part for split in SPLITS if (part := part_path(folder / standard_name(split))).exists()]
    if parts or present_files(folder):
        kept = f" The part downloaded so far is kept in {' and '.join(map(str, parts))}." if parts else ""
        raise UserError(f"{error}{kept}") from error
    out.print(f"{error}\nWriting the sample instead of the public data.", markup=False, soft_wrap=True)
    write_sample_folder(folder, out)
    split = f" --split {splits[0]}" if len(splits) == 1 else ""
    out.print(
        f"When there is a network, replace it by the public data with:\n  {COMMAND}{_folder_option(folder)}{split} --replace-sample",
        markup=False,
        soft_wrap=True,
    )


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
    for path in sorted(folder.glob("*.part")):
        lines.append(f"{path} is an unfinished download ({size_text(path.stat().st_size)}).")
    return lines


def _folder_option(folder: Path) -> str:
    return "" if folder == Path("TinyStories") else f" --folder {folder}"


# Command line


def run(options: argparse.Namespace, policy: RetryPolicy = RETRY_POLICY) -> int:
    """`mini-chat-gpt prepare` with a parsed command line."""
    tokenizer = ChatTokenizer.load(options.tokenizer) if options.tokenizer else None
    out = Console(highlight=False, stderr=options.json)
    prepare(
        options.folder,
        split=options.split,
        url=options.url or PUBLIC_URL,
        sample=options.sample,
        source=options.source or (),
        label=options.label or (),
        valid_fraction=options.valid_fraction,
        replace_sample=options.replace_sample,
        policy=policy,
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


def main(argv: Sequence[str] | None = None, policy: RetryPolicy = RETRY_POLICY) -> int:
    """Command line."""
    return run(parse("prepare", argv), policy)


if __name__ == "__main__":
    exit_with(main)

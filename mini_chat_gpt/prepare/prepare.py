"""Gets the data, checks them, and reports what is in them. `python prepare_sft_data.py`, `mini-chat-gpt prepare`.

Where the folder holds data already they are checked and reported, and nothing is replaced. An empty one is filled with the
public files, or with the user's own, or with records derived from plain stories, or with the sample that needs no network.
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
from mini_chat_gpt.prepare.data_folder import (
    DRAFT,
    SOURCE_WORDS,
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
    PATIENCE,
    DownloadProgress,
    NoConnection,
    Patience,
    fetch,
    look,
    part_path,
    usable_part,
)
from mini_chat_gpt.prepare.own_files import take_files
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
    derive: Sequence[Path | str] = (),
    valid_fraction: float = 0.02,
    replace_sample: bool = False,
    patience: Patience = PATIENCE,
    out: Console | None = None,
) -> None:
    """See to it that `folder` holds data.

    split            "train", "valid" or "both" of the public files; None: both where there is nothing yet, else what an
                     earlier download left unfinished
    url              the folder on the web that holds them
    sample           write the sample
    source, derive   one or two files of the user's: records to take over, or plain stories to make records of
    valid_fraction   share of the stories that goes into the validation part, where one file is given
    replace_sample   an unchanged sample may give way to other data; nothing else ever does

    Raises UserError, having changed nothing that was there.
    """
    folder, out = Path(folder), out or Console(highlight=False)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, where the folder for the data is wanted; name another by --folder.")
    present = present_files(folder)
    replacing = bool(present) and replace_sample
    if replacing and not is_untouched_sample(folder):
        raise UserError(
            f"{folder} doesn't hold the sample as it was written, so it is not replaced; name another --folder."
        )
    if sample:
        if not present or read_source(folder)["source"] != "sample":
            write_sample_folder(folder, out)
    elif source or derive:
        if not replacing:
            _refuse_to_replace(folder)
        paths = [Path(path) for path in source or derive]
        take_files(folder, paths, valid_fraction, out, bool(derive), _remover(folder, replacing))
    elif wanted := _to_download(folder, split, replacing):
        try:
            _download(folder, wanted, url, patience, replacing, out)
        except NoConnection as error:
            _without_network(folder, wanted, error, out)


def write_sample_folder(folder: Path, out: Console) -> None:
    """Write the sample into a folder that holds no data yet. Raises UserError if it does."""
    folder = Path(folder)
    _refuse_to_replace(folder)
    require_space(folder, SAMPLE_SIZE)
    with drafts(folder) as draft:
        names = [path.name for path in write_sample(draft)]
        write_source(draft, "sample", {name: {} for name in names}, options={"seed": 0})
    out.print(f"Written: {SOURCE_WORDS['sample']}, {', '.join(names)} in {folder}", markup=False, soft_wrap=True)


def _refuse_to_replace(folder: Path) -> None:
    if there := present_files(folder):
        names = " and ".join(file.name for file in there.values())
        raise UserError(
            f"{folder} holds {names} already ({SOURCE_WORDS[read_source(folder)['source']]}), and nothing is replaced; "
            "name another folder by --folder, or move them away."
        )


# The public files


def _to_download(folder: Path, split: str | None, replacing: bool) -> list[str]:
    """Which splits to fetch, the small one first."""
    present = {} if replacing else present_files(folder)
    source = read_source(folder) if present else {}
    if split is None and present:
        unfinished = set(source.get("options", {}).get("splits", ())) if source["source"] == "public" else set()
        asked = [name for name in SPLITS if name in unfinished or part_path(folder / standard_name(name)).exists()]
    else:
        asked = list(SPLITS) if split in (None, "both") else [str(split)]
    missing = [name for name in asked if name not in present]
    if missing and present and source["source"] not in ("public", "unknown"):
        raise UserError(
            f"{folder} holds {SOURCE_WORDS[source['source']]}, and the public files don't go beside that; name another folder "
            "by --folder" + (", or add --replace-sample." if source["source"] == "sample" else ".")
        )
    return sorted(missing, reverse=True)


def _download(folder: Path, splits: list[str], url: str, patience: Patience, replacing: bool, out: Console) -> None:
    """Fetch the splits that are missing, having shown what that takes."""
    remotes = {split: look(f"{url.rstrip('/')}/{FILE_NAMES[1].format(split=split)}", patience) for split in splits}
    here = {split: usable_part(folder / standard_name(split), remote) for split, remote in remotes.items()}
    free = require_space(folder, sum((remote.size or 0) - here[split] for split, remote in remotes.items()))
    for split, remote in remotes.items():
        begun = f", {size_text(here[split])} of it here already" if here[split] else ""
        out.print(f"{split}: {size_text(remote.size)} from {remote.url}{begun}", markup=False, soft_wrap=True)
    out.print(f"to {folder}, where {size_text(free)} are free", markup=False, soft_wrap=True)
    _remover(folder, replacing)()
    make_folder(folder)
    known = read_source(folder).get("files", {}) if present_files(folder) else {}
    for split, remote in remotes.items():
        target = folder / standard_name(split)
        try:
            with DownloadProgress(out, target.name, remote.size, here[split]) as progress:
                fetch(remote, target, patience, progress)
        except KeyboardInterrupt:
            part = part_path(target)
            size = size_text(part.stat().st_size if part.exists() else 0)
            out.print(
                f"Stopped. {size} are kept in {part}; the same command goes on from there.",
                markup=False,
                soft_wrap=True,
            )
            raise
        out.print(f"{target.name}: complete, {size_text(target.stat().st_size)}", markup=False)
        known[target.name] = {"url": remote.url, "etag": remote.mark} | (
            {"sha256": remote.sha256} if remote.sha256 else {}
        )
        write_source(folder, "public", known, options={"splits": sorted({*splits, *present_files(folder)})})


def _without_network(folder: Path, splits: list[str], error: NoConnection, out: Console) -> None:
    """The sample instead, where that puts nothing of the user's at risk."""
    parts = [part for split in SPLITS if (part := part_path(folder / standard_name(split))).exists()]
    if parts or present_files(folder):
        kept = f" What has come so far is kept in {' and '.join(map(str, parts))}." if parts else ""
        raise UserError(f"{error}{kept}") from error
    out.print(f"{error}\nInstead of the public data you get the sample.", markup=False, soft_wrap=True)
    write_sample_folder(folder, out)
    split = f" --split {splits[0]}" if len(splits) == 1 else ""
    out.print(
        f"Once there is a network, this puts the public data in its place:\n  {COMMAND}{_folder_option(folder)}{split} --replace-sample",
        markup=False,
        soft_wrap=True,
    )


def _remover(folder: Path, replacing: bool) -> Callable[[], None]:
    """What makes room just before new data are written."""
    return (lambda: remove_sample(folder)) if replacing else (lambda: None)


# What to say


def notes(report: dict[str, Any]) -> list[str]:
    """What to know or do about the folder as a whole."""
    folder = Path(report["folder"])
    kind, command = report["source"]["source"], f"{COMMAND}{_folder_option(folder)}"
    said = []
    for split in SPLITS:
        if split not in report["files"]:
            said.append(
                f"There is no {split} file, and fine-tuning needs both: `{command} --split {split}` downloads the public one; "
                f"`{COMMAND} --source FILE --folder NEW` divides a file of your own into both."
            )
    if kind == "sample":
        said.append(
            f"This is the sample; `{command} --replace-sample` downloads the public data (2.7 GB) in its place."
        )
    if kind == "derived":
        said.append("Derived records have no summaries and leave open how a story ends: no tasks of these kinds.")
    if not any(count for facts in report["files"].values() for count in facts["fields"].values()):
        said.append(
            f"These are plain stories: `{COMMAND} --derive FILE --folder NEW` makes records with words and sentences of them."
        )
    for path in sorted(folder.glob(f"{DRAFT}*")):
        said.append(f"{path} is left over from a run that was killed; if none is running, delete it.")
    for path in sorted(folder.glob("*.part")):
        said.append(f"{path} is an unfinished download ({size_text(path.stat().st_size)}).")
    return said


def _folder_option(folder: Path) -> str:
    return "" if folder == Path("TinyStories") else f" --folder {folder}"


# Command line


def run(options: argparse.Namespace, patience: Patience = PATIENCE) -> int:
    """`mini-chat-gpt prepare` with a parsed command line."""
    tokenizer = ChatTokenizer.load(options.tokenizer) if options.tokenizer else None
    out = Console(highlight=False, stderr=options.json)
    prepare(
        options.folder,
        split=options.split,
        url=options.url or PUBLIC_URL,
        sample=options.sample,
        source=options.source or (),
        derive=options.derive or (),
        valid_fraction=options.valid_fraction,
        replace_sample=options.replace_sample,
        patience=patience,
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


def main(argv: Sequence[str] | None = None, patience: Patience = PATIENCE) -> int:
    """Command line."""
    return run(parse("prepare", argv), patience)


if __name__ == "__main__":
    exit_with(main)

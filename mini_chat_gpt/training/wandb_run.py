"""One run at wandb.ai: online where there is an account and a network, else kept offline in the run folder, or not at all.

It never asks a question, prints nothing of its own, and whatever goes wrong inside it, training goes on.

A run that is continued keeps its id. Each of its parts lies in a folder of its own under RUN/wandb (`wandb sync` sends the
offline ones, joined), and every row of metrics.jsonl is in one part, once. That takes some care: what a killed process
logged last is lost to wandb, which writes late, while what it logged after its last checkpoint is computed again. So
the next part first catches up with what the earlier ones lack, and leaves out what they have.
"""

from __future__ import annotations

import glob
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console

from mini_chat_gpt.config import WandbSection

WandbMode = Literal["online", "offline", "disabled"]
Rows = Mapping[int, set[str]]  # step -> names of the metrics logged at it


class WandbRun:
    """A part of a run that is under way. Neither `log` nor `finish` ever raises."""

    def __init__(self, run: Any, console: Console, known: Rows | None = None) -> None:
        self._run, self._console, self._known = run, console, known or {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log those of the metrics that no earlier part holds."""
        known = self._known.get(step, set())
        new = {name: value for name, value in metrics.items() if name not in known or name == "_timestamp"}
        if set(new) - {"_timestamp"}:
            self._guarded(lambda: self._run.log(new, step=step))

    def catch_up(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Log what the earlier parts should have held, from lines of metrics.jsonl."""
        for row in rows:
            metrics = {name: value for name, value in row.items() if name not in ("step", "time")}
            self.log(int(row["step"]), metrics | {"_timestamp": row["time"]} if "time" in row else metrics)

    def finish(self, failed: bool) -> None:
        """End this part; the run may be continued all the same."""
        self._guarded(lambda: self._run.finish(exit_code=1 if failed else 0))

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # wandb's own process was killed, its folder deleted, …: no reason to stop training
            self._run = None
            self._console.print(
                f"wandb stopped working ({type(error).__name__}); going on with metrics.jsonl alone.", markup=False
            )


def start_wandb(
    section: WandbSection,
    folder: Path,
    settings: dict[str, Any],
    console: Console,
    run_id: str | None = None,
    rows: Iterable[Mapping[str, float]] = (),
) -> WandbRun | None:
    """Start or continue a run; None where wandb is switched off or can't be had, which is said.

    `rows` are the lines of metrics.jsonl up to the checkpoint from which the run goes on.
    """
    mode = wandb_mode(section)
    if mode == "disabled":
        return None
    try:
        known = logged_rows(folder, run_id) if run_id else {}
        run = _init(mode, section, folder, settings, run_id)
        part = WandbRun(run, console, known)
        if run_id:
            first = int(getattr(run, "starting_step", 0) or 0)  # online: the first step that the server has no row for
            part.catch_up(row for row in rows if row["step"] >= first)
        return part
    except Exception as error:  # monitoring must not end a training run, whatever goes wrong inside it
        console.print(f"wandb: {mode} did not work ({type(error).__name__}); keeping metrics.jsonl only.", markup=False)
        return None


def _init(mode: WandbMode, section: WandbSection, folder: Path, settings: dict[str, Any], run_id: str | None) -> Any:
    """wandb's own run object; it is imported here, because that takes a second."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    options: dict[str, Any] = {
        "project": section.project,
        "name": section.name or folder.name,
        "dir": str(folder),
        "config": settings,
        "allow_val_change": True,  # a run may be continued with other settings
        "settings": wandb.Settings(init_timeout=20, silent=True, console="off"),
    }
    if run_id:
        options |= {"id": run_id, "resume": "allow"}
    return wandb.init(mode=mode, **options)


def logged_rows(folder: Path, run_id: str) -> Rows:
    """What the parts of this run under `folder` hold, as far as they were written."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    read_record = cast(Any, wandb_internal_pb2).Record.FromString
    rows: dict[int, set[str]] = defaultdict(set)
    for file in folder.glob(f"wandb/*run-*/run-{glob.escape(run_id)}.wandb"):
        for data in log_records(file.read_bytes()):
            try:
                record = read_record(data)
            except DecodeError:  # damaged; wandb won't read further either
                break
            if record.WhichOneof("record_type") == "history":
                rows[record.history.step.num] |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    return dict(rows)


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file, as far as they are whole; after a kill the last may be cut off.

    The format is that of LevelDB's log: after 7 bytes of header, blocks of 32 KiB that hold pieces, each with its
    checksum (4 bytes), length (2), type (1: a whole record; 2, 3, 4: its first, middle, last piece) and content.
    """
    block, header = 32768, 7
    position, pending = header, b""
    while position + header <= len(data):
        if block - position % block < header:  # too little is left of the block for a piece
            position += block - position % block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + header : position + header + length]
        if kind not in (1, 2, 3, 4) or len(piece) < length:
            return
        pending = piece if kind in (1, 2) else pending + piece
        if kind in (1, 4):
            yield pending
        position += header + length


def wandb_mode(section: WandbSection) -> WandbMode:
    """ "online" only where an account and the network are there; WANDB_MODE of the environment wins."""
    if not section.enabled:
        return "disabled"
    if section.mode != "auto":
        return section.mode
    asked = os.environ.get("WANDB_MODE")
    if asked in ("online", "offline", "disabled"):
        return cast(WandbMode, asked)
    return (
        "online" if has_wandb_account() and can_reach(os.environ.get("WANDB_BASE_URL", "api.wandb.ai")) else "offline"
    )


def has_wandb_account() -> bool:
    """Whether an API key is set up, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


def can_reach(address: str, seconds: float = 3.0) -> bool:
    """Whether somebody listens at a host, named as "api.wandb.ai" or "http://127.0.0.1:8080"."""
    host = address.split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False

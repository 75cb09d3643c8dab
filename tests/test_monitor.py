"""What is recorded is the same everywhere, and monitoring never stands in the way."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.monitor import Monitor, StepProgress, clock, wandb_mode

METRICS = [
    {"sft/train_loss": 2.5, "sft/lr": 1e-5, "sft/tokens_per_second": 1234.5},
    {"sft/train_loss": 2.25, "sft/val_loss": 3.5},
]


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format, in which wandb keeps runs: 32 KiB blocks of (crc, length, type, payload) pieces."""
    assert data[:4] == b":W&B"
    position, pending = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the rest of a block is too small for a header and stays empty
            position += 32768 - position % 32768
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, position)
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield pending
            pending = b""


def read_offline_run(folder: Path) -> list[dict[str, float]]:
    """The history rows of the only offline wandb run under `folder`."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
            rows[-1]["_step"] = record.history.step.num
    return rows


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_an_offline_wandb_run_holds_the_values_of_metrics_jsonl(tmp_path, no_account):
    with Monitor(tmp_path, WandbSection(), {"training": {"batch_size": 4}}, Console(quiet=True)) as monitor:
        for step, metrics in enumerate(METRICS, 1):
            monitor.log(step, metrics)
    rows, deadline = read_offline_run(tmp_path), time.monotonic() + 30
    while len(rows) < len(METRICS) and time.monotonic() < deadline:  # wandb's own process may still be writing the file
        time.sleep(0.1)
        rows = read_offline_run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 2, (rows, lines)
    for row, line, metrics in zip(rows, lines, METRICS, strict=True):
        assert {name: row[name] for name in metrics} == metrics == {name: line[name] for name in metrics}
        assert row["_step"] == line["step"]


def test_wandb_is_online_only_with_an_account_and_a_network(monkeypatch, no_account, tmp_path):
    assert wandb_mode(WandbSection()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert wandb_mode(WandbSection()) == "offline"
    assert wandb_mode(WandbSection(mode="online")) == "online"
    assert wandb_mode(WandbSection(enabled=False)) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(WandbSection()) == "disabled"


def test_a_wandb_that_fails_is_said_and_training_goes_on(tmp_path, monkeypatch, no_account):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("broken")))
    console = Console(record=True, quiet=False, file=open(tmp_path / "out", "w"))
    with Monitor(tmp_path, WandbSection(), {}, console) as monitor:
        monitor.log(1, METRICS[0])
    assert "offline did not work (RuntimeError)" in console.export_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["sft/train_loss"] == 2.5


def test_progress_without_a_terminal_is_plain_lines_with_the_time_left(capsys):
    with StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0) as bar:
        bar.update(5, "loss 1.000")
        bar.update(10, "loss 0.500")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sft 5/10  loss 1.000  0:0")
    assert lines[1] == "sft 10/10  loss 0.500  0:00 left"


def test_where_steps_differ_in_size_the_time_left_follows_the_work(monkeypatch, capsys):
    seconds = iter([100.0, 110.0])
    monkeypatch.setattr("mini_chat_gpt.monitor.time.monotonic", lambda: next(seconds))
    StepProgress(Console(force_terminal=False, width=80), "sft", 0, 10, every_seconds=0).update(9, "", share=0.1)
    assert capsys.readouterr().out.rstrip().endswith("1:30 left")


def test_times_are_written_as_on_a_clock():
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]

"""wandb's runs hold what metrics.jsonl holds, over all their parts, and never stand in the way."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until, new_run_id, read_metrics
from mini_chat_gpt.training.wandb_run import log_records, logged_rows, wandb_mode

METRICS = [
    {"sft/train_loss": 2.5, "sft/lr": 1e-5, "sft/tokens_per_second": 1234.5},
    {"sft/train_loss": 2.25, "sft/val_loss": 3.5},
]


def offline_parts(folder: Path) -> list[tuple[str, list[tuple[int, dict[str, float]]]]]:
    """(run id, history rows as (step, metrics)) of each offline part of a run, oldest first."""
    from wandb.proto import wandb_internal_pb2

    parts = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        run_id, rows = "", []
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                run_id = record.run.run_id
            elif record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                metrics = {name: json.loads(value) for name, value in items.items() if not name.startswith("_")}
                rows.append((record.history.step.num, metrics))
        parts.append((run_id, rows))
    return parts


def settled_parts(folder: Path, n_rows: int) -> list[tuple[str, list[tuple[int, dict[str, float]]]]]:
    """The parts once they hold so many rows; wandb's own process may still be writing."""
    parts, deadline = offline_parts(folder), time.monotonic() + 30
    while sum(len(rows) for _, rows in parts) < n_rows and time.monotonic() < deadline:
        time.sleep(0.1)
        parts = offline_parts(folder)
    return parts


def rows_of_metrics_file(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl holds, one row for each step."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(folder):
        rows.setdefault(int(line.pop("step")), {}).update(line)
    return [(step, {name: value for name, value in row.items() if name != "time"}) for step, row in rows.items()]


def train(folder: Path, first: int, last: int, run_id: str | None) -> None:
    """Log the steps from `first` to `last`; every third is evaluated as well."""
    with Monitor(folder, WandbSection(mode="offline"), {"steps": last}, Console(quiet=True), run_id) as monitor:
        log_steps(monitor, first, last)


def log_steps(monitor: Monitor, first: int, last: int) -> None:
    for step in range(first, last + 1):
        monitor.log(step, {"sft/train_loss": 1 / step})
        if step % 3 == 0:
            monitor.log(step, {"sft/val_loss": 2 / step})


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def program(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run lines of Python that know all that is here, with a wandb service of their own."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    here = Path(__file__).parent
    lines = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]}; from test_wandb_run import *\n{code}"
    command = [sys.executable, "-c", lines, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


class FakeRun:
    """In the place of an online run."""

    def __init__(self, starting_step: int = 0) -> None:
        self.starting_step = starting_step
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics, step):
        self.rows.append((step, {name: value for name, value in metrics.items() if not name.startswith("_")}))

    def finish(self, exit_code):
        pass


def test_an_offline_run_holds_the_values_of_metrics_jsonl(tmp_path, no_account):
    with Monitor(tmp_path, WandbSection(), {"training": {"batch_size": 4}}, Console(quiet=True)) as monitor:
        for step, metrics in enumerate(METRICS, 1):
            monitor.log(step, metrics)
    ((_, rows),) = settled_parts(tmp_path, 2)
    assert rows == rows_of_metrics_file(tmp_path) == [(1, METRICS[0]), (2, METRICS[1])]


def test_a_continued_run_is_one_run_and_no_step_is_lost_or_doubled(tmp_path, no_account):
    run_id = new_run_id()
    train(tmp_path, 1, 8, run_id)
    settled_parts(tmp_path, 8)
    keep_metrics_until(tmp_path, 6)  # it goes on from the checkpoint of step 6: 7 and 8 come again
    train(tmp_path, 7, 10, run_id)
    (one, first), (two, second) = settled_parts(tmp_path, 10)
    assert one == two == run_id
    assert first + second == rows_of_metrics_file(tmp_path)
    assert [step for step, _ in second] == [9, 10]


def test_what_a_killed_process_did_not_get_to_wandb_is_in_the_next_part(tmp_path, no_account):
    run_id = new_run_id()
    killed = program(
        "monitor = Monitor(Path(sys.argv[1]), WandbSection(mode='offline'), {}, Console(quiet=True), sys.argv[2])\n"
        "log_steps(monitor, 1, 8)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path,
        run_id,
    )
    assert killed.returncode == -signal.SIGKILL
    keep_metrics_until(tmp_path, 6)
    train(tmp_path, 7, 10, run_id)
    parts = settled_parts(tmp_path, 10)
    assert sorted(row for _, rows in parts for row in rows) == rows_of_metrics_file(tmp_path)
    assert parts[-1][0] == run_id


def test_a_part_that_was_cut_off_anywhere_counts_as_far_as_it_goes(tmp_path, no_account):
    train(tmp_path, 1, 4, "abcd1234")
    settled_parts(tmp_path, 4)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    whole = file.read_bytes()
    seen = set()
    for length in range(0, len(whole), 13):
        file.write_bytes(whole[:length])
        steps = tuple(logged_rows(tmp_path, "abcd1234"))
        assert steps == (1, 2, 3, 4)[: len(steps)]
        seen.add(len(steps))
    assert seen == {0, 1, 2, 3, 4}


def test_a_record_longer_than_a_block_is_put_together_again():
    content = bytes(range(256)) * 300  # longer than two blocks of 32 KiB
    data = b":W&B" + bytes(3)
    cuts = [0, 32768 - 14, 2 * (32768 - 7) - 7, len(content)]
    for number, (begin, end) in enumerate(pairwise(cuts)):
        kind = (2, 3, 4)[number]
        data += bytes(4) + (end - begin).to_bytes(2, "little") + bytes([kind]) + content[begin:end]
    assert list(log_records(data)) == [content]


def test_a_continued_online_run_asks_wandb_to_go_on_with_its_id(tmp_path, monkeypatch, no_account):
    import wandb

    asked = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or FakeRun())
    with Monitor(tmp_path, WandbSection(mode="online"), {"a": 1}, Console(quiet=True), "abcd1234"):
        pass
    assert {name: asked[name] for name in ("mode", "id", "resume", "config", "dir")} == {
        "mode": "online",
        "id": "abcd1234",
        "resume": "allow",
        "config": {"a": 1},
        "dir": str(tmp_path),
    }


def test_without_an_id_wandb_is_not_asked_to_resume_anything(tmp_path, monkeypatch, no_account):
    import wandb

    asked = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or FakeRun())
    with Monitor(tmp_path, WandbSection(mode="online"), {}, Console(quiet=True)):
        pass
    assert not {"id", "resume"} & set(asked)


def test_a_continued_online_run_is_sent_what_its_server_lacks(tmp_path, monkeypatch, no_account):
    import wandb

    with Monitor(tmp_path, WandbSection(enabled=False), {}, Console(quiet=True)) as monitor:
        log_steps(monitor, 1, 6)
    run = FakeRun(starting_step=5)  # steps 1 to 4 have arrived
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with Monitor(tmp_path, WandbSection(mode="online"), {}, Console(quiet=True), "abcd1234") as monitor:
        log_steps(monitor, 7, 7)
    assert run.rows == [
        (5, {"sft/train_loss": 1 / 5}),
        (6, {"sft/train_loss": 1 / 6}),
        (6, {"sft/val_loss": 2 / 6}),
        (7, {"sft/train_loss": 1 / 7}),
    ]


def test_wandb_writes_nothing_to_the_terminal(tmp_path, no_account):
    child = program("for first in (1, 4): train(Path(sys.argv[1]), first, first + 4, 'abcd1234')", tmp_path)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert len(offline_parts(tmp_path)) == 2


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


def test_a_wandb_that_fails_on_the_way_is_said_once_and_training_goes_on(tmp_path, monkeypatch, no_account):
    import wandb

    class Broken(FakeRun):
        def log(self, metrics, step):
            raise BrokenPipeError

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    console = Console(record=True, file=open(tmp_path / "out", "w"))
    with Monitor(tmp_path, WandbSection(), {}, console) as monitor:
        log_steps(monitor, 1, 5)
    assert console.export_text().count("wandb stopped working (BrokenPipeError)") == 1
    assert len(list(read_metrics(tmp_path))) == 6

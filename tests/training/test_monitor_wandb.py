"""A wandb run has the metrics of metrics.jsonl, also after a resume, and its failures do not affect training."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from mini_chat_gpt.config import WandbSection
from mini_chat_gpt.training.monitor import Monitor, keep_metrics_until, read_metrics
from mini_chat_gpt.training.wandb_run import OFFLINE, choose_mode, new_run_id

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


def log_records(data: bytes) -> Iterator[bytes]:
    """The complete records of a .wandb file, which has the format of LevelDB's log.

    A header of 7 bytes is followed by blocks of 32 KiB with fragments. A fragment has a checksum (4 bytes), its length (2),
    its type (1: a whole record; 2, 3, 4: first, middle, last fragment of a record) and its content.
    """
    block, header = 32768, 7
    position, pending = header, b""
    while position + header <= len(data):
        if block - position % block < header:  # the rest of the block is too small for a fragment
            position += block - position % block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + header : position + header + length]
        if kind not in (1, 2, 3, 4) or len(fragment) < length:
            return
        pending = fragment if kind in (1, 2) else pending + fragment
        if kind in (1, 4):
            yield pending
        position += header + length


def settled_parts(folder: Path, n_rows: int) -> list[tuple[str, list[tuple[int, dict[str, float]]]]]:
    """The parts once they have `n_rows` rows; wandb writes them in a process of its own."""
    parts, deadline = offline_parts(folder), time.monotonic() + 30
    while sum(len(rows) for _, rows in parts) < n_rows and time.monotonic() < deadline:
        time.sleep(0.1)
        parts = offline_parts(folder)
    return parts


def rows_of_metrics_file(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The content of metrics.jsonl as one row per step."""
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
    names = (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_SILENT",
        "WANDB_DISABLED",
        "WANDB_DIR",
        "WANDB_CONFIG_DIR",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def program(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code with the names of this module and a wandb service of its own."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    here = Path(__file__).parent
    lines = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]}; from test_monitor_wandb import *\n{code}"
    command = [sys.executable, "-c", lines, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


class FakeRun:
    """Replaces an online run."""

    def log(self, metrics, step):
        pass

    def finish(self, exit_code):
        pass


def test_an_offline_run_has_the_values_of_metrics_jsonl(tmp_path, no_account):
    with Monitor(tmp_path, WandbSection(), {"training": {"batch_size": 4}}, Console(quiet=True)) as monitor:
        for step, metrics in enumerate(METRICS, 1):
            monitor.log(step, metrics)
    ((_, rows),) = settled_parts(tmp_path, 2)
    assert rows == rows_of_metrics_file(tmp_path) == [(1, METRICS[0]), (2, METRICS[1])]


def test_a_resumed_run_keeps_its_id_and_its_steps_line_up(tmp_path, no_account):
    run_id = new_run_id()
    train(tmp_path, 1, 8, run_id)
    keep_metrics_until(tmp_path, 6)  # resumed from the checkpoint of step 6: steps 7 and 8 are computed again
    train(tmp_path, 7, 10, run_id)
    (first_id, first), (second_id, second) = settled_parts(tmp_path, 12)
    assert first_id == second_id == run_id
    assert [step for step, _ in first] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert dict(first) | dict(second) == dict(rows_of_metrics_file(tmp_path))


def test_a_resumed_online_run_passes_its_id_to_wandb(tmp_path, monkeypatch, no_account):
    import wandb

    options_used = {}
    monkeypatch.setattr(wandb, "init", lambda **options: options_used.update(options) or FakeRun())
    with Monitor(tmp_path, WandbSection(mode="online"), {"a": 1}, Console(quiet=True), "abcd1234"):
        pass
    assert {name: options_used[name] for name in ("mode", "id", "resume", "config", "dir")} == {
        "mode": "online",
        "id": "abcd1234",
        "resume": "allow",
        "config": {"a": 1},
        "dir": str(tmp_path),
    }


def test_without_an_id_nothing_is_resumed(tmp_path, monkeypatch, no_account):
    import wandb

    options_used = {}
    monkeypatch.setattr(wandb, "init", lambda **options: options_used.update(options) or FakeRun())
    with Monitor(tmp_path, WandbSection(mode="online"), {}, Console(quiet=True)):
        pass
    assert options_used["id"] is options_used["resume"] is None


def test_wandb_writes_nothing_to_the_terminal(tmp_path, no_account):
    child = program("for first in (1, 4): train(Path(sys.argv[1]), first, first + 4, 'abcd1234')", tmp_path)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert len(offline_parts(tmp_path)) == 2


def test_wandb_is_online_only_if_that_is_asked_for(monkeypatch, no_account, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode(WandbSection()) == ("offline", OFFLINE)
    assert choose_mode(WandbSection(mode="online")) == ("online", "")
    assert choose_mode(WandbSection(enabled=False)) == ("disabled", "")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert choose_mode(WandbSection()) == ("online", "")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(WandbSection()) == ("disabled", "")


def test_training_continues_if_wandb_fails_to_start(tmp_path, monkeypatch, no_account):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("broken")))
    console = Console(record=True, quiet=False, file=open(tmp_path / "out", "w"))
    with Monitor(tmp_path, WandbSection(), {}, console) as monitor:
        monitor.log(1, METRICS[0])
    assert "wandb (offline) failed to start (RuntimeError)" in console.export_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["sft/train_loss"] == 2.5


def test_training_continues_if_wandb_fails_later_with_one_message(tmp_path, monkeypatch, no_account):
    import wandb

    class Broken(FakeRun):
        def log(self, metrics, step):
            raise BrokenPipeError

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    console = Console(record=True, file=open(tmp_path / "out", "w"))
    with Monitor(tmp_path, WandbSection(), {}, console) as monitor:
        log_steps(monitor, 1, 5)
    assert console.export_text().count("wandb has failed (BrokenPipeError)") == 1
    assert len(list(read_metrics(tmp_path))) == 6


# The mode


@pytest.fixture
def account(monkeypatch, no_account, tmp_path):
    """A user who has set wandb online, with a home folder of their own, in an empty folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".config" / "wandb" / "settings"
    file.parent.mkdir(parents=True)
    file.write_text("[default]\nmode = online\n")
    assert choose_mode(WandbSection()) == ("online", "")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": " Offline "}, "offline"),
        ({"WANDB_MODE": "DISABLED"}, "disabled"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": ""}, "online"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
        ({"WANDB_DISABLED": "0", "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_variables_of_wandb_choose_the_mode(monkeypatch, account, variables, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose_mode(WandbSection()) == (mode, "")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WANDB_MODE": "off-line"}, "WANDB_MODE has the unknown value 'off-line'"),
        ({"WANDB_MODE": "none"}, "WANDB_MODE has the unknown value 'none'"),
        ({"WANDB_DISABLED": "maybe"}, "WANDB_DISABLED has the unknown value 'maybe'"),
        ({"WANDB_DISABLED": "maybe", "WANDB_MODE": "online"}, "WANDB_DISABLED"),
    ],
)
def test_what_is_not_known_never_goes_online(monkeypatch, account, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mode, note = choose_mode(WandbSection())
    assert mode == "offline"
    assert words in note


@pytest.mark.parametrize(
    ("content", "mode"),
    [("[default]\nmode = offline\n", "offline"), ("[default]\nmode = disabled\n", "disabled"),
     ("[default]\ndisabled = true\n", "disabled"), ("[default]\nmode = online\n", "online"),
     ("[default]\nproject = x\n", "offline"), ("", "offline"),
     ("mode = offline", "offline"), ("\xff\xfe", "offline"), ("[default]\nmode = nowhere\n", "offline")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["wandb/settings", ".config/wandb/settings"])
def test_what_wandb_was_told_by_its_own_commands_is_respected(tmp_path, monkeypatch, no_account, place, content, mode):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode("latin-1"))
    assert choose_mode(WandbSection())[0] == mode


def test_an_unknown_mode_is_said_and_wandb_still_records_offline(tmp_path, monkeypatch, no_account):
    monkeypatch.setenv("WANDB_MODE", "nowhere")
    out = Console(record=True, file=open(tmp_path / "out", "w"), width=200)
    with Monitor(tmp_path, WandbSection(), {}, out) as monitor:
        monitor.log(1, METRICS[0])
    assert out.export_text() == "wandb is offline, because WANDB_MODE has the unknown value 'nowhere'.\n"
    assert len(settled_parts(tmp_path, 1)) == 1


@pytest.mark.parametrize("mode", ["Offline", " offline ", "dryrun", "OFFLINE"])
def test_the_setting_takes_the_same_words_as_the_variable(mode):
    assert WandbSection(mode=mode).mode == "offline"


def test_a_user_without_a_home_folder_is_offline(monkeypatch, no_account):
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert choose_mode(WandbSection()) == ("offline", OFFLINE)

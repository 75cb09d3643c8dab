"""SIGTERM and SIGHUP end a command as Ctrl-C does: with its exit code, without a traceback, without temporary files."""

import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import sys, time
from pathlib import Path
from mini_chat_gpt.common import signals
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.files import atomic_folder
signals.GRACE = 0.5

def main():
    with atomic_folder(Path("result")) as draft, signals.after_interruption(lambda: print("how to resume")):
        (draft / "part").write_text("incomplete")
        print("ready", flush=True)
        {work}
    return 0

exit_with(main)
"""


def start(folder, work: str, before: str = "") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", before + COMMAND.replace("{work}", work)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_command_with_its_code_and_leaves_nothing_behind(tmp_path, name, code):
    process = start(tmp_path, "time.sleep(60)")
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "how to resume\n")
    assert err == ("interrupted\n" if name == "SIGINT" else f"stopped by {name}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_during_a_finalizer_which_drops_exceptions_ends_the_command_as_well(tmp_path, name, code):
    before = "class Finalized:\n    def __del__(self): time.sleep(0.3)\n"
    process = start(tmp_path, "Finalized(); time.sleep(60)", before)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "how to resume\n", f"stopped by {name}\n")
    assert list(tmp_path.iterdir()) == []


def test_repeated_signals_do_not_disturb_the_end(tmp_path):
    clean_up = "import contextlib; stack = contextlib.ExitStack(); stack.callback(time.sleep, 0.3); stack.__enter__()"
    process = start(tmp_path, f"{clean_up}\n        with stack: time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "stopped by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "hang", ["try: time.sleep(60)\n        finally: time.sleep(60)", "atexit.register(time.sleep, 60); time.sleep(60)"]
)
def test_a_library_that_waits_at_the_end_does_not_keep_the_command(tmp_path, hang):
    process = start(tmp_path, hang, before="import atexit\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path):
    process = start(tmp_path, "time.sleep(0.5)", before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_only_a_command_is_ended_after_a_while():
    """Python code that imports the package, a notebook for example, continues after an interrupted run."""
    code = "import time; from mini_chat_gpt.common.signals import leave_within; leave_within(0.1, 3); time.sleep(0.5)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0

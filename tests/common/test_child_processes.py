"""Child processes end with their parent, whatever ends it, and only then."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mini_chat_gpt.common import child_processes

LINUX = "pass"
ELSEWHERE = "child_processes._killed_with_parent = lambda: False"

WORKERS = """
import multiprocessing, sys, time
sys.path.insert(0, {tests!r})
from tiny import CountingDataset
from mini_chat_gpt.common import child_processes
from mini_chat_gpt.data.step_loader import StepLoader

class Slow(CountingDataset):
    def __getitem__(self, index):
        {system}
        if index >= 64: time.sleep(60)
        return super().__getitem__(index)

if __name__ == "__main__":
    {system}
    with StepLoader(Slow(), 0, workers=2) as loader:
        loader.step(3, None)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
"""

SUBPROCESS = """
import os, subprocess, sys, time
code = '''
import time
from mini_chat_gpt.common import child_processes
{system}
child_processes.end_with_parent(PARENT)
print("ready", flush=True)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", code.replace("PARENT", str(os.getpid()))], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def start(code: str, system: str) -> tuple[subprocess.Popen, list[int]]:
    """A parent process and the ids of its children."""
    code = code.replace("{system}", system).replace("{tests!r}", repr(str(Path(__file__).parent.parent)))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    return process, [int(child) for child in process.stdout.readline().split()]


def is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(children: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, children))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("system", [LINUX, ELSEWHERE], ids=["Linux", "elsewhere"])
@pytest.mark.parametrize("code", [WORKERS, SUBPROCESS], ids=["data workers", "a command"])
def test_no_child_outlives_a_killed_parent(code, system):
    process, children = start(code, system)
    assert children
    assert all(map(is_running, children))
    process.kill()
    process.wait()
    assert wait_for_end(children)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_data_workers_ignore_the_signals_of_their_process_group_while_the_trainer_lives():
    process, children = start(WORKERS, LINUX)
    for child in children:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
    time.sleep(0.3)
    assert all(map(is_running, children))
    process.kill()
    process.wait()
    assert wait_for_end(children)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_child_whose_parent_died_before_it_could_ask_ends_as_well():
    code = "from mini_chat_gpt.common.child_processes import end_with_parent; end_with_parent(1 << 22); import time; time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 1


def test_blocked_stop_signals_arrive_afterwards(monkeypatch):
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("SIGTERM"))
    try:
        with child_processes.stop_signals_blocked():
            # To this thread: a signal to the process goes to any thread that has not blocked it.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert arrived == []
        assert arrived == ["SIGTERM"]
        monkeypatch.delattr(signal, "pthread_sigmask")  # Windows
        with child_processes.stop_signals_blocked():
            pass
    finally:
        signal.signal(signal.SIGTERM, before)

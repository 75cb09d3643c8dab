"""Start and end of a command: no garbage collection during imports, and an exit code that late finalizers can't change."""

import gc
import os
import subprocess
import sys

import pytest

from mini_chat_gpt.common.entry import command_of, importing


def test_garbage_collection_is_off_during_imports():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_failed_import():
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_garbage_collection_stays_off_if_it_was_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_imported_objects_are_excluded_from_later_collections():
    with importing():
        imported = [[]]
    assert not any(thing is imported for thing in gc.get_objects())
    gc.unfreeze()


LATE = """
import atexit, os, sys
import torch
from mini_chat_gpt.common.entry import exit_with

class ReleasedLate:  # as a gloo thread's last tensor, which aborts the process during finalization
    def __del__(self, abort=os.abort):
        abort()

late = ReleasedLate()
atexit.register(lambda: print("registered"))

def main():
    print("done")
    return 3

exit_with(main)
"""


def test_one_of_several_processes_ends_with_its_own_exit_code():
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "one"}
    end = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, env=environment)
    assert (end.returncode, end.stdout) == (3, "done\nregistered\n"), end.stderr


GPU_FULL = """
import torch
from mini_chat_gpt.common.entry import exit_with

def main():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of which 1.19 GiB is free. "
        "Process 1 has 13.37 GiB memory in use. If reserved but unallocated memory is large try setting …"
    )

exit_with(main)
"""


def test_a_full_gpu_is_one_sentence_that_says_what_to_change():
    end = subprocess.run([sys.executable, "-c", GPU_FULL], capture_output=True, text=True)
    assert end.returncode == 2
    (line,) = end.stderr.splitlines()
    assert line.startswith(
        "error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"
    )
    assert "training.batch_tokens" in line


CPU_FULL = """
import resource
import torch
from mini_chat_gpt.common.entry import exit_with

def main():
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    {allocate}

exit_with(main)
"""


@pytest.mark.parametrize("allocate", ["torch.empty(2**40)", "bytearray(2**40)", "__import__('numpy').zeros(2**40)"])
def test_a_full_memory_is_one_sentence_that_says_what_to_change(allocate):
    end = subprocess.run([sys.executable, "-c", CPU_FULL.format(allocate=allocate)], capture_output=True, text=True)
    assert end.returncode == 2, end.stderr
    (line,) = end.stderr.splitlines()
    assert line.startswith("error: The memory of this machine is full")
    assert ("4,194,304 MiB" in line) == ("torch" in allocate)
    assert "training.batch_size" in line


@pytest.mark.parametrize(
    ("program", "processes", "expected"),
    [
        ("mini-chat-gpt sft", None, "mini-chat-gpt sft"),
        ("mini-chat-gpt quickstart", None, "mini-chat-gpt sft"),
        ("mini_chat_gpt/sft_train.py", None, "python mini_chat_gpt/sft_train.py"),
        ("mini_chat_gpt/sft_train.py", 2, "torchrun --nproc_per_node=2 mini_chat_gpt/sft_train.py"),
        ("mini-chat-gpt sft", 4, "torchrun --nproc_per_node=4 -m mini_chat_gpt.cli sft"),
        ("/lib/python3.11/site-packages/mini_chat_gpt/__main__.py", None, "mini-chat-gpt sft"),
    ],
)
def test_a_command_is_shown_in_the_way_in_which_the_program_was_started(monkeypatch, program, processes, expected):
    monkeypatch.setattr("sys.argv", [program])
    assert command_of("sft", processes) == expected

"""The beginning of a command: Python's search for garbage stands still while modules are imported, and only then.

And its end: among several processes nothing that is let go of late can spoil it.
"""

import gc
import os
import subprocess
import sys

import pytest

from mini_chat_gpt.common.entry import importing


def test_no_garbage_is_looked_for_during_imports():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_is_looked_for_again_after_an_import_that_failed():
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_who_has_turned_the_search_off_finds_it_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_not_looked_through_later():
    with importing():
        imported = [[]]
    assert not any(thing is imported for thing in gc.get_objects())
    gc.unfreeze()


LATE = """
import atexit, os, sys
import torch
from mini_chat_gpt.common.entry import exit_with

class LetGoOfLate:  # as a tensor is by a thread of gloo, which ends the process when Python is ending
    def __del__(self, abort=os.abort):
        abort()

late = LetGoOfLate()
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

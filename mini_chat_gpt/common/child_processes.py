"""Child processes that end with their parent, whatever ends it (SIGKILL and a lack of memory included)."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends. `parent` is the process id that the parent passed to this process."""
    # The parent may have died before the request; its child then has another parent, and the thread ends it.
    if not (_killed_with_parent() and os.getppid() == parent):
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _killed_with_parent() -> bool:
    """Ask Linux to kill this process when the thread that started it ends; False on other systems."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    except (OSError, AttributeError):
        return False


def _end_after(parent: int) -> None:
    process = multiprocessing.parent_process()
    if process is not None:  # started by multiprocessing, which knows on every system when the parent has ended
        process.join()
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Context in which no stop signal is delivered to this thread, nor to processes started in it until they unblock it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _stop_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP, which reach all processes of a group: the parent decides when to end this one."""
    for number in _stop_signals():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _stop_signals())


def _stop_signals() -> list[int]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

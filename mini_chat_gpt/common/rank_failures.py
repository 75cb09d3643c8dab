"""The failure of one process (rank) under torchrun: one message, printed by rank 0, and the end of all other ranks.

A rank that fails records its exit code and its message in the store of the run. The first record counts. Every rank watches the
store in a thread: rank 0 prints the message, and all ranks end with the same exit code and without a message of their own. Rank 0
gets an error when it waits for a rank that has ended, and can still complete what it writes. If it computes on, it is ended after
`GRACE` seconds. Other ranks end at once.

So no collective needs a way to report errors, and it does not matter where a rank fails.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.rendezvous import open_store

FAILURE, PRINTED, NOTICED = "mini_chat_gpt/failure", "mini_chat_gpt/failure_printed", "mini_chat_gpt/failure_noticed"
PASSED_OVER = "mini_chat_gpt/passed_over"
GRACE = 30.0
"""Seconds after which a rank that has noticed a failure is ended. A checkpoint that is being written can be completed in them."""
TOGETHER = 30.0
"""Seconds in which an error that all ranks have reaches the last one."""
WRITER = "checkpoint writer"
"""Name of the thread that writes checkpoints."""


@dataclass(frozen=True)
class Failure:
    """Why a run of several ranks ends."""

    rank: int
    code: int  # exit code of all ranks
    message: str  # for rank 0 to print; "" if the failed rank has printed it


class FailureWatch:
    """Watches for the failure of another rank, in a thread, and reports that of this one."""

    def __init__(self, rank: int, size: int, store: dist.TCPStore, printed: bool = False) -> None:
        """`printed`: this is rank 0, and its own message is on the terminal already."""
        self.rank, self.size, self._printed = rank, size, printed
        # A connection of its own: that of the process group is locked while PyTorch waits for another rank.
        self._store = dist.TCPStore(store.host, store.port, is_master=False, timeout=timedelta(seconds=20))
        self._keep = store  # the store ends with rank 0's object
        # Nothing is sent through this connection. Its end means that of rank 0, and PyTorch prints 20 lines for each request then.
        self._lifeline = socket.create_connection((store.host, store.port), timeout=20)
        self._lifeline.setblocking(False)
        self.failure: Failure | None = None
        self._n_together = 0  # calls of `failed_together`
        # As soon as this rank has confirmed a failure, rank 0 may end, and its store with it. So no rank asks it afterwards.
        self._lock, self._stopped = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank failures", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, because this rank has finished."""
        self._stopped.set()
        self._thread.join()

    def failed_together(self) -> bool:
        """Whether all ranks call this within some seconds, because the same step has failed on all of them."""
        self._n_together += 1
        try:
            self._store.add(PASSED_OVER, 1)
        except RuntimeError:  # rank 0 has ended
            return False
        return self._wait_for(lambda: self._store.add(PASSED_OVER, 0) >= self._n_together * self.size, TOGETHER)

    def report(self, failure: Failure, details: str = "") -> Failure:
        """Record this rank's failure unless another rank has failed before. Returns the failure that counts.

        Returns when the other ranks have noticed it, or after some seconds. `details` is printed here if this failure counts.
        """
        with self._lock:
            if self.failure is None:
                self._require_store()
                record = self._store.compare_set(FAILURE, "", json.dumps(asdict(failure)))
                self._notice(Failure(**json.loads(record)))
            first = self.failure
        assert first is not None
        if first == failure:
            if details:
                _print(details)
            self._await_others(first)
        elif self.rank == 0:  # the others need the store of this process; the failed one counts itself last
            self._wait_for(lambda: self._store.add(NOTICED, 0) >= self.size, 15)
        return first

    def _await_others(self, failure: Failure) -> None:
        """Wait until rank 0 has printed the message, else print it here; then until all other ranks have noticed the failure."""
        if self.rank != 0 and failure.message and not self._wait_for(lambda: self._store.check([PRINTED]), 10):
            _print(f"[rank {self.rank}] {failure.message}")
        self._wait_for(lambda: self._store.add(NOTICED, 0) >= self.size - 1, 15)
        with contextlib.suppress(RuntimeError):  # rank 0 has ended
            self._require_store()
            self._store.add(NOTICED, 1)  # this rank asks no more: rank 0 may end

    def _require_store(self) -> None:
        """Raise RuntimeError if rank 0 has ended, and its store with it."""
        try:
            self._lifeline.recv(1)  # returns b"" after the end
        except BlockingIOError:
            return
        except OSError:
            pass
        raise RuntimeError("the store of the run is gone")

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        try:
            self._require_store()
            while not (holds := condition()) and time.monotonic() < deadline:
                time.sleep(0.05)
                self._require_store()
        except RuntimeError:  # rank 0 has ended, and its store with it
            return False
        return holds

    def _watch(self) -> None:
        try:
            while not self._stopped.wait(0.2):
                with self._lock:
                    if self.failure is None:
                        self._require_store()
                        if self._store.check([FAILURE]):
                            self._notice(Failure(**json.loads(self._store.get(FAILURE))))
                    if self.failure is not None:
                        break
        except RuntimeError:  # rank 0 has ended without a message: the ranks that wait for it report that
            pass
        self._end_within(GRACE)

    def _end_within(self, seconds: float) -> None:
        """End this process unless it ends by itself in time. A rank but the first ends as soon as it writes no checkpoint."""
        deadline, failure = time.monotonic() + seconds, self.failure
        has_nothing_to_do = self.rank != 0 and failure is not None and failure.rank != self.rank
        while not self._stopped.is_set() and time.monotonic() < deadline:
            if has_nothing_to_do and not any(thread.name == WRITER for thread in threading.enumerate()):
                break
            self._stopped.wait(0.05)
        if not self._stopped.is_set():
            end_process(failure.code if failure else 1)

    def _notice(self, failure: Failure) -> None:
        """Take note of the failure that counts. Rank 0 prints its message."""
        self.failure = failure
        with contextlib.suppress(RuntimeError):  # rank 0 has ended
            if self.rank == 0:
                if failure.message and not self._printed:
                    _print(failure.message)
                self._store.set(PRINTED, "1")
            if failure.rank != self.rank:
                if self.rank != 0:
                    mute()
                self._store.add(NOTICED, 1)


_watch: FailureWatch | None = None  # of this process, from the moment at which it joins a run


def watch(rank: int, size: int, store: dist.TCPStore, printed: bool = False) -> None:
    """Begin to watch for failures of other ranks. `printed`: this is rank 0, and its own message is on the terminal already."""
    global _watch
    _watch = FailureWatch(rank, size, store, printed)


def stop_watching() -> None:
    """This rank has finished without a failure."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def failed() -> bool:
    """Whether this process knows that the run has failed on some rank."""
    return _watch is not None and _watch.failure is not None


def failed_together() -> bool:
    """Whether all ranks of the run have failed at this point. Each rank that has failed must call it; True for a single process."""
    return _watch is None or _watch.failed_together()


def report(error: BaseException, code: int, message: str, environment: Mapping[str, str] = os.environ) -> int:
    """Make sure that the failure of a run is printed once, whichever ranks fail. Returns the exit code of this rank.

    An unexpected `error` is printed by the rank that has it, with its traceback. If the connection to another rank is lost, that
    rank has either recorded the reason or was killed.
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if not failed() and (lost := lost_connection(error, rank, size)):
        code, message = 2, f"error: {lost}"
        time.sleep(0.5)  # all connections of the other process end together, but not at the same instant
    printed = _watch is None and rank == 0 and bool(message)
    if printed:  # no other rank can have reported anything yet
        _print(message)
    if int(environment["LOCAL_WORLD_SIZE"]) < size and rank and message:
        message += f" (process {rank} on {socket.gethostname()})"  # files may differ between machines
    if _watch is None and isinstance(error, SystemExit):  # a signal: torchrun sends it to all ranks
        return code
    details = "" if message else "".join(traceback.format_exception(error)).rstrip()
    try:
        if _watch is None:
            watch(rank, size, open_store(rank, size, environment, seconds=20), printed)
        assert _watch is not None
        return _watch.report(Failure(rank, code, message), details).code
    except RuntimeError:  # rank 0 can't be reached
        if not printed:
            _print(f"[rank {rank}] {message}" if message else details)
        return code


def lost_connection(error: BaseException, rank: int, size: int) -> str:
    """The sentence for an exception that PyTorch raises after the loss of another process; "" for other exceptions."""
    text = str(error)
    is_peer_lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text or "Connection" in text
    if size == 1 or isinstance(error, UserError) or not isinstance(error, RuntimeError) or not is_peer_lost:
        return ""
    reason = re.sub(r"^\[[^]]*\] ", "", text.splitlines()[0]).partition(". ")[0]
    return (
        f"Process {rank} of {size} has lost the connection to another one, which ended without a message ({reason[:120]}); it may "
        "have been killed, for example because memory ran out. The run can be resumed from its last checkpoint."
    )


def _print(message: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal is gone
        print(message, file=sys.stderr, flush=True)


def mute() -> None:
    """Discard what this process prints on standard error from now on.

    As soon as this rank has confirmed the failure rank 0 may end, and PyTorch's threads here would print that they lost it.
    """
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def end_process(code: int) -> None:
    """End this process and its data workers immediately."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)

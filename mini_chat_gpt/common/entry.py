"""How every command begins and ends: exit code 0, 2 with one sentence for a user's mistake, 130 when interrupted."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

from mini_chat_gpt.common.errors import UserError


def forgive_odd_characters() -> None:
    """A terminal that has no emoji gets a question mark from now on, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    """What is meant for users is said as a sentence; which line of a library complains is for developers (python -W)."""
    if category is UserWarning:
        print(f"warning: {message}", file=sys.stderr)


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process, alone or as one of several."""
    return "TORCHELASTIC_RUN_ID" in environment


def _rank_that_speaks() -> str:
    """Nothing, or "[rank 1] " among several processes under torchrun, of which only one needs to say what all have met.

    The others wait a little: torchrun ends them as soon as rank 0 has failed.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not under_torchrun():
        return ""
    time.sleep(3)
    return f"[rank {rank}] "


@contextmanager
def importing() -> Iterator[None]:
    """For imports: what comes into being here stays to the end, so Python needn't look whether some of it is garbage.

    Looking through PyTorch's objects, while they are made and now and then afterwards, is a tenth of a command's start.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def exit_with(main: Callable[[], int]) -> None:
    """Run a command and leave with its exit code."""
    forgive_odd_characters()
    warnings.showwarning = _show_warning
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"{_rank_that_speaks()}error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process; one among several without taking Python apart first.

    A thread of gloo may let go of its last tensor a little later than `wait` has returned, and needs Python for that. Where
    Python is ending already the thread is torn down in the midst of it, and the process, whose work is done, with SIGABRT.
    """
    if under_torchrun():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""Start and end of every command: exit code 0, 2 with one sentence for a user's mistake, 130 after Ctrl-C."""

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
from mini_chat_gpt.common.output import OptionalOutput, flush_or_discard, open_standard_streams

_ERRORS: Any = OptionalOutput("stderr")


def replace_unencodable() -> None:
    """Print a question mark for characters that the terminal's encoding lacks, such as emoji, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    """Print warnings for users as a sentence. Other warnings are for developers, who can enable them (python -W)."""
    if category is UserWarning:
        print(f"warning: {message}", file=_ERRORS)


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process, alone or as one of several."""
    return "TORCHELASTIC_RUN_ID" in environment


def _rank_prefix() -> str:
    """ "" for rank 0, otherwise "[rank 1] ".

    All ranks usually fail with the same error. The other ranks wait first, and torchrun ends them when rank 0 has failed, so
    that the error is printed once.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not under_torchrun():
        return ""
    time.sleep(3)
    return f"[rank {rank}] "


@contextmanager
def importing() -> Iterator[None]:
    """Turn off garbage collection during imports, and exclude the imported objects from later collections.

    Imported objects live until the process ends. Collections over PyTorch's objects take a tenth of a command's start-up time.
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
    """Run a command and exit with its exit code."""
    open_standard_streams()
    replace_unencodable()
    warnings.showwarning = _show_warning
    try:
        code = main()
        code = _lost_output() or code
    except UserError as error:
        print(f"{_rank_prefix()}error: {error}", file=_ERRORS)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=_ERRORS)
        code = 130
    except OSError:
        if not (code := _lost_output(probe="\n")):
            raise
    _exit(code)


def _lost_output(probe: str = "") -> int:
    """The exit code of a command whose output, and `probe`, can't be written, which is reported; 0 if they can be."""
    error = flush_or_discard(sys.stdout, probe)
    if error is None:
        return 0
    if isinstance(error, BrokenPipeError):  # the reader of standard output has exited, as with `| head`
        return 141
    print(f"error: The output can't be written: {(error.strerror or str(error)).lower()}.", file=_ERRORS)
    return 2


def _exit(code: int) -> NoReturn:
    """End the process. Under torchrun, skip Python's finalization.

    A gloo thread may release its last tensor shortly after `wait` has returned, which needs the interpreter. During
    finalization this would end the process with SIGABRT.
    """
    if under_torchrun():
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        flush_or_discard(stream)  # or Python would fail to flush it, and exit with code 120
    if under_torchrun():
        os._exit(code)
    sys.exit(code)

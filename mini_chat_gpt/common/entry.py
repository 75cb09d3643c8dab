"""Start and end of every command: exit code 0, 2 with one sentence for a user's mistake, 128 + its number after a signal.

Under torchrun the message is printed once, see `rank_failures`.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.output import OptionalOutput, flush_or_discard, open_standard_streams
from mini_chat_gpt.common.signals import StoppedBySignal, end_signals, signals_end_command

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


def one_of_several_ranks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes that torchrun started."""
    return under_torchrun(environment) and int(environment.get("WORLD_SIZE", "1")) > 1


def command_of(verb: str, processes: int | None = None) -> str:
    """What to type for a verb, in the way in which this program was started: the command, or a script of a clone.

    processes: under torchrun, with this many; None for one without it.
    """
    is_script = sys.argv[0].endswith(".py") and os.path.basename(sys.argv[0]) != "__main__.py"  # that of `python -m`
    if processes is not None:
        return f"torchrun --nproc_per_node={processes} {sys.argv[0] if is_script else f'-m mini_chat_gpt.cli {verb}'}"
    return f"python {sys.argv[0]}" if is_script else f"mini-chat-gpt {verb}"


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
        with signals_end_command():
            code = main()
            code = _lost_output() or code
    except UserError as error:
        code = _report(error, 2, f"error: {error}")
    except KeyboardInterrupt as error:
        code = _report(error, 130, "interrupted")
    except StoppedBySignal as error:
        code = _report(error, int(str(error)), f"stopped by {error.name}")
    except Exception as error:
        if full := _memory_full(error):
            code = _report(error, 2, full)
        elif one_of_several_ranks():
            code = _report(error, 1, "")
        elif not isinstance(error, OSError) or not (code := _lost_output(probe="\n")):
            raise
    _exit(code)


def _memory_full(error: Exception) -> str:
    """The message for an exception about the memory of the machine or of a GPU; "" for other exceptions."""
    torch = sys.modules.get("torch")  # not imported here, because most commands that fail never do
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        problem = ". ".join(str(error).split(". ")[:3])
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        size = re.search(r"tried to allocate (\d+) bytes", str(error))  # PyTorch has no exception of its own for a CPU
        problem = "The memory of this machine is full" + (
            f": {int(size[1]) / 2**20:,.0f} MiB more are needed" if size else ""
        )
    else:
        return ""
    return (
        f"error: {problem}. In training set training.batch_tokens, a smaller training.batch_size or "
        "training.activation_checkpointing=true; in an evaluation a smaller --batch-size."
    )


def _report(error: BaseException, code: int, message: str) -> int:
    """Print the message, once if there are several ranks. Returns the exit code."""
    if not one_of_several_ranks():
        print(message, file=_ERRORS)
        return code
    # The process is ending already, and torchrun sends SIGTERM to all ranks after the first has ended.
    for number in (signal.SIGINT, *end_signals()):
        signal.signal(number, signal.SIG_IGN)
    from mini_chat_gpt.common import rank_failures  # here, because it imports torch

    return rank_failures.report(error, code, message)


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

"""Output that can't be written never ends a run, and ends other commands with a sentence."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from mini_chat_gpt.common.output import OptionalOutput
from mini_chat_gpt.common.terminal import StepProgress, console

HERE = Path(__file__).parent.parent.parent

WORK = """
import sys, warnings
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.terminal import StepProgress, console

def main():
    out = console(optional=True)
    with StepProgress(out, "sft", 0, 3, every_seconds=0) as bar:
        for step in range(1, 4):
            bar.update(step, "loss 1.0 " + "x" * 5000)
            warnings.warn("a warning")
    open(sys.argv[1], "w").write("finished")
    flush_or_discard(sys.stdout)
    return 0

exit_with(main)
"""


def work(tmp_path: Path, shell: str) -> tuple[int, bool]:
    """Run WORK by a line of bash in which "$@" is its command; returns (exit code, whether it did all of its work)."""
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", WORK, str(tmp_path / "result")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, (tmp_path / "result").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux only")
@pytest.mark.parametrize(
    "shell",
    [
        'set -o pipefail; "$@" | true',
        '"$@" > /dev/full',
        '"$@" > /dev/full 2>&1',
        '"$@" 2> /dev/full',
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        'set -o pipefail; "$@" 2>&1 | true',
        'PYTHONUNBUFFERED=1 "$@" > /dev/full',
    ],
)
def test_work_with_optional_output_is_finished_whatever_becomes_of_its_output(tmp_path, shell):
    assert work(tmp_path, shell) == (0, True)


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path):
    code = (
        "import os, sys\n"
        "from mini_chat_gpt.common.entry import exit_with\n"
        "def main():\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        os.write(2, b'a message')\n"
        "        return file.fileno()\n"
        "exit_with(main)"
    )
    done = subprocess.run(["bash", "-c", '"$@" >&- 2>&- <&-', "bash", sys.executable, "-c", code], cwd=HERE)
    assert done.returncode > 2
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux only")
@pytest.mark.parametrize("flush", [False, True])
def test_a_command_whose_output_is_its_purpose_ends_with_a_sentence(flush):
    code = f"from mini_chat_gpt.common.entry import exit_with\nexit_with(lambda: print('text', flush={flush}) or 0)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: The output can't be written: no space left on device.\n")


class Failing(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "a terminal that has gone"), BrokenPipeError(), ValueError("I/O operation on closed file"),
     RuntimeError("reentrant call inside <_io.BufferedWriter>"), OSError(errno.ENOSPC, "full"), BlockingIOError()],
)  # fmt: skip
def test_a_display_in_a_terminal_survives_failing_writes(monkeypatch, error):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Failing(error))
    out = console(optional=True)
    with StepProgress(out, "sft", 0, 4) as bar:
        assert bar.live is not None
        bar.update(2, "loss 1.0")
        bar.live.refresh()
        out.print("a line")
        print("through rich's proxy")
        bar.update(4)


def test_output_to_a_full_disk_goes_on_when_there_is_room(monkeypatch):
    stream = Failing(OSError(errno.ENOSPC, "full"))
    monkeypatch.setattr(sys, "stdout", stream)
    out = console(optional=True)
    out.print("lost")
    stream.error = None
    out.print("written")
    assert stream.getvalue() == "written\n"


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    console(optional=True).print("Tom 😀")
    assert raw.getvalue() == b"Tom ?\n"


def test_a_missing_stream_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert not OptionalOutput("stdout").isatty()
    console(optional=True).print("nowhere")


def test_optional_output_is_printed_as_any_other(capsys):
    console(optional=True).print("a line")
    assert capsys.readouterr().out == "a line\n"

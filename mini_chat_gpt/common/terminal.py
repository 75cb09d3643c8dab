"""Terminal output that every command uses: the console, progress displays, and how times and sizes are written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple, TypeVar, cast

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.errors import LiveError
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.output import OptionalOutput
from mini_chat_gpt.common.text import visible

Item = TypeVar("Item")


def console(quiet: bool = False, optional: bool = False) -> Console:
    """The console that a command prints to. It does not highlight numbers by itself, and prints text in a notebook, too.

    optional    the work matters more than its output, as in training: what can't be printed is dropped
    """
    # In a notebook rich would display HTML and leave `file` empty.
    file = cast(IO[str], OptionalOutput("stdout")) if optional else None
    return Console(highlight=False, quiet=quiet, file=file, force_jupyter=False)


def print_line(out: Console, line: object) -> None:
    """Print a line as it is: no markup, control characters escaped, and wrapped in a terminal only."""
    out.print(visible(str(line)), markup=False, soft_wrap=not out.is_terminal)


def text_table(rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines. The first row has the heads; columns without one are on the left, as is the first. [] is a blank line."""
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(rows[0]):
        is_left = number == 0 or not head
        table.add_column(Text(head), justify="left" if is_left else "right", overflow="fold", header_style="dim")
    for row in rows[1:]:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def with_progress(items: Sequence[Item], title: str, out: Console | None) -> Iterator[Item]:
    """Yield the items, and show how many are done."""
    if out is None:
        yield from items
        return
    with StepProgress(out, title, 0, len(items)) as progress:
        for done, item in enumerate(items):
            if done % 500 == 499:
                progress.update(done)
            yield item


def format_size(n_bytes: float | None) -> str:
    """1230000000 → "1.23 GB", 45400000 → "45.4 MB", None → "unknown size"."""
    if n_bytes is None:
        return "unknown size"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.9995 * scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


def format_duration(seconds: float) -> str:
    """3725 → "1:02:05", 65 → "1:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class StatusItem(NamedTuple):
    """A value on display with the words around it, which are dimmed in a terminal."""

    prefix: str
    value: str
    suffix: str = ""

    def __str__(self) -> str:
        return self.prefix + self.value + self.suffix


class _State(NamedTuple):
    """What the display shows. It is replaced as a whole, because rich draws from another thread."""

    done: int
    items: list[StatusItem]
    seconds_left: float | None
    time: float  # when `seconds_left` was estimated


class StepProgress:
    """Progress over a known number of steps: a live display in a terminal, otherwise a line every few seconds.

    The display fits any width: the items stand below the bar, in as many lines as they need.

    keep    whether the display stays on the screen when it ends
    """

    def __init__(
        self,
        console: Console,
        title: str,
        done: int,
        total: int,
        every_seconds: float = 10.0,
        keep: bool = False,
    ) -> None:
        self.console, self.title, self.total, self.keep = console, title, total, keep
        self.first, self.start_time, self.every_seconds = done, time.monotonic(), every_seconds
        self.last_line_time = self.start_time
        self.ended = False
        self.state = _State(done, [], None, self.start_time)
        self.live: Live | None = None
        if console.is_interactive and console.file.isatty() and not console.quiet:  # TERM=dumb is not interactive
            self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> StepProgress:
        if self.live is not None:
            try:
                self.live.start()
            except LiveError:  # another display is active, and this version of rich supports only one
                self.live = None
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        if self.live is not None:
            self.live.stop()

    def update(self, done: int, status: str | Sequence[StatusItem] = "", fraction: float | None = None) -> None:
        """Show that `done` of `total` steps are finished.

        If steps differ in size, pass the finished `fraction` of the work for a better estimate of the time left.
        """
        now = time.monotonic()
        if fraction is None:
            fraction = (done - self.first) / max(1, self.total - self.first)
        seconds_left = (now - self.start_time) * (1 - fraction) / fraction if fraction else None
        items = [StatusItem("", status)] if isinstance(status, str) and status else list[StatusItem](status)  # type: ignore[arg-type]
        self.state = _State(done, items, seconds_left, now)
        if self.live is not None:
            self.live.transient = not self.keep
        elif now - self.last_line_time >= self.every_seconds or done == self.total:
            self.last_line_time = now
            parts = [f"{self.title} {done}/{self.total}", *map(str, items)]
            parts += [f"{format_duration(seconds_left)} left"] if seconds_left is not None else []
            self.console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        """The display at the console's current width."""
        state, width = self.state, self.console.width
        count = f"{state.done:,}/{self.total:,}"
        if self.ended:
            count += f"  in {format_duration(state.time - self.start_time)}"
        elif state.seconds_left is not None:
            count += f"  {format_duration(max(0.0, state.seconds_left - (time.monotonic() - state.time)))} left"
        bar_width = width - cell_len(self.title) - len(count) - 2
        if bar_width < 4:
            head: RenderableType = Text(f"{self.title} {count}", no_wrap=True, overflow="ellipsis")
        else:
            head = Table.grid(padding=(0, 1))
            bar = ProgressBar(max(1, self.total), state.done, width=min(bar_width, 60))
            head.add_row(Text(self.title), bar, count)
        return Group(head, *_wrap(state.items, width, "" if self.console.no_color else "dim"))


def _wrap(items: Sequence[StatusItem], width: int, style: str) -> list[Text]:
    """The items in as few lines as possible, of similar lengths. An item wider than a line is cut.

    `style` is the style of the words around the values.
    """
    lengths = [cell_len(str(item)) for item in items]
    line_numbers = _line_numbers(lengths, width)
    for narrower in range(width - 1, max(lengths, default=width), -1):
        if (candidate := _line_numbers(lengths, narrower))[-1] > line_numbers[-1]:
            break
        line_numbers = candidate
    lines = [Text(no_wrap=True, overflow="ellipsis") for _ in range(line_numbers[-1] + 1 if items else 0)]
    for item, number in zip(items, line_numbers, strict=True):
        lines[number].append("  " if len(lines[number]) else "")
        lines[number].append(item.prefix, style).append(item.value).append(item.suffix, style)
    return lines


def _line_numbers(lengths: Sequence[int], width: int) -> list[int]:
    """The line of each item. An item that does not fit into the current line starts a new one."""
    numbers: list[int] = []
    used = number = 0
    for length in lengths:
        if used and used + 2 + length > width:
            used, number = 0, number + 1
        used += length + (2 if used else 0)
        numbers.append(number)
    return numbers

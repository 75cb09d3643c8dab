"""Stop strings: texts that end a reply. Text that may be the beginning of one is held back until it is certain."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cut a text, which arrives in pieces, before the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is certain now. Nothing follows after a stop string (`found`)."""
        if self.found:
            return ""
        if not self._stops:
            return piece
        self._held += piece
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            certain, self._held = self._held[: min(starts)], ""
            return certain
        n = max(_overlap(self._held, stop) for stop in self._stops)
        certain, self._held = self._held[: len(self._held) - n], self._held[len(self._held) - n :]
        return certain

    def finish(self) -> str:
        """The rest, when the reply has ended otherwise."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop string, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

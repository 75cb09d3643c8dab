"""wandb: whether a run goes online, and a run of wandb that never ends the training.

Nothing is sent anywhere unless that is requested, and everything that is set about wandb is known and allows it.
"""

from __future__ import annotations

import configparser
import os
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.config import WandbSection

WandbMode = Literal["online", "offline", "disabled"]
_MODES: dict[str, WandbMode] = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled",
}  # fmt: skip
"""wandb's own values of WANDB_MODE, old ones included."""
_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")


OFFLINE = "wandb records in the run folder only; wandb.mode=online (after `wandb login`) shows the run live, `wandb sync` uploads it later."


class WandbRun:
    """A started wandb run. Neither `log` nor `finish` ever raises: a failure of wandb must not end the training."""

    def __init__(self, run: Any, console: Console) -> None:
        self._run, self._console = run, console

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at their optimizer step."""
        self._guarded(lambda: self._run.log(dict(metrics), step=step))

    def finish(self, failed: bool) -> None:
        """Finish the run; it can be resumed later."""
        self._guarded(lambda: self._run.finish(exit_code=1 if failed else 0))

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # wandb's own process was killed, its folder was deleted, …
            self._run = None
            self._console.print(
                f"wandb has failed ({type(error).__name__}); metrics are still written to metrics.jsonl.", markup=False
            )


def new_run_id() -> str:
    """A random id for a wandb run, in wandb's own format. It does not depend on any seed."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def start_wandb(
    section: WandbSection, folder: Path, settings: dict[str, Any], console: Console, run_id: str | None = None
) -> WandbRun | None:
    """Start or resume a wandb run; None if wandb is disabled or fails to start, in which case a message is printed.

    A resumed run keeps its id and logs by optimizer step, so its parts form one curve. wandb ignores steps that it has
    already: those that a killed process logged after its last checkpoint.
    """
    mode, note = choose_mode(section)
    if note:
        console.print(note, markup=False)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        with _environment(WANDB_MODE=mode):  # wandb does not start if it does not know the value
            import wandb  # here, because it takes a second

            run = wandb.init(
                mode=mode,
                project=section.project,
                name=section.name or folder.name,
                dir=str(folder),
                config=settings,
                allow_val_change=True,  # a resumed run may have other settings
                settings=wandb.Settings(init_timeout=20, silent=True, console="off"),
                id=run_id,
                resume="allow" if run_id else None,
            )
        return WandbRun(run, console)
    except Exception as error:  # whatever goes wrong in wandb, training must start
        console.print(
            f"wandb ({mode}) failed to start ({type(error).__name__}); using only metrics.jsonl.", markup=False
        )
        return None


# The mode


def choose_mode(section: WandbSection) -> tuple[WandbMode, str]:
    """The mode to use, and a sentence if nothing chose it, or something is set that is not known; then nothing is sent.

    "auto" means what is set for wandb itself (WANDB_MODE, `wandb offline`, …), else offline.
    """
    if not section.enabled:
        return "disabled", ""
    if section.mode != "auto":
        return section.mode, ""
    for source, value in _told():
        if value in _MODES:
            return _MODES[value], ""
        return "offline", f"wandb is offline, because {source} has the unknown value {short(value)}."
    return "offline", OFFLINE


def _told() -> Iterator[tuple[str, str]]:
    """(where, mode) of what the environment and wandb's settings files say, the strongest first. The mode may be unknown."""
    values = [("WANDB_DISABLED", "disabled", os.environ.get("WANDB_DISABLED", ""))]
    values += [("WANDB_MODE", "mode", os.environ.get("WANDB_MODE", ""))]
    for path in _settings_files():
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, configparser.Error) as error:
            values += [(str(path), "mode", type(error).__name__)]
        else:
            section = parser["default"] if parser.has_section("default") else {}
            values += [(str(path), name, section.get(name, "")) for name in ("disabled", "mode")]
    for where, name, value in values:
        value = value.strip().lower()
        if value and not (name == "disabled" and value in _FALSE):
            yield where, "disabled" if name == "disabled" and value in _TRUE else value


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    """Context with other environment variables."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _settings_files() -> Iterator[Path]:
    """The files that `wandb offline` and `wandb disabled` write: of the current folder, then of the user."""
    yield Path(os.environ.get("WANDB_DIR") or ".", "wandb", "settings")
    if folder := os.environ.get("WANDB_CONFIG_DIR"):
        yield Path(folder, "settings")
    elif home := _home():
        yield home / ".config" / "wandb" / "settings"


def _home() -> Path | None:
    """The user's home folder; None for a user without one, as in some containers."""
    try:
        return Path.home()
    except (RuntimeError, OSError):
        return None

"""Save the state of a run. A disk that refuses does not end training: the next save is tried, and the last one once more.

The folder of a run may be deleted while it runs. The next save makes it again, with the files that a resume needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mini_chat_gpt.checkpoints.find import ADAPTER_BASE, is_checkpoint, steps_of
from mini_chat_gpt.checkpoints.purpose import KEY as PURPOSE
from mini_chat_gpt.checkpoints.save import CheckpointWriter
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import Evaluation, Job, Progress
from mini_chat_gpt.training.monitor import Monitor, describe_error
from mini_chat_gpt.training.provenance import METADATA
from mini_chat_gpt.training.run_folder import RunLock, free_run_folder, is_locked
from mini_chat_gpt.training.train_step import TrainStep


class Saver:
    """Writes the checkpoints of a run into its folder. Every rank has one."""

    def __init__(
        self, folder: Path, keep: int, job: Job, engine: TrainStep, tokenizer: ChatTokenizer, monitor: Monitor
    ) -> None:
        self.job, self.engine, self.tokenizer, self.monitor, self.world = job, engine, tokenizer, monitor, engine.world
        # A sharded model is written by all ranks, in a thread. A process group of their own separates the messages
        # of these threads from those of training.
        writer_world = self.world.new_group() if engine.sharded else ALONE
        self.writer = CheckpointWriter(folder, keep, writer_world)
        self.snapshot_seconds: float | None = None  # what copying the state took, the last time
        self.lock: RunLock | None = None
        self.files: Mapping[str, str] = {}
        """The files that a resume needs besides a checkpoint, by name."""
        self._failure: UserError | None = None  # of the last save

    @property
    def folder(self) -> Path:
        return self.writer.run

    def save(self, progress: Progress, evaluation: Evaluation | None, replace: bool = False) -> None:
        """Copy the state of this step and start to write it as a checkpoint; old checkpoints are deleted afterwards.

        `evaluation` is that of the current weights, if there is one. An existing checkpoint of this step is only written
        again with `replace`. All ranks must call this together. Raises UserError if the weights are not finite.
        """
        name = f"step-{progress.step:07d}"
        self.wait()  # two copies of the state at a time could exceed the memory
        if self.world.is_main:
            self.restore_folder()
        # The step exists if the run was resumed from it and stopped before the next one.
        if not replace and self.world.broadcast(lambda: is_checkpoint(self.folder / name)):
            return
        started = time.monotonic()
        best_metric = self.job.phase.best_metric
        score = evaluation.score(best_metric) if evaluation else math.nan
        info = {
            "job": self.job.name,
            "step": progress.step,
            "trained_tokens": progress.trained_tokens,
            "val_loss": evaluation.losses.get("val_loss") if evaluation else None,
            "score": score if math.isfinite(score) else None,
            "best_metric": best_metric,
            PURPOSE: self.job.purpose.model_dump(),
        }
        # Training continues while a thread writes the copy.
        snapshot = self.engine.snapshot(self.tokenizer, info, asdict(progress))
        if self.world.sum([snapshot.has_nonfinite_weights()])[0]:
            raise UserError(
                f"The weights of step {progress.step} are not finite, so they are not saved and the run ends; lower "
                f"{self.job.name}.learning_rate, and {self._how_to_resume()}."
            )
        self.snapshot_seconds = time.monotonic() - started
        if self.world.is_main or self.engine.sharded:
            self.writer.write(name, snapshot, replace)

    def wait(self) -> None:
        """Wait for the write in progress. A failure is a message."""
        try:
            self.writer.wait()
        except UserError as error:
            self._failure = error
            self.monitor.message(f"A checkpoint can't be written ({describe_error(error)}); training continues.")

    def finish(self, save: Callable[[], None]) -> None:
        """Wait until the last state is on the disk, and call `save` once more if it is not.

        All ranks must call this together. Raises UserError if it can't be written.
        """
        self._failure = None
        self.wait()
        if not self.world.broadcast(lambda: self._failure is not None):
            return
        self._failure = None
        save()
        self.wait()
        if self._failure is not None:
            raise UserError(f"{self._failure} The run ends without its last state; then {self._how_to_resume()}")

    def _how_to_resume(self) -> str:
        if not steps_of(self.folder):
            return "start it again: no step of it is saved."
        last = steps_of(self.folder)[-1].name
        return f"this resumes it from {last}: {self.job.resume_command(self.folder)}"

    def restore_folder(self) -> None:
        """Make the run folder again if it has been deleted. If another run has its name by now, continue in a free one."""
        lock, folder = self.lock, self.folder
        if lock is not None and not lock.is_in_place():
            taken = is_locked(folder) or not self._is_missing_or(folder, METADATA)
            if taken and self.world.size > 1:
                raise UserError(f"Another run has taken the folder {folder}, so this run ends.")
            self.monitor.attempt(
                "Locking the run folder",
                lambda: lock.move(free_run_folder(folder, skip_files=True) if taken else folder),
            )
            if lock.folder != folder:
                self.writer.run = lock.folder
                self.monitor.move(lock.folder)
                what = "Another run has taken the folder" if folder.is_dir() else "Something else has the name"
                self.monitor.message(f"{what} {folder}; this run continues in {lock.folder}.")
        for name, text in self.files.items():
            if not (path := self.folder / name).exists():
                self.monitor.attempt(f"Writing {name}", partial(self._rewrite, path, text))

    def _rewrite(self, path: Path, text: str) -> None:
        atomic_write_text(path, text)
        self.monitor.message(f"{path} has been deleted; it is written again.")
        base = Path(self.engine.model.adapter.base) if self.engine.model.adapter is not None else None
        if base == (self.folder / ADAPTER_BASE).resolve() and not base.exists():
            self.monitor.message(f"{base}, the base of the adapter, has been deleted as well; a resume needs it.")

    def _is_missing_or(self, folder: Path, name: str) -> bool:
        """Whether the folder has no file `name`, or the one of this run."""
        try:
            return (folder / name).read_text(encoding="utf-8") == self.files.get(name)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):
            return False

"""Evaluation during training: losses on the validation set, scores of held-out tasks, and samples to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.job import Evaluation, Job, Metrics
from mini_chat_gpt.training.stop import Abandoned, StopRequest
from mini_chat_gpt.training.train_step import TrainStep

T = TypeVar("T")


class Validation:
    """Evaluates the model of a job. All ranks must call it together.

    An evaluation changes nothing, so it is abandoned on all ranks when a stop is requested: all methods raise Abandoned.
    """

    def __init__(self, job: Job, engine: TrainStep, stop: StopRequest | None = None) -> None:
        self.job, self.engine, self.world = job, engine, engine.world
        self.stop = stop or StopRequest(lambda _: None)
        self.timed = True  # whether the time limit applies

    def run(self) -> Evaluation:
        """Evaluate the averaged weights if an average is kept, otherwise the current ones."""
        with self.engine.averaged():
            if self.world.size > 1:
                return self._evaluate()
            with self.stop.abandonable(self.timed):
                return self._evaluate()

    def _evaluate(self) -> Evaluation:
        losses = self.losses()
        scores = self.scores()
        self._check()
        samples = self.samples()
        self._check()
        return Evaluation(losses, scores, samples)

    def _check(self) -> None:
        if self.timed:
            self.stop.check_time(0)
        self.stop.raise_if_requested(self.world)

    def _on_one_rank(self, call: Callable[[GPT], T], otherwise: T) -> T:
        """The result of `call`, or `otherwise` if a stop is requested: the other ranks, which wait, learn of it afterwards."""
        try:
            with self.stop.abandonable(self.timed):
                return call(self.engine.model.eval())
        except Abandoned:
            return otherwise

    def losses(self) -> Metrics:
        """Unweighted mean loss over tokens, overall and by kind. Every example counts once."""
        sums = self.engine.evaluate(self.job.validation, self._check)
        total, count = (sum(column) for column in zip(*sums.values(), strict=True))
        losses = {"val_loss": total / count}
        if len(sums) > 1:
            losses |= {f"val_loss/{kind}": total / count for kind, (total, count) in sums.items()}
        return losses

    def scores(self) -> Metrics:
        """The job's scores, the same on all ranks."""
        measure = self.job.measure
        if measure is None:
            return {}
        # A sharded model computes on all ranks together. Otherwise rank 0 computes the scores for all.
        if self.engine.sharded:
            return measure(self.engine.model.eval())
        return self.world.broadcast(lambda: self._on_one_rank(measure, {}))

    def samples(self) -> str:
        """The text that the job shows; empty on all ranks but rank 0."""
        show = self.job.show
        if show is None or not (self.world.is_main or self.engine.sharded):
            return ""
        if not self.engine.sharded:
            return self._on_one_rank(show, "")
        text = show(self.engine.model.eval())
        return text if self.world.is_main else ""

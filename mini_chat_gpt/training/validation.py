"""Evaluation during training: losses on the validation set, scores of held-out tasks, and samples to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.rank_failures import failed_together
from mini_chat_gpt.generation.decode import Model, for_inference
from mini_chat_gpt.training.job import Evaluation, Job, Metrics
from mini_chat_gpt.training.monitor import describe_error
from mini_chat_gpt.training.stop import Abandoned, StopRequest
from mini_chat_gpt.training.train_step import TrainStep

T = TypeVar("T")
Attempt = Callable[[str, Callable[[], Any]], Any]


class FailedAlone(BaseException):
    """This rank has an error, the cause, that not all ranks have. Not an Exception, so that it is not passed over."""


class Validation:
    """Evaluates the model of a job. All ranks must call it together.

    An evaluation changes nothing, so it is abandoned on all ranks when a stop is requested: all methods raise Abandoned.
    """

    def __init__(
        self,
        job: Job,
        engine: TrainStep,
        stop: StopRequest | None = None,
        attempt: Attempt = lambda _, call: call(),
    ) -> None:
        """`attempt` calls what training does not need, see `Monitor.attempt`: everything but the losses."""
        self.job, self.engine, self.world, self.attempt = job, engine, engine.world, attempt
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

    def model(self) -> Model:
        """The model, ready to reply in the precision of the run. On a CPU replies are always computed in float32."""
        model = self.engine.model.eval()
        return model if model.device.type == "cpu" else for_inference(model, precision=self.engine.precision)

    def _on_one_rank(self, call: Callable[[], T], otherwise: T) -> T:
        """The result of `call`, or `otherwise` if a stop is requested: the other ranks, which wait, learn of it afterwards."""
        try:
            with self.stop.abandonable(self.timed):
                return call()
        except Abandoned:
            return otherwise

    def _attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """`attempt`, but an error that one rank of a sharded model has alone ends the run: the others wait for this rank.

        Raises UserError then.
        """

        def checked() -> T:
            try:
                return call()
            except Exception as error:
                if not self.engine.sharded or failed_together():
                    raise
                raise FailedAlone from error

        try:
            return self.attempt(what, checked)
        except FailedAlone as alone:
            reason = describe_error(alone.__cause__ or alone)
            raise UserError(
                f"{what} failed on process {self.world.rank} alone ({reason}), and the other processes wait for it; "
                "resume the run from its last checkpoint."
            ) from alone

    def losses(self) -> Metrics:
        """Unweighted mean loss over tokens, overall and by kind. Every example counts once."""
        sums = self.engine.evaluate(self.job.validation, self._check)
        total, count = (sum(column) for column in zip(*sums.values(), strict=True))
        losses = {"val_loss": total / count}
        if len(sums) > 1:
            losses |= {f"val_loss/{kind}": total / count for kind, (total, count) in sums.items()}
        return losses

    def scores(self) -> Metrics:
        """The job's scores, the same on all ranks; none if they can't be computed."""
        measure = self.job.measure
        if measure is None:
            return {}

        def compute() -> Metrics:
            return self._attempt("Scoring the eval tasks", lambda: measure(self.model())) or {}

        # A sharded model computes on all ranks together. Otherwise rank 0 computes the scores for all.
        return compute() if self.engine.sharded else self.world.broadcast(lambda: self._on_one_rank(compute, {}))

    def samples(self) -> str:
        """The text that the job shows; empty on all ranks but rank 0, and if it can't be generated."""
        show = self.job.show
        if show is None or not (self.world.is_main or self.engine.sharded):
            return ""

        def generate() -> str:
            return self._attempt("Generating samples", lambda: show(self.model())) or ""

        text = generate() if self.engine.sharded else self._on_one_rank(generate, "")
        return text if self.world.is_main else ""

"""Evaluation during training: losses on the validation set, scores of held-out tasks, and samples to read."""

from __future__ import annotations

from mini_chat_gpt.training.job import Evaluation, Job, Metrics
from mini_chat_gpt.training.train_step import TrainStep


class Validation:
    """Evaluates the model of a job. All ranks must call it together."""

    def __init__(self, job: Job, engine: TrainStep) -> None:
        self.job, self.engine, self.world = job, engine, engine.world

    def run(self) -> Evaluation:
        """Evaluate the averaged weights if an average is kept, otherwise the current ones."""
        with self.engine.averaged():
            return Evaluation(self.losses(), self.scores(), self.samples())

    def losses(self) -> Metrics:
        """Unweighted mean loss over tokens, overall and by kind. Every example counts once."""
        sums = self.engine.evaluate(self.job.validation)
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
        model = self.engine.model.eval()
        # A sharded model computes on all ranks together. Otherwise rank 0 computes the scores for all.
        return measure(model) if self.engine.sharded else self.world.broadcast(lambda: measure(model))

    def samples(self) -> str:
        """The text that the job shows; empty on all ranks but rank 0."""
        if self.job.show is None or not (self.world.is_main or self.engine.sharded):
            return ""
        text = self.job.show(self.engine.model.eval())
        return text if self.world.is_main else ""

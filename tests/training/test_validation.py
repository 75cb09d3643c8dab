"""An evaluation has the losses by kind, scores and samples; evaluations are ranked by one metric."""

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny import CountingDataset, tiny_config, tiny_model

from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.training.job import Evaluation, Job
from mini_chat_gpt.training.monitor import Monitor
from mini_chat_gpt.training.stop import Abandoned, StopRequest
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.validation import Validation

DATASET = CountingDataset()


def make_validation(examples=tuple(DATASET[i] for i in range(7)), show=None, measure=None, ema=None) -> Validation:
    config = tiny_config(training={"batch_size": 2, "ema": ema}, sft={"learning_rate": 0.1})
    engine = TrainStep(tiny_model(64), config, config.sft, pick_precision(False, torch.device("cpu")))
    return Validation(Job("sft", config.sft, DATASET, examples, show=show, measure=measure), engine)


def test_losses_are_means_over_tokens_overall_and_by_kind():
    validation = make_validation()
    sums = validation.engine.evaluate(validation.job.validation)
    losses = validation.losses()
    assert set(losses) == {"val_loss", "val_loss/a", "val_loss/b"}
    assert losses["val_loss/a"] == sums["a"][0] / sums["a"][1]
    n_tokens = sum(count for _, count in sums.values())
    weighted = sum(losses[f"val_loss/{kind}"] * count for kind, (_, count) in sums.items())
    assert losses["val_loss"] == pytest.approx(weighted / n_tokens)


def test_a_single_kind_has_no_loss_of_its_own():
    examples = [replace(example, kind="a") for example in (DATASET[0], DATASET[1])]
    assert set(make_validation(examples).losses()) == {"val_loss"}


def test_the_averaged_weights_are_evaluated():
    weights = []
    validation = make_validation(
        ema=0.9, show=lambda model: weights.append(model.lm_head.weight.detach().clone()) or "text"
    )
    validation.engine.train_step(validation.job.validation)
    evaluation = validation.run()
    assert evaluation.samples == "text"
    assert torch.equal(weights[0], validation.engine.average.averages["embed_tokens.weight"])
    assert not torch.equal(weights[0], validation.engine.model.lm_head.weight)
    assert evaluation.losses != validation.losses()


def test_only_rank_zero_generates_samples():
    validation = make_validation(show=lambda model: "text")
    assert validation.samples() == "text"
    validation.world = World(rank=1, size=2)
    assert validation.samples() == ""


def test_without_tasks_there_are_no_scores():
    assert make_validation().scores() == {}
    assert make_validation(measure=lambda model: {"eval/moral/exact": 0.5}).scores() == {"eval/moral/exact": 0.5}


def test_evaluations_are_ranked_by_a_score_or_the_loss_and_non_finite_values_are_last():
    evaluation = Evaluation({"val_loss": 2.0, "val_loss/why": 1.5}, {"eval/moral/exact": 0.5})
    assert evaluation.rank_key("val_loss") == [-2.0, -2.0]
    assert evaluation.rank_key("val_loss/why") == [-1.5, -2.0]
    assert evaluation.rank_key("eval/moral/exact") == [0.5, -2.0]
    assert Evaluation({"val_loss": math.nan}).rank_key("val_loss") == [-math.inf, -math.inf]


def fail(*_):
    raise RuntimeError("CUDA out of memory")


def test_samples_and_scores_that_fail_do_not_fail_the_evaluation(tmp_path):
    monitor = Monitor(tmp_path, tiny_config().wandb, {}, Console(record=True, file=io.StringIO(), width=200))
    validation = make_validation(show=fail, measure=fail)
    validation.attempt = monitor.attempt
    evaluation = validation.run()
    assert evaluation.losses["val_loss"] > 0
    assert (evaluation.scores, evaluation.samples) == ({}, "")
    assert monitor.console.export_text().splitlines() == [
        "Scoring the eval tasks failed (RuntimeError: CUDA out of memory); training is not affected.",
        "Generating samples failed (RuntimeError: CUDA out of memory); training is not affected.",
    ]


def test_an_evaluation_whose_scores_failed_ranks_last_by_them():
    failed, scored = Evaluation({"val_loss": 1.0}), Evaluation({"val_loss": 2.0}, {"eval/moral/exact": 0.0})
    assert math.isnan(failed.score("eval/moral/exact"))
    assert failed.rank_key("eval/moral/exact") < scored.rank_key("eval/moral/exact")


@pytest.mark.parametrize(("setting", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_samples_and_scores_on_another_device_have_the_precision_of_the_run(setting, dtype):
    validation = make_validation(show=lambda model: repr(model.precision.dtype), measure=lambda model: {"m": 1.0})
    validation.engine.precision = pick_precision(setting, torch.device("cpu"))
    validation.engine.model.to("meta")  # a device that every machine has
    assert validation.samples() == repr(dtype)


def test_samples_are_in_float32_where_the_run_is_and_on_a_cpu(monkeypatch):
    for device, precision in (("meta", False), ("cpu", "bf16")):
        validation = make_validation(show=lambda model: type(model).__name__)
        validation.engine.precision = pick_precision(precision, torch.device("cpu"))
        validation.engine.model.to(device)
        assert validation.samples() == "GPT"


def test_a_signal_ends_an_evaluation_at_once():
    validation = make_validation()
    validation.stop = StopRequest(lambda _: None)

    def interrupted() -> dict[str, float]:
        validation.stop.request("SIGTERM", "stop")
        validation.stop.raise_if_requested()
        return pytest.fail("the evaluation continues")

    validation.losses = interrupted
    with pytest.raises(Abandoned):
        validation.run()
    with pytest.raises(Abandoned):  # before it begins
        make = make_validation()
        make.stop = validation.stop
        make.losses = lambda: pytest.fail("an evaluation begins after the signal")
        make.run()

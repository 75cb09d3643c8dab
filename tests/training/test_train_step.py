"""One step is a true mean over tokens; a non-finite step changes nothing; float16 finds a loss scale that works."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny import CountingDataset, tiny_config, tiny_model
from torch.nn.parallel import DistributedDataParallel

from mini_chat_gpt.common.device import Precision, pick_precision
from mini_chat_gpt.common.distributed import World
from mini_chat_gpt.data.batching import micro_batches
from mini_chat_gpt.lora import LoraSettings, add_lora
from mini_chat_gpt.training.train_step import LossScale, TrainStep

CPU = torch.device("cpu")
EXAMPLES = [CountingDataset()[i] for i in range(8)]


def make_engine(precision=None, **training) -> TrainStep:
    config = tiny_config(training={"batch_size": 4} | training, sft={"learning_rate": 1e-2})
    return TrainStep(tiny_model(64), config, config.sft, precision or pick_precision(False, CPU))


def gradients(engine: TrainStep, examples=EXAMPLES) -> dict[str, torch.Tensor]:
    loss = engine.train_step(examples, update=False).loss
    return {name: p.grad.clone() for name, p in engine.model.named_parameters()} | {"loss": torch.tensor(loss)}


@pytest.mark.parametrize("cut", [{"batch_size": 3}, {"batch_size": 1}, {"batch_size": 8, "batch_tokens": 25}])
def test_the_size_of_a_micro_batch_changes_neither_loss_nor_gradient(cut):
    whole, parts = (gradients(make_engine(grad_clip=0.0, **size)) for size in ({"batch_size": 8}, cut))
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, parts[name], rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_weighted_mean_over_tokens_computed_plainly():
    engine = make_engine(batch_size=3)
    top = bottom = 0.0
    for example in EXAMPLES:
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(engine.model(ids[None])[0, :-1], ids[1:], reduction="none")
        trained = torch.from_numpy(example.loss_mask[1:])
        top += example.weight * losses[trained].sum().item()
        bottom += example.weight * int(trained.sum())
    report = engine.train_step(EXAMPLES)
    assert report.weight == pytest.approx(bottom)
    assert report.loss == pytest.approx(top / bottom, rel=1e-5)
    assert report.tokens == sum(len(example.ids) for example in EXAMPLES)
    assert report.trained_tokens == sum(example.n_trained for example in EXAMPLES)
    assert report.outcome == "updated"


def test_evaluation_counts_every_example_once_and_by_kind():
    engine = make_engine()
    examples = [CountingDataset()[i] for i in range(37)]
    expected = {"a": [0.0, 0], "b": [0.0, 0]}
    for example in examples:
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(engine.model(ids[None])[0, :-1], ids[1:], reduction="none")
        trained = torch.from_numpy(example.loss_mask[1:])
        expected[example.kind][0] += each[trained].sum().item()
        expected[example.kind][1] += int(trained.sum())
    for kind, (total, count) in engine.evaluate(examples).items():
        assert total == pytest.approx(expected[kind][0], rel=1e-5)
        assert count == expected[kind][1]


def test_an_evaluation_is_without_dropout_and_the_next_step_with_it():
    engine = make_engine()
    model = engine.model
    add_lora(model, LoraSettings(dropout=0.5))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.5)
    first = [engine.train_step(EXAMPLES, step=step, update=False).loss for step in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    assert engine.evaluate(EXAMPLES) == engine.evaluate(EXAMPLES)
    assert [engine.train_step(EXAMPLES, step=step, update=False).loss for step in (0, 1, 0)] == first


def poisoned(weight: float) -> list:
    return [replace(EXAMPLES[0], weight=np.full(len(EXAMPLES[0].ids), weight, dtype=np.float32)), *EXAMPLES[1:]]


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_non_finite_step_changes_nothing(weight):
    engine = make_engine(ema=0.9)
    engine.train_step(EXAMPLES)
    before = [p.detach().clone() for p in engine.model.parameters()]
    moments = {name: value.clone() for name, value in engine.optimizer.state_tensors().items()}
    report = engine.train_step(poisoned(weight))
    assert report.outcome == "non-finite"
    assert report.local_nonfinite
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))
    assert all(torch.equal(value, moments[name]) for name, value in engine.optimizer.state_tensors().items())
    assert engine.average.steps == 1
    assert all(p.grad is None for p in engine.model.parameters())


def test_the_loss_scale_halves_on_overflow_and_doubles_after_two_thousand_finite_steps():
    scale = LossScale(value=8.0)
    scale.back_off()
    assert scale.value == 4
    for _ in range(1999):
        scale.count_finite_step()
    assert scale.value == 4
    scale.count_finite_step()
    assert scale.value == 8


def test_a_float16_overflow_halves_the_loss_scale_and_is_not_a_non_finite_step():
    engine = make_engine(Precision(torch.float16, "for the test"))
    engine.loss_scale.value = 2.0**40
    before = [p.detach().clone() for p in engine.model.parameters()]
    outcomes = []
    while not outcomes or outcomes[-1] != "updated":
        report = engine.train_step(EXAMPLES)
        outcomes.append(report.outcome)
        if report.outcome == "overflow":
            assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))
    assert "non-finite" not in outcomes
    assert len(outcomes) > 3
    assert engine.loss_scale.value < 2.0**38


def test_the_loss_scale_does_not_change_the_gradient():
    plain = gradients(make_engine(grad_clip=0.0))
    engine = make_engine(grad_clip=0.0)
    engine.loss_scale = LossScale(2.0**10)
    for name, gradient in gradients(engine).items():
        assert torch.equal(gradient, plain[name])


def test_random_numbers_of_a_step_depend_on_its_number_only():
    draws = []
    for history in ([3], [1, 2, 3]):
        engine = make_engine()
        for number in history:
            engine.train_step(EXAMPLES, step=number)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]


def test_gradients_are_exchanged_between_ranks_once_per_step(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        engine = make_engine(batch_size=2, grad_clip=0.0)
        plain = gradients(engine)
        engine.net, exchanges = DistributedDataParallel(engine.model), []

        def count(_state, bucket):
            exchanges.append(bucket.index())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        engine.net.register_comm_hook(None, count)
        engine.optimizer.zero_grad()
        for name, gradient in gradients(engine).items():
            torch.testing.assert_close(gradient, plain[name])
        assert len(micro_batches(EXAMPLES, 2)) == 4
        assert exchanges == sorted(set(exchanges))  # every bucket once
    finally:
        dist.destroy_process_group()


# Steps without weight


class WithAnotherRank(World):
    """A world in which another rank has the same number of micro-batches and these sums [Σ w, tokens, supervised tokens]."""

    sums = (0.0, 10.0, 5.0)

    def sum(self, values):
        return [own + other for own, other in zip(values, self.sums, strict=True)]


def weightless(n: int = 4) -> list:
    return [replace(CountingDataset()[index], weight=0.0) for index in range(n)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_weight_is_empty_and_changes_nothing(optimizer):
    engine = make_engine(optimizer=optimizer, weight_decay=0.1, ema=0.9)
    engine.train_step([CountingDataset()[index] for index in range(4)])  # so that there are moments
    before = [parameter.detach().clone() for parameter in engine.model.parameters()]
    report = engine.train_step(weightless(), stop=2)
    assert (report.outcome, report.weight, report.loss, report.stop) == ("empty", 0.0, 0.0, 2)
    assert report.tokens == sum(len(example.ids) for example in weightless())
    assert report.trained_tokens == sum(example.n_trained for example in weightless())
    assert all(torch.equal(p, q) for p, q in zip(engine.model.parameters(), before, strict=True))
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in engine.model.parameters())
    assert engine.average.steps == 1


@pytest.mark.parametrize(("weight", "outcome"), [(0.0, "empty"), (7.0, "updated")])
def test_a_rank_whose_share_has_no_weight_follows_the_sum_over_all_ranks(weight, outcome):
    engine = make_engine()
    engine.world = WithAnotherRank()
    object.__setattr__(engine.world, "sums", (weight, 10.0, 5.0))
    report = engine.train_step(weightless())
    assert (report.outcome, report.weight, report.loss) == (outcome, weight, 0.0)
    assert math.isfinite(report.norm)


def test_the_first_loss_scale_is_that_of_pytorch():
    assert LossScale().value == torch.amp.GradScaler("cpu").get_scale() == 65536

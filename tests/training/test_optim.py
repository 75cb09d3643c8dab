"""Schedules are pure functions, weight decay applies to matrices only, the state can be restored exactly."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.config import GPTConfig, SFTSection, TrainingSection
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.adamw import AdamW
from mini_chat_gpt.training.optim import Optimizer, WeightAverage, clip_gradients, is_block_matrix, lr_fraction

CONFIG = GPTConfig(vocab_size=50, n_layer=2, n_head=2, n_embd=16, context_length=16)


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(["cosine", "linear", "constant", "wsd"]))
def test_a_schedule_rises_to_the_peak_and_never_leaves_its_bounds(total, warmup, schedule):
    values = [lr_fraction(step, total, warmup, schedule, 0.1) for step in range(total)]
    rise = warmup if warmup < total else total // 10
    assert all(0 < value <= 1 for value in values)
    assert values[:rise] == sorted(values[:rise])
    assert values[rise:] == sorted(values[rise:], reverse=True)
    assert values[rise] == 1


def test_schedules_have_their_textbook_values():
    assert lr_fraction(50, 100, 0, "cosine", 0.0) == pytest.approx(0.5)
    assert lr_fraction(25, 100, 0, "linear", 0.0) == pytest.approx(0.75)
    assert lr_fraction(79, 100, 0, "wsd", 0.0) == 1
    assert lr_fraction(90, 100, 0, "wsd", 0.0) == pytest.approx(0.5)
    assert lr_fraction(40, 100, 0, "wsd", 0.0, decay=0.6) == 1
    assert lr_fraction(70, 100, 0, "wsd", 0.0, decay=0.6) == pytest.approx(0.5)


def build(optimizer: str, **changes) -> tuple[GPT, Optimizer]:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    return model, Optimizer(model, TrainingSection(optimizer=optimizer, **changes), SFTSection(learning_rate=0.01))


def train(model: GPT, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step(1.0)


def test_adamw_equals_pytorchs():
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))) for i in range(2)]
        for _ in range(2)
    )
    optimizer = AdamW([{"params": ours, "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.95))
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 + step))
            other.grad = one.grad.clone()
        optimizer.step(), reference.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(value, reference.state[other][name]) for name, value in optimizer.state[one].items())


def test_creating_an_optimizer_does_not_import_pytorchs_compiler():
    code = (
        "import sys, torch; from mini_chat_gpt.model import GPT; from mini_chat_gpt.config import GPTConfig, SFTSection, TrainingSection;"
        "from mini_chat_gpt.training.optim import Optimizer;"
        "model = GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=1, n_embd=8, context_length=8));"
        "model(torch.zeros(1, 2, dtype=torch.long)).sum().backward();"
        "Optimizer(model, TrainingSection(optimizer='muon'), SFTSection()).step(1.0); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_new_optimizer_with_restored_state_continues_exactly(kind):
    model, optimizer = build(kind)
    train(model, optimizer, range(3))
    saved_model = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    train(model, optimizer, range(3, 6))
    again, its_optimizer = build(kind)
    again.load_state_dict(saved_model)
    its_optimizer.load_state_tensors(saved)
    train(again, its_optimizer, range(3, 6))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_and_not_vectors(kind):
    model, optimizer = build(kind, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.dim() < 2), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_can_have_its_own_weight_decay(kind):
    model, optimizer = build(kind, weight_decay=0.0)
    matrix, vector = model.layers[0].self_attn.q_proj.weight, model.norm.weight

    def size_after(*arguments) -> float:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(1.0, *arguments)
        return matrix.norm().item()

    before = matrix.norm().item()
    assert size_after() == before
    decayed = size_after(0.5)
    assert decayed == pytest.approx(before * (1 - 0.5 * optimizer.optimizers[-1].param_groups[0]["lr"]))
    assert size_after() == decayed  # that step only
    assert torch.equal(vector, torch.ones_like(vector))


def test_muon_updates_the_matrices_of_blocks_and_nothing_else():
    model, optimizer = build("muon")
    by_muon = {id(p) for group in optimizer.optimizers[1].param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_muon) == is_block_matrix(name, parameter)
    assert not is_block_matrix("embed_tokens.weight", model.embed_tokens.weight)


def test_every_parameter_is_updated_by_exactly_one_optimizer():
    model, optimizer = build("muon")
    owned = [id(p) for part in optimizer.optimizers for group in part.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_clipping_scales_the_total_norm_and_returns_the_norm_before():
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.full((3,), 2.0)
    assert clip_gradients(weights, 1.0).item() == pytest.approx(24**0.5)
    assert torch.stack([w.grad.norm() for w in weights]).norm().item() == pytest.approx(1.0, rel=1e-4)
    weights[0].grad = torch.full((3,), 2.0)
    clip_gradients(weights, 0.0)
    assert torch.equal(weights[0].grad, torch.full((3,), 2.0))


# The moving average of weights


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.averages["weight"], expected)


def test_the_model_gets_its_own_weights_back_exactly():
    model = torch.nn.Linear(8, 8)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.add_(torch.randn(8, 8))
    average.update()
    before, averaged = model.weight.detach().clone(), average.averages["weight"].clone()
    with average.applied():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, before)
    assert torch.equal(average.averages["weight"], averaged)


def test_a_warm_up_rises_in_equal_parts_to_the_peak():
    values = [lr_fraction(step, 100, 4, "constant", 0.0) for step in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])

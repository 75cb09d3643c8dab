"""Schedules as pure functions, decay on matrices only, state that can be put back exactly."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.config import GPTConfig, SFTSection, TrainingSection
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.optim import (
    AdamW,
    Muon,
    Optimizer,
    clip_gradients,
    is_block_matrix,
    lr_fraction,
    orthogonalize,
)

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


def test_adamw_is_pytorchs():
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))) for i in range(2)]
        for _ in range(2)
    )
    mine = AdamW([{"params": ours, "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.95))
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 + step))
            other.grad = one.grad.clone()
        mine.step(), reference.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(value, reference.state[other][name]) for name, value in mine.state[one].items())


def test_making_an_optimizer_does_not_import_pytorchs_compiler():
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
def test_state_put_back_into_a_new_optimizer_continues_exactly(kind):
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
def test_weight_decay_shrinks_matrices_and_leaves_vectors(kind):
    model, optimizer = build(kind, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.dim() < 2), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_can_have_a_weight_decay_of_its_own(kind):
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
    assert decayed == pytest.approx(before * (1 - 0.5 * optimizer.members[-1].param_groups[0]["lr"]))
    assert size_after() == decayed  # only that step
    assert torch.equal(vector, torch.ones_like(vector))


def test_muon_takes_the_matrices_of_blocks_and_nothing_else():
    model, optimizer = build("muon")
    by_muon = {id(p) for group in optimizer.members[1].param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_muon) == is_block_matrix(name, parameter)
    assert not is_block_matrix("embed_tokens.weight", model.embed_tokens.weight)


def test_every_parameter_is_updated_by_exactly_one_member():
    model, optimizer = build("muon")
    owned = [id(p) for member in optimizer.members for group in member.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_clipping_scales_the_joint_norm_and_reports_the_norm_before():
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.full((3,), 2.0)
    assert clip_gradients(weights, 1.0).item() == pytest.approx(24**0.5)
    assert torch.stack([w.grad.norm() for w in weights]).norm().item() == pytest.approx(1.0, rel=1e-4)
    weights[0].grad = torch.full((3,), 2.0)
    clip_gradients(weights, 0.0)
    assert torch.equal(weights[0].grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("stack_elements", [2**23, 200])
def test_muon_equals_pytorchs(monkeypatch, stack_elements):
    monkeypatch.setattr("mini_chat_gpt.training.optim.STACK_ELEMENTS", stack_elements)
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 20), (20, 8), (8, 8), (5, 7)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizers = [
        Muon([{"params": ours}], lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)  # the iteration runs in bfloat16 in both


def test_an_orthogonalized_update_moves_every_direction_alike():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 16, 40)).float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_matrix_without_gradient_stays_as_it_is():
    still, moved = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.eye(4)
    Muon([{"params": [still, moved]}], lr=0.1).step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))

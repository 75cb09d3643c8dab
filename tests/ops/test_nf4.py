"""4-bit weights: the paper's values, errors within its bounds, and products that keep only 4 bits per weight."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mini_chat_gpt.ops import nf4
from mini_chat_gpt.ops.nf4 import Nf4Linear, Nf4Weight, block_absmax, codes, dequantize, quantize

# As printed in appendix E of arXiv:2305.14314.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
CODES = torch.tensor(PUBLISHED)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(n_in: int, n_out: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    layer.weight.data = 0.02 * normal(n_out, n_in)
    if bias:
        layer.bias.data = normal(n_out, seed=1)
    return layer


def in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """(blocks, 64) float32, the last block padded with zeros."""
    flat = weight.flatten().float()
    return F.pad(flat, (0, -len(flat) % 64)).view(-1, 64)


def dequantized(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return dequantize(quantize(weight), tuple(weight.shape), dtype)


def test_the_16_values_equal_the_papers():
    torch.testing.assert_close(torch.tensor(codes()), CODES, rtol=0, atol=5e-7)


@st.composite
def matrices(draw) -> torch.Tensor:
    """Normal weights of any size and scale; some blocks are zero, far smaller or far larger than the rest."""
    n_out, n_in = draw(st.integers(1, 300)), draw(st.integers(1, 150))
    weight = normal(n_out, n_in, seed=draw(st.integers(0, 99)))
    flat = weight.view(-1)
    for start in draw(st.lists(st.integers(0, len(flat) - 1), max_size=4)):
        flat[start : start + draw(st.integers(1, 130))] *= draw(st.sampled_from([0.0, 1e-30, 1e-3, 30.0, 1e6]))
    return (weight * draw(st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e30, 1e38]))).clamp(-3e38, 3e38)


@settings(deadline=None, max_examples=60)
@given(matrices())
def test_the_error_of_a_weight_is_at_most_half_the_distance_of_two_values(weight):
    blocks, result = in_blocks(weight).double(), in_blocks(dequantized(weight)).double()
    absmax = blocks.abs().amax(1, keepdim=True)
    normalized = blocks / absmax.where(absmax > 0, 1)
    upper = torch.bucketize(normalized, CODES.double()).clamp(1, 15)
    half_way = (CODES[upper] - CODES[upper - 1]).double() / 2
    # Half of a float8's last bit is a sixteenth of it, or, next to 0, 2^-10 of a scale, which is 2^-126 or more.
    difference = absmax - absmax.mean()
    groups = F.pad(difference[:, 0], (0, -len(difference) % 256)).view(-1, 256)
    largest = groups.abs().amax(1, keepdim=True).expand_as(groups).reshape(-1)[: len(difference), None]
    of_absmax = difference.abs() / 16 + (largest / 448).clamp_min(2.0**-126) / 2**10 + 1e-6 * (absmax + absmax.mean())
    bound = half_way * absmax + CODES[upper].abs().maximum(CODES[upper - 1].abs()) * of_absmax
    assert (result - blocks).abs().le(bound).all()
    assert result[blocks == 0].eq(0).all()


def test_weights_that_are_multiples_of_the_values_are_exact():
    absmax = 0.0371
    weight = (CODES.repeat(4 * 6) * absmax)[torch.randperm(384)].view(6, 64)
    weight[:, 0] = absmax  # so that each block has it
    torch.testing.assert_close(dequantized(weight), weight, rtol=3e-6, atol=0)
    assert torch.equal(quantize(dequantized(weight)).indices, quantize(weight).indices)


def test_the_absmax_of_equal_blocks_is_exact():
    weight = torch.where(normal(300, 64) > 0, 0.3, -0.3)
    assert torch.equal(dequantized(weight), weight)
    assert not quantize(weight).absmax.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_precisions_are_rounded_from_the_same_matrix(dtype):
    weight = 0.02 * normal(80, 100)
    assert torch.equal(dequantized(weight, dtype), dequantized(weight).to(dtype))
    assert torch.equal(dequantized(weight.to(dtype).float()), dequantized(weight.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantizing_in_chunks_equals_quantizing_at_once(monkeypatch, dtype):
    weight = normal(70, 90)
    whole, whole_dequantized = quantize(weight), dequantized(weight, dtype)
    monkeypatch.setattr(nf4, "CPU_CHUNK", 1024)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(quantize(weight), whole, strict=True))
    assert torch.equal(dequantized(weight, dtype), whole_dequantized)


def test_every_float8_is_decoded_as_by_pytorch():
    bits = torch.tensor([b for b in range(256) if b & 0x7F != 0x7F], dtype=torch.uint8)  # without the two NaN
    parts = quantize(normal(1, 64))._replace(absmax=bits, scales=torch.tensor([500.0, 0.7]).view(torch.int32))
    torch.testing.assert_close(block_absmax(parts), 500 + 0.7 * bits.view(torch.float8_e4m3fn).float())


def test_no_absmax_is_negative():
    least = []
    for seed in range(10):
        weight = normal(40, 64, seed=seed)
        weight[3] = 0  # its difference from the mean is rounded up or down
        weight[4] *= 10
        least.append(float(block_absmax(quantize(weight)).min()))
    assert min(least) == 0 < max(least)


def test_stored_bytes():
    assert quantize(normal(256, 256)).nbytes * 8 / 256**2 == 4 + 8 / 64 + 32 / (64 * 256) + 32 / 256**2
    assert quantize(normal(3, 43)).nbytes == 3 * 32 + 3 + 4 + 4  # three blocks, a group, the mean
    assert all(
        part.nbytes == part.untyped_storage().nbytes() for part in quantize(normal(3, 43))
    )  # not views of larger tensors
    layer = Nf4Linear.of(linear(768, 512))
    table = layer.pairs.nbytes
    assert (sum(part.nbytes for part in layer.buffers()) - table) * 8 / (768 * 512) == pytest.approx(4.127, abs=5e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16, "autocast"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(50,), (7, 50), (2, 3, 50)])
def test_value_and_gradient_equal_a_plain_layers(precision, bias, shape):
    layer, autocast = Nf4Linear.of(linear(50, 30, bias)), precision == "autocast"
    dtype = torch.float32 if autocast else precision
    x, expected_x = (normal(*shape, seed=2).to(dtype).requires_grad_() for _ in range(2))
    weight = layer.weight if autocast else layer.weight.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
        expected = F.linear(expected_x, weight, layer.bias if autocast or not bias else layer.bias.to(dtype))
    assert y.dtype == expected.dtype == (torch.bfloat16 if autocast else precision)
    rounding = {"rtol": 2e-2, "atol": 2e-2} if y.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(y, expected, **rounding)
    (y.to(dtype) * normal(*y.shape, seed=3).to(dtype)).sum().backward()
    (expected.to(dtype) * normal(*y.shape, seed=3).to(dtype)).sum().backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, expected_x.grad, **rounding)


class Allocations(TorchDispatchMode):
    """Records allocations without keeping them alive; `known` tensors existed before."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.data_ptr() for tensor in known}
        self.storages: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.storages.append((StorageWeakRef(storage), storage.nbytes()))
        return out

    def alive(self) -> int:
        """Bytes that still exist."""
        return sum({storage.cdata: size for storage, size in self.storages if not storage.expired()}.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_only_the_result_outlives_the_forward_pass(autocast):
    layer, leaf = Nf4Linear.of(linear(256, 192)), normal(40, 256).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), Allocations(leaf, *layer.parts) as allocations:
        x = leaf * 2
        y = layer(x)
        held = allocations.alive()
        del x
    assert held > allocations.alive() == y.nbytes
    y.float().sum().backward()
    assert leaf.grad is not None


def saved_by(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    return saved


def test_the_backward_pass_saves_only_the_layers_own_parts():
    layer = Nf4Linear.of(linear(256, 192))
    saved = saved_by(layer, normal(40, 256).requires_grad_())
    assert {tensor.data_ptr() for tensor in saved} == {part.data_ptr() for part in layer.parts}
    assert saved_by(layer, normal(40, 256)) == []  # without a gradient nothing is saved


def test_a_compiled_layer_computes_the_same_and_saves_no_more():
    layer = Nf4Linear.of(linear(256, 192, bias=True))
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    x, expected_x = (normal(2, 20, 256).requires_grad_() for _ in range(2))
    compiled(x).square().sum().backward()
    layer(expected_x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected_x.grad)
    torch.testing.assert_close(compiled(x), layer(x))
    # The square needs the result itself; a dequantized matrix would take 98 or 197 KB.
    assert sum(tensor.nbytes for tensor in saved_by(compiled, x)) <= layer.parts.nbytes + layer.pairs.nbytes


def test_activation_checkpointing_changes_no_gradient():
    block = nn.Sequential(Nf4Linear.of(linear(64, 96)), nn.GELU(), Nf4Linear.of(linear(96, 64)))
    x, expected_x = (normal(5, 64).requires_grad_() for _ in range(2))
    checkpoint(block, x, use_reentrant=False).sum().backward()
    block(expected_x).sum().backward()
    assert torch.equal(x.grad, expected_x.grad)


def test_the_weights_are_not_in_the_state_dict_and_nothing_is_trained():
    plain, bare = Nf4Linear.of(linear(64, 8, bias=True)), Nf4Linear.of(linear(64, 8))
    assert set(plain.state_dict()) == {"bias"}
    assert not bare.state_dict()
    assert not any(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize(
    "cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double, lambda m: m.to("cpu", torch.half)]
)
def test_casting_the_model_leaves_the_weights_alone(cast):
    layer = Nf4Linear.of(linear(100, 30))
    before = layer.weight
    assert torch.equal(cast(layer).weight, before)


def test_the_parts_move_with_the_layer():
    layer = Nf4Linear.of(linear(64, 8)).to("meta")
    assert all(part.is_meta for part in layer.parts)
    assert layer.weight.is_meta


def test_a_layer_that_has_generated_can_be_trained_through():
    layer = Nf4Linear.of(linear(64, 8))
    with torch.inference_mode():
        layer(normal(2, 64))
    x = normal(2, 64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 64))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_non_finite_weight_is_not_hidden(value):
    weight = normal(300, 64)
    weight[2, 5] = float(value)
    assert not dequantized(weight).isfinite().any()


def test_parts_are_integers_of_the_documented_shapes():
    parts = quantize(normal(100, 200))
    assert isinstance(parts, Nf4Weight)
    assert [(part.dtype, tuple(part.shape)) for part in parts] == [
        (torch.uint8, (313, 32)), (torch.uint8, (313,)), (torch.int32, (3,)), (torch.int64, (256,)),
    ]  # fmt: skip
    assert parts.absmax.view(torch.float8_e4m3fn).float().abs().max() == 448  # the whole range is used


def test_a_printed_layer_has_its_sizes():
    shown = [repr(Nf4Linear.of(nn.Linear(64, 32, bias=bias))) for bias in (True, False)]
    assert [text.removeprefix("Nf4Linear") for text in shown] == [
        f"(in_features=64, out_features=32, bias={bias})" for bias in (True, False)
    ]

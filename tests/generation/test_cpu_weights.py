"""Packed weights against the ordinary product."""

import pytest
import torch
import torch.nn as nn

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_weights import Int8, SmallInt8, TwoHalves, has_packed_products, product_of

needs_fbgemm = pytest.mark.skipif(not has_packed_products(), reason="this PyTorch or processor has no FBGEMM")
ROWS = [1, 2, 7, 8, 9, 40, 100]


def layers(width: int, sizes: list[int], bias: bool = False, seed: int = 0) -> list[nn.Linear]:
    torch.manual_seed(seed)
    return [nn.Linear(width, size, bias=bias) for size in sizes]


def ordinary(parts: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([part(x) for part in parts], dim=1)


@needs_fbgemm
@pytest.mark.parametrize(("weights", "error"), [("float32", 2e-6), ("bf16", 1e-2), ("int8", 2e-2)])
@pytest.mark.parametrize("sizes", [[48], [33, 17, 5], [64, 64, 64]])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_products_equal_the_layers_outputs_concatenated(weights, error, sizes, bias, head):
    parts = layers(96, sizes, bias)
    product = product_of(parts, weights, head=head)
    for n_rows in ROWS:
        x = torch.randn(n_rows, 96)
        assert (product(x) - ordinary(parts, x)).abs().max() < error * 4


@needs_fbgemm
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-3, 1.0, 1e3, 1e6, 1e30])
def test_two_halves_are_as_exact_as_the_ordinary_product(size):
    [layer] = layers(256, [96])
    matrix, x = layer.weight.detach() * size, torch.randn(5, 256)
    exact = x.double() @ matrix.double().t()
    error = (TwoHalves([matrix], None)(x) - exact).abs().max()
    assert error < 4 * (x @ matrix.t() - exact).abs().max()


@needs_fbgemm
@pytest.mark.parametrize("kind", [TwoHalves, Int8, SmallInt8])
def test_the_result_of_a_row_does_not_depend_on_the_other_rows(kind):
    [layer] = layers(64, [96])
    product, x = kind([layer.weight.detach()], None), torch.randn(20, 64)
    whole = product(x)
    # On AVX2 FBGEMM multiplies the last one or two rows of half-precision weights in another order of summation.
    rounded = kind is TwoHalves and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    for n_rows in (2, 3, 5, 16):
        if rounded:
            torch.testing.assert_close(product(x[:n_rows]), whole[:n_rows], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(product(x[:n_rows]), whole[:n_rows])


@pytest.mark.parametrize(
    ("n_rows", "width", "fits"), [(64, 96, True), (64, 172, False), (5, 96, False), (4096, 768, False)]
)
def test_the_kernel_for_small_matrices_is_not_used_for_sides_it_cannot_divide(n_rows, width, fits):
    assert SmallInt8.fits([torch.zeros(n_rows, width)]) == fits


@needs_fbgemm
def test_a_single_row_in_8_bits_equals_the_same_row_among_others():
    [layer] = layers(64, [96])
    for fine in (True, False):
        product, x = Int8([layer.weight.detach()], None, fine), torch.randn(20, 64)
        torch.testing.assert_close(product(x[4:5]), product(x)[4:5])


@needs_fbgemm
@pytest.mark.parametrize("fine", [True, False])
def test_each_row_of_activations_has_its_own_scale(fine):
    [layer] = layers(64, [32])
    x = torch.randn(4, 64) * torch.tensor([[0.0], [1e-6], [1.0], [1e4]])
    product = Int8([layer.weight.detach()], None, fine)
    for rows in (x, x[1:2], x[:1]):
        exact, got = ordinary([layer], rows), product(rows)
        assert ((got - exact).abs() <= 0.05 * rows.abs().amax(dim=1, keepdim=True)).all()


@needs_fbgemm
def test_one_large_activation_does_not_hide_the_others():
    [layer] = layers(64, [32])
    x = torch.randn(1, 64)
    x[0, 7] = 300.0
    matrix = layer.weight.detach().clone()
    matrix[:, 7] = 0
    error = (Int8([matrix], None)(x) - x @ matrix.t()).abs().max()
    assert error < 0.03


def test_packing_changes_no_setting_of_pytorch():
    before = torch.backends.quantized.engine
    if has_packed_products():
        product_of(layers(32, [16]), "int8")
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_without_the_kernels_an_error_says_what_to_do(monkeypatch, weights):
    monkeypatch.setattr("mini_chat_gpt.generation.cpu_weights.has_packed_products", lambda: False)
    with pytest.raises(UserError, match=r"need FBGEMM.*use float32"):
        product_of(layers(32, [16]), weights)


def test_without_the_kernels_float32_weights_use_the_ordinary_product(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.generation.cpu_weights.has_packed_products", lambda: False)
    parts, x = layers(32, [16, 8]), torch.randn(3, 32)
    torch.testing.assert_close(product_of(parts, "float32")(x), ordinary(parts, x))

"""Choice of device and precision with its reason. GPUs that this machine does not have are simulated."""

import gc
import getpass
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mini_chat_gpt.common.device import cpu_has_bf16, gc_frozen, identify_user, pick_device, pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache

CPU, GPU, APPLE = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU with this compute capability."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
        # PyTorch emulates bf16 on GPUs without it, and counts that as supported by default.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: including_emulation or capability >= (8, 0),
        )

    return pretend


@pytest.mark.parametrize("setting", ["auto", True])
@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((9, 0), torch.bfloat16, "bf16: supported by the GPU"),
        ((8, 0), torch.bfloat16, "bf16: supported by the GPU"),
        ((7, 5), torch.float16, "float16 with a loss scale: the GPU has no bf16 support"),
        ((7, 0), torch.float16, "float16 with a loss scale: the GPU has no bf16 support"),
        ((6, 1), torch.float32, "float32: the GPU supports neither bf16 nor fast float16"),
    ],
)
def test_a_gpu_uses_the_best_precision_that_it_supports(gpu, setting, capability, dtype, reason):
    gpu(*capability)
    precision = pick_precision(setting, GPU)
    assert (precision.dtype, precision.reason) == (dtype, reason)
    assert precision.needs_loss_scale == (dtype == torch.float16)


def test_bf16_on_a_gpu_without_support_is_an_error_that_names_the_alternatives(gpu):
    gpu(7, 5)
    with pytest.raises(UserError, match="Tesla T4 does not support bf16; use auto, fp16 or fp32"):
        pick_precision("bf16", GPU)


def test_a_cpu_uses_bf16_if_it_supports_it(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.common.device.cpu_has_bf16", lambda: True)
    assert pick_precision("auto", CPU).dtype == torch.bfloat16
    monkeypatch.setattr("mini_chat_gpt.common.device.cpu_has_bf16", lambda: False)
    precision = pick_precision("auto", CPU)
    assert (precision.dtype, precision.reason) == (torch.float32, "float32: no fast bf16 on this device")


@pytest.mark.parametrize("supported", [True, False])
def test_an_arm_cpu_has_bf16_if_onednn_says_so(monkeypatch, supported):
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert cpu_has_bf16() is supported


def test_an_x86_cpu_that_only_emulates_bf16_does_not_count(monkeypatch):
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not cpu_has_bf16()


def test_apple_gpus_use_float32_by_default():
    precision = pick_precision("auto", APPLE)
    assert (precision.dtype, precision.reason) == (torch.float32, "float32: half precision is untested on Apple GPUs")


@pytest.mark.parametrize("setting", [False, "fp32"])
def test_float32_can_be_configured(setting):
    precision = pick_precision(setting, CPU)
    assert (precision.dtype, precision.needs_loss_scale) == (torch.float32, False)


@pytest.mark.parametrize(
    ("setting", "has_bf16", "slow"), [("fp16", True, True), ("bf16", False, True), ("bf16", True, False)]
)
def test_a_precision_that_a_cpu_only_emulates_is_warned_of(monkeypatch, setting, has_bf16, slow):
    monkeypatch.setattr("mini_chat_gpt.common.device.cpu_has_bf16", lambda: has_bf16)
    assert ("slower than float32" in pick_precision(setting, CPU).reason) == slow


@pytest.mark.parametrize(("setting", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_computed_in_the_configured_16_bit_precision(setting, dtype):
    precision = pick_precision(setting, CPU)
    assert "as configured" in precision.reason
    assert precision.needs_loss_scale == (setting == "fp16")
    weight = torch.ones(8, 8, requires_grad=True)
    with precision.autocast(CPU):
        product = torch.nn.functional.linear(torch.ones(2, 8), weight)
    assert product.dtype == dtype
    product.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_a_precision_without_matrix_products_on_the_device_is_an_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(UserError, match=r"mps does not support bf16 matrix products \(BFloat16 is not supported"):
        pick_precision("bf16", APPLE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "'gpu' is not a device; use auto, cpu, cuda"),
        ("cuda", "PyTorch finds no GPU"),
        ("mps", "mps is not available"),
    ],
)
def test_a_missing_device_is_an_error_that_names_the_alternatives(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        pick_device(name)
    assert pick_device("auto") == CPU


def test_existing_objects_are_frozen_while_training_and_collected_again_afterwards():
    before = gc.get_freeze_count()
    with gc_frozen():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0


def test_a_user_id_without_an_entry_gets_a_name_and_a_home_folder_for_the_libraries(tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "placeholder")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    unknown = pytest.importorskip("pwd", reason="there is no user database")
    monkeypatch.setattr(unknown, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    folder = user_cache()
    identify_user()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == folder

"""The machine: which device, which precision, whether to compile, and the reason for each choice in words."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mini_chat_gpt.config import SystemSection
from mini_chat_gpt.distributed import ALONE, World
from mini_chat_gpt.errors import UserError


@dataclass(frozen=True)
class Precision:
    """dtype of the matrix products (weights stay float32), and why."""

    dtype: torch.dtype
    reason: str

    @property
    def needs_loss_scale(self) -> bool:
        """Whether small gradients would vanish in this dtype."""
        return self.dtype == torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Context in which products run in `dtype`; nothing at all for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        # A pass uses each weight once: a cache would only keep the 16-bit copies of all of them until its end.
        return torch.autocast(device.type, dtype=self.dtype, cache_enabled=False)


def pick_device(name: str = "auto") -> torch.device:
    """The best device there is, or the named one. Raises UserError if it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"system.device: {name!r} is no device; write auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"system.device: {name} was asked for, but PyTorch sees no GPU; write auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"system.device: there is no {name}, this machine has {torch.cuda.device_count()} GPU(s).")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("system.device: mps was asked for, but this machine has none; write auto or cpu.")
    return device


def pick_precision(setting: bool | str, device: torch.device) -> Precision:
    """Resolve system.mixed_precision for this device."""
    if setting in (False, "fp32"):
        return Precision(torch.float32, "float32: as configured")
    if setting == "bf16":
        return Precision(torch.bfloat16, "bf16: as configured")
    if setting == "fp16":
        raise UserError(
            "system.mixed_precision: fp16 needs a gradient scaler, which is not there yet; write bf16 or fp32."
        )
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16: the GPU has it")
        return Precision(torch.float32, "float32: the GPU has no bf16")
    if device.type == "cpu" and cpu_has_bf16():
        # Measured with AVX-512-bf16 on models 64 to 256 wide: steps are 1.1 to 1.7 times faster, most with long examples.
        return Precision(torch.bfloat16, "bf16: this processor multiplies it faster than float32")
    return Precision(torch.float32, "float32: no fast bf16 here")


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices in hardware (AVX-512-bf16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def should_compile(setting: bool | str) -> bool:
    """Only when asked: auto compiles where that pays, and so far no machine is known where it does."""
    return setting is True


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a training step frees for the next one, where it can be told to (glibc).

    By default large blocks go back to the system at once, and each step pays for getting and clearing their pages anew:
    a sixth of its time on a CPU.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows, macOS
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def set_up(system: SystemSection, world: World = ALONE) -> None:
    """Seed, threads and float32 product mode for this process."""
    if system.threads:
        torch.set_num_threads(system.threads)
    elif world.launch is not None:  # torchrun would leave each process a single one
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
    keep_freed_memory()
    torch.manual_seed(system.seed)
    torch.backends.cuda.matmul.allow_tf32 = True

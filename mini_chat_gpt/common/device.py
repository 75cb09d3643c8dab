"""The machine: which device, which precision, and the reason for each choice in words."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SystemSection


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
    """Resolve system.mixed_precision for this device. Raises UserError if it can't do what is asked for."""
    if setting in (False, "fp32"):
        return Precision(torch.float32, "float32: as configured")
    if setting in ("bf16", "fp16"):
        return _as_configured(str(setting), device)
    if device.type == "cuda":
        return _for_gpu(device)
    if device.type == "cpu" and cpu_has_bf16():
        # Measured with AVX-512-bf16 on models 64 to 256 wide: steps are 1.1 to 1.7 times faster, most with long examples.
        return Precision(torch.bfloat16, "bf16: this processor multiplies it faster than float32")
    if device.type == "mps":  # it has 16-bit types, but nobody has yet measured them or watched losses with this code
        return Precision(torch.float32, "float32: half precision is untried on Apple's GPUs")
    return Precision(torch.float32, "float32: no fast bf16 here")


def _as_configured(name: str, device: torch.device) -> Precision:
    if name == "bf16" and device.type == "cuda" and not _gpu_has_bf16(device):  # PyTorch would emulate it, very slowly
        raise UserError(
            f"system.mixed_precision: bf16 was asked for, but {torch.cuda.get_device_name(device)} does not have it; "
            "write auto, fp16 or fp32."
        )
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    try:
        square = torch.ones(16, 16, dtype=dtype, device=device)
        square @ square
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"system.mixed_precision: {name} was asked for, but {device} can't multiply it ({error}); write auto or fp32."
        ) from None
    return Precision(dtype, "bf16: as configured" if name == "bf16" else "float16 with a loss scale: as configured")


def _for_gpu(device: torch.device) -> Precision:
    if _gpu_has_bf16(device):
        return Precision(torch.bfloat16, "bf16: the GPU has it")
    if torch.cuda.get_device_capability(device) >= (7, 0):  # Volta: the first with tensor cores, which multiply float16
        return Precision(torch.float16, "float16 with a loss scale: the GPU has no bf16")
    return Precision(torch.float32, "float32: the GPU has neither bf16 nor fast float16")


def _gpu_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices in hardware (AVX-512-bf16, AMX, or Arm's with oneDNN)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return True
    if platform.machine().lower() not in ("aarch64", "arm64") or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


@contextmanager
def long_lived() -> Iterator[None]:
    """Within the block Python's garbage collector leaves alone what exists when it begins.

    A step makes enough objects to set it off, and then it looks at the hundreds of thousands that PyTorch consists of: 3 % of the
    time on one core.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def cpu_threads(device: torch.device) -> int:
    """Threads that a model on this device computes with; 1 where it isn't the processor that computes."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def set_up(system: SystemSection, world: World = ALONE) -> None:
    """Seed, threads and float32 product mode for this process."""
    if system.threads:
        torch.set_num_threads(system.threads)
    elif world.launch is not None:  # torchrun would leave each process a single one
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
    keep_freed_memory()
    torch.manual_seed(system.seed)
    torch.backends.cuda.matmul.allow_tf32 = True

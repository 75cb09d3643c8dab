"""Device and precision of a process, each with the reason for the choice, and process-wide settings of PyTorch."""

from __future__ import annotations

import ctypes
import gc
import getpass
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from mini_chat_gpt.common.distributed import ALONE, World
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import user_cache


@dataclass(frozen=True)
class Precision:
    """dtype of the matrix products (weights stay float32), and the reason for it."""

    dtype: torch.dtype
    reason: str

    @property
    def needs_loss_scale(self) -> bool:
        """Whether small gradients underflow in this dtype."""
        return self.dtype == torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Context in which products run in `dtype`; a null context for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        # A forward pass uses each weight once. A cache would only hold 16-bit copies of all weights until its end.
        return torch.autocast(device.type, dtype=self.dtype, cache_enabled=False)


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best one for "auto". Raises UserError if it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"system.device: {name!r} is not a device; use auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"system.device: {name} is not available, because PyTorch finds no GPU; use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"system.device: {name} does not exist; this machine has {torch.cuda.device_count()} GPU(s).")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("system.device: mps is not available on this machine; use auto or cpu.")
    return device


def pick_precision(setting: bool | str, device: torch.device) -> Precision:
    """Resolve system.mixed_precision for this device. Raises UserError if the device does not support the setting."""
    if setting in (False, "fp32"):
        return Precision(torch.float32, "float32: as configured")
    if setting in ("bf16", "fp16"):
        return _as_configured(str(setting), device)
    if device.type == "cuda":
        return _for_gpu(device)
    if device.type == "cpu" and has_fast_bf16(device):
        # Measured with AVX-512-bf16 on models 64 to 256 wide: steps are 1.1 to 1.7 times faster, most with long examples.
        return Precision(torch.bfloat16, "bf16: faster than float32 on this processor")
    if device.type == "mps":  # MPS has 16-bit types, but neither speed nor losses have been measured with this code
        return Precision(torch.float32, "float32: half precision is untested on Apple GPUs")
    return Precision(torch.float32, "float32: no fast bf16 on this device")


def pick_reply_precision(device: torch.device) -> Precision:
    """The precision in which a model replies and is evaluated outside of a training run."""
    if device.type == "cpu":  # 16-bit weights are an explicit choice there (--weights)
        return Precision(torch.float32, "float32: the weights of the checkpoint")
    return pick_precision("auto", device)


def _as_configured(name: str, device: torch.device) -> Precision:
    if name == "bf16" and device.type == "cuda" and not has_fast_bf16(device):  # PyTorch would emulate it very slowly
        raise UserError(
            f"system.mixed_precision: {torch.cuda.get_device_name(device)} does not support bf16; use auto, fp16 or fp32."
        )
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    try:
        square = torch.ones(16, 16, dtype=dtype, device=device)
        square @ square
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"system.mixed_precision: {device} does not support {name} matrix products ({error}); use auto or fp32."
        ) from None
    reason = "bf16: as configured" if name == "bf16" else "float16 with a loss scale: as configured"
    if device.type == "cpu" and not (name == "bf16" and has_fast_bf16(device)):
        reason += " (warning: this processor only emulates its products, which is slower than float32; auto is faster)"
    return Precision(dtype, reason)


def _for_gpu(device: torch.device) -> Precision:
    if has_fast_bf16(device):
        return Precision(torch.bfloat16, "bf16: supported by the GPU")
    if torch.cuda.get_device_capability(device) >= (7, 0):  # Volta and later have tensor cores for float16
        return Precision(torch.float16, "float16 with a loss scale: the GPU has no bf16 support")
    return Precision(torch.float32, "float32: the GPU supports neither bf16 nor fast float16")


def _gpu_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices are computed in hardware. PyTorch's emulation takes up to 25 times as long as float32."""
    match device.type:
        case "cuda":
            return _gpu_has_bf16(device)
        case "cpu":
            return cpu_has_bf16()
        case _:
            return False


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices in hardware (AVX-512-bf16, AMX, or Arm's with oneDNN)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return True
    if platform.machine().lower() not in ("aarch64", "arm64") or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_freed_memory() -> None:
    """Make the C library (glibc) keep freed memory for the next training step.

    By default large blocks go back to the operating system at once. Each step then maps and clears their pages again, which
    takes a sixth of its time on a CPU.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows, macOS
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Exclude existing objects from Python's garbage collection within the block.

    A training step creates enough objects to trigger a collection, which then traverses the hundreds of thousands of objects
    that PyTorch consists of: 3 % of the time on one core.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def cpu_threads(device: torch.device) -> int:
    """Threads that a model on this device computes with; 1 if the device is not a CPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def identify_user() -> None:
    """Give a user id without an entry in the user database (in a container) a name and a home folder: libraries ask for both."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{getattr(os, 'getuid', int)()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(user_cache())


def set_up(seed: int, threads: int | None = None, world: World = ALONE) -> None:
    """Set the seed, the number of CPU threads (None: automatic) and the float32 product mode of this process."""
    identify_user()
    if threads:
        # PyTorch starts them all, and each needs a stack.
        if threads > (most := max(16, 4 * (os.cpu_count() or 1))):
            raise UserError(
                f"system.threads is {threads}, but there are {os.cpu_count()} CPU cores; use at most {most}."
            )
        torch.set_num_threads(threads)
    elif world.launch is not None:  # torchrun sets OMP_NUM_THREADS=1 for each process
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
    keep_freed_memory()
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True

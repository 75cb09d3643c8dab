"""Running training code on tensors without contents, to see what memory it would take.

PyTorch's fake tensors have shape, dtype and device, but no memory: code that runs on them does everything except the
arithmetic, backward pass and optimizer included. `LiveTensors` counts their bytes while they live, so that a prediction
follows the code instead of a formula. Whole numbers and masks on the CPU (ids, positions, offsets) stay real, since shapes
depend on them.

How much memory a process takes for tensors that come and go is decided by the C library's `malloc`, which can't always
use a gap again. `ShadowHeap` asks it: for each fake tensor it gets a block of that size and never touches it. Pages that
were never touched take no memory; how far the heap has grown is seen all the same.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}  # for each shape of them a CPU keeps a kernel


@dataclass
class _Block:
    """A storage that lives."""

    size: int
    name: str
    shadow: torch.UntypedStorage | None  # its block of the heap


class LiveTensors(TorchDispatchMode):
    """Within the block, operations on floating-point tensors are faked, and every storage on `device_type` is counted.

    `peak` is the most bytes that lived at one time since `restart`, and `at_peak` what they were by name: one given to
    known tensors (`name`), that of the part of the program that made them (`calling`), "logits", or "activations".
    """

    def __init__(self, device_type: str = "cpu", heap: ShadowHeap | None = None, round_to: int = 1) -> None:
        super().__init__()
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

        self._fake, self._fake_type = FakeTensorMode(allow_non_fake_inputs=True), FakeTensor
        self.device_type, self.heap, self.round_to = device_type, heap, round_to
        self.now = self.peak = 0
        self.products: set[tuple[Any, ...]] = set()  # matrix products by operation, dtypes and shapes
        self.logits_width = 0  # tensors (R, this) are called logits
        self._blocks: dict[int, _Block] = {}
        self._sizes: Counter[str] = Counter()
        self._calling: str | None = None
        self.at_peak: dict[str, int] = {}

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """What is made within the block has this name."""
        before, self._calling = self._calling, name
        try:
            yield
        finally:
            self._calling = before

    def name(self, name: str, tensors: Any) -> None:
        """Give the storages of these tensors a name from now on."""
        for tensor in tree_leaves(tensors):
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None:
                self._sizes[block.name] -= block.size
                self._sizes[name] += block.size
                block.name = name

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.now, dict(self._sizes)

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._blocks or tensor.device.type != self.device_type or not storage.nbytes():
            return
        size = -(-storage.nbytes() // self.round_to) * self.round_to
        block = _Block(size, self._name_of(tensor), self.heap.take(size) if self.heap else None)
        self._blocks[key] = block
        self._sizes[block.name] += size
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self._sizes)
        weakref.finalize(storage, self._forget, key)

    def _name_of(self, tensor: torch.Tensor) -> str:
        if self._calling is not None:
            return self._calling
        wide = tensor.dim() == 2 and tensor.shape[1] == self.logits_width and tensor.is_floating_point()
        return "logits" if wide else "activations"

    def _forget(self, key: int) -> None:
        block = self._blocks.pop(key)
        self._sizes[block.name] -= block.size
        self.now -= block.size
        if self.heap is not None:
            self.heap.taken -= block.size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        if func.overloadpacket in PRODUCTS:  # its kernel is prepared when there is a place for what it gives
            self._count_product(func, [leaf for leaf in args if isinstance(leaf, self._fake_type)])
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if tensors and on_cpu and not any(isinstance(tensor, self._fake_type) for tensor in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return 1.0  # a loss, a norm: finite, and nothing else is asked of it
        if func is aten.index.Tensor:
            args = (args[0], tree_map(self._places, list(args[1])))
        with self._fake:
            out = func(*args, **kwargs)
        if not tensors and on_cpu and isinstance(out, torch.Tensor) and not out.is_floating_point():
            return func(*args, **kwargs)
        return out

    def _places(self, index: Any) -> Any:
        """A mask as the places where it is true: how many they are decides the shape of what they pick."""
        real = isinstance(index, torch.Tensor) and not isinstance(index, self._fake_type)
        return index.nonzero()[:, 0] if real and index.dtype == torch.bool and index.dim() == 1 else index

    def _count_product(self, func: Any, tensors: list[torch.Tensor]) -> None:
        product = (func, *((tensor.dtype, tuple(tensor.shape), tensor.stride()) for tensor in tensors))
        if product not in self.products:
            self.products.add(product)
            if self.heap is not None:
                self.heap.keep_kernels()


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>, in bytes."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def heap_bytes() -> tuple[int, int] | None:
    """(size of this process's heap, bytes of it in use), as the C library says; None where it can't (glibc 2.33 and later can)."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return info.arena, info.uordblks


class Kernels:
    """Matrix products of ever new shapes. For each a CPU may prepare a kernel and keep it, as it does in training."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.number = 0
        self._matrix = torch.ones(2**13, 32, dtype=dtype)

    def prepare(self) -> None:
        """One more; what it gives is small, but for the kernel that makes no difference."""
        self.number = min(self.number + 1, len(self._matrix))
        self._matrix[: self.number] @ self._matrix[:32]


class ShadowHeap:
    """Blocks of this process's heap in place of tensors. Only where `heap_bytes` can tell.

    For each new shape that `keep_kernels` is told of, `per_shape` kernels are really prepared: more than one where it stands for
    others that aren't seen here. Where they come to lie decides which gaps can be used again. Up to `most` of them are kept,
    and each takes `kernel_bytes` of the heap.
    """

    def __init__(self, kernels: Kernels, kernel_bytes: int, per_shape: float = 1.0, most: int = 1024) -> None:
        self.taken = 0  # bytes in blocks that live
        self.kept = 0  # bytes in kernels
        self.refused = False  # whether the system would not promise a block; `grown` says nothing then
        self._kernels, self._kernel_bytes, self._per_shape, self._most = kernels, kernel_bytes, per_shape, most
        self._due = 0.0
        self._size, self._in_use = self._look()

    def _look(self) -> tuple[int, int]:
        told = heap_bytes()
        assert told is not None, "the caller has asked whether the C library can tell"
        return told

    def take(self, size: int) -> torch.UntypedStorage | None:
        """A block as a tensor of this size would get it, but never touched; None once the system has refused one."""
        self.taken += size
        try:
            return None if self.refused else torch.UntypedStorage(size)
        except RuntimeError:  # not enough memory, were the block used
            self.refused = True
            return None

    def keep_kernels(self) -> None:
        """Prepare the kernels for a new shape."""
        self._due += self._per_shape
        while self._due >= 1:
            self._due -= 1
            self._kernels.prepare()
            self.kept = min(self.kept + self._kernel_bytes, self._most * self._kernel_bytes)

    def grown(self) -> int:
        """Bytes by which the heap has grown for blocks and kernels, without what this process itself has taken meanwhile."""
        size, in_use = self._look()
        itself = in_use - self._in_use - self.taken - self.kept
        return size - self._size - max(0, itself)

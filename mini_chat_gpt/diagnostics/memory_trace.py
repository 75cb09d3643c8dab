"""Count the memory of training code that runs on fake tensors.

PyTorch's fake tensors have a shape, dtype and device, but no memory. Code that runs on them does everything except the
arithmetic, including the backward pass and the optimizer. `LiveTensors` counts the bytes of live tensors, so that a
prediction follows the code instead of a formula. Integers and masks on the CPU (ids, positions, offsets) stay real, because
shapes depend on them.

On a CPU the C library's `malloc` decides how much memory a process needs for its tensors, because it can't always reuse a
gap. `ShadowHeap` measures this: it allocates a block of the same size for each fake tensor and never touches it. Untouched
pages take no memory, but the heap grows by the same amount as with real tensors.
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
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}  # a CPU caches a kernel for each shape


@dataclass
class _Block:
    """A live storage."""

    size: int
    name: str
    shadow: torch.UntypedStorage | None  # its block on the heap


class LiveTensors(TorchDispatchMode):
    """Context manager that fakes operations on floating-point tensors and counts every storage on `device_type`.

    `peak` is the largest number of live bytes since `restart`; `at_peak` has these bytes by name. A tensor's name is set by
    `name`, or by the `calling` block that made it; otherwise it is "logits" or "activations".
    """

    def __init__(self, device_type: str = "cpu", heap: ShadowHeap | None = None, round_to: int = 1) -> None:
        super().__init__()
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

        self._fake, self._fake_type = FakeTensorMode(allow_non_fake_inputs=True), FakeTensor
        self.device_type, self.heap, self.round_to = device_type, heap, round_to
        self.now = self.peak = 0
        self.products: set[tuple[Any, ...]] = set()  # matrix products by operation, dtypes and shapes
        self.logits_width = 0  # tensors of shape (R, logits_width) are named logits
        self._blocks: dict[int, _Block] = {}
        self._sizes: Counter[str] = Counter()
        self._calling: str | None = None
        self.at_peak: dict[str, int] = {}

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Give all tensors that are made within the block this name."""
        before, self._calling = self._calling, name
        try:
            yield
        finally:
            self._calling = before

    def name(self, name: str, tensors: Any) -> None:
        """Rename the storages of these tensors."""
        for tensor in tree_leaves(tensors):
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None:
                self._sizes[block.name] -= block.size
                self._sizes[name] += block.size
                block.name = name

    def use_heap(self, heap: ShadowHeap) -> None:
        """Allocate blocks on a heap from here on, and for the live tensors as if nothing had been freed between them."""
        self.heap = heap
        for block in self._blocks.values():
            block.shadow = heap.take(block.size)

    def restart(self) -> None:
        """Reset the peak."""
        self.peak, self.at_peak = self.now, dict(self._sizes)

    def _track(self, tensor: torch.Tensor) -> None:
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
            self.heap.block_bytes -= block.size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor)
        if func.overloadpacket in PRODUCTS:  # its kernel is made after its output is allocated
            self._count_product(func, [leaf for leaf in args if isinstance(leaf, self._fake_type)])
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if tensors and on_cpu and not any(isinstance(tensor, self._fake_type) for tensor in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return 1.0  # a loss or a norm: the code only checks that it is finite
        if func is aten.index.Tensor:
            args = (args[0], tree_map(self._mask_indices, list(args[1])))
        with self._fake:
            out = func(*args, **kwargs)
        if not tensors and on_cpu and isinstance(out, torch.Tensor) and not out.is_floating_point():
            return func(*args, **kwargs)
        return out

    def _mask_indices(self, index: Any) -> Any:
        """Replace a real boolean mask by the indices where it is true: their number decides the shape of the result."""
        real = isinstance(index, torch.Tensor) and not isinstance(index, self._fake_type)
        return index.nonzero()[:, 0] if real and index.dtype == torch.bool and index.dim() == 1 else index

    def _count_product(self, func: Any, tensors: list[torch.Tensor]) -> None:
        product = (func, *((tensor.dtype, tuple(tensor.shape), tensor.stride()) for tensor in tensors))
        if product not in self.products:
            self.products.add(product)
            if self.heap is not None:
                self.heap.add_kernels()


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>, in bytes."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def heap_bytes() -> tuple[int, int] | None:
    """(size of this process's heap, bytes in use), from the C library; None where it has no mallinfo2 (glibc < 2.33)."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return info.arena, info.uordblks


class Kernels:
    """Matrix products of ever new shapes, for each of which a CPU may cache a kernel, as in training."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.n_made = 0
        self._matrix = torch.ones(2**13, 32, dtype=dtype)

    def make_one(self) -> None:
        """Compute one more product. The result is small; the size of the kernel does not depend on it."""
        self.n_made = min(self.n_made + 1, len(self._matrix))
        self._matrix[: self.n_made] @ self._matrix[:32]


class ShadowHeap:
    """Blocks on this process's heap in place of tensors. Works only where `heap_bytes` does.

    For each new shape, `add_kernels` really makes `per_shape` kernels of `kernel_size` bytes: more than one if the shape
    stands for others that the dry run leaves out. Their addresses decide which gaps can be reused. The CPU caches at most
    `capacity` of them.
    """

    def __init__(self, kernels: Kernels, kernel_size: int, per_shape: float = 1.0, capacity: int = 1024) -> None:
        self.block_bytes = 0  # in live blocks
        self.kernel_bytes = 0  # in cached kernels
        self.refused = False  # the system refused to reserve a block; `grown` is meaningless then
        self._kernels, self._kernel_size, self._per_shape, self._capacity = kernels, kernel_size, per_shape, capacity
        self._due = 0.0
        self._size, self._in_use = self._measure()

    def _measure(self) -> tuple[int, int]:
        sizes = heap_bytes()
        assert sizes is not None, "the caller checks heap_bytes() first"
        return sizes

    def take(self, size: int) -> torch.UntypedStorage | None:
        """Allocate an untouched block of the size of a tensor; None once the system has refused one."""
        self.block_bytes += size
        try:
            return None if self.refused else torch.UntypedStorage(size)
        except RuntimeError:  # larger than the memory that the system would reserve
            self.refused = True
            return None

    def add_kernels(self) -> None:
        """Make the kernels for a new shape."""
        self._due += self._per_shape
        while self._due >= 1:
            self._due -= 1
            self._kernels.make_one()
            self.kernel_bytes = min(self.kernel_bytes + self._kernel_size, self._capacity * self._kernel_size)

    def grown(self) -> int:
        """Bytes by which the heap has grown for blocks and kernels, without other allocations of this process."""
        size, in_use = self._measure()
        other = in_use - self._in_use - self.block_bytes - self.kernel_bytes
        return size - self._size - max(0, other)

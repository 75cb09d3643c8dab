"""torch.compile for a GPT: once for all lengths and all layers, and only where it works and pays back.

What looks at one token alone is compiled: a block up to its attention product, a block after it, and the loss. They see
tensors of which a single size changes from batch to batch, and that size is marked; so each of the three is compiled once
for training and once for evaluation, whatever the batches and however many layers. The product itself stays as it is: its
layouts are Python objects that differ from batch to batch, and its kernels are fused already.

PyTorch's compiler takes seconds to import: nothing here touches it before it is asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from types import MethodType

import torch

from mini_chat_gpt.model import GPT, Block, Rope
from mini_chat_gpt.ops.attention import Layout, Packed
from mini_chat_gpt.ops.loss import LossSums

# For a GPU a guess: its small kernels cost more to launch than to run, and compiled code has fewer of them. On a CPU (a core
# with AVX-512-bf16, 1 to 30 million parameters; benchmarks/compiling.py) a step is 1.03 to 1.2 times faster, which pays for
# the 30 to 65 s of compiling after 7 to 20 minutes of training, or for 4 to 7 s with a warm cache after one or two.
STEPS_TO_PAY_BACK = 500


@dataclass(frozen=True)
class Choice:
    """Whether to compile, and why, in words for the run's first lines."""

    on: bool
    reason: str


def choose_compiling(setting: bool | str, device: torch.device, steps: int) -> Choice:
    """Resolve system.compile for a run of so many steps. Raises nothing: what cannot compile runs as it is, and says why."""
    if setting is False:
        return Choice(False, "not compiled: as configured")
    if setting == "auto" and device.type != "cuda":
        return Choice(False, f"not compiled: on a {device.type} that seldom pays back (system.compile=true does it)")
    if setting == "auto" and steps < STEPS_TO_PAY_BACK:
        return Choice(False, f"not compiled: {steps} steps are too few to pay for it")
    obstacle = trial(device)
    if obstacle is not None:
        return Choice(False, f"not compiled: {obstacle}")
    return Choice(
        True, "compiled: as configured" if setting is True else "compiled: the run is long enough to pay for it"
    )


def trial(device: torch.device) -> str | None:
    """Compile a line of code and run it on `device`: None if that works, otherwise what is missing and what to do."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "the environment variable TORCH_COMPILE_DISABLE forbids it"
    try:
        if device.type == "cpu":
            check_compiler()
        x = torch.arange(64.0, device=device)
        if not torch.equal(torch.compile(_a_line_of_code)(x), _a_line_of_code(x)):
            return "in a trial, compiled code gave other numbers than it should"
    except Exception as error:  # whatever it is, the run can do without
        return explain(error)
    return None


def _a_line_of_code(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def check_compiler() -> None:
    """Raises an exception that tells what the C++ compiler lacks.

    PyTorch itself may say no more than "list index out of range" about a broken one, and nothing about a missing one as
    long as all that it wants is in its cache.
    """
    import torch._inductor.cpp_builder

    compiler = torch._inductor.cpp_builder.get_cpp_compiler()
    if sys.platform != "win32":
        command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr}")


# What a failure's text contains: what is the matter, and the remedy.
OBSTACLES = {
    "Python.h": "Python's headers are missing (Python.h); install python3-dev, or what your system calls it",
    "InvalidCxxCompiler": "no C++ compiler is found; install g++ or clang, or name one in the environment variable CXX",
    "Failed to find C compiler": "Triton finds no C compiler; install gcc, or name one in the environment variable CC",
    "TritonMissing": "Triton is missing; pip install triton (on Windows triton-windows)",
    "GPUTooOldForTriton": "this GPU is older than Triton can use (compute capability 7.0)",
}


def explain(error: Exception) -> str:
    """One sentence for what the trial stumbled over."""
    text = f"{type(error).__name__}: {error}"
    for sign, sentence in OBSTACLES.items():
        if sign in text:
            return sentence
    first_line = next(line.strip() for line in text.splitlines() if line.strip())
    return f"a trial failed ({first_line[:200]})"


def compile_model(model: GPT, backend: str = "inductor") -> None:
    """Let the model run compiled code from its next flat batch on, in place; its weights, names and results stay.

    It makes no difference whether DDP or FSDP2 have wrapped it already. Generation runs as ever: a token at a time and
    batches of every size would want other code. `backend` is torch.compile's ("aot_eager" needs no compiler).
    """
    import torch._dynamo

    # Gradients leave our pieces layer by layer already; they need no cutting up for DDP's buckets.
    torch._dynamo.config.optimize_ddp = False
    before = torch.compile(Block.before_product, backend=backend)
    after = torch.compile(Block.after_product, backend=backend)
    loss = torch.compile(GPT.head_sums, backend=backend)

    def forward(
        block: Block, x: torch.Tensor, rope: Rope | None, layout: Layout, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not isinstance(layout, Packed):
            return Block.forward(block, x, rope, layout, rows)
        q, k, v = before(block, any_size(x, 1), rope and (any_size(rope[0], 2), any_size(rope[1], 2)))
        x, heads = block.product(x, q, k, v, layout, rows)
        if heads.shape[2] < 2:  # code for any size means any but 0 and 1
            return Block.after_product(block, x, heads)
        return after(block, any_size(x, 1), any_size(heads, 2))

    def head_sums(model: GPT, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> LossSums:
        if len(targets) < 2:
            return GPT.head_sums(model, hidden, targets, weights)
        return loss(model, any_size(hidden, 0), any_size(targets, 0), any_size(weights, 0))

    # Bound methods: in a deep copy of the model they are bound to the copy.
    model.head_sums = MethodType(head_sums, model)  # type: ignore[method-assign]
    for block in model.layers:
        block.forward = MethodType(forward, block)


def any_size(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Marked so that code compiled for it takes any size of `dim`, also where that equals another size by chance."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor

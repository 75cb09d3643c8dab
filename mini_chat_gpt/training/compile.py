"""torch.compile for a GPT: once for all lengths and all layers, and only where it works and pays back.

What treats each token by itself is compiled: the parts of a block before and after its attention (`Block.qkv` and
`Block.out_and_mlp`), and the loss. A single size of their tensors changes from batch to batch, and that size is marked as
dynamic, so each of the three is compiled once for training and once for evaluation, whatever the batches and the number of
layers. Attention itself is not compiled: its layouts are Python objects that differ from batch to batch, and its kernels are
fused already.

PyTorch's compiler takes seconds to import, so nothing here imports it before it is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from types import MethodType

import torch

from mini_chat_gpt.common.config_fields import ANY, SIZES, Implemented, unsupported_fields
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.layers import Rope
from mini_chat_gpt.model import GPT, Block
from mini_chat_gpt.ops.attention import Layout, Packed
from mini_chat_gpt.ops.loss import LossSums

# An estimate for GPUs, where small kernels cost more to launch than to run, and compiled code has fewer of them. On a CPU (a
# core with AVX-512-bf16, 1 to 30 million parameters; benchmarks/compiling.py) a step is 1.03 to 1.2 times faster, which pays
# for the 30 to 65 s of compiling after 7 to 20 minutes of training, or for 4 to 7 s with a warm cache after one or two.
STEPS_TO_PAY_BACK = 500

IMPLEMENTED: Implemented = SIZES | dict.fromkeys(
    (
        "norm", "norm_eps", "norm_placement", "norm_offset", "embedding_factor", "window_rope_theta",
        "position", "rope_theta", "rope_scaling", "activation", "bias", "qkv_bias", "mlp_bias",
        "qk_norm", "attention_scale", "windows", "tie_embeddings",
    ),
    ANY,
)  # fmt: skip
"""Fields of `GPTConfig`; a model in which another one differs from its default is not compiled: `compile_model` replaces
`Block.forward` by the same three calls, and a new field may change what happens between them."""


@dataclass(frozen=True)
class Choice:
    """Whether to compile, and the reason, which the run prints."""

    on: bool
    reason: str


def choose_compiling(setting: bool | str, device: torch.device, steps: int, config: GPTConfig | None = None) -> Choice:
    """Resolve system.compile for a run of that many steps with a model of this config, if it is known.

    Never raises: a run that can't compile continues without it.
    """
    if setting is False:
        return Choice(False, "not compiled: as configured")
    if setting == "auto" and device.type != "cuda":
        return Choice(False, f"not compiled: on a {device.type} that seldom pays back (system.compile=true forces it)")
    if setting == "auto" and steps < STEPS_TO_PAY_BACK:
        return Choice(False, f"not compiled: {steps} steps are too few to pay for it")
    if config is not None and (fields := unsupported_fields(config, IMPLEMENTED)):
        return Choice(False, f"not compiled: this is not implemented for a model with {', '.join(fields)}")
    obstacle = trial(device)
    if obstacle is not None:
        return Choice(False, f"not compiled: {obstacle}")
    return Choice(
        True, "compiled: as configured" if setting is True else "compiled: the run is long enough to pay for it"
    )


def trial(device: torch.device) -> str | None:
    """Compile one line of code and run it on `device`: None if that works, otherwise what is missing and what to do."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "the environment variable TORCH_COMPILE_DISABLE is set"
    try:
        if device.type == "cpu":
            check_compiler()
        x = torch.arange(64.0, device=device)
        if not torch.equal(torch.compile(_one_line)(x), _one_line(x)):
            return "in a trial, compiled code computed wrong numbers"
    except Exception as error:  # whatever it is, training works without the compiler
        return explain(error)
    return None


def _one_line(x: torch.Tensor) -> torch.Tensor:
    """(...) -> (...)"""
    return x * 2 + 1


def check_compiler() -> None:
    """Raise an exception that says what the C++ compiler lacks.

    PyTorch itself may only say "list index out of range" about a broken one, and doesn't notice a missing one while its
    cache has everything.
    """
    import torch._inductor.cpp_builder

    compiler = torch._inductor.cpp_builder.get_cpp_compiler()
    if sys.platform != "win32":
        command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr}")


# Text in the error -> what is missing, and the remedy.
OBSTACLES = {
    "Python.h": "Python's headers are missing (Python.h); install python3-dev or your system's equivalent",
    "InvalidCxxCompiler": "no C++ compiler is found; install g++ or clang, or name one in the environment variable CXX",
    "Failed to find C compiler": "Triton finds no C compiler; install gcc, or name one in the environment variable CC",
    "TritonMissing": "Triton is missing; pip install triton (on Windows triton-windows)",
    "GPUTooOldForTriton": "this GPU is older than Triton can use (compute capability 7.0)",
}


def explain(error: Exception) -> str:
    """One sentence about the error of a trial."""
    text = f"{type(error).__name__}: {error}"
    for part, sentence in OBSTACLES.items():
        if part in text:
            return sentence
    first_line = next(line.strip() for line in text.splitlines() if line.strip())
    return f"a trial failed ({first_line[:200]})"


def compile_model(model: GPT, backend: str = "inductor") -> None:
    """Make the model run compiled code from its next packed batch on, in place; weights, names and results stay the same.

    DDP or FSDP2 may wrap the model before or after. Generation is not compiled: single tokens and batches of any size would
    need code of their own. `backend` is torch.compile's ("aot_eager" needs no compiler).
    """
    import torch._dynamo

    # Compiled code ends at each layer, so gradients reach DDP's buckets layer by layer without further splits.
    torch._dynamo.config.optimize_ddp = False
    qkv = torch.compile(Block.qkv, backend=backend)
    out_and_mlp = torch.compile(Block.out_and_mlp, backend=backend)
    loss = torch.compile(GPT.head_sums, backend=backend)

    def forward(
        block: Block, x: torch.Tensor, rope: Rope | None, layout: Layout, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `Block.forward`: x (B, T, C) -> (B, T, C), or with `positions` (R,) only (B, R, C)."""
        if not isinstance(layout, Packed):
            return Block.forward(block, x, rope, layout, positions)
        q, k, v = qkv(block, any_size(x, 1), rope and (any_size(rope[0], 2), any_size(rope[1], 2)))
        x, heads = block.attend(x, q, k, v, layout, positions)
        if heads.shape[2] < 2:  # code compiled for a dynamic size excludes 0 and 1
            return Block.out_and_mlp(block, x, heads)
        return out_and_mlp(block, any_size(x, 1), any_size(heads, 2))

    def head_sums(model: GPT, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> LossSums:
        """As `GPT.head_sums`: hidden (R, C); labels, weights (R,)."""
        if len(labels) < 2:
            return GPT.head_sums(model, hidden, labels, weights)
        return loss(model, any_size(hidden, 0), any_size(labels, 0), any_size(weights, 0))

    # Bound methods, because a deep copy of the model binds them to the copy.
    model.head_sums = MethodType(head_sums, model)  # type: ignore[method-assign]
    for block in model.layers:
        block.forward = MethodType(forward, block)


def any_size(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor, marked: code compiled for it accepts any size of `dim`, also where it happens to equal another size."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor

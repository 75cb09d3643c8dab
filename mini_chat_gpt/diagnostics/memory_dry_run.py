"""The memory dry run: training steps on fake tensors in a separate process.

`python -m mini_chat_gpt.diagnostics.memory_dry_run` reads a request of memory_plan.py as JSON and prints the bytes by purpose.
The process first runs real steps of a tiny model; the memory that it then holds is the baseline of every training process
(Python, PyTorch and their kernels). Then it builds the real train step on fake tensors and runs optimizer steps, an
evaluation and the copy for a checkpoint; see memory_trace.py.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch

from mini_chat_gpt.common.child_processes import end_with_parent
from mini_chat_gpt.common.device import Precision, keep_freed_memory
from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields, SFTSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics.memory_trace import Kernels, LiveTensors, ShadowHeap, heap_bytes
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops import attention, functional, nf4
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.train_step import TrainStep

PARTS = ("weights", "gradients", "optimizer", "ema", "activations", "logits", "snapshot")
"""The purposes of tensors."""

N_PROBED_KERNELS = 24
"""Number of kernels from which the mean size of a kernel is measured."""

JSONExample = list[Any]


def encode_example(example: Example) -> JSONExample:
    """Encode the properties that memory depends on: length, loss mask and prefix branches."""
    return [len(example.ids), np.packbits(example.loss_mask).tobytes().hex(), example.prefix_branches]


def decode_example(encoded: JSONExample) -> Example:
    """Make an example with the encoded properties; its ids are zeros."""
    length, trained, branches = encoded
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(trained), dtype=np.uint8), count=length)
    return Example(np.zeros(length, dtype=np.int32), bits.astype(bool), 1.0, "", tuple(branches))


@dataclass(frozen=True)
class Machine:
    """Memory that training takes on this machine whatever is trained, in bytes."""

    baseline: int = 0
    kernels: Kernels | None = None
    kernel_on_heap: int = 0  # size on the heap of each cached kernel
    kernel_off_heap: int = 0
    note: str | None = None  # what could not be measured


def main() -> int:
    """Read the request from standard input and print the answer as the last line of standard output."""
    request = json.load(sys.stdin)
    end_with_parent(request["parent"])
    print(json.dumps(answer(request)))
    return 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `MemoryPlan`. The process can't be used for anything else afterwards."""
    for module in request["imports"]:
        import_module(module)
    config, device = Config(**request["config"]), torch.device(request["device"])
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    keep_freed_memory()
    precision = Precision(getattr(torch, request["dtype"]), "as given")
    machine = measure_machine(config, precision, device)
    sizes = dry_run(request, config, device, precision, machine)
    return sizes | {"notes": [note for note in (machine.note, sizes.pop("note", None)) if note]}


# The machine


def measure_machine(config: Config, precision: Precision, device: torch.device) -> Machine:
    """Measure the memory that is taken before the run's first tensor."""
    if device.type == "cpu":
        return measure_cpu(config, precision)
    if device.type == "cuda" and torch.cuda.is_available():
        tiny_step(config, precision, device)
        return Machine(torch.cuda.memory_allocated(device))  # workspaces of the libraries
    return Machine(
        note=f"this machine has no {device.type} device: computed on the CPU, without the workspaces of the device's libraries"
    )


def measure_cpu(config: Config, precision: Precision) -> Machine:
    """Measure resident memory after a tiny step, and the size of a kernel that the CPU caches for a new shape."""
    tiny_step(config, Precision(torch.float32, ""), torch.device("cpu"))
    kernels = Kernels(precision.dtype)
    for _ in range(8):  # the first ones load the library
        kernels.make_one()
    resident, before = memory_in_use("cpu"), heap_bytes()
    for _ in range(N_PROBED_KERNELS):
        kernels.make_one()
    added, after = memory_in_use("cpu") - resident, heap_bytes()
    if before is None or after is None:
        note = "this C library does not report its heap size: gaps between tensors are not predicted"
        return Machine(resident, None, 0, max(0, added) // N_PROBED_KERNELS, note)
    on_heap, heap_grown = max(0, after[1] - before[1]), after[0] - before[0]
    return Machine(resident, kernels, on_heap // N_PROBED_KERNELS, max(0, added - heap_grown) // N_PROBED_KERNELS)


def tiny_step(config: Config, precision: Precision, device: torch.device) -> None:
    """Run real steps, which load and allocate what every training process needs."""
    model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, context_length=64)).to(device)
    engine = TrainStep(model, config, SFTSection(), precision)
    example = Example(np.arange(40, dtype=np.int32), np.arange(40) > 20, 1.0, "tiny")
    for number in range(2):
        engine.train_step([example], step=number)


def kernel_cache_capacity() -> int:
    """The capacity of oneDNN's kernel cache; its documentation gives 1024 as the default."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1024)


# The run


def dry_run(
    request: dict[str, Any], config: Config, device: torch.device, precision: Precision, machine: Machine
) -> dict[str, Any]:
    """Run the parts of a training run on fake tensors and return the bytes by purpose."""
    on_cpu, fake_device = device.type == "cpu", device
    if not on_cpu and not (device.type == "cuda" and torch.cuda.is_available()):
        fake_device = torch.device("cpu")
        for module, name in ((attention, "use_blocked_attention"), (functional, "use_fused_cpu")):
            setattr(module, name, lambda *_: False)  # as on a GPU
    # One operation in place of the dozens that dequantize a matrix, whose scratch memory is small. It would take minutes.
    setattr(nf4, nf4._product.__name__, nf4._opaque_product)
    live = LiveTensors(fake_device.type, round_to=1 if on_cpu else 512)
    gpt_config = GPTConfig(**request["gpt_config"])
    live.logits_width = gpt_config.vocab_size
    with live:
        with live.calling("weights"), fake_device:
            model = GPT(gpt_config)
            if request["adapter"] is not None:
                add_lora(model, config.lora, *request["adapter"])
        if machine.kernels is not None:  # only now: a frozen layer is converted as it is read, without gaps
            per_shape = request["kernels"]
            live.use_heap(ShadowHeap(machine.kernels, machine.kernel_on_heap, per_shape, kernel_cache_capacity()))
        model.to = lambda *_: model  # type: ignore[method-assign]  # already on the device, and fake parameters can't be moved
        with live.calling("ema"):
            engine = TrainStep(model, config, ScheduleFields(**request["phase"]), precision)
        model.activation_checkpointing = config.training.activation_checkpointing
        for parameter in engine.optimizer.parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda parameter: live.name("gradients", [parameter.grad]))
        copied = run_steps(engine, live, request)
        sizes: dict[str, Any] = {part: live.at_peak.get(part, 0) for part in PARTS} | {"baseline": machine.baseline}
        sizes |= kernels_and_gaps(live, machine) if on_cpu else {"host": copied, "snapshot": 0}
        live.heap = None
        sizes["live_by_batch_size"] = {
            batch_size: peak_with(engine, live, batch_size, examples) for batch_size, examples in request["others"]
        }
    return sizes


def run_steps(engine: TrainStep, live: LiveTensors, request: dict[str, Any]) -> int:
    """Run steps, an evaluation, and a step while a checkpoint is being written; return the bytes copied for the checkpoint."""
    steps = [[decode_example(encoded) for encoded in step] for step in request["steps"]]
    engine.train_step(steps[0])
    live.name("optimizer", list(engine.optimizer.state_tensors().values()))
    live.restart()
    for step in steps[1:]:
        engine.train_step(step)
    if request["validation"]:
        with engine.averaged():
            engine.evaluate([decode_example(encoded) for encoded in request["validation"]])
    with live.calling("snapshot"):
        snapshot = engine.snapshot(cast(ChatTokenizer, None), {}, {})
    engine.train_step(steps[-1])
    return sum(tensor.nbytes for tensors in snapshot.tensors.values() for tensor in tensors.values())


def kernels_and_gaps(live: LiveTensors, machine: Machine) -> dict[str, Any]:
    """Memory of the process besides its tensors."""
    if live.heap is None:
        return {"kernels": len(live.products) * machine.kernel_off_heap}
    kernels, peak = live.heap.kernel_bytes, live.peak
    sizes: dict[str, Any] = {"kernels": kernels + kernels // max(1, machine.kernel_on_heap) * machine.kernel_off_heap}
    if live.heap.refused:
        return sizes | {
            "note": "the system refuses to reserve that much memory: gaps between tensors are not predicted"
        }
    return sizes | {"gaps": max(0, live.heap.grown() - peak - kernels)}


def peak_with(engine: TrainStep, live: LiveTensors, batch_size: int, examples: list[JSONExample]) -> int:
    """Peak bytes in tensors during the forward and backward pass of a micro-batch of this size."""
    engine.batch_size = batch_size
    live.restart()
    engine.train_step([decode_example(encoded) for encoded in examples], update=False)
    engine.optimizer.zero_grad()
    return live.peak


if __name__ == "__main__":
    sys.exit(main())

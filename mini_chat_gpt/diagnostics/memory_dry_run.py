"""A training run rehearsed on tensors without contents, in a process of its own: `python -m mini_chat_gpt.diagnostics.memory_dry_run`.

memory_plan.py sends a request as JSON and gets back bytes by what they are for. The process first makes a real step with a
tiny model: what it holds then is what Python, PyTorch and their kernels take wherever one trains. Then it builds the real
engine on fake tensors and goes through steps, evaluation and the copy for a checkpoint; see memory_trace.py.
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

from mini_chat_gpt.common.device import Precision, keep_freed_memory
from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields, SFTSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics.memory_trace import Kernels, LiveTensors, ShadowHeap, heap_bytes
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops import fused, packed_layout
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.run_state import run_snapshot
from mini_chat_gpt.training.train_step import TrainStep

PARTS = ("weights", "gradients", "optimizer", "ema", "activations", "logits", "snapshot")
"""What tensors are for."""

TRIED = 24
"""Kernels from which is learned what one takes."""

Packed = list[Any]


def pack(example: Example) -> Packed:
    """Length and targets, all that memory depends on, for JSON."""
    return [len(example.ids), np.packbits(example.loss_mask).tobytes().hex(), example.prefix_branches]


def unpack(packed: Packed) -> Example:
    """An example of that length with those targets."""
    length, trained, branches = packed
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(trained), dtype=np.uint8), count=length)
    return Example(np.zeros(length, dtype=np.int32), bits.astype(bool), 1.0, "", tuple(branches))


@dataclass(frozen=True)
class Machine:
    """What training takes here whatever is trained, in bytes."""

    baseline: int = 0
    kernels: Kernels | None = None
    kernel_on_heap: int = 0  # for each kernel that is prepared for a shape, and kept
    kernel_beside: int = 0
    note: str | None = None  # what could not be found out


def main() -> int:
    """Answer the request on standard input in the last line of standard output."""
    print(json.dumps(answer(json.load(sys.stdin))))
    return 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `MemoryPlan`. This process is good for nothing else afterwards."""
    for module in request["imports"]:
        import_module(module)
    config, device = Config(**request["config"]), torch.device(request["device"])
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    keep_freed_memory()
    precision = Precision(getattr(torch, request["dtype"]), "as given")
    machine = look_at_machine(config, precision, device)
    found = rehearse(request, config, device, precision, machine)
    return found | {"notes": [note for note in (machine.note, found.pop("note", None)) if note]}


# The machine


def look_at_machine(config: Config, precision: Precision, device: torch.device) -> Machine:
    """What is taken before any tensor of the run is."""
    if device.type == "cpu":
        return look_at_cpu(config, precision)
    if device.type == "cuda" and torch.cuda.is_available():
        tiny_step(config, precision, device)
        return Machine(torch.cuda.memory_allocated(device))  # workspaces of its libraries
    return Machine(
        note=f"without a {device.type} to ask: worked out on the CPU, without the workspaces of its libraries"
    )


def look_at_cpu(config: Config, precision: Precision) -> Machine:
    """Resident memory after a tiny step, and what each kernel adds that is prepared for another shape."""
    tiny_step(config, Precision(torch.float32, ""), torch.device("cpu"))
    kernels = Kernels(precision.dtype)
    for _ in range(8):  # the first ones bring in the library
        kernels.prepare()
    resident, before = memory_in_use("cpu"), heap_bytes()
    for _ in range(TRIED):
        kernels.prepare()
    added, after = memory_in_use("cpu") - resident, heap_bytes()
    if before is None or after is None:
        note = "this C library does not tell about its heap: gaps between tensors are not foreseen"
        return Machine(resident, None, 0, max(0, added) // TRIED, note)
    on_heap, heap_grown = max(0, after[1] - before[1]), after[0] - before[0]
    return Machine(resident, kernels, on_heap // TRIED, max(0, added - heap_grown) // TRIED)


def tiny_step(config: Config, precision: Precision, device: torch.device) -> None:
    """Real steps: they load and prepare what any training does."""
    model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, context_length=64)).to(device)
    engine = TrainStep(model, config, SFTSection(), precision)
    example = Example(np.arange(40, dtype=np.int32), np.arange(40) > 20, 1.0, "tiny")
    for number in range(2):
        engine.step([example], number=number)


def kernels_kept() -> int:
    """How many kernels oneDNN keeps at most (its documentation: 1024)."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1024)


# The run


def rehearse(
    request: dict[str, Any], config: Config, device: torch.device, precision: Precision, machine: Machine
) -> dict[str, Any]:
    """Go through a run's parts on tensors without contents: bytes by what they are for."""
    on_cpu, place = device.type == "cpu", device
    if not on_cpu and not (device.type == "cuda" and torch.cuda.is_available()):
        place = torch.device("cpu")
        for module, name in ((packed_layout, "blocks_are_faster"), (fused, "use_fused_cpu")):
            setattr(module, name, lambda *_: False)  # as on a GPU
    heap = None
    if machine.kernels is not None:
        heap = ShadowHeap(machine.kernels, machine.kernel_on_heap, request["kernels"], kernels_kept())
    live = LiveTensors(place.type, heap, round_to=1 if on_cpu else 512)
    gpt_config = GPTConfig(**request["gpt_config"])
    live.logits_width = gpt_config.vocab_size
    with live:
        with live.calling("weights"), place:
            model = GPT(gpt_config)
            if request["adapter"] is not None:
                add_lora(model, config.lora, *request["adapter"])
        model.to = lambda *_: model  # type: ignore[method-assign]  # it is there, and fake parameters can't be moved
        with live.calling("ema"):
            engine = TrainStep(model, config, ScheduleFields(**request["phase"]), precision)
        model.activation_checkpointing = config.training.activation_checkpointing
        for parameter in engine.optimizer.parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda parameter: live.name("gradients", [parameter.grad]))
        copied = go_through(engine, live, request)
        found: dict[str, Any] = {part: live.at_peak.get(part, 0) for part in PARTS} | {"baseline": machine.baseline}
        found |= kernels_and_gaps(live, machine) if on_cpu else {"host": copied, "snapshot": 0}
        live.heap = None
        found["live_by_batch_size"] = {size: peak_with(engine, live, size, those) for size, those in request["others"]}
    return found


def go_through(engine: TrainStep, live: LiveTensors, request: dict[str, Any]) -> int:
    """Steps, an evaluation, and a step while a checkpoint is being written; returns the bytes that are copied for it."""
    steps = [[unpack(packed) for packed in step] for step in request["steps"]]
    engine.step(steps[0])
    live.name("optimizer", list(engine.optimizer.state_tensors().values()))
    live.restart()
    for step in steps[1:]:
        engine.step(step)
    if request["validation"]:
        with engine.averaged():
            engine.evaluate([unpack(packed) for packed in request["validation"]])
    with live.calling("snapshot"):
        snapshot = run_snapshot(engine, cast(ChatTokenizer, None), {}, {})
    engine.step(steps[-1])
    return sum(tensor.nbytes for tensors in snapshot.tensors.values() for tensor in tensors.values())


def kernels_and_gaps(live: LiveTensors, machine: Machine) -> dict[str, Any]:
    """What resident memory has beside tensors."""
    if live.heap is None:
        return {"kernels": len(live.products) * machine.kernel_beside}
    kept, peak = live.heap.kept, live.peak
    found = {"kernels": kept + kept // max(1, machine.kernel_on_heap) * machine.kernel_beside}
    if live.heap.refused:
        return found | {"note": "the system promises no such amount of memory: gaps between tensors are not foreseen"}
    return found | {"gaps": max(0, live.heap.grown() - peak - kept)}


def peak_with(engine: TrainStep, live: LiveTensors, batch_size: int, examples: list[Packed]) -> int:
    """Most bytes in tensors while a micro-batch of this size is gone through."""
    engine.batch_size = batch_size
    live.restart()
    engine.accumulate([unpack(packed) for packed in examples])
    engine.optimizer.zero_grad()
    return live.peak


if __name__ == "__main__":
    sys.exit(main())

"""The memory that training will need at most, predicted from the settings without taking it.

The training code itself (engine.py: forward, backward, update; evaluation; the copy for a checkpoint) is run on tensors without
contents, see memory_trace.py. That happens in a process of its own, which first makes one real step with a tiny model:
what it holds then is what Python, PyTorch and their kernels take wherever one trains. On a CPU the prediction is of resident
memory; the gaps that the C library leaves between tensors and the kernels that oneDNN keeps for each shape are part of it, the
latter measured on this machine. On a GPU it is what PyTorch's allocator will have handed out at most.

What is not foreseen: compiled code (system.compile), which needs less for activations and more for itself; the processes of
data.num_workers; and what others on the machine take. Of several processes (torchrun) it is what each of them needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from mini_chat_gpt import attention
from mini_chat_gpt.attention import Flat
from mini_chat_gpt.batching import Batch, Example, micro_batches
from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields
from mini_chat_gpt.device import Precision, keep_freed_memory
from mini_chat_gpt.engine import Engine
from mini_chat_gpt.memory_trace import LiveTensors, ShadowHeap, heap_bytes
from mini_chat_gpt.memory_use import in_use
from mini_chat_gpt.model import GPT, ROUND_TO
from mini_chat_gpt.run_state import run_snapshot

Steps = Sequence[Sequence[Example]]
PARTS = ("weights", "gradients", "optimizer", "ema", "activations", "logits", "snapshot")
TRACED = 3
"""Micro-batches of a step that are run through; the largest are among them."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the moment when most are needed, by what they are for; `total` is the prediction."""

    weights: int = 0  # with the tables of rotary positions
    gradients: int = 0  # those that exist at that moment: of the micro-batches before
    optimizer: int = 0
    ema: int = 0
    activations: int = 0  # kept for the backward pass, and temporary
    logits: int = 0  # whatever has a column for each entry of the vocabulary
    snapshot: int = 0  # the copy that a checkpoint is written from while training goes on
    gaps: int = 0  # between tensors, which the C library could not use again
    kernels: int = 0  # prepared for the shapes of matrix products, and kept
    baseline: int = 0  # Python, PyTorch and what it prepares in any training
    other: int = 0  # what the caller says is there besides: tokenizer, data
    host: int = 0  # not in the total: the snapshot of a model that is trained on a GPU
    notes: tuple[str, ...] = ()  # what the prediction could not take into account here
    live_by_batch_size: dict[int, int] = field(default_factory=dict)  # most bytes in tensors, without a snapshot

    @property
    def tensors(self) -> int:
        """Bytes in tensors."""
        return sum(cast(int, getattr(self, part)) for part in PARTS)

    @property
    def total(self) -> int:
        return self.tensors + self.gaps + self.kernels + self.baseline + self.other


def plan_memory(
    gpt_config: GPTConfig,
    steps: Steps,
    config: Config,
    phase: ScheduleFields,
    device: torch.device | str,
    dtype: torch.dtype,
    validation: Sequence[Example] = (),
    imports: Sequence[str] = ("mini_chat_gpt.runs",),
    other: int = 0,
    batch_sizes: Sequence[int] = (),
) -> MemoryPlan:
    """What training with `config` takes at most, in bytes; a few seconds, and no more memory than an idle process.

    steps       the examples of some optimizer steps, as the trainer reads them; the largest micro-batch decides, so give many
    dtype       of the matrix products (`Precision.dtype`)
    imports     modules that the real process will have loaded
    other       bytes that it holds besides: tokenizer, index of the data, examples
    batch_sizes for these the bytes in tensors are found as well (`live_by_batch_size`)

    Raises RuntimeError with its last words if the other process fails.
    """
    batch_size = phase.batch_size or config.training.batch_size
    measures = [_measure(step, batch_size, config.training.batch_tokens) for step in steps]
    traced = [cut for cut in _worth_tracing(measures) if cut]
    request = {
        "gpt_config": gpt_config.model_dump(),
        "config": config.model_dump(),
        "phase": phase.model_dump(include=set(ScheduleFields.model_fields)),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": [[_to_json(example) for micro in step for example in micro.examples] for step in traced],
        "validation": [_to_json(example) for example in _longest(validation, max(8, batch_size))],
        "imports": list(imports),
        "shapes": [len(_shapes(measures)), len(_shapes(traced))],
        "others": [[size, [_to_json(e) for e in _largest(steps, size, config)]] for size in batch_sizes],
    }
    found = _in_another_process(request)
    sizes = {int(size): live for size, live in found.pop("live_by_batch_size").items()}
    return MemoryPlan(**found | {"notes": tuple(found["notes"])}, other=other, live_by_batch_size=sizes)


def largest_batch(
    gpt_config: GPTConfig,
    steps: Steps,
    config: Config,
    phase: ScheduleFields,
    device: torch.device | str,
    dtype: torch.dtype,
    fits: int,
    **more: Any,
) -> tuple[int, MemoryPlan]:
    """(most examples per micro-batch with which training stays within `fits` bytes, its plan); 0 if not even one does.

    No more than a step has. What lies between two sizes is estimated, and the size found is planned for itself. `more` is
    passed on to `plan_memory`.
    """
    most = max(len(step) for step in steps)
    size = min(most, phase.batch_size or config.training.batch_size)
    for _ in range(4):
        probe = max(1, min(most, 2 * size) if size < most else size // 2)
        plan = _plan_for(size, gpt_config, steps, config, phase, device, dtype, batch_sizes=(size, probe), **more)
        if size == most and plan.total <= fits:
            return size, plan
        live, other = plan.live_by_batch_size[size], plan.live_by_batch_size[probe]
        # Gaps grow with the tensors between which they lie.
        an_example = (other - live) / (probe - size) * (1 + plan.gaps / plan.tensors) if probe != size else plan.total
        more_examples = int((fits - plan.total) // max(1.0, an_example))
        if plan.total <= fits and more_examples < 1:
            return size, plan
        if plan.total > fits and size == 1:
            return 0, plan
        size = min(most, max(1, size + (more_examples if plan.total <= fits else min(-1, more_examples))))
    while size > 1 and (plan := _plan_for(size, gpt_config, steps, config, phase, device, dtype, **more)).total > fits:
        size -= 1
    return (size, plan) if plan.total <= fits else (0, plan)


def _plan_for(size: int, gpt_config: GPTConfig, steps: Steps, config: Config, phase: ScheduleFields, *rest: Any, **more: Any) -> MemoryPlan:
    return plan_memory(gpt_config, steps, config, phase.model_copy(update={"batch_size": size}), *rest, **more)


@dataclass(frozen=True)
class Split:
    """A step's examples as `accumulation` micro-batches of at most `batch_size` examples."""

    batch_size: int
    accumulation: int


def splits(examples_per_step: int, largest: int) -> list[Split]:
    """Ways to cut a step into about equal micro-batches of at most `largest` examples, the largest first, each half as large."""
    found: list[Split] = []
    size = min(largest, examples_per_step)
    while size >= 1:
        count = -(-examples_per_step // size)
        even = -(-examples_per_step // count)
        found.append(Split(even, count))
        size = even // 2
    return found


# Which examples to run through


@dataclass(frozen=True)
class _Micro:
    """A micro-batch and its measures."""

    batch: Batch
    examples: list[Example]

    @property
    def shapes(self) -> set[tuple[object, ...]]:
        """What the shapes of its matrix products depend on."""
        groups = Flat.from_offsets(self.batch.offsets).groups
        sizes = {("tokens", -(-self.batch.n_tokens // ROUND_TO)), ("rows", -(-len(self.batch.rows) // ROUND_TO))}
        return sizes | {("group", group.n, group.longest) for group in groups}


def _measure(step: Sequence[Example], batch_size: int, batch_tokens: int | None) -> list[_Micro]:
    """The micro-batches of a step."""
    in_order = iter(sorted(step, key=lambda example: len(example.ids), reverse=True))
    batches = micro_batches(step, batch_size, batch_tokens)
    return [_Micro(batch, [next(in_order) for _ in range(batch.n_examples)]) for batch in batches]


def _worth_tracing(steps: Sequence[list[_Micro]]) -> list[list[_Micro]]:
    """Two steps as they come, then those with most tokens and most targets in a micro-batch, each cut to a few micro-batches."""

    def most(measure: str) -> int:
        def size(number: int) -> int:
            return max(len(getattr(micro.batch, measure)) for micro in steps[number])

        return max(range(len(steps)), key=size)

    numbers = [0, min(1, len(steps) - 1), most("rows"), most("ids")]
    return [_cut(steps[number]) for number in dict.fromkeys(numbers)]


def _cut(step: list[_Micro]) -> list[_Micro]:
    by_rows = max(range(len(step)), key=lambda number: len(step[number].batch.rows))
    numbers = sorted([by_rows, *(number for number in range(len(step)) if number != by_rows)][:TRACED] + [0])
    return [step[number] for number in dict.fromkeys(numbers)]


def _shapes(steps: Sequence[list[_Micro]]) -> set[tuple[object, ...]]:
    return {shape for step in steps for micro in step for shape in micro.shapes}


def _largest(steps: Steps, batch_size: int, config: Config) -> list[Example]:
    """The examples of the micro-batch with most tokens, were micro-batches of this size."""
    micros = [micro for step in steps for micro in _measure(step, batch_size, config.training.batch_tokens)]
    return max(micros, key=lambda micro: micro.batch.n_tokens).examples


def _longest(examples: Sequence[Example], n: int) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.ids), reverse=True)[:n]


def _to_json(example: Example) -> list[Any]:
    """Length and targets, all that memory depends on."""
    return [len(example.ids), np.packbits(example.trained).tobytes().hex()]


def _from_json(given: list[Any]) -> Example:
    length, trained = given
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(trained), dtype=np.uint8), count=length)
    return Example(np.zeros(length, dtype=np.int32), bits.astype(bool), 1.0, "")


def _in_another_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "mini_chat_gpt.memory_plan"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeError(f"the memory could not be planned: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# The other process


@dataclass(frozen=True)
class _Machine:
    """What training takes here whatever is trained."""

    baseline: int
    kernel_heap: int = 0  # bytes on the heap for each kernel that is kept
    kernel_beside: int = 0  # and beside it


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What `MemoryPlan` holds, found in this very process, which is good for nothing else afterwards."""
    for module in request["imports"]:
        import_module(module)
    config, device, notes = Config(**request["config"]), torch.device(request["device"]), []
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    keep_freed_memory()
    precision = Precision(getattr(torch, request["dtype"]), "as given")
    if device.type == "cpu":
        machine = _measure_cpu(config, precision)
        if heap_bytes() is None:
            notes.append("this C library does not tell about its heap: gaps between tensors are not foreseen")
    elif device.type == "cuda" and torch.cuda.is_available():
        machine = _Machine(_left_on_gpu(config, precision, device))
    else:
        machine = _Machine(0)
        notes.append(f"there is no {device.type} to ask here: worked out on the CPU, without the libraries' workspaces")
    return _trace(request, config, device, precision, machine) | {"notes": notes}


def _tiny_step(config: Config, precision: Precision, device: torch.device) -> None:
    """A real step: it loads and prepares what any training does."""
    model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, context_length=64))
    engine = Engine(model.to(device), config, config.sft.model_copy(update={"batch_size": 1}), precision)
    example = Example(np.arange(40, dtype=np.int32), np.arange(40) > 20, 1.0, "tiny")
    for number in range(2):
        engine.step([example], number=number)


def _measure_cpu(config: Config, precision: Precision) -> _Machine:
    """Resident memory after a tiny step, and what each kernel takes that is prepared for a new shape."""
    _tiny_step(config, Precision(torch.float32, ""), torch.device("cpu"))
    matrix = torch.ones(256, 256, dtype=precision.dtype)
    for rows in (8, 24):  # the first ones bring in the library
        matrix[:rows] @ matrix
    resident, heap = in_use("cpu"), heap_bytes()
    tried = range(40, 240, 8)
    for rows in tried:
        matrix[:rows] @ matrix
    now, grown = heap_bytes(), in_use("cpu") - resident
    on_heap = (now[1] - heap[1]) // len(tried) if now and heap else 0
    heap_grown = now[0] - heap[0] if now and heap else 0
    return _Machine(resident, max(0, on_heap), max(0, grown - heap_grown) // len(tried))


def _left_on_gpu(config: Config, precision: Precision, device: torch.device) -> int:
    """What stays allocated when a tiny model is gone: workspaces of the libraries."""
    _tiny_step(config, precision, device)
    return torch.cuda.memory_allocated(device)


def _trace(
    request: dict[str, Any], config: Config, device: torch.device, precision: Precision, machine: _Machine
) -> dict[str, Any]:
    """Run a run's parts on tensors without contents."""
    real_gpu = device.type == "cuda" and torch.cuda.is_available()
    stand_in = device.type != "cpu" and not real_gpu
    if stand_in:  # what attention does on a GPU
        attention._bf16_products = attention._sdpa_heads_first
    place = torch.device("cpu") if stand_in else device
    with_heap = device.type == "cpu" and heap_bytes() is not None
    capacity = _kernels_kept()
    heap = ShadowHeap(machine.kernel_heap, capacity) if with_heap else None
    live = LiveTensors(place.type, heap, round_to=1 if device.type == "cpu" else 512)
    gpt_config = GPTConfig(**request["gpt_config"])
    live.logits_width = gpt_config.vocab_size
    with live:
        with live.calling("weights"), torch.device(place):
            model = GPT(gpt_config)
        with live.calling("ema"):
            engine = Engine(model, config, ScheduleFields(**request["phase"]), precision)
        engine.model.activation_checkpointing = config.training.activation_checkpointing
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: live.name("gradients", p.grad))
        _run_through(engine, live, request)
        found: dict[str, Any] = {part: live.at_peak.get(part, 0) for part in PARTS}
        grown, products = heap.grown() if heap else live.peak, len(live.products)
        live.heap = None
        sizes = {size: _live_with(engine, live, size, examples) for size, examples in request["others"]}
    all_shapes, traced_shapes = request["shapes"]
    kernels = min(capacity, products * all_shapes // max(1, traced_shapes))
    of_kernels = machine.kernel_beside * kernels + machine.kernel_heap * kernels
    in_heap = machine.kernel_heap * min(products, capacity)
    found |= {"gaps": max(0, grown - live.peak_before - in_heap), "kernels": of_kernels, "baseline": machine.baseline}
    if device.type != "cpu":
        found |= {"kernels": 0, "gaps": 0, "host": found["snapshot"], "snapshot": 0}
    return found | {"live_by_batch_size": sizes}

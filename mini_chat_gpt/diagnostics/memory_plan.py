"""The memory that training will need at most, predicted from the settings without taking it.

The training code itself (engine.py: forward, backward, update; evaluation; the copy for a checkpoint) is run on tensors
without contents, in a process of its own (rehearsal.py). On a CPU the prediction is of resident memory: Python and its
libraries, the gaps that the C library leaves between tensors, and the kernels that oneDNN keeps for each shape are part of it,
all of them measured on this machine. On a GPU it is what PyTorch's allocator will have handed out at most.

What is not foreseen: compiled code (system.compile), which needs less for activations and more for itself; the processes of
data.num_workers; and what others on the machine take. Of several processes (torchrun) it is what each of them needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields
from mini_chat_gpt.data.batching import Batch, Example, micro_batches
from mini_chat_gpt.diagnostics.memory_dry_run import PARTS, pack
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.model import ROUND_TO
from mini_chat_gpt.ops.packed_layout import Packed

Steps = Sequence[Sequence[Example]]
WORK = {"cpu": 300, "others": 100}
"""Attention products to go through: groups of examples times layers. On a CPU more, since there gaps build up."""
MOST_OF_A_STEP = 3
"""Micro-batches."""


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
    live_by_batch_size: dict[int, int] = field(
        default_factory=dict
    )  # of two sizes: most bytes in tensors of a micro-batch

    @property
    def tensors(self) -> int:
        """Bytes in tensors."""
        return sum(int(getattr(self, part)) for part in PARTS)

    @property
    def bytes_per_example(self) -> float:
        """What another example in the micro-batch takes, from the two sizes in `live_by_batch_size`; gaps grow alike."""
        (small, fewer), (large, most) = sorted(self.live_by_batch_size.items())
        return max(1.0, (most - fewer) / (large - small) * (1 + self.gaps / self.tensors))

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
    imports: Sequence[str] = ("mini_chat_gpt.training.run",),
    other: int = 0,
    adapter: Adapter | None = None,
) -> MemoryPlan:
    """What training with `config` takes at most, in bytes. Takes some seconds, and little more memory than an idle process.

    steps       the examples of some optimizer steps, as the trainer reads them; the largest micro-batch decides, so give many
    dtype       of the matrix products (`Precision.dtype`)
    imports     modules that the real process will have loaded
    other       bytes that it holds besides: tokenizer, index of the data, examples
    adapter     what is trained of the model, where it isn't the whole

    Raises RuntimeError with its last words if the other process fails.
    """
    batch_size = config.step_size(phase).batch_size
    measures = [_measure(step, batch_size, config.training.batch_tokens) for step in steps]
    work = WORK.get(torch.device(device).type, WORK["others"])
    rehearsed = _worth_rehearsing(measures, work / gpt_config.n_layer)
    request = {
        "gpt_config": gpt_config.model_dump(),
        "config": config.model_dump(),
        "adapter": [adapter.frozen, adapter.token_ids] if adapter is not None else None,
        "phase": phase.model_dump(include=set(ScheduleFields.model_fields)),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": [[pack(example) for micro in step for example in micro.examples] for step in rehearsed],
        "validation": [pack(example) for example in _longest(validation, max(8, batch_size))],
        "imports": list(imports),
        "kernels": len(_shapes(measures)) / len(_shapes(rehearsed)),
        "others": [
            [size, [pack(e) for e in _largest(steps, size, config)]] for size in (batch_size, _another(batch_size))
        ],
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
    first: MemoryPlan | None = None,
    **more: Any,
) -> tuple[int, MemoryPlan]:
    """(most examples per micro-batch with which training stays within `fits` bytes, its plan); 0 if not even one does.

    Never more than a step has. Where to look next is estimated from two sizes; the size found is planned for itself. `first`
    is the plan for the configured size, if that is there already; `more` goes to `plan_memory`.
    """
    fitting, too_large = 0, max(len(step) for step in steps) + 1
    size = min(too_large - 1, config.step_size(phase).batch_size)
    best = None
    while True:
        sized = phase.model_copy(update={"batch_size": size})
        plan, first = first or plan_memory(gpt_config, steps, config, sized, device, dtype, **more), None
        if plan.total <= fits:
            fitting, best = size, plan
        else:
            too_large = size
        room = (fits - plan.total) / plan.bytes_per_example
        guess = size + int(room) if room >= 0 else min(size - 1, size + int(room) - 1)
        size = max(min(guess, too_large - 1), 1)
        if size <= fitting or size >= too_large:
            return fitting, best or plan


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


# Which examples to go through


def _another(batch_size: int) -> int:
    """A second size, from which is seen what an example takes."""
    return batch_size // 2 or 2


@dataclass(frozen=True)
class _Micro:
    """A micro-batch and its measures."""

    batch: Batch
    examples: list[Example]

    @property
    def groups(self) -> int:
        return len(Packed(self.batch.cu_seqlens).groups)

    @property
    def shapes(self) -> set[tuple[object, ...]]:
        """What the shapes of its matrix products depend on."""
        groups = Packed(self.batch.cu_seqlens).groups
        sizes = {
            ("tokens", -(-self.batch.n_tokens // ROUND_TO)),
            ("rows", -(-len(self.batch.target_positions) // ROUND_TO)),
        }
        return sizes | {("group", group.n, group.longest) for group in groups}


def _measure(step: Sequence[Example], batch_size: int, batch_tokens: int | None) -> list[_Micro]:
    """The micro-batches of a step."""
    in_order = iter(sorted(step, key=lambda example: len(example.ids), reverse=True))
    batches = micro_batches(step, batch_size, batch_tokens)
    return [_Micro(batch, [next(in_order) for _ in range(batch.n_examples)]) for batch in batches]


def _worth_rehearsing(steps: Sequence[list[_Micro]], most_groups: float) -> list[list[_Micro]]:
    """Some steps as they come, as far as `most_groups` allow, then those with most targets and most tokens in a micro-batch.

    Of each a few micro-batches; the largest are always among them.
    """

    def tokens(number: int) -> int:
        return max(micro.batch.n_tokens for micro in steps[number])

    def targets(number: int) -> int:
        return max(len(micro.batch.target_positions) for micro in steps[number])

    numbers = range(len(steps))
    largest = list(dict.fromkeys([max(numbers, key=targets), max(numbers, key=tokens)]))
    chosen = [_few_of(steps[number], most_groups / len(largest)) for number in largest]
    before: list[list[_Micro]] = []
    left = most_groups - sum(micro.groups for step in chosen for micro in step)
    for number in numbers:
        step = _few_of(steps[number], left)
        left -= sum(micro.groups for micro in step)
        if left < 0:
            break
        if number not in largest:
            before.append(step)
    return before + chosen


def _few_of(step: list[_Micro], most_groups: float) -> list[_Micro]:
    """The first micro-batch, which has the longest examples, the one with most targets, and others while they are few."""
    most_targets = max(range(len(step)), key=lambda number: len(step[number].batch.target_positions))
    chosen = list(dict.fromkeys([0, most_targets, *range(len(step))]))[:MOST_OF_A_STEP]
    while len(chosen) > 2 - (most_targets == 0) and sum(step[number].groups for number in chosen) > most_groups:
        chosen.pop()
    return [step[number] for number in sorted(chosen)]


def _shapes(steps: Sequence[list[_Micro]]) -> set[tuple[object, ...]]:
    return {shape for step in steps for micro in step for shape in micro.shapes}


def _largest(steps: Steps, batch_size: int, config: Config) -> list[Example]:
    """The examples of the micro-batch with most tokens, were micro-batches of this size."""
    micros = [micro for step in steps for micro in _measure(step, batch_size, config.training.batch_tokens)]
    return max(micros, key=lambda micro: micro.batch.n_tokens).examples


def _longest(examples: Sequence[Example], n: int) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.ids), reverse=True)[:n]


def _in_another_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "mini_chat_gpt.diagnostics.memory_dry_run"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeError(f"the memory could not be planned: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])

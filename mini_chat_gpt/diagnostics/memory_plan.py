"""Predict the peak memory of training from the settings, without allocating it.

The training code itself (training/train_step.py: forward, backward, update; evaluation; the copy for a checkpoint) runs on
fake tensors in a separate process (memory_dry_run.py). On a CPU the prediction is resident memory: Python and its libraries,
the gaps that the C library leaves between tensors, and the kernels that oneDNN caches for each shape are part of it, all
measured on this machine. On a GPU it is the peak of PyTorch's allocator.

Not predicted: compiled code (system.compile), which needs less memory for activations but memory of its own; the processes of
data.num_workers; and other processes on the machine. With several processes (torchrun) it is the memory of each of them.
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

from mini_chat_gpt.common.json_files import DamagedJSON, parse_json
from mini_chat_gpt.config import Config, GPTConfig, ScheduleFields
from mini_chat_gpt.data.batching import Batch, Example, collate, group_examples
from mini_chat_gpt.diagnostics.memory_dry_run import PARTS, encode_example
from mini_chat_gpt.lora import Adapter
from mini_chat_gpt.ops.packed_layout import Packed

Steps = Sequence[Sequence[Example]]
WORK = {"cpu": 300, "others": 100}
"""Attention calls in the dry run: groups of examples times layers. On a CPU more, because gaps build up there."""
MAX_MICRO_BATCHES = 3
"""Micro-batches of each step in the dry run."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak, by purpose; `total` is the prediction."""

    weights: int = 0  # including the tables of rotary positions
    gradients: int = 0  # that exist at the peak: those of the previous micro-batches
    optimizer: int = 0
    ema: int = 0
    activations: int = 0  # saved for the backward pass, and temporary
    logits: int = 0  # tensors with a column for each entry of the vocabulary
    snapshot: int = 0  # the copy from which a checkpoint is written while training continues
    gaps: int = 0  # between tensors, which the C library could not reuse
    kernels: int = 0  # cached for the shapes of matrix products
    baseline: int = 0  # Python, PyTorch and what every training process allocates
    other: int = 0  # given by the caller: tokenizer, data
    host: int = 0  # not in the total: the snapshot in CPU memory when training on a GPU
    notes: tuple[str, ...] = ()  # what the prediction does not cover here
    live_by_batch_size: dict[int, int] = field(default_factory=dict)  # for two sizes: peak bytes in tensors

    @property
    def tensors(self) -> int:
        """Peak bytes in tensors."""
        return sum(int(getattr(self, part)) for part in PARTS)

    @property
    def bytes_per_example(self) -> float:
        """Memory of one more example in the micro-batch, from the two sizes in `live_by_batch_size`; gaps grow in proportion."""
        (small, small_bytes), (large, large_bytes) = sorted(self.live_by_batch_size.items())
        return max(1.0, (large_bytes - small_bytes) / (large - small) * (1 + self.gaps / self.tensors))

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
    """Predict the peak memory of training with `config`, in bytes.

    Takes some seconds, and little more memory than an idle process.

    steps       the examples of some optimizer steps as the trainer reads them. The largest micro-batch decides, so give many
    dtype       of the matrix products (`Precision.dtype`)
    imports     modules that the training process will import
    other       further bytes in that process: tokenizer, index of the data, examples
    adapter     the adapter that is trained, if not the whole model

    Raises RuntimeError with the last line of its output if the dry run fails.
    """
    batch_size = config.step_size(phase).batch_size
    measures = [_split_step(step, batch_size, config.training.batch_tokens) for step in steps]
    work = WORK.get(torch.device(device).type, WORK["others"])
    dry_run_steps = _choose_steps(measures, work / gpt_config.n_layer)
    request = {
        "gpt_config": gpt_config.model_dump(),
        "config": config.model_dump(),
        "adapter": [adapter.frozen, adapter.token_ids] if adapter is not None else None,
        # A rate chosen by auto depends on weights, which the dry run does not have.
        "phase": phase.model_dump(include=set(ScheduleFields.model_fields)) | {"learning_rate": 1e-3},
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": [[encode_example(example) for micro in step for example in micro.examples] for step in dry_run_steps],
        "validation": [encode_example(example) for example in _longest(validation, max(8, batch_size))],
        "imports": list(imports),
        "kernels": len(_shapes(measures)) / len(_shapes(dry_run_steps)),
        "others": [
            [size, [encode_example(e) for e in _largest(steps, size, config)]]
            for size in (batch_size, _second_size(batch_size))
        ],
    }
    sizes = _in_another_process(request)
    live = {int(batch_size): n_bytes for batch_size, n_bytes in sizes.pop("live_by_batch_size").items()}
    return MemoryPlan(**sizes | {"notes": tuple(sizes["notes"])}, other=other, live_by_batch_size=live)


def largest_batch(
    gpt_config: GPTConfig,
    steps: Steps,
    config: Config,
    phase: ScheduleFields,
    device: torch.device | str,
    dtype: torch.dtype,
    limit: int,
    first: MemoryPlan | None = None,
    **more: Any,
) -> tuple[int, MemoryPlan]:
    """The largest micro-batch size whose training needs at most `limit` bytes, and its plan; size 0 if none does.

    Never exceeds the number of examples in a step. The search estimates the next size from the memory of two sizes and plans
    each candidate. `first` is the plan of the configured size, if it exists already; `more` goes to `plan_memory`.
    """
    fitting, too_large = 0, max(len(step) for step in steps) + 1
    size = min(too_large - 1, config.step_size(phase).batch_size)
    best = None
    while True:
        sized = phase.model_copy(update={"batch_size": size})
        plan, first = first or plan_memory(gpt_config, steps, config, sized, device, dtype, **more), None
        if plan.total <= limit:
            fitting, best = size, plan
        else:
            too_large = size
        spare = (limit - plan.total) / plan.bytes_per_example
        guess = size + int(spare) if spare >= 0 else min(size - 1, size + int(spare) - 1)
        size = max(min(guess, too_large - 1), 1)
        if size <= fitting or size >= too_large:
            return fitting, best or plan


@dataclass(frozen=True)
class Split:
    """A step's examples as `accumulation` micro-batches of at most `batch_size` examples."""

    batch_size: int
    accumulation: int


def splits(examples_per_step: int, largest: int) -> list[Split]:
    """Ways to split a step into micro-batches of about equal size: at most `largest` examples first, then half as many each time."""
    result: list[Split] = []
    size = min(largest, examples_per_step)
    while size >= 1:
        count = -(-examples_per_step // size)
        even = -(-examples_per_step // count)
        result.append(Split(even, count))
        size = even // 2
    return result


# Which examples the dry run uses


def _second_size(batch_size: int) -> int:
    """A second micro-batch size, from which the memory of one example is computed."""
    return batch_size // 2 or 2


@dataclass(frozen=True)
class _Micro:
    """A micro-batch and its sizes."""

    batch: Batch
    examples: list[Example]

    @property
    def groups(self) -> int:
        return len(Packed(self.batch.cu_seqlens).groups)

    @property
    def shapes(self) -> set[tuple[object, ...]]:
        """The numbers that the shapes of its matrix products depend on."""
        groups = Packed(self.batch.cu_seqlens).groups
        sizes = {
            ("tokens", len(self.batch.ids)),
            ("rows", len(self.batch.target_positions)),
        }
        return sizes | {("group", group.n, group.max_seqlen) for group in groups}


def _split_step(step: Sequence[Example], batch_size: int, batch_tokens: int | None) -> list[_Micro]:
    """Split a step into its micro-batches."""
    return [_Micro(collate(group), group) for group in group_examples(step, batch_size, batch_tokens)]


def _choose_steps(steps: Sequence[list[_Micro]], max_groups: float) -> list[list[_Micro]]:
    """Choose the first steps, up to `max_groups`, and then the steps whose micro-batches have the most targets and tokens.

    Each step is reduced to a few micro-batches, which always include its largest ones.
    """

    def tokens(number: int) -> int:
        return max(micro.batch.n_tokens for micro in steps[number])

    def targets(number: int) -> int:
        return max(micro.batch.n_targets for micro in steps[number])

    numbers = range(len(steps))
    largest = list(dict.fromkeys([max(numbers, key=targets), max(numbers, key=tokens)]))
    chosen = [_few_of(steps[number], max_groups / len(largest)) for number in largest]
    first: list[list[_Micro]] = []
    budget = max_groups - sum(micro.groups for step in chosen for micro in step)
    for number in numbers:
        step = _few_of(steps[number], budget)
        budget -= sum(micro.groups for micro in step)
        if budget < 0:
            break
        if number not in largest:
            first.append(step)
    return first + chosen


def _few_of(step: list[_Micro], max_groups: float) -> list[_Micro]:
    """The first micro-batch, which has the longest examples, the one with the most targets, and others within the limits."""
    most_targets = max(range(len(step)), key=lambda number: step[number].batch.n_targets)
    chosen = list(dict.fromkeys([0, most_targets, *range(len(step))]))[:MAX_MICRO_BATCHES]
    while len(chosen) > 2 - (most_targets == 0) and sum(step[number].groups for number in chosen) > max_groups:
        chosen.pop()
    return [step[number] for number in sorted(chosen)]


def _shapes(steps: Sequence[list[_Micro]]) -> set[tuple[object, ...]]:
    return {shape for step in steps for micro in step for shape in micro.shapes}


def _largest(steps: Steps, batch_size: int, config: Config) -> list[Example]:
    """The examples of the micro-batch with the most tokens, if micro-batches had this size."""
    micros = [micro for step in steps for micro in _split_step(step, batch_size, config.training.batch_tokens)]
    return max(micros, key=lambda micro: micro.batch.n_tokens).examples


def _longest(examples: Sequence[Example], n: int) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.ids), reverse=True)[:n]


def _in_another_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "mini_chat_gpt.diagnostics.memory_dry_run"]
    request = request | {"parent": os.getpid()}
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeError(f"memory could not be predicted: {lines[-1]}")
    last_line = done.stdout.rstrip().rpartition("\n")[2]
    try:
        return parse_json(last_line, dict[str, Any], "the answer of memory_dry_run", "report it with the command")
    except DamagedJSON as error:
        raise RuntimeError(f"memory could not be predicted: {error}") from None

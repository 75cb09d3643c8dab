"""The predicted peak of memory, compared with the measured peak of a process, and part by part."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mini_chat_gpt.config import PRESETS, GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.diagnostics import memory_plan
from mini_chat_gpt.diagnostics.memory_dry_run import decode_example, encode_example
from mini_chat_gpt.diagnostics.memory_plan import MemoryPlan, Split, largest_batch, plan_memory, splits
from mini_chat_gpt.diagnostics.memory_trace import heap_bytes
from mini_chat_gpt.model import GPT

TINY = GPTConfig(vocab_size=1000, n_layer=2, n_head=2, n_embd=64, context_length=128)


def example(length: int, trained_from: float = 0.5) -> Example:
    return Example(np.zeros(length, dtype=np.int32), np.arange(length) >= trained_from * length, 1.0, "x")


def steps_of(longest: int, n_steps: int = 4, each: int = 8) -> list[list[Example]]:
    rng = np.random.default_rng(0)
    return [[example(int(n)) for n in rng.integers(longest // 3, longest + 1, each)] for _ in range(n_steps)]


def config_with(**training):
    return parse_config({"training": {"batch_size": 4} | training, "system": {"threads": 1}}, "the test")


def plan_of(device="cpu", **training) -> MemoryPlan:
    config, steps = config_with(**training), steps_of(128, n_steps=2, each=4)
    return plan_memory(TINY, steps, config, config.sft, device, torch.float32, imports=())


@pytest.fixture(scope="module")
def plain() -> MemoryPlan:
    return plan_of()


# A process that trains on the examples of its standard input and prints its peak memory.
TRAIN = """
import json, sys, torch
from mini_chat_gpt.config import Config, GPTConfig
from mini_chat_gpt.common.device import pick_precision, set_up
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.model import GPT
from mini_chat_gpt.diagnostics.memory_dry_run import decode_example
request = json.load(sys.stdin)
config = Config(**request["config"])
set_up(config.system.seed, config.system.threads)
model = GPT(GPTConfig(**request["shape"]))
engine = TrainStep(model, config, config.sft, pick_precision("fp32", torch.device("cpu")))
for number, step in enumerate(request["steps"]):
    engine.train_step([decode_example(encoded) for encoded in step], step=number)
    copy = engine.snapshot(None, {}, {})  # during the next step a slow disk is still writing it
print(peak_memory("cpu"))
"""


@pytest.mark.skipif(heap_bytes() is None, reason="gaps between tensors are predicted with glibc only")
@pytest.mark.slow
def test_the_peak_is_within_15_percent_of_the_measured_peak():
    config, steps = config_with(batch_size=8), steps_of(512, n_steps=4)
    shape = GPTConfig(**PRESETS["1m"] | {"vocab_size": 4096})
    request = {"config": config.model_dump(), "shape": shape.model_dump()}
    request["steps"] = [[encode_example(example) for example in step] for step in steps]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    measured = int(done.stdout)
    plan = plan_memory(shape, steps, config, config.sft, "cpu", torch.float32, imports=())
    assert plan.total - plan.baseline > 0.3 * measured  # otherwise the comparison would show hardly anything
    assert plan.total == pytest.approx(measured, rel=0.15)


def test_weights_and_moments_are_exact(plain):
    n_bytes = 4 * GPT(TINY).n_parameters()
    tables = 2 * 4 * TINY.context_length * TINY.head_size // 2  # of rotary positions, not trained
    counters = 4 * len(list(GPT(TINY).parameters()))
    assert plain.weights == n_bytes + tables
    assert plain.optimizer == 2 * n_bytes + counters
    assert plain.ema == 0


def test_logits_have_a_column_for_every_entry_of_the_vocabulary(plain):
    assert plain.logits > 0
    assert plain.logits % (4 * TINY.vocab_size) == 0


def test_parts_add_up_to_the_total(plain):
    parts = json.loads(json.dumps(plain.__dict__))
    summed = sum(size for name, size in parts.items() if isinstance(size, int) and name != "host")
    assert summed == plain.total


@pytest.mark.slow
def test_averaged_weights_and_recomputed_activations_are_counted(plain):
    other = plan_of(ema=0.9, activation_checkpointing=True)
    assert other.ema == 4 * GPT(TINY).n_parameters()
    assert other.activations < 0.8 * plain.activations


def test_a_gpu_run_is_planned_on_a_machine_without_a_gpu(plain):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plan = plan_of("cuda")
    assert "this machine has no cuda device" in plan.notes[0]
    assert (plan.baseline, plan.gaps, plan.kernels, plan.snapshot) == (0, 0, 0, 0)
    assert plan.host >= plain.weights
    assert plan.weights == pytest.approx(plain.weights, rel=0.05)  # in blocks of 512 bytes


def test_a_failed_process_reports_its_error():
    config = config_with()
    with pytest.raises(RuntimeError, match="no_such_module"):
        plan_memory(TINY, steps_of(128), config, config.sft, "cpu", torch.float32, imports=("no_such_module",))


def dry_run_lengths(monkeypatch, steps, **training) -> list[list[int]]:
    """Lengths of the examples of the dry run."""
    requests = []
    monkeypatch.setattr(
        memory_plan, "_in_another_process", lambda r: requests.append(r) or {"notes": [], "live_by_batch_size": {}}
    )
    config = config_with(**training)
    plan_memory(TINY, steps, config, config.sft, "cpu", torch.float32)
    return [[len(decode_example(encoded).ids) for encoded in step] for step in requests[0]["steps"]]


def test_the_largest_micro_batch_comes_last(monkeypatch):
    steps = steps_of(100, n_steps=30)
    steps[17][3] = example(128)
    assert 128 in dry_run_lengths(monkeypatch, steps)[-1]


def test_the_micro_batch_with_the_most_targets_is_included(monkeypatch):
    steps = steps_of(100, n_steps=30)
    steps[11] = [example(99, trained_from=0.0) for _ in range(8)]
    assert any(99 in lengths for lengths in dry_run_lengths(monkeypatch, steps))


def test_a_step_of_many_micro_batches_is_shortened(monkeypatch):
    assert max(map(len, dry_run_lengths(monkeypatch, steps_of(128, each=400)))) <= 12


def affine(fixed: int, an_example: int):
    """A replacement for `plan_memory`, and the list of the sizes that it gets."""
    sizes_planned = []

    def plan(_shape, _steps, _config, phase, *_rest, **_more) -> MemoryPlan:
        sizes_planned.append(phase.batch_size)
        sizes = {n: an_example * n for n in (phase.batch_size, phase.batch_size // 2 or 2)}
        return MemoryPlan(baseline=fixed, activations=an_example * phase.batch_size, live_by_batch_size=sizes)

    return plan, sizes_planned


@pytest.mark.parametrize(("limit", "largest"), [(10**6, 64), (559, 45), (125, 2), (110, 1), (100, 0)])
def test_the_largest_batch_that_fits_is_found_in_a_few_plans(monkeypatch, limit, largest):
    plan, sizes_planned = affine(fixed=100, an_example=10)
    monkeypatch.setattr(memory_plan, "plan_memory", plan)
    config = config_with(batch_size=8)
    batch_size, its_plan = largest_batch(TINY, steps_of(20, each=64), config, config.sft, "cpu", torch.float32, limit)
    assert batch_size == largest
    assert not batch_size or its_plan.total <= limit
    assert len(sizes_planned) <= 3


def test_a_given_first_plan_is_not_computed_again(monkeypatch):
    plan, sizes_planned = affine(fixed=100, an_example=10)
    monkeypatch.setattr(memory_plan, "plan_memory", plan)
    config = config_with(batch_size=64)
    first = plan(None, None, None, config.sft.model_copy(update={"batch_size": 64}))
    arguments = (TINY, steps_of(20, each=64), config, config.sft, "cpu", torch.float32, 10**6)
    assert largest_batch(*arguments, first=first) == (64, first)
    assert sizes_planned == [64]


@pytest.mark.parametrize(
    ("examples", "largest", "ways"),
    [
        (32, 32, [Split(32, 1), Split(16, 2), Split(8, 4), Split(4, 8), Split(2, 16), Split(1, 32)]),
        (20, 7, [Split(7, 3), Split(3, 7), Split(1, 20)]),
        (4, 100, [Split(4, 1), Split(2, 2), Split(1, 4)]),
    ],
)
def test_a_step_is_split_evenly(examples, largest, ways):
    assert splits(examples, largest) == ways


def test_every_split_covers_the_step_and_respects_the_limit():
    for examples in range(1, 70):
        for largest in range(1, 70):
            for way in splits(examples, largest):
                assert way.batch_size <= largest
                assert way.batch_size * (way.accumulation - 1) < examples <= way.batch_size * way.accumulation


@pytest.mark.parametrize("printed", ["", "{", "[1]", "not JSON", "[" * 100_000])
def test_another_answer_of_the_process_that_measures_is_one_sentence(printed, monkeypatch):
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(memory_plan.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="memory could not be predicted: the answer of memory_dry_run is damaged"):
        memory_plan._in_another_process({})

"""Does a GPU compute what the plain formulas say? `benchmarks/gpu.sh parity`.

Each check compares a fast way of computing something with a slow and simple one, and states the largest difference that rounding
explains. "relative" differences are divided by the largest expected value.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_setup import (
    FLOAT32,
    ROUNDING,
    Result,
    Setup,
    gradient,
    largest,
    make_config,
    make_model,
    norm_difference,
    print_table,
    shape,
)

from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.data.batching import Example, collate
from mini_chat_gpt.diagnostics.selfcheck import (
    cache_check,
    make_examples,
    plain_gradient,
    plain_losses,
    relative_difference,
    step_gradient,
)
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.lora import LoraSettings, add_lora, merge_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops import nf4
from mini_chat_gpt.ops.attention import Packed, attention, use_flash_varlen
from mini_chat_gpt.ops.packed_layout import causal_mask
from mini_chat_gpt.training.compile import compile_model
from mini_chat_gpt.training.train_step import LossScale, TrainStep

# Attention


def packed_attention_checks(setup: Setup) -> Iterator[Result]:
    """The kernel for packed rows (flash varlen on a GPU) against each example alone in float32, with gradients."""
    lengths = [37, 5, 64, 1] if setup.tiny else [700, 33, 1024, 1, 256, 90]
    dtypes = [setup.precision.dtype] + [torch.float16] * (setup.device.type == "cuda" and not setup.tiny)
    for dtype in dict.fromkeys(dtypes):
        for heads, kv_heads, size, window in [
            (9, 3, 64, None),
            (4, 4, 128, None),
            (9, 3, 64, 20 if setup.tiny else 100),
        ]:
            forward, backward = attention_differences(setup, lengths, dtype, heads, kv_heads, size, window)
            name = f"{str(dtype).removeprefix('torch.')}, {heads}/{kv_heads} heads of {size}, window {window}"
            yield Result(f"packed attention = each example alone: {name}", forward, 4 * ROUNDING[dtype])
            yield Result(f"… its gradients: {name}", backward, 8 * ROUNDING[dtype])


def attention_differences(
    setup: Setup, lengths: list[int], dtype: torch.dtype, heads: int, kv_heads: int, size: int, window: int | None
) -> tuple[float, float]:
    """Relative differences of the outputs, and of the gradients of queries, keys and values."""
    generator, total = torch.Generator().manual_seed(1), sum(lengths)
    inputs = [
        torch.randn(1, n, total, size, generator=generator).to(setup.device, dtype) for n in (heads, kv_heads, kv_heads)
    ]
    grad = torch.randn(1, heads, total, size, generator=generator).to(setup.device, dtype)
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    layout = Packed(tuple(edges), setup.device)
    capable = setup.device.type == "cuda" and torch.cuda.get_device_capability(setup.device) >= (8, 0)
    if capable and not use_flash_varlen(inputs[0], layout):
        return math.inf, math.inf  # the kernel that is to be checked is not used
    packed = [part.clone().requires_grad_() for part in inputs]
    out = attention(*packed, layout, window=window)
    out.backward(grad)
    exact = [part.double().requires_grad_() for part in inputs]
    pieces = []
    for start, stop in pairwise(edges):
        q, k, v = (part[:, :, start:stop] for part in exact)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = q @ k.mT * size**-0.5
        visible = causal_mask(stop - start, window, setup.device)
        visible = torch.ones_like(scores[0, 0], dtype=torch.bool).tril() if visible is None else visible
        pieces.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v)
    expected = torch.cat(pieces, dim=2)
    expected.backward(grad.double())
    gradients = max(relative_difference(a.grad, b.grad) for a, b in zip(packed, exact, strict=True))  # type: ignore[arg-type]
    return relative_difference(out, expected), gradients


def packed_row_checks(setup: Setup) -> Iterator[Result]:
    """A whole model: losses and gradients of packed batches against one example at a time."""
    model = make_model(setup)
    examples = make_examples(model)
    plain = plain_gradient(model, examples)
    yield Result("a packed batch = the plain formula, float32", largest(step_gradient(model, examples, 8), plain), 1e-4)
    micro = step_gradient(model, examples, 1)
    yield Result("micro-batches of 1 = the plain formula, float32", largest(micro, plain), 1e-4)
    model.eval()
    batch = collate(examples)
    with torch.no_grad(), setup.precision.autocast(setup.device):
        packed = model(batch.to(setup.device)).losses[: batch.n_targets]
        alone = torch.cat([plain_losses(model, example)[0] for example in examples])
    name = str(setup.precision.dtype).removeprefix("torch.")
    limit = 16 * ROUNDING[setup.precision.dtype]
    yield Result(f"losses of a packed batch = each alone, {name}", relative_difference(packed, alone), limit)


def cpu_checks(setup: Setup) -> Iterator[Result]:
    """The device against the CPU in float32."""
    model, reference = make_model(setup), make_model(setup, torch.device("cpu"))
    examples = make_examples(model)
    here, there = (step_gradient(one, examples, 8) for one in (model, reference))
    yield Result("gradients on this device = on the CPU, float32", largest(here, there), 1e-3)


# Precision


def precision_checks(setup: Setup) -> Iterator[Result]:
    """16-bit training against float32, and float16's loss scale."""
    model = make_model(setup)
    examples = make_examples(model)
    exact = gradient(model, examples, FLOAT32)
    for name, dtype in (("bf16", torch.bfloat16), ("float16", torch.float16)):
        if dtype == torch.bfloat16 and setup.precision.dtype == torch.float16:
            continue  # the card has none
        precision = Precision(dtype, name)
        half = gradient(model, examples, precision)
        yield Result(
            f"loss in {name} = in float32", relative_difference(half["loss"], exact["loss"]), 4 * ROUNDING[dtype]
        )
        yield Result(f"gradient in {name} = in float32 (norm)", norm_difference(half, exact), 32 * ROUNDING[dtype])
    small, large = (gradient(model, examples, Precision(torch.float16, ""), LossScale(2.0**n)) for n in (8, 14))
    yield Result("float16: gradients with loss scale 2^8 = with 2^14 (norm)", norm_difference(small, large), 0.02)
    yield Result(
        "float16: an overflow halves the scale and changes no weight", overflow_difference(model, examples), 0.0
    )


def overflow_difference(model: GPT, examples: Sequence[Example]) -> float:
    """0 if a step with too large a loss scale is dropped."""
    config = make_config()
    engine = TrainStep(model, config, config.sft, Precision(torch.float16, ""))
    engine.loss_scale = LossScale(2.0**60)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    report = engine.train_step(examples)
    unchanged = all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    return float(not (report.outcome == "overflow" and engine.loss_scale.value == 2.0**59 and unchanged))


def optimizer_checks(setup: Setup) -> Iterator[Result]:
    """A few updates on the device against the CPU, and a checkpoint's state read back on the device."""
    for optimizer, limit in (("adamw", 2e-3), ("muon", 5e-2)):
        weights = []
        for device in (setup.device, torch.device("cpu")):
            engine = trained_engine(setup, device, optimizer)
            weights.append(dict(engine.model.named_parameters()))
        yield Result(f"weights after 3 steps of {optimizer} = on the CPU (norm)", norm_difference(*weights), limit)
    engine = trained_engine(setup, setup.device, "adamw")
    state = {name: tensor.detach().clone().cpu() for name, tensor in engine.optimizer.state_tensors().items()}
    copy = TrainStep(make_model(setup), make_config(), make_config().sft, FLOAT32)
    copy.model.load_state_dict(engine.model.state_dict())
    copy.optimizer.load_state_tensors(state)
    examples = make_examples(engine.model)
    for one in (engine, copy):
        one.train_step(examples, step=3)
    tensors = [{name: p.detach() for name, p in one.model.named_parameters()} for one in (copy, engine)]
    yield Result("a resumed optimizer = an uninterrupted one", largest(*tensors), 1e-6)


def trained_engine(setup: Setup, device: torch.device, optimizer: str) -> TrainStep:
    config = make_config(optimizer=optimizer)
    engine = TrainStep(make_model(setup, device), config, config.sft, FLOAT32)
    examples = make_examples(engine.model)
    for step in range(3):
        engine.train_step(examples, step=step)
    return engine


# Compiling, adapters


def compile_checks(setup: Setup) -> Iterator[Result]:
    """Compiled code against eager code, for batches of several sizes, and how often it was compiled."""
    model = make_model(setup)
    sizes = [make_examples(model, n) for n in (8, 3, 5)]
    eager = [gradient(model, examples, FLOAT32) for examples in sizes]
    half = gradient(model, sizes[0], setup.precision)
    compile_model(model, "inductor" if setup.device.type == "cuda" else "aot_eager")
    compiled = [gradient(model, examples, FLOAT32) for examples in sizes]
    difference = max(map(largest, compiled, eager))
    yield Result("compiled = eager, float32, three sizes", difference, 1e-4)
    name, limit = str(setup.precision.dtype).removeprefix("torch."), 32 * ROUNDING[setup.precision.dtype]
    compiled_half = gradient(model, sizes[0], setup.precision)
    yield Result(f"compiled = eager, {name} (norm)", norm_difference(compiled_half, half), limit)
    torch._dynamo.reset()


def nf4_checks(setup: Setup) -> Iterator[Result]:
    """4-bit weights: the same on the device as on the CPU, and the products of a layer."""
    torch.manual_seed(0)
    rows, columns = (96, 80) if setup.tiny else (1536, 577)  # the last block is not full
    weight = torch.randn(rows, columns) * 0.02
    here, there = nf4.quantize(weight.to(setup.device)), nf4.quantize(weight)
    different = max(float((a.cpu() != b).double().mean()) for a, b in zip(here, there, strict=True))
    yield Result("NF4: codes computed on this device = on the CPU (share that differs)", different, 1e-4)
    parts = nf4.Nf4Weight(*(part.to(setup.device) for part in there))
    dense = nf4.dequantize(parts, weight.shape, torch.float32)
    yield Result(
        "NF4: dequantized = on the CPU",
        relative_difference(dense, nf4.dequantize(there, weight.shape, torch.float32)),
        1e-6,
    )
    layer = nf4.Nf4Linear(parts, (rows, columns))
    x = torch.randn(33, columns, device=setup.device)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast(setup.device.type, enabled=False):
        ours, plain = layer(one), F.linear(other, dense)
    ours.sum().backward()
    plain.sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    difference = max(relative_difference(ours, plain), relative_difference(one.grad, other.grad))
    yield Result("NF4: product and its gradient = with the dequantized matrix", difference, 1e-5)


def lora_checks(setup: Setup) -> Iterator[Result]:
    """Adapters on frozen weights of each precision: gradients against the CPU, and merged against unmerged."""
    settings = LoraSettings(rank=8, dropout=0.0)
    for frozen in ("float32", "bf16", "nf4"):
        if frozen == "bf16" and setup.precision.dtype == torch.float16:
            continue  # the card has none
        gradients = []
        for device in (setup.device, torch.device("cpu")):
            model = adapted(setup, settings, frozen).to(device)
            gradients.append(gradient(model, make_examples(model), FLOAT32))
        limit = 0.03 if frozen == "bf16" else 1e-3
        yield Result(f"LoRA on a {frozen} base: gradients = on the CPU (norm)", norm_difference(*gradients), limit)
    model = adapted(setup, settings, "float32").to(setup.device).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0)).to(
        setup.device
    )
    with torch.no_grad():
        before = model(ids)
        merge_lora(model)
        yield Result("LoRA: merged = unmerged", relative_difference(model.eval()(ids), before), 1e-4)


def adapted(setup: Setup, settings: LoraSettings, frozen: str) -> GPT:
    model = make_model(setup, torch.device("cpu"))
    torch.manual_seed(1)
    add_lora(model, settings, frozen, token_ids=[3, 7])  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(std=0.05)
    return model


# Replies, ranks


def cache_checks(setup: Setup) -> Iterator[Result]:
    """Decoding with a KV cache against one forward pass: in float32, and in 16 bits with rows of different lengths."""
    for windows in (None, [16, None] * (shape(setup).n_layer // 2)):
        model = make_model(setup, windows=windows).eval()
        difference = cache_check(model, make_examples(model)).difference
        yield Result(f"KV cache = full forward pass, float32, windows {windows and windows[:2]}", difference, 1e-4)
    half, lengths, n_new = MixedPrecisionModel(model, setup.precision), [40, 7, 23], 8
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (3, max(lengths) + n_new), generator=generator).to(setup.device)
    cache = half.make_cache(3)
    steps = [half.next_logits(ids[:, : max(lengths)], cache, lengths)]
    for number in range(n_new):
        column = torch.stack([ids[row, length + number] for row, length in enumerate(lengths)])[:, None]
        steps.append(half.next_logits(column, cache, [1, 1, 1]))
    with torch.no_grad(), half.autocast():
        whole = model(ids)
    expected = [
        torch.stack([whole[row, length - 1 + number] for row, length in enumerate(lengths)])
        for number in range(n_new + 1)
    ]
    name, limit = str(setup.precision.dtype).removeprefix("torch."), 16 * ROUNDING[setup.precision.dtype]
    yield Result(
        f"KV cache, three rows = full forward pass, {name}",
        relative_difference(torch.stack(steps), torch.stack(expected)),
        limit,
    )


def ddp_checks(setup: Setup) -> Iterator[Result]:
    """Two processes with DDP that share the device against one process."""
    model = make_model(setup)
    alone = step_gradient(model, make_examples(model), 8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradients.pt"
        request = json.dumps({"device": str(setup.device), "tiny": setup.tiny, "file": str(file)})
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            "--standalone",
            __file__,
            request,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            yield Result("DDP, two processes on one device = one process", math.inf, 1e-4)
            return
        yield Result(
            "DDP, two processes on one device = one process", largest(torch.load(file, weights_only=True), alone), 1e-4
        )


def ddp_rank(request: dict[str, object]) -> None:
    """One of the two processes. Their messages use gloo, because NCCL refuses two processes on one GPU."""
    from mini_chat_gpt.common import distributed

    torch.backends.cuda.matmul.allow_tf32 = False
    world = distributed.join("cpu")
    setup = Setup(torch.device(str(request["device"])), FLOAT32, bool(request["tiny"]))
    model = make_model(setup)
    gradients = step_gradient(model, make_examples(model)[world.rank :: 2], 4, replace(world))
    if world.is_main:
        torch.save({name: tensor.cpu() for name, tensor in gradients.items()}, str(request["file"]))
    distributed.leave()


CHECKS: dict[str, Callable[[Setup], Iterator[Result]]] = {
    "attention": packed_attention_checks,
    "packing": packed_row_checks,
    "cpu": cpu_checks,
    "precision": precision_checks,
    "optimizer": optimizer_checks,
    "nf4": nf4_checks,
    "lora": lora_checks,
    "cache": cache_checks,
    "ddp": ddp_checks,
    "compile": compile_checks,
}


def run(setup: Setup, only: Sequence[str] = ()) -> int:
    """Run the checks and print them; returns the number of those that failed."""
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is to be exact here
    results = []
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        try:
            results += check(setup)
        except Exception as error:  # the other checks are still wanted
            results.append(Result(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", math.inf, 0.0))
    rows = [
        [result.what, f"{result.difference:.1e}", f"{result.limit:.1e}", "PASS" if result.passed else "**FAIL**"]
        for result in results
    ]
    print_table("Parity", ["check", "difference", "limit", ""], rows)
    return sum(not result.passed for result in results)


if __name__ == "__main__":
    ddp_rank(json.loads(sys.argv[1]))

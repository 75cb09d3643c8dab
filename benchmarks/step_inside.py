"""Our training step looked into: whether it is exact (`exact`), and where its time goes (`profile`)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
from step_contestants import our_engine, our_examples, plain_loss, plain_model
from step_setting import Setting, batch

if TYPE_CHECKING:
    from mini_chat_gpt.data.batching import Example
    from mini_chat_gpt.training.train_step import TrainStep

# Operations by what they are for; the first group that has a part of an operation's name counts.
GROUPS = {
    "optimizer": ("adamw",),
    "clipping": ("vector_norm", "_foreach_norm", "_foreach_mul", "clip"),
    "loss": ("nll_loss", "log_softmax", "logsumexp", "cross_entropy"),
    "attention": ("bmm", "softmax", "scaled_dot_product", "flash", "index_copy", "index_select"),
    "products": ("mm", "linear", "matmul"),
    "embedding, picking of rows": ("embedding", "index", "gather", "scatter"),
    "elementwise": ("rms_norm", "silu", "mul", "add", "sub", "pow", "mean", "rsqrt", "neg", "div", "sum", "sigmoid"),
    "copies, casts": ("copy_", "_to_copy", "cat", "clone", "fill_", "zero", "pad", "split", "slice"),
}
WHERE = {  # what a group is called inside the blocks and for tensors as tall as the vocabulary
    "products": ("products in blocks", "products of the head"),
    "elementwise": ("norms, rotary, SwiGLU, sums", "elementwise, head's size"),
    "copies, casts": ("copies and casts", "copies and casts, head's size"),
}
REST = "Python, dispatch, data"


def exact(setting: Setting, folder: Path) -> None:
    """Prints how far ours are from those of `transformers`' Llama on a padded batch in float32 with all logits."""
    items = batch(setting, 0)
    torch.set_num_threads(setting.threads)
    reference = plain_model(folder)
    loss = plain_loss(reference, items)
    loss.backward()
    expected = {name.removeprefix("model."): p.grad for name, p in reference.named_parameters() if p.grad is not None}
    print("loss and gradients against transformers' Llama in a plain padded float32 loop with all logits")
    print(f"V = {setting.vocab_size:,}, {setting.trained:.0%} trained")
    print(f"{'':10}{'loss':>12}{'gradient: all':>15}{'worst weight':>14}{'worst element':>15}")
    for precision in ("fp32", "bf16"):
        engine = our_engine(setting, folder, precision, clip=0.0)
        gradient = engine.accumulate(our_examples(items))
        own = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
        differences = {name: own[name].double() - grad.double() for name, grad in expected.items()}
        whole = sum(float(d.square().sum()) for d in differences.values()) ** 0.5
        size = sum(float(grad.double().square().sum()) for grad in expected.values()) ** 0.5
        worst = max(float(d.norm() / expected[name].double().norm()) for name, d in differences.items())
        element = max(float(d.abs().max() / expected[name].abs().max()) for name, d in differences.items())
        off = abs(gradient.own_loss - loss.item()) / loss.item()
        print(f"{precision:10}{off:12.1e}{whole / size:15.1e}{worst:14.1e}{element:15.1e}")
    print(
        "all, worst weight: |difference| / |gradient| (norms) of all weights and of the worst one; worst element: the largest"
    )
    print("difference of one element over the largest element of its weight")


def profile(setting: Setting, folder: Path, precision: str = "auto", watched: int = 12, kept: int = 3) -> None:
    """Prints what the parts of a step take, by torch.profiler, next to the time of a step without it.

    What the profiler writes down takes memory from between the tensors, and new memory from the system is dear: so each
    watched step is a session of its own, and the quickest ones, which found their memory where it was, are shown.
    """
    engine = our_engine(setting, folder, precision)
    examples = our_examples(batch(setting, 0))
    plain = min(_seconds(engine, examples) for _ in range(8))
    sessions = []
    for _ in range(watched):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as record:
            spent = _seconds(engine, examples)
        sessions.append((spent, record.key_averages(group_by_input_shape=True)))
    best = sorted(sessions, key=lambda session: session[0])[:kept]
    profiled = sum(spent for spent, _ in best) / kept
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in (event for _, events in best for event in events):
        group = group_of(event.key, event.input_shapes, setting.table)
        groups[group] += event.self_cpu_time_total / kept / 1e3
        names[group][event.key] += event.self_cpu_time_total / kept / 1e3
    groups[REST] += profiled * 1e3 - sum(groups.values())
    tokens = sum(len(example.ids) for example in examples)
    print(f"{tokens:,} tokens, V = {setting.vocab_size:,}, {setting.trained:.0%} trained; {engine.precision.reason}")
    print(f"one step: {plain * 1e3:.0f} ms, {profiled * 1e3:.0f} ms while it is watched")
    print(f"{'':30}{'ms':>8}{'share':>8}   most of it")
    for group, spent in sorted(groups.items(), key=lambda pair: -pair[1]):
        most = sorted(names[group].items(), key=lambda pair: -pair[1])[:4]
        listed = ", ".join(f"{name.removeprefix('aten::')} {ms:.0f}" for name, ms in most if ms >= 0.5)
        print(f"{group:30}{spent:8.1f}{spent / profiled / 1e3:8.1%}   {listed}")


def _seconds(engine: TrainStep, examples: list[Example]) -> float:
    began = time.perf_counter()
    engine.step(examples)
    return time.perf_counter() - began


def group_of(name: str, shapes: Any, table: int) -> str:
    """The group of an operation by its name, and by whether a tensor as tall as the vocabulary is among its inputs."""
    short = name.removeprefix("aten::").lower()
    if short.startswith(("autograd::", "optimizer", "enumerate", "torch::")):
        return REST
    sizes = {size for shape in shapes or [] if isinstance(shape, list) for size in shape}
    for group, parts in GROUPS.items():
        if any(part in short for part in parts):
            return WHERE[group][table in sizes] if group in WHERE else group
    return REST

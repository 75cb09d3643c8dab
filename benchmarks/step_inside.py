"""Details of our training step: whether it is exact (`exact`), and where its time goes (`profile`)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hides the profiler's messages

import torch
from step_implementations import our_engine, our_examples, plain_loss, plain_model
from step_setting import Setting, batch

if TYPE_CHECKING:
    from mini_chat_gpt.data.batching import Example
    from mini_chat_gpt.training.train_step import TrainStep

# Groups of operations. An operation belongs to the first group that has a part of its name.
GROUPS = {
    "optimizer": ("adamw",),
    "clipping": ("vector_norm", "_foreach_norm", "_foreach_mul", "clip"),
    "loss": ("nll_loss", "log_softmax", "logsumexp", "cross_entropy"),
    "attention": ("bmm", "softmax", "scaled_dot_product", "flash", "index_copy", "index_select"),
    "products": ("mm", "linear", "matmul"),
    "embedding, row selection": ("embedding", "index", "gather", "scatter"),
    "elementwise": ("rms_norm", "silu", "mul", "add", "sub", "pow", "mean", "rsqrt", "neg", "div", "sum", "sigmoid"),
    "copies, casts": ("copy_", "_to_copy", "cat", "clone", "fill_", "zero", "pad", "split", "slice"),
}
BY_SIZE = {  # names of a group in the blocks, and for tensors with a dimension of the vocabulary size
    "products": ("products in blocks", "products of the head"),
    "elementwise": ("norms, rotary, SwiGLU, sums", "elementwise, head's size"),
    "copies, casts": ("copies and casts", "copies and casts, head's size"),
}
REST = "Python, dispatch, data"


def exact(setting: Setting, folder: Path) -> None:
    """Compare our loss and gradients with those of `transformers`' Llama on a padded batch in float32 with all logits."""
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
        report = engine.train_step(our_examples(items), update=False)
        own = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
        differences = {name: own[name].double() - grad.double() for name, grad in expected.items()}
        whole = sum(float(d.square().sum()) for d in differences.values()) ** 0.5
        size = sum(float(grad.double().square().sum()) for grad in expected.values()) ** 0.5
        worst = max(float(d.norm() / expected[name].double().norm()) for name, d in differences.items())
        element = max(float(d.abs().max() / expected[name].abs().max()) for name, d in differences.items())
        off = abs(report.loss - loss.item()) / loss.item()
        print(f"{precision:10}{off:12.1e}{whole / size:15.1e}{worst:14.1e}{element:15.1e}")
    print(
        "all, worst weight: |difference| / |gradient| (norms) of all weights and of the worst one; worst element: the largest"
    )
    print("difference of one element over the largest element of its weight")


def profile(setting: Setting, folder: Path, precision: str = "auto", n_sessions: int = 12, n_best: int = 3) -> None:
    """Print the time of the parts of a step, by torch.profiler, and the time of a step without the profiler.

    The profiler's records take memory between the tensors, and getting new memory from the system is slow. So each profiled
    step is a separate session, and only the fastest ones, which reused their memory, are shown.
    """
    engine = our_engine(setting, folder, precision)
    examples = our_examples(batch(setting, 0))
    plain = min(_seconds(engine, examples) for _ in range(8))
    sessions = []
    for _ in range(n_sessions):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as record:
            spent = _seconds(engine, examples)
        sessions.append((spent, record.key_averages(group_by_input_shape=True)))
    best = sorted(sessions, key=lambda session: session[0])[:n_best]
    profiled = sum(spent for spent, _ in best) / n_best
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in (event for _, events in best for event in events):
        group = group_of(event.key, event.input_shapes, setting.table)
        groups[group] += event.self_cpu_time_total / n_best / 1e3
        names[group][event.key] += event.self_cpu_time_total / n_best / 1e3
    groups[REST] += profiled * 1e3 - sum(groups.values())
    tokens = sum(len(example.ids) for example in examples)
    print(f"{tokens:,} tokens, V = {setting.vocab_size:,}, {setting.trained:.0%} supervised; {engine.precision.reason}")
    print(f"one step: {plain * 1e3:.0f} ms, {profiled * 1e3:.0f} ms with the profiler")
    print(f"{'':30}{'ms':>8}{'share':>8}   largest operations")
    for group, spent in sorted(groups.items(), key=lambda pair: -pair[1]):
        most = sorted(names[group].items(), key=lambda pair: -pair[1])[:4]
        listed = ", ".join(f"{name.removeprefix('aten::')} {ms:.0f}" for name, ms in most if ms >= 0.5)
        print(f"{group:30}{spent:8.1f}{spent / profiled / 1e3:8.1%}   {listed}")


def _seconds(engine: TrainStep, examples: list[Example]) -> float:
    began = time.perf_counter()
    engine.train_step(examples)
    return time.perf_counter() - began


def group_of(name: str, shapes: Any, table: int) -> str:
    """The group of an operation, from its name and from whether an input has a dimension of the vocabulary size."""
    short = name.removeprefix("aten::").lower()
    if short.startswith(("autograd::", "optimizer", "enumerate", "torch::")):
        return REST
    sizes = {size for shape in shapes or [] if isinstance(shape, list) for size in shape}
    for group, parts in GROUPS.items():
        if any(part in short for part in parts):
            return BY_SIZE[group][table in sizes] if group in BY_SIZE else group
    return REST

"""Two processes for checkpoints/test_sharded.py, in one call of torchrun: sharded training, compared with DDP.

    torchrun --nproc_per_node=2 tests/sharded.py FOLDER

Both train on the same examples. FOLDER/results.json gets the differences.
"""

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch
from commands import SMALL, write_stories
from safetensors.torch import save_file
from tiny import CountingDataset, lively_model, tiny_config, tiny_tokenizer

from mini_chat_gpt import pretrain
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.checkpoints.save import CheckpointWriter
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.distributed import World, join, local_shard
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training import muon, optim, train_step
from mini_chat_gpt.training.job import Progress
from mini_chat_gpt.training.train_step import LossScale, TrainStep

SHAPE = {"n_layer": 3, "intermediate_size": 81}  # rows that two processes can't share equally
STEP = 3  # at which the checkpoints are written
SETTINGS = [
    *SMALL, "model.context_length=64", "data.seq_len=64", "data.eval_examples=4", "system.device=cpu", "system.threads=1",
    "system.fsdp=true", "pretrain.tokenizer_vocab_size=300", "pretrain.max_steps=4", "pretrain.save_interval=1",
    "pretrain.eval_interval=2", "training.keep_checkpoints=2", "training.ema=0.5", "wandb.enabled=false",
]  # fmt: skip
Tensors = dict[str, torch.Tensor]


def make_engine(world: World, sharded: bool, model: GPT | None = None, **training) -> TrainStep:
    config = tiny_config(
        training={"batch_size": 2, "ema": 0.9} | training,
        system={"fsdp": sharded, "device": "cpu", "mixed_precision": False},
        sft={"learning_rate": 1e-2},
    )
    model = model or lively_model(301, **SHAPE)
    engine = TrainStep(model, config, config.sft, pick_precision(False, torch.device("cpu")), world)
    engine.model.activation_checkpointing = sharded and "muon" in training.values()
    return engine


def own_examples(world: World, step: int) -> list:
    """This process's examples of a step: as many as the other's, fewer micro-batches than it, or none."""
    examples = [CountingDataset()[8 * step + i] for i in range(8)]
    return [
        examples[world.rank :: 2],
        examples[:7] if world.is_main else examples[7:],
        examples if world.is_main else [],
    ][step % 3]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def difference(ours: Tensors, theirs: Tensors) -> float:
    """Largest difference of any tensor, relative to its largest value."""
    assert set(ours) == set(theirs)
    pairs = [(whole(ours[name]).detach().double(), theirs[name].detach().double()) for name in ours]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def gradients(engine: TrainStep, examples: list) -> Tensors:
    loss = engine.train_step(examples, update=False).loss
    results = {name: whole(p.grad).clone() for name, p in engine.model.named_parameters()}
    engine.optimizer.zero_grad()
    return results | {"loss": torch.tensor(loss)}


def state_of(engine: TrainStep) -> Tensors:
    """Everything that a resume must restore, unsharded."""
    parts = {
        "weights": dict(engine.model.named_parameters()),
        "averages": engine.average.averages,
        "optimizer": engine.optimizer.state_tensors(),
    }
    return {
        f"{part}/{name}": whole(t).detach().clone() for part, tensors in parts.items() for name, t in tensors.items()
    }


def same(ours: Tensors, theirs: Tensors) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def compare(world: World, optimizer: str) -> tuple[dict, TrainStep, TrainStep]:
    """Train some steps sharded and with DDP."""
    ours, theirs = (make_engine(world, sharded, optimizer=optimizer) for sharded in (True, False))
    tokenizer = tiny_tokenizer()

    def replies(engine: TrainStep) -> list[str]:
        with engine.averaged():
            return generate(engine.model.eval(), tokenizer, ["Once", "Tom was sad."], 12, temperature=0.0)

    results = {"replies": replies(ours) == replies(theirs), "gradient": 0.0, "loss": 0.0, "norm": 0.0}
    for step in range(3):
        ours.loss_scale = LossScale() if step == 1 else None
        both = [gradients(engine, own_examples(world, step)) for engine in (ours, theirs)]
        results["gradient"] = max(results["gradient"], difference(*both))
    held_out = [CountingDataset()[i] for i in range(11)]
    sums = []
    for engine in (ours, theirs):
        with engine.averaged():
            sums.append(engine.evaluate(held_out))
    results["evaluation"] = max(abs(sums[0][kind][0] / sums[1][kind][0] - 1) for kind in sums[1])
    for step in range(STEP):
        one, other = (engine.train_step(own_examples(world, step), 1.0, 0.1, step) for engine in (ours, theirs))
        results["loss"] = max(results["loss"], abs(one.loss / other.loss - 1))
        if step == 0:  # the weights of later steps depend on Muon's rounding to bfloat16
            results["norm"] = abs(one.norm / other.norm - 1)
    results["state"] = difference(state_of(ours), state_of(theirs))
    results["replies"] &= replies(ours) == replies(theirs)
    results["tied"] = ours.model.lm_head.weight is ours.model.embed_tokens.weight
    whole_size = sum(tensor.numel() for tensor in theirs.optimizer.state_tensors().values())
    results["local fraction"] = (
        sum(local_shard(t).numel() for t in ours.optimizer.state_tensors().values()) / whole_size
    )
    return results, ours, theirs


def save_and_resume(world: World, folder: Path, ours: TrainStep, theirs: TrainStep) -> dict:
    """Write a sharded and an unsharded checkpoint, and resume both with and without sharding in two processes."""
    tokenizer, name, optimizer = (
        tiny_tokenizer(),
        f"step-{STEP:07d}",
        "muon" if len(ours.optimizer.optimizers) > 1 else "adamw",
    )
    reference = state_of(ours)
    writer = CheckpointWriter(folder / "sharded", 3, world.new_group())
    writer.write(name, ours.snapshot(tokenizer, {"job": "sft", "step": STEP}, asdict(Progress(STEP))))
    ours.train_step(own_examples(world, STEP), 1.0, 0.1, STEP)  # during the write
    writer.wait()
    if world.is_main:
        save_file(reference, folder / "reference.safetensors")
        theirs.snapshot(tokenizer, {"job": "sft", "step": STEP}, asdict(Progress(STEP))).write(folder / "whole" / name)
    world.gather([])

    def resumed(kind: str, sharded: bool) -> TrainStep:
        engine = make_engine(world, sharded, load_model(folder / kind / name), optimizer=optimizer)
        assert engine.restore(folder / kind / name).progress == Progress(STEP)
        assert engine.average.steps == STEP
        return engine

    continued = resumed("sharded", True)
    results = {
        "sharded to sharded": same(state_of(continued), reference),
        "sharded to unsharded": same(state_of(resumed("sharded", False)), reference),
        "unsharded to sharded": same(state_of(resumed("whole", True)), state_of(theirs)),
    }
    continued.train_step(own_examples(world, STEP), 1.0, 0.1, STEP)
    return results | {"continues": same(state_of(continued), state_of(ours))}


def muon_parity(world: World) -> dict:
    """Muon on sharded and unsharded matrices with the same gradients, with small and large stacks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, results = init_device_mesh("cpu", (world.size,)), {}

    def parameter(tensor: torch.Tensor, sharded: bool) -> torch.nn.Parameter:
        part = distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None) if sharded else tensor.clone()
        return torch.nn.Parameter(part)

    for elements in (2**23, 200):
        muon.STACK_ELEMENTS = elements
        generator = torch.Generator().manual_seed(0)
        starts = [
            torch.randn(shape, generator=generator)
            for shape in [(8, 8), (9, 20), (20, 9), (8, 8), (1, 5), (8, 8), (9, 20)]
        ]
        ours, theirs = ([parameter(start, sharded) for start in starts] for sharded in (True, False))
        members = [muon.Muon([{"params": parameters}], lr=0.1, weight_decay=0.1) for parameters in (ours, theirs)]
        for _ in range(3):
            for one, other in zip(ours, theirs, strict=True):
                other.grad = torch.randn(other.shape, generator=generator)
                one.grad = distribute_tensor(other.grad, mesh, [Shard(0)], src_data_rank=None)
            for member in members:
                member.step()
        pairs = zip(ours, theirs, strict=True)
        results[str(elements)] = max(float((whole(one) - other).abs().max()) for one, other in pairs)
    muon.STACK_ELEMENTS = 2**23
    return results


def nonfinite_step(world: World, engine: TrainStep) -> dict:
    """A gradient that is NaN on one process only."""
    before = state_of(engine)

    def clip(parameters, limit):
        if not world.is_main:
            local_shard(engine.model.layers[0].mlp.up_proj.weight.grad)[0, 0] = math.nan
        norm = optim.clip_gradients(parameters, limit)
        assert type(norm) is torch.Tensor
        return norm

    with patch.object(train_step, "clip_gradients", clip):
        report = engine.train_step(own_examples(world, 0))
    noticed = world.sum([report.outcome == "non-finite" and math.isnan(report.norm)])
    return {"noticed": noticed, "nothing changed": same(state_of(engine), before)}


def full_disk(world: World, folder: Path, engine: TrainStep) -> dict:
    """The disk of one process is full."""

    def refuse(_):
        raise OSError(28, os.strerror(28))

    writer, fsync = CheckpointWriter(folder / "full", 3, world.new_group()), os.fsync
    snapshot = engine.snapshot(tiny_tokenizer(), {}, {"step": 1})
    if not world.is_main:
        os.fsync = refuse
    message = ""
    try:
        writer.write("step-0000001", snapshot)
        writer.wait()
    except UserError as error:
        message = str(error)
    os.fsync = fsync
    both = world.sum(["no space left on device" in message])
    return {"reported": both, "files": [path.name for path in (folder / "full").glob("*")]}


def main() -> int:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = join("cpu")
    results = {}
    for optimizer in ("adamw", "muon"):
        subfolder = folder / optimizer
        subfolder.mkdir(exist_ok=True)
        results[optimizer], ours, theirs = compare(world, optimizer)
        results[optimizer] |= save_and_resume(world, subfolder, ours, theirs)
    results |= {
        "non-finite step": nonfinite_step(world, ours),
        "full disk": full_disk(world, folder, ours),
        "muon alone": muon_parity(world),
    }
    if world.is_main:
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        write_stories(folder)
    world.gather([])
    return pretrain.main(
        [*SETTINGS, f"pretrain.dataset_path={folder}/stories-train.txt", f"pretrain.save_dir={folder}/run"]
    )


if __name__ == "__main__":
    exit_with(main)

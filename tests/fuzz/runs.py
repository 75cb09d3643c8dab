"""Three tiny runs to damage: pretraining, fine-tuning of all weights (Muon, averaged weights), and an adapter."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

from fuzz.mutations import read_safetensors, write_safetensors
from fuzz.sandbox import run_all

from mini_chat_gpt.cli import dispatch
from mini_chat_gpt.common.manifest import write_manifest
from mini_chat_gpt.prepare.sample_stories import write_sample

SHAPE = """
    model.preset=null model.n_layer=2 model.n_embd=16 model.n_head=2 model.n_kv_head=1 model.context_length=256
""".split()  # noqa: SIM905
SETTINGS = """
    data.seq_len=256 data.num_workers=0 data.eval_examples=2 data.turns=1 system.device=cpu system.threads=1
    system.compile=false system.mixed_precision=false wandb.enabled=false training.batch_size=1
    training.keep_checkpoints=3 pretrain.dataset_path=data sft.dataset_path=data pretrain.tokenizer_vocab_size=300
    pretrain.max_steps=4 pretrain.save_interval=2 pretrain.eval_interval=2 pretrain.save_dir=runs/base sft.max_steps=4
    sft.save_interval=2 sft.eval_interval=2 sft.eval_tasks=0 sft.learning_rate=1e-3 sft.pretrained_checkpoint=runs/base
""".split()  # noqa: SIM905
SFT = ["training.optimizer=muon", "training.ema=0.9", "sft.save_dir=runs/sft"]
LORA = ["lora.enabled=true", "lora.rank=2", "sft.save_dir=runs/lora"]


def make_runs(folder: Path) -> Path:
    """A folder with data/ and runs/. Made in a process of its own, so that this one has no threads when it forks."""
    draft = folder / "draft"  # renamed at the end, so that the absolute paths in the files lead nowhere

    def make() -> None:
        draft.mkdir(parents=True)
        os.chdir(draft)
        write_sample(Path("data"), n_train=8, n_valid=4)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            dispatch(["pretrain", *SHAPE, *SETTINGS])
            dispatch(["sft", *SETTINGS, *SFT])
            dispatch(["sft", *SETTINGS, *LORA])

    (problem,) = run_all([make])
    assert problem is None, problem
    for pattern in ("*.png", "samples.txt", "first_batch.txt"):
        for file in draft.glob(f"runs/*/{pattern}"):
            file.unlink()
    runs = draft.rename(folder / "runs-and-data")
    last = sorted((runs / "runs" / "base").glob("step-*"))[-1]
    write_sharded(last, runs / "sharded" / last.name)
    for name in ("config.yaml", "run.json"):
        shutil.copyfile(runs / "runs" / "base" / name, runs / "sharded" / name)
    return runs


def write_sharded(checkpoint: Path, folder: Path) -> None:
    """A copy of a checkpoint with two shards of each tensor, as two processes with FSDP2 write it."""
    shutil.copytree(checkpoint, folder)
    for name in ("model", "optimizer"):
        file = folder / f"{name}.safetensors"
        tensors, _ = read_safetensors(file.read_bytes())
        file.unlink()
        (folder / name).mkdir()
        for shard in (0, 1):
            parts, places = {}, {}
            for key, (dtype, shape, data) in tensors.items():
                half = shape[0] // 2 if shape else 0
                rows = (half, shape[0] - half)[shard] if shape else 0
                size = len(data) // shape[0] if shape else len(data)
                if shape:
                    parts[key] = [dtype, [rows, *shape[1:]], data[half * shard * size :][: rows * size]]
                    places[key] = {"saved_offsets": [half * shard, *[0] * (len(shape) - 1)]}
                elif shard == 0:
                    parts[key], places[key] = [dtype, shape, data], {"saved_offsets": []}
            metadata = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
            path = folder / name / f"shard-{shard + 1:05d}-model-00001-of-00001.safetensors"
            path.write_bytes(write_safetensors(parts, metadata))
    meta = folder / "mini_chat_gpt.json"
    meta.write_text(json.dumps(json.loads(meta.read_bytes()) | {"sharded": True}))
    write_manifest(folder)

"""Three tiny runs to damage: pretraining, fine-tuning of all weights (Muon, averaged weights), and an adapter."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from fuzz.sandbox import run_all

from mini_chat_gpt.cli import dispatch
from mini_chat_gpt.prepare.sample_stories import write_sample

SETTINGS = """
    model.preset=null model.n_layer=2 model.n_embd=16 model.n_head=2 model.n_kv_head=1 model.context_length=256
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
            dispatch(["pretrain", *SETTINGS])
            dispatch(["sft", *SETTINGS, *SFT])
            dispatch(["sft", *SETTINGS, *LORA])

    (problem,) = run_all([make])
    assert problem is None, problem
    for pattern in ("*.png", "samples.txt", "first_batch.txt"):
        for file in draft.glob(f"runs/*/{pattern}"):
            file.unlink()
    return draft.rename(folder / "runs-and-data")

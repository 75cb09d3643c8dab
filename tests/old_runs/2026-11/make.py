"""Makes three unfinished runs with the version of the package that is installed: python make.py, in an empty folder."""
import os, signal
from pathlib import Path
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.sample_stories import write_sample
from mini_chat_gpt.settings_file import load_config
from mini_chat_gpt.sft_train import train

write_sample(Path("data"), n_train=24, n_valid=8)
common = ("model.preset=null model.n_layer=2 model.n_embd=16 model.n_head=2 model.n_kv_head=1 model.context_length=256 data.seq_len=256 "
 "data.num_workers=0 data.eval_examples=8 system.device=cpu system.threads=1 system.compile=false system.mixed_precision=false "
 "wandb.enabled=false training.batch_size=4 training.keep_checkpoints=1 data.turns=2 data.branches=2 pretrain.dataset_path=data sft.dataset_path=data "
 "pretrain.tokenizer_vocab_size=300 pretrain.max_steps=20 pretrain.save_interval=6 pretrain.eval_interval=6 pretrain.save_dir=runs/base "
 "sft.max_steps=20 sft.save_interval=6 sft.eval_interval=6 sft.suite_tasks=1 sft.learning_rate=1e-3 sft.pretrained_checkpoint=runs/base").split()

def stop_after(at):
    def callback(trainer, step, metrics):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
    return callback

def run(job, *extra):
    result = job(load_config(None, [*common, *extra]), [stop_after(10)])
    print(result)
    assert result.stopped == "SIGTERM"

run(pretrain)
run(train, "training.optimizer=muon", "training.ema=0.9", "sft.save_dir=runs/sft",
    "data.focus=2", "data.shares={words: 2}", "data.weights={ending: 3}", "sft.best_by=suite/ending/accuracy",
    "data.curriculum=[{share: 0.25, seq_len: 96, turns: 1, focus: 1, shares: {quote: 4}}]", "training.max_accidents=4")
run(train, "lora.enabled=true", "lora.rank=4", "sft.save_dir=runs/lora")

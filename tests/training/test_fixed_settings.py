"""A setting that a resumed run can't apply is refused, whichever of them it is; all others may change."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.lora_setup import pair_of_run
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.checkpoints.verify import RECORD
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import Config, LoraSettings
from mini_chat_gpt.config_file import load_config, to_yaml
from mini_chat_gpt.lora import adapters, add_lora
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.training.fixed_settings import changed_settings, require_same_settings
from mini_chat_gpt.training.train_step import TrainStep

TOKENIZER = tiny_tokenizer()
SHAPE = {"preset": None, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "context_length": 64}
LORA = {"enabled": True, "rank": 2, "alpha": 8.0, "dropout": 0.1, "targets": ["q_proj"]}
START = {
    "sft": {"sft": {"pretrained_checkpoint": "base"}, "data": {"num_workers": 0, "system_message": "Be kind."}},
    "lora": {"sft": {"pretrained_checkpoint": "base"}, "lora": LORA},
    "pretrain": {"model": SHAPE, "pretrain": {"tokenizer_vocab_size": 300}},
}


def started(folder: Path, kind: str) -> tuple[Config, Path]:
    """The config of a run of this kind, and its checkpoint, written without training."""
    job = "pretrain" if kind == "pretrain" else "sft"
    sections = {**START[kind], job: {**START[kind].get(job, {}), "save_dir": str(folder / "run")}}
    config, tokenizer = tiny_config(**sections), tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size)
    if job == "sft":
        tokenizer.chat_format = ChatFormat(config.data.system_message)
    if kind == "lora":
        base = save_checkpoint(folder / "base", model, tokenizer)
        add_lora(model, LoraSettings(**{name: LORA[name] for name in LoraSettings.model_fields if name in LORA}))
        manifest = json.loads((base / "manifest.json").read_text())
        hashed = manifest["files"]["model.safetensors"]["sha256"]
        object.__setattr__(model.adapter, "base", str(base))
        object.__setattr__(model.adapter, "base_hash", hashed)
    engine = TrainStep(model, config, getattr(config, job), pick_precision(False, torch.device("cpu")))
    checkpoint = engine.snapshot(tokenizer, {"job": job, "step": 1}, {"step": 1}).write(folder / "run" / "step-0000001")
    (folder / "run" / "config.yaml").write_text(to_yaml(config))
    return config, checkpoint


def changed(config: Config, key: str, value: object) -> Config:
    section, _, name = key.partition(".")
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})


REFUSED = {
    "sft": {
        "sft.pretrained_checkpoint": "other",
        "sft.save_dir": "elsewhere",
        "data.system_message": None,
        "training.time_budget": "5m",
        "lora.enabled": True,
    },
    "lora": {
        "lora.enabled": False,
        "lora.rank": 4,
        "lora.alpha": 16.0,
        "lora.targets": ("all-linear",),
        "lora.rslora": True,
        "lora.dora": True,
        "lora.frozen": "nf4",
        "data.system_message": "Be brief.",
    },
    "pretrain": {
        "pretrain.tokenizer": "gpt2",
        "pretrain.tokenizer_vocab_size": 400,
        "pretrain.save_dir": "elsewhere",
        "model.n_layer": 3,
        "model.rope_theta": 500.0,
        "model.context_length": 128,
        "model.vocab_size": 310,
        "model.tie_embeddings": False,
        "training.time_budget": "5m",
    },
}
APPLIED = {
    "sft": {"sft.learning_rate": 1.0, "sft.max_steps": 3, "data.seq_len": 32, "training.weight_decay": 0.5,
            "model.n_layer": 7, "lora.rank": 3, "system.seed": 5, "training.time_limit": "5m"},
    "lora": {"lora.dropout": 0.5, "lora.frozen": "float32"},
    "pretrain": {"pretrain.learning_rate": 1.0, "model.vocab_size": TOKENIZER.vocab_size, "lora.rank": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", START)
def test_a_change_that_can_not_be_applied_is_refused_and_others_are_not(tmp_path, kind):
    config, checkpoint = started(tmp_path, kind)
    job = "pretrain" if kind == "pretrain" else "sft"
    require_same_settings(config, job, checkpoint)
    for key, value in REFUSED[kind].items():
        with pytest.raises(UserError, match=rf"was started with {key}=.* \(now .*\), which can't change"):
            require_same_settings(changed(config, key, value), job, checkpoint)
    for key, value in APPLIED[kind].items():
        require_same_settings(changed(config, key, value), job, checkpoint)


@pytest.mark.parametrize(("kind", "key", "value"), [("lora", "lora.rank", 4), ("pretrain", "model.n_layer", 3),
                                                    ("sft", "data.system_message", "Hi.")])  # fmt: skip
@pytest.mark.parametrize("recorded", ["nothing", "the change"])
def test_what_the_checkpoint_says_counts_and_not_config_yaml(tmp_path, kind, key, value, recorded):
    """Earlier versions wrote a change that they did not apply to config.yaml."""
    config, checkpoint = started(tmp_path, kind)
    other = changed(config, key, value)
    (tmp_path / "run" / "config.yaml").unlink()
    if recorded == "the change":
        (tmp_path / "run" / "config.yaml").write_text(to_yaml(other))
    job = "pretrain" if kind == "pretrain" else "sft"
    require_same_settings(config, job, checkpoint)
    with pytest.raises(UserError, match=rf"was started with {key}="):
        require_same_settings(other, job, checkpoint)


def test_the_number_of_steps_is_fixed_if_a_time_budget_has_set_it(tmp_path):
    config, checkpoint = started(tmp_path, "sft")
    config = changed(config, "training.time_budget", "5m")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    require_same_settings(config, "sft", checkpoint)
    for key, value in {"sft.max_steps": 7, "sft.epochs": 2.0, "training.time_budget": None}.items():
        with pytest.raises(UserError, match=rf"was started with {key}="):
            require_same_settings(changed(config, key, value), "sft", checkpoint)


def test_a_run_of_another_job_is_not_resumed(tmp_path):
    config, checkpoint = started(tmp_path, "pretrain")
    with pytest.raises(UserError, match=r"run of pretrain, which sft can't resume; .*sft.pretrained_checkpoint="):
        require_same_settings(config, "sft", checkpoint)
    config, checkpoint = started(tmp_path / "2", "sft")
    with pytest.raises(UserError, match=r"run of sft, which pretrain can't resume; use `mini-chat-gpt sft`"):
        require_same_settings(config, "pretrain", checkpoint)


def test_a_run_resumes_in_the_folder_that_it_was_moved_to(tmp_path):
    config, checkpoint = started(tmp_path, "sft")
    moved = (tmp_path / "run").rename(tmp_path / "moved-2")
    named = changed(config, "sft.save_dir", str(tmp_path / "moved"))
    require_same_settings(named, "sft", moved / checkpoint.name)
    require_same_settings(config, "sft", moved / checkpoint.name)


def test_the_dropout_of_a_resumed_adapter_is_the_new_one(tmp_path):
    config, checkpoint = started(tmp_path, "lora")
    model, _ = pair_of_run(checkpoint, changed(config, "lora.dropout", 0.7))
    assert {layer.dropout.p for _, layer in adapters(model)} == {0.7}
    assert model.adapter.settings == LoraSettings(rank=2, alpha=8.0, dropout=0.7, targets=("q_proj",))


@pytest.mark.parametrize(
    "overrides", [["training.optimizer=muon"], ["lora.enabled=true"], ["sft.best_metric=eval/none"]]
)
def test_a_refused_resume_changes_nothing_in_the_run_folder(tmp_path, overrides):
    """Otherwise the next resume, without the change, would find it in config.yaml."""
    save_checkpoint(tmp_path / "base", tiny_model(TOKENIZER.vocab_size), TOKENIZER)
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi, Tom."}]}
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * 8))
    sft = {"pretrained_checkpoint": str(tmp_path / "base"), "save_dir": str(tmp_path / "run"), "max_steps": 2}
    train(tiny_config(sft=sft | {"save_interval": 1}, chats={"files": str(tmp_path / "chats.jsonl")}))
    before = contents(tmp_path / "run")
    resumed = load_config(
        tmp_path / "run" / "config.yaml", [f"sft.resume_from={tmp_path}/run/step-0000001", *overrides]
    )
    with pytest.raises(UserError):
        train(resumed)
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the record of what has been verified."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != RECORD]
    return {str(file): file.read_bytes() for file in files}


def test_a_value_that_changed_is_shown_as_yaml_has_it(tmp_path):
    config, checkpoint = started(tmp_path, "lora")
    with pytest.raises(UserError, match=r"was started with lora\.dora=false \(now true\)"):
        require_same_settings(changed(config, "lora.dora", True), "sft", checkpoint)


@pytest.mark.parametrize("save_dir", ["run-x", "ru", "run-2", "other/run"])
def test_another_folder_of_the_same_name_or_place_is_not_the_folder_of_the_run(tmp_path, save_dir):
    config, checkpoint = started(tmp_path, "sft")
    with pytest.raises(UserError, match=r"was started with sft\.save_dir="):
        require_same_settings(changed(config, "sft.save_dir", str(tmp_path / save_dir)), "sft", checkpoint)


def test_settings_that_change_are_named(tmp_path):
    config, checkpoint = started(tmp_path, "sft")
    run = checkpoint.parent
    assert changed_settings(config, "sft", run) == []
    for key, value in (("sft.max_steps", 3400), ("sft.resume_from", str(run)), ("training.time_limit", "1h")):
        config = changed(config, key, value)
    config = changed(changed(config, "data.mixture", {"moral": 1.0}), "pretrain.max_steps", 7)
    before = load_config(run / "config.yaml")
    assert changed_settings(config, "sft", run) == [
        f"sft.max_steps: {before.sft.max_steps!r} → 3400",
        "data.mixture: null → {'moral': 1.0}",
    ]
    (run / "config.yaml").write_text("sft: [")
    assert changed_settings(config, "sft", run) == []

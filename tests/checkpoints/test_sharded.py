"""FSDP2: sharded training equals DDP, and sharded checkpoints are read like unsharded ones.

Two processes train in one call of torchrun (sharded.py); these tests check their results and files in one process.
"""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import TORCHRUN, environment
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sharded import STEP, make_engine, same, state_of

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.checkpoints import convert, sharded
from mini_chat_gpt.checkpoints.find import OPTIMIZER, find_checkpoint
from mini_chat_gpt.checkpoints.load import load_model, read_tensors, tensors_in
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.export.command import export_folder
from mini_chat_gpt.export.gguf_export import export_gguf
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.training.job import Progress

NAME = f"step-{STEP:07d}"
BOTH = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """The folder in which two processes trained."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = str(Path(__file__).parent.parent / "sharded.py")
    command = [sys.executable, *TORCHRUN, "--standalone", "--nproc_per_node=2", worker, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def results(ranks) -> dict:
    return json.loads((ranks / "results.json").read_text())


@BOTH
def test_losses_and_gradients_equal_ddps(results, optimizer):
    """With several micro-batches, with fewer on one process, and with none."""
    for quantity in ("gradient", "loss", "norm", "evaluation"):
        assert results[optimizer][quantity] <= 1e-5, quantity


def test_after_some_steps_weights_averages_and_moments_equal_ddps(results):
    assert results["adamw"]["state"] <= 1e-5
    assert results["muon"]["state"] <= 4e-3  # Muon's iteration rounds to bfloat16


def test_muon_computes_the_same_update_from_the_same_gradient(results):
    assert max(results["muon alone"].values()) <= 0.02 * 0.1  # likewise; 0.1 is the learning rate


@BOTH
def test_each_process_keeps_only_its_shard(results, optimizer):
    assert results[optimizer]["local fraction"] < 0.51


@BOTH
def test_a_tied_head_stays_tied(results, optimizer):
    assert results[optimizer]["tied"]


@BOTH
def test_a_sharded_model_generates_what_an_unsharded_one_does(results, optimizer):
    """Before the first step and after some, in both cases with the averaged weights."""
    assert results[optimizer]["replies"]


def test_a_nonfinite_gradient_on_one_process_is_noticed_by_all(results):
    assert results["non-finite step"] == {"noticed": [2.0], "nothing changed": True}


def test_a_full_disk_is_reported_by_all_processes_and_leaves_no_files(results):
    assert results["full disk"] == {"reported": [2.0], "files": []}


@BOTH
@pytest.mark.parametrize("conversion", ["sharded to sharded", "sharded to unsharded", "unsharded to sharded"])
def test_two_processes_resume_bit_for_bit(results, optimizer, conversion):
    assert results[optimizer][conversion]


@BOTH
def test_a_resumed_run_continues_like_the_one_that_kept_training_during_the_write(results, optimizer):
    assert results[optimizer]["continues"]


@BOTH
def test_one_process_resumes_from_shards_bit_for_bit(ranks, optimizer):
    checkpoint = find_checkpoint(ranks / optimizer / "sharded")
    engine = make_engine(ALONE, True, load_model(checkpoint), optimizer=optimizer)
    assert engine.restore(checkpoint).progress == Progress(STEP)
    assert not engine.sharded
    assert engine.average.steps == STEP
    assert same(state_of(engine), load_file(ranks / optimizer / "reference.safetensors"))


def test_a_command_trains_a_sharded_model(ranks):
    assert sorted(folder.name for folder in (ranks / "run").glob("step-*")) == ["step-0000003", "step-0000004"]
    model, tokenizer = load_checkpoint(ranks / "run", device="cpu")
    assert len(generate(model, tokenizer, ["Once upon a time"], 4, temperature=0.0)) == 1
    lines = [json.loads(line) for line in (ranks / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["pretrain/val_loss"] for line in lines if "pretrain/val_loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert "Once upon a time" in (ranks / "run" / "samples.txt").read_text()


def test_nothing_is_pickled(ranks, monkeypatch):
    checkpoint = ranks / "adamw" / "sharded" / NAME
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} == {".json", ".safetensors", ".tiktoken"}

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_checkpoint(checkpoint, device="cpu")
    infos = tensors_in(checkpoint, OPTIMIZER)
    assert read_tensors(checkpoint, OPTIMIZER, {name: info.shape for name, info in infos.items()})


def test_each_process_writes_only_its_shard(ranks):
    shards = sorted((ranks / "adamw" / "sharded" / NAME / "optimizer").iterdir())
    assert len(shards) == 2
    sizes = [shard.stat().st_size for shard in shards]
    assert max(sizes) < 0.55 * sum(sizes)


def test_the_gathered_checkpoint_loads_in_transformers_with_the_same_logits(ranks, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    source = ranks / "adamw" / "sharded"
    assert convert.main([str(source), str(tmp_path / "gathered")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "gathered")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(source / NAME)(ids), atol=1e-4, rtol=1e-4)
    meta = json.loads((tmp_path / "gathered" / "mini_chat_gpt.json").read_text())
    assert meta["info"]["job"] == "sft"
    assert "sharded" not in meta


def test_shards_are_joined_in_an_export(ranks, tmp_path):
    source = ranks / "adamw" / "sharded" / NAME
    export_folder(source, tmp_path / "folder")
    export_gguf(source, tmp_path / "m.gguf", "f32")
    expected = load_model(source).state_dict()
    for path in (tmp_path / "folder", tmp_path / "m.gguf"):
        state = load_checkpoint(path, "cpu")[0].state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def test_a_checkpoint_is_imported_with_its_own_tokenizer(ranks, tmp_path):
    with pytest.raises(UserError, match="omit --tokenizer"):
        convert.main([str(ranks / "run"), str(tmp_path / "x"), "--tokenizer", "gpt2"])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "its hash differs"),
    ],
)
def test_a_damaged_shard_is_reported_and_the_checkpoint_skipped(ranks, tmp_path, harm, words):
    for step in (3, 4):
        shutil.copytree(ranks / "adamw" / "sharded" / NAME, tmp_path / f"step-000000{step}")
    shard = "optimizer/shard-00002-model-00001-of-00001.safetensors"
    harm(tmp_path / "step-0000004" / shard)
    with pytest.raises(
        UserError, match=rf"step-0000004 is damaged: .*{re.escape(shard)}.*{words}|{words}.*{re.escape(shard)}"
    ):
        load_checkpoint(tmp_path / "step-0000004")
    with pytest.warns(UserWarning, match=r"step-0000004: .*shard-00002"):
        assert find_checkpoint(tmp_path, prefer="last").name == "step-0000003"


@pytest.mark.parametrize("missing", [1, 2])
def test_missing_rows_are_reported(ranks, tmp_path, missing):
    folder = shutil.copytree(ranks / "adamw" / "sharded" / NAME, tmp_path / "m")
    (folder / "model" / f"shard-0000{missing}-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"rows of .* are missing|instead of \[301, 32\]|lacks"):
        load_model(folder)


def test_processes_without_a_shared_disk_get_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "TIMEOUT", 0.0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "shard-00001-model-00001-of-00001.safetensors").touch()
    with pytest.raises(UserError, match=r"Only 1 of the 2 files .* a disk that all machines share"):
        sharded._await_shards(tmp_path, 2)


def change_shards(folder: Path, change) -> None:
    """Apply `change` to the tensors of each shard in a folder, and keep the metadata."""
    for number, path in enumerate(sorted(folder.iterdir())):
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(tensors, number)
        save_file(tensors, path, metadata)


def swapped(tensors: dict[str, torch.Tensor], field: str, make) -> None:
    name = f"layers.0.mlp.up_proj.weight/{field}"
    tensors[name] = make(tensors[name]).contiguous()


SHARD_MUTANTS = {
    "fewer columns": (lambda t, _: swapped(t, "exp_avg", lambda x: x[:, :3]), r"shape \[81, 3\] instead of \[81, 32\]"),
    "fewer rows": (
        lambda t, n: n and swapped(t, "exp_avg", lambda x: x[:-1]),
        r"shape \[80, 32\] instead of \[81, 32\]",
    ),
    "another type": (lambda t, _: swapped(t, "exp_avg_sq", lambda x: x.half()), "as float16 instead of float32"),
    "types that differ": (lambda t, n: n and swapped(t, "exp_avg", lambda x: x.half()), "missing or occur twice"),
    "NaN in one shard": (lambda t, n: n and swapped(t, "exp_avg", lambda x: x * torch.nan), "has an impossible value"),
    "missing": (lambda t, _: t.pop("layers.0.mlp.up_proj.weight/exp_avg"), "lacks the tensor"),
    "missing in one shard": (lambda t, n: n or t.pop("layers.0.mlp.up_proj.weight/exp_avg"), "missing or occur twice"),
}


@pytest.mark.parametrize("mutant", SHARD_MUTANTS)
def test_sharded_optimizer_state_that_the_run_can_not_have_is_named(ranks, tmp_path, mutant):
    change, words = SHARD_MUTANTS[mutant]
    checkpoint = shutil.copytree(ranks / "adamw" / "sharded" / NAME, tmp_path / NAME)
    change_shards(checkpoint / "optimizer", change)
    engine = make_engine(ALONE, True, load_model(checkpoint), optimizer="adamw")
    with pytest.raises(UserError, match=words):
        engine.restore(checkpoint)
    assert engine.optimizer.state_tensors() == {}

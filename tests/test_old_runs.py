"""Runs made by earlier versions still resume to the same losses, chat, generate and merge.

Each folder in old_runs holds unfinished runs of one version, their data, the script that made them (make.py), and the losses
that this version itself reached when it finished the runs (ends.json). The paths in them are relative to the working
directory, except for the absolute path of the adapter's base, which no longer exists.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from commands import environment, make_clone, program, run

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.checkpoints.find import find_checkpoint

OLD_RUNS = Path(__file__).parent / "old_runs"
VERSIONS = sorted(folder.name for folder in OLD_RUNS.iterdir() if folder.is_dir())
VERBS = {"base": "pretrain", "sft": "sft", "lora": "sft"}
PROMPT = "Once upon a time"
GREEDY = ["--temperature", "0", "--max-new-tokens", "20"]
IDS = torch.arange(3, 43)[None]
each_version = pytest.mark.parametrize("version", VERSIONS)
each_run = pytest.mark.parametrize("name", VERBS)


def copy_runs(folder: Path, version: str) -> Path:
    """A folder in which commands find the data and all runs of a version under their original relative paths."""
    make_clone(folder)
    for name in VERBS:
        shutil.copytree(OLD_RUNS / version / name, folder / "runs" / name)
    shutil.copytree(OLD_RUNS / version / "data", folder / "data")
    return folder


def greedy_reply(folder: Path, checkpoint: str) -> str:
    """The reply that the generate command prints, without the lines about the model and the speed."""
    return run(folder, "generate", "--checkpoint", checkpoint, "--prompt", PROMPT, *GREEDY).split("\n")[0]


def chat_reply(folder: Path, checkpoint: str) -> str:
    """The reply to one message in a chat over a pipe."""
    command = program("chat", "--checkpoint", checkpoint, *GREEDY)
    done = subprocess.run(
        command, cwd=folder, input=f"{PROMPT}\n", capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rstrip("\n")


@each_version
@each_run
def test_an_old_run_resumes_to_the_losses_that_its_version_reached(tmp_path, version, name):
    folder, verb = copy_runs(tmp_path, version), VERBS[name]
    printed = run(folder, verb, f"{verb}.resume_from=runs/{name}")
    assert "from step 11" in printed
    assert "data.mixture" in printed  # the setting in the old config.yaml has another name
    result = json.loads((folder / "runs" / name / "result.json").read_text())
    expected = json.loads((OLD_RUNS / version / "ends.json").read_text())[name]
    losses = [key for key in expected if "loss" in key]
    assert {key: result[key] for key in losses} == pytest.approx({key: expected[key] for key in losses}, rel=1e-5)
    assert result["steps"] == expected["steps"]
    assert find_checkpoint(folder / "runs" / name / "last").name == "step-0000020"


@each_version
@each_run
def test_an_old_run_chats_and_generates(tmp_path, version, name):
    folder = copy_runs(tmp_path, version)
    assert chat_reply(folder, f"runs/{name}") == greedy_reply(folder, f"runs/{name}") != ""


@each_version
def test_an_old_adapter_is_merged_with_the_base_beside_it(tmp_path, version):
    folder = copy_runs(tmp_path, version)
    assert "Merged: merged" in run(folder, "merge", "runs/lora", "merged")
    adapted, merged = (load_checkpoint(folder / path, "cpu")[0] for path in ("runs/lora", "merged"))
    base, _ = load_checkpoint(folder / "runs" / "base", "cpu")
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS), adapted(IDS))
        assert not torch.allclose(merged(IDS), base(IDS))
    reply = greedy_reply(folder, "runs/lora")
    shutil.rmtree(folder / "runs")  # the merged model needs neither the adapter nor the base
    assert greedy_reply(folder, "merged") == chat_reply(folder, "merged") == reply != ""


@each_version
def test_the_best_checkpoint_of_an_old_run_is_found(tmp_path, version):
    runs = copy_runs(tmp_path, version) / "runs"
    assert find_checkpoint(runs / "base").name == "step-0000006"  # the last one that was evaluated
    assert find_checkpoint(runs / "lora" / "best").name == "step-0000006"
    assert find_checkpoint(runs / "sft" / "best").name == find_checkpoint(runs / "sft" / "last").name == "step-0000011"

"""Several processes under torchrun make the same steps as one process, and a run survives the loss of one of them."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import SMALL, TORCHRUN, environment, free_port, make_clone, program, run, wait_for, write_stories
from safetensors.torch import load_file

SETTINGS = [
    *SMALL, "model.context_length=64", "data.seq_len=64", "data.eval_examples=11", "system.device=cpu", "system.threads=1",
    "system.mixed_precision=false", "pretrain.tokenizer_vocab_size=300", "pretrain.dataset_path=stories-train.txt",
    "pretrain.max_steps=24", "pretrain.save_interval=8", "pretrain.eval_interval=12", "training.tokens_per_step=300",
    "training.batch_size=3", "training.keep_checkpoints=9", "wandb.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    write_stories(folder)
    return folder


def torchrun(clone: Path, *arguments: str, code: int = 0, ranks: int = 2) -> str:
    command = [*TORCHRUN, f"--nproc_per_node={ranks}", "--standalone", "mini_chat_gpt/pretrain.py", *SETTINGS]
    return run(clone, *command, *arguments, code=code)


@pytest.fixture(scope="module")
def pair(clone) -> Path:
    """A run of two processes."""
    printed = torchrun(clone, "pretrain.save_dir=pair")
    assert printed.count("pretrain: ") == 1 or "2 processes" in printed
    assert printed.count("Done in") == 1
    return clone / "pair"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def losses(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[f"pretrain/{name}"] for line in lines if f"pretrain/{name}" in line]


def test_two_processes_train_like_one(clone, pair):
    run(clone, "pretrain", *SETTINGS, "pretrain.save_dir=alone")
    for name in ("train_loss", "val_loss", "tokens", "trained_tokens"):
        ours, theirs = (torch.tensor(losses(folder, name)) for folder in (pair, clone / "alone"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    alone = weights(clone / "alone" / "step-0000024")
    for name, tensor in weights(pair / "step-0000024").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4)


def test_a_run_of_two_processes_can_be_resumed_by_one(clone, pair):
    first = clone / "started-by-two"
    first.mkdir()
    for name in ("step-0000008", "config.yaml", "metrics.jsonl", "run.json"):
        os.symlink(pair / name, first / name) if name.startswith("step") else (first / name).write_bytes(
            (pair / name).read_bytes()
        )
    printed = run(clone, "pretrain", "pretrain.resume_from=started-by-two")
    assert "resumed from step 8" in printed
    ours, theirs = (weights(folder / "step-0000024") for folder in (first, pair))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def workers_of(agent: int) -> list[int]:
    """The training processes that a torchrun process has started."""
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == agent and "pretrain.py" in command:
                processes.append(int(folder.name))
    return sorted(processes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finding the processes needs /proc of Linux")
@pytest.mark.slow
def test_after_the_loss_of_a_process_torchrun_restarts_from_the_last_checkpoint(clone, pair):
    arguments = ["--nproc_per_node=2", "--standalone", "--max-restarts=1", "mini_chat_gpt/pretrain.py", *SETTINGS]
    command = program(*TORCHRUN, *arguments, "pretrain.save_dir=restarted")
    agent = subprocess.Popen(
        command, cwd=clone, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: (clone / "restarted" / "step-0000008").exists())
    os.kill(workers_of(agent.pid)[1], signal.SIGKILL)
    printed = agent.communicate(timeout=200)[0]
    assert agent.returncode == 0, printed
    assert "resumed from step" in printed
    assert not (clone / "restarted-2").exists()
    ours, theirs = (weights(folder / "step-0000024") for folder in (clone / "restarted", pair))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_the_remaining_process_reports_the_loss_of_the_other(clone):
    command = program(*TORCHRUN, "--nproc_per_node=2", "--standalone", "mini_chat_gpt/pretrain.py", *SETTINGS)
    agent = subprocess.Popen(
        [*command, "pretrain.max_steps=5000", "pretrain.save_dir=left"],
        cwd=clone, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: (clone / "left" / "step-0000008").exists())
    os.kill(workers_of(agent.pid)[1], signal.SIGKILL)
    printed = agent.communicate(timeout=100)[0]
    assert agent.returncode != 0
    assert "Process 0 of 2 has lost the connection to another one" in printed or "Stopped (SIGTERM)" in printed


def test_an_error_is_printed_once_and_ends_all_processes(clone):
    printed = torchrun_fails(clone, "pretrain.dataset_path=nowhere")
    assert printed.count("error: There is no text at nowhere") == 1


def torchrun_fails(clone: Path, *arguments: str) -> str:
    command = program(
        *TORCHRUN, "--nproc_per_node=2", "--standalone", "mini_chat_gpt/pretrain.py", *SETTINGS, *arguments
    )
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, env=environment(), timeout=200)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_without_torchrun_the_command_to_type_is_printed(clone):
    printed = run(clone, "mini_chat_gpt/pretrain.py", "system.multi_gpu=true", code=2)
    assert "torchrun --nproc_per_node=2 mini_chat_gpt/pretrain.py system.multi_gpu=true" in printed
    printed = run(clone, "sft", "system.fsdp=true", code=2)
    assert "torchrun --nproc_per_node=2 -m mini_chat_gpt.cli sft system.fsdp=true" in printed


@pytest.mark.slow
def test_a_lost_machine_can_rejoin_the_run(clone, pair):
    """Two torchrun agents with one process each, as on two machines; one is killed with its process."""
    port = free_port()
    arguments = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv_backend=c10d", "--rdzv_id=two-machines",
                 f"--rdzv_endpoint=localhost:{port}", "--local-addr=localhost"]  # fmt: skip
    command = program(*TORCHRUN, *arguments, "mini_chat_gpt/pretrain.py", *SETTINGS, "pretrain.save_dir=machines",
                      "pretrain.save_interval=4")  # fmt: skip

    def start() -> subprocess.Popen:
        log = open(clone / "machines.log", "a")
        # Without this torchrun of PyTorch 2.13 waits forever for the address of the machine that rejoins.
        variables = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        return subprocess.Popen(command, cwd=clone, env=variables, stdout=log, stderr=subprocess.STDOUT)

    first = start()
    time.sleep(3)  # so that this agent hosts the rendezvous
    second = start()
    wait_for(lambda: list((clone / "machines").glob("step-*")))
    workers = workers_of(second.pid)
    for process in (second.pid, *workers):
        os.kill(process, signal.SIGKILL)
    again = start()
    codes = [agent.wait(timeout=200) for agent in (first, again)]
    printed = (clone / "machines.log").read_text()
    assert codes == [0, 0], printed
    assert "resumed from step" in printed
    ours, theirs = (weights(folder / "step-0000024") for folder in (clone / "machines", pair))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

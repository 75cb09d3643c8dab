"""A run that is killed many times at random moments ends with the same weights as an uninterrupted one, bit for bit.

The processes are forked from one that has imported everything. A start then takes a second, so that many kills can be tested.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import SMALL, environment, write_stories

FORK_SERVER = """
# Forks a training process for each line "KIND NUMBER|ARGUMENTS…". Prints its process id, then its exit code.
# KIND "" trains; "before" and "after" kill the process at its NUMBER-th rename; "deleting" while it deletes a folder.
import os, shutil, signal, sys
import torch.utils.data, mini_chat_gpt.training.loss_curves
from mini_chat_gpt.pretrain import main
from mini_chat_gpt.common.entry import exit_with

def die(): os.kill(os.getpid(), signal.SIGKILL)

def kill_at(kind, number):
    count, rename, rmdir = [0], os.rename, os.rmdir
    def watched(*args, **more):
        count[0] += 1
        if kind == "before" and count[0] == number: die()
        rename(*args, **more)
        if kind == "after" and count[0] == number: die()
    def watched_rmdir(*args, **more):
        count[0] += 1
        if count[0] == number: die()
        rmdir(*args, **more)
    if kind == "deleting": os.rmdir = watched_rmdir  # the last call when a checkpoint folder is deleted
    else: os.rename = watched

for line in sys.stdin:
    (kind, number), *arguments = [part.split(" ") if i == 0 else part for i, part in enumerate(line.rstrip("\\n").split("|"))]
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1); os.dup2(log, 2)
        if kind: kill_at(kind, int(number))
        exit_with(lambda: main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

STEPS = 240
SETTINGS = [
    *SMALL, "model.context_length=64", "data.seq_len=64", "data.eval_examples=8", "data.num_workers=1", "system.threads=2",
    "system.device=cpu", "system.compile=false", "training.optimizer=muon", "training.ema=0.95", "training.batch_size=4",
    "training.keep_checkpoints=2", "pretrain.tokenizer_vocab_size=300", "pretrain.dataset_path=stories-train.txt",
    f"pretrain.max_steps={STEPS}", "pretrain.save_interval=2", "pretrain.eval_interval=60", "wandb.enabled=false",
    "pretrain.resume_from=auto",
]  # fmt: skip


class ForkServer:
    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", FORK_SERVER]
        variables = environment(
            OMP_WAIT_POLICY="PASSIVE"
        )  # two spinning threads would slow down tests that run in parallel
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )

    def start(self, arguments: list[str], kind: str = "", number: int = 0) -> int:
        print("|".join([f"{kind} {number}", *arguments]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def exit_code(self) -> int:
        return int(self.process.stdout.readline())


def leftovers(run: Path) -> str:
    """Whether the run was killed while it saved or deleted a checkpoint."""
    names = [path.name for path in run.glob(".step-*")]
    if any(name.endswith(".tmp") for name in names):
        return "while saving"
    return "while deleting" if names else "in between"


def newest(run: Path) -> str:
    return max((path.name for path in run.glob("step-*")), default="")


def state_of(checkpoint: Path) -> dict:
    """Everything in a checkpoint except times."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    state = json.loads(files["training_state.json"])
    del state["progress"]["seconds"], state["progress"]["window"]["seconds"], state["progress"]["window"]["waiting"]
    return files | {"training_state.json": state}


@pytest.fixture
def fork_server(tmp_path):
    write_stories(tmp_path)
    server = ForkServer(tmp_path)
    yield server
    server.process.kill()
    server.process.communicate()


OTHERS = ["training.optimizer=adamw", "training.ema=null", "data.num_workers=0", "system.threads=1",
          "system.mixed_precision=fp16", "training.tokens_per_step=200", "training.activation_checkpointing=true"]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [pytest.param([], id="muon, ema, worker, two threads"), pytest.param(OTHERS, id="float16", marks=pytest.mark.slow)],
)
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, fork_server, changes):
    fork_server.start([*SETTINGS, *changes, "pretrain.save_dir=whole"])
    assert fork_server.exit_code() == 0, (tmp_path / "log.txt").read_text()
    broken = [*SETTINGS, *changes, "pretrain.save_dir=broken"]
    rng, seen = random.Random(7), Counter()
    kills = [("before", 1), ("before", 4), ("after", 1), ("after", 4), ("deleting", 1), ("deleting", 3)]
    for kind, number in kills:  # during a rename or a rotation of checkpoints
        fork_server.start(broken, kind, number)
        assert fork_server.exit_code() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
        seen[f"{kind} rename" if kind != "deleting" else kind] += 1
    for number in range(20):
        before = newest(tmp_path / "broken")
        child = fork_server.start(broken)
        # At a random moment of the start, or shortly after a save: each start makes some progress.
        deadline = time.monotonic() + rng.uniform(0.3, 1.5)
        while newest(tmp_path / "broken") == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.04))
        deadline = time.monotonic() + 5
        while number % 2 and not list((tmp_path / "broken").glob(".step-*")) and time.monotonic() < deadline:
            pass  # every second kill happens during saving or deleting
        os.kill(child, signal.SIGKILL)
        assert fork_server.exit_code() == -signal.SIGKILL, (
            f"the run ended before all kills {seen}: {(tmp_path / 'log.txt').read_text()}"
        )
        seen[leftovers(tmp_path / "broken")] += 1
    fork_server.start(broken)
    assert fork_server.exit_code() == 0, (tmp_path / "log.txt").read_text()
    print(dict(seen))
    assert state_of(tmp_path / "whole" / f"step-{STEPS:07d}") == state_of(tmp_path / "broken" / f"step-{STEPS:07d}")
    assert not list((tmp_path / "broken").glob(".step-*"))
    assert not list((tmp_path / "broken").glob("set-aside-*"))
    metrics = [
        [
            {name: value for name, value in json.loads(line).items() if not TIMED & set(name.split("/"))}
            for line in lines
        ]
        for lines in ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "broken"))
    ]
    assert metrics[0] == metrics[1]


TIMED = {"time", "tokens_per_second", "trained_tokens_per_second", "data_wait_share", "memory_bytes"}

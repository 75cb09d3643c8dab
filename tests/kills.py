"""Kill training runs at random instants, resume them, and compare the results with those of uninterrupted runs.

    python tests/kills.py 100        # 100 kills over pretraining, fine-tuning and LoRA, in a temporary folder

The processes are forked from one that has imported everything. A start then takes a second, so that many kills can be tested.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands import BRIEF, SMALL, environment, write_stories
from tiny import tiny_model, tiny_tokenizer, write_records

from mini_chat_gpt.checkpoints.find import find_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint

FORK_SERVER = """
# Forks a training process for each line "VERB WHERE NUMBER SIGNAL GROUP|ARGUMENTS…". Prints its process id, then its exit code.
# The process sends itself the signal at its NUMBER-th passage of WHERE; with WHERE "-" it does not.
import os, shutil, signal, sys
import torch.utils.data, mini_chat_gpt.training.loss_curves
from mini_chat_gpt import pretrain, sft_train
from mini_chat_gpt.checkpoints import save
from mini_chat_gpt.common import files
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.validation import Validation

def kill_at(where, number, signal_number, group):
    count, trainer = [0], os.getpid()
    def passing():
        count[0] += 1
        if count[0] == number and os.getpid() == trainer:
            (os.killpg if group else os.kill)(trainer, signal_number)
    def watch(owner, name, after=False):
        call = getattr(owner, name)
        def watched(*args, **more):
            if not after: passing()
            result = call(*args, **more)
            if after: passing()
            return result
        setattr(owner, name, watched)
    if where == "before-rename": watch(os, "rename")
    if where == "after-rename": watch(os, "rename", after=True)
    if where == "writing": watch(save, "_write_tensors")
    if where == "exchange": watch(files, "exchange")
    if where == "after-exchange": watch(files, "exchange", after=True)
    if where == "deleting": watch(os, "rmdir")  # the last call when a folder is deleted
    if where == "validation": watch(TrainStep, "evaluate")
    if where == "scores": watch(Validation, "scores")
    if where == "samples": watch(Validation, "samples")
    if where == "step": watch(TrainStep, "train_step")

for line in sys.stdin:
    head, *arguments = line.rstrip("\\n").split("|")
    verb, where, number, signal_number, group = head.split(" ")
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1); os.dup2(log, 2)
        kill_at(where, int(number), int(signal_number), int(group))
        exit_with(lambda: {"pretrain": pretrain, "sft": sft_train}[verb].main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MARKER = "MINI_CHAT_GPT_KILL_TEST"
COMMON = [*BRIEF[:1], "system.compile=false", "wandb.enabled=false", "training.batch_size=4", "training.keep_checkpoints=2",
          "data.eval_examples=24"]  # fmt: skip
SFT = [*COMMON, "sft.pretrained_checkpoint=base", "sft.resume_from=auto", "sft.dataset_path=data", "data.seq_len=256",
       "sft.prompts=[]", "sft.learning_rate=1e-2", "sft.save_interval=2", "sft.eval_interval=5"]  # fmt: skip
SCENARIOS = {
    "pretraining": ["pretrain", 80, *SMALL, *COMMON, "model.context_length=64", "data.seq_len=64", "data.num_workers=1",
                    "system.threads=2", "training.optimizer=muon", "training.ema=0.95", "pretrain.tokenizer_vocab_size=300",
                    "pretrain.dataset_path=stories-train.txt", "pretrain.save_interval=2", "pretrain.eval_interval=8",
                    "pretrain.resume_from=auto"],
    "fine-tuning": ["sft", 40, *SFT, "data.num_workers=1", "system.threads=1", "sft.eval_tasks=1",
                    "sft.best_metric=eval/main_character/accuracy", "training.tokens_per_step=600"],
    "LoRA": ["sft", 40, *SFT, "data.num_workers=0", "system.threads=1", "sft.eval_tasks=0", "lora.enabled=true", "lora.rank=2",
             "training.ema=0.9", "system.mixed_precision=fp16"],
}  # fmt: skip
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
PLACES = ["at any time", "at the start", "before-rename", "after-rename", "writing", "deleting", "validation", "scores",
          "samples", "step", "worker"]  # fmt: skip
CODES = {signal.SIGKILL: [-9], signal.SIGTERM: [143, -15], signal.SIGHUP: [129, -1], signal.SIGINT: [130, -2]}
TIMED = {"time", "tokens_per_second", "trained_tokens_per_second", "data_wait_share", "memory_bytes"}


@dataclass
class Figures:
    """What has been tried, and what has been found."""

    signals: Counter = field(default_factory=Counter)
    places: Counter = field(default_factory=Counter)
    runs: Counter = field(default_factory=Counter)  # runs that were resumed until their end, and compared
    kills: int = 0
    slowest: float = 0.0  # seconds from a signal other than SIGKILL to the end of the process


class Harness:
    """Runs, kills and compares in a folder of its own."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.random, self.figures = folder, random.Random(seed), Figures()
        write_stories(folder)
        write_records(folder / "data")
        tokenizer = tiny_tokenizer()
        save_checkpoint(
            folder / "base", tiny_model(tokenizer.vocab_size, context_length=256), tokenizer, {"job": "pretrain"}
        )
        self.last, self.owes_evaluation = "", False
        self.mark = f"{os.getpid()}-{time.monotonic()}"
        # Two spinning threads would slow down tests that run in parallel.
        variables = environment(OMP_WAIT_POLICY="PASSIVE", **{MARKER: self.mark})
        self.server = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def close(self) -> None:
        self.server.kill()
        self.server.communicate()

    def start(
        self, scenario: str, run: str, place: str = "-", number: int = 0, signal_number: int = 0, group: bool = False
    ) -> int:
        verb, steps, *settings = SCENARIOS[scenario]
        arguments = [*settings, f"{verb}.max_steps={steps}", f"{verb}.save_dir={run}"]
        head = f"{verb} {place} {number} {int(signal_number)} {int(group)}"
        print("|".join([head, *arguments]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def exit_code(self) -> int:
        return int(self.server.stdout.readline())

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-4000:]

    def kill(self, scenario: str, run: str) -> bool:
        """Start or resume a run and kill it at a random instant. Returns whether it was killed before its end."""
        figures, pick = self.figures, self.random
        place, signal_number = pick.choice(PLACES), pick.choice(SIGNALS)
        group = signal_number != signal.SIGKILL and pick.random() < 0.5  # a terminal signals the whole process group
        if self.owes_evaluation and pick.random() < 0.5:  # the checkpoint is replaced by one with the result
            place = pick.choice(["exchange", "after-exchange"])
        if place == "worker" and "data.num_workers=1" not in SCENARIOS[scenario]:
            place = "step"
        number = 1 if "exchange" in place else pick.randint(1, 3)
        inside = place not in ("at any time", "at the start", "worker")
        child = self.start(scenario, run, *((place, number, signal_number, group) if inside else ()))
        started = time.monotonic()
        if not inside:
            self._send(child, run, place, signal_number, group)
            started = time.monotonic()
        code = self.exit_code()
        seconds = time.monotonic() - started
        name = signal.Signals(signal_number).name + (" to the group" if group else "")
        self.last = (
            f"{run}: {name}, {place}: exit code {code}, last checkpoint {newest(self.folder / run)}, {seconds:.1f} s"
        )
        expected = [2] if place == "worker" else CODES[signal_number]
        assert code in (*expected, 0), f"{scenario}: {place}, signal {signal_number}: exit code {code}\n{self.log()}"
        self.assert_no_process_is_left(f"{scenario}: {place}, {signal_number}")
        in_evaluation = place in ("validation", "scores", "samples")
        self.owes_evaluation = code != 0 and signal_number != signal.SIGKILL and in_evaluation
        if code != 0:
            figures.kills += 1
            figures.signals["SIGKILL of a worker" if place == "worker" else signal.Signals(signal_number).name] += 1
            figures.places[place] += 1
            if not inside and signal_number != signal.SIGKILL:
                figures.slowest = max(figures.slowest, seconds)
        return code != 0

    def _send(self, child: int, run: str, place: str, signal_number: int, group: bool) -> None:
        before, deadline = newest(self.folder / run), time.monotonic() + self.random.uniform(0.1, 0.8)
        if place != "at the start":  # after a save
            deadline = time.monotonic() + 5
            while newest(self.folder / run) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            deadline = time.monotonic() + self.random.uniform(0, 0.3)
        time.sleep(max(0.0, deadline - time.monotonic()))
        try:
            if place == "worker":
                for worker in [process for process in self.processes() if process != child]:
                    os.kill(worker, signal.SIGKILL)
            elif group:
                os.killpg(child, signal_number)
            else:
                os.kill(child, signal_number)
        except ProcessLookupError:  # the run has ended
            pass

    def processes(self) -> list[int]:
        """The living processes of this harness, without its server."""
        mark, found = f"{MARKER}={self.mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                if state != "Z" and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return [process for process in found if process != self.server.pid]

    def assert_no_process_is_left(self, after: str) -> None:
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"{after}: processes {left} are left"

    def finish(self, scenario: str, run: str, whole: str) -> None:
        """Resume a run until its end, and compare it with an uninterrupted one."""
        if not (self.folder / run / "result.json").is_file():
            self.start(scenario, run)
            assert self.exit_code() == 0, self.log()
        self.assert_no_process_is_left(scenario)
        steps = SCENARIOS[scenario][1]
        one, other = (self.folder / name for name in (run, whole))
        assert state_of(one / f"step-{steps:07d}") == state_of(other / f"step-{steps:07d}")
        assert find_checkpoint(one).name == find_checkpoint(other).name
        assert state_of(find_checkpoint(one)) == state_of(find_checkpoint(other))
        ours, theirs = metrics_of(one), metrics_of(other)
        assert ours == theirs, [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]][:2]
        assert json.loads((one / "result.json").read_text()) == json.loads((other / "result.json").read_text())
        temporary = [path for path in self.folder.rglob(".*") if path.name.endswith((".tmp", ".old"))]
        assert not temporary, temporary
        assert not list(one.glob("set-aside-*"))
        self.figures.runs[scenario] += 1

    def run(self, kills: int, scenarios: Sequence[str], show: Callable[[str], object] = lambda _: None) -> Figures:
        """Make this number of kills, in equal parts of the scenarios. `show` is called with a line about each."""
        for number, scenario in enumerate(scenarios):
            whole = f"{scenario}-whole"
            self.start(scenario, whole)
            assert self.exit_code() == 0, self.log()
            target, part = self.figures.kills + (kills + number) // len(scenarios), 0
            while self.figures.kills < target:
                part += 1
                run = f"{scenario}-{part}x"
                while self.figures.kills < target and self.kill(scenario, run):
                    show(self.last)
                self.finish(scenario, run, whole)
        assert "Traceback" not in (self.folder / "log.txt").read_text(errors="replace"), self.log()
        return self.figures


def newest(run: Path) -> str:
    return max((path.name for path in run.glob("step-*")), default="")


def state_of(checkpoint: Path) -> dict:
    """Everything in a checkpoint except times."""
    files = {
        path.name: path.read_bytes()
        for path in checkpoint.iterdir()
        if path.name != "manifest.json" and path.name[0] != "."
    }
    state = json.loads(files["training_state.json"])
    del state["progress"]["seconds"], state["progress"]["window"]["seconds"], state["progress"]["window"]["waiting"]
    return files | {"training_state.json": state}


def metrics_of(run: Path) -> list[dict]:
    """The run's metrics except times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not TIMED & set(name.split("/"))} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all of them")
    arguments = parser.parse_args()
    started, folder = time.monotonic(), Path(tempfile.mkdtemp())
    print(f"in {folder}, which is kept if a run differs")
    harness = Harness(folder, arguments.seed)
    try:
        figures = harness.run(arguments.kills, arguments.scenario or list(SCENARIOS), show=print)
    finally:
        harness.close()
    shutil.rmtree(folder)
    print(
        f"{figures.kills} kills in {time.monotonic() - started:.0f} s; weights, checkpoints and metrics are identical"
    )
    print("runs compared:", dict(figures.runs))
    print("signals:", dict(figures.signals))
    print("instants:", dict(figures.places))
    print(f"longest time from a signal at any time to the end of the process: {figures.slowest:.1f} s")


if __name__ == "__main__":
    main()

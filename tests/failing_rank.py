"""Pretraining under torchrun with a fault on one rank, for test_torchrun_failures.py.

torchrun --nproc_per_node=2 tests/failing_rank.py FAULT RANK [section.key=value …]
"""

import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

from mini_chat_gpt import pretrain
from mini_chat_gpt.common import rank_failures
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.text_dataset import TextDataset
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.validation import Validation

FAULT, HERE = sys.argv[1], os.environ["RANK"] == sys.argv[2]
read, train_step, model = TextDataset.__getitem__, TrainStep.train_step, Validation.model


def damaged_record(self, index):
    if HERE and index > 150:
        raise UserError("stories-train.txt: document 150 is damaged; repair it.")
    return read(self, index)


def train_step_with_fault(self, examples, lr_fraction, weight_decay=None, step=0, *rest, **more):
    if HERE and step == 10:
        if FAULT == "bug":
            raise ZeroDivisionError("a bug")
        if FAULT == "interrupt":
            raise KeyboardInterrupt
        if FAULT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, examples, lr_fraction, weight_decay, step, *rest, **more)


def endless(self):
    """This rank computes something long while the other one fails, without any collective."""
    if HERE:
        time.sleep(600)
    raise UserError("the other rank has found a mistake; correct it.")


def sample(self):
    """Samples fail here, or on all ranks for rank "all"; a rank without the error computes with the sharded model."""
    if HERE or sys.argv[2] == "all":
        raise MemoryError("the memory is full")
    return model(self)


FAULTS = {
    "record": (TextDataset, "__getitem__", damaged_record),
    "bug": (TrainStep, "train_step", train_step_with_fault),
    "interrupt": (TrainStep, "train_step", train_step_with_fault),
    "kill": (TrainStep, "train_step", train_step_with_fault),
    "long": (Validation, "run", endless),
    "samples": (Validation, "model", sample),
}


def main() -> int:
    if FAULT == "other folder" and HERE:  # as on a second machine that lacks the data
        Path("other").mkdir(exist_ok=True)
        os.chdir("other")
    rank_failures.TOGETHER = 5.0
    rank_failures.GRACE = 2.0 if FAULT == "long" else rank_failures.GRACE
    if FAULT in FAULTS:
        patch.object(*FAULTS[FAULT]).start()
    return pretrain.main(sys.argv[3:])


if __name__ == "__main__":
    exit_with(main)

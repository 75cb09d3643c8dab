"""The package works where Linux's modules and files do not exist, and where processes are not forked: on Windows and macOS.

The tests run on Linux with these things hidden. They cannot show everything: file names, terminals and line ends differ, too.
"""

import subprocess
import sys
from pathlib import Path

from commands import environment
from tiny import tiny_model, tiny_tokenizer, write_records

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.sft_train import parse, train

PRELUDE = """
# Imported by every Python process of the test at its start, worker processes included.
import builtins, importlib.abc, io, multiprocessing, os, signal, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "termios", "pwd", "grp"):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)

def with_spawn():
    # Python itself needs these modules to spawn a process on Linux, so they stay visible to it.
    import multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker, multiprocessing.util, subprocess, selectors
    import tempfile, shutil, pathlib, tarfile
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.get_all_start_methods = lambda: ["spawn"]

if os.environ.get("HIDE_LINUX"):
    with_spawn()
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hidden())
    # multiprocessing and PyTorch need pthread_sigmask and SIGCHLD here; unit tests cover their absence.
    for module, names in (signal, ("SIGHUP", "SIGALRM", "setitimer", "pause")), (os, ("sched_getaffinity", "getloadavg", "fork")):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    really_open = io.open
    def open_file(file, *args, **more):
        if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory (hidden by the test)", os.fspath(file))
        return really_open(file, *args, **more)
    builtins.open = io.open = open_file
"""

SCRIPT = """
import importlib, multiprocessing, pkgutil, signal, sys

def main():
    import mini_chat_gpt
    for module in pkgutil.walk_packages(mini_chat_gpt.__path__, "mini_chat_gpt."):
        importlib.import_module(module.name)
    from mini_chat_gpt.sft_train import parse, train
    assert not hasattr(signal, "SIGHUP") and "fcntl" not in sys.modules and "resource" not in sys.modules
    workers = set()
    train(parse("sft", sys.argv[1:]).settings, [lambda *_: workers.update(child.pid for child in multiprocessing.active_children())])
    print("workers:", len(workers), multiprocessing.get_start_method())
    return 0

if __name__ == "__main__":
    from mini_chat_gpt.common.entry import exit_with
    exit_with(main)
"""

SETTINGS = [
    "sft.pretrained_checkpoint=base", "sft.dataset_path=data", "sft.max_steps=10", "sft.save_interval=5", "sft.eval_interval=5",
    "sft.eval_tasks=0", "sft.learning_rate=1e-2", "data.seq_len=256", "data.eval_examples=4", "training.batch_size=2",
    "training.examples_per_step=4", "training.time_limit=1h", "system.device=cpu", "system.threads=1", "wandb.enabled=false",
]  # fmt: skip


def test_ten_steps_of_sft_with_a_spawned_worker_and_without_what_only_linux_has(tmp_path, monkeypatch):
    (tmp_path / "prelude").mkdir()
    (tmp_path / "prelude" / "sitecustomize.py").write_text(PRELUDE, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    write_records(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    save_checkpoint("base", tiny_model(tokenizer.vocab_size, context_length=256), tokenizer, {"job": "pretrain"})
    done = subprocess.run(
        [sys.executable, "script.py", *SETTINGS, "sft.save_dir=hidden", "data.num_workers=1"],
        capture_output=True,
        text=True,
        env=environment(HIDE_LINUX="1", PYTHONPATH=f"{tmp_path / 'prelude'}:{Path(__file__).parent.parent}"),
        timeout=300,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "workers: 1 spawn\n" in printed
    assert not [path for path in tmp_path.rglob(".*") if path.name.endswith(".tmp")]
    train(parse("sft", [*SETTINGS, "sft.save_dir=visible", "data.num_workers=0"]).settings)
    hidden, visible = (
        (tmp_path / name / "step-0000010" / "model.safetensors").read_bytes() for name in ("hidden", "visible")
    )
    assert hidden == visible

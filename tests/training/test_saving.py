"""What a run needs to be resumed is saved if anything can be; a disk that refuses is a sentence, or a line and another try."""

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from tiny import CountingDataset, tiny_config, tiny_model, tiny_tokenizer
from tiny_disk import enlarge, tiny_disk

from mini_chat_gpt.checkpoints import save
from mini_chat_gpt.checkpoints.find import step_of, steps_of
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import find_damage
from mini_chat_gpt.common.writable import require_writable
from mini_chat_gpt.training.job import Job, Prepared, TrainResult
from mini_chat_gpt.training.monitor import read_metrics
from mini_chat_gpt.training.run import RunContext, begin, execute
from mini_chat_gpt.training.run_folder import locked

TOKENIZER = tiny_tokenizer()
SFT = {"max_steps": 8, "eval_interval": 4, "save_interval": 2, "learning_rate": 1e-2, "warmup_steps": 2}
CPU = torch.device("cpu")


class Run:
    """A tiny run in a folder."""

    def __init__(self, folder: Path, keep: int = 20, **sft) -> None:
        self.folder, self.text = folder, ""
        self.config = tiny_config(sft=SFT | sft, training={"batch_size": 2, "keep_checkpoints": keep})

    def train(self, *callbacks, checkpoint: Path | None = None) -> TrainResult:
        source = CountingDataset()
        job = Job("sft", self.config.sft, source, [source[i + 1000] for i in range(2)], show=lambda _: "a sample")
        out = Console(record=True, width=300, file=open(os.devnull, "w"))
        model = tiny_model(TOKENIZER.vocab_size) if checkpoint is None else load_model(checkpoint)
        context = RunContext(ALONE, CPU, self.folder, checkpoint, out, time.monotonic())
        try:
            return execute(Prepared(job, model, TOKENIZER), self.config, context, callbacks)
        finally:
            self.text = out.export_text()

    def resume(self) -> TrainResult:
        """Resume from the newest checkpoint, or start again."""
        return self.train(checkpoint=steps_of(self.folder)[-1] if steps_of(self.folder) else None)


def at(step: int, act):
    """A callback that acts at the first log of a step, while no thread writes a checkpoint."""
    done = []

    def callback(trainer, now, _metrics):
        if now == step and not done:
            done.append(now)
            trainer.saver.wait()
            act()

    return callback


@pytest.fixture(autouse=True, scope="module")
def brief():
    """Runs without what takes a second each: drawing the losses and asking git."""
    with (
        patch("mini_chat_gpt.training.run.draw_losses"),
        patch("mini_chat_gpt.training.provenance.git_state", return_value=None),
    ):
        yield


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    run.train()
    return load_model(run.folder / "step-0000008").state_dict()


def same_weights(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    weights = load_model(folder).state_dict()
    return all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


# A full disk


def fill(disk: Path) -> None:
    with open(disk / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


@pytest.mark.slow
def test_a_disk_that_fills_at_twenty_moments_loses_nothing_that_was_saved(tmp_path, expected):
    with tiny_disk(tmp_path / "disk", 10_000) as disk:
        Run(disk / "run").train()
        needed = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file()) // 1024
        outcomes = set()
        for number in range(20):
            shutil.rmtree(disk / "run")
            kilobytes = 40 + number * (needed + 200) // 20
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
            run = Run(disk / "run")
            try:
                run.train()
                outcomes.add("finished")
            except UserError as error:
                outcomes.add(re.search("no space left on device|$", str(error))[0])
            assert all(find_damage(folder) is None for folder in steps_of(run.folder))
            saved = len(steps_of(run.folder))
            enlarge(disk, 10_000)
            run.resume()
            assert same_weights(run.folder / "step-0000008", expected)
            assert len(steps_of(run.folder)) >= saved
            assert not [path for path in run.folder.rglob("*") if path.suffix == ".tmp"]
        assert outcomes == {"finished", "no space left on device"}


@pytest.mark.parametrize("full_at", [1, 2, 4, 5, 7])
def test_a_disk_that_is_full_for_a_while_is_a_line_and_the_next_save_is_tried(tmp_path, expected, full_at):
    with tiny_disk(tmp_path / "disk", 4000) as disk:
        run = Run(disk / "run")
        result = run.train(at(full_at, lambda: fill(disk)), at(8, lambda: (disk / "ballast").unlink()))
        assert result.steps == 8
        assert same_weights(run.folder / "step-0000008", expected)
        if full_at < 7:
            assert "A checkpoint can't be written (no space left on device); training continues." in run.text
        assert "Done in" in run.text


def test_a_disk_that_stays_full_ends_the_run_with_a_sentence_that_names_the_last_checkpoint(tmp_path):
    with tiny_disk(tmp_path / "disk", 4000) as disk:
        run = Run(disk / "run")
        with pytest.raises(UserError) as raised:
            run.train(at(5, lambda: fill(disk)))
        assert re.search(
            r"Can't write .*step-0000008: no space left on device. Free some space .* The run ends without its last state; then "
            r"this resumes it from step-0000004: .* sft.resume_from=/", str(raised.value)
        )  # fmt: skip
        assert not (run.folder / "result.json").exists()


def test_old_checkpoints_make_room_for_new_ones_before_a_save_fails(tmp_path, expected):
    with tiny_disk(tmp_path / "disk", 10_000) as disk:
        Run(disk / "one", max_steps=2).train()
        one = sum(file.stat().st_size for file in (disk / "one" / "step-0000002").rglob("*")) // 1024
        shutil.rmtree(disk / "one")
        subprocess.run(
            ["mount", "-o", f"remount,size={int(2.7 * one)}k", str(disk)], check=True
        )  # not for two old ones and a new one
        run = Run(disk / "run", keep=2, eval_interval=8)
        assert run.train().steps == 8
        assert same_weights(run.folder / "step-0000008", expected)
        assert "can't be written" not in run.text


@pytest.mark.parametrize(("error", "kept"), [(errno.ENOSPC, [2, 3]), (errno.EACCES, [1, 2])])
def test_only_a_full_disk_deletes_old_checkpoints_before_a_save(tmp_path, monkeypatch, error, kept):
    writer = save.CheckpointWriter(tmp_path / "run", keep=2)
    snapshot = save.take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER)
    for step in (1, 2):
        writer.write(f"step-000000{step}", snapshot)
    writer.wait()
    write_tensors = save.write_tensors

    def refuse(*arguments, **options):
        if len(steps_of(writer.run)) == 2:
            raise OSError(error, os.strerror(error))
        write_tensors(*arguments, **options)

    monkeypatch.setattr(save, "write_tensors", refuse)
    writer.write("step-0000003", snapshot)
    with contextlib.suppress(UserError):
        writer.wait()
    assert [step_of(folder) for folder in steps_of(writer.run)] == kept


# Other refusals


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE, errno.EDQUOT])
def test_any_refusal_in_the_middle_of_a_run_is_a_line(tmp_path, monkeypatch, expected, error):
    run, write_tensors, calls = Run(tmp_path / "run"), save.write_tensors, []

    def refuse(*arguments, **options):
        calls.append(1)
        if 3 <= len(calls) <= 4:  # a save begins with the model
            raise OSError(error, os.strerror(error))
        return write_tensors(*arguments, **options)

    monkeypatch.setattr(save, "write_tensors", refuse)
    assert run.train().steps == 8
    assert f"A checkpoint can't be written ({os.strerror(error).lower()}); training continues." in run.text
    assert same_weights(run.folder / "step-0000008", expected)


def test_a_checkpoint_is_written_without_a_thread_if_the_system_has_none_left(tmp_path, monkeypatch, expected):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    run = Run(tmp_path / "run")
    monkeypatch.setattr(save.threading.Thread, "start", refuse)
    run.train()
    assert same_weights(run.folder / "step-0000008", expected)


# A folder that vanishes


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 8])
def test_a_run_folder_that_is_deleted_is_made_again_with_all_that_a_resume_needs(tmp_path, expected, step):
    run = Run(tmp_path / "run")
    result = run.train(at(step, lambda: shutil.rmtree(run.folder, ignore_errors=True)))
    assert result.steps == 8
    assert same_weights(run.folder / "step-0000008", expected)
    assert {"config.yaml", "run.json", "metrics.jsonl", "result.json", ".lock"} <= {
        path.name for path in run.folder.iterdir()
    }
    assert f"{run.folder / 'config.yaml'} has been deleted; it is written again." in run.text
    assert max(line["step"] for line in read_metrics(run.folder)) == 8


def test_a_run_whose_folder_another_run_has_taken_continues_in_a_free_one(tmp_path, expected):
    folder = tmp_path / "run"
    others = []

    def take() -> None:
        shutil.rmtree(folder)
        code = "import sys; from pathlib import Path; from mini_chat_gpt.training.run_folder import locked\n"
        code += "with locked(Path(sys.argv[1])): (Path(sys.argv[1]) / 'run.json').write_text('{}'); print('locked', flush=True); input()"
        others.append(
            subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        )
        assert others[0].stdout.readline() == b"locked\n"

    run = Run(folder)
    result = run.train(at(3, take))
    assert result.folder == tmp_path / "run-2"
    assert f"Another run has taken the folder {folder}; this run continues in {result.folder}." in run.text
    assert same_weights(result.folder / "step-0000008", expected)
    assert {path.name for path in folder.iterdir()} <= {".lock", "run.json"}
    assert (folder / "run.json").read_text() == "{}"
    assert (result.folder / "config.yaml").exists()
    others[0].communicate(b"\n")


# Before the first step


@pytest.mark.parametrize(
    ("save_dir", "words"),
    [
        ("file", "file exists"),
        ("file/run", "not a directory"),
        ("x" * 300, "file name too long"),
        ("/proc/x", "no such file"),
        ("/dev/null/x", "not a directory"),
        ("loop/run", "too many levels"),
        ("a\0b", "can't be the name"),
        ("a\ud800b", "can't be the name"),
        ("", "name a folder"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_a_sentence_before_any_work(tmp_path, monkeypatch, save_dir, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if save_dir == "":
        monkeypatch.chdir("/")
    config = tiny_config()
    config = config.model_copy(update={"sft": config.sft.model_copy(update={"save_dir": save_dir})})
    with pytest.raises(UserError, match=words):
        begin(config, config.sft)


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root may write everywhere")
def test_a_folder_without_permission_is_a_sentence(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code = "import os, sys; from pathlib import Path; from mini_chat_gpt.common.writable import require_writable\n"
    code += "os.geteuid() or os.setuid(65534)\nrequire_writable(Path(sys.argv[1]))"
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(closed / "run")], capture_output=True, text=True)
    assert "Can't write" in done.stderr
    assert "permission denied" in done.stderr


def test_the_check_of_a_folder_leaves_nothing_behind(tmp_path):
    require_writable(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    require_writable(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_is_a_sentence_before_any_work(tmp_path):
    with tiny_disk(tmp_path / "disk", 64) as disk:
        fill(disk)
        config = tiny_config(sft={"save_dir": str(disk / "run")})
        with pytest.raises(UserError, match="no space left on device"):
            begin(config, config.sft)


@pytest.mark.parametrize("place", ["a file", "a link to itself"])
def test_a_run_whose_folder_is_now_something_else_continues_in_a_free_one(tmp_path, expected, place):
    folder = tmp_path / "run"

    def take() -> None:
        folder.rename(tmp_path / "moved")
        if place == "a file":
            folder.touch()
        else:
            folder.symlink_to(folder)

    run = Run(folder)
    result = run.train(at(5, take))
    assert result.folder == tmp_path / "run-2"
    assert f"Something else has the name {folder}; this run continues in {tmp_path / 'run-2'}." in run.text
    assert same_weights(result.folder / "step-0000008", expected)


def test_a_file_with_the_name_of_a_checkpoint_is_not_taken_for_the_saved_step(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"step-0000008 exists already.*resumes it from step-0000006"):
        run.train(at(5, (run.folder / "step-0000008").touch))


def test_a_lock_moves_with_the_run(tmp_path):
    with locked(tmp_path / "a") as lock:
        assert lock.is_in_place()
        lock.move(tmp_path / "b")
        assert lock.is_in_place()
        (tmp_path / "b" / ".lock").unlink()
        assert not lock.is_in_place()


# Weights and losses that are not finite


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    run = Run(tmp_path / "run", save_interval=1)

    def spoil(trainer, step, _metrics):
        if step == 5:
            next(trainer.model.parameters()).data[0, 0] = float("nan")

    with pytest.raises(UserError, match=r"The weights of step 5 are not finite, .* resumes it from step-0000004: "):
        run.train(spoil)
    assert [folder.name for folder in steps_of(run.folder)][-1] == "step-0000004"


def test_a_learning_rate_that_makes_the_weights_nan_in_the_last_step_is_not_done(tmp_path):
    run = Run(tmp_path / "run", max_steps=1, warmup_steps=0, schedule="constant", save_interval=100)
    sft = run.config.sft.model_copy(update={"learning_rate": 1e38})  # more than a setting can be
    run.config = run.config.model_copy(update={"sft": sft})
    with pytest.raises(UserError, match="not finite"):
        run.train()
    assert "Done" not in run.text
    assert not (run.folder / "result.json").exists()


def test_an_end_with_a_validation_loss_that_is_not_finite_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.training.validation.Validation.losses", lambda _: {"val_loss": float("nan")})
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match="its validation loss is nan, so it is not finished"):
        run.train()
    assert "Done" not in run.text


def test_a_run_resumed_after_its_last_step_has_a_complete_result(tmp_path):
    run = Run(tmp_path / "run")
    run.train()
    whole = (run.folder / "result.json").read_text()
    (run.folder / "result.json").unlink()
    run.resume()
    assert (run.folder / "result.json").read_text() == whole


def test_a_result_that_cannot_be_written_is_a_sentence(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"Can't write .*result.json"):
        run.train(at(8, lambda: (run.folder / "result.json").mkdir()))
    assert (run.folder / "step-0000008").is_dir()


def test_the_time_that_a_copy_takes_is_measured(tmp_path):
    seconds = []
    run = Run(tmp_path / "run")
    run.train(lambda trainer, *_: seconds.append(trainer.saver.snapshot_seconds))
    seconds = [one for one in seconds if one is not None]
    assert all(0 <= one < 60 for one in seconds)
    assert any(seconds)

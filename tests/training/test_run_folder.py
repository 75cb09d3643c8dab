"""A run never overwrites another one and resumes in its own folder."""

import contextlib
import json
import subprocess
import sys

import pytest
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt import sft_train
from mini_chat_gpt.checkpoints.find import move_aside, steps_of
from mini_chat_gpt.checkpoints.save import take_snapshot
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.training.provenance import METADATA
from mini_chat_gpt.training.run_folder import find_run_folder, locked

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def run(tmp_path):
    """A function that creates a run folder with checkpoints at the given steps."""

    def make(name, *steps, finished=False, launch=None):
        folder = tmp_path / name
        folder.mkdir()
        for step in steps:
            state = {"progress": {"step": step}}
            take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER, state=state).write(folder / f"step-{step:07d}")
        if finished:
            (folder / "result.json").write_text("{}")
        (folder / METADATA).write_text(json.dumps({"launch": launch, "began": {}}))
        return folder

    return make


def find(tmp_path, resume_from=None, launch=None):
    return find_run_folder(SFTSection(save_dir=str(tmp_path / "sft"), resume_from=resume_from), launch)


def test_a_new_run_takes_the_first_free_name(tmp_path, run):
    assert find(tmp_path).folder.name == "sft"
    run("sft", 1)
    run("sft-2", finished=True)
    assert find(tmp_path).folder.name == "sft-3"
    assert find(tmp_path).checkpoint is None


def test_auto_resumes_the_newest_unfinished_run(tmp_path, run):
    assert find(tmp_path, "auto").folder.name == "sft"
    run("sft", 1)
    run("sft-2", 1, 2)
    run("sft-10", 5, finished=True)
    run("sft-other", 9)
    found = find(tmp_path, "auto")
    assert (found.folder.name, found.checkpoint.name) == ("sft-2", "step-0000002")


def test_a_run_or_a_checkpoint_can_be_named(tmp_path, run):
    folder = run("sft", 1, 2)
    assert find(tmp_path, str(folder)).checkpoint == folder / "step-0000002"
    assert find(tmp_path, str(folder / "step-0000001")).checkpoint == folder / "step-0000001"
    assert find(tmp_path, str(folder / "last")).folder == folder


def test_processes_restarted_by_torchrun_find_their_own_run(tmp_path, run):
    run("sft", 1, launch="a")
    run("sft-2", launch="b")
    run("sft-3", 4, launch="c", finished=True)
    assert find(tmp_path, launch="a").checkpoint.name == "step-0000001"
    assert (find(tmp_path, launch="b").folder.name, find(tmp_path, launch="b").checkpoint) == ("sft-2", None)
    assert find(tmp_path, launch="c").folder.name == "sft-2"  # sft-3 is finished, and sft-2 has no checkpoint yet


def test_a_folder_in_which_another_process_trains_is_not_used(tmp_path):
    (tmp_path / "sft").mkdir()
    code = "import sys, time; from pathlib import Path; from mini_chat_gpt.training.run_folder import locked\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "sft")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        assert find(tmp_path).folder.name == "sft-2"
        with pytest.raises(UserError, match="Another process is training in"), locked(tmp_path / "sft"):
            pass
        other.kill()
    assert find(tmp_path).folder.name == "sft"
    with locked(tmp_path / "sft"):
        pass


LOCKING = """
import errno, fcntl, sys
from pathlib import Path
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.training.run_folder import free_run_folder, locked

def refuse(*_):
    raise OSError(getattr(errno, sys.argv[2]), sys.argv[2])

fcntl.lockf = refuse

def main():
    with locked(Path(sys.argv[1])):
        print("trained in", free_run_folder(sys.argv[1]).name)
    return 0

exit_with(main)
"""


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EIO", "EACCES", "EAGAIN"])
def test_a_file_system_without_locks_is_a_warning_and_not_another_process(tmp_path, name):
    folder = tmp_path / "sft"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", LOCKING, str(folder), name], capture_output=True, text=True)
    if name in ("EACCES", "EAGAIN"):
        assert (done.returncode, done.stdout) == (2, "")
        assert "Another process is training in" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "trained in sft\n")
        assert f"warning: {folder} can't be locked ({name.lower()}), so nothing prevents" in done.stderr


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / ".lock").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Can't write .*\.lock: is a directory"), locked(tmp_path):
        pass
    with pytest.raises(UserError, match=r"Can't write .*below: not a directory"), locked(tmp_path / "file" / "below"):
        pass


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "file missing", "manifest missing"])
@pytest.mark.parametrize("asked", ["auto", "run"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, run, damage, asked):
    folder = run("sft", 1, 2)
    weights = folder / "step-0000002" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "bit flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "file missing":
        weights.unlink()
    else:
        (folder / "step-0000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="step-0000002"):
        assert find(tmp_path, "auto" if asked == "auto" else str(folder)).checkpoint.name == "step-0000001"


def test_a_run_without_an_undamaged_checkpoint_is_an_error(tmp_path, run):
    folder = run("sft", 1)
    (folder / "step-0000001" / "model.safetensors").unlink()
    with (
        pytest.warns(UserWarning, match=r"model\.safetensors is missing"),
        pytest.raises(UserError, match="no complete"),
    ):
        find(tmp_path, "auto")


def test_later_checkpoints_are_moved_aside_not_deleted(tmp_path, run):
    folder = run("sft", 1, 2, 3)
    assert [path.name for path in move_aside(folder, 1)] == ["set-aside-step-0000002", "set-aside-step-0000003"]
    assert [path.name for path in steps_of(folder)] == ["step-0000001"]


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "[!a]", "a b #2", "{x}"])
def test_auto_takes_the_name_of_the_folder_literally(tmp_path, name):
    """Characters that mean something in a pattern of file names don't match other runs."""
    for folder in (name, f"{name}-2", "a1", "a1-3", "ab", "ab-4", "b-5"):
        take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER, state={"progress": {"step": 1}}).write(
            tmp_path / folder / "step-0000001"
        )
    section = SFTSection(save_dir=str(tmp_path / name), resume_from="auto")
    assert find_run_folder(section).folder == tmp_path / f"{name}-2"


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"began": null}', '{"began": {"data": [3]}}', '{"launch": ["a"]}']
)
def test_damaged_metadata_of_a_run_do_not_stop_a_restart(tmp_path, run, content):
    folder = run("sft", 1, launch="a")
    run("sft-2", 1, launch="b")
    (folder / METADATA).write_text(content)
    with pytest.warns(UserWarning, match=r"sft/run\.json is damaged"):
        assert find(tmp_path, launch="a").folder.name == "sft-3"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "loop", "file/run", "no/such/folder"])
@pytest.mark.parametrize("setting", ["resume_from", "save_dir"])
def test_a_path_that_cannot_be_a_run_is_one_sentence(tmp_path, monkeypatch, name, setting):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    section = SFTSection(resume_from="auto").model_copy(update={setting: name})  # some are too long for a setting
    with contextlib.suppress(UserError):
        assert find_run_folder(section).checkpoint is None


def held_by_another(folder):
    """Whether another process finds the folder locked."""
    code = "import sys; from pathlib import Path; from mini_chat_gpt.training.run_folder import is_locked\n"
    code += "print(is_locked(Path(sys.argv[1])))"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True).stdout == "True\n"


def test_the_lock_is_still_held_after_a_checkpoint_has_been_written(tmp_path, run):
    folder = run("sft")
    with locked(folder):
        take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER).write(folder / "step-0000001")
        assert held_by_another(folder)
        take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER).write(folder / "step-0000001", replace=True)
        assert held_by_another(folder)
    assert not held_by_another(folder)


def test_files_and_links_with_the_names_of_later_steps_are_moved_aside(tmp_path, run):
    folder = run("sft", 2)
    (folder / "step-0000003").touch()
    (folder / "step-0000004").symlink_to("nowhere")
    (folder / "step-5").mkdir()
    names = [f"set-aside-{name}" for name in ("step-0000003", "step-0000004", "step-5")]
    assert [path.name for path in move_aside(folder, 2)] == names


def test_a_run_without_its_settings_is_not_resumed_with_others(tmp_path, run):
    folder = run("sft", 1)
    with pytest.raises(
        UserError, match=r"sft has no config.yaml, so the settings of the run are not known.*--config FILE"
    ):
        sft_train.main([f"sft.resume_from={folder}"])
    copied = (folder / "step-0000001").rename(tmp_path / "copied")  # out of its run
    with pytest.raises(UserError, match=r"no config.yaml, so the settings of the run are not known.*--config FILE"):
        sft_train.main([f"sft.resume_from={copied}"])
    copied.rename(folder / "step-0000001")
    (folder / "config.yaml").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml"):
        sft_train.main([f"sft.resume_from={folder}"])


def test_a_checkpoint_without_training_state_can_not_be_resumed(tmp_path, run):
    take_snapshot(tiny_model(TOKENIZER.vocab_size), TOKENIZER).write(tmp_path / "model")
    with pytest.raises(UserError, match="holds a model but no training state, so training can't resume from it"):
        find(tmp_path, str(tmp_path / "model"))

"""A run never overwrites another one and resumes in its own folder; its metadata says what it was made with."""

import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import mini_chat_gpt
from mini_chat_gpt.checkpoints.find import move_aside, steps_of
from mini_chat_gpt.checkpoints.save import take_snapshot
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.training import run_folder
from mini_chat_gpt.training.run_folder import (
    METADATA,
    PIECE,
    collect_provenance,
    file_fingerprint,
    find_run_folder,
    git_state,
    locked,
    provenance_changes,
)

TOKENIZER = tiny_tokenizer()
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="this test needs git")


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
        (folder / METADATA).write_text(json.dumps({"launch": launch}))
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
    with pytest.raises(UserError, match=r"Can't write .*\.lock: is a directory"), locked(tmp_path):
        pass
    with pytest.raises(UserError, match=r"Can't write .*\.lock: no such file"), locked(tmp_path / "nowhere"):
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


# Provenance


@pytest.fixture
def data(tmp_path):
    """Two small data files."""
    files = [tmp_path / "train.txt", tmp_path / "valid.txt"]
    for file in files:
        file.write_text(f"Once upon a time, in {file.name}.")
    return files


@pytest.fixture
def tree(tmp_path):
    """A git repository with one commit that contains a package."""
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "module.py").write_text("x = 1\n")
    (package.parent / "README.md").write_text("hello\n")
    git(package.parent, "init", "-q")
    commit(package)
    return package


def git(folder, *words):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, env=env)


def commit(folder):
    git(folder.parent, "add", ".")
    git(folder, "-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "-qm", "One")


def changes_after(data, **changes):
    """The changes since the provenance of a run was written as JSON."""
    old = json.loads(json.dumps(collect_provenance(data, "tokenizer one")))
    for change in changes.values():
        change()
    return provenance_changes(old, collect_provenance(data, "tokenizer one"))


def test_provenance_contains_what_is_needed_to_repeat_a_run_and_is_json(data):
    provenance = collect_provenance(data, "tokenizer one")
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["tokenizer"] == "tokenizer one"
    assert provenance["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance["packages"]["torch"] == torch.__version__
    assert provenance["packages"]["mini-chat-gpt"] == mini_chat_gpt.__version__
    assert provenance["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert provenance["threads"] == torch.get_num_threads()
    assert [file["path"] for file in provenance["data"]] == [str(path) for path in data]
    assert provenance["processor"]
    assert provenance["platform"]
    assert provenance["folder"] == os.getcwd()


def test_the_recorded_command_can_be_typed_again(monkeypatch):
    words = ["/usr/bin/python3", "mini_chat_gpt/sft_train.py", "sft.save_dir=my runs/a", "data.mixture={why: 1}"]
    monkeypatch.setattr(sys, "orig_argv", words)
    command = collect_provenance([], "")["command"]
    assert command.startswith("/usr/bin/python3 mini_chat_gpt/sft_train.py ")
    assert shlex.split(command) == words


def test_the_hash_of_a_small_file_covers_its_whole_content(data):
    content = data[0].read_bytes()
    assert file_fingerprint(data[0]) == {
        "path": str(data[0]),
        "size": len(content),
        "sha256_of_pieces": hashlib.sha256(content).hexdigest(),
    }


@pytest.mark.parametrize(("place", "noticed"), [(0, True), (0.5, True), (-1, True), (0.25, False)])
def test_the_hash_of_a_large_file_covers_three_pieces(tmp_path, place, noticed):
    path, size = tmp_path / "train.txt", 3 * 10**9
    with open(path, "wb") as file:
        file.truncate(size)  # a sparse file
    before = file_fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(int(place * size) if place >= 0 else size + place)
        file.write(b"x")
    after = file_fingerprint(path)
    assert before["size"] == after["size"] == size
    assert (before != after) == noticed


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE, 3 * PIECE + 1])
def test_files_of_any_size_have_a_fingerprint(tmp_path, size):
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * size)
    assert file_fingerprint(path)["size"] == size


def test_a_missing_data_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt can't be read \(no such file"):
        collect_provenance([tmp_path / "train.txt"], "")


def test_unchanged_provenance_gives_no_sentences(data):
    assert changes_after(data) == []


def test_a_moved_file_is_not_a_change(data, tmp_path):
    old = collect_provenance(data, "t")
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in data]
    assert provenance_changes(old, collect_provenance(moved, "t")) == []


def test_changed_data_files_are_named(data):
    (sentence,) = changes_after(data, change=lambda: data[1].write_text("short"))
    assert sentence == f"the data file {data[1]} has 5 bytes instead of 31."
    (sentence,) = changes_after(data, change=lambda: data[1].write_text("trohs"))
    assert sentence == f"the data file {data[1]} has the same size but different content."


def test_another_number_of_data_files_is_a_change(data):
    (sentence,) = provenance_changes(collect_provenance(data, "t"), collect_provenance(data[:1], "t"))
    assert sentence == f"there are 1 data files ({data[0]}) instead of 2 ({data[0]}, {data[1]})."


def test_another_tokenizer_and_another_pytorch_are_changes(data):
    old, new = collect_provenance(data, "one"), collect_provenance(data, "two")
    new["packages"] = new["packages"] | {"torch": "9.0", "rich": "99"}
    tokenizer, torch_version = provenance_changes(old, new)
    assert "tokenizer" in tokenizer
    assert torch_version.startswith(f"PyTorch is 9.0 instead of {torch.__version__}")


@pytest.mark.parametrize("old", [{}, {"data": [{}, {}], "packages": None}, {"tokenizer": None}])
def test_a_value_that_was_not_recorded_is_not_a_change(data, old):
    assert provenance_changes(old, collect_provenance(data, "t")) == []


@needs_git
def test_the_commit_and_the_files_that_differ_from_it_are_recorded(tree):
    state = git_state(tree)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True).stdout.strip()
    assert state == {"commit": head, "dirty": False, "changed": []}
    (tree / "module.py").write_text("x = 2\n")
    (tree / "new.py").write_text("y = 1\n")
    assert git_state(tree) == {"commit": head, "dirty": True, "changed": ["package/module.py", "package/new.py"]}


@needs_git
def test_changes_outside_of_the_package_do_not_count(tree):
    (tree.parent / "README.md").write_text("changed\n")
    assert git_state(tree)["dirty"] is False


@needs_git
def test_a_package_installed_within_another_project_has_no_commit(tree):
    (tree.parent / ".gitignore").write_text(".venv/\n")
    commit(tree)
    installed = tree.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("x = 1\n")
    assert git_state(installed) is None


@needs_git
def test_variables_that_git_sets_within_hooks_are_ignored(tree, tmp_path, monkeypatch):
    expected = git_state(tree)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "no-index"))
    assert git_state(tree) == expected


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_the_commit_is_left_out(data, monkeypatch, failure):
    monkeypatch.setattr(run_folder.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(failure))
    assert "git" not in collect_provenance(data, "t")


@needs_git
def test_outside_a_repository_or_before_its_first_commit_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) is None

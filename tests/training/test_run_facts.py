"""A run's facts are found quickly and without errors, and say when something else is trained on."""

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

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training import run_facts
from mini_chat_gpt.training.run_facts import PIECE, collect, differences, file_facts, git_state

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="this test needs git")


@pytest.fixture
def data(tmp_path):
    """Two small data files."""
    files = [tmp_path / "train.txt", tmp_path / "valid.txt"]
    for file in files:
        file.write_text(f"Once upon a time, in {file.name}.")
    return files


@pytest.fixture
def tree(tmp_path):
    """A git tree with one commit, and a package in it."""
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


def resumed(data, **changes):
    """The differences between a run's facts, as they come back from JSON, and those of now."""
    old = json.loads(json.dumps(collect(data, "tokenizer one")))
    for change in changes.values():
        change()
    return differences(old, collect(data, "tokenizer one"))


def test_facts_have_what_repeating_a_run_takes_and_survive_json(data):
    facts = collect(data, "tokenizer one")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["tokenizer"] == "tokenizer one"
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert facts["threads"] == torch.get_num_threads()
    assert [file["path"] for file in facts["data"]] == [str(path) for path in data]
    assert facts["processor"]
    assert facts["platform"]
    assert facts["folder"] == os.getcwd()


def test_the_command_is_the_line_to_type_again(monkeypatch):
    words = ["/usr/bin/python3", "mini_chat_gpt/sft_train.py", "sft.save_dir=my runs/a", "data.mixture={why: 1}"]
    monkeypatch.setattr(sys, "orig_argv", words)
    command = collect([], "")["command"]
    assert command.startswith("/usr/bin/python3 mini_chat_gpt/sft_train.py ")
    assert shlex.split(command) == words


def test_a_small_files_hash_is_that_of_its_whole_content(data):
    content = data[0].read_bytes()
    assert file_facts(data[0]) == {
        "path": str(data[0]),
        "size": len(content),
        "sha256_of_pieces": hashlib.sha256(content).hexdigest(),
    }


@pytest.mark.parametrize(("place", "noticed"), [(0, True), (0.5, True), (-1, True), (0.25, False)])
def test_of_a_large_file_three_pieces_are_looked_at(tmp_path, place, noticed):
    path, size = tmp_path / "train.txt", 3 * 10**9
    with open(path, "wb") as file:
        file.truncate(size)  # takes no room on the disk
    before = file_facts(path)
    with open(path, "r+b") as file:
        file.seek(int(place * size) if place >= 0 else size + place)
        file.write(b"x")
    after = file_facts(path)
    assert before["size"] == after["size"] == size
    assert (before != after) == noticed


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE, 3 * PIECE + 1])
def test_files_of_any_size_have_facts(tmp_path, size):
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * size)
    assert file_facts(path)["size"] == size


def test_data_that_are_not_there_are_a_mistake_with_a_name(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt can't be read \(no such file"):
        collect([tmp_path / "train.txt"], "")


def test_nothing_has_changed_when_nothing_has(data):
    assert resumed(data) == []


def test_a_file_that_has_moved_is_the_same(data, tmp_path):
    old = collect(data, "t")
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in data]
    assert differences(old, collect(moved, "t")) == []


def test_other_data_are_noticed_and_named(data):
    (sentence,) = resumed(data, change=lambda: data[1].write_text("short"))
    assert sentence == f"the data file {data[1]} has 5 bytes instead of 31."
    (sentence,) = resumed(data, change=lambda: data[1].write_text("trohs"))
    assert sentence == f"the data file {data[1]} has another content of the same size."


def test_another_number_of_data_files_is_noticed(data):
    (sentence,) = differences(collect(data, "t"), collect(data[:1], "t"))
    assert sentence == f"the data are in 1 files ({data[0]}) instead of 2 ({data[0]}, {data[1]})."


def test_another_tokenizer_and_another_pytorch_are_noticed(data):
    old, new = collect(data, "one"), collect(data, "two")
    new["packages"] = new["packages"] | {"torch": "9.0", "rich": "99"}
    tokenizer, torch_version = differences(old, new)
    assert "tokenizer" in tokenizer
    assert torch_version.startswith(f"PyTorch is 9.0 instead of {torch.__version__}")


@pytest.mark.parametrize("old", [{}, {"data": [{}, {}], "packages": None}, {"tokenizer": None}])
def test_what_was_not_recorded_is_no_difference(data, old):
    assert differences(old, collect(data, "t")) == []


@needs_git
def test_the_commit_is_found_and_what_differs_from_it_is_listed(tree):
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
def test_a_package_installed_within_somebodys_project_has_no_commit(tree):
    (tree.parent / ".gitignore").write_text(".venv/\n")
    commit(tree)
    installed = tree.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("x = 1\n")
    assert git_state(installed) is None


@needs_git
def test_variables_that_git_sets_for_its_hooks_do_not_mislead(tree, tmp_path, monkeypatch):
    expected = git_state(tree)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "no-index"))
    assert git_state(tree) == expected


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_its_facts_are_absent(data, monkeypatch, failure):
    monkeypatch.setattr(run_facts.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(failure))
    assert "git" not in collect(data, "t")


@needs_git
def test_a_folder_without_a_tree_or_a_tree_without_a_commit_has_no_commit(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) is None

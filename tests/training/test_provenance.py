"""run.json says what a run was made with, without absolute paths, and its data are found again after a move."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mini_chat_gpt
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training import provenance
from mini_chat_gpt.training.provenance import (
    METADATA,
    PIECE,
    collect_provenance,
    file_fingerprint,
    find_data_file,
    git_state,
    keep_damaged_metadata,
    portable_command,
    provenance_changes,
    read_metadata,
)

RUN = Path("runs/sft")
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
    old = json.loads(json.dumps(collect_provenance(data, "tokenizer one", RUN)))
    for change in changes.values():
        change()
    return provenance_changes(old, collect_provenance(data, "tokenizer one", RUN))


def test_provenance_contains_what_is_needed_to_repeat_a_run_and_is_json(data):
    recorded = collect_provenance(data, "tokenizer one", RUN)
    assert json.loads(json.dumps(recorded)) == recorded
    assert recorded["tokenizer"] == "tokenizer one"
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    assert recorded["packages"]["torch"] == torch.__version__
    assert recorded["packages"]["mini-chat-gpt"] == mini_chat_gpt.__version__
    assert recorded["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert recorded["threads"] == torch.get_num_threads()
    assert [file["name"] for file in recorded["data"]] == [path.name for path in data]
    assert recorded["processor"]
    assert recorded["platform"]


def test_no_absolute_path_and_no_host_is_recorded(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = f"{tmp_path}/.venv/bin/python3"
    monkeypatch.setattr(
        sys, "orig_argv", [python, "-m", "mini_chat_gpt.cli", "sft", f"sft.dataset_path={tmp_path}/a b"]
    )
    text = json.dumps(collect_provenance([*data, Path("train.txt")], "t", Path("runs/sft")))
    for private in (str(tmp_path), os.path.expanduser("~/"), platform.node()):
        assert private not in text
    text = json.dumps(collect_provenance(data, "t", Path("/elsewhere/run")))
    assert str(tmp_path) not in text
    assert "elsewhere" not in text


COMMANDS = [
    (["/v/bin/python3", "mini_chat_gpt/sft_train.py", "sft.save_dir=my runs/a", "data.mixture={why: 1}"],
     ["python3", "mini_chat_gpt/sft_train.py", "sft.save_dir=my runs/a", "data.mixture={why: 1}"]),
    (["/v/bin/python", "/v/bin/mini-chat-gpt", "sft", "--config", "{here}/a.yaml"], ["mini-chat-gpt", "sft", "--config", "a.yaml"]),
    (["/v/bin/python", "-u", "{here}/mini_chat_gpt/sft_train.py"], ["python", "-u", "mini_chat_gpt/sft_train.py"]),
    (["python", "-m", "mini_chat_gpt.cli", "sft", "sft.dataset_path={home}/my data/x"],
     ["python", "-m", "mini_chat_gpt.cli", "sft", "sft.dataset_path=~/my data/x"]),
    (["python", "x.py", "chats.files=[/data/bob/a.jsonl, {here}/b.jsonl]", "prepare.url=https://x.org/a/b"],
     ["python", "x.py", "chats.files=[…/a.jsonl, b.jsonl]", "prepare.url=https://x.org/a/b"]),
    (["python", "x.py", "a=b/c", "--ratio", "1/2", "sft.prompts=['and/or']"],
     ["python", "x.py", "a=b/c", "--ratio", "1/2", "sft.prompts=['and/or']"]),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "recorded"), COMMANDS)
def test_the_recorded_command_can_be_typed_again_without_absolute_paths(tmp_path, monkeypatch, typed, recorded):
    home, here = tmp_path / "home" / "alice", tmp_path / "home" / "alice" / "project"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    command = portable_command([word.replace("{here}", str(here)).replace("{home}", str(home)) for word in typed])
    assert shlex.split(command) == recorded


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with a data file and a run folder."""
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "runs" / "sft").mkdir(parents=True)
    (tmp_path / "project" / "data" / "train.txt").write_text("stories")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_data_are_found_after_the_project_was_moved(project):
    record = file_fingerprint(Path("data/train.txt"), Path("runs/sft"))
    assert record["path"] == "../../data/train.txt"
    moved = project.rename(project.with_name("moved"))
    os.chdir(moved.parent)
    assert find_data_file(record, moved / "runs" / "sft") == moved / "data" / "train.txt"
    (moved / "data" / "train.txt").write_text("STORIES")
    assert find_data_file(record, moved / "runs" / "sft") is None


def test_a_copied_project_has_its_own_data(project):
    record = file_fingerprint(project / "data" / "train.txt", project / "runs" / "sft")
    copy = Path(shutil.copytree(project, project.with_name("copy")))
    assert find_data_file(record, copy / "runs" / "sft") == copy / "data" / "train.txt"


def test_data_outside_of_the_project_are_found_by_name_and_hash(project, tmp_path):
    (tmp_path / "big").mkdir()
    file = project.joinpath("data", "train.txt").rename(tmp_path / "big" / "train.txt")
    record = file_fingerprint(file, project / "runs" / "sft")
    assert record["path"] is None
    assert find_data_file(record, project / "runs" / "sft") is None
    assert find_data_file(record, project / "runs" / "sft", [project, tmp_path / "big"]) == file


def test_the_absolute_path_of_an_earlier_version_is_still_used(project, tmp_path):
    record = {"path": str(project / "data" / "train.txt"), "size": 7}
    assert find_data_file(record, tmp_path / "elsewhere") == project / "data" / "train.txt"
    assert find_data_file({"path": str(tmp_path / "gone" / "train.txt"), "size": 7}, tmp_path, [project / "data"])


@pytest.mark.parametrize("path", ["\0", "x" * 5000, "loop", "", "."])
def test_a_recorded_path_that_is_none_is_not_an_error(project, path):
    Path("loop").symlink_to("loop")
    assert find_data_file({"path": path, "name": "x", "size": 7}, Path("."), [Path("loop"), Path("nowhere")]) is None


STRUCTURES = ["", "{", "[]", "null", "[" * 10**5, '{"began": null}', '{"began": {"data": {}}}', '{"began": {"data": [3]}}',
              '{"began": {}, "went_on": 3}', '{"began": {"packages": []}}', '{"began": {}, "launch": 3}', "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("content", STRUCTURES)
def test_a_damaged_run_json_is_kept_under_another_name_with_a_warning(tmp_path, content):
    (tmp_path / METADATA).write_text(content)
    with pytest.warns(UserWarning, match=r"run\.json is damaged"):
        assert read_metadata(tmp_path) == {}
    keep_damaged_metadata(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["set-aside-run.json"]
    keep_damaged_metadata(tmp_path)


def test_what_a_later_version_adds_to_run_json_is_kept(tmp_path):
    content = {
        "launch": None,
        "wandb_id": "x",
        "began": {"new": [1], "data": [{"name": "a", "size": 3}]},
        "went_on": [{"at_step": 4}],
        "more": {},
    }
    (tmp_path / METADATA).write_text(json.dumps(content))
    read = read_metadata(tmp_path)
    assert (read["began"]["new"], read["more"], read["went_on"]) == ([1], {}, [{"at_step": 4}])


def test_the_hash_of_a_small_file_covers_its_whole_content(data):
    content = data[0].read_bytes()
    assert file_fingerprint(data[0], RUN) == {
        "path": None,  # not in the working folder
        "name": data[0].name,
        "size": len(content),
        "sha256_of_pieces": hashlib.sha256(content).hexdigest(),
    }


@pytest.mark.parametrize(("place", "noticed"), [(0, True), (0.5, True), (-1, True), (0.25, False)])
def test_the_hash_of_a_large_file_covers_three_pieces(tmp_path, place, noticed):
    path, size = tmp_path / "train.txt", 3 * 10**9
    with open(path, "wb") as file:
        file.truncate(size)  # a sparse file
    before = file_fingerprint(path, RUN)
    with open(path, "r+b") as file:
        file.seek(int(place * size) if place >= 0 else size + place)
        file.write(b"x")
    after = file_fingerprint(path, RUN)
    assert before["size"] == after["size"] == size
    assert (before != after) == noticed


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE, 3 * PIECE + 1])
def test_files_of_any_size_have_a_fingerprint(tmp_path, size):
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * size)
    assert file_fingerprint(path, RUN)["size"] == size


def test_a_missing_data_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt can't be read \(no such file"):
        collect_provenance([tmp_path / "train.txt"], "", RUN)


def test_unchanged_provenance_gives_no_sentences(data):
    assert changes_after(data) == []


def test_a_moved_file_is_not_a_change(data, tmp_path):
    old = collect_provenance(data, "t", RUN)
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in data]
    assert provenance_changes(old, collect_provenance(moved, "t", RUN)) == []


def test_changed_data_files_are_named(data):
    (sentence,) = changes_after(data, change=lambda: data[1].write_text("short"))
    assert sentence == f"the data file {data[1].name} has 5 bytes instead of 31."
    (sentence,) = changes_after(data, change=lambda: data[1].write_text("trohs"))
    assert sentence == f"the data file {data[1].name} has the same size but different content."


def test_another_number_of_data_files_is_a_change(data):
    (sentence,) = provenance_changes(collect_provenance(data, "t", RUN), collect_provenance(data[:1], "t", RUN))
    assert sentence == "there are 1 data files (train.txt) instead of 2 (train.txt, valid.txt)."


def test_another_tokenizer_and_another_pytorch_are_changes(data):
    old, new = collect_provenance(data, "one", RUN), collect_provenance(data, "two", RUN)
    new["packages"] = new["packages"] | {"torch": "9.0", "rich": "99"}
    tokenizer, torch_version = provenance_changes(old, new)
    assert "tokenizer" in tokenizer
    assert torch_version.startswith(f"PyTorch is 9.0 instead of {torch.__version__}")


@pytest.mark.parametrize("old", [{}, {"data": [{}, {}], "packages": None}, {"tokenizer": None}])
def test_a_value_that_was_not_recorded_is_not_a_change(data, old):
    assert provenance_changes(old, collect_provenance(data, "t", RUN)) == []


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
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(failure))
    assert "git" not in collect_provenance(data, "t", RUN)


@needs_git
def test_outside_a_repository_or_before_its_first_commit_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) is None

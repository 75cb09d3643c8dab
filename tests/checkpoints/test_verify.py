"""A checkpoint is verified once for each state of its files; a resume reads everything again."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny import chat_tokenizer, tiny_model

from mini_chat_gpt.checkpoints import verify
from mini_chat_gpt.checkpoints.find import find_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint, take_snapshot
from mini_chat_gpt.checkpoints.verify import RECORD, damage_of
from mini_chat_gpt.common import manifest
from mini_chat_gpt.common.manifest import MANIFEST, write_manifest

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tokenizer = chat_tokenizer()
    return save_checkpoint(
        tmp_path_factory.mktemp("saved") / "step-0000001", tiny_model(tokenizer.vocab_size), tokenizer
    )


@pytest.fixture
def checkpoint(tmp_path, saved):
    return Path(shutil.copytree(saved, tmp_path / "run" / "step-0000001"))


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, but not those of the small metadata."""
    names, sha256_of = [], manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: names.append(path.name) or sha256_of(path))
    return names


def test_files_that_have_not_changed_are_hashed_once(checkpoint, hashed):
    assert find_checkpoint(checkpoint) == checkpoint
    assert MODEL in hashed
    hashed.clear()
    assert find_checkpoint(checkpoint) == checkpoint
    assert hashed == []


@pytest.mark.parametrize("change", ["content", "content with the old time", "size", "time", "inode", "manifest"])
def test_a_file_that_has_changed_is_read_again(checkpoint, hashed, change):
    file = checkpoint / MODEL
    assert damage_of(checkpoint) is None
    hashed.clear()
    content, stat = bytearray(file.read_bytes()), file.stat()
    if change.startswith("content"):
        content[-1] ^= 1
        file.write_bytes(content)
        if change != "content":
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "size":
        file.write_bytes(content + b"\0")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(0, 0))
    elif change == "inode":
        content[-1] ^= 1
        (checkpoint / "other").write_bytes(content)
        os.utime(checkpoint / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (checkpoint / "other").replace(file)
    else:
        content[-1] ^= 1
        file.write_bytes(content)
        write_manifest(checkpoint)
        hashed.clear()
        file.write_bytes(file.read_bytes())
    damaged = damage_of(checkpoint) is not None
    assert damaged == (change in ("content", "content with the old time", "size", "inode"))
    assert (MODEL in hashed) == (change != "size")


def test_a_resume_reads_everything_again(checkpoint, hashed, monkeypatch):
    file = checkpoint / MODEL
    assert damage_of(checkpoint) is None
    hashed.clear()
    identities = {path.name: manifest.file_identity(path) for path in checkpoint.iterdir()}
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    # Damaged by the disk itself: nothing of its identity changes.
    monkeypatch.setattr(verify, "file_identity", lambda path: identities[path.name])
    assert damage_of(checkpoint) is None
    assert damage_of(checkpoint, recheck=True) == f"the content of {MODEL} has changed (its hash differs)"


def test_a_copied_checkpoint_is_verified_anew(checkpoint, hashed):
    assert damage_of(checkpoint) is None
    hashed.clear()
    copy = shutil.copytree(checkpoint.parent, checkpoint.parent.with_name("copy"))
    assert damage_of(copy / checkpoint.name) is None
    assert MODEL in hashed


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "null", '{"checkpoints": []}', '{"checkpoints": {"step-0000001": 1}}', "\0"]
)
def test_a_damaged_record_is_ignored(checkpoint, record):
    (checkpoint.parent / RECORD).write_text(record)
    assert damage_of(checkpoint) is None
    assert json.loads((checkpoint.parent / RECORD).read_text())["checkpoints"].keys() == {checkpoint.name}


def test_in_a_folder_that_cannot_be_written_to_nothing_is_recorded(checkpoint, hashed, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    for _ in range(2):
        hashed.clear()
        assert damage_of(checkpoint) is None
        assert MODEL in hashed
    assert not (checkpoint.parent / RECORD).exists()


def test_a_record_that_says_nothing_about_damage_is_not_written(checkpoint):
    (checkpoint / "config.json").write_text("{}")
    assert damage_of(checkpoint) is not None
    assert not (checkpoint.parent / RECORD).exists()


def test_deleted_checkpoints_are_dropped_from_the_record(checkpoint):
    other = shutil.copytree(checkpoint, checkpoint.with_name("step-0000002"))
    assert damage_of(other) is None
    shutil.rmtree(other)
    assert damage_of(checkpoint) is None
    assert json.loads((checkpoint.parent / RECORD).read_text())["checkpoints"].keys() == {checkpoint.name}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_damage(tmp_path, value):
    tokenizer = chat_tokenizer()
    model = tiny_model(tokenizer.vocab_size)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 3] = value
    folder = save_checkpoint(tmp_path / "x", model, tokenizer)
    assert damage_of(folder) == (
        "model.layers.1.mlp.up_proj.weight is not finite (NaN or infinite); training has diverged, use an earlier checkpoint"
    )


OWN = ["mini_chat_gpt.json", "training_state.json", "optimizer.safetensors", "raw_weights.safetensors", "tokenizer.bin",
       "adapter_config.json", "chat_template.jinja", "optimizer/shard-00001.safetensors", "model/x"]  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_file_of_ours_without_an_entry_in_the_manifest_is_damage(checkpoint, name):
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"].pop(name, None)
    (checkpoint / MANIFEST).write_text(json.dumps({"files": manifest["files"]}))
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).touch()
    assert damage_of(checkpoint) == f"{name} is not listed in its manifest.json"


def test_files_of_the_user_in_a_checkpoint_are_allowed(checkpoint):
    for name in ("README.md", "LICENSE", ".gitattributes", "notes/model.safetensors.txt", "model.gguf", ".keep"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).touch()
    assert damage_of(checkpoint) is None


def test_a_file_that_cannot_be_read_is_damage(checkpoint, monkeypatch):
    def refuse(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "sha256_of", refuse)
    assert "can't be read (input/output error)" in damage_of(checkpoint)


def test_the_state_of_training_is_verified_too(tmp_path):
    tokenizer = chat_tokenizer()
    snapshot = take_snapshot(tiny_model(tokenizer.vocab_size), tokenizer, state={"progress": {"step": 1}})
    folder = snapshot.write(tmp_path / "x")
    (folder / "training_state.json").write_text((folder / "training_state.json").read_text().replace("1", "2"))
    assert damage_of(folder) == "the content of training_state.json has changed (its hash differs)"

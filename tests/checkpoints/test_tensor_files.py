"""A damaged safetensors file is one sentence, and takes neither memory nor time, whatever its header claims."""

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import environment, one_sentence
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import META, MODEL
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.checkpoints.sharded import read_shards_header
from mini_chat_gpt.checkpoints.tensor_files import read_one, write_tensors
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import write_manifest
from mini_chat_gpt.config import GPTConfig

NAME = "model.layers.1.mlp.up_proj.weight"
HUGE = 2**40


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    tokenizer = tiny_tokenizer()
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "c", tiny_model(tokenizer.vocab_size), tokenizer)


def copy_of(saved: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def split(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_entry(data: bytes, **changes) -> bytes:
    header, body = split(data)
    header[NAME] = header[NAME] | changes
    return joined(header, body)


def overlapping(data: bytes) -> bytes:
    header, body = split(data)
    header[NAME]["data_offsets"] = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
    return joined(header, body)


def renamed(data: bytes) -> bytes:
    header, body = split(data)
    header["model.layers.1.mlp.up_proj.wight"] = header.pop(NAME)
    return joined(header, body)


BYTES = {
    "nothing": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "the size of the header only": lambda data: data[:8],
    "cut in the header": lambda data: data[:100],
    "cut in the last tensor": lambda data: data[:-1],
    "longer than the header says": lambda data: data + b"\0",
    "a header of 2^60 bytes": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "a header of 2^64-1 bytes": lambda data: b"\xff" * 8 + data[8:],
    "a header of 30 MB": lambda data: struct.pack("<Q", 30 << 20) + b" " * (30 << 20),
    "a header that is not JSON": lambda data: data[:8] + b"x" + data[9:],
    "a header that is a list": lambda data: joined([], b""),
    "a deeply nested header": lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a tensor that is a number": lambda data: joined({NAME: 3}, b""),
    "a shape that overflows": lambda data: with_entry(data, shape=[2**40, 2**40]),
    "a negative size": lambda data: with_entry(data, shape=[-96, 32]),
    "another shape of the same size": lambda data: with_entry(data, shape=[32, 96]),
    "an unknown type": lambda data: with_entry(data, dtype="Q7"),
    "a type of eight bits": lambda data: with_entry(data, dtype="F8_E4M3"),
    "integers": lambda data: with_entry(data, dtype="I32"),
    "overlapping tensors": overlapping,
    "offsets beyond the file": lambda data: with_entry(data, data_offsets=[HUGE, HUGE + 4 * 96 * 32]),
    "offsets that go back": lambda data: with_entry(data, data_offsets=[100, 0]),
    "a renamed tensor": renamed,
    "no tensors": lambda data: joined({}, b""),
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_damaged_file_of_weights_is_one_sentence(saved, tmp_path, kind):
    folder = copy_of(saved, tmp_path / "c")
    (folder / MODEL).write_bytes(BYTES[kind]((saved / MODEL).read_bytes()))
    with pytest.raises(UserError, match=rf"{folder}.*; use another ") as caught:
        load_model(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


CONFIGS = [
    {"n_layer": 10**9}, {"n_layer": 3}, {"n_layer": 1}, {"vocab_size": 10**9}, {"vocab_size": 10}, {"vocab_size": 0},
    {"n_embd": 10**9}, {"n_embd": 64}, {"intermediate_size": 10**18}, {"intermediate_size": 10**30}, {"n_head": 10**9},
    {"n_head": 2}, {"n_kv_head": 1}, {"head_dim": 10**9}, {"head_dim": 10**20}, {"context_length": 10**15},
    {"position": "learned"}, {"position": "learned", "context_length": 10**12}, {"norm": "layernorm", "bias": True},
    {"activation": "gelu"}, {"tie_embeddings": False}, {"qk_norm": True}, {"qkv_bias": True}, {"n_layer": "many"},
    {"n_layer": None}, {"rope_scaling": {"rope_type": "linear"}}, {"rope_scaling": {"rope_type": "linear", "factor": "x"}},
    {"rope_scaling": {"rope_type": "yarn"}}, {"rope_scaling": 3}, {"windows": [1] * 100}, {"windows": 5},
]  # fmt: skip


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: json.dumps(changes)[:50])
def test_a_config_is_compared_with_the_tensors_before_it_is_believed(saved, tmp_path, changes):
    folder = copy_of(saved, tmp_path / "c")
    meta = json.loads((folder / META).read_text())
    meta["gpt_config"] |= changes
    (folder / META).write_text(json.dumps(meta))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=str(folder)):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 400_000  # KB


@pytest.mark.parametrize("name", ["rope_theta", "tie_embeddings", "n_layer"])
def test_a_missing_field_of_the_config_is_named_instead_of_its_default_used(saved, tmp_path, name):
    folder = copy_of(saved, tmp_path / "c")
    meta = json.loads((folder / META).read_text())
    del meta["gpt_config"][name]
    (folder / META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match=f"gpt_config lacks {name}"):
        load_model(folder)


@pytest.mark.parametrize("n_layer", [10**9, 1000])
def test_a_checkpoint_that_claims_more_layers_ends_a_command_with_one_sentence(saved, tmp_path, n_layer):
    folder = copy_of(saved, tmp_path / "c")
    meta = json.loads((folder / META).read_text())
    meta["gpt_config"]["n_layer"] = n_layer
    (folder / META).write_text(json.dumps(meta))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    command = [sys.executable, "-m", "mini_chat_gpt.cli", "generate", "--checkpoint", str(folder), "--prompt", "Hi"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 2, done.stderr
    assert f"{folder}" in one_sentence(done.stderr)
    assert "n_layer" in one_sentence(done.stderr)


SHAPES = [{}, {"tie_embeddings": False}, {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True,
          "qkv_bias": True}, {"qk_norm": True, "head_dim": 6}]  # fmt: skip


@pytest.mark.parametrize("changes", SHAPES)
def test_a_model_is_built_from_its_tensors_without_any_of_its_own(tmp_path, changes):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size, **changes)
    loaded = load_model(save_checkpoint(tmp_path / "m", model, tokenizer))
    assert {p.device.type for p in loaded.state_dict().values()} == {"cpu"}
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def write_shards(folder: Path, rows: list[tuple[int, int]], offsets: object = None) -> Path:
    """Shards of one tensor of 5 rows, with these first and last rows, as FSDP2's checkpoints have them."""
    folder.mkdir()
    for number, (start, end) in enumerate(rows):
        info = {"w": {"saved_offsets": [start, 0]}} if offsets is None else offsets
        metadata = {"DCP_SHARDING_INFO": info if isinstance(info, str) else json.dumps(info)}
        save_file({"w": torch.zeros(end - start, 3)}, folder / f"shard-{number}.safetensors", metadata)
    return folder


def test_shards_are_joined_in_any_order(tmp_path):
    assert read_shards_header(write_shards(tmp_path / "s", [(2, 5), (0, 2)]))["w"].shape == (5, 3)


@pytest.mark.parametrize("rows", [[(0, 2), (3, 5)], [(0, 3), (2, 5)], [(0, 2), (0, 2)], [(2, 5)], [(-1, 2), (2, 5)]])
def test_rows_that_are_missing_or_occur_twice_are_named(tmp_path, rows):
    with pytest.raises(ValueError, match="rows of w are missing or occur twice"):
        read_shards_header(write_shards(tmp_path / "s", rows))


@pytest.mark.parametrize("offsets", ["", "[]", "{", {"w": 3}, {}, {"w": {"saved_offsets": [0]}},
                                     {"w": {"saved_offsets": [0, 1]}}, {"w": {"saved_offsets": ["a", 0]}}])  # fmt: skip
def test_shards_with_damaged_offsets_are_named(tmp_path, offsets):
    with pytest.raises((ValueError, UserError)):
        read_shards_header(write_shards(tmp_path / "s", [(0, 5)], offsets))


def test_the_largest_config_is_compared_without_memory():
    assert GPTConfig(vocab_size=10, context_length=2**19, n_head=1, n_embd=64).context_length == 2**19
    with pytest.raises(ValueError, match="size of the table of rotary positions"):
        GPTConfig(vocab_size=10, context_length=2**20, n_head=1, n_embd=64)


# Writing


def test_files_have_the_bytes_that_the_library_writes(tmp_path):
    tensors = {
        "b.weight": torch.randn(3, 5),
        "a.weight": torch.randn(7).bfloat16(),
        "step": torch.tensor(3.0),
        "half": torch.randn(2, 2, 2).half(),
        "ids": torch.arange(4),
        "empty": torch.zeros(0, 3),
        'an "ä" 😀': torch.tensor([True, False]),
    }
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, tensor in tensors.items():
        assert torch.equal(read_one(tmp_path / "ours", name), tensor)
    assert read_one(tmp_path / "ours", "a.weight", torch.float32).dtype == torch.float32


def test_tensors_without_data_are_read_when_they_are_written(tmp_path):
    tensors, calls = {name: torch.randn(2, 3) for name in "abc"}, []

    def read(name):
        calls.append(name)
        return tensors[name]

    write_tensors(tmp_path / "whole", tensors)
    write_tensors(tmp_path / "lazy", tensors | {"a": tensors["a"].to("meta"), "c": tensors["c"].to("meta")}, read)
    assert calls == ["a", "c"]
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "whole", tensors)

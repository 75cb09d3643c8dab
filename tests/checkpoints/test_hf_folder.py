"""Hugging Face folders that can't be read: one sentence each, no code run, and nothing large read."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_llamas import make_llama
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.common.errors import UserError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path):
    make_llama().save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path / "model"


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_hf_model(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba', which is not supported; supported: llama"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"architectures": {"a": 1}}, "only LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"model_type": "xyz", "auto_map": {"AutoModelForCausalLM": "modeling_xyz.Xyz"}}, "never run"),
        ({"architectures": ["Other"], "auto_map": {"AutoModel": "code.Other"}}, "never run"),
        ({"hidden_size": 10**9}, "impossible model"),
        ({"num_hidden_layers": 10**5}, "impossible model"),
        ({"num_hidden_layers": 900}, "n_layer=900, but its weights are 21 tensors"),
        ({"hidden_size": [64]}, "hidden_size must be a whole number"),
        ({"rope_parameters": [1]}, "rope_parameters must be a mapping"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"intermediate_size": 97}, "with the shape"),
        ({"tie_word_embeddings": True, "vocab_size": 95}, "with the shape"),
        ({"tie_word_embeddings": True}, "but lm_head.weight has others"),
    ],
)
def test_a_config_that_is_not_supported_is_named(folder, changes, message):
    change_json(folder / "config.json", **changes)
    assert message in refusal(folder)


def test_weights_of_an_unknown_family_are_not_opened(folder):
    change_json(folder / "config.json", model_type="mamba")
    (folder / "model.safetensors").unlink()
    assert "'mamba'" in refusal(folder)


def test_keys_that_change_nothing_are_accepted(folder):
    extra = {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1, "torch_dtype": "bfloat16"}
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"}, **extra)
    read_hf_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama"', "\x00", "[" * 100_000])
def test_a_damaged_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json is damaged" in refusal(folder)


def test_missing_files_are_named(folder):
    (folder / "config.json").rename(folder / "elsewhere.json")
    assert "has weights but no config.json" in refusal(folder)
    (folder / "elsewhere.json").rename(folder / "config.json")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "has no weights" in refusal(folder)


def test_an_adapter_without_its_base_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    assert "only a PEFT adapter for the base model 'org/base'" in refusal(tmp_path)


def test_a_folder_of_gguf_files_says_to_name_one(tmp_path):
    (tmp_path / "m.Q4_0.gguf").write_bytes(b"GGUF")
    assert f"name the file: {tmp_path / 'm.Q4_0.gguf'}" in refusal(tmp_path)


def test_a_pointer_of_git_lfs_is_named(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (folder / "model.safetensors").write_bytes(pointer)
    assert "git lfs pull" in refusal(folder)


# Shards


def test_the_index_and_the_shards_must_have_the_same_tensors(shards):
    index = json.loads((shards / INDEX).read_text())
    names = index["weight_map"]
    moved = next(name for name in names if "mlp" in name)
    without = {name: file for name, file in names.items() if name != moved}
    change_json(shards / INDEX, weight_map=without)
    assert f"has the tensor '{moved}', which the index doesn't have there" in refusal(shards)
    change_json(shards / INDEX, weight_map=names | {"model.extra": names[moved]})
    assert "lacks the tensor 'model.extra', which the index expects in it" in refusal(shards)
    other = next(file for file in names.values() if file != names[moved])
    change_json(shards / INDEX, weight_map=names | {moved: other})
    assert "tensor" in refusal(shards)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a\\b.safetensors", "config.json", "x\0.safetensors", ""]
)
def test_a_file_outside_the_folder_is_refused(shards, name):
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    change_json(shards / INDEX, weight_map=dict.fromkeys(weight_map, name))
    assert "not a .safetensors file of the folder" in refusal(shards)


def test_a_missing_or_empty_index_entry_is_refused(shards):
    shard = next(iter(sorted(shards.glob("*.safetensors"))))
    shard.rename(shards / "away")
    assert f"{shard} is missing, but the index next to it names it" in refusal(shards)
    change_json(shards / INDEX, weight_map={})
    assert "names 0 files" in refusal(shards)
    change_json(shards / INDEX, weight_map={"a": 3})
    assert "is damaged" in refusal(shards)


def test_a_truncated_shard_is_refused(shards):
    shard = next(iter(sorted(shards.glob("*.safetensors"))))
    data = shard.read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:size])
        assert f"{shard} can't be read" in refusal(shards)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    assert "its header claims" in refusal(folder)
    path.write_bytes(data.replace(b'"shape":[96,64]', b'"shape":[99,64]'))
    assert "can't be read" in refusal(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] = float("inf")
    save_file(state, folder / "model.safetensors")
    assert "model.norm.weight is not finite" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_a_type_that_is_not_supported_is_refused(folder, dtype):
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].to(dtype)
    save_file(state, folder / "model.safetensors")
    assert "instead of float32 or bfloat16 or float16" in refusal(folder)


# Pickles


class Code:
    def __reduce__(self):
        return os.system, ("touch /tmp/mini_chat_gpt_code_has_run",)


def test_a_pickle_with_code_is_refused_and_not_run(folder):
    (folder / "model.safetensors").unlink()
    content = {"model.norm.weight": Code()}
    torch.save(content, folder / "pytorch_model.bin")
    assert "pickled Python code" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    assert "not written by torch.save" in refusal(folder)
    assert not Path("/tmp/mini_chat_gpt_code_has_run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a table of tensors"),
        ({"a": [1.0]}, "'a' is not a tensor of numbers"),
        ({"a": torch.zeros(1).expand(2**40)}, "'a' is not a tensor of numbers"),
        ({"model": {"a": torch.zeros(1)}}, "'model' is not a tensor of numbers"),
        ({3: torch.zeros(1)}, "3 is not a tensor of numbers"),
    ],
)
def test_a_pickle_of_other_things_is_refused(folder, content, message):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert message in refusal(folder)


def test_damaged_files_take_neither_time_nor_memory(folder):
    """A process with 1 GB more than PyTorch takes, and 10 seconds, refuses files that claim to be enormous."""
    change_json(folder / "config.json", hidden_size=2**17, intermediate_size=2**20, vocab_size=2**20)
    (folder / "big.gguf").write_bytes(
        b"GGUF\3\0\0\0" + (2**16).to_bytes(8, "little") + (2**16).to_bytes(8, "little") + b"\xff" * 10**6
    )
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from mini_chat_gpt.common.errors import UserError\n"
        "from mini_chat_gpt.checkpoints.foreign import read_hf_model, read_gguf_model\n"
        "from mini_chat_gpt.checkpoints.gguf import GGUFFile\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "for read in (lambda f: read_hf_model(f), lambda f: read_gguf_model(GGUFFile(f / 'big.gguf'))):\n"
        "    try:\n"
        "        read(Path(sys.argv[1]))\n"
        "    except UserError as error:\n"
        "        print('refused', error)\n"
    )
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.count("refused") == 2, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 10

"""Models that are read one tensor after the other, in the form in which they are kept."""

import weakref

import pytest
import torch
from foreign_llamas import VARIANTS, gguf_tokenizer, make_llama, make_tokenizer, save_folder, write_gguf
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mini_chat_gpt.checkpoints.load import open_pair
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.ops.nf4 import Nf4Linear

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 1000}
SCRATCH = 5_000_000
"""Bytes of temporary tensors, most of them of `nf4.quantize`."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors on the CPU that are not mapped from a file; `peak` is the largest number."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage) -> None:
        if storage in self._known or storage.filename is not None:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, n_bytes: int) -> None:
        self.now -= n_bytes


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same model as a Hugging Face folder, as a GGUF file and as a folder of ours: 34 MB in float32."""
    folder = tmp_path_factory.mktemp("models")
    save_folder(folder / "hf", torch.bfloat16, max_shard_size="5MB", **SHAPE)
    metadata = gguf_tokenizer(make_tokenizer())
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.token_type"] = types + [5] * (SHAPE["vocab_size"] - len(tokens))
    metadata["tokenizer.ggml.tokens"] = tokens + [f"[PAD{n}]" for n in range(len(tokens), SHAPE["vocab_size"])]
    write_gguf(folder / "m.gguf", make_llama(**SHAPE), "Q8_0", metadata)
    stored, tokenizer = open_pair(folder / "hf")
    save_checkpoint(folder / "ours", stored.load(), tokenizer)
    return folder


@pytest.mark.parametrize("frozen", ["bf16", "nf4"])
@pytest.mark.parametrize("name", ["hf", "m.gguf", "ours"])
def test_a_frozen_base_never_takes_more_than_its_form_and_the_largest_tensor(tmp_path, sources, name, frozen):
    with LiveBytes() as live:
        stored, tokenizer = open_pair(sources / name, dtype=None)
        model = stored.skeleton()
        save_checkpoint(tmp_path / "base", model, tokenizer, stored=stored)
        stored.fill(model, frozen)
        add_lora(model, LoraSettings(rank=2), frozen)
    tensors = {id(one.untyped_storage()): one for one in [*model.parameters(), *model.buffers()]}
    kept = sum(one.untyped_storage().nbytes() for one in tensors.values() if one.untyped_storage().filename is None)
    largest = 4 * max(torch.Size(info.shape).numel() for info in stored.infos.values())
    assert live.peak <= kept + largest + SCRATCH
    assert kept + largest + SCRATCH < 0.8 * 4 * model.n_parameters()  # otherwise the comparison would show nothing


@pytest.mark.parametrize("name", ["hf", "m.gguf", "ours"])
def test_the_skeleton_is_saved_as_the_complete_model_is(tmp_path, sources, name):
    stored, tokenizer = open_pair(sources / name, dtype=None)
    save_checkpoint(tmp_path / "skeleton", stored.skeleton(), tokenizer, stored=stored)
    save_checkpoint(tmp_path / "complete", stored.load(), tokenizer)
    for file in ("model.safetensors", "config.json", "mini_chat_gpt.json"):
        assert (tmp_path / "skeleton" / file).read_bytes() == (tmp_path / "complete" / file).read_bytes(), file


@pytest.mark.parametrize("variant", ["GPT-2", "Phi-3"])
def test_the_skeleton_of_a_model_with_joined_tensors_is_saved_as_the_complete_model_is(tmp_path, variant):
    theirs = save_folder(tmp_path / "hf", **VARIANTS[variant])
    stored, tokenizer = open_pair(tmp_path / "hf", dtype=None)
    save_checkpoint(tmp_path / "skeleton", stored.skeleton(), tokenizer, stored=stored)
    save_checkpoint(tmp_path / "complete", stored.load(), tokenizer)
    written = (tmp_path / "skeleton" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "complete" / "model.safetensors").read_bytes()
    state = theirs.state_dict()
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in load_file(tmp_path / "skeleton" / "model.safetensors").items()
    )


@pytest.mark.parametrize("frozen", ["float32", "bf16", "nf4"])
def test_layers_that_were_frozen_as_they_were_read_are_those_of_a_complete_model(sources, frozen):
    models = []
    for early in (True, False):
        stored, _ = open_pair(sources / "hf", dtype=None)
        model = stored.load(frozen if early else "float32")
        torch.manual_seed(0)
        add_lora(model, LoraSettings(rank=2, dora=True), frozen, [3])
        models.append(model)
    ours, theirs = ({**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    assert any(isinstance(module, Nf4Linear) for module in models[0].modules()) == (frozen == "nf4")

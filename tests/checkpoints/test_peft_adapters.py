"""Adapters of every family: those that PEFT makes are used, merged and continued here, and PEFT uses ours."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_differences import make_adapter, relative
from foreign_llamas import VARIANTS, save_folder
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from mini_chat_gpt.checkpoints.adapters import weights_hash
from mini_chat_gpt.checkpoints.convert import convert
from mini_chat_gpt.checkpoints.families import part_of_layout
from mini_chat_gpt.checkpoints.find import read_meta, steps_of
from mini_chat_gpt.checkpoints.load import load_adapted, load_checkpoint, load_pair
from mini_chat_gpt.checkpoints.merge import merge
from mini_chat_gpt.checkpoints.peft_form import modules_of
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.lora import adapters, add_lora, merge_lora
from mini_chat_gpt.sft_train import train

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

FAMILIES = ["tied", "Mistral", "Qwen2", "Qwen3", "OLMo 2", "Gemma 3", "Phi-3", "GPT-2", "GPT-Neo"]
KINDS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
QUICK = [*((variant, "LoRA") for variant in FAMILIES), ("Phi-3", "rsLoRA"), ("GPT-2", "DoRA")]
SLOW = [(variant, kind) for variant in FAMILIES for kind in KINDS if (variant, kind) not in QUICK]
IDS = torch.arange(60).view(2, 30) * 7 % 280


def base_of(folder: Path, variant: str) -> Path:
    """A random model of a family, with a tokenizer."""
    save_folder(folder / "base", **VARIANTS[variant])
    return folder / "base"


@pytest.mark.parametrize(("variant", "kind"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_an_adapter_of_peft_computes_the_same_here_and_both_merges_are_equal(tmp_path, variant, kind):
    base = base_of(tmp_path, variant)
    theirs = make_adapter(tmp_path / "adapter", base, **KINDS[kind])
    with torch.no_grad():
        expected = theirs(IDS).logits
    ours, _ = load_checkpoint(tmp_path / "adapter", "cpu")
    assert relative(ours(IDS), expected) < 1e-5
    merge(tmp_path / "adapter", tmp_path / "merged")
    state = theirs.merge_and_unload().state_dict()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(again) is type(transformers.AutoModelForCausalLM.from_pretrained(base))
    assert again.state_dict().keys() == state.keys()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


def adapted(folder: Path, **settings):
    """One of our adapters with random weights, and its folder."""
    model, tokenizer = load_pair(folder / "ours")
    add_lora(model, LoraSettings(**{"rank": 3, "alpha": 5, "dropout": 0.0, **settings}))
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapters(model):
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
        if layer.magnitude is not None:
            layer.magnitude.data.mul_(1.1)
    base = (folder / "ours").resolve()
    layout = read_meta(base)["layout"]
    model.adapter = replace(model.adapter, base=str(base), base_hash=weights_hash(base), layout=layout)
    return model.eval(), save_checkpoint(folder / "adapter", model, tokenizer)


def compare_gradients(ours, theirs) -> None:
    """Those of a module that joins several layers have a part for each of them."""
    found = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    rank, pairs = ours.adapter.settings.rank, []
    for module in modules_of(ours.adapter.layers, part_of_layout(ours.adapter.layout, ""), ours.config):
        a, b = found[module.stored + "lora_A.weight"], found[module.stored + "lora_B.weight"]
        for number, (name, part) in enumerate(module.layers):
            layer, columns = ours.get_submodule(name), slice(number * rank, (number + 1) * rank)
            rows = slice(part.first, part.first + layer.out_features)
            pairs += [(layer.lora_A.grad, a[columns]), (layer.lora_B.grad, b[rows, columns])]
            if layer.magnitude is not None:
                pairs.append((layer.magnitude.grad, found[module.stored + "lora_magnitude_vector.weight"][rows]))
    largest = max(float(expected.abs().max()) for _, expected in pairs)
    assert max(float((actual - expected).abs().max()) for actual, expected in pairs) < 1e-5 * largest


OURS = [
    *((variant, {}) for variant in FAMILIES),
    ("GPT-2", {"rslora": True, "dora": True}),
    pytest.param("Phi-3", {"rslora": True, "dora": True}, marks=pytest.mark.slow),
    pytest.param("Gemma 3", {"rslora": True, "dora": True}, marks=pytest.mark.slow),
    ("Phi-3", {"targets": ["v_proj", "layers.1.mlp.up_proj"], "dora": True}),
    pytest.param("GPT-2", {"targets": ["k_proj", "o_proj"], "dora": True}, marks=pytest.mark.slow),
    pytest.param("GPT-2", {"targets": ["down_proj"]}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("variant", "settings"), OURS)
def test_peft_computes_the_same_with_one_of_our_adapters(tmp_path, variant, settings):
    convert(base_of(tmp_path, variant), tmp_path / "ours")
    model, folder = adapted(tmp_path, **settings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(theirs, folder, is_trainable=True).eval()
    expected, logits = model(IDS), theirs(IDS).logits
    assert relative(logits, expected) < 1e-5
    expected.square().mean().backward()
    logits.square().mean().backward()
    compare_gradients(model, theirs)
    with torch.no_grad():
        assert relative(load_checkpoint(folder, "cpu")[0](IDS), expected) < 1e-5
    again = dict(load_adapted(folder).named_parameters())
    assert all(torch.equal(again[name], p) for name, p in model.named_parameters() if p.requires_grad)
    merge_lora(model)
    state = theirs.merge_and_unload().state_dict()
    merged = load_file(
        save_checkpoint(tmp_path / "merged", model, load_pair(tmp_path / "ours")[1]) / "model.safetensors"
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


QUICK_4_BITS = ("Qwen3", "GPT-2")


@pytest.mark.parametrize(
    "variant", [one if one in QUICK_4_BITS else pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES]
)
def test_a_base_in_four_bits_computes_what_peft_computes_with_its_values(tmp_path, variant):
    convert(base_of(tmp_path, variant), tmp_path / "ours")
    model, folder = adapted(tmp_path)
    quantized = load_adapted(folder, frozen="nf4").eval()
    plain = load_adapted(folder, frozen="nf4")
    for _, layer in adapters(plain):
        layer.lora_B.data.zero_()
    merge_lora(plain)  # a base whose weights are what the four bits stand for
    save_checkpoint(tmp_path / "values", plain, load_pair(tmp_path / "ours")[1])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "values")
    theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    with torch.no_grad():
        assert relative(theirs(IDS).logits, quantized(IDS)) < 1e-5
        assert relative(model(IDS), quantized(IDS)) > 1e-3


@pytest.mark.parametrize("variant", [pytest.param("Qwen3", marks=pytest.mark.slow), "GPT-2"])
def test_training_continues_from_an_adapter_of_peft(tmp_path, variant):
    base = base_of(tmp_path, variant)
    expected = make_adapter(tmp_path / "adapter", base)(IDS).logits
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Tom ran."}]}] * 8
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sft = {
        "pretrained_checkpoint": str(tmp_path / "adapter"), "save_dir": str(tmp_path / "run"), "max_steps": 2,
        "learning_rate": 1e-12, "warmup_steps": 0, "save_interval": 2, "eval_interval": 2,
    }  # fmt: skip
    train(tiny_config(sft=sft, chats={"files": str(tmp_path / "chats.jsonl")}, lora={"enabled": True, "rank": 2}))
    (last,) = steps_of(tmp_path / "run")
    assert relative(load_checkpoint(tmp_path / "run", "cpu")[0](IDS), expected) < 1e-5
    named = json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(named)
    with torch.no_grad():
        assert relative(peft.PeftModel.from_pretrained(theirs, last)(IDS).logits, expected) < 1e-5


# What else PEFT can have in an adapter


@pytest.fixture(scope="module")
def qwen2_adapter(tmp_path_factory) -> Path:
    """An adapter next to its base."""
    folder = tmp_path_factory.mktemp("qwen2")
    make_adapter(folder / "adapter", base_of(folder, "Qwen2"))
    return folder / "adapter"


SETTINGS = {
    "patterns": {
        "rank_pattern": {"q_proj": 2, "mlp.up_proj": 6},
        "alpha_pattern": {r"^model.layers.1.self_attn.v_proj": 3},
    },
    "biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "whole modules": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "rows": {"trainable_token_indices": [3, 1]},
    "rows of both tables": {"trainable_token_indices": {"embed_tokens": [3, 1], "lm_head": [5]}},
    "tables": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "some layers": {"target_modules": r".*layers\.1.*(k|o)_proj", "use_dora": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_of_peft(tmp_path, name):
    base = base_of(tmp_path, "biases")
    theirs = make_adapter(tmp_path / "adapter", base, **SETTINGS[name])
    with torch.no_grad():
        assert relative(load_checkpoint(tmp_path / "adapter", "cpu")[0](IDS), theirs(IDS).logits) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_token_indices": [3, 1]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
)
def test_tables_of_a_model_that_shares_them(tmp_path, settings):
    base = base_of(tmp_path, "tied")
    theirs = make_adapter(tmp_path / "adapter", base, **settings)
    ours, tokenizer = load_checkpoint(tmp_path / "adapter", "cpu")
    with torch.no_grad():
        assert relative(ours(IDS), theirs(IDS).logits) < 1e-5
    save_checkpoint(tmp_path / "merged", ours, tokenizer)
    assert torch.equal(load_checkpoint(tmp_path / "merged", "cpu")[0](IDS), ours(IDS))


def test_a_pickle_is_read_and_one_with_code_is_not(tmp_path):
    base = base_of(tmp_path, "Qwen2")
    theirs = make_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter" / "adapter_model.bin")
    path.unlink()
    with torch.no_grad():
        assert relative(load_checkpoint(tmp_path / "adapter", "cpu")[0](IDS), theirs(IDS).logits) < 1e-5
    torch.save({"a": print}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="contains pickled Python code"):
        load_checkpoint(tmp_path / "adapter", "cpu")


def test_a_vocabulary_that_has_grown(tmp_path):
    base = base_of(tmp_path, "untied")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(292, mean_resizing=False)
    theirs = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path / "adapter")
    ours, _ = load_checkpoint(tmp_path / "adapter", "cpu")
    with torch.no_grad():
        assert relative(ours(IDS + 10), theirs(IDS + 10).logits) < 1e-5


def test_a_base_that_has_moved_is_named(tmp_path):
    base = base_of(tmp_path, "Qwen2")
    theirs = make_adapter(tmp_path / "adapter", base)
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"is an adapter for the base model '.*base', which is missing here; merge the two"
    ):
        load_checkpoint(tmp_path / "adapter", "cpu")
    merge(tmp_path / "adapter", tmp_path / "merged", tmp_path / "moved")
    with torch.no_grad():
        assert relative(load_checkpoint(tmp_path / "merged", "cpu")[0](IDS), theirs(IDS).logits) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of the type 'IA3'; only LORA"),
        ({"task_type": "SEQ_CLS"}, "for the task 'SEQ_CLS'"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens'"),
        ({"a_later_setting": {"x": 1}}, "'a_later_setting'"),
        ({"init_lora_weights": "pissa"}, "changes the weights of the base"),
        ({"rank_pattern": {"(a+)+b": 3}}, "only names of modules can be read"),
        ({"r": 5}, "has the rank 4, but adapter_config.json says 5"),
        ({"r": 0}, "r"),
        ({"use_dora": True}, "lacks its magnitude"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "x" * 5000}, "which is missing here"),
        ({"base_model_name_or_path": "a\0b"}, "which is missing here"),
        ({"base_model_name_or_path": "."}, "which is missing here"),
    ],
)
def test_what_cant_be_read_is_one_sentence(tmp_path, changes, message, qwen2_adapter):
    shutil.copytree(qwen2_adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "adapter", "cpu")
    assert message in str(caught.value)
    assert str(tmp_path / "adapter") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.update({name: tensors[name][:, 1:]}), "the adapter is not for this base"),
        (lambda tensors, name: tensors.update({name: tensors[name] * float("nan")}), "is not finite"),
        (lambda tensors, name: tensors.update({name.replace("layers.0", "layers.9"): tensors[name]}), "has no place"),
        (lambda tensors, name: tensors.update({"lm_head.weight": tensors[name]}), "can't be read"),
        (lambda tensors, name: tensors.pop(name), "has no place"),
    ],
)
def test_tensors_that_dont_fit_are_one_sentence(tmp_path, change, message, qwen2_adapter):
    shutil.copytree(qwen2_adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "adapter", "cpu")
    assert message in str(caught.value)

"""The mapping to Hugging Face's Llama: `transformers` loads the result and computes the same logits."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.hf import from_hf_config, from_hf_state, to_hf_config, to_hf_state, why_not_llama
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.meta_file import DeclaredIds

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "native": {},
    "untied": {"tie_embeddings": False},
    "own head_dim": {"head_dim": 16},
    "biases": {"bias": True, "qkv_bias": True},
    "biases in attention": {"bias": True, "qkv_bias": True, "mlp_bias": False},
    "biases in the mlp": {"mlp_bias": True},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3 scaling": {"rope_scaling": LLAMA3},
}
TOKENIZER = SimpleNamespace(
    bos_id=None, stop_ids=frozenset({90}), control={"<|endoftext|>": 90}, vocab_size=94, declared=None
)


def small(**changes) -> GPTConfig:
    fields = {"vocab_size": 97, "context_length": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    return GPTConfig(**fields | {"rope_theta": 5000.0, "norm_eps": 1e-4} | changes)


def build(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():  # far from the initialization, so that every parameter matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_folder(folder, model: GPT):
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config, TOKENIZER)))
    state = {name: tensor.contiguous() for name, tensor in to_hf_state(model.state_dict(), model.config).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_transformers_loads_a_written_folder_and_gives_the_same_logits(tmp_path, changes):
    from transformers import AutoModelForCausalLM

    model = build(small(**changes))
    theirs = AutoModelForCausalLM.from_pretrained(write_folder(tmp_path, model)).eval()
    ids = torch.randint(0, 97, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_folder_saved_by_transformers_comes_back_with_the_same_logits(tmp_path, changes):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(write_folder(tmp_path, build(small(**changes)))).eval()
    theirs.save_pretrained(tmp_path / "again")
    config = from_hf_config(json.loads((tmp_path / "again" / "config.json").read_text()))
    model = GPT(config).eval()
    model.load_state_dict(from_hf_state(load_file(tmp_path / "again" / "model.safetensors"), config))
    ids = torch.randint(0, 97, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_config_round_trips_with_explicit_defaults(changes):
    config = small(**changes)
    explicit = {"n_kv_head": config.kv_heads, "head_dim": config.head_size, "intermediate_size": config.mlp_size}
    assert from_hf_config(to_hf_config(config, TOKENIZER)) == config.model_copy(update=explicit)


def test_a_tied_head_is_omitted_and_an_untied_one_written():
    tied, untied = build(small()), build(small(tie_embeddings=False))
    assert "lm_head.weight" not in to_hf_state(tied.state_dict(), tied.config)
    assert "lm_head.weight" in to_hf_state(untied.state_dict(), untied.config)


def test_a_tokenizer_with_several_stop_ids_lists_the_end_of_a_reply_first():
    chat = SimpleNamespace(bos_id=1, stop_ids=frozenset({1, 2, 512}), control={"<|endoftext|>": 512}, declared=None)
    ids = to_hf_config(small(), chat)
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (1, [512, 1, 2])


def test_a_tokenizer_from_elsewhere_keeps_its_own_bos_and_eos():
    declared = DeclaredIds(bos_id=1, eos_id=2)
    chat = SimpleNamespace(bos_id=None, stop_ids=frozenset({0, 2}), control={"<|endoftext|>": 0}, declared=declared)
    ids = to_hf_config(small(), chat)
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (1, [2, 0])


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layernorm"},
        {"qk_norm": True},
        {"qkv_bias": True},
        {"bias": True, "mlp_bias": False},
        {"n_embd": 30, "head_dim": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_llama_cannot_express_is_rejected(changes):
    config = small(**changes)
    assert why_not_llama(config)
    with pytest.raises(ValueError, match="can't be written as a Hugging Face Llama"):
        to_hf_config(config, TOKENIZER)


def test_a_field_that_the_exporter_does_not_know_is_rejected():
    class NewConfig(GPTConfig):
        input_factor: float = 1.0

    known = small().model_dump()
    assert why_not_llama(NewConfig(**known)) is None
    assert why_not_llama(NewConfig(**known, input_factor=2.0)) == "Llama does not support input_factor=2.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "must be a multiple of n_kv_head"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_an_unsupported_config_is_rejected_by_name(change, message):
    with pytest.raises(UserError, match=message):
        from_hf_config(to_hf_config(small(), TOKENIZER) | change)


def test_a_config_without_a_width_is_rejected_by_name():
    config = to_hf_config(small(), TOKENIZER)
    del config["hidden_size"]
    with pytest.raises(UserError, match="hidden_size is missing"):
        from_hf_config(config)


def test_a_config_of_an_early_llama_has_transformers_defaults():
    early = {"model_type": "llama", "vocab_size": 97, "max_position_embeddings": 64, "num_hidden_layers": 2}
    early |= {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 96}
    config = from_hf_config(early)
    assert (config.kv_heads, config.norm_eps, config.rope_theta, config.tie_embeddings) == (4, 1e-6, 10000.0, False)

"""GPT-2 and GPT-Neo of `transformers`: the same logits, gradients and replies, whatever form their files have."""

import json

import pytest
import torch
from foreign_llamas import most_probable
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.families import FAMILIES, family_of_model
from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.common.errors import UserError

SIZES = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
VARIANTS = {
    "GPT-2": {"model_type": "gpt2"},
    "GPT-2, untied": {"model_type": "gpt2", "tie_word_embeddings": False, "activation_function": "relu"},
    "GPT-2, narrow MLP": {"model_type": "gpt2", "n_inner": 40, "scale_attn_weights": False},
    "GPT-Neo": {"model_type": "gpt_neo"},
    "GPT-Neo, all global": {"model_type": "gpt_neo", "attention_types": [[["global"], 2]], "intermediate_size": 40},
}


def make(changes):
    """A small random model, with weights far from the initialization."""
    import transformers

    if changes["model_type"] == "gpt2":
        sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config, model = transformers.GPT2Config, transformers.GPT2LMHeadModel
    else:
        sizes = {"max_position_embeddings": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 7}
        sizes["attention_types"] = [[["global", "local"], 1]]
        config, model = transformers.GPTNeoConfig, transformers.GPTNeoForCausalLM
    torch.manual_seed(0)
    values = {name: value for name, value in changes.items() if name != "model_type"}
    made = model(config(**SIZES | sizes | values)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture(params=VARIANTS)
def theirs(request):
    return make(VARIANTS[request.param])


def relative(actual, expected):
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def part_of(model):
    return next(family.hf_part for family in FAMILIES if family.model_type == model.config.model_type)


def test_logits_and_gradients_are_those_of_transformers(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours, ids = read_hf_model(tmp_path), torch.randint(0, 96, (2, 60))
    expected, logits = theirs(ids).logits, ours(ids)
    assert relative(logits, expected) < 1e-4
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (logits * weights).sum().backward()
    reference = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    for name, parameter in ours.named_parameters():
        part = part_of(theirs)(name, ours.config)
        gradient = reference[part.source]
        gradient = gradient if part.convert is None else part.convert(gradient)
        assert float((parameter.grad - gradient).abs().max()) < 1e-5 * largest, name


def test_decoding_with_a_cache_gives_the_same_tokens(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours, ids = read_hf_model(tmp_path), torch.randint(3, 96, (1, 12))
    expected = theirs.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 12:]
    assert most_probable(ours, ids, 30) == expected.tolist()


@pytest.mark.parametrize("variant", ["GPT-2", "GPT-Neo"])
@pytest.mark.parametrize("pickled", [False, True])
def test_early_files_without_the_prefix_and_with_masks_are_read(tmp_path, variant, pickled):
    theirs = make(VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    expected = read_hf_model(tmp_path)
    state = {name.removeprefix("transformer."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    mask = "h.0.attn.bias" if variant == "GPT-2" else "h.0.attn.attention.bias"
    state |= {mask: torch.ones(1, 1, 64, 64), mask.replace("bias", "masked_bias"): torch.tensor(-1e9)}
    (tmp_path / "model.safetensors").unlink()
    if pickled:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    ours = read_hf_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), expected.parameters(), strict=True))


def test_the_family_of_such_a_model_is_recognized(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    names = {"gpt2": "GPT-2", "gpt_neo": "GPT-Neo"}
    assert family_of_model(read_hf_model(tmp_path).config).name == names[theirs.config.model_type]


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: true"),
        ("GPT-2", {"activation_function": "swish"}, "activation_function 'swish'"),
        ("GPT-2", {"n_inner": 50}, "with the shape"),
        ("GPT-2", {"architectures": ["GPT2ForSequenceClassification"]}, "only GPT2LMHeadModel"),
        ("GPT-Neo", {"attention_types": [[["sparse"], 2]], "attention_layers": None}, "attention of type 'sparse'"),
        ("GPT-Neo", {"attention_types": 3, "attention_layers": None}, "attention_types"),
        ("GPT-Neo", {"attention_types": [[["global"], 1e999]], "attention_layers": None}, "attention_types"),
        ("GPT-Neo", {"attention_types": [[["global"], 10**9]], "attention_layers": None}, "impossible model"),
        ("GPT-Neo", {"attention_types": [[["global"], 3]], "attention_layers": None}, "impossible model"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, variant, changes, message):
    make(VARIANTS[variant]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read_hf_model(tmp_path)
    assert message in str(caught.value)

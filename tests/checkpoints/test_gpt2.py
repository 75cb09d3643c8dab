"""GPT-2 and GPT-Neo of `transformers`: the forms that their files had, and what is not supported."""

import json

import pytest
import torch
from foreign_llamas import VARIANTS, make_llama, make_tokenizer
from safetensors.torch import load_file, save_file

from mini_chat_gpt.checkpoints.families import FAMILIES, family_of_model
from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common.errors import UserError


@pytest.mark.parametrize("variant", ["GPT-2", "GPT-Neo"])
@pytest.mark.parametrize("pickled", [False, True])
def test_early_files_without_the_prefix_and_with_masks_are_read(tmp_path, variant, pickled):
    theirs = make_llama(**VARIANTS[variant])
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


@pytest.mark.parametrize("variant", ["GPT-2", "GPT-Neo", "Qwen2"])
def test_a_folder_with_vocab_and_merges_has_gpt2s_tokenizer(tmp_path, variant):
    from transformers import GPT2TokenizerFast

    make_llama(vocab_size=288, **VARIANTS[variant]).save_pretrained(tmp_path)
    make_tokenizer().backend_tokenizer.model.save(str(tmp_path))
    if variant == "Qwen2":  # which splits text in another way
        with pytest.raises(UserError, match=r"has no tokenizer\.json"):
            load_checkpoint(tmp_path, "cpu")
        return
    _, tokenizer = load_checkpoint(tmp_path, "cpu")
    text = "Once upon a time, Tom's cat saw 12 birds."
    assert tokenizer.encode(text) == GPT2TokenizerFast.from_pretrained(str(tmp_path)).encode(text)


@pytest.mark.parametrize("family", ["GPT-2", "GPT-Neo"])
@pytest.mark.parametrize(
    "variant", [name for name, changes in VARIANTS.items() if changes.get("family", "")[:3] == "GPT"]
)
def test_a_model_that_is_the_other_family_is_not_written_as_it(tmp_path, family, variant):
    make_llama(**VARIANTS[variant]).save_pretrained(tmp_path)
    config = read_hf_model(tmp_path).config
    assert family_of_model(config).name == variant.partition(",")[0]
    named = next(one for one in FAMILIES if one.name == family)
    assert (named.why_not(config) is None) == (family == variant.partition(",")[0])


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
    make_llama(**VARIANTS[variant]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read_hf_model(tmp_path)
    assert message in str(caught.value)

"""Phi-3, whose projections are joined: the same logits as in `transformers`, and a saved model that it loads as a relative."""

import json

import pytest
import torch
from tiny import tiny_tokenizer

from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError


def make(**changes):
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {
        "vocab_size": 310, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("changes", [{"sliding_window": 7}, {"sliding_window": None}, {"num_key_value_heads": 4}])
def test_logits_are_those_of_transformers_and_a_saved_model_keeps_them(tmp_path, changes):
    from transformers import AutoModelForCausalLM

    theirs, ids = make(**changes), torch.randint(0, 310, (2, 60))
    theirs.save_pretrained(tmp_path / "phi3")
    ours, expected = read_hf_model(tmp_path / "phi3"), theirs(ids).logits
    assert float((ours(ids) - expected).abs().max().detach()) < 1e-4 * float(expected.abs().max().detach())
    save_checkpoint(tmp_path / "saved", ours, tiny_tokenizer())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # a Llama, or with windows a Mistral
    assert float((again(ids).logits - expected).abs().max().detach()) < 1e-4 * float(expected.abs().max().detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": 0.75}, "rotates only a part of each head"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "rope_type 'longrope'"),
        ({"intermediate_size": 90}, "with the shape"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as caught:
        read_hf_model(tmp_path)
    assert message in str(caught.value)

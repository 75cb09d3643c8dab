"""Phi-3: what of it is not supported."""

import json

import pytest
from foreign_llamas import VARIANTS, make_llama

from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.common.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": 0.75}, "rotates only a part of each head"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "rope_type 'longrope'"),
        ({"intermediate_size": 90}, "with the shape"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    make_llama(**VARIANTS["Phi-3"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as caught:
        read_hf_model(tmp_path)
    assert message in str(caught.value)

"""Loading gives the saved model; what is not a checkpoint is reported in one sentence."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.checkpoints.load import load_pair, tensors_in
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError

IDS = torch.arange(20)[None]
GPT2_LIKE = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True, "qkv_bias": True}


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, GPT2_LIKE, {"qk_norm": True}, {"windows": (3, None)}]
)
def test_a_loaded_model_gives_the_same_logits(tmp_path, changes):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size, **changes)
    loaded, its_tokenizer = load_checkpoint(save_checkpoint(tmp_path / "m", model, tokenizer), device="cpu")
    assert torch.equal(model(IDS), loaded(IDS))
    assert loaded.config == model.config
    assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == model.config.tie_embeddings


@pytest.mark.parametrize("what", ["missing", "empty folder", "text file", "empty file", "other json"])
def test_what_is_not_a_checkpoint_is_reported_in_one_sentence(tmp_path, what):
    path = tmp_path / "x"
    if what == "empty folder":
        path.mkdir()
    elif what == "text file":
        path.write_text("hello")
    elif what == "empty file":
        path.touch()
    elif what == "other json":
        path.mkdir()
        (path / "mini_chat_gpt.json").write_text("{}")
    with pytest.raises(UserError, match=str(path)):
        load_checkpoint(path)


def test_a_missing_file_of_tensors_is_one_sentence(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = save_checkpoint(tmp_path / "c", tiny_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match=r"optimizer\.safetensors can't be read .*; use another checkpoint\."):
        tensors_in(folder, "optimizer.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_weights_are_loaded_in_float32_unless_the_precision_of_the_file_is_wanted(tmp_path, dtype):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size).to(torch.bfloat16)
    loaded, _ = load_pair(save_checkpoint(tmp_path / "m", model, tokenizer), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype or torch.bfloat16}

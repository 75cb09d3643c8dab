"""Which checkpoint a path means: the best or the newest undamaged one of a run, the newest base of all runs."""

import shutil

import pytest
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.find import find_checkpoint, newest_checkpoint, read_state
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system=None)
    return tokenizer


def test_a_damaged_checkpoint_is_reported_and_the_newest_undamaged_one_used(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"step-000000{step}", model, tokenizer)
    weights = tmp_path / "step-0000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-0000003: model\.safetensors has \d+ bytes instead of"):
        assert find_checkpoint(tmp_path).name == "step-0000002"
    with pytest.raises(UserError, match=r"step-0000003 is damaged: model\.safetensors"):
        load_checkpoint(tmp_path / "step-0000003")


def test_the_best_of_a_run_is_the_one_with_the_lowest_validation_loss(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5), (4, None)):
        save_checkpoint(tmp_path / f"step-000000{step}", model, tokenizer, {"val_loss": loss})
    assert find_checkpoint(tmp_path).name == find_checkpoint(tmp_path / "best").name == "step-0000002"
    assert find_checkpoint(tmp_path / "last").name == "step-0000004"


def test_the_newest_base_is_found_and_is_never_a_chat_model(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    assert newest_checkpoint(tmp_path, base=True) is None
    save_checkpoint(tmp_path / "imported", model, tokenizer, {"job": "import"})
    save_checkpoint(tmp_path / "base" / "step-0000001", model, tokenizer, {"job": "pretrain"})
    save_checkpoint(tmp_path / "deep" / "sft" / "step-0000001", model, tokenizer, {"job": "sft"})
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "base"
    assert newest_checkpoint(tmp_path) == tmp_path / "deep" / "sft"
    shutil.rmtree(tmp_path / "base")
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "imported"


def test_a_model_without_training_state_cannot_be_resumed(tmp_path, tokenizer):
    folder = save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match="no training state"):
        read_state(folder)

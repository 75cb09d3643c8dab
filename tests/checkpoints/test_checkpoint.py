"""Checkpoints: whole, self-contained, readable by transformers; damage and absence in one sentence."""

import shutil

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.checkpoints.checkpoint import find_checkpoint, newest_checkpoint, read_state, save_checkpoint
from mini_chat_gpt.common.errors import UserError

IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system=None)
    return tokenizer


GPT2_LIKE = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True, "qkv_bias": True}


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, GPT2_LIKE, {"qk_norm": True}, {"windows": (3, None)}]
)
def test_a_loaded_model_gives_the_same_logits(tmp_path, tokenizer, changes):
    model = tiny_model(tokenizer.vocab_size, **changes)
    loaded, its_tokenizer = load_checkpoint(save_checkpoint(tmp_path / "m", model, tokenizer), device="cpu")
    assert torch.equal(model(IDS), loaded(IDS))
    assert loaded.config == model.config
    assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == model.config.tie_embeddings


def test_transformers_loads_the_folder_as_it_is(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model(tokenizer.vocab_size)
    folder = save_checkpoint(tmp_path / "m", model, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-4, rtol=1e-4)
    messages = [Message("user", "Hello Tom!"), Message("assistant", "Hi 😀.")]
    chat = [{"role": message.role, "content": message.content} for message in messages]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert ids == render(messages, tokenizer)[0]


def test_a_checkpoint_is_not_overwritten(tmp_path, tokenizer):
    folder = save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match="exists already"):
        save_checkpoint(folder, tiny_model(tokenizer.vocab_size), tokenizer)


def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_used(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"step-000000{step}", model, tokenizer)
    weights = tmp_path / "step-0000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-0000003: model\.safetensors has \d+ bytes instead of"):
        assert find_checkpoint(tmp_path).name == "step-0000002"
    with pytest.raises(UserError, match=r"step-0000003 is damaged: model\.safetensors"):
        load_checkpoint(tmp_path / "step-0000003")


def test_a_half_written_checkpoint_is_never_seen(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(
        type(tokenizer), "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="no space left on device"):
        save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["missing", "empty folder", "text file", "empty file", "other json"])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, what):
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


def test_the_best_of_a_run_is_the_one_with_the_lowest_validation_loss(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5), (4, None)):
        save_checkpoint(tmp_path / f"step-000000{step}", model, tokenizer, {"val_loss": loss})
    assert find_checkpoint(tmp_path).name == find_checkpoint(tmp_path / "best").name == "step-0000002"
    assert find_checkpoint(tmp_path / "last").name == "step-0000004"


def test_the_newest_base_is_found_and_a_chat_model_is_not_taken_for_one(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    assert newest_checkpoint(tmp_path, base=True) is None
    save_checkpoint(tmp_path / "imported", model, tokenizer, {"job": "import"})
    save_checkpoint(tmp_path / "base" / "step-0000001", model, tokenizer, {"job": "pretrain"})
    save_checkpoint(tmp_path / "deep" / "sft" / "step-0000001", model, tokenizer, {"job": "sft"})
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "base"
    assert newest_checkpoint(tmp_path) == tmp_path / "deep" / "sft"
    shutil.rmtree(tmp_path / "base")
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "imported"


def test_a_model_without_training_state_says_that_it_can_not_be_continued(tmp_path, tokenizer):
    folder = save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match="no training state"):
        read_state(folder)

"""A checkpoint folder is complete or absent, is never overwritten, and is a Hugging Face folder."""

import threading

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.checkpoints import save
from mini_chat_gpt.checkpoints.load import load_model
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.rank_failures import WRITER

IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system=None)
    return tokenizer


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


def test_an_incomplete_checkpoint_is_never_visible(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(
        type(tokenizer), "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="no space left on device"):
        save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_contiguous_are_saved(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    layer = model.layers[0].self_attn.q_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous().T)
    assert not layer.weight.is_contiguous()
    folder = save_checkpoint(tmp_path / "m", model, tokenizer)
    assert torch.equal(load_model(folder).layers[0].self_attn.q_proj.weight, layer.weight)


def test_the_thread_that_writes_has_the_name_by_which_others_wait_for_it(tmp_path, tokenizer, monkeypatch):
    names = []
    write = save.CheckpointWriter._write
    monkeypatch.setattr(
        save.CheckpointWriter, "_write", lambda *a: (names.append(threading.current_thread().name), write(*a))
    )
    writer = save.CheckpointWriter(tmp_path / "run", 2)
    writer.write("step-0000001", save.take_snapshot(tiny_model(tokenizer.vocab_size), tokenizer))
    writer.wait()
    assert names == [WRITER]

"""Models of `transformers` in their folders: the same logits, gradients and replies, and the same tensors when saved again."""

import json

import pytest
import torch
from family_differences import gradients_differ_by, relative, sft_step
from foreign_llamas import VARIANTS, make_llama, most_probable, save_folder
from safetensors.torch import load_file
from tiny import tiny_config, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import steps_of
from mini_chat_gpt.checkpoints.foreign import read_hf_model
from mini_chat_gpt.checkpoints.hf import to_hf_state
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.sft_train import train


@pytest.fixture(params=VARIANTS)
def theirs(request):
    return make_llama(**VARIANTS[request.param])


def test_logits_and_gradients_are_those_of_transformers(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours, ids = read_hf_model(tmp_path), torch.randint(0, 96, (2, 60))
    expected, logits = theirs(ids).logits, ours(ids)
    assert relative(logits, expected) < 1e-4
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (logits * weights).sum().backward()
    assert gradients_differ_by(ours, theirs) < 1e-5


def test_a_step_on_packed_conversations_is_that_of_transformers_with_one_by_one(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    loss, gradients = sft_step(read_hf_model(tmp_path), theirs)
    assert loss < 1e-5
    assert gradients < 1e-5


def test_decoding_with_a_cache_gives_the_same_tokens(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours, ids = read_hf_model(tmp_path), torch.randint(3, 96, (1, 12))
    expected = theirs.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 12:]
    assert most_probable(ours, ids, 30) == expected.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_is_again_one_of_transformers(tmp_path, variant):
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    theirs = make_llama(vocab_size=tokenizer.vocab_size, **VARIANTS[variant])
    theirs.save_pretrained(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", read_hf_model(tmp_path / "theirs"), tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert type(again) is type(theirs)  # also where another family could express the model
    ids = torch.randint(0, 96, (1, 20))
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    loaded, _ = load_checkpoint(tmp_path / "ours", "cpu")
    assert relative(loaded(ids), theirs(ids).logits) < 1e-4


@pytest.mark.parametrize("variant", ["GPT-2", pytest.param("Phi-3", marks=pytest.mark.slow)])
def test_checkpoints_of_training_are_folders_of_the_family(tmp_path, variant):
    from transformers import AutoModelForCausalLM

    theirs = save_folder(tmp_path / "base", **VARIANTS[variant])
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Tom ran."}]}] * 8
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sft = {
        "pretrained_checkpoint": str(tmp_path / "base"), "save_dir": str(tmp_path / "run"), "max_steps": 2,
        "learning_rate": 1e-2, "warmup_steps": 0, "save_interval": 1, "eval_interval": 2,
    }  # fmt: skip
    train(tiny_config(sft=sft, chats={"files": str(tmp_path / "chats.jsonl")}))
    ids = torch.arange(60).view(2, 30)
    for folder in steps_of(tmp_path / "run"):
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert type(again) is type(theirs)
        ours = load_checkpoint(folder, "cpu")[0]
        assert relative(again(ids).logits, ours(ids)) < 1e-5
        assert relative(theirs(ids).logits, ours(ids)) > 1e-3
    resumed = sft | {"resume_from": str(tmp_path / "run"), "max_steps": 3}
    train(tiny_config(sft=resumed, chats={"files": str(tmp_path / "chats.jsonl")}))
    assert steps_of(tmp_path / "run")[-1].name == "step-0000003"


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_keep_the_tensors_and_their_precision(tmp_path, dtype, pickled):
    theirs = make_llama(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    if pickled:
        as_pickles(tmp_path)
    state = to_hf_state(read_hf_model(tmp_path).state_dict(), read_hf_model(tmp_path).config)
    for name, tensor in theirs.state_dict().items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor)


def as_pickles(folder):
    """Replace the safetensors files of a folder by files of torch.save."""
    for path in folder.glob("*.safetensors"):
        torch.save(
            load_file(path), folder / path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        )
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def test_a_single_pickle_and_its_copy_of_a_tied_head(tmp_path):
    theirs = make_llama(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")  # with lm_head.weight
    ours = read_hf_model(tmp_path)
    assert ours.lm_head.weight is ours.embed_tokens.weight
    assert torch.equal(ours.embed_tokens.weight, theirs.lm_head.weight)


def test_weights_can_be_read_in_another_precision(tmp_path):
    make_llama(torch.bfloat16).save_pretrained(tmp_path)
    kept, converted = read_hf_model(tmp_path), read_hf_model(tmp_path, torch.float32)
    assert {p.dtype for p in converted.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(kept.parameters(), converted.parameters(), strict=True))


def test_the_precision_is_that_of_the_tensors_and_not_of_config_json(tmp_path):
    make_llama(torch.float16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16", "dtype": "float32"}))
    assert {p.dtype for p in read_hf_model(tmp_path).parameters()} == {torch.float16}


@pytest.mark.parametrize("changes", [{"query_pre_attn_scalar": 0}, {"hidden_size": 10**400}, {"hidden_size": -1}])
def test_numbers_that_no_gemma_can_have_are_one_sentence(tmp_path, changes):
    make_llama(**VARIANTS["Gemma 3"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=next(iter(changes))):
        read_hf_model(tmp_path)

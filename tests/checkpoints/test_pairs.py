"""A model and a tokenizer that don't belong together are refused at every entrance, with the same sentence."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from commands import write_stories
from tiny import TEXTS, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.checkpoints import convert
from mini_chat_gpt.checkpoints.lora_setup import pair_of_run
from mini_chat_gpt.checkpoints.merge import merge
from mini_chat_gpt.checkpoints.save import save_checkpoint, take_snapshot
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import write_manifest
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.sft_train import add_chat_tokens, train
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.run_tokenizer import tokenizer_for

PACKAGE = Path(__file__).parents[2] / "mini_chat_gpt"
TOKENIZER = tiny_tokenizer()
SMALLER = tiny_tokenizer(270)
OTHER = ChatTokenizer.train([text[::-1] for text in TEXTS] * 20, TOKENIZER.vocab_size)


def put_tokenizer(folder: Path, tokenizer: ChatTokenizer) -> Path:
    """Replace a checkpoint's tokenizer by another one's files, and update its manifest."""
    tokenizer.save(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    return folder


@pytest.fixture(params=["more ids than rows", "as many other ids"])
def mixed(tmp_path, request) -> Path:
    """A checkpoint with another model's tokenizer."""
    own = SMALLER if request.param == "more ids than rows" else OTHER
    folder = save_checkpoint(tmp_path / "base", tiny_model(own.vocab_size), own, {"job": "pretrain"})
    assert own.fingerprint() != TOKENIZER.fingerprint()
    return put_tokenizer(folder, TOKENIZER)


def refused():
    return pytest.raises(UserError, match=r"they don't belong together|is not the one that its model was saved with")


def test_load_checkpoint_refuses_another_models_tokenizer(mixed):
    with refused():
        load_checkpoint(mixed, "cpu")


def test_fine_tuning_refuses_a_base_with_another_models_tokenizer(mixed, tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi, Tom."}]}
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * 8))
    sft = {"pretrained_checkpoint": str(mixed), "save_dir": str(tmp_path / "run"), "max_steps": 1}
    with refused():
        train(tiny_config(sft=sft, chats={"files": str(tmp_path / "chats.jsonl")}))
    assert not (tmp_path / "run").exists()


def test_import_inspect_and_resume_refuse_another_models_tokenizer(mixed, tmp_path):
    with refused():
        convert.main([str(mixed), str(tmp_path / "out")])
    with refused():
        tokenizer_for(tiny_config(sft={"pretrained_checkpoint": str(mixed)}))
    with refused():
        pair_of_run(mixed, tiny_config())


def adapter_for(folder: Path, base: Path, tokenizer: ChatTokenizer) -> Path:
    """A checkpoint of an untrained adapter."""
    model, _ = load_checkpoint(base, "cpu")
    add_lora(model, LoraSettings(rank=2))
    hashed = json.loads((base / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    object.__setattr__(model.adapter, "base", str(base))
    object.__setattr__(model.adapter, "base_hash", hashed)
    return take_snapshot(model, tokenizer, {"job": "sft"}).write(folder)


@pytest.mark.parametrize("where", ["of the adapter", "of the base"])
def test_an_adapter_is_not_combined_with_a_base_of_another_tokenizer(tmp_path, where):
    base = save_checkpoint(tmp_path / "base", tiny_model(TOKENIZER.vocab_size), TOKENIZER)
    adapter = adapter_for(tmp_path / "adapter", base, OTHER if where == "of the adapter" else TOKENIZER)
    if where == "of the base":
        shutil.rmtree(base)
        save_checkpoint(base, tiny_model(TOKENIZER.vocab_size), OTHER)
    for use in (lambda: load_checkpoint(adapter, "cpu"), lambda: merge(adapter, tmp_path / "merged")):
        with pytest.raises(UserError, match=r"is not a base for the adapter .*: its tokenizer is another one"):
            use()
    assert not (tmp_path / "merged").exists()


def test_an_adapters_layers_and_tokens_must_exist_in_the_base(tmp_path):
    base = save_checkpoint(tmp_path / "base", tiny_model(TOKENIZER.vocab_size), TOKENIZER)
    adapter = adapter_for(tmp_path / "adapter", base, TOKENIZER)
    meta = json.loads((adapter / "mini_chat_gpt.json").read_text())
    for change, words in [
        ({"layers": ["layers.9.mlp.up_proj"]}, "has no layer 'layers.9.mlp.up_proj'"),
        ({"token_ids": [10**9]}, "has no row for one of the token_ids"),
        ({"token_ids": [-1]}, "has no row for one of the token_ids"),
        ({"settings": meta["adapter"]["settings"] | {"rank": 10**9}}, r"settings.rank must be at most"),
        ({"settings": meta["adapter"]["settings"] | {"rank": 500}}, r"shape \[2, 32\] instead of \[500, 32\]"),
        ({"settings": meta["adapter"]["settings"] | {"dora": True}}, "lacks 14 tensors"),
        (
            {"settings": meta["adapter"]["settings"] | {"targets": ["q_proj"]}},
            "its layers are not those of settings.targets",
        ),
        ({"settings": {"rank": 2, "alfa": 3}}, "settings.alfa"),
        ({"settings": {"rank": 2, "dropout": 0.1}}, "the adapter's settings lack alpha, dora, rslora, targets"),
        ({"frozen": "int3"}, "adapter.*is damaged: frozen"),
        ({"layers": None}, "is damaged: layers must be a list"),
        ({"base": 3}, "is damaged: base must be text"),
    ]:
        changed = meta | {"adapter": meta["adapter"] | change}
        (adapter / "mini_chat_gpt.json").write_text(json.dumps(changed))
        (adapter / "manifest.json").unlink()
        write_manifest(adapter)
        with pytest.raises(UserError, match=words):
            load_checkpoint(adapter, "cpu")


def test_only_control_tokens_may_be_new_in_a_base():
    model = tiny_model(SMALLER.vocab_size)
    with pytest.raises(UserError, match=r"they don't belong together"):
        add_chat_tokens(model, tiny_tokenizer())
    assert model.config.vocab_size == SMALLER.vocab_size
    bare = ChatTokenizer(TOKENIZER.encoder)
    model = tiny_model(bare.vocab_size)
    assert len(add_chat_tokens(model, bare)) == 4
    assert model.config.vocab_size == bare.vocab_size


def test_pretraining_refuses_a_table_smaller_than_the_tokenizer(tmp_path):
    write_stories(tmp_path, 12)
    TOKENIZER.save(tmp_path / "tokenizer")
    shape = {"preset": None, "n_layer": 1, "n_embd": 32, "n_head": 2, "context_length": 32, "vocab_size": 280}
    section = {
        "dataset_path": str(tmp_path),
        "tokenizer": str(tmp_path / "tokenizer"),
        "save_dir": str(tmp_path / "run"),
    }
    with pytest.raises(UserError, match=r"model.vocab_size is 280, but the tokenizer has 300 ids; set it to 0"):
        pretrain(tiny_config(model=shape, pretrain=section))


def test_no_module_gets_a_model_past_the_check():
    """Only `load.py` reads models, and only it and the readers of other projects' files read their tokenizers."""
    inside = {"load_model", "load_adapted", "import_model", "open_checkpoint", "open_foreign"}
    inside |= {"model_in_memory", "model_in_file", "read_hf_model", "read_gguf_model", "read_nanogpt", "read_llama2c"}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in ("checkpoints/load.py", "checkpoints/foreign.py", "checkpoints/build.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not inside & {alias.name for alias in node.names}, f"{name}: use load_pair or load_checkpoint"

"""Adapters: only they are trained and saved, PEFT reads them, and they are resumed and merged with the right base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import TORCHRUN, make_clone, one_sentence, run
from safetensors.torch import load_file
from tiny import lively_model, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints import lora_setup
from mini_chat_gpt.checkpoints.adapters import ADAPTER, ADAPTER_CONFIG, weights_hash
from mini_chat_gpt.checkpoints.find import ADAPTER_BASE, newest_checkpoint, prune, steps_of
from mini_chat_gpt.checkpoints.load import load_adapted, load_checkpoint, load_model, open_checkpoint
from mini_chat_gpt.checkpoints.merge import merge
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.distributed import ALONE
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import sha256_of
from mini_chat_gpt.config import ChatsSection, Config, DataSection, LoraSettings
from mini_chat_gpt.data.batching import collate
from mini_chat_gpt.data.chat_cache import render_conversations
from mini_chat_gpt.data.chat_dataset import ChatDataset
from mini_chat_gpt.data.chat_files import Conversation, read_conversations
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.loss import cross_entropy_sums
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.tokenizer.chat_tokenizer import END_OF_TEXT, ChatTokenizer
from mini_chat_gpt.training.compile import compile_model
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.train_step import TrainStep

TOKENIZER = tiny_tokenizer()
FORMS = [
    {},
    {"dora": True, "rslora": True},
    {"frozen": "bf16"},
    {"frozen": "nf4"},
    {"frozen": "nf4", "dora": True},
]
LAYERS = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "context_length": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a base whose tokenizer has the control tokens, and chats."""
    folder = tmp_path_factory.mktemp("adapters")
    save_checkpoint(folder / "base", lively_model(TOKENIZER.vocab_size), TOKENIZER, {"job": "pretrain"})
    write_chats(folder / "chats.jsonl")
    return folder


def write_chats(path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"Hi, {n}"}, {"role": "assistant", "content": f"Tom ran {n} times."}]}
        for n in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")


def settings(folder: Path, run: Path, lora: dict | None = None, **sections) -> Config:
    sft = {
        "pretrained_checkpoint": str(folder / "base"), "save_dir": str(run), "max_steps": 12, "learning_rate": 1e-2,
        "warmup_steps": 0, "save_interval": 6, "eval_interval": 12,
    }  # fmt: skip
    defaults = {"chats": {"files": str(folder / "chats.jsonl")}, "training": {"keep_checkpoints": 9}}
    merged = {**defaults, **sections, "sft": sft | sections.get("sft", {})}
    return tiny_config(**merged, lora={"enabled": True, "rank": 4, **(lora or {})})


def train_adapter(folder: Path, run: Path, lora: dict | None = None, **sections) -> TrainResult:
    return train(settings(folder, run, lora, **sections))


def chat_dataset(chats: list[Conversation], tokenizer: ChatTokenizer = TOKENIZER) -> ChatDataset:
    section, data = ChatsSection(), DataSection(seq_len=64, system_message=None)
    return ChatDataset(render_conversations(chats, tokenizer, section, data), section, data, seed=1)


def validation_batch(folder: Path, tokenizer: ChatTokenizer):
    source = chat_dataset(list(read_conversations(folder / "chats.jsonl")), tokenizer)
    return collate(list(source.examples())[:6])


def test_only_the_adapter_is_saved_and_the_base_is_unchanged(folder, tmp_path):
    before = load_file(folder / "base" / "model.safetensors")
    train_adapter(folder, tmp_path / "run")
    (*_, last) = steps_of(tmp_path / "run")
    assert not list(last.glob("model*"))
    names = set(load_file(last / ADAPTER))
    assert len(names) == 2 * 7 * LAYERS["n_layer"] + 1
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), load_file(folder / "base" / "model.safetensors").values(), strict=True)
    )
    state = load_file(last / "optimizer.safetensors")
    assert {name.split("/")[0].rpartition(".")[2] for name in state} == {"lora_A", "lora_B", "rows"}


@pytest.mark.parametrize("lora", FORMS)
def test_the_loaded_model_has_the_validation_loss_of_the_run(folder, tmp_path, lora):
    result = train_adapter(folder, tmp_path / "run", lora | {"dropout": 0.3})
    (*_, last) = steps_of(tmp_path / "run")
    kept = json.loads((last / "mini_chat_gpt.json").read_text())["adapter"]["frozen"]
    adapted = load_adapted(last, frozen=kept).eval()
    assert adapted.adapter.frozen == kept
    merged, tokenizer = load_checkpoint(tmp_path / "run", "cpu")
    assert type(merged.layers[0].self_attn.q_proj) is torch.nn.Linear
    batch = validation_batch(folder, tokenizer)
    # Frozen bf16 weights are loaded as float32, so results differ by rounding. Weights in 4 bits are loaded as they were.
    tolerance = 2e-2 if lora.get("frozen") == "bf16" else 1e-5
    torch.testing.assert_close(merged(batch).losses, adapted(batch).losses, rtol=tolerance, atol=tolerance)
    held_out = train_losses(settings(folder, tmp_path / "again", lora), merged, tokenizer)
    assert held_out == pytest.approx(result.val_losses["val_loss"], rel=tolerance)


def train_losses(config: Config, model: GPT, tokenizer: ChatTokenizer) -> float:
    """The validation loss of a model, as a run with this config would have it."""
    from mini_chat_gpt.training.sft_data import make_examples

    examples = make_examples(config, tokenizer, model.config.context_length).validation
    engine = TrainStep(model, config, config.sft, pick_precision(config.system.mixed_precision, torch.device("cpu")))
    sums = engine.evaluate(examples)
    return sum(loss for loss, _ in sums.values()) / sum(n for _, n in sums.values())


def test_training_reduces_the_loss(folder, tmp_path):
    result = train_adapter(folder, tmp_path / "run", sft={"max_steps": 60})
    model, tokenizer = load_checkpoint(folder / "base", "cpu")
    assert result.val_losses["val_loss"] < 0.5 * train_losses(settings(folder, tmp_path), model, tokenizer)


def base_of(kind: str, folder: Path) -> None:
    """Write a base without control tokens, or with an untied head."""
    tokenizer = ChatTokenizer(TOKENIZER.encoder)
    changes = {"tie_embeddings": False} if kind == "untied head" else {}
    model = lively_model(tokenizer.vocab_size, **changes)
    save_checkpoint(folder, model, tokenizer, {"job": "pretrain"})


@pytest.mark.parametrize("kind", ["has the tokens", "lacks the tokens", "untied head"])
@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"targets": ["q_proj", "layers.1.mlp.*"], "rslora": True}])
def test_peft_loads_the_adapter_with_the_base_that_it_names(folder, tmp_path, kind, lora):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    if kind != "has the tokens":
        base_of(kind, tmp_path / "base")
        shutil.copy(folder / "chats.jsonl", tmp_path / "chats.jsonl")
        folder = tmp_path
    train_adapter(folder, tmp_path / "run", lora)
    (*_, last) = steps_of(tmp_path / "run")
    named = json.loads((last / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    assert (Path(named).name == ADAPTER_BASE) == (kind != "has the tokens")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, last).eval()
    ours, tokenizer = load_checkpoint(tmp_path / "run", "cpu")
    ids = torch.tensor([[tokenizer.control["<|user|>"], *tokenizer.encode("Hi"), tokenizer.control["<|assistant|>"]]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(last)
    text = their_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>Hi<|assistant|>"


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_get_the_gradients_of_a_full_table(tied):
    plain = lively_model(70, tie_embeddings=tied)
    adapted = lively_model(70, tie_embeddings=tied)
    add_lora(adapted, LoraSettings(rank=2, dropout=0), token_ids=[66, 69])
    source = chat_dataset(list(chats_with_ids()))
    example = next(source.examples())
    ids = torch.from_numpy(example.ids.astype("int64")) % 68
    ids[3::5] = 66
    batch = collate([type(example)(ids.numpy().astype("int32"), example.loss_mask, 1.0, "x")])
    for model in (plain, adapted):
        model.train()
        model(batch).weighted_sum.backward()
    torch.testing.assert_close(adapted.embed_tokens.rows.grad, plain.embed_tokens.weight.grad[[66, 69]])
    if not tied:
        torch.testing.assert_close(adapted.lm_head.rows.grad, plain.lm_head.weight.grad[[66, 69]])
    assert adapted.embed_tokens.weight.grad is None
    torch.testing.assert_close(adapted(ids[None]), plain(ids[None]))
    adapted.embed_tokens.rows.data += 1
    plain.embed_tokens.weight.data[[66, 69]] += 1
    torch.testing.assert_close(adapted(batch).losses, plain(batch).losses)
    torch.testing.assert_close(adapted(ids[None]), plain(ids[None]))


def chats_with_ids():
    from mini_chat_gpt.chat_format import Message
    from mini_chat_gpt.data.chat_files import Conversation

    messages = (Message("user", "Hi Tom and Sara"), Message("assistant", "Once upon a time there was a cat"))
    yield Conversation(messages, "messages", "a", "line 1")


def test_a_compiled_loss_supports_trained_rows(monkeypatch):
    hidden, head, rows = torch.randn(5, 8), torch.randn(20, 8), torch.randn(2, 8, requires_grad=True)
    targets, weights, ids = torch.tensor([1, 4, 9, 4, 0]), torch.rand(5), torch.tensor([4, 7])
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        rows.grad = None
        sums = cross_entropy_sums(hidden, head, targets, weights, (ids, rows))
        sums.weighted_sum.backward()
        results.append([sums.losses, rows.grad])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("lora", "ema"),
    [
        ({"frozen": "nf4", "dropout": 0.1, "dora": True}, 0.9),
        ({"dropout": 0.3}, None),
        pytest.param({"dropout": 0.3}, 0.9, marks=pytest.mark.slow),
        pytest.param({"frozen": "nf4", "dropout": 0.1, "dora": True}, None, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder, tmp_path, lora, ema):
    training = {"keep_checkpoints": 9, "ema": ema}
    train_adapter(folder, tmp_path / "whole", lora, training=training)
    train_adapter(folder, tmp_path / "resumed", lora, training=training)
    shutil.rmtree(tmp_path / "resumed" / "step-0000012")
    (tmp_path / "resumed" / "result.json").unlink()
    train_adapter(folder, tmp_path / "resumed", lora, training=training, sft={"resume_from": str(tmp_path / "resumed")})
    for name in (ADAPTER, "optimizer.safetensors"):
        whole, resumed = (load_file(tmp_path / run / "step-0000012" / name) for run in ("whole", "resumed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole.keys() | resumed.keys())


def test_a_run_that_trains_an_adapter_does_not_resume_without_lora(folder, tmp_path):
    train_adapter(folder, tmp_path / "run")
    whole = settings(folder, tmp_path / "run", {"enabled": False}, sft={"resume_from": str(tmp_path / "run")})
    with pytest.raises(UserError, match=r"was started with lora.enabled=true \(now false\), which can't change"):
        train(whole)


def test_several_adapters_find_their_base_after_all_were_moved(folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / "old", dirs_exist_ok=True)
        train_adapter(
            tmp_path / "old",
            tmp_path / "old" / name,
            system={"seed": ord(name), "device": "cpu", "mixed_precision": False},
        )
    shutil.move(tmp_path / "old", tmp_path / "moved")
    models = [load_checkpoint(tmp_path / "moved" / name, "cpu")[0] for name in ("a", "b")]
    weights = [model.layers[0].mlp.up_proj.weight for model in models]
    assert not torch.equal(*weights)


def test_a_missing_or_different_base_is_reported(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    train_adapter(tmp_path / "old", tmp_path / "run")
    base = tmp_path / "old" / "base"
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"is an adapter for the base model .*base, which is missing; move it back"):
        load_checkpoint(tmp_path / "run", "cpu")
    save_checkpoint(base, lively_model(TOKENIZER.vocab_size, seed=5), TOKENIZER)
    with pytest.raises(UserError, match=r"base is not the base model that .* was trained with: its weights differ"):
        load_checkpoint(tmp_path / "run", "cpu")
    moved = shutil.copytree(folder / "base", tmp_path / "moved")
    merge(tmp_path / "run", tmp_path / "merged", moved)
    with pytest.raises(UserError, match=r"is not a base for the adapter .*: they differ in n_layer"):
        save_checkpoint(tmp_path / "other", lively_model(TOKENIZER.vocab_size, n_layer=3), TOKENIZER)
        merge(tmp_path / "run", tmp_path / "merged-2", tmp_path / "other")


def test_an_adapter_can_be_the_base_of_another(folder, tmp_path):
    train_adapter(folder, tmp_path / "first")
    second = {"pretrained_checkpoint": str(tmp_path / "first"), "learning_rate": 1e-12}
    train_adapter(folder, tmp_path / "second", sft=second)
    one, two = (load_checkpoint(tmp_path / name, "cpu")[0] for name in ("first", "second"))
    for name, weight in two.state_dict().items():
        torch.testing.assert_close(weight, one.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert newest_checkpoint(tmp_path) == tmp_path / "second"


def test_a_chat_model_needs_no_trained_rows(folder, tmp_path):
    train_adapter(folder, tmp_path / "chat", {"enabled": False})
    chat = {"pretrained_checkpoint": str(tmp_path / "chat")}
    train_adapter(folder, tmp_path / "run", sft=chat)
    (*_, last) = steps_of(tmp_path / "run")
    assert not any("token_adapter" in name for name in load_file(last / ADAPTER))
    assert json.loads((last / ADAPTER_CONFIG).read_text())["trainable_token_indices"] is None


def test_all_new_control_tokens_get_trained_rows(tmp_path):
    base_of("lacks the tokens", tmp_path / "base")
    write_chats(tmp_path / "chats.jsonl")
    train_adapter(tmp_path, tmp_path / "run")
    (*_, last) = steps_of(tmp_path / "run")
    tokenizer = ChatTokenizer.load(last)
    assert json.loads((last / "mini_chat_gpt.json").read_text())["adapter"]["token_ids"] == sorted(
        tokenizer.control[name] for name in ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
    )
    assert tokenizer.control[END_OF_TEXT] < load_model(last).config.vocab_size


def test_the_optimizer_has_no_state_for_the_base(folder):
    model = load_model(folder / "base")
    add_lora(model, LoraSettings(rank=2))
    config = tiny_config()
    engine = TrainStep(model, config, config.sft, pick_precision(False, torch.device("cpu")))
    source = chat_dataset(list(read_conversations(folder / "chats.jsonl")))
    engine.train_step(list(source.examples())[:4])
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = sum(t.numel() for name, t in engine.optimizer.state_tensors().items() if not name.endswith("/step"))
    assert moments == 2 * n_trained < 0.5 * model.n_parameters()


@pytest.mark.parametrize(
    ("frozen", "lora"),
    [
        ("nf4", {"dora": True}),
        pytest.param("float32", {"dora": False}, marks=pytest.mark.slow),
        pytest.param("float32", {"dora": True}, marks=pytest.mark.slow),
        pytest.param("nf4", {"dora": False}, marks=pytest.mark.slow),
    ],
)
def test_compiled_and_recomputed_adapters_compute_the_same(folder, lora, frozen):
    losses = []
    for way in ("plain", "compiled", "recomputed"):
        torch.manual_seed(0)
        model = load_model(folder / "base").train()
        add_lora(model, LoraSettings(rank=2, dropout=0.0, **lora), frozen, token_ids=[256])
        model.activation_checkpointing = way == "recomputed"
        if way == "compiled":
            compile_model(model, backend="aot_eager")
        sums = model(validation_batch(folder, TOKENIZER))
        sums.weighted_sum.backward()
        losses.append([sums.losses, *(p.grad for p in model.parameters() if p.requires_grad)])
    torch._dynamo.reset()
    for other in losses[1:]:
        torch.testing.assert_close(losses[0], other, rtol=1e-4, atol=1e-5)


def test_the_commands(folder, tmp_path):
    clone = make_clone(tmp_path)
    shutil.copytree(folder / "base", clone / "base")
    shutil.copy(folder / "chats.jsonl", clone / "chats.jsonl")
    quiet = ["wandb.enabled=false", "system.device=cpu", "system.threads=1", "system.mixed_precision=false"]
    brief = [
        *quiet,
        "sft.max_steps=4",
        "sft.pretrained_checkpoint=base",
        "chats.files=chats.jsonl",
        "lora.enabled=true",
    ]
    printed = run(clone, "sft", *brief, "sft.learning_rate=1e-2", "lora.frozen=nf4")
    assert "in an adapter; the rest is frozen in 4 bits" in printed
    assert "Merged: whole" in run(clone, "merge", "runs/sft", "whole")
    reply = ["--prompt", "Hi, 3", "--temperature", "0", "--max-new-tokens", "12"]
    replies = [run(clone, "generate", "--checkpoint", path, *reply).split("\n")[0] for path in ("whole", "runs/sft")]
    assert replies[0] == replies[1] != ""
    printed = one_sentence(run(clone, "merge", "whole", "again", code=2))
    assert "is already a complete model; there is nothing to merge" in printed
    printed = one_sentence(run(clone, "sft", *brief, "lora.targets=[query]", code=2))
    assert "lora.targets: 'query' matches no layer of this model; it has q_proj" in printed
    assert "memory" in run(clone, "doctor", *brief)
    assert not (clone / "runs" / "sft-2").exists()


def test_invalid_data_leave_no_run_folder(tmp_path):
    base_of("lacks the tokens", tmp_path / "base")
    (tmp_path / "chats.jsonl").write_text("{")
    with pytest.raises(UserError, match="it is not valid JSON"):
        train_adapter(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(folder, tmp_path):
    clone = make_clone(tmp_path)
    base_of("lacks the tokens", clone / "base")
    shutil.copy(folder / "chats.jsonl", clone / "chats.jsonl")
    brief = [
        "wandb.enabled=false", "system.device=cpu", "system.threads=1", "system.mixed_precision=false", "sft.max_steps=6",
        "sft.pretrained_checkpoint=base", "chats.files=chats.jsonl", "lora.enabled=true", "lora.dropout=0",
        "sft.learning_rate=1e-2", "training.examples_per_step=4", "training.batch_size=1",
    ]  # fmt: skip
    both = [*TORCHRUN, "--nproc_per_node=2", "--standalone", "mini_chat_gpt/sft_train.py", *brief]
    run(clone, *both, "sft.save_dir=pair")
    run(clone, "sft", *brief, "sft.save_dir=alone")
    pair, alone = (load_file(clone / name / "step-0000006" / ADAPTER) for name in ("pair", "alone"))
    assert pair.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(pair[name], tensor, rtol=1e-3, atol=1e-5)


def test_sharding_and_adapters_cannot_be_combined(folder, tmp_path):
    config = settings(folder, tmp_path / "run", system={"fsdp": True, "device": "cpu"})
    with pytest.raises(UserError, match=r"system.fsdp can't be combined with lora.enabled"):
        lora_setup.check(config)


def test_the_base_of_an_adapter_is_not_deleted_by_its_own_run(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_control_tokens()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "base" / f"step-000000{step}", tiny_model(tokenizer.vocab_size), tokenizer)
    chosen = tmp_path / "base" / "step-0000001"
    stored = open_checkpoint(chosen)
    base = lora_setup.Base(chosen, stored, stored.skeleton(), tokenizer, ())
    lora_setup.adapt(base, tiny_config(lora={"enabled": True}), tmp_path / "lora", ALONE, torch.device("cpu"))
    prune(tmp_path / "base", keep=1)
    assert [folder.name for folder in steps_of(tmp_path / "base")] == ["step-0000001", "step-0000003"]
    assert base.model.adapter.base == str(chosen)


@pytest.mark.parametrize("manifest", [None, "{", '{"files": {}}'])
def test_the_weights_of_a_base_without_a_readable_manifest_are_hashed(tmp_path, manifest):
    base = save_checkpoint(tmp_path / "base", tiny_model(TOKENIZER.vocab_size), TOKENIZER)
    expected = weights_hash(base)
    (base / "manifest.json").unlink()
    if manifest is not None:
        (base / "manifest.json").write_text(manifest)
    assert weights_hash(base) == expected == sha256_of(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    assert weights_hash(base) == ""

"""Hugging Face folders: `transformers` loads the same model, tokenizer and chat format, and nothing stays behind after an error."""

import json

import pytest
import torch
from foreign_llamas import VARIANTS, make_tokenizer, save_folder
from safetensors.torch import load_file, save_file
from tiny import chat_tokenizer, lively, tiny_config, tiny_tokenizer
from tiny_disk import tiny_disk

from mini_chat_gpt.chat_format import ChatFormat, Message
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.export import announce, command
from mini_chat_gpt.export.command import export_adapter, export_folder, main
from mini_chat_gpt.export.compare import three_turns
from mini_chat_gpt.export.proof_texts import CHAT
from mini_chat_gpt.generation.text import prompt_ids
from mini_chat_gpt.sft_train import train

ONE_OF_EACH = [
    *("Gemma 3", "Phi-3", "GPT-2"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("tied", "Mistral", "Qwen2", "Qwen3", "OLMo 2", "GPT-Neo")
    ),
]
BIG = {"max_position_embeddings": 512, "n_positions": 512}


@pytest.fixture
def model(tmp_path):
    """A checkpoint of our own chat model, with a default system message and padding rows."""
    tokenizer = chat_tokenizer("Be a 'good' one.\nAlways.")
    return save_checkpoint(tmp_path / "model", lively(tokenizer, padding=3, context_length=512), tokenizer)


def left(folder) -> set[str]:
    """Names in a folder, also hidden ones, without the record of verified checkpoints."""
    return {path.name for path in folder.iterdir()} - {".verified.json"}


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_transformers_loads_every_family(tmp_path, variant):
    from transformers import AutoModelForCausalLM

    changes = {key: BIG[key] for key in BIG if (key == "n_positions") == (variant == "GPT-2")}
    theirs = save_folder(tmp_path / "theirs", **VARIANTS[variant] | changes)
    lines = export_folder(tmp_path / "theirs", tmp_path / "out", shard_bytes=50_000).lines
    assert any("greedy replies of 3 turns" in line and line.endswith("equal") for line in lines)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(theirs)
    state = theirs.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path.name for path in shards for name in load_file(path)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for path in shards for t in load_file(path).values())


def test_transformers_gives_the_replies_of_our_chat(tmp_path, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_folder(model, tmp_path / "out")
    ours, tokenizer = load_checkpoint(model, "cpu")
    theirs, its = (
        one.from_pretrained(tmp_path / "out", local_files_only=True) for one in (AutoModelForCausalLM, AutoTokenizer)
    )
    messages = []
    for question, turn in zip(CHAT, three_turns(ours, tokenizer), strict=True):
        messages.append({"role": "user", "content": question})
        inputs = its.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert tuple(inputs["input_ids"][0].tolist()) == turn.prompt  # with the default system message
        reply = theirs.generate(**inputs, max_new_tokens=len(turn.reply))[0, len(turn.prompt) :]
        assert tuple(reply.tolist()) == turn.reply
        messages.append({"role": "assistant", "content": turn.text if turn.text.strip() else "Yes."})
    stops = theirs.generation_config.eos_token_id
    assert sorted(stops) == sorted(tokenizer.stop_ids)
    assert stops[0] == tokenizer.end_id


def test_the_default_system_message_gives_way_to_another(tmp_path, model):
    from transformers import AutoTokenizer

    export_folder(model, tmp_path / "out", check=False)
    _, tokenizer = load_checkpoint(model, "cpu")
    its = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [Message("system", "Another."), Message("user", "Hi")]
    chat = [{"role": one.role, "content": one.content} for one in messages]
    ids = its.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == prompt_ids(tokenizer, messages)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 0.0005), ("bfloat16", 0.004)], ids=["float16", "bfloat16"])
def test_a_precision(tmp_path, model, dtype, error, capsys):
    assert main([str(model), str(tmp_path / "out"), "--dtype", dtype]) == 0
    tensors, exact = load_file(tmp_path / "out" / "model.safetensors"), load_file(model / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    for name, tensor in exact.items():
        assert (tensors[name].float() - tensor).norm() <= error * tensor.norm()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    assert "bits per byte" in capsys.readouterr().out


def test_the_card_says_where_the_model_comes_from_and_what_was_checked(tmp_path):
    save_folder(tmp_path / "base", max_position_embeddings=512)
    card = "---\nlicense: apache-2.0\nbase_model: org/base\n---\n# A model\n"
    (tmp_path / "base" / "README.md").write_text(card)
    (tmp_path / "base" / "LICENSE").write_text("The license.")
    (tmp_path / "base" / "NOTICE.txt").write_text("The notice.")
    export_folder(tmp_path / "base", tmp_path / "out", "bfloat16")
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "license: 'apache-2.0'", "- 'org/base'", "is a conversion of `base`", "## Check", "1,000 hostile strings",
        "mini-chat-gpt export base out --dtype bfloat16", "from_pretrained('out')",
    ):  # fmt: skip
        assert part in text
    assert str(tmp_path) not in text
    assert (tmp_path / "out" / "LICENSE").read_text() == "The license."
    assert (tmp_path / "out" / "NOTICE.txt").read_text() == "The notice."
    assert not (tmp_path / "out" / "mini_chat_gpt.json").exists()


def test_a_run_of_an_adapter_is_exported_merged_and_apart(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path / "base", lively(tokenizer, context_length=512), tokenizer, {"job": "pretrain"})
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Tom ran."}]}] * 8
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sft = {
        "pretrained_checkpoint": str(tmp_path / "base"), "save_dir": str(tmp_path / "run"), "max_steps": 2,
        "learning_rate": 1e-2, "warmup_steps": 0, "save_interval": 2, "eval_interval": 2,
    }  # fmt: skip
    train(tiny_config(sft=sft, chats={"files": str(tmp_path / "chats.jsonl")}, lora={"enabled": True, "rank": 3}))
    export_folder(tmp_path / "run", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("- chats: chats.jsonl", "- sft.learning_rate: 0.01", "- lora.rank: 3", "| val_loss | "):
        assert part in text
    assert str(tmp_path) not in text
    lines = export_adapter(tmp_path / "run", tmp_path / "adapter").lines
    assert lines[0].endswith("its base is base.")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= left(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "base"
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ours, ids = load_checkpoint(tmp_path / "run", "cpu")[0], torch.arange(40)[None]
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4
    with pytest.raises(UserError, match="is an adapter in PEFT's form already"):
        export_adapter(tmp_path / "adapter", tmp_path / "again")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    for export in (export_folder, export_adapter):
        with pytest.raises(UserError, match=r"is an adapter for the base model .*, which is missing"):
            export(tmp_path / "run", tmp_path / "nothing")
    assert left(tmp_path) == {"adapter", "chats.jsonl", "elsewhere", "out", "run"}


def test_a_difference_leaves_nothing_behind_and_exits_with_1(tmp_path, model, monkeypatch, capsys):
    write = command.write_folder

    def swapped(draft, *arguments):
        write(draft, *arguments)
        tensors = load_file(draft / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].roll(1, 0).contiguous()
        save_file(tensors, draft / "model.safetensors")

    monkeypatch.setattr(command, "write_folder", swapped)
    assert main([str(model), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "was not written, because the check failed: the tensor layers.0.self_attn.q_proj.weight" in error
    assert left(tmp_path) == {"model"}


@pytest.mark.parametrize("kind", ["config", "template", "tokenizer", "stops"])
def test_a_difference_of_another_file_is_found(tmp_path, model, monkeypatch, capsys, kind):
    write = command.write_folder

    def changed(draft, *arguments):
        write(draft, *arguments)
        if kind == "config":
            edit(draft / "config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0')
        elif kind == "template":
            (draft / "chat_template.jinja").write_text(
                (draft / "chat_template.jinja").read_text().replace("good", "bad")
            )
        elif kind == "tokenizer":
            parts = json.loads((draft / "tokenizer.json").read_text())
            vocab = parts["model"]["vocab"]
            vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
            (draft / "tokenizer.json").write_text(json.dumps(parts))
        else:
            template = (draft / "chat_template.jinja").read_text()
            (draft / "chat_template.jinja").write_text(template.replace("'<|endoftext|>'", "'<|system|>'"))

    monkeypatch.setattr(command, "write_folder", changed)
    assert main([str(model), str(tmp_path / "out")]) == 1
    expected = {
        "config": "differs in rope_theta",
        "tokenizer": "the packaged text has other ids",
        "template": "has other ids",
    }
    assert expected.get(kind, "chat format") in capsys.readouterr().err
    assert left(tmp_path) == {"model"}


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_existing_path_is_not_overwritten(tmp_path, model):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        export_folder(model, tmp_path / "out")
    assert left(tmp_path / "out") == set()


def test_too_small_a_disk_is_named_before_anything_is_written(tmp_path, model):
    with tiny_disk(tmp_path / "disk", 200) as disk:
        with pytest.raises(UserError, match=r"needs .*, but the disk of .* has .* left; free some space, or choose"):
            export_folder(model, disk / "folders" / "out")
        assert left(disk) == set()


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, model, monkeypatch):
    monkeypatch.setattr(announce, "MARGIN", -(2**40))
    with tiny_disk(tmp_path / "disk", 100) as disk:
        with pytest.raises(UserError, match=r"Can't write .*: no space left on device\. Free some space"):
            export_folder(model, disk / "folders" / "out")
        assert left(disk) == set()


def test_values_that_float16_can_t_hold(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    large = lively(tokenizer)
    large.embed_tokens.weight.data[3, 3] = 1e5
    model = save_checkpoint(tmp_path / "model", large, tokenizer)
    with pytest.raises(UserError, match=r"embed_tokens.weight is not finite in float16; export in another precision"):
        export_folder(model, tmp_path / "out", "float16")
    assert left(tmp_path) == {"model"}


def test_an_architecture_that_transformers_lacks_is_refused(tmp_path):
    tokenizer = chat_tokenizer()
    model = save_checkpoint(tmp_path / "model", lively(tokenizer, activation="relu2"), tokenizer)
    with pytest.raises(UserError, match=r"transformers has no class for such a model .*activation='relu2'"):
        export_folder(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["m", "out", "--type", "q8_0"], "--type is for GGUF files"),
        (["m", "out.gguf", "--dtype", "float16"], "--dtype is for folders, .* a GGUF file has --type"),
        (["m", "out.gguf", "--adapter"], "--adapter is for folders"),
        (["m", "out/.gguf"], r"out/\.gguf has no name before \.gguf; write NAME\.gguf"),
        (["m", "out", "--shard-size", "big"], "--shard-size is 'big'; it must be a size such as 5GB"),
        (["m", "out", "--adapter", "--dtype", "float16"], "writes the adapter as it is"),
        (["m", "out"], "There is no checkpoint at m"),
    ],
)
def test_mistakes_on_the_command_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(argv)
    assert left(tmp_path) == set()


def test_a_vocabulary_larger_than_the_table(tmp_path):
    save_folder(tmp_path / "base")
    make_tokenizer(300).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"the tokenizer has 300 ids, but the model's table has 288 rows"):
        export_folder(tmp_path / "base", tmp_path / "out")
    assert left(tmp_path) == {"base"}

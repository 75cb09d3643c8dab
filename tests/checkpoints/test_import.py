"""Models of other projects, wherever a checkpoint is named: `import`, loading, chat, and training on top of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import torch
from foreign_llamas import CHATML, gguf_tokenizer, make_llama, make_tokenizer, save_folder, write_gguf
from safetensors.torch import load_file
from tiny import tiny_config

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.checkpoints.convert import main
from mini_chat_gpt.checkpoints.find import find_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, load_checkpoint, load_pair, load_tokenizer
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.sft_train import train

SMOLLM2 = Path(os.environ.get("MINI_CHAT_GPT_DATA", "/no/such/folder")) / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CARD = """---
license: apache-2.0
base_model: org/base
---
# A model
"""


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", torch.bfloat16, max_shard_size="60KB")
    (tmp_path / "model" / "README.md").write_text(CARD)
    (tmp_path / "model" / "LICENSE").write_text("The license.")
    return tmp_path / "model"


@pytest.fixture
def gguf_file(tmp_path):
    metadata = gguf_tokenizer(make_tokenizer()) | {"general.license": "mit", "general.name": "A model"}
    write_gguf(tmp_path / "m.gguf", make_llama(vocab_size=288), "Q8_0", metadata | padding(288))
    return tmp_path / "m.gguf"


def padding(size: int) -> dict:
    """The tokens of a GGUF must be as many as the rows of its table."""
    metadata = gguf_tokenizer(make_tokenizer())
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = [f"[PAD{n}]" for n in range(len(tokens), size)]
    return {"tokenizer.ggml.tokens": tokens + added, "tokenizer.ggml.token_type": types + [5] * len(added)}


def test_a_folder_becomes_one_that_transformers_loads(tmp_path, folder, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main([str(folder), str(tmp_path / "ours")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == theirs.dtype == torch.bfloat16
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    text = "Once upon a time <|im_end|> Sara had a 😀"
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(text) == AutoTokenizer.from_pretrained(folder)(text)
    printed = capsys.readouterr().out
    for part in (
        "Llama",
        "bfloat16",
        "context 64 tokens",
        "<|im_end|>",
        "license apache-2.0",
        "based on org/base",
        "LICENSE",
    ):
        assert part in printed
    assert printed.rstrip().endswith("lora.enabled=true")
    assert f"mini-chat-gpt chat --checkpoint {tmp_path / 'ours'}\n" in printed


def test_license_and_origin_travel_on(tmp_path, folder):
    main([str(folder), str(tmp_path / "ours")])
    main([str(tmp_path / "ours"), str(tmp_path / "again")])
    result = train(training(tmp_path, tmp_path / "again", lora={"enabled": True, "rank": 2}))
    for place in (tmp_path / "ours", tmp_path / "again", find_checkpoint(result.folder)):
        assert (place / "LICENSE").read_text() == "The license."
        card = (place / "README.md").read_text()
        assert card.startswith("---\nlicense: 'apache-2.0'\nbase_model:\n- 'org/base'\n")
        assert str(tmp_path) not in card
        find_checkpoint(place)  # its manifest has the files


def test_a_model_is_used_without_import_as_with_it(tmp_path, folder, gguf_file):
    for source in (folder, gguf_file):
        main([str(source), str(tmp_path / f"{source.name}.ours")])
        direct, imported = load_checkpoint(source, "cpu"), load_checkpoint(tmp_path / f"{source.name}.ours", "cpu")
        assert direct[1].fingerprint() == imported[1].fingerprint()
        assert direct[0].config == imported[0].config
        for one, other in zip(direct[0].parameters(), imported[0].parameters(), strict=True):
            assert one.dtype == other.dtype == torch.float32
            assert torch.equal(one, other)
        assert load_tokenizer(find_source(source))[1] == direct[0].config


def test_the_precision_is_kept_or_chosen(tmp_path, folder, gguf_file):
    for source, option, expected in [
        (folder, [], torch.bfloat16),
        (folder, ["--dtype", "float32"], torch.float32),
        (gguf_file, [], torch.float32),
        (gguf_file, ["--dtype", "bfloat16"], torch.bfloat16),
    ]:
        target = tmp_path / f"{source.name} as {expected}"
        main([str(source), str(target), *option])
        assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {expected}
        assert json.loads((target / "config.json").read_text())["torch_dtype"] == str(expected).removeprefix("torch.")
        assert {p.dtype for p in load_pair(target, dtype=None)[0].parameters()} == {expected}


def test_our_files_next_to_config_json_make_a_folder_ours(tmp_path, folder):
    main([str(folder), str(tmp_path / "ours")])
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        find_source(tmp_path / "ours")


def test_a_tokenizer_of_another_model_is_refused(tmp_path, folder):
    make_tokenizer(320).save_pretrained(folder)
    with pytest.raises(UserError, match=r"320 ids, but the model's table has 288 rows"):
        load_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_checkpoint(folder)


def test_a_far_smaller_tokenizer_is_refused(tmp_path):
    save_folder(tmp_path / "model", vocab_size=9000)
    with pytest.raises(UserError, match=r"280 ids, but the model's table has 9,000 rows"):
        load_checkpoint(tmp_path / "model")


def test_an_existing_target_and_a_needless_tokenizer_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="exists already"):
        main([str(folder), str(folder)])
    with pytest.raises(UserError, match="its own tokenizer; omit --tokenizer"):
        main([str(folder), str(tmp_path / "ours"), "--tokenizer", "gpt2"])


# Chat formats


CHAT = [
    Message("system", "Be brief."),
    Message("user", " Hi! 😀\n"),
    Message("assistant", "Hello."),
    Message("user", "Bye"),
]


def test_a_model_keeps_its_chat_format(tmp_path, folder, gguf_file):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for source in (folder, gguf_file):
        main([str(source), str(tmp_path / f"{source.name}.ours")])
        for path in (source, tmp_path / f"{source.name}.ours"):
            _, tokenizer = load_checkpoint(path, "cpu")
            assert render(CHAT, tokenizer, add_generation_prompt=True)[0] == expected
            assert tokenizer.control["<|im_end|>"] in tokenizer.stop_ids
        again = AutoTokenizer.from_pretrained(tmp_path / f"{source.name}.ours")
        assert again.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected


def test_a_limit_on_the_length_in_tokenizer_json_changes_nothing(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_checkpoint(folder, "cpu")[1].chat_format is not None


def change_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


@pytest.mark.parametrize(
    "inserted",
    ["{% for i in range(10**9) %}x{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ messages[0].content[0] }}"],
)
def test_a_template_that_can_not_be_used_is_named_and_replaced(folder, inserted):
    change_template(folder, CHATML + inserted)
    with pytest.warns(UserWarning, match="is not used: .*; plain ChatML takes its place"):
        _, tokenizer = load_checkpoint(folder, "cpu")
    assert tokenizer.decode(render(CHAT[:2], tokenizer)[0], control=True).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n"
    )
    change_template(folder, inserted)
    with pytest.warns(UserWarning, match="treated as one without a chat format"):
        assert load_checkpoint(folder, "cpu")[1].chat_format is None


def test_the_system_message_of_a_template_is_shown(tmp_path, folder, capsys):
    system = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Tom.<|im_end|>\n' }}{% endif %}"
    change_template(folder, system + CHATML)
    for source, target in [(folder, tmp_path / "ours"), (tmp_path / "ours", tmp_path / "again")]:
        main([str(source), str(target)])
        printed = capsys.readouterr().out
        assert "chat format: a template of its own" in printed
        assert "'You are Tom.'" in printed
        assert ("ten conversations have the ids of its own tokenizer" in printed) == (source == folder)


# Training


def training(tmp_path: Path, source: Path, **sections):
    chats = [
        {"messages": [{"role": "user", "content": f"Tom {n}?"}, {"role": "assistant", "content": "A cat."}]}
        for n in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    sft = {"pretrained_checkpoint": str(source), "save_dir": str(tmp_path / "run"), "max_steps": 3, "eval_interval": 3}
    batches = {"batch_size": 2, "examples_per_step": 2}
    return tiny_config(
        sft=sft,
        chats={"files": {str(tmp_path / "chats.jsonl"): 1.0}},
        training=batches,
        data={"num_workers": 0, "seq_len": 64},
        **sections,
    )


@pytest.mark.parametrize("frozen", ["auto", "bf16", "nf4"])
def test_an_adapter_trains_on_a_model_in_16_bits(tmp_path, folder, frozen):
    result = train(training(tmp_path, folder, lora={"enabled": True, "rank": 2, "frozen": frozen}))
    model, _ = load_pair(find_checkpoint(result.folder), adapted=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert {p.dtype for p in trained} == {torch.float32}
    assert model.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(model.embed_tokens.weight[:280], load_pair(folder)[0].embed_tokens.weight[:280])


def test_all_weights_are_trained_in_float32(tmp_path, folder):
    result = train(training(tmp_path, folder))
    model, _ = load_pair(find_checkpoint(result.folder), dtype=None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.origin.license == "apache-2.0"


def test_an_adapter_trains_on_a_gguf_file(tmp_path, gguf_file):
    result = train(training(tmp_path, gguf_file, lora={"enabled": True, "rank": 2}))
    assert load_checkpoint(result.folder, "cpu")[0].config.n_layer == 2


@pytest.mark.slow
def test_commands_accept_a_folder_and_a_gguf_file(tmp_path):
    folder, gguf_file, long = tmp_path / "model", tmp_path / "m.gguf", {"max_position_embeddings": 1024}
    save_folder(folder, torch.bfloat16, **long)
    metadata = gguf_tokenizer(make_tokenizer()) | padding(288)
    write_gguf(gguf_file, make_llama(vocab_size=288, **long), "Q8_0", metadata)
    training(tmp_path, folder)  # writes the chats
    (tmp_path / "prompts.yaml").write_text("compare: [{prompts: [Who is Tom?]}]\n")
    for source in (folder, gguf_file):
        base = f"sft.pretrained_checkpoint={source}"
        printed = commands.run(tmp_path, "inspect", base, "chats.files=chats.jsonl")
        assert f"Tokenizer and context: those of {source}." in printed
        assert "<|im_start|>" in printed
        commands.run(tmp_path, "generate", "--checkpoint", str(source), "--prompt", "Hello", "--max-new-tokens", "3")
    compared = ["--checkpoint", str(folder), "--against", str(gguf_file), "--prompts", "prompts.yaml", "--n", "1"]
    commands.run(tmp_path, "evaluate", *compared, "--kinds", "main_character")


# Memory

MEASURE = """
import re, sys, threading, time
from pathlib import Path
import gguf, tokenizers, torch
from mini_chat_gpt.checkpoints.convert import convert
from mini_chat_gpt.checkpoints.load import load_pair, open_pair
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.lora import add_lora

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def watch():
    while not done:
        peaks.append(anonymous())
        time.sleep(0.001)

source, dtype, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
done, peaks, before = False, [], anonymous()
thread = threading.Thread(target=watch)
thread.start()
if target.startswith("lora "):
    stored, _ = open_pair(source, dtype=None)
    add_lora(stored.load(target[5:]), LoraSettings(rank=2), target[5:])
elif target:
    convert(source, Path(target), None, None if dtype == "None" else dtype)
else:
    load_pair(source, dtype=None if dtype == "None" else getattr(torch, dtype))
done = True
thread.join()
print(max(peaks) - before)
"""
WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 4096, "head_dim": 64}


def growth(source: Path, dtype: str, target: str = "") -> int:
    """Peak growth of anonymous memory in bytes while a new process loads a model, or imports it into `target`.

    With "lora FROZEN" as the target it becomes the frozen base of an adapter.
    """
    command = [sys.executable, "-c", MEASURE, str(source), dtype, target]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("dtype", "size"), [("None", 4), ("bfloat16", 2)])
def test_loading_takes_the_model_and_its_largest_tensor(tmp_path, dtype, size):
    """The slack of 70 MB is Python's and the allocator's; the model has 200 MB in float32."""
    model = make_llama(**WIDE)
    n, largest = sum(p.numel() for p in model.parameters()), WIDE["vocab_size"] * WIDE["hidden_size"]
    metadata = gguf_tokenizer(make_tokenizer()) | padding(4096)
    write_gguf(tmp_path / "m.gguf", model, "Q8_0", metadata)
    limit = size * (n + largest) + 70e6
    assert growth(tmp_path / "m.gguf", dtype) < limit
    assert growth(tmp_path / "m.gguf", dtype, str(tmp_path / "ours")) < limit
    assert growth(tmp_path / "ours", "None") < 40e6  # the file itself


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("frozen", "size"), [("bf16", 2), ("nf4", 4.2 / 8)])
def test_a_frozen_base_takes_its_own_form_and_its_largest_tensor(tmp_path, frozen, size):
    """The slack of 40 MB is Python's and the allocator's; the model has 200 MB in float32."""
    model, table = save_folder(tmp_path / "m", torch.bfloat16, **WIDE), WIDE["vocab_size"] * WIDE["hidden_size"]
    metadata = gguf_tokenizer(make_tokenizer()) | padding(4096)
    write_gguf(tmp_path / "m.gguf", model.float(), "Q8_0", metadata)
    n = sum(p.numel() for p in model.parameters())
    limit = size * (n - 2 * table) + 4 * 2 * table + 4 * table + 40e6
    for source in (tmp_path / "m", tmp_path / "m.gguf"):
        assert growth(source, "None", f"lora {frozen}") < limit


# A real model


@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"{SMOLLM2} is not there")
def test_smollm2_is_imported_and_answers(tmp_path, capsys):
    from mini_chat_gpt.generation import generate

    main([str(SMOLLM2), str(tmp_path / "ours")])
    printed = capsys.readouterr().out
    for part in ("Llama, 134,515,008 parameters in float32", "license apache-2.0", "named SmolLM", "<|im_end|>"):
        assert part in printed
    model, tokenizer = load_checkpoint(tmp_path / "ours", "cpu")
    question = [Message("user", "What is the capital of Japan?")]
    [reply] = generate(model, tokenizer, [question], max_new_tokens=20, temperature=0.0)
    assert reply == "The capital of Japan is Tokyo."

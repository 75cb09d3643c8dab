"""The Python names that scripts build on: each import line works as documented, in a process that has imported nothing else."""

import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from commands import BRIEF, ROOT, environment
from tiny import STORIES, lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint

RECORDS = "\n<|endoftext|>\n".join(
    f"Features: MoralValue\nWords: cat, ball, sad\nSummary: Tom is sad.\nRandom sentence: He cried.\nStory: {story}"
    for story in STORIES * 8
)
LINES = {
    "load_checkpoint": """
        from mini_chat_gpt import load_checkpoint
        model, tokenizer = load_checkpoint("chat", device="auto")
        assert tokenizer.chat_format is not None
    """,
    "train": """
        from mini_chat_gpt import train
        from mini_chat_gpt.config_file import load_config
        steps = []
        config = load_config(None, SETTINGS)
        result = train(config, callbacks=[lambda trainer, step, metrics: steps.append(step)])
        assert result.steps == 2 and result.folder.is_dir() and max(steps) == 2
        assert load_checkpoint(result.folder, device="cpu")
    """,
    "model": """
        import torch
        from mini_chat_gpt.model import GPT, GPTConfig
        config = GPTConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=16, context_length=32)
        assert GPT(config)(torch.arange(6).reshape(2, 3)).shape == (2, 3, 50)
    """,
    "tokenizer": """
        from mini_chat_gpt.tokenizer import ChatTokenizer
        tokenizer = ChatTokenizer.train(["Tom had a red ball."] * 9, vocab_size=300)
        assert tokenizer.decode(tokenizer.encode("Tom had a ball.")) == "Tom had a ball."
        tokenizer.save("tokenizer")
        assert ChatTokenizer.load("tokenizer").encode("red") == tokenizer.encode("red")
    """,
    "chat_format": """
        from mini_chat_gpt.chat_format import Message, render
        from mini_chat_gpt.tokenizer import ChatTokenizer
        ids, loss_mask = render([Message("user", "Hi"), Message("assistant", "Hello")], ChatTokenizer.load("chat"))
        assert len(ids) == len(loss_mask) and any(loss_mask) and not all(loss_mask)
    """,
    "records and tasks": """
        from mini_chat_gpt.sft_dataloader import generate_tasks, read_records
        record = next(iter(read_records("TinyStories/TinyStoriesInstruct-train.txt")))
        assert record.story and record.words and record.summary and record.random_sentence and record.features
        tasks = generate_tasks(record, seed=1)
        assert tasks and all(task.kind and task.prompt and task.target for task in tasks)
    """,
    "conversations": """
        from mini_chat_gpt.conversations import read_conversations
        (conversation,) = read_conversations("chats.jsonl")
    """,
    "generation": """
        from mini_chat_gpt import load_checkpoint
        from mini_chat_gpt.generation import generate, stream
        model, tokenizer = load_checkpoint("chat", device="cpu")
        texts = generate(model, tokenizer, ["Hi", "Tom"], max_new_tokens=4, temperature=0.0)
        assert len(texts) == 2 and "".join(stream(model, tokenizer, "Hi", max_new_tokens=4, temperature=0.0)) == texts[0]
    """,
    "capabilities": """
        from mini_chat_gpt import load_checkpoint
        from mini_chat_gpt.sft_generate import test_sft_capabilities
        results = test_sft_capabilities(*load_checkpoint("chat", device="cpu"), data="TinyStories", n=1)
        assert all({"n", "baseline"} <= set(row) for row in results.values())
    """,
}
LINES["train"] = LINES["load_checkpoint"] + LINES["train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model, a chat model, Instruct records and a file of chats."""
    folder = tmp_path_factory.mktemp("api")
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size, context_length=384)
    save_checkpoint(folder / "base", model, tokenizer)
    tokenizer.chat_format = ChatFormat()
    save_checkpoint(folder / "chat", model, tokenizer)
    (folder / "TinyStories").mkdir()
    for split in ("train", "valid"):
        (folder / "TinyStories" / f"TinyStoriesInstruct-{split}.txt").write_text(RECORDS, encoding="utf-8")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_python_surface_works(folder, name):
    settings = [
        *BRIEF,
        "sft.pretrained_checkpoint=base",
        "sft.max_steps=2",
        "sft.eval_interval=2",
        "wandb.enabled=false",
    ]
    lines = [line.removeprefix(" " * 8) for line in LINES[name].splitlines()]
    code = "\n".join([f"SETTINGS = {settings!r}", *lines])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          env=environment(PYTHONPATH=str(ROOT)))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_signatures_are_the_documented_ones():
    from mini_chat_gpt import load_checkpoint, train
    from mini_chat_gpt.generation import generate
    from mini_chat_gpt.sft_generate import test_sft_capabilities

    assert list(signature(load_checkpoint).parameters)[:2] == ["path", "device"]
    assert list(signature(train).parameters) == ["config", "callbacks"]
    assert list(signature(test_sft_capabilities).parameters)[:3] == ["model", "tokenizer", "data"]
    assert list(signature(generate).parameters)[:5] == [
        "model",
        "tokenizer",
        "prompts",
        "max_new_tokens",
        "temperature",
    ]

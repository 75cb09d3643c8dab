"""A small recipe with every part, for tests: a tiny chat model as its base, colors to sort into labels."""

import json
from pathlib import Path
from typing import Any

import yaml
from commands import make_clone
from tiny import lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint

README = """# Sort words

## The problem
Words.

## The base model
Tiny.

## The data
Made up.

## The method
All weights.

## How it is judged
By count.

## What is difficult
Nothing.

## Results
None.
"""
WORDS = ["red", "blue", "green", "pink", "gray", "one", "two", "three", "four", "five"]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def chat(prompt: str, reply: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}], **more}


def label_of(word: str) -> str:
    return "color" if WORDS.index(word) < 5 else "number"


def write_recipe(folder: Path, context: int = 64, **prompts: Any) -> Path:
    """A recipe without a base in its folder; `prompts` changes its prompts.yaml."""
    folder.mkdir(parents=True)
    write_jsonl(
        folder / "train.jsonl",
        [chat(f"The word {word} is item a{n}", label_of(word)) for word in WORDS for n in range(4)],
    )
    held_out = [
        chat(f"The word {word} is item b{n}", label_of(word), even=n % 2 == 0) for word in WORDS for n in range(2)
    ]
    write_jsonl(folder / "held_out.jsonl", held_out)
    part = {"file": "held_out.jsonl", "shows": "kinds of words", "labels": ["color", "number"], "max_new_tokens": 8}
    document = {"compare": [{"prompts": ["pink d"], "contains": "color"}], "held_out": [part], **prompts}
    (folder / "prompts.yaml").write_text(yaml.safe_dump(document))
    settings = {
        "sft": {"pretrained_checkpoint": "model", "save_dir": f"runs/{folder.name}", "max_steps": 2},
        "chats": {"files": "train.jsonl", "valid_share": 0},
        "data": {"seq_len": context},
        "system": {"device": "cpu", "threads": 1, "mixed_precision": False},
        "wandb": {"enabled": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "README.md").write_text(README)
    return folder


def write_model(folder: Path, **changes: Any) -> Path:
    """A tiny random chat model."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    save_checkpoint(folder, lively_model(tokenizer.vocab_size, **changes), tokenizer, {"job": "sft"})
    return folder


def make_recipe_clone(folder: Path) -> Path:
    """A clone with the model and the recipe `words`."""
    make_clone(folder)
    write_model(folder / "model")
    write_recipe(folder / "recipes" / "words")
    return folder

"""The smallest real things the tests train with: a tokenizer, a model, a source of examples."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.config import Config, GPTConfig
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TEXTS = [
    "Once upon a time there was a little cat named Tom.",
    "Sara had a red ball and she was happy.",
    "“Hi!” said Tom. 😀",
]

STORIES = [
    "Tom was sad. He cried because he lost his red ball. The moral is to share.",
    "Sue had a cat. She was glad because the cat purred. Be kind to animals.",
    "Tom ran. He fell because he did not look. Look where you go.",
]

PROMPTS = ["Once", "Sara had a red ball and she was happy. Then", "", "little cat", "Tom 😀", "Once upon a time there"]
GREEDY = Sampling(temperature=0, max_new_tokens=20)


def about(kind: str, target: str, answer: str | None = None, story: str = STORIES[0]) -> Task:
    prompt = f"A question? {story}"
    return Task(kind, prompt, target, (12, len(prompt)), answer)


def writing(*required: str, target: str = "A story.") -> Task:
    return Task("words", f"Write a story with {', '.join(required)}", target, None, required=required)


def tiny_tokenizer(vocab_size: int = 300) -> ChatTokenizer:
    return ChatTokenizer.train(iter(TEXTS * 20), vocab_size)


def chat_tokenizer(default_system: str | None = None) -> ChatTokenizer:
    """The tiny tokenizer of a model that has learned the chat format."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system)
    return tokenizer


def tiny_model(vocab_size: int, seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    fields = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "context_length": 64}
    return GPT(GPTConfig(vocab_size=vocab_size, **fields | changes))


def lively_model(vocab_size: int, seed: int = 0, **changes) -> GPT:
    """Random weights far from the initialization, so that its replies vary."""
    model = tiny_model(vocab_size, seed, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def chain(tokenizer: ChatTokenizer, chains: list[list[int]], context: int) -> GPT:
    """A model that generates the next id of a chain, independent of earlier ids."""
    size = -(-tokenizer.vocab_size // 8) * 8
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        n_layer=1,
        n_head=4,
        n_embd=size,
        intermediate_size=8,
        context_length=context,
        tie_embeddings=False,
    )
    model = GPT(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()
        model.embed_tokens.weight.copy_(torch.eye(size)[: tokenizer.vocab_size])
        for ids in chains:
            for now, then in pairwise(ids):
                model.lm_head.weight[then, now] = 10.0
    return model


def lively(tokenizer: ChatTokenizer, padding: int = 0, seed: int = 0, **changes) -> GPT:
    """A `lively_model` for a tokenizer, with `padding` rows more than it has tokens."""
    return lively_model(tokenizer.vocab_size + padding, seed, **changes)


def tiny_config(**sections) -> Config:
    system = {"mixed_precision": False, "device": "cpu", "compile": False}
    quiet = {"wandb": {"enabled": False}, "system": system, "data": {"num_workers": 0}}
    return parse_config(quiet | sections, "the test")


class CountingDataset:
    """Examples that depend on the index alone: the sequence index, index+1, … modulo 50."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(index)
        length = int(rng.integers(3, 20))
        ids = (np.arange(length) + index) % 50
        trained = rng.random(length) < 0.6
        trained[-1] = True
        return Example(ids.astype(np.int32), trained, weight=1.0 + index % 3, kind="ab"[index % 2])


def write_records(folder: Path) -> None:
    """A TinyStories-Instruct data set."""
    folder.mkdir()
    records = [f"Summary: Day {i}.\nFeatures: Dialogue\nStory: \n\n{STORIES[i % 3]} It was day {i}." for i in range(40)]
    for split in ("train", "valid"):
        text = "\n<|endoftext|>\n".join(records)
        (folder / f"TinyStoriesInstruct-{split}.txt").write_text(text, encoding="utf-8")

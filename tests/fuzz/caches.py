"""Mutants of what the program stores to save time, or on request: tokenized texts, record indexes, saved chats."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.mutations import BYTES, Change, elsewhere
from fuzz.oracle import Target
from tiny import STORIES, tiny_tokenizer

from mini_chat_gpt.chat.saved_chat import read_chat
from mini_chat_gpt.data.text_dataset import tokenize_file
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.tinystories.record_index import RecordIndex
from mini_chat_gpt.tinystories.records import stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TEXT = Path("text.txt")


def tokens() -> Any:
    """The documents of a text as ids."""
    file = tokenize_file(TEXT, stories(TEXT), TOKENIZER)
    return [np.array(file[number]) for number in range(len(file))]


TOKENIZER: ChatTokenizer = tiny_tokenizer()


def naive_tokens() -> Any:
    """The documents in the cache, if its parts fit together."""
    (cache,) = Path().glob(".tokens-*")
    offsets = np.load(cache / "offsets.npy")
    ids = np.fromfile(cache / "ids.bin", json.loads((cache / "meta.json").read_bytes())["dtype"])
    if (
        offsets.ndim != 1
        or offsets[0] != 0
        or offsets[-1] != len(ids)
        or (np.diff(offsets) < 1).any()
        or (ids >= 300).any()
    ):
        raise ValueError("does not fit")
    return [ids[start:end] for start, end in pairwise(offsets)]


def index() -> Any:
    """The records of a file through its index."""
    records = RecordIndex("records.txt")
    return {"records": [asdict(records[number]) for number in range(len(records))], "bits": np.array(records.bits)}


def naive_index() -> Any:
    """The records at the places that the cached index has."""
    from mini_chat_gpt.tinystories.records import parse_record

    data, arrays = Path("records.txt").read_bytes(), np.load("records.txt.index.npz")
    texts = []
    for offset, length in zip(arrays["offsets"], arrays["lengths"], strict=True):
        if offset < 0 or offset + length > len(data):
            raise ValueError("outside of the file")
        texts.append(data[offset : offset + length].decode())
    if len(arrays["bits"]) != len(texts):
        raise ValueError("another number of bits")
    return {"records": [asdict(parse_record(text)) for text in texts], "bits": arrays["bits"]}


def chat() -> Any:
    messages, sampling = read_chat(Path("chat.json"), Sampling())
    return {"messages": [[message.role, message.content] for message in messages], "settings": asdict(sampling)}


def naive_chat() -> Any:
    """Messages and settings of a saved chat. A lone surrogate is U+FFFD."""
    content = json.loads(Path("chat.json").read_text(encoding="utf-8-sig"))
    messages = [
        [message["role"], message["content"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")]
        for message in content["messages"]
    ]
    return {"messages": messages, "settings": asdict(Sampling()) | content.get("settings", {})}


def _arrays(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Another array in an .npy or .npz file, saved again."""
    loaded: Any = np.load(io.BytesIO(data))
    arrays = dict(loaded) if hasattr(loaded, "files") else {"array": loaded}
    name = rng.choice([*arrays])
    array = arrays[name]
    what = rng.choice(
        ("value", "value", "value", "cut", "empty", "float", "2-D", "reversed", "removed", "object", "zeros", "text")
    )
    if what == "value" and array.size and array.dtype.kind in "iu":
        array, at = array.copy().reshape(-1), rng.randrange(array.size)
        value = rng.choice((0, 1, -1, 2**40, 10**9, -(10**12), int(array[at]) + 1, int(array[at]) - 1))
        array[at] = np.array(value).astype(array.dtype)
        what = f"value {at} is {array[at]}"
    changed = {"cut": array[:-1] if array.ndim else array, "empty": array[:0] if array.ndim else array, "float": array}
    if array.dtype.kind in "iu":
        changed["float"] = array.astype(np.float64)
    changed |= {
        "2-D": array.reshape(1, -1),
        "reversed": array[::-1] if array.ndim else array,
        "zeros": np.zeros_like(array),
    }
    changed |= {"object": np.array([{}, None]), "text": np.array(["x"])}
    arrays[name] = changed.get(what, array)
    if what == "removed":
        del arrays[name]
    file = io.BytesIO()
    if hasattr(loaded, "files"):
        np.savez(file, **arrays)
    else:
        np.save(file, arrays.get("array", np.zeros(0)))
    return file.getvalue(), f"{name} {what}"


def targets(folder: Path) -> list[Target]:
    fixture = folder / "caches"
    fixture.mkdir()
    (fixture / TEXT).write_text("\n<|endoftext|>\n".join(f"{STORIES[i % 3]} Day {i}." for i in range(12)))
    write_sample(folder / "sample", n_train=20, n_valid=2)
    text = (folder / "sample" / "TinyStoriesInstruct-train.txt").read_bytes()
    (fixture / "records.txt").write_bytes(text)
    messages = [
        {"role": role, "content": f"Text {i} 😀"} for i, role in enumerate(["system", *["user", "assistant"] * 2])
    ]
    settings = asdict(Sampling(seed=3, top_k=4))
    (fixture / "chat.json").write_text(json.dumps({"messages": messages, "settings": settings}))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    changes: dict[str, tuple[Change, ...]] = {
        ".npz": (*[_arrays] * 5, *BYTES, elsewhere),
        ".npy": (*[_arrays] * 5, *BYTES, elsewhere),
    }
    changes |= {".bin": (*BYTES, elsewhere)}
    cached = [f".tokens-*/{name}" for name in ("ids.bin", "offsets.npy", "meta.json", "manifest.json")]
    return [
        Target("tokens", fixture, cached, tokens, naive_tokens, ("ids.bin",), changes=changes, warm=True, weight=2),
        Target("record index", fixture, ["records.txt.index.npz"], index, naive_index, changes=changes, warm=True),
        Target("saved chat", fixture, [Path("chat.json")], chat, naive_chat, weight=2),
    ]

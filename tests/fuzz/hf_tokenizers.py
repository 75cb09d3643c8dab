"""Mutants of the tokenizer files of models from elsewhere: tokenizer.json, and what the files next to it say about control tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from foreign_tokenizers import TEXTS, source
from fuzz.oracle import Target
from tokenizers import Tokenizer

from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder


def _value(tokenizer: ChatTokenizer) -> dict[str, Any]:
    control = {name: i for name, i in tokenizer.control.items() if not name.startswith("<|reserved_")}
    ids = [tokenizer.encode(text) for text in TEXTS]
    return {"control": control, "ids": ids, "stops": sorted(tokenizer.stop_ids)}


def imported() -> Any:
    return _value(tokenizer_from_folder("model"))


def saved() -> Any:
    return _value(ChatTokenizer.load("saved"))


def _optional(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else {}


def naive(folder: str) -> Any:
    """Ids by the library, from the same file without its control tokens and the merges that lead to them."""
    parts = json.loads(Path(folder, "tokenizer.json").read_bytes())
    config = _optional(Path(folder, "tokenizer_config.json"))
    library = Tokenizer.from_str(json.dumps(parts))
    model, names = parts["model"], [token["content"] for token in parts["added_tokens"]]
    names = [name for name in names if name.strip()]
    eos = config.get("eos_token")
    if isinstance(eos, str) and eos not in names:
        names.append(eos)
    bos = config.get("bos_token")
    if isinstance(bos, str) and bos not in names:
        names.append(bos)
    model["vocab"] = {name: token_id for name, token_id in model["vocab"].items() if name not in names}
    model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & {*names}]
    model["unk_token"] = None
    content = Tokenizer.from_str(json.dumps(parts | {"added_tokens": []}))
    content.no_truncation()
    content.no_padding()
    control = {name: library.token_to_id(name) for name in names}
    known = {control[name] for name in (eos, "<|endoftext|>", "<s>", "</s>") if name in control}
    ids = _optional(Path(folder, "generation_config.json")).get("eos_token_id")
    known |= {*(ids if isinstance(ids, list) else [] if ids is None else [ids])} & {*control.values()}
    return {
        "control": control,
        "ids": [content.encode(text, add_special_tokens=False).ids for text in TEXTS],
        "stops": sorted(known),
    }


def targets(folder: Path) -> list[Target]:
    made = []
    for kind in ("Qwen2", "Llama 3", "TinyLlama"):
        model = folder / kind / "model"
        model.mkdir(parents=True)
        (model / "tokenizer.json").write_bytes(source(kind))
        (model / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": "{{ messages }}"})
        )
        (model / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [Tokenizer.from_str(source(kind).decode()).token_to_id("<tool>")]})
        )
        tokenizer_from_folder(model).save(folder / kind / "saved")
        files = [path.relative_to(folder / kind) for path in sorted(model.iterdir())]
        read: Callable[[], Any] = partial(naive, "model")
        made.append(Target(f"tokenizer.json of {kind}", folder / kind, files, imported, read, weight=2))
        parts = [path.relative_to(folder / kind) for path in sorted((folder / kind / "saved").iterdir())]
        made.append(Target(f"saved tokenizer of {kind}", folder / kind, parts, saved))
    return made

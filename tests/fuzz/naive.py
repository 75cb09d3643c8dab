"""A second, naive reader of checkpoints: json, struct and numpy, nothing of the package."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.compare import Near
from fuzz.mutations import read_safetensors

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1", "I8": "i1"}


def is_whole(folder: Path) -> bool:
    """Whether all files have the hashes of the manifest."""
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == files[name]["sha256"] for name in files)


def tensors_in(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of the shards in the folder of this name."""
    if path.with_suffix("").is_dir():
        return _joined([file.read_bytes() for file in sorted(path.with_suffix("").glob("*.safetensors"))])
    entries, _ = read_safetensors(path.read_bytes())
    return {name: _array(*entry) for name, entry in entries.items()}


def _joined(shards: list[bytes]) -> dict[str, np.ndarray]:
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for data in shards:
        entries, metadata = read_safetensors(data)
        places = json.loads(metadata["DCP_SHARDING_INFO"])
        for name, entry in entries.items():
            offsets = places[name]["saved_offsets"]
            assert not any(offsets[1:])
            assert len(offsets) == len(entry[1])
            parts.setdefault(name, []).append((offsets[0] if offsets else 0, _array(*entry)))
    tensors = {}
    for name, chunks in parts.items():
        chunks.sort(key=lambda chunk: chunk[0])
        starts, n_rows = [start for start, _ in chunks], [len(array) if array.ndim else 1 for _, array in chunks]
        assert starts == [sum(n_rows[:i]) for i in range(len(starts))]
        tensors[name] = np.concatenate([array for _, array in chunks]) if chunks[0][1].ndim else chunks[0][1]
    return tensors


def _array(*entry: Any) -> np.ndarray:
    dtype, shape, data = entry
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """The parts of a saved tokenizer."""
    meta = json.loads((folder / "tokenizer_meta.json").read_bytes())
    pieces: dict[int, bytes] = {}
    for line in (folder / "tokenizer.tiktoken").read_bytes().splitlines():
        if line.strip():
            piece, rank = line.split()
            pieces[int(rank)] = base64.b64decode(piece, validate=True)
    assert max(pieces) < 10**6
    chat_format = meta["chat_format"]
    return {
        "kind": meta["kind"],
        "pattern": meta["pattern"],
        "bos_id": meta["bos_id"],
        "control": meta["control"],
        "system": chat_format and chat_format["default_system"],
        "chat": chat_format is not None,
        "pieces": [pieces.get(i) for i in range(max(pieces) + 1)],
    }


def read_model(folder: Path) -> dict[str, Any]:
    """Config, weights and tokenizer of a checkpoint folder; an adapter is merged into its base."""
    meta = json.loads((folder / "mini_chat_gpt.json").read_bytes())
    weights = _adapted(folder, meta) if "adapter" in meta else _own_weights(folder, meta)
    return {"config": meta["gpt_config"], "weights": weights, "tokenizer": read_tokenizer(folder)}


def _own_weights(folder: Path, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    weights = {name.removeprefix("model."): array for name, array in tensors_in(folder / "model.safetensors").items()}
    if meta["gpt_config"]["tie_embeddings"]:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    return weights


def _adapted(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """W + scaling · B·A, and the trained rows of the token table."""
    adapter = meta["adapter"]
    settings = adapter["settings"]
    base = folder / adapter["base_from_here"]
    if (
        not is_whole(base)
        or hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() != adapter["base_hash"]
    ):
        raise ValueError("another base")
    weights: dict[str, Any] = dict(_own_weights(base, json.loads((base / "mini_chat_gpt.json").read_bytes())))
    if json.loads((base / "mini_chat_gpt.json").read_bytes())["gpt_config"] != meta["gpt_config"]:
        raise ValueError("another model")
    trained = tensors_in(folder / "adapter_model.safetensors")
    rank = settings["rank"]
    scaling = settings["alpha"] / (math.sqrt(rank) if settings["rslora"] else rank)
    changed = {}
    for name in adapter["layers"]:
        a, b = (trained.pop(f"base_model.model.model.{name}.lora_{part}.weight") for part in "AB")
        if a.shape[0] != rank:
            raise ValueError("another rank")
        product = b.astype(np.float64) @ a.astype(np.float64)
        changed[f"{name}.weight"] = Near(weights[f"{name}.weight"] + scaling * product)
    rows = trained.pop("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", None)
    if rows is not None:
        table = weights["embed_tokens.weight"].copy()
        table[adapter["token_ids"]] = rows
        changed["embed_tokens.weight"] = changed["lm_head.weight"] = table
    if trained:
        raise ValueError("more tensors")
    return weights | changed

"""Mutants of models of other projects: headers of GGUF files, config.json, and weights in shards with their index."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from foreign_llamas import gguf_name, halves_again, make_llama, write_gguf
from fuzz import families
from fuzz.checkpoints import as_array
from fuzz.mutations import BYTES, elsewhere
from fuzz.naive import tensors_in
from fuzz.oracle import Target

from mini_chat_gpt.checkpoints.foreign import read_gguf_model, read_hf_model
from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.hf import to_hf_state
from mini_chat_gpt.model import GPT

INDEX = "model.safetensors.index.json"
HEADER_BYTES = 2500
"""About the size of the fixture's header."""


def value_of(model: GPT) -> Any:
    """Sizes and weights of a model, the weights by their names in `transformers`. The model is used once."""
    config = model.config
    with torch.no_grad():
        model(torch.arange(min(20, config.context_length))[None] % config.vocab_size)
    sizes = {
        "context": config.context_length,
        "layers": config.n_layer,
        "heads": (config.n_head, config.kv_heads, config.head_size),
        "eps": config.norm_eps,
        "theta": config.rope_theta,
        "scaling": config.rope_scaling,
    }
    state = to_hf_state(model.state_dict(), config)
    return {"sizes": sizes, "weights": {name: as_array(tensor.float()) for name, tensor in state.items()}}


# GGUF


def gguf() -> Any:
    return value_of(read_gguf_model(GGUFFile(Path("m.gguf"))))


def naive_gguf() -> Any:
    """The same by the library's own reader, which the program doesn't use."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader("m.gguf")
    metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}

    def shortest(value: float) -> float:
        return float(str(np.float32(value)))

    heads = metadata["llama.attention.head_count"]
    kv_heads = metadata.get("llama.attention.head_count_kv", heads)
    width = metadata["llama.embedding_length"]
    head_dim = metadata.get("llama.attention.key_length", width // heads)
    sizes = {
        "context": metadata["llama.context_length"],
        "layers": metadata["llama.block_count"],
        "heads": (heads, kv_heads, head_dim),
        "eps": shortest(metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5)),
        "theta": shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "scaling": None,
    }
    names = {gguf_name(name): name for name in make_llama().state_dict()}
    weights = {}
    for tensor in reader.tensors:
        name = names[tensor.name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape.tolist()[::-1])
        rows = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        weights[name] = halves_again(values, rows) if rows else values
    return {"sizes": sizes, "weights": weights}


def _change_header(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Another number, length, type or name somewhere in the header."""
    at = rng.choice((4, 8, 16, 24, rng.randrange(24, HEADER_BYTES), rng.randrange(24, HEADER_BYTES)))
    form = rng.choice("BIQ")
    size = struct.calcsize("<" + form)
    (old,) = struct.unpack_from("<" + form, data, at)
    new = rng.choice((0, 1, 2, 8, 9, 13, old + 1, old - 1, old * 2, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
    new &= 2 ** (8 * size) - 1
    return data[:at] + struct.pack("<" + form, new) + data[at + size :], f"{new} instead of {old} at {at}"


def _swap_names(data: bytes, rng: Random) -> tuple[bytes, str]:
    """One name replaced by another of the same length, at one place."""
    names = [b"attn_q", b"attn_k", b"attn_v", b"ffn_up", b"blk.0.", b"blk.1.", b"output", b"llama."]
    old, new = rng.choice(names), rng.choice([*names, b"xxxxxx"])
    places = [at for at in range(len(data[:HEADER_BYTES])) if data.startswith(old, at)]
    at = rng.choice(places) if places else 24
    return data[:at] + new + data[at + len(old) :], f"{new!r} instead of {old!r} at {at}"


# Folders


def hf_folder() -> Any:
    return value_of(read_hf_model(Path("model")))


def naive_hf_folder() -> Any:
    folder = Path("model")
    config = json.loads((folder / "config.json").read_bytes())
    assert config["model_type"] == "llama"
    files = json.loads((folder / INDEX).read_bytes())["weight_map"]
    shards = {name: tensors_in(folder / name) for name in set(files.values())}
    heads = config["num_attention_heads"]
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    head_dim = config.get("head_dim")
    sizes = {
        "context": config["max_position_embeddings"],
        "layers": config["num_hidden_layers"],
        "heads": (
            heads,
            config.get("num_key_value_heads") or heads,
            config["hidden_size"] // heads if head_dim is None else head_dim,
        ),
        "eps": config.get("rms_norm_eps", 1e-6),
        "theta": rope.get("rope_theta", config.get("rope_theta") or 10000.0),
        "scaling": None,
    }
    weights = {name: shards[file][name].astype(np.float32) for name, file in files.items()}
    assert sum(map(len, shards.values())) == len(weights)
    return {"sizes": sizes, "weights": weights}


def targets(folder: Path) -> list[Target]:
    theirs = make_llama(rope_parameters={"rope_theta": 5000.0, "rope_type": "default"})
    (folder / "gguf").mkdir()
    write_gguf(
        folder / "gguf" / "m.gguf", theirs, "Q8_0", {"general.name": "A model", "general.languages": ["en", "de"]}
    )
    (folder / "hf" / "model").mkdir(parents=True)
    theirs.save_pretrained(folder / "hf" / "model", max_shard_size="60KB")
    header = {".gguf": (*[_change_header] * 6, *[_swap_names] * 2, *BYTES, elsewhere)}
    small = [Path("model/config.json"), Path("model") / INDEX]
    shards = [path.relative_to(folder / "hf") for path in sorted((folder / "hf" / "model").glob("*.safetensors"))]
    return [
        Target("GGUF", folder / "gguf", [Path("m.gguf")], gguf, naive_gguf, changes=header, weight=4),
        Target("Hugging Face folder", folder / "hf", small, hf_folder, naive_hf_folder, weight=4),
        Target("shards", folder / "hf", shards, hf_folder, naive_hf_folder, weight=2),
        *families.targets(folder, header),
    ]

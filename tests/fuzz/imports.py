"""Mutants of files of other projects: llama2.c's .bin and tok*.bin, nanoGPT's ckpt.pt, .tiktoken files, tokenizer folders."""

from __future__ import annotations

import base64
import io
import struct
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzz.checkpoints import as_array, tokenizer_value, value_of
from fuzz.mutations import BYTES, VALUES, elsewhere
from fuzz.naive import read_tokenizer
from fuzz.oracle import Target
from tiny import tiny_tokenizer

from mini_chat_gpt.checkpoints.foreign import import_model
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

sys.path.append(str(Path(__file__).parent.parent / "checkpoints"))
from test_foreign import ARGUMENTS, nanogpt_state, write_llama2c, write_nanogpt

HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "seq_len")
HALF_TURN = "the rows of q and k are reordered for another form of rotary positions"


# llama2.c


def _layout(data: bytes) -> tuple[dict[str, int], bool, int, list[tuple[str, tuple[int, ...]]]]:
    """(sizes, tied, offset, [(name, shape)]) of a llama2.c file, either version."""
    version_1 = data[:4] == struct.pack("<I", 0x616B3432)
    values = struct.unpack_from("<7i", data, 8 if version_1 else 0)
    s = dict(zip(HEADER, map(abs, values), strict=True))
    tied = bool(data[36]) if version_1 else values[5] > 0
    d, h, n, v, kv = s["dim"], s["hidden"], s["layers"], s["vocab"], s["dim"] // s["heads"] * s["kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "emb": (v, d), "att": (n, d), "q": (n, d, d), "k": (n, kv, d), "v": (n, kv, d), "o": (n, d, d), "ffn": (n, d),
        "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d), "fin": (d,), "freq": (s["seq_len"], d // s["heads"]), "cls": (v, d),
    }  # fmt: skip
    order = [*shapes]
    if version_1:
        order = ["att", "ffn", "fin", "emb", "q", "k", "v", "o", "w1", "w2", "w3", "cls"]
    return s, tied, 256 if version_1 else 28, [(name, shapes[name]) for name in order if not (tied and name == "cls")]


NAMES = {
    "att": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "ffn": "post_attention_layernorm", "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
}  # fmt: skip


def naive_llama2c() -> Any:
    """Sizes, weights and tokenizer of model.bin and tokenizer.bin."""
    data = Path("model.bin").read_bytes()
    s, tied, at, parts = _layout(data)
    if min(s.values()) < 1 or len(data) != at + 4 * sum(int(np.prod(shape)) for _, shape in parts):
        raise ValueError("another size")
    weights: dict[str, np.ndarray] = {}
    for name, shape in parts:
        array = np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += 4 * array.size
        if name in ("q", "k"):
            half = s["dim"] // s["heads"] // 2
            pairs = array.reshape(s["layers"], -1, half, 2, s["dim"])
            array = np.concatenate([pairs[:, :, :, 0], pairs[:, :, :, 1]], axis=2).reshape(shape)
        if name in NAMES:
            weights |= {f"layers.{i}.{NAMES[name]}.weight": layer for i, layer in enumerate(array)}
        else:
            weights[{"emb": "embed_tokens.weight", "fin": "norm.weight", "cls": "lm_head.weight"}.get(name, name)] = (
                array
            )
    weights.pop("freq", None)
    if tied:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    return {"sizes": s, "tied": tied, "weights": weights, "tokenizer": naive_tok_bin("tokenizer.bin", s["vocab"])}


def naive_tok_bin(path: str, n: int | None = None) -> Any:
    """Pieces and scores of a tok*.bin file."""
    data, at = Path(path).read_bytes(), 4
    texts, scores = [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        if length < 1 or at > len(data):
            raise ValueError("a length")
        texts.append(data[at - length : at])
        scores.append(score)
    if n is not None and len(texts) != n:
        raise ValueError("another vocabulary")
    return {"texts": texts, "scores": scores, "longest": struct.unpack_from("<i", data)[0]}


def llama2c() -> Any:
    model, tokenizer = import_model("model.bin")
    value, config = value_of(model, tokenizer), model.config
    sizes = (
        config.n_embd,
        config.mlp_size,
        config.n_layer,
        config.n_head,
        config.kv_heads,
        config.vocab_size,
        config.context_length,
    )
    return {
        "sizes": dict(zip(HEADER, sizes, strict=True)),
        "tied": config.tie_embeddings,
        "weights": value["weights"],
        "tokenizer": _sentencepiece(tokenizer),
    }


def _sentencepiece(tokenizer: ChatTokenizer) -> Any:
    encoder: Any = tokenizer.encoder
    tokenizer.decode(tokenizer.encode("abc é 😀"))
    return {"texts": encoder.texts, "scores": encoder.scores, "longest": encoder.max_token_length}


def _change_sizes(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Another number in the header; half of the time the file gets the length that belongs to it."""
    start = 8 if data[:4] == struct.pack("<I", 0x616B3432) else 0
    field = rng.randrange(7)
    old = struct.unpack_from("<i", data, start + 4 * field)[0]
    new = rng.choice((0, 1, -1, 2, 2**31 - 1, -(2**31), old + 1, old - 1, old * 2, old // 2, -old, 10**6))
    new = max(-(2**31), min(2**31 - 1, new))
    at = start + 4 * field
    data = data[:at] + struct.pack("<i", new) + data[at + 4 :]
    what = f"{HEADER[field]} {new} instead of {old}"
    if rng.random() < 0.5 and 0 < abs(new) < 1000:
        _, _, offset, parts = _layout(data)
        size = offset + 4 * sum(int(np.prod(shape)) for _, shape in parts)
        data, what = (data + bytes(max(0, size - len(data))))[:size], what + ", with its length"
    return data, what


# nanoGPT


def nanogpt() -> Any:
    model, tokenizer = import_model("ckpt.pt", "tok")
    value = value_of(model, tokenizer)
    config = model.config
    sizes = [config.n_layer, config.n_head, config.n_embd, config.context_length, config.vocab_size]
    return {"sizes": sizes, "weights": value["weights"], "tokenizer": value["tokenizer"]}


def naive_nanogpt() -> Any:
    """Sizes, weights and tokenizer of ckpt.pt. (torch.load is the only reader of this format.)"""
    content = torch.load("ckpt.pt", weights_only=True)
    a, weights = content["model_args"], {}
    names = {"ln_1": "input_layernorm", "attn.c_proj": "self_attn.o_proj", "ln_2": "post_attention_layernorm"}
    names |= {"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    top = {
        "transformer.wte": "embed_tokens",
        "transformer.wpe": "embed_positions",
        "transformer.ln_f": "norm",
        "lm_head": "lm_head",
    }
    for name, tensor in content["model"].items():
        module, _, kind = name.removeprefix("_orig_mod.").rpartition(".")
        array = as_array(tensor.float())
        if module in top:
            weights[f"{top[module]}.{kind}"] = array
            continue
        _, _, layer, module = module.split(".", 3)
        if module == "attn.c_attn":
            for part, piece in zip("qkv", np.split(array, 3), strict=True):
                weights[f"layers.{layer}.self_attn.{part}_proj.{kind}"] = piece
        else:
            weights[f"layers.{layer}.{names[module]}.{kind}"] = array
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    sizes = [a[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")]
    return {"sizes": sizes, "weights": weights, "tokenizer": read_tokenizer(Path("tok"))}


def _change_nanogpt(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Another argument or another tensor, saved again."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.5:
        key = rng.choice([*content["model_args"], "unknown"])
        new: Any = rng.choice((*VALUES[:13], 2**40, -(10**30), ARGUMENTS.get(key, 0) * 2, [1], {}))
        content["model_args"][key] = new
        what = f"model_args.{key} = {new!r:.40}"
    else:
        name = rng.choice([*content["model"]])
        tensor = content["model"].pop(name)
        what = rng.choice(
            (
                "removed",
                "renamed",
                "float64",
                "int32",
                "complex",
                "transposed",
                "row",
                "empty",
                "sparse",
                "a list",
                "nan",
            )
        )
        changes: dict[str, Any] = {
            "float64": tensor.double(), "int32": tensor.int(), "complex": tensor.to(torch.complex64), "transposed": tensor.T.clone(),
            "row": tensor[:1].clone(), "empty": tensor[:0].clone(), "a list": [1.0, 2.0], "sparse": tensor.to_sparse(),
            "nan": torch.full_like(tensor, float("nan")),
        }  # fmt: skip
        if what != "removed":
            content["model"][name + "x" if what == "renamed" else name] = changes.get(what, tensor)
        what = f"{name} {what}"
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue(), what


# Tokenizers


def tiktoken() -> Any:
    value = tokenizer_value(ChatTokenizer.load("ranks.tiktoken"))
    return {"pieces": value["pieces"]}


def naive_tiktoken() -> Any:
    pieces: dict[int, bytes] = {}
    for line in Path("ranks.tiktoken").read_bytes().splitlines():
        if line.strip():
            piece, rank = line.split()
            assert int(rank) not in pieces
            pieces[int(rank)] = base64.b64decode(piece, validate=True)
    assert max(pieces) < 10**6
    return {"pieces": [pieces.get(i) for i in range(max(pieces) + 1)]}


def tok_bin() -> Any:
    return _sentencepiece(ChatTokenizer.load("tokenizer.bin"))


def tokenizer_folder() -> Any:
    tokenizer = ChatTokenizer.load("tok")
    tokenizer.decode(tokenizer.encode("Tom had a cat."))
    return tokenizer_value(tokenizer)


def targets(folder: Path) -> list[Target]:
    for name in ("old", "new", "nano"):
        (folder / name).mkdir()
    write_llama2c(folder / "old" / "model.bin")
    write_llama2c(folder / "new" / "model.bin", tied=True, version=1)
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder / "nano" / "tok")
    arguments = ARGUMENTS | {"vocab_size": 320}
    write_nanogpt(folder / "nano" / "ckpt.pt", nanogpt_state(arguments), arguments)
    (folder / "nano" / "ranks.tiktoken").write_bytes(tokenizer.encoder.to_bytes())
    model, tok, pt = Path("model.bin"), Path("tokenizer.bin"), Path("ckpt.pt")
    sizes = {".bin": (_change_sizes, _change_sizes, _change_sizes, *BYTES, elsewhere)}
    plain = {".bin": (*BYTES, elsewhere)}
    saved = {".pt": (*[_change_nanogpt] * 8, *BYTES, elsewhere)}
    parts = [path.relative_to(folder / "nano") for path in sorted((folder / "nano" / "tok").iterdir())]
    return [
        Target("llama2.c", folder / "old", [model], llama2c, naive_llama2c, changes=sizes, weight=2),
        Target("llama2.c version 1", folder / "new", [model], llama2c, naive_llama2c, changes=sizes),
        Target("llama2.c tokenizer", folder / "old", [tok], llama2c, naive_llama2c, changes=plain),
        Target("tok.bin", folder / "old", [tok], tok_bin, lambda: naive_tok_bin("tokenizer.bin"), changes=plain),
        Target("nanoGPT", folder / "nano", [pt], nanogpt, naive_nanogpt, changes=saved, weight=3),
        Target(".tiktoken", folder / "nano", [Path("ranks.tiktoken")], tiktoken, naive_tiktoken),
        Target(
            "tokenizer folder", folder / "nano", parts, tokenizer_folder, lambda: read_tokenizer(Path("tok")), weight=2
        ),
    ]

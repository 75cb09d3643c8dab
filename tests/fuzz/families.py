"""Mutants of models of GPT-2, Phi-3 and Gemma 3, and of adapters by PEFT; targets of the kind foreign_models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_llamas import VARIANTS, make_llama, write_gguf
from fuzz.compare import Near
from fuzz.mutations import Change
from fuzz.naive import tensors_in
from fuzz.oracle import Target

from mini_chat_gpt.checkpoints.families import plain_part
from mini_chat_gpt.checkpoints.foreign import read_gguf_model, read_hf_model, stored_hf_model
from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.peft_adapter import with_adapter
from mini_chat_gpt.model import GPT

PREFIX = "base_model.model."


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model, which is used once."""
    config = model.config
    with torch.no_grad():
        model(torch.arange(min(20, config.context_length))[None] % config.vocab_size)
    return {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}


# GPT-2 and Phi-3


def joined() -> Any:
    return value_of(read_hf_model(Path("model"), torch.float32))


def value_of(model: GPT) -> Any:
    """Sizes and weights."""
    config = model.config
    sizes = [config.n_layer, config.n_head, config.kv_heads, config.context_length, config.activation, config.norm_eps]
    return {"sizes": sizes, "scale": config.attention_scale, "windows": config.windows, "weights": _weights(model)}


def naive_gpt2() -> Any:
    c = json.loads(Path("model/config.json").read_bytes())
    assert c["model_type"] == "gpt2"
    activation = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
    names = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj"}
    names |= {"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj", "wte": "embed_tokens", "wpe": "embed_positions"}
    names |= {"ln_f": "norm"}
    weights: dict[str, np.ndarray] = {}
    for name, array in tensors_in(Path("model/model.safetensors")).items():
        module, _, kind = name.removeprefix("transformer.").rpartition(".")
        block = ""
        if module.startswith("h."):
            _, layer, module = module.split(".", 2)
            block = f"layers.{layer}."
        values = array.astype(np.float32)
        if module.endswith(("c_attn", "c_proj", "c_fc")) and kind == "weight":
            values = values.T
        if module == "attn.c_attn":
            for letter, third in zip("qkv", np.split(values, 3), strict=True):
                weights[f"{block}self_attn.{letter}_proj.{kind}"] = np.ascontiguousarray(third)
        else:
            weights[f"{block}{names.get(module, module)}.{kind}"] = np.ascontiguousarray(values)
    if c.get("tie_word_embeddings", True) is not False:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    heads = c["n_head"]
    eps = float(c.get("layer_norm_epsilon", 1e-5))
    sizes = [c["n_layer"], heads, heads, c.get("n_positions", 1024)]
    sizes += [activation[c.get("activation_function", "gelu_new")], eps]
    scale = 1.0 if c.get("scale_attn_weights", True) is False else None
    return {"sizes": sizes, "scale": scale, "windows": None, "weights": weights}


def naive_phi3() -> Any:
    c = json.loads(Path("model/config.json").read_bytes())
    assert c["model_type"] == "phi3"
    heads, kv_heads = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    weights: dict[str, np.ndarray] = {}
    for name, array in tensors_in(Path("model/model.safetensors")).items():
        ours, values = name.removeprefix("model."), array.astype(np.float32)
        start, _, last = ours.removesuffix(".weight").rpartition(".")
        if last == "qkv_proj":
            ends = [heads * head_dim, (heads + kv_heads) * head_dim]
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), np.split(values, ends), strict=True))
        elif last == "gate_up_proj":
            parts = dict(zip(("gate_proj", "up_proj"), np.split(values, 2), strict=True))
        else:
            weights[ours] = values
            continue
        weights |= {f"{start}.{part}.weight": np.ascontiguousarray(rows) for part, rows in parts.items()}
    if c.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    context, window = c["max_position_embeddings"], c.get("sliding_window")
    windows = None if window is None or window >= context else (window,) * c["num_hidden_layers"]
    eps = float(c.get("rms_norm_eps", 1e-5))
    sizes = [c["num_hidden_layers"], heads, kv_heads, context, "swiglu", eps]
    return {"sizes": sizes, "scale": None, "windows": windows, "weights": weights}


# GGUF


def gguf() -> Any:
    model = read_gguf_model(GGUFFile(Path("m.gguf")), torch.float32)
    config = model.config
    return value_of(model) | {"theta": (config.rope_theta, config.window_rope_theta), "scaling": config.rope_scaling}


class _Header:
    """Metadata by the library's own reader, which the program doesn't use."""

    def __init__(self, fields: Any) -> None:
        self.values: dict[str, Any] = {key: field.contents() for key, field in fields.items()}
        self.architecture = self.values["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ValueError(key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return float(str(np.float32(self.get(key, default))))


GGUF_NAMES = {
    "token_embd": "embed_tokens", "position_embd": "embed_positions", "output_norm": "norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj",
    "post_attention_norm": "attention_output_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "post_ffw_norm": "mlp_output_layernorm",
}  # fmt: skip


def naive_gguf() -> Any:
    """The same by the library's own reader."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader("m.gguf")
    header, kind = _Header(reader.fields), _Header(reader.fields).architecture
    assert kind in ("gemma3", "phi3", "gpt2")
    heads, width = header.get("attention.head_count"), header.get("embedding_length")
    kv_heads = heads if kind == "gpt2" else header.get("attention.head_count_kv", heads)
    head_dim = width // heads if kind == "gpt2" else header.get("attention.key_length", width // heads)
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(tensor.shape.tolist()[::-1])
        module, _, end = tensor.name.rpartition(".")
        block, module = (
            (f"layers.{module.split('.')[1]}.", module.split(".")[2]) if module[:4] == "blk." else ("", module)
        )
        if module == "attn_qkv":
            ends = [heads * head_dim, (heads + kv_heads) * head_dim]
            parts = dict(
                zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), np.split(values, ends), strict=True)
            )
        elif module == "ffn_up" and kind == "phi3":
            parts = dict(zip(("mlp.gate_proj", "mlp.up_proj"), np.split(values, 2), strict=True))
        else:
            minus = kind == "gemma3" and module.endswith("norm")
            parts = {GGUF_NAMES[module]: values - np.float32(1) if minus else values}
        weights |= {f"{block}{name}.{end}": np.ascontiguousarray(rows) for name, rows in parts.items()}
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    layers, context = header.get("block_count"), header.get("context_length")
    activation = {"gemma3": "geglu", "phi3": "swiglu", "gpt2": "gelu_tanh"}[kind]
    norm = "attention.layer_norm_epsilon" if kind == "gpt2" else "attention.layer_norm_rms_epsilon"
    sizes = [layers, heads, kv_heads, context, activation, header.number(norm, 1e-5)]
    window = 0 if kind == "gpt2" else header.get("attention.sliding_window", 0 if kind == "phi3" else None)
    windows: Any = tuple(window if kind == "phi3" or (one + 1) % 6 else None for one in range(layers))
    if not any(windows) or window >= context:
        windows = None
    theta = 10000.0 if kind == "gpt2" else header.number("rope.freq_base", None if kind == "gemma3" else 10000.0)
    local = header.number("rope.freq_base_swa", 10000.0) if kind == "gemma3" and windows else None
    scale = header.number("attention.scale", head_dim**-0.5) if kind == "gemma3" else None
    return {
        "sizes": sizes,
        "scale": scale,
        "windows": windows,
        "weights": weights,
        "theta": (theta, local),
        "scaling": None,
    }


# Adapters by PEFT


def peft_adapter() -> Any:
    stored = with_adapter(stored_hf_model(Path("base")), plain_part, Path("adapter"))
    return {"weights": _weights(stored.load())}


def naive_peft_adapter() -> Any:
    """The base's weights with everything of the adapter added."""
    c = json.loads(Path("adapter/adapter_config.json").read_bytes())
    assert c["peft_type"] == "LORA"
    assert c.get("task_type") in (None, "CAUSAL_LM")
    stored = tensors_in(Path("adapter/adapter_model.safetensors"))
    tensors = {name.removeprefix(PREFIX): one.astype(np.float64) for name, one in stored.items()}
    weights: dict[str, Any] = {}
    for name, array in tensors_in(Path("base/model.safetensors")).items():
        module, values = name.removesuffix(".weight"), array.astype(np.float64)
        rank, alpha = c.get("r", 8), c.get("lora_alpha", 8)
        if f"{module}.lora_A.weight" in tensors:
            a, b = (tensors.pop(f"{module}.lora_{letter}.weight") for letter in "AB")
            rank = next((n for key, n in (c.get("rank_pattern") or {}).items() if module.endswith("." + key)), rank)
            alpha = next((n for key, n in (c.get("alpha_pattern") or {}).items() if module.endswith("." + key)), alpha)
            assert len(a) == rank
            values = values + alpha / (math.sqrt(rank) if c.get("use_rslora") else rank) * (b @ a)
            assert (f"{module}.lora_magnitude_vector" in tensors) == bool(c.get("use_dora"))
        if (magnitude := tensors.pop(f"{module}.lora_magnitude_vector", None)) is not None:
            values = values * (magnitude / np.linalg.norm(values, axis=1))[:, None]
        if (rows := tensors.pop(f"{module}.token_adapter.trainable_tokens_delta", None)) is not None:
            ids = c["trainable_token_indices"]
            values[ids["embed_tokens"] if isinstance(ids, dict) else ids] = rows
        weights[name.removeprefix("model.")] = Near(values)
    assert not tensors
    return {"weights": weights}


def targets(folder: Path, header: dict[str, tuple[Change, ...]]) -> list[Target]:
    """`header` are changes of GGUF files."""
    import peft
    from transformers import AutoModelForCausalLM

    found = []
    for variant in ("GPT-2", "Phi-3 with a window", "Gemma 3"):
        (folder / f"{variant} GGUF").mkdir()
        more = {"query_pre_attn_scalar": 16, "num_hidden_layers": 7} if variant == "Gemma 3" else {}
        write_gguf(folder / f"{variant} GGUF" / "m.gguf", make_llama(**VARIANTS[variant] | more), "Q8_0")
        fixture = folder / f"{variant} GGUF"
        found.append(Target(f"{variant} GGUF", fixture, [Path("m.gguf")], gguf, naive_gguf, changes=header, weight=2))
    for variant, naive in (("GPT-2", naive_gpt2), ("Phi-3 with a window", naive_phi3)):
        make_llama(**VARIANTS[variant]).save_pretrained(folder / variant / "model")
        files = [Path("model/config.json"), Path("model/model.safetensors")]
        found.append(Target(f"{variant} folder", folder / variant, files, joined, naive, weight=2))
    for name, settings in (("LoRA", {}), ("DoRA", {"use_dora": True, "use_rslora": True})):
        fixture = folder / name
        make_llama().save_pretrained(fixture / "base")
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], trainable_token_indices=[5, 3],
            rank_pattern={"q_proj": 3}, alpha_pattern={"layers.1.mlp.down_proj": 5}, **settings,
        )  # fmt: skip
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(fixture / "base"), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
        model.save_pretrained(fixture / "adapter")
        files = [Path("adapter/adapter_config.json"), Path("adapter/adapter_model.safetensors")]
        found.append(Target(f"PEFT {name}", fixture, files, peft_adapter, naive_peft_adapter, weight=3))
    return found

"""Mutants of models with joined tensors (GPT-2, Phi-3), and of adapters by PEFT; targets of the kind foreign_models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_llamas import VARIANTS, make_llama
from fuzz.compare import Near
from fuzz.naive import tensors_in
from fuzz.oracle import Target

from mini_chat_gpt.checkpoints.families import plain_part
from mini_chat_gpt.checkpoints.foreign import read_hf_model, stored_hf_model
from mini_chat_gpt.checkpoints.peft_adapter import with_adapter

PREFIX = "base_model.model."


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model, which is used once."""
    config = model.config
    with torch.no_grad():
        model(torch.arange(min(20, config.context_length))[None] % config.vocab_size)
    return {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}


# GPT-2 and Phi-3


def joined() -> Any:
    model = read_hf_model(Path("model"), torch.float32)
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


def targets(folder: Path) -> list[Target]:
    import peft
    from transformers import AutoModelForCausalLM

    found = []
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

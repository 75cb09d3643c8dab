"""Random models of all families by `transformers`, and GGUF files with the same weights, written by the library gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {},
    "grouped heads": {"num_key_value_heads": 1},
    "own head_dim": {"head_dim": 16},
    "llama3 scaling": {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}},
    "linear scaling": {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases in attention": {"attention_bias": True},
    "biases in the mlp": {"mlp_bias": True},
    "Mistral": {"family": "Mistral", "sliding_window": None},
    "Mistral with a window": {"family": "Mistral", "sliding_window": 7},
    "Qwen2": {"family": "Qwen2", "tie_word_embeddings": True},
    "Qwen2 with windows": {
        "family": "Qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
    },
    "Qwen3": {"family": "Qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "Qwen3 with biases": {"family": "Qwen3", "head_dim": 16, "attention_bias": True},
    "Gemma 3": {
        "family": "Gemma3",
        "head_dim": 16,
        "sliding_window": 7,
        "query_pre_attn_scalar": 10,
        "num_hidden_layers": 6,
    },
    "Gemma 3 with scaled positions": {
        "family": "Gemma3",
        "head_dim": 24,
        "sliding_window": 9,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
        },
    },
    "OLMo 2": {"family": "Olmo2"},
    "OLMo 2 with grouped heads": {"family": "Olmo2", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "Phi-3": {"family": "Phi3", "sliding_window": None, "num_key_value_heads": 4},
    "Phi-3 with a window": {"family": "Phi3", "sliding_window": 7},
    "GPT-2": {"family": "GPT2"},
    "GPT-2, untied": {"family": "GPT2", "tie_word_embeddings": False, "activation_function": "relu"},
    "GPT-2, narrow MLP": {"family": "GPT2", "n_inner": 40, "scale_attn_weights": False},
    "GPT-Neo": {"family": "GPTNeo"},
    "GPT-Neo, all global": {"family": "GPTNeo", "attention_types": [[["global"], 2]], "intermediate_size": 40},
}
SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "GPTNeo": {
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 7,
        "attention_types": [[["global", "local"], 1]],
    },
    "": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "pad_token_id": None,  # the row of a padding token would have no gradient
    },
}
"""Family -> the sizes of its random models; "" for Llama and its relatives."""
CLASSES = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "GPT2": ("GPT2Config", "GPT2LMHeadModel")}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_NORMS_AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GGUF_OTHERS = {
    "olmo2": GGUF_NORMS_AFTER,
    "gemma3": GGUF_NORMS_AFTER | {"pre_feedforward_layernorm": "ffn_norm"},
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
}
"""Architecture -> names that differ from Llama's."""
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def make_llama(dtype: torch.dtype = torch.float32, family: str = "Llama", **changes: Any) -> Any:
    """A small random model of `transformers`, with weights far from the initialization, so that every one of them matters."""
    import transformers

    tokens = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config, model_class = CLASSES.get(family, (f"{family}Config", f"{family}ForCausalLM"))
    sizes = tokens | SIZES.get(family, SIZES[""]) | changes
    model = getattr(transformers, model_class)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def most_probable(model: Any, ids: torch.Tensor, n_tokens: int) -> list[int]:
    """The tokens that one of our models continues ids (1, T) with, decoded with a cache."""
    cache, tokens, new = model.make_cache(1), [], ids
    with torch.inference_mode():
        for _ in range(n_tokens):
            new = model.next_logits(new, cache, [new.shape[1]]).argmax(-1, keepdim=True)
            tokens.append(int(new))
    return tokens


def gguf_name(name: str, architecture: str = "llama") -> str:
    """ "model.layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight" """
    module, _, kind = name.rpartition(".")
    names = GGUF_NAMES | GGUF_OTHERS.get(architecture, {})
    if module.startswith(("model.layers.", "transformer.h.")):
        _, _, layer, module = module.split(".", 3)
        return f"blk.{layer}.{names[module]}.{kind}"
    return f"{names[module]}.{kind}"


def pairs_from_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of queries or keys in llama.cpp's order."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, model: Any, kind: str = "F32", metadata: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Write a Llama of `transformers`, or a relative, as llama.cpp's converter does; matrices have the type `kind`.

    Returns the weights that the file stands for, by their names in `transformers`.
    """
    import gguf

    config, exact = model.config, {}
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    rope = (_write_gpt2 if architecture == "gpt2" else _write_llama)(writer, config)
    for key, value in (metadata or {}).items():
        add_metadata(writer, key, value)
    if rope.get("rope_type") == "llama3":
        head_dim = 2 * len(model.model.rotary_emb.inv_freq)
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
        factors = (plain / model.model.rotary_emb.inv_freq).numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = None
        if architecture == "llama":
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                name.split(".")[-2]
            )
        stored = pairs_from_halves(values, heads) if heads else values
        if architecture == "gemma3" and name.endswith("norm.weight"):
            stored = values = values + 1
        if architecture == "gpt2" and ".c_" in name:
            stored = values = values.T
        as_kind = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(stored), as_kind)
        writer.add_tensor(gguf_name(name, architecture), data, raw_dtype=as_kind)
        dequantized = gguf.quants.dequantize(data, as_kind).reshape(values.shape)
        exact[name] = halves_again(dequantized, heads) if heads else dequantized
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def _write_llama(writer: Any, config: Any) -> dict[str, Any]:
    """Write the sizes of a Llama or a relative; returns its rotary parameters."""
    import gguf

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type != "gemma3_text":
        writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type in ("gemma3_text", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    return rope


def _write_gpt2(writer: Any, config: Any) -> dict[str, Any]:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    return {}


def halves_again(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `pairs_from_halves`."""
    pairs = weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def add_metadata(writer: Any, key: str, value: Any) -> None:
    """Add a value of any type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def make_tokenizer(vocab_size: int = 280) -> Any:
    """A byte-level tokenizer of `transformers`, as SmolLM2's: ChatML tokens first, then bytes and merges."""
    from tiny import TEXTS
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = CHATML
    return fast


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_folder(folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "50GB", **changes: Any) -> Any:
    """Save a random Llama with its tokenizer as `transformers` does; returns the Llama."""
    tokenizer = make_tokenizer()
    model = make_llama(dtype, **{"vocab_size": 288, "bos_token_id": 1, "eos_token_id": 2} | changes)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return model


def gguf_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """The metadata of a tokenizer as llama.cpp's converter writes them."""
    import json

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    added = {token["content"] for token in content["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }

"""Small random models of the architectures that GGUF files are written for, and a table of exports of every type.

    python tests/exports.py                      the random models
    python tests/exports.py NAME=CHECKPOINT ...  these checkpoints

Each row is what the check of `mini-chat-gpt export` finds. With npm's node-llama-cpp in node_modules here, llama.cpp runs each file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import chat_template_samples
import foreign_tokenizers
from foreign_llamas import make_llama
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from mini_chat_gpt.common.terminal import format_size
from mini_chat_gpt.export.gguf_export import export_gguf
from mini_chat_gpt.export.gguf_model import FILE_TYPES
from mini_chat_gpt.tokenizer.hf_export import splits

SIZES = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with llama3 scaling": {
        "rope_parameters": {
            "rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "attention_bias": True,
        "head_dim": 64,
    },
    "gpt2": {"family": "GPT2", "n_positions": 1024, "n_embd": 128, "n_layer": 4, "n_head": 4},
    "qwen2": {"family": "Qwen2", "tie_word_embeddings": True},
    "qwen3": {"family": "Qwen3", "head_dim": 64},
    "gemma3": {
        "family": "Gemma3", "head_dim": 64, "sliding_window": 128, "query_pre_attn_scalar": 64, "num_hidden_layers": 7,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def gemma_tokenizer() -> Tokenizer:
    """A SentencePiece BPE without a leading space whose merges are all pairs that form a token, as Gemma's."""
    parts = json.loads(foreign_tokenizers.MAKERS["no prefix"]().to_str())
    rename = {"<s>": "<bos>", "</s>": "<eos>"}
    model = parts["model"]
    model["vocab"] = {rename.get(token, token): token_id for token, token_id in model["vocab"].items()}
    # The characters come after the control tokens and the bytes; pieces of several characters are results of merges.
    pieces = {token: i for token, i in model["vocab"].items() if not token.startswith("<")}
    lengths = {len(piece) for piece in pieces}
    model["merges"] = [
        pair for piece in sorted(pieces, key=pieces.__getitem__) for pair in splits(piece, pieces, lengths)
    ]
    for token in parts["added_tokens"]:
        token["content"] = rename.get(token["content"], token["content"])
    parts["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.normalizer = normalizers.Replace(" ", foreign_tokenizers.SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    tokenizer.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def its_tokenizer(name: str) -> Any:
    """A tokenizer of the model's kind, with a chat template; GPT-2 has none."""
    from transformers import PreTrainedTokenizerFast

    if name == "gemma3":
        tokenizer, names = gemma_tokenizer(), {"bos_token": "<bos>", "eos_token": "<eos>"}
        template = chat_template_samples.GEMMA3
    elif name == "gpt2":
        tokenizer, names, template = foreign_tokenizers.gpt2(), {"eos_token": "<|endoftext|>"}, None
    else:
        if name == "llama":  # as SmolLM2's, but with all bytes
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer = foreign_tokenizers._byte_level([digits], use_regex=True)
        else:
            tokenizer = foreign_tokenizers.MAKERS["Llama 3" if name.startswith("llama") else "Qwen2"]()
        tokenizer.add_special_tokens(list(CHATML))
        names, template = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, chat_template_samples.SMOLLM2
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = template
    return fast


def save_model(folder: Path, name: str, **changes: Any) -> Any:
    """Save a random model with a tokenizer of its kind, as `transformers` does; returns the model."""
    tokenizer = its_tokenizer(name)
    rows = -(-len(tokenizer) // 32) * 32 + 32
    own = {} if MODELS[name].get("family") == "GPT2" else SIZES
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>" if name not in ("gpt2", "gemma3") else tokenizer.eos_token)
    ids = {"vocab_size": rows, "eos_token_id": eos, "bos_token_id": tokenizer.bos_token_id}
    model = make_llama(**own | ids | MODELS[name] | changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def table(models: dict[str, Path], kinds: list[str], out: Path) -> None:
    """Print a row for each model and type."""
    heads = [
        "model",
        "type",
        "size",
        "rounding",
        "logits",
        "same token",
        "KL, bits",
        "bits per byte",
        "replies",
        "llama.cpp",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for kind in kinds:
        for name, path in models.items():
            file = out / f"{name}-{kind}.gguf"
            exported = export_gguf(path, file, kind)
            proof = exported.proof
            assert proof is not None
            logits, replies = proof.logits, proof.replies
            parts = "equal" if replies.parts is None else f"part at {replies.parts}, {replies.margin:.2g}"
            row = [
                name, kind, format_size(file.stat().st_size), f"{proof.weights.error:.2g}", f"{logits.difference:.2g}",
                f"{100 * logits.same_token:.1f} %", f"{logits.divergence:.2g}", f"{logits.added_bits:+.2g}", parts,
                next((line.partition("): ")[2] for line in proof.lines if line.startswith("llama.cpp")), "–"),
            ]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)
            file.unlink()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = dict(argument.split("=", 1) for argument in arguments)
        models = {name: Path(path) for name, path in given.items()}
        if not models:
            for name in MODELS:
                save_model(folder / name, name)
            models = {name: folder / name for name in MODELS}
        for path in (out := folder / "out",):
            path.mkdir()
        table(models, ["f32", "q8_0", *(kind for kind in FILE_TYPES if kind not in ("f32", "q8_0"))], out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

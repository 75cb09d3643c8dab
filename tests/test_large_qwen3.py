"""A model of Qwen3-0.6B's size: imported, fine-tuned with LoRA and QLoRA within the predicted memory, and asked (see large_models.py)."""

import json
import sys
from itertools import islice, product
from string import ascii_lowercase

import pytest
from large_models import LargeModel, check_large_model

SIZES = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "attention_bias": False, "use_sliding_window": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
N_PIECES = 151643
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def tokenizer_json() -> str:
    """151,643 pieces: bytes, and words of one to four letters after a space; then the control tokens."""
    from foreign_tokenizers import qwen2
    from tokenizers.pre_tokenizers import ByteLevel

    parts = json.loads(qwen2().to_str())
    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges = []
    words = ("".join(word) for length in (1, 2, 3, 4) for word in product(ascii_lowercase, repeat=length))
    for word in islice(words, N_PIECES - len(vocab)):
        merges.append(["Ġ" + word[:-1], word[-1]])
        vocab["Ġ" + word] = len(vocab)
    parts["model"] |= {"vocab": vocab, "merges": merges}
    parts["added_tokens"] = [
        {
            "id": N_PIECES + number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": name in CONTROL,
        }
        for number, name in enumerate([*CONTROL, *THINK])
    ]  # fmt: skip
    return json.dumps(parts)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_qwen3s_size(own_folder):
    """Takes 3 GB of disk and 6 GB of memory. A step of 8 × 512 tokens is about 15 TFLOP."""
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    chats = [("--thinking", "on"), ("--thinking", "off")]
    check_large_model(own_folder, LargeModel(SIZES, tokenizer_json(), special), chats)

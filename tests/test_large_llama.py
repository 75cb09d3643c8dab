"""A model of TinyLlama's size: imported, fine-tuned with LoRA and QLoRA within the predicted memory, and asked (see large_models.py)."""

import json
import sys
from itertools import islice, product
from string import ascii_lowercase

import pytest
from large_models import LargeModel, check_large_model

SIZES = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def tokenizer_json() -> str:
    """32,000 pieces as SentencePiece makes them: three control tokens, 256 bytes, and words of one to four letters."""
    from foreign_tokenizers import SPACE, tinyllama

    parts = json.loads(tinyllama().to_str())
    vocab = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>"])}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    vocab |= {letter: len(vocab) + number for number, letter in enumerate([SPACE, *ascii_lowercase])}
    merges = []
    words = ("".join(word) for length in (1, 2, 3, 4) for word in product(ascii_lowercase, repeat=length))
    for word in islice(words, SIZES["vocab_size"] - len(vocab)):
        merges.append([SPACE + word[:-1], word[-1]])
        vocab[SPACE + word] = len(vocab)
    parts["model"] |= {"vocab": vocab, "merges": merges}
    return json.dumps(parts)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_1_1_billion_parameters(own_folder):
    """Takes 5 GB of disk and 10 GB of memory.

    A step of 8 × 512 tokens is 20 to 27 TFLOP: half an hour for all of them with AVX-512-bf16, two hours on two cores without
    it. Those train on 1 × 128 tokens unless the variable says otherwise.
    """
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    check_large_model(own_folder, LargeModel(SIZES, tokenizer_json(), special))

"""Generation in 16 bits: which precision a device gets, and that everything computes in it. A GPU is not needed."""

import numpy as np
import pytest
import torch
from tiny import GREEDY, PROMPTS, STORIES, about, chat_tokenizer, lively, tiny_tokenizer

from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.common import device as devices
from mini_chat_gpt.common.device import Precision, pick_reply_precision
from mini_chat_gpt.evaluation.bits_per_byte import bits_per_byte
from mini_chat_gpt.evaluation.capabilities import evaluate
from mini_chat_gpt.generation import decode as decoding
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import for_inference
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.generation.text import generate, generate_replies
from mini_chat_gpt.generation.token_probs import explain
from mini_chat_gpt.lora import HalfLinear, LoraSettings, add_lora

BF16, FP16 = Precision(torch.bfloat16, "bf16: a test"), Precision(torch.float16, "float16: a test")


@pytest.fixture
def bf16_replies(monkeypatch):
    """This machine replies in bf16, as one with a GPU does."""
    monkeypatch.setattr(decoding, "pick_reply_precision", lambda device: BF16)


@pytest.fixture
def products(monkeypatch) -> set[torch.dtype]:
    """The dtypes of the products of linear layers."""
    seen, linear = set[torch.dtype](), torch.nn.functional.linear

    def spy(*arguments):
        result = linear(*arguments)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    return seen


def test_replies_on_a_cpu_stay_in_float32_even_where_training_uses_bf16(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    assert pick_reply_precision(torch.device("cpu")).dtype == torch.float32
    assert isinstance(for_inference(lively(tiny_tokenizer()), weights="auto"), CPUInferenceModel)


def test_replies_on_a_gpu_have_the_precision_of_training(monkeypatch):
    chosen = []
    monkeypatch.setattr(devices, "_for_gpu", lambda device: chosen.append(device) or BF16)
    assert pick_reply_precision(torch.device("cuda", 1)) == BF16
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.parametrize("precision", [BF16, FP16])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "bias": True, "qkv_bias": True}, {"windows": [8, None], "qk_norm": True}]
)
def test_logits_are_exactly_those_of_the_model_under_autocast(precision, changes):
    model = lively(tiny_tokenizer(), **changes)
    half, cache = MixedPrecisionModel(model, precision), model.make_cache(2, dtype=precision.dtype)
    half_cache = half.make_cache(2)
    assert half_cache.table.dtype == precision.dtype
    for ids, n_tokens in [(torch.randint(0, 300, (2, 9)), [9, 4]), (torch.tensor([[1], [2]]), [1, 1])]:
        with torch.inference_mode(), precision.autocast(model.device):
            expected = model.next_logits(ids, cache, n_tokens)
        assert torch.equal(half.next_logits(ids, half_cache, n_tokens), expected.float())


def test_the_model_itself_is_not_changed():
    model = lively(tiny_tokenizer())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half = MixedPrecisionModel(model, BF16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, HalfLinear) for module in model.modules())
    assert half.model.embed_tokens.weight is model.embed_tokens.weight
    assert isinstance(half.model.lm_head, HalfLinear)


def test_a_model_with_an_adapter_and_4_bit_weights_replies_in_16_bits_too(products):
    model = lively(tiny_tokenizer())
    add_lora(model, LoraSettings(rank=2), "nf4")
    replies = generate(for_inference(model.eval(), precision=BF16), tiny_tokenizer(), ["Once"], 5, temperature=0.0)
    assert len(replies) == 1
    assert products == {torch.bfloat16}


def test_replies_use_the_chosen_precision(bf16_replies, products):
    model, tokenizer = lively(tiny_tokenizer()), tiny_tokenizer()
    replies = generate_replies(model, tokenizer, PROMPTS, GREEDY, batch_size=2)
    assert products == {torch.bfloat16}
    assert [len(reply.ids) > 0 for reply in replies] == [True] * len(PROMPTS)


def test_a_reply_does_not_depend_on_its_batch_more_than_rounding_does(bf16_replies):
    model, tokenizer = lively(tiny_tokenizer()), tiny_tokenizer()
    together = generate_replies(model, tokenizer, PROMPTS, GREEDY)
    alone = [generate_replies(model, tokenizer, [prompt], GREEDY)[0] for prompt in PROMPTS]
    assert np.mean([one.ids[0] == other.ids[0] for one, other in zip(together, alone, strict=True)]) >= 0.8


def test_chat_evaluation_and_token_probabilities_use_the_chosen_precision(bf16_replies, products):
    tokenizer = chat_tokenizer()
    model = lively(tokenizer, context_length=128)
    session = ChatSession(model, tokenizer, GREEDY)
    list(session.send("Hi"))
    explained = session.explain()
    assert products == {torch.bfloat16}
    assert [token.token_id for token in explained.tokens[: len(session.last_turn.ids)]] == session.last_turn.ids
    evaluate(model, tokenizer, [about("moral", "To share.", "share")])
    assert products == {torch.bfloat16}


def test_the_explanation_of_a_reply_leaves_autocast_off(bf16_replies):
    tokenizer = tiny_tokenizer()
    half = for_inference(lively(tokenizer))
    assert explain(half, tokenizer, [1, 2], [3, 4], None, GREEDY).tokens
    assert not torch.is_autocast_enabled("cpu")


def test_bits_per_byte_uses_the_chosen_precision(monkeypatch, products):
    model, tokenizer = lively(tiny_tokenizer()), tiny_tokenizer()
    exact = bits_per_byte(model, tokenizer, STORIES).bits_per_byte
    assert products == {torch.float32}
    products.clear()
    monkeypatch.setattr("mini_chat_gpt.evaluation.bits_per_byte.pick_reply_precision", lambda device: BF16)
    assert bits_per_byte(model, tokenizer, STORIES).bits_per_byte == pytest.approx(exact, rel=0.02)
    assert products == {torch.bfloat16}

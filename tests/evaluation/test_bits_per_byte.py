"""Bits per byte equal a simple computation for any tokenizer, batch size and window."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import TEXTS, lively_model, tiny_tokenizer
from tokenizer_samples import llama2c_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.evaluation import bits_per_byte as module
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte, bits_per_byte, windows_of
from mini_chat_gpt.evaluation.confidence import paired
from mini_chat_gpt.lora import add_lora
from mini_chat_gpt.sft_dataloader import stories

LONG = " ".join(TEXTS * 12)  # longer than the models' context
DOCUMENTS = [*TEXTS, LONG, "x", LONG[7:400], "é"]


def simple_losses(model, ids: list[int]) -> list[float]:
    """−ln p of each id but the first, from the logits of one window at a time."""
    context = model.config.context_length
    losses: list[float] = []
    while len(losses) < len(ids) - 1:
        start = 0 if not losses else len(losses) + 1 - (context - context // 2)
        window = torch.tensor(ids[start : start + context])
        with torch.no_grad():
            window_losses = F.cross_entropy(model(window[None])[0, :-1].double(), window[1:], reduction="none")
        losses += window_losses[len(losses) - start :].tolist()
    return losses


def simple_bits_per_byte(model, tokenizer, texts) -> float:
    losses = [sum(simple_losses(model, [tokenizer.document_id, *tokenizer.encode(text)])) for text in texts]
    return sum(losses) / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("make", [tiny_tokenizer, llama2c_tokenizer])
@pytest.mark.parametrize("context", [64, 33, 5, 2])
def test_it_equals_a_simple_computation(make, context):
    tokenizer = make()
    model = lively_model(tokenizer.vocab_size, context_length=context)
    result = bits_per_byte(model, tokenizer, DOCUMENTS)
    assert result.bits_per_byte == pytest.approx(simple_bits_per_byte(model, tokenizer, DOCUMENTS), rel=1e-5)
    assert result.n_tokens == sum(len(tokenizer.encode(text)) for text in DOCUMENTS)
    assert result.n_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert result.n_texts == len(DOCUMENTS)
    assert result.loss_per_token * result.n_tokens == pytest.approx(result.bits_per_byte * result.n_bytes * math.log(2))
    assert result.low < result.bits_per_byte < result.high


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary():
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    result = bits_per_byte(model, tokenizer, ["abc é"])
    n = len(tokenizer.encode("abc é"))
    assert result.bits_per_byte == pytest.approx(n * math.log2(tokenizer.vocab_size) / 6)
    assert result.loss_per_token == pytest.approx(math.log(tokenizer.vocab_size))


@example(1, 2)
@example(9, 6)
@example(10, 6)
@given(st.integers(1, 300), st.integers(2, 40))
def test_every_token_is_predicted_once_from_at_least_half_a_context(n, context):
    ids = list(range(n))  # a document of n − 1 tokens
    predicted = []
    for window in windows_of(ids, context):
        assert len(window.ids) <= context
        assert window.n_trained or n == 1
        for place in np.flatnonzero(window.loss_mask).tolist():
            predicted.append(int(window.ids[place]))
            assert place >= min(window.ids[place], context / 2)
    assert predicted == ids[1:]


def test_tokenizers_see_the_same_texts_and_the_same_bytes():
    one, other = tiny_tokenizer(), llama2c_tokenizer()
    texts = [*DOCUMENTS, "\udc80 broken", ""]
    for max_bytes in (1, 50, 10_000):
        results = [
            bits_per_byte(lively_model(tokenizer.vocab_size), tokenizer, iter(texts), max_bytes=max_bytes)
            for tokenizer in (one, other)
        ]
        assert len({(result.n_bytes, result.n_texts) for result in results}) == 1
        assert results[0].n_tokens != results[1].n_tokens
    assert results[0].n_texts == len(texts) - 1  # an empty text does not count


def test_complete_texts_are_used_until_there_are_enough_bytes():
    tokenizer = tiny_tokenizer()
    result = bits_per_byte(lively_model(tokenizer.vocab_size), tokenizer, ["abcdef", "ghi", "jkl"], max_bytes=7)
    assert (result.n_texts, result.n_bytes) == (2, 9)


def test_the_batch_size_does_not_change_the_result(monkeypatch):
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size)
    whole = bits_per_byte(model, tokenizer, DOCUMENTS)
    monkeypatch.setattr(module, "TOKENS_ON_CPU", 70)
    monkeypatch.setattr(module, "SORTED_BATCHES", 1)
    parts = bits_per_byte(model, tokenizer, DOCUMENTS)
    np.testing.assert_allclose(parts.per_text, whole.per_text, rtol=1e-5)
    monkeypatch.setattr(module, "MAX_LOGITS_ON_CPU", 1)
    assert bits_per_byte(model, tokenizer, DOCUMENTS).bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-5)


def test_the_mean_of_per_text_is_the_result_so_that_models_can_be_paired():
    tokenizer = tiny_tokenizer()
    results = [bits_per_byte(lively_model(tokenizer.vocab_size, seed), tokenizer, DOCUMENTS) for seed in (0, 1)]
    assert results[0].per_text.mean() == pytest.approx(results[0].bits_per_byte)
    difference = paired(*(result.per_text for result in results)).difference
    assert difference == pytest.approx(results[1].bits_per_byte - results[0].bits_per_byte)


def test_a_model_with_an_adapter_is_measured_with_it():
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size)
    before = bits_per_byte(model, tokenizer, DOCUMENTS)
    add_lora(model, LoraSettings(rank=2, dropout=0.5), token_ids=[tokenizer.end_id])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.eval()
    after = bits_per_byte(model, tokenizer, DOCUMENTS)
    assert after.bits_per_byte != pytest.approx(before.bits_per_byte, rel=1e-3)
    assert after.bits_per_byte == pytest.approx(simple_bits_per_byte(model, tokenizer, DOCUMENTS), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training):
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size).train(training)
    bits_per_byte(model, tokenizer, ["abc"])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_ends_with_all_bytes(monkeypatch):
    monkeypatch.setattr(module, "SORTED_BATCHES", 0)
    tokenizer = tiny_tokenizer()
    calls = []
    bits_per_byte(
        lively_model(tokenizer.vocab_size), tokenizer, ["ab", "é", "c"], progress=lambda *of: calls.append(of)
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_missing_text_is_refused():
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size)
    for texts, max_bytes in ((["", ""], 10), (["a"], 0)):
        with pytest.raises(UserError, match="no text to predict"):
            bits_per_byte(model, tokenizer, texts, max_bytes=max_bytes)


def test_the_result_can_be_written_as_json():
    tokenizer = tiny_tokenizer()
    result = bits_per_byte(lively_model(tokenizer.vocab_size), tokenizer, ["abc"])
    assert result.as_json().keys() == BitsPerByte.__dataclass_fields__.keys() - {"per_text"}
    assert all(type(value) in (int, float) for value in result.as_json().values())


def test_a_pretrained_model_needs_about_a_bit_for_each_byte_of_a_story(real_data):
    from mini_chat_gpt import load_checkpoint

    model, tokenizer = load_checkpoint(real_data / "stories260K" / "stories260K.bin", "cpu")
    texts = stories(real_data / "tinystories" / "stories-valid.txt")
    result = bits_per_byte(model, tokenizer, texts, max_bytes=20_000)
    assert result.bits_per_byte == pytest.approx(0.9, abs=0.1)
    assert result.loss_per_token == pytest.approx(1.297, abs=0.1)  # as published, on another part of the data


def test_of_a_book_only_the_beginning_is_predicted(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.evaluation.bits_per_byte.MAX_TEXT", 100)
    tokenizer = tiny_tokenizer()
    model = lively_model(tokenizer.vocab_size)
    book = "Tom ran. " * 1000
    assert bits_per_byte(model, tokenizer, [book, "Next."], max_bytes=50).n_bytes == 100
    assert bits_per_byte(model, tokenizer, [book, "Next."], max_bytes=200).n_bytes == 200

"""Filters equal those of transformers, and sampled tokens have the right frequencies."""

import pytest
import torch

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import (
    NEG_INF,
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_ids,
    penalize_repetition,
    process_logits,
    sample,
)


def random_logits(rows: int = 8, size: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator) * 3


def random_history(rows: int = 8, length: int = 30, size: int = 200) -> torch.Tensor:
    return torch.randint(0, size, (rows, length), generator=torch.Generator().manual_seed(7))


def seen_in(history: torch.Tensor, size: int = 200) -> torch.Tensor:
    return torch.zeros(len(history), size, dtype=torch.bool).scatter(1, history, True)


def their_processor(name: str, *arguments):
    import transformers

    return getattr(transformers, name)(*arguments)


@pytest.mark.parametrize("k", [1, 5, 199, 200, 1000])
def test_top_k_is_that_of_transformers(k):
    logits = random_logits()
    torch.testing.assert_close(keep_top_k(logits, k), their_processor("TopKLogitsWarper", k)(None, logits))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(p):
    logits = random_logits()
    torch.testing.assert_close(keep_top_p(logits, p), their_processor("TopPLogitsWarper", p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
def test_min_p_is_that_of_transformers(p):
    logits = random_logits()
    torch.testing.assert_close(keep_min_p(logits, p), their_processor("MinPLogitsWarper", p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    logits, history = random_logits(), random_history()
    expected = their_processor("RepetitionPenaltyLogitsProcessor", penalty)(history, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen_in(history), penalty), expected)


def test_all_filters_together_run_in_the_order_of_transformers():
    logits, history = random_logits(), random_history()
    sampling = Sampling(temperature=0.6, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=1.4)
    expected = logits.clone()
    for processor in (
        their_processor("RepetitionPenaltyLogitsProcessor", 1.4),
        their_processor("TemperatureLogitsWarper", 0.6),
        their_processor("TopKLogitsWarper", 40),
        their_processor("TopPLogitsWarper", 0.8),
        their_processor("MinPLogitsWarper", 0.05),
    ):
        expected = processor(history, expected)
    torch.testing.assert_close(process_logits(logits, sampling, seen_in(history)), expected)


@pytest.mark.parametrize("temperature", [0.001, 0.3, 1.0, 5.0])
def test_the_temperature_is_that_of_transformers(temperature):
    logits = random_logits()
    expected = their_processor("TemperatureLogitsWarper", temperature)(None, logits)
    torch.testing.assert_close(process_logits(logits, Sampling(temperature=temperature)), expected)


def test_filters_keep_suppressed_tokens_suppressed():
    logits = random_logits()
    logits[:, 50:] = NEG_INF
    sampling = Sampling(temperature=2.0, top_k=100, top_p=0.99, min_p=0.001, repetition_penalty=2.0)
    assert (process_logits(logits, sampling, torch.ones_like(logits, dtype=torch.bool))[:, 50:] == NEG_INF).all()


def test_filters_do_not_modify_their_input():
    logits = random_logits()
    before = logits.clone()
    sampling = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2.0)
    process_logits(logits, sampling, torch.ones_like(logits, dtype=torch.bool))
    assert torch.equal(logits, before)


def test_temperature_0_is_argmax_whatever_the_other_filters():
    logits = random_logits()
    assert torch.equal(next_ids(logits, Sampling(temperature=0, top_k=2, top_p=0.1, min_p=0.9)), logits.argmax(-1))


def test_sampled_frequencies_equal_probabilities():
    logits = torch.tensor([[2.0, NEG_INF, 0.5, 0.0, NEG_INF, -1.0]])
    n = 20_000
    uniforms = (torch.arange(n) + 0.5) / n  # evenly spaced over the unit interval
    counts = torch.bincount(sample(logits.expand(n, -1), uniforms), minlength=6)
    torch.testing.assert_close(counts / n, logits[0].softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_suppressed_token_is_never_sampled(uniform):
    logits = random_logits(500, 300)
    logits[:, :9] = logits[:, -9:] = NEG_INF
    ids = sample(logits, torch.full((500,), uniform))
    assert ids.min() >= 9
    assert ids.max() < 291


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1),
        ("temperature", 1e-9),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", None),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("seed", -3),
        ("seed", 2**63),
        ("max_new_tokens", 10**30),
        ("temperature", 1e7),
        ("repetition_penalty", float("inf")),
    ],
)
def test_an_invalid_setting_is_rejected_with_name_and_value(setting, value):
    with pytest.raises(UserError) as caught:
        Sampling(**{setting: value})
    assert f"{setting} is {value!r}; it must be " in str(caught.value)


def test_the_limits_of_the_ranges_are_valid():
    Sampling(max_new_tokens=1, temperature=0, top_k=1, top_p=1, min_p=0, repetition_penalty=0.1, seed=0)
    Sampling(temperature=10**6, top_k=10**9, top_p=1.0, min_p=1, repetition_penalty=10**6, seed=2**63 - 1)

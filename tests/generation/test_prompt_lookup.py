"""Prompt lookup decoding does not change replies, and drafts only where that saves forward passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cpu_weights import needs_fbgemm
from tiny import lively_model, tiny_tokenizer

import mini_chat_gpt.generation.prompt_lookup as lookup
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import decode, random_streams
from mini_chat_gpt.generation.prompt_lookup import PromptLookupDecoder, supports_prompt_lookup
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TOKENIZER = tiny_tokenizer(300)
LONG = {"context_length": 256, "n_layer": 2}
SUPPRESSED = torch.tensor([2])


def replies(
    form: CPUInferenceModel, tokenizer: ChatTokenizer, prompt: list[int], sampling: Sampling
) -> list[list[int]]:
    """The replies without and with prompt lookup."""
    return [
        [
            step.token_id
            for step in decode(form, tokenizer, [prompt], sampling, random_streams(0, [0]), prompt_lookup=enabled)
        ]
        for enabled in (False, True)
    ]


@torch.inference_mode()
def logits_with_lookup(decoder: PromptLookupDecoder, prompt: list[int], script: list[int]) -> torch.Tensor:
    """Logits after each token of a given reply."""
    cache = decoder.model.make_cache(1)
    decoder.model.next_logits(torch.tensor([prompt]), cache, [len(prompt)])
    logits = []
    for at, token_id in enumerate(script):
        logits.append(decoder.next_logits(torch.tensor([[token_id]]), cache, [1]).clone())
        assert cache.lengths == [len(prompt) + at + 1]
    return torch.cat(logits)


@torch.inference_mode()
def logits_without_lookup(form: CPUInferenceModel, prompt: list[int], script: list[int]) -> torch.Tensor:
    cache = form.make_cache(1)
    form.next_logits(torch.tensor([prompt]), cache, [len(prompt)])
    logits = [form.next_logits(torch.tensor([[token_id]]), cache, [1]) for token_id in script]
    return torch.cat(logits).index_fill(1, SUPPRESSED, float("-inf"))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), copied=st.integers(4, 40), layers=st.integers(1, 3))
def test_greedy_replies_are_the_same_with_and_without_lookup(seed, copied, layers):
    form = CPUInferenceModel(lively_model(300, seed % 50, context_length=256, n_layer=layers))
    part = torch.randint(3, 290, (copied,), generator=torch.Generator().manual_seed(seed)).tolist()
    plain, with_lookup = replies(
        form, TOKENIZER, [1, *part, *part[: copied // 2]], Sampling(temperature=0, max_new_tokens=80)
    )
    assert with_lookup == plain


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_replies_of_a_trained_model_are_the_same_with_and_without_lookup(real_data, temperature):
    model, tokenizer = load_checkpoint(real_data / "stories260K" / "stories260K.bin", "cpu")
    form, sampling = CPUInferenceModel(model), Sampling(temperature=temperature, max_new_tokens=200)
    for text in ("Once upon a time", "Tom had a red ball. Tom had a red", "Lily and Ben went to the park. They saw a"):
        plain, with_lookup = replies(form, tokenizer, [tokenizer.document_id, *tokenizer.encode(text)], sampling)
        assert with_lookup == plain


@needs_fbgemm
def test_replies_in_half_precision_are_the_same_with_and_without_lookup(real_data):
    model, tokenizer = load_checkpoint(real_data / "stories260K" / "stories260K.bin", "cpu")
    prompt = [tokenizer.document_id, *tokenizer.encode("Lily saw a big dog. Lily saw a big")]
    plain, with_lookup = replies(
        CPUInferenceModel(model, "bf16"), tokenizer, prompt, Sampling(temperature=0, max_new_tokens=200)
    )
    assert with_lookup == plain


def test_tied_tokens_give_the_plain_loops_reply():
    model = lively_model(300, **LONG)
    with torch.no_grad():
        model.embed_tokens.weight[150:300] = model.embed_tokens.weight[:150]  # each token has a twin
    form, prompt = CPUInferenceModel(model), [5, 6, 7, 8, 9] * 6
    plain, with_lookup = replies(form, TOKENIZER, prompt, Sampling(temperature=0, max_new_tokens=60))
    assert with_lookup == plain


def test_close_decisions_are_recomputed_bit_for_bit(monkeypatch):
    monkeypatch.setattr(lookup, "MIN_LOGIT_GAP", float("inf"))
    form, prompt = CPUInferenceModel(lively_model(300, **LONG)), list(range(10, 60))
    script = prompt[5:45]
    assert torch.equal(
        logits_with_lookup(PromptLookupDecoder(form, prompt, SUPPRESSED), prompt, script),
        logits_without_lookup(form, prompt, script),
    )


def test_logits_equal_those_without_lookup_up_to_rounding():
    form, prompt = CPUInferenceModel(lively_model(300, **LONG)), list(range(10, 60))
    script = [*prompt[5:25], 200, 201, *prompt[30:45], 7, 7, 7, 7]
    got = logits_with_lookup(PromptLookupDecoder(form, prompt, SUPPRESSED), prompt, script)
    torch.testing.assert_close(got, logits_without_lookup(form, prompt, script), atol=1e-5, rtol=0)


def test_a_copied_reply_needs_few_forward_passes():
    form, prompt = CPUInferenceModel(lively_model(300, **LONG)), list(range(10, 110))
    decoder = PromptLookupDecoder(form, prompt, SUPPRESSED)
    logits_with_lookup(decoder, prompt, prompt[20:80])
    assert decoder.n_forward <= 20


def test_a_reply_that_repeats_itself_needs_few_forward_passes():
    form, prompt = CPUInferenceModel(lively_model(300, **LONG)), [1, 2, 3]
    decoder = PromptLookupDecoder(form, prompt, SUPPRESSED)
    logits_with_lookup(decoder, prompt, [50, 60, 70, 80] * 15)
    assert decoder.n_forward <= 25


def test_a_reply_that_copies_nothing_needs_a_forward_pass_per_token():
    form, prompt = CPUInferenceModel(lively_model(300, **LONG)), list(range(10, 60))
    decoder = PromptLookupDecoder(form, prompt, SUPPRESSED)
    logits_with_lookup(decoder, prompt, list(range(100, 160)))
    assert decoder.n_forward == 60


def test_drafting_stops_after_rejected_drafts(monkeypatch):
    model = lively_model(300, **LONG)
    form, draft_sizes = CPUInferenceModel(model), []
    all_logits = form.all_logits
    form.all_logits = lambda ids, cache: (draft_sizes.append(ids.shape[1]), all_logits(ids, cache))[1]  # type: ignore[method-assign]
    prompt = [part for at in range(20) for part in (7, 8, 9, 100 + at)]
    script = [part for at in range(20) for part in (7, 8, 9, 200 + at)]  # a different token after each 7 8 9
    logits_with_lookup(PromptLookupDecoder(form, prompt, SUPPRESSED), prompt, script)
    assert len(draft_sizes) <= 6


def test_drafts_do_not_exceed_the_context():
    form, prompt = CPUInferenceModel(lively_model(300)), list(range(10, 40)) * 2
    script = [10, 11, 12, 13]  # 60 + 4 fill the context
    assert len(logits_with_lookup(PromptLookupDecoder(form, prompt, SUPPRESSED), prompt, script)) == 4


def test_8_bit_weights_and_plain_models_do_not_support_lookup():
    model = lively_model(300)
    assert supports_prompt_lookup(CPUInferenceModel(model))
    assert not supports_prompt_lookup(model)
    if "fbgemm" in torch.backends.quantized.supported_engines:
        assert not supports_prompt_lookup(CPUInferenceModel(model, "int8"))

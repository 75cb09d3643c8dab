"""The inference model for CPUs against the model that it is made from, and against transformers."""

import pytest
import torch
from test_cpu_weights import needs_fbgemm
from tiny import lively_model, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel, can_decode
from mini_chat_gpt.generation.decode import for_inference
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate_replies
from mini_chat_gpt.model import GPT

VOCABULARY = 300
ARCHITECTURES = {
    "llama": {},
    "no groups": {"n_kv_head": 4},
    "one kv head": {"n_kv_head": 1},
    "windows": {"windows": [3, None]},
    "windows in groups": {"windows": [5, 4], "n_kv_head": 1},
    "learned positions": {"position": "learned"},
    "gpt-2": {"position": "learned", "norm": "layernorm", "bias": True, "qkv_bias": True, "activation": "gelu_tanh"},
    "layernorm without bias": {"norm": "layernorm"},
    "qkv bias": {"qkv_bias": True},
    "all biases": {"bias": True, "qkv_bias": True},
    "biases in attention": {"bias": True, "qkv_bias": True, "mlp_bias": False},
    "biases in the mlp": {"mlp_bias": True},
    "qk norm": {"qk_norm": True},
    "norm of all heads together": {"qk_norm": "all_heads"},
    "norms after": {"norm_placement": "after"},
    "gemma": {
        "norm_placement": "both",
        "norm_offset": True,
        "qk_norm": True,
        "activation": "geglu",
        "embedding_factor": 5.6,
        "windows": [4, None],
        "rope_theta": 1e5,
        "window_rope_theta": 1e3,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "untied head": {"tie_embeddings": False},
    "geglu": {"activation": "geglu"},
    "relu squared": {"activation": "relu2"},
    "own head size": {"head_dim": 16, "intermediate_size": 40},
    "own scale": {"attention_scale": 0.2},
    "rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0},
}


def some_ids(n_rows: int = 3, n: int = 40) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (n_rows, n), generator=torch.Generator().manual_seed(1))


def read_in_steps(model: GPT | CPUInferenceModel, ids: torch.Tensor, first: list[int], n_steps: int) -> torch.Tensor:
    """Logits after prompts of lengths `first`, and after each of the tokens that follow, (steps + 1, B, V)."""
    cache = model.make_cache(len(ids))
    with torch.no_grad():
        logits = [model.next_logits(ids[:, : max(first)], cache, first)]
        for step in range(n_steps):
            following = torch.stack([row[at + step : at + step + 1] for row, at in zip(ids, first, strict=True)])
            logits.append(model.next_logits(following, cache, [1] * len(ids)))
    return torch.stack(logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "first", [[20, 20, 20], [20, 7, 13], [17], [1]], ids=["alike", "ragged", "one row", "one token"]
)
def test_float32_logits_equal_the_models(architecture, first):
    model, ids = lively_model(VOCABULARY, **ARCHITECTURES[architecture]), some_ids(len(first))
    expected = read_in_steps(model, ids, first, 12)
    torch.testing.assert_close(read_in_steps(CPUInferenceModel(model), ids, first, 12), expected, atol=1e-5, rtol=0)


def test_logits_without_packed_weights_equal_the_models():
    model, ids = lively_model(VOCABULARY), some_ids()
    got = read_in_steps(CPUInferenceModel(model, few_rows=False), ids, [20, 7, 13], 12)
    torch.testing.assert_close(got, read_in_steps(model, ids, [20, 7, 13], 12), atol=1e-5, rtol=0)


@needs_fbgemm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("weights", "error"), [("bf16", 0.02), ("int8", 0.06)])
@pytest.mark.parametrize("first", [[20, 7, 13], [17]], ids=["ragged", "one row"])
def test_logits_with_smaller_weights_are_close_to_the_models(architecture, weights, error, first):
    model, ids = lively_model(VOCABULARY, **ARCHITECTURES[architecture]), some_ids(len(first))
    expected = read_in_steps(model, ids, first, 12)
    got = read_in_steps(CPUInferenceModel(model, weights), ids, first, 12)
    assert (got - expected).square().mean().sqrt() < error * expected.std()


@pytest.mark.parametrize("architecture", ["llama", "windows", "learned positions"])
def test_logits_of_several_tokens_at_once_equal_those_one_by_one(architecture):
    model, ids = lively_model(VOCABULARY, **ARCHITECTURES[architecture]), some_ids(1)
    fast = CPUInferenceModel(model)
    cache = fast.make_cache(1)
    fast.next_logits(ids[:, :9], cache, [9])
    together = fast.all_logits(ids[:, 9:16], cache)[0]
    singly = read_in_steps(fast, ids, [9], 7)[1:, 0]
    torch.testing.assert_close(together, singly, atol=1e-5, rtol=0)
    assert cache.lengths == [16]


def test_logits_after_a_long_prompt_equal_the_models():
    model = lively_model(VOCABULARY, context_length=512, windows=[100, None])
    ids = some_ids(2, 300)
    for first in ([300, 300], [300, 129]):
        expected = read_in_steps(model, ids, first, 0)
        torch.testing.assert_close(read_in_steps(CPUInferenceModel(model), ids, first, 0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_rows", [1, 2])
def test_a_full_cache_is_an_error(n_rows):
    fast, ids = CPUInferenceModel(lively_model(VOCABULARY)), some_ids(n_rows)
    cache = fast.make_cache(n_rows, 5)
    fast.next_logits(ids[:, :5], cache, [5] * n_rows)
    with pytest.raises(ValueError, match="holds 5 tokens, 6 are needed"):
        fast.next_logits(ids[:, 5:6], cache, [1] * n_rows)


def test_greedy_tokens_equal_those_of_transformers():
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from mini_chat_gpt.checkpoints.hf import to_hf_config, to_hf_state

    model, tokenizer, ids = lively_model(VOCABULARY), tiny_tokenizer(VOCABULARY), some_ids(1, 8)
    theirs = LlamaForCausalLM(LlamaConfig(**to_hf_config(model.config, tokenizer))).eval()
    theirs.load_state_dict(to_hf_state(model.state_dict(), model.config), strict=False)
    theirs.tie_weights()
    settings = GenerationConfig(max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(ids, generation_config=settings)[0, 8:].tolist()
    fast = CPUInferenceModel(model)
    cache, got, new = fast.make_cache(1), [], ids
    for _ in range(30):
        got.append(int(fast.next_logits(new, cache, [new.shape[1]]).argmax()))
        new = torch.tensor([got[-1:]])
    assert got == expected


# Which models have one


def test_only_plain_float32_models_on_a_cpu_are_replaced():
    model = lively_model(VOCABULARY)
    assert can_decode(model)
    assert not can_decode(lively_model(VOCABULARY).bfloat16())
    assert not can_decode(type("Own", (GPT,), {})(model.config))
    model.next_logits = None  # type: ignore[assignment]
    assert not can_decode(model)
    adapted = lively_model(VOCABULARY)
    torch.nn.utils.parametrizations.weight_norm(adapted.layers[0].mlp.up_proj)
    assert not can_decode(adapted)


def test_other_models_are_used_as_they_are_unless_weights_are_requested():
    half = lively_model(VOCABULARY).bfloat16()
    assert for_inference(half) is half
    with pytest.raises(UserError, match="Only a float32 model on a CPU"):
        for_inference(half, weights="int8")


def test_an_inference_model_is_used_as_it_is():
    fast = CPUInferenceModel(lively_model(VOCABULARY))
    assert for_inference(fast, weights="int8") is fast


@needs_fbgemm
@pytest.mark.parametrize("weights", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("batch_size", [1, 6])
def test_replies_with_other_weights(weights, batch_size):
    tokenizer = tiny_tokenizer(VOCABULARY)
    model = lively_model(tokenizer.vocab_size)
    sampling = Sampling(temperature=0, max_new_tokens=12)
    prompts = ["Once", "Sara had a red ball. Then", "", "little cat", "Tom 😀", "Once upon a time there"]
    replies = generate_replies(CPUInferenceModel(model, weights), tokenizer, prompts, sampling, batch_size=batch_size)
    exact = generate_replies(model, tokenizer, prompts, sampling, batch_size=batch_size)
    assert [reply.n_prompt for reply in replies] == [reply.n_prompt for reply in exact]
    same_start = [ours.ids[:1] == theirs.ids[:1] for ours, theirs in zip(replies, exact, strict=True)]
    assert sum(same_start) >= 4
    if weights == "float32":
        assert replies == exact

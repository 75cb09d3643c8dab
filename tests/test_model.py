"""The model against Hugging Face's Llama, and its different ways of computing the same against each other."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from tiny import tiny_model

from mini_chat_gpt.config import GPTConfig, ModelSection
from mini_chat_gpt.data.batching import Example, collate, share_prefix
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops import attention


def small(**changes) -> GPTConfig:
    fields = {"vocab_size": 97, "context_length": 64, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    return GPTConfig(**fields | changes)


def build(config: GPTConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():  # far from the initialization, so that every path matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


VARIANTS = {
    "native": small(),
    "untied": small(tie_embeddings=False),
    "gpt2-like": small(norm="layernorm", position="learned", activation="gelu_tanh", bias=True, qkv_bias=True),
    "qwen-like": small(qk_norm=True, qkv_bias=True, head_dim=16),
    "neo-like": small(attention_scale=1.0, windows=(None, 5, None), position="learned", activation="gelu"),
    "windowed": small(windows=(3, 5, 7)),
    "gemma-like": small(
        norm_placement="both",
        norm_offset=True,
        qk_norm=True,
        activation="geglu",
        embedding_factor=5.6,
        windows=(4, 4, None),
        rope_theta=1e5,
        window_rope_theta=1e3,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    ),
    "olmo-like": small(norm_placement="after", qk_norm="all_heads"),
}


def gemma3():
    """transformers' Gemma 3 (text), our config of it, and our name of each of its norms."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
    }
    theirs = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=48, max_position_embeddings=64, sliding_window=5, query_pre_attn_scalar=10,
        layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters=rope, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    ours = GPTConfig(
        vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_kv_head=2, head_dim=16, intermediate_size=48, context_length=64,
        norm_placement="both", norm_offset=True, norm_eps=theirs.rms_norm_eps, qk_norm=True, activation="geglu",
        embedding_factor=32**0.5, windows=(5, None, 5, None), rope_theta=1e5, rope_scaling={"rope_type": "linear", "factor": 2.0},
        window_rope_theta=1e3, attention_scale=10**-0.5,
    )  # fmt: skip
    norms = {
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "attention_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
    return Gemma3ForCausalLM(theirs), ours, norms


def olmo2():
    """The same of OLMo 2."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    theirs = Olmo2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=64, eos_token_id=1,
    )  # fmt: skip
    ours = GPTConfig(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_kv_head=2, intermediate_size=48, context_length=64,
        norm_placement="after", norm_eps=theirs.rms_norm_eps, qk_norm="all_heads", tie_embeddings=False,
    )  # fmt: skip
    norms = {
        "attention_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
    return Olmo2ForCausalLM(theirs), ours, norms


@pytest.mark.parametrize("family", [gemma3, olmo2])
def test_logits_equal_transformers_gemma_and_olmo(family):
    torch.manual_seed(3)
    theirs, config, norms = family()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model, state = GPT(config), theirs.state_dict()

    def their_name(name):
        ours = next((ours for ours in norms if ours in name), None)
        name = name.replace(ours, norms[ours]) if ours else name
        return name if name.startswith("lm_head") else f"model.{name}"

    model.load_state_dict({name: state[their_name(name)] for name in model.state_dict()})
    assert config.n_parameters == model.n_parameters() == theirs.num_parameters()
    ids = torch.randint(0, 64, (2, 40))
    expected = theirs.eval()(ids).logits
    torch.testing.assert_close(model.eval()(ids), expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("scaling", [None, "linear", "llama3"])
def test_logits_equal_transformers_llama(tie, scaling):
    from transformers import LlamaConfig, LlamaForCausalLM

    scalings = {
        None: None,
        "linear": {"rope_type": "linear", "factor": 2.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
    model = build(small(tie_embeddings=tie, rope_theta=5000.0, rope_scaling=scalings[scaling]))
    config = model.config
    rope = dict(scalings[scaling] or {"rope_type": "default"}) | {"rope_theta": 5000.0}
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=tie,
        )
    ).eval()
    state = {
        (name if name.startswith("lm_head") else f"model.{name}"): tensor for name, tensor in model.state_dict().items()
    }
    theirs.load_state_dict(state, strict=True)
    ids = torch.randint(0, config.vocab_size, (3, 50))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def examples(config: GPTConfig, lengths=(5, 17, 9, 2)) -> list[Example]:
    generator = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        trained = generator.random(length) < 0.5
        trained[-1] = True
        ids = generator.integers(0, config.vocab_size, length).astype(np.int32)
        made.append(Example(ids, trained, weight=1.0 + number, kind=f"kind{number % 2}"))
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_the_losses_of_a_packed_batch_equal_those_of_its_examples_one_by_one(name):
    model = build(VARIANTS[name])
    made = examples(model.config)
    together = model(collate(made))
    batches = [collate([example]) for example in made]
    apart = [model(batch) for batch in batches]
    losses = torch.cat([sums.losses[: batch.n_targets] for sums, batch in zip(apart, batches, strict=True)])
    torch.testing.assert_close(together.losses[: len(losses)], losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.weighted_sum, sum(sums.weighted_sum for sums in apart), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_prefix_branches_have_the_loss_and_gradients_of_separate_conversations(name):
    model = build(VARIANTS[name])
    rng, families = np.random.default_rng(3), []
    for lengths in ((9, 3, 5, 1), (4, 20), (30, 2, 2)):  # of the prefix, and of the rest of each conversation
        prefix = rng.integers(0, model.config.vocab_size, lengths[0])
        family = []
        for length in lengths[1:]:
            ids = np.concatenate([prefix, rng.integers(0, model.config.vocab_size, length)]).astype(np.int32)
            trained = rng.random(len(ids)) < 0.5
            trained[-1] = True
            family.append(Example(ids, trained, rng.random(len(ids)).astype(np.float32) + 0.5, "x"))
        families.append(family)
    alone = examples(model.config)[0]
    found = []
    for batch in ([*map(share_prefix, families), alone], [*chain(*families), alone]):
        model.zero_grad()
        loss = model(collate(batch)).weighted_sum
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for shared, separate in zip(*found, strict=True):
        assert (shared - separate).abs().max() <= 1e-5 * separate.abs().max() + 1e-6


def test_the_context_limits_each_conversation_not_all_that_share_a_prefix():
    model = tiny_model(64)
    length = model.config.context_length
    ids = np.zeros(length, dtype=np.int32)
    other = np.concatenate([ids[:-3], [1, 2, 3]]).astype(np.int32)
    family = [Example(each, np.arange(length) == length - 1, 1.0, "x") for each in (ids, other)]
    assert model(collate([share_prefix(family)])).weighted_sum.isfinite()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradients_of_a_packed_batch_equal_those_of_causal_logits(name):
    model = build(VARIANTS[name])
    made = examples(model.config)
    model(collate(made)).weighted_sum.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for example in made:
        ids = torch.from_numpy(example.ids.astype(np.int64))
        logits = model(ids[None])[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        (losses * torch.from_numpy(example.loss_mask[1:]) * example.weight).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_equals_uncached(monkeypatch, name, on_cpu):
    monkeypatch.setattr(attention, "on_cpu", lambda _: on_cpu)  # GPUs have a path of their own
    model = build(VARIANTS[name])
    ids = torch.randint(0, model.config.vocab_size, (2, 40))
    cache = model.make_cache(2)
    with torch.no_grad():
        full = model(ids)
        got = [model.next_logits(ids[:, :7], cache, [7, 7]), model.next_logits(ids[:, 7:12], cache, [5, 5])]
        got += [model.next_logits(ids[:, t : t + 1], cache, [1, 1]) for t in range(12, 40)]
    want = [full[:, 6], full[:, 11]] + [full[:, t] for t in range(12, 40)]
    torch.testing.assert_close(torch.stack(got), torch.stack(want), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_different_length_decode_as_they_do_alone(name):
    model = build(VARIANTS[name])
    ids = torch.randint(0, model.config.vocab_size, (3, 30))
    lengths = [4, 11, 7]
    cache = model.make_cache(3)
    with torch.no_grad():
        got = [model.next_logits(ids[:, :11], cache, lengths)]
        for step in range(10):
            following = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
            got.append(model.next_logits(following, cache, [1, 1, 1]))
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1])[0]
            for step in range(11):
                torch.testing.assert_close(got[step][row], alone[length - 1 + step], atol=1e-4, rtol=1e-4)


def test_removing_rows_from_the_cache_does_not_change_the_others():
    model = build(small())
    ids = torch.randint(0, 97, (3, 12))
    cache = model.make_cache(3)
    with torch.no_grad():
        model.next_logits(ids[:, :8], cache, [8, 5, 8])
        cache.keep_rows([1, 2])
        got = model.next_logits(torch.stack([ids[1, 5:6], ids[2, 8:9]]), cache, [1, 1])
        torch.testing.assert_close(got[0], model(ids[1:2, :6])[0, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got[1], model(ids[2:3, :9])[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", ["1m", "3m", "15m", "30m"])
def test_the_loss_at_initialization_is_that_of_a_uniform_guess(preset):
    config = ModelSection(preset=preset).gpt_config(4096)
    torch.manual_seed(0)
    model = GPT(config)
    ids = torch.randint(0, config.vocab_size, (2, 65))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_the_largest_preset_has_the_size_of_gpt2():
    with torch.device("meta"):
        model = GPT(ModelSection(preset="124m").gpt_config(50304))
    assert model.n_parameters() == pytest.approx(124e6, rel=0.03)


def test_the_loss_of_a_batch_without_labels_is_a_connected_zero():
    model = build(small())
    batch = collate([Example(np.arange(6, dtype=np.int32), np.array([False] * 5 + [True]), 1.0, "x")])
    empty = torch.zeros(0, dtype=torch.int64)
    from dataclasses import replace

    sums = model(replace(batch, target_positions=empty, labels=empty, kinds=empty, weights=torch.zeros(0)))
    sums.weighted_sum.backward()
    assert sums.weighted_sum.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_new_rows_of_the_table_are_the_mean_of_the_old_rows():
    model = build(small())
    before = model.embed_tokens.weight.detach().clone()
    model.resize_vocabulary(101)
    assert model.lm_head.weight is model.embed_tokens.weight
    torch.testing.assert_close(model.embed_tokens.weight[97:], before.mean(0, keepdim=True).expand(4, -1))
    torch.testing.assert_close(model.embed_tokens.weight[:97], before)
    assert model(torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 2, 101)


def test_more_tokens_than_the_context_raises_an_error_with_both_numbers():
    with pytest.raises(ValueError, match="65 tokens do not fit into the context of 64"):
        build(small())(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("context", [5, 16, 100])
def test_padding_changes_no_loss_and_no_gradient(context):
    example = Example(np.arange(5, dtype=np.int32), np.array([False, True, True, False, True]), 2.0, "a")
    results = []
    for multiple in (1, 64):
        model, batch = tiny_model(50, context_length=context), collate([example] * 3, pad_to_multiple_of=multiple)
        assert (batch.n_tokens, batch.n_examples, batch.n_targets, batch.total_weight) == (15, 3, 9, 18.0)
        sums = model(batch)
        sums.weighted_sum.backward()
        results.append((sums.weighted_sum, sums.losses[: batch.n_targets], *(p.grad for p in model.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def checkpointed_pair(**changes) -> tuple[GPT, GPT]:
    """The same model twice in training; the second uses activation checkpointing."""
    plain, checkpointed = (tiny_model(97, n_layer=4, **changes).train() for _ in range(2))
    checkpointed.activation_checkpointing = True
    return plain, checkpointed


def saved_bytes(model: GPT) -> int:
    """Bytes that autograd saves for the backward pass, without weights."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = collate(examples(model.config, lengths=(60,) * 8))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = model(batch)
    del sums
    return sum(size for storage, size in kept.items() if storage not in weights)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_loss_and_gradients_bit_for_bit(dropout):
    results = []
    for model in checkpointed_pair():
        for block in model.layers:
            block.mlp = torch.nn.Sequential(block.mlp, torch.nn.Dropout(dropout))
        torch.manual_seed(1)
        sums = model(collate(examples(model.config)))
        torch.rand(7)  # random numbers drawn between the two passes must not matter
        sums.weighted_sum.backward()
        results.append((sums.weighted_sum, sums.losses, *(p.grad for p in model.parameters())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_activation_checkpointing_saves_memory():
    plain, checkpointed = checkpointed_pair()
    t, c, layers = 512, plain.config.n_embd, plain.config.n_layer
    entering_the_blocks = layers * t * c * 4  # not saved through autograd's hooks
    assert saved_bytes(checkpointed) + entering_the_blocks < 0.4 * saved_bytes(plain)


def test_evaluation_computes_nothing_twice():
    _, model = checkpointed_pair()
    calls = []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    batch = collate(examples(model.config))
    model.eval()(batch).weighted_sum.backward()
    assert len(calls) == 1
    model.train()(batch).weighted_sum.backward()
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["native", "gpt2-like"])
def test_weights_begin_with_their_documented_distribution(name):
    torch.manual_seed(0)
    config = VARIANTS[name].model_copy(update={"n_embd": 128})
    for key, parameter in GPT(config).named_parameters():
        if parameter.dim() < 2:
            assert (parameter == (0 if key.endswith("bias") else 1)).all(), key
        else:
            smaller = math.sqrt(2 * config.n_layer) if key.endswith(("o_proj.weight", "down_proj.weight")) else 1
            assert parameter.std().item() == pytest.approx(0.02 / smaller, rel=0.05), key

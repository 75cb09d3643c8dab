"""Adapters compute the same as PEFT's, train nothing else, and leave a plain model when they are merged."""

import copy

import pytest
import torch
from tiny import lively_model

from mini_chat_gpt.checkpoints.hf import to_hf_state
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.lora import LoraLinear, adapters, add_lora, merge_lora
from mini_chat_gpt.model import GPT

KINDS = [{}, {"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}]
IDS = torch.arange(40).view(2, 20) % 23


def model_with(**settings) -> GPT:
    model = lively_model(64)
    add_lora(model, LoraSettings(**{"rank": 4, "alpha": 8, "dropout": 0.0, **settings}))
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapters(model):
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
        if layer.magnitude is not None:
            layer.magnitude.data.mul_(1.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_gradients_equal_pefts(kind):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    ours = model_with(**kind)
    config = ours.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.n_embd, intermediate_size=config.mlp_size,
            num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.kv_heads,
            head_dim=config.head_size, max_position_embeddings=config.context_length, rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta, tie_word_embeddings=config.tie_embeddings, attention_bias=config.qkv_bias,
        )
    )  # fmt: skip
    theirs.load_state_dict(to_hf_state(lively_model(64).state_dict(), config), strict=False)
    names = {"use_rslora": kind.get("rslora", False), "use_dora": kind.get("dora", False)}
    settings = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", **names)
    theirs = peft.get_peft_model(theirs, settings)
    weights = dict(theirs.named_parameters())
    pairs = []
    for name, layer in adapters(ours):
        place = f"base_model.model.model.{name}"
        pairs += [
            (weights[f"{place}.lora_A.default.weight"], layer.lora_A),
            (weights[f"{place}.lora_B.default.weight"], layer.lora_B),
        ]
        if layer.magnitude is not None:
            pairs.append((weights[f"{place}.lora_magnitude_vector.default.weight"], layer.magnitude))
    for their, our in pairs:
        their.data.copy_(our.data)
    logits, expected = ours(IDS), theirs(IDS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for their, our in pairs:
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-4 * float(their.grad.abs().max()))
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert len(trained) == len(pairs) == sum(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_no_prediction(kind):
    model = lively_model(64)
    before = model(IDS)
    add_lora(model, LoraSettings(rank=4, **kind))
    torch.testing.assert_close(model.eval()(IDS), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_plain_and_predicts_the_same(kind):
    model = model_with(**kind)
    before, names = model(IDS), set(lively_model(64).state_dict())
    merge_lora(model)
    assert set(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(IDS), before, rtol=1e-5, atol=1e-5)


def test_only_the_adapters_are_trained():
    model = model_with(dora=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS).square().mean().backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.endswith(("lora_A", "lora_B", "magnitude")) for name in moved)


def test_dropout_is_used_in_training_only():
    model = model_with(dropout=0.5)
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
    model.eval()
    assert torch.equal(model(IDS), model(IDS))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q_proj", "v_proj"), {"self_attn.q_proj", "self_attn.v_proj"}),
        (("layers.*.mlp.*",), {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        (("layers.0.self_attn.o_proj",), {"self_attn.o_proj"}),
    ],
)
def test_targets_match_by_name_or_pattern(targets, layers):
    names = add_lora(lively_model(64), LoraSettings(targets=targets))
    assert {name.split(".", 2)[2] for name in names} == layers


def test_all_linear_means_the_layers_of_the_blocks():
    model = lively_model(64)
    names = add_lora(model, LoraSettings())
    assert len(names) == 7 * model.config.n_layer
    assert not any("lm_head" in name for name in names)


def test_a_target_that_matches_nothing_raises():
    with pytest.raises(UserError, match=r"lora.targets: 'query' matches no layer of this model; it has q_proj, k_proj"):
        add_lora(lively_model(64), LoraSettings(targets=("query",)))


def test_a_new_adapter_begins_uniformly_within_one_over_the_root_of_its_inputs():
    """As PEFT and `nn.Linear` do."""
    layer = LoraLinear(torch.nn.Linear(400, 50), LoraSettings(rank=64))
    assert 0.99 / 20 < layer.lora_A.abs().max() <= 1 / 20
    assert not layer.lora_B.any()


def test_the_weight_of_an_adapted_layer_is_no_part_of_the_gradient():
    layer = LoraLinear(torch.nn.Linear(4, 4), LoraSettings(rank=2))
    assert not layer.weight().requires_grad
    assert not layer.row_norms().requires_grad


def test_the_number_of_parameters_does_not_depend_on_the_precision_of_the_frozen_weights():
    plain, half, four_bits = (lively_model(64) for _ in range(3))
    add_lora(plain, LoraSettings(rank=2))
    add_lora(half, LoraSettings(rank=2), "bf16")
    add_lora(four_bits, LoraSettings(rank=2), "nf4")
    assert plain.n_parameters() == half.n_parameters() == four_bits.n_parameters()

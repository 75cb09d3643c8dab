"""A field that is added to `GPTConfig` and acts in the forward pass: each part applies it, or says that it does not.

The field here is a factor on the embeddings, as some model families have it. Nothing but the forward pass knows it: neither
the decoders for CPUs nor the Hugging Face writer nor the compiler.
"""

import json

import pytest
import torch
from tiny import lively_model, tiny_config, tiny_tokenizer

from mini_chat_gpt.checkpoints.hf import IMPLEMENTED as HF_FIELDS
from mini_chat_gpt.checkpoints.hf import to_hf_config
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.config_fields import unsupported_fields
from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig, SFTSection
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.generation.cpu_model import IMPLEMENTED as CPU_FIELDS
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel, can_decode
from mini_chat_gpt.generation.cpu_single_token import IMPLEMENTED as SINGLE_TOKEN_FIELDS
from mini_chat_gpt.generation.cpu_single_token import can_decode_single_tokens
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import for_inference, generate_replies
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.compile import IMPLEMENTED as COMPILED_FIELDS
from mini_chat_gpt.training.compile import choose_compiling
from mini_chat_gpt.training.train_step import TrainStep

FACTOR = 3.0


class LaterConfig(GPTConfig):
    input_factor: float = 1.0


@pytest.fixture(autouse=True)
def _forward_pass_with_the_field(monkeypatch):
    """Every module of the model keeps its type, so that only the config shows that the field is in use."""
    initialize = GPT.__init__

    def __init__(self: GPT, config: GPTConfig) -> None:
        initialize(self, config)
        factor = getattr(config, "input_factor", 1.0)
        self.embed_tokens.register_forward_hook(lambda module, inputs, embedded: embedded * factor)

    monkeypatch.setattr(GPT, "__init__", __init__)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def plain_model(tokenizer) -> GPT:
    return lively_model(tokenizer.vocab_size)


def model_with(factor: float, tokenizer) -> GPT:
    """The plain model's weights in a model with the field."""
    plain = plain_model(tokenizer)
    model = GPT(LaterConfig(**plain.config.model_dump(), input_factor=factor))
    model.load_state_dict(plain.state_dict())
    return model.eval()


def reference(tokenizer) -> GPT:
    """An untied plain model that computes the same: its embedding is the tied one times the factor."""
    plain = plain_model(tokenizer)
    config = plain.config.model_copy(update={"tie_embeddings": False})
    model = GPT(config)
    model.load_state_dict(plain.state_dict())
    model.embed_tokens.weight.data.mul_(FACTOR)
    return model.eval()


def test_training_applies_it(tokenizer):
    ids = torch.randint(0, tokenizer.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
    example = Example(ids.int().numpy(), (torch.arange(40) > 20).numpy(), 1.0, "any")
    step = TrainStep(model_with(FACTOR, tokenizer), tiny_config(), SFTSection(), Precision(torch.float32, ""))
    loss = step.train_step([example]).loss
    logits = reference(tokenizer)(ids[None])[0]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits[20:-1], ids[21:]).item(), rel=1e-5)


def test_replies_on_a_cpu_come_from_the_forward_pass(tokenizer):
    model = model_with(FACTOR, tokenizer)
    assert for_inference(model) is model
    prompts = ["Once upon a time", "Sara had a red ball"]
    replies = generate_replies(model, tokenizer, prompts, Sampling(temperature=0, max_new_tokens=10))
    expected = generate_replies(reference(tokenizer), tokenizer, prompts, Sampling(temperature=0, max_new_tokens=10))
    assert [reply.ids for reply in replies] == [reply.ids for reply in expected]
    plain = generate_replies(plain_model(tokenizer), tokenizer, prompts, Sampling(temperature=0, max_new_tokens=10))
    assert [reply.ids for reply in replies] != [reply.ids for reply in plain]


def test_packed_weights_are_refused_with_the_name_of_the_field(tokenizer):
    with pytest.raises(UserError, match=r"does not implement input_factor=3\.0; generate with the model's own"):
        CPUInferenceModel(model_with(FACTOR, tokenizer), "bf16")
    assert not can_decode_single_tokens(model_with(FACTOR, tokenizer).config)


def test_export_to_hugging_face_is_refused_with_the_name_of_the_field(tokenizer):
    with pytest.raises(ValueError, match=r"can't be written as a Hugging Face Llama.*input_factor=3\.0"):
        to_hf_config(model_with(FACTOR, tokenizer).config, tokenizer)


def test_a_checkpoint_keeps_it_and_transformers_does_not_load_it(tokenizer, tmp_path, monkeypatch):
    from transformers import AutoConfig

    model = model_with(FACTOR, tokenizer)
    folder = save_checkpoint(tmp_path / "model", model, tokenizer)
    assert json.loads((folder / "mini_chat_gpt.json").read_text())["gpt_config"]["input_factor"] == FACTOR
    with pytest.raises(ValueError, match="mini_chat_gpt"):
        AutoConfig.from_pretrained(folder)
    monkeypatch.setattr("mini_chat_gpt.checkpoints.load.GPTConfig", LaterConfig)
    loaded, _ = load_checkpoint(folder, "cpu")
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids))


def test_a_checkpoint_with_a_field_of_a_later_version_is_refused_in_one_sentence(tokenizer, tmp_path):
    folder = save_checkpoint(tmp_path / "model", model_with(FACTOR, tokenizer), tokenizer)
    with pytest.raises(UserError, match=r"this version does not know \(input_factor\); update mini_chat_gpt\.$"):
        load_checkpoint(folder, "cpu")


def test_the_compiler_steps_aside(tokenizer):
    choice = choose_compiling(True, torch.device("cpu"), 10**6, model_with(FACTOR, tokenizer).config)
    assert not choice.on
    assert "input_factor=3.0" in choice.reason


def test_with_its_default_value_it_stands_in_nobodys_way(tokenizer, monkeypatch):
    model = model_with(1.0, tokenizer)
    assert can_decode(model)
    assert to_hf_config(model.config, tokenizer)["model_type"] == "llama"
    monkeypatch.setattr("mini_chat_gpt.training.compile.trial", lambda device: None)
    assert choose_compiling(True, torch.device("cpu"), 10**6, model.config).on


@pytest.mark.parametrize("declared", [CPU_FIELDS, SINGLE_TOKEN_FIELDS, HF_FIELDS, COMPILED_FIELDS])
def test_declared_fields_exist(declared):
    assert set(declared) <= set(GPTConfig.model_fields)


def test_a_value_that_is_not_declared_is_unsupported():
    config = GPTConfig(norm="layernorm", bias=True)
    assert unsupported_fields(config, {"norm": {"rmsnorm"}, "bias": None}) == ["norm='layernorm'"]
    assert unsupported_fields(config, {"norm": {"rmsnorm", "layernorm"}}) == ["bias=True"]

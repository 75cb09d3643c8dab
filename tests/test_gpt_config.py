"""Shapes of models: their size is known, and impossible ones are refused, before anything is made."""

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_config

from mini_chat_gpt.common.device import set_up
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.resources import total_memory
from mini_chat_gpt.data.step_loader import count_workers
from mini_chat_gpt.diagnostics.doctor import weights_finding
from mini_chat_gpt.gpt_config import GPTConfig
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.functional import rope_frequencies
from mini_chat_gpt.pretrain import new_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_head": 1, "head_dim": 6, "intermediate_size": 40},
        {"tie_embeddings": False, "qkv_bias": True, "qk_norm": True},
        {"bias": True, "qkv_bias": True},
        {"bias": True, "mlp_bias": False},
        {"mlp_bias": True, "activation": "relu"},
        {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True},
        {"norm": "layernorm", "position": "none", "activation": "relu2", "bias": False},
        {"activation": "geglu", "bias": True, "windows": (4, None)},
    ],
)
def test_the_number_of_parameters_is_that_of_the_model(changes):
    config = GPTConfig(**{"vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 32} | changes)
    assert config.n_parameters == GPT(config).n_parameters()


@pytest.mark.parametrize(
    "model",
    [
        {"n_layer": 1024, "n_embd": 2**17, "n_head": 1024},
        {"n_embd": 6, "n_head": 6, "head_dim": 4096, "intermediate_size": 2**20, "n_layer": 1024},
        {"vocab_size": 2**20, "n_embd": 2**16, "n_head": 128},
    ],
)
def test_a_model_that_cannot_fit_into_memory_is_refused_before_it_is_made(model, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.pretrain.GPT", None)  # it is not made
    monkeypatch.setattr("mini_chat_gpt.pretrain.total_memory", lambda device: 64 * 2**30)
    with pytest.raises(UserError, match=r"M parameters need at least .* for training, but cpu has"):
        new_model(tiny_config(model=model), 300, CPU)


def test_doctor_finds_out_at_once_that_a_model_does_not_fit():
    finding = weights_finding(tiny_config(model={"n_layer": 1024, "n_embd": 2**17, "n_head": 1024}), CPU)
    assert finding is not None
    assert finding.level == "error"
    assert weights_finding(tiny_config(model={"preset": "1m"}), CPU) is None


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < (total_memory("cpu") or 2**30) < 2**50


def test_a_vocabulary_is_not_smaller_than_the_tokenizer():
    config = tiny_config(model={"vocab_size": 10})
    with pytest.raises(UserError, match=r"model.vocab_size is 10, but the tokenizer has 300 ids"):
        new_model(config, 300, CPU)
    assert tiny_config(model={"vocab_size": 320}).model.gpt_config(300).vocab_size == 320


@pytest.mark.parametrize("threads", [17, 1024])
def test_far_more_threads_than_cores_are_refused(threads, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UserError, match=f"system.threads is {threads}, but there are 2 CPU cores; use at most 16"):
        set_up(1, threads)


@pytest.mark.parametrize("workers", [200, 256])
def test_far_more_data_workers_than_cores_are_refused(workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    with pytest.raises(UserError, match=f"data.num_workers is {workers}, but there are 2 CPU cores; use at most 16"):
        count_workers(workers)
    assert count_workers(16) == 16


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2},
        {"type": "linear", "factor": 2.5},
        {"rope_type": "default"},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)  # fmt: skip
def test_rope_scaling_that_is_accepted_gives_finite_frequencies(scaling):
    config = GPTConfig(rope_scaling=scaling)
    assert config.rope_scaling == scaling
    assert rope_frequencies(64, config.rope_theta, config.rope_scaling).isfinite().all()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": ["linear"], "factor": 2.0},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": None},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": float("nan")},
        {"rope_type": "linear", "factor": float("inf")},
        {"rope_type": "linear", "factor": "2"},
        {"rope_type": "linear", "factor": True},
        {"rope_type": "llama3", "factor": 8.0},
    ],
)
def test_any_other_rope_scaling_is_refused(scaling):
    with pytest.raises(ValidationError, match=r"rope_type must be|factor"):
        GPTConfig(rope_scaling=scaling)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 10**9), ("n_embd", 2**40), ("head_dim", 10**9), ("attention_scale", float("inf")), ("attention_scale", 0),
        ("norm_eps", float("nan")), ("norm_eps", 0), ("rope_theta", float("inf")), ("rope_theta", 0), ("context_length", 2**40),
        ("n_layer", True), ("windows", (0,) * 6), ("windows", (10**12,) * 6), ("windows", ()),
    ],
)  # fmt: skip
def test_no_size_or_factor_is_out_of_bounds(field, value):
    with pytest.raises(ValidationError):
        GPTConfig(**{field: value})

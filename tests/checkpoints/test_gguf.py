"""GGUF files: models against the weights that were written, header limits, and damage at every kind of place."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_llamas import VARIANTS, make_llama, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.checkpoints.foreign import read_gguf_model
from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.hf import to_hf_state
from mini_chat_gpt.checkpoints.llama_gguf import llama3_scaling
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.ops.functional import rope_frequencies

DATA = Path(os.environ.get("MINI_CHAT_GPT_DATA", "/no/such/folder"))
SMOLLM2 = DATA / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = DATA / "gemma3" / "gemma-3-270m-q4_k_m.gguf"
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def state_of(path) -> dict[str, torch.Tensor]:
    model = read_gguf_model(GGUFFile(path))
    return to_hf_state(model.state_dict(), model.config)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ2_0"])
def test_all_types_are_read(tmp_path, kind):
    sizes = {"hidden_size": 256, "intermediate_size": 256} if kind == "TQ2_0" else {}
    expected = write_gguf(tmp_path / "m.gguf", make_llama(**sizes), kind)
    state = state_of(tmp_path / "m.gguf")
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(state[name].float().numpy(), values)
        assert state[name].dtype == (DTYPES.get(kind, torch.float32) if values.ndim > 1 else torch.float32)


def in_gguf(name: str) -> bool:
    """Whether llama.cpp has a form for a variant."""
    if name in ("Mistral with a window", "Qwen2 with windows"):
        return False
    return not name.startswith("GPT-Neo") and name not in ("GPT-2, untied", "GPT-2, narrow MLP")


LIKE_LLAMA_CPP = {
    "Gemma 3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 13},
    "Gemma 3 with scaled positions": {
        "query_pre_attn_scalar": 24,
        "attention_bias": False,
        "layer_types": None,
        "num_hidden_layers": 7,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
        },
    },
}
"""What llama.cpp takes for granted."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if in_gguf(name)])
def test_logits_are_those_of_transformers(tmp_path, name):
    theirs, ids = make_llama(**VARIANTS[name] | LIKE_LLAMA_CPP.get(name, {})), torch.randint(0, 96, (2, 60))
    write_gguf(tmp_path / "m.gguf", theirs)
    with torch.inference_mode():
        expected, actual = theirs(ids).logits, read_gguf_model(GGUFFile(tmp_path / "m.gguf"))(ids)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "changes", "metadata"),
    [
        (
            "Gemma 3",
            {"layer_types": ["sliding_attention", "full_attention"] * 3},
            {"attention.sliding_window_pattern": 2},
        ),
        (
            "Gemma 3",
            {"layer_types": ["full_attention"] * 5 + ["sliding_attention"]},
            {"attention.sliding_window_pattern": [False] * 5 + [True]},
        ),
        ("Gemma 3", {"query_pre_attn_scalar": 25}, {"attention.scale": 0.2}),
        (
            "Gemma 3",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                }
            },
            {"rope.freq_base_swa": 500.0},
        ),
        ("GPT-2, untied", {"activation_function": "gelu_new"}, {}),
        ("GPT-2, narrow MLP", {"scale_attn_weights": True}, {}),
    ],
)
def test_what_a_file_says_itself_is_read(tmp_path, name, changes, metadata):
    theirs, ids = (
        make_llama(**VARIANTS[name] | LIKE_LLAMA_CPP.get(name, {}) | {"num_hidden_layers": 6} | changes),
        torch.randint(0, 96, (2, 60)),
    )
    write_gguf(tmp_path / "m.gguf", theirs, metadata={f"gemma3.{key}": value for key, value in metadata.items()})
    with torch.inference_mode():
        expected, actual = theirs(ids).logits, read_gguf_model(GGUFFile(tmp_path / "m.gguf"))(ids)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_gpt2_that_repeats_its_table_is_tied(tmp_path):
    theirs = make_llama(**VARIANTS["GPT-2"])
    theirs.config.tie_word_embeddings = False  # so that the file has both
    write_gguf(tmp_path / "m.gguf", theirs)
    assert read_gguf_model(GGUFFile(tmp_path / "m.gguf")).config.tie_embeddings


def test_gemmas_norms_are_exact_in_any_precision(tmp_path):
    theirs = make_llama(torch.bfloat16, **VARIANTS["Gemma 3"] | LIKE_LLAMA_CPP["Gemma 3"])
    write_gguf(tmp_path / "m.gguf", theirs, "BF16")
    ours = read_gguf_model(GGUFFile(tmp_path / "m.gguf"), torch.bfloat16)
    state = to_hf_state(ours.state_dict(), ours.config)
    for name, tensor in theirs.state_dict().items():
        if name in state:
            assert torch.allclose(state[name], tensor, rtol=2**-8, atol=2**-24), name


def test_another_precision_can_be_asked_for(tmp_path):
    write_gguf(tmp_path / "m.gguf", make_llama(), "Q8_0")
    file = GGUFFile(tmp_path / "m.gguf")
    exact, half = read_gguf_model(file), read_gguf_model(file, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(exact.parameters(), half.parameters(), strict=True))


# RoPE factors


@given(
    head_dim=st.sampled_from([8, 64, 128]),
    theta=st.sampled_from([1e4, 5e5]),
    factor=st.sampled_from([2.0, 8.0, 32.0]),
    low=st.sampled_from([0.5, 1.0, 2.0]),
    ratio=st.sampled_from([1.5, 4.0, 30.0]),
    context=st.sampled_from([128, 2048, 8192]),
    named=st.booleans(),
)
def test_factors_become_a_scaling_that_gives_them(head_dim, theta, factor, low, ratio, context, named):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low * ratio,
        "original_max_position_embeddings": context,
    }
    plain, scaled = rope_frequencies(head_dim, theta), rope_frequencies(head_dim, theta, scaling)
    found = llama3_scaling(plain / scaled, head_dim, theta, context if named else None)
    assert torch.allclose(rope_frequencies(head_dim, theta, found), scaled, rtol=2e-5)


def test_the_factors_of_llama_3_2_become_its_own_scaling():
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = rope_frequencies(64, 5e5) / rope_frequencies(64, 5e5, scaling)
    assert llama3_scaling(factors, 64, 5e5) == scaling


def test_factors_of_another_rule_are_refused():
    with pytest.raises(UserError, match="llama3's rule"):
        llama3_scaling(torch.tensor([1.0, 5.0, 2.0, 8.0]), 8, 1e4)


# What is refused


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "only linear"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"gemma3.attn_logit_softcapping": 50.0}, "capped attention"),
        ({"gemma3.attention.sliding_window_pattern": [True]}, "sliding_window_pattern"),
        ({"phi3.expert_count": 4}, "mixture of experts"),
        ({"phi3.rope.scaling.type": "longrope"}, "only linear"),
        ({"gpt2.expert_count": 4}, "mixture of experts"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, metadata, message):
    variant = {"gemma3": "Gemma 3", "phi3": "Phi-3", "gpt2": "GPT-2"}.get(
        next(iter(metadata)).partition(".")[0], "untied"
    )
    write_gguf(tmp_path / "m.gguf", make_llama(**VARIANTS[variant]), metadata=metadata)
    with pytest.raises(UserError, match=message):
        read_gguf_model(GGUFFile(tmp_path / "m.gguf"))


def test_another_architecture_is_named(tmp_path):
    data = write_bytes(tmp_path)
    (tmp_path / "m.gguf").write_bytes(data.replace(b"llama", b"mamba"))
    with pytest.raises(UserError, match="architecture 'mamba', which is not supported; supported: llama"):
        read_gguf_model(GGUFFile(tmp_path / "m.gguf"))


def write_bytes(folder: Path, kind: str = "Q8_0") -> bytes:
    write_gguf(folder / "m.gguf", make_llama(), kind)
    return (folder / "m.gguf").read_bytes()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_gguf_model(GGUFFile(path))
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    return message


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = write_bytes(tmp_path)
    header = len(data) - sum(info.size for info in GGUFFile(tmp_path / "m.gguf")._tensors.values())
    cuts = {*range(0, header, 97), *range(header, len(data), 9973), 3, 4, 8, 16, 23, 24, 25, len(data) - 40}
    for cut in cuts:
        assert "truncated" in refusal(tmp_path / "cut.gguf", data[:cut]), cut


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "not a GGUF file"),
        (4, struct.pack("<I", 1), "has version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**60), "claims 1,152,921,504,606,846,976 tensors"),
        (16, struct.pack("<Q", 2**40), "claims 1,099,511,627,776 metadata keys"),
        (24, struct.pack("<Q", 2**62), "truncated within its header"),
    ],
)
def test_a_header_that_claims_too_much_is_refused(tmp_path, at, value, message):
    data = write_bytes(tmp_path)
    assert message in refusal(tmp_path / "m.gguf", data[:at] + value + data[at + len(value) :])


def header(*values: bytes, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(values)) + b"".join(values)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<IIQ", 9, 4, 2**40), "lists of"),
        (struct.pack("<IIQ", 9, 8, 2**22) + bytes(100), "truncated"),
        (struct.pack("<IIQIQIQIQ", 9, 9, 1, 9, 1, 9, 1, 4, 0), "value of the type 9"),
        (struct.pack("<I", 13), "value of the type 13"),
        (struct.pack("<IQ", 8, 2**63), "truncated"),
    ],
)
def test_lists_and_lengths_are_limited(tmp_path, value, message):
    assert message in refusal(tmp_path / "m.gguf", header(string("key") + value) + bytes(64))


def description(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([description("a", (32, 2), 99, 0)], "type 99, which the library gguf doesn't know"),
        ([description("a", (32, 2), 9, 0)], "type Q8_1, which the library gguf can't"),
        ([description("a", (8, 2), 28, 0)], "type F64"),
        ([description("a", (33, 2), 8, 0)], "shape"),
        ([description("a", (0, 2), 0, 0)], "shape"),
        ([description("a", (2**40, 2**40), 0, 0)], "truncated: the tensor 'a' ends at byte"),
        ([description("a", (8, 2), 0, 16)], "offset 16"),
        ([description("a", (8, 2), 0, 0), description("b", (8, 2), 0, 32)], "'a' and 'b' overlap"),
        ([description("a", (8,), 0, 0), description("a", (8,), 0, 32)], "description of the tensor 'a'"),
        ([description("a", (1, 1, 1, 1, 1), 0, 0)], "description of the tensor 'a'"),
    ],
)
def test_tensors_that_the_file_does_not_hold_are_refused(tmp_path, tensors, message):
    data = header(n_tensors=len(tensors)) + b"".join(tensors) + bytes(300)
    assert message in refusal(tmp_path / "m.gguf", data)


def test_repeated_keys_and_a_strange_alignment_are_refused(tmp_path):
    one = string("general.alignment") + struct.pack("<II", 4, 33)
    assert "general.alignment is 33" in refusal(tmp_path / "m.gguf", header(one) + bytes(64))
    assert "occurs twice" in refusal(tmp_path / "m.gguf", header(one, one) + bytes(64))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight is not finite"):
        read_gguf_model(GGUFFile(tmp_path / "m.gguf"))


# A real model


@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"{SMOLLM2} is not there")
def test_smollm2_computes_what_transformers_computes_with_its_weights():
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = read_gguf_model(GGUFFile(SMOLLM2))
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    theirs = theirs.to_empty(device="cpu")
    theirs.model.rotary_emb.__init__(config)
    theirs.load_state_dict(to_hf_state(ours.state_dict(), ours.config), strict=False)
    theirs.tie_weights()
    ids = torch.tensor([[19556, 28, 392, 416, 722, 104, 216, 33, 34, 369, 8866, 35]])
    with torch.inference_mode():
        expected, actual = theirs(ids).logits, ours(ids)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.skipif(not GEMMA.is_file(), reason=f"{GEMMA} is not there")
def test_gemma_3_computes_what_transformers_computes_with_its_weights():
    """With 700 tokens, as its windows have 512."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    ours, tokenizer = load_checkpoint(GEMMA, "cpu")
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=32768, query_pre_attn_scalar=256, sliding_window=512,
    )  # fmt: skip
    theirs = Gemma3ForCausalLM(config).eval()
    theirs.load_state_dict(to_hf_state(ours.state_dict(), ours.config), strict=False)
    theirs.tie_weights()
    ids = torch.randint(5, 200000, (1, 700))
    with torch.inference_mode():
        expected, actual = theirs(ids).logits, ours(ids)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    text = "The capital of Japan is Tokyo. The capital of France is"
    assert generate(ours, tokenizer, [text], max_new_tokens=1, temperature=0.0) == [" Paris"]

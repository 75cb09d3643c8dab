"""The context of a chat is cut so that the KV cache of a conversation fits into a quarter of the free memory."""

import io
from pathlib import Path

import pytest
import torch
from tiny import chat_tokenizer, lively_model

from mini_chat_gpt import sft_generate
from mini_chat_gpt.chat import loop, model_options
from mini_chat_gpt.chat.model_options import cut_context
from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.device import Precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import cache_bytes_per_token
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel

CONTEXT = 512
PER_TOKEN = 2 * 2 * 2 * 8 * 4  # layers, keys and values, their heads, width of a head, bytes of a float32
LINE = "Context: 192 of 512 tokens, so that the cache of a conversation takes at most a quarter of the free memory"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    tokenizer = chat_tokenizer()
    model = lively_model(tokenizer.vocab_size, context_length=CONTEXT)
    return save_checkpoint(tmp_path_factory.mktemp("run") / "step-1", model, tokenizer)


@pytest.fixture
def free(monkeypatch):
    """Set the free memory, in tokens of which a quarter holds keys and values."""

    def set_free(n_tokens: int) -> None:
        monkeypatch.setattr(model_options, "free_memory", lambda device: 4 * PER_TOKEN * n_tokens)

    return set_free


def chat(monkeypatch, checkpoint: Path, text: str) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return loop.main(["--checkpoint", str(checkpoint), "--device", "cpu", "--max-new-tokens", "400"])


def generate(checkpoint: Path, prompt: str) -> int:
    arguments = ["--device", "cpu", "--temperature", "0", "--max-new-tokens", "400", "--prompt", prompt]
    return sft_generate.main(["--checkpoint", str(checkpoint), *arguments])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_head": 4},
        {"n_kv_head": 1, "head_dim": 20},
        {"windows": (8, None)},
        {"n_layer": 3, "position": "learned"},
    ],
)
@pytest.mark.parametrize("form", ["model", "cpu", "bf16", "half"])
def test_the_bytes_of_a_token_are_those_of_the_allocated_cache(changes, form):
    model = lively_model(300, context_length=CONTEXT, **changes)
    if form == "half":
        model = MixedPrecisionModel(model, Precision(torch.bfloat16, ""))
    elif form != "model":
        model = CPUInferenceModel(model, "float32" if form == "cpu" else "bf16")
    assert cache_bytes_per_token(model) * CONTEXT == model.make_cache(1).table.nbytes
    free = 4 * cache_bytes_per_token(model) * 200
    assert cut_context(model, free).startswith(LINE)
    assert model.config.context_length == 192  # a multiple of 64
    assert ChatSession(model, chat_tokenizer())._cache.table.nbytes == 192 * cache_bytes_per_token(model) <= free // 4


def test_a_context_that_fits_is_not_cut():
    model = lively_model(300, context_length=CONTEXT)
    assert cut_context(model, 4 * PER_TOKEN * CONTEXT) is None
    assert cut_context(model, None) is None  # a system that doesn't report its memory
    assert model.config.context_length == CONTEXT
    assert cut_context(model, 4 * PER_TOKEN * CONTEXT - 1) is not None
    assert model.config.context_length == CONTEXT - 64


def test_a_chat_is_cut_and_says_so(checkpoint, free, monkeypatch, capsys):
    free(200)
    assert chat(monkeypatch, checkpoint, "Once upon a time\n/tokens\n") == 0
    error = capsys.readouterr().err
    assert error.count(f"{LINE} (51.2 kB).\n") == 1
    assert "of 192 tokens are used" in error
    free(CONTEXT)
    assert chat(monkeypatch, checkpoint, "/tokens\n") == 0
    error = capsys.readouterr().err
    assert "Context:" not in error
    assert f"of {CONTEXT} tokens are used" in error


def test_a_generated_reply_is_cut_and_says_so(checkpoint, free, capsys):
    free(200)
    with pytest.raises(UserError, match="the model's context holds 192, prompt and reply together"):
        generate(checkpoint, "Once upon a time there was " * 40)
    assert f"{LINE} (51.2 kB).\n" in capsys.readouterr().err
    free(CONTEXT)
    assert generate(checkpoint, "Once upon a time there was " * 10) == 0
    assert "Context:" not in capsys.readouterr().err


def test_a_reply_within_the_cut_context_is_the_same(checkpoint, free, capsys):
    free(CONTEXT)
    generate(checkpoint, "Once")
    whole = capsys.readouterr()
    free(200)
    generate(checkpoint, "Once")
    cut = capsys.readouterr()
    assert whole.out.startswith(cut.out.removesuffix("\n").rstrip("�"))
    assert "the model's context is full" in cut.err or cut.out == whole.out


def test_without_memory_for_a_conversation_it_is_an_error(checkpoint, free, monkeypatch):
    free(63)
    message = "There is too little free memory for a conversation .*; close other programs, or use a smaller model.$"
    with pytest.raises(UserError, match=message):
        chat(monkeypatch, checkpoint, "Hi\n")
    with pytest.raises(UserError, match=message):
        generate(checkpoint, "Hi")


def test_evaluation_and_the_checkpoint_have_the_whole_context(checkpoint, free, monkeypatch, capsys, tmp_path):
    free(100)
    assert chat(monkeypatch, checkpoint, "Hi\n") == 0
    assert load_checkpoint(checkpoint, "cpu")[0].config.context_length == CONTEXT
    seen = []
    monkeypatch.setattr(sft_generate, "compare", lambda models, *others: seen.extend(models))
    capsys.readouterr()
    assert sft_generate.main(["--checkpoint", str(checkpoint), "--test"]) == 0
    assert seen == [checkpoint]  # loaded without `open_model`
    assert "Context:" not in capsys.readouterr().err

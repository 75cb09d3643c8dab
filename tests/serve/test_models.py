"""What is served under which name; adapters share their base."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import httpx
import pytest
import torch
from serve.engine_kit import new_reply, step_until_ended, text_of
from tiny import chat_tokenizer, lively

from mini_chat_gpt.checkpoints.find import find_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings
from mini_chat_gpt.generation.cpu_adapters import AdaptedModel
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.cpu_rows import CPURows
from mini_chat_gpt.generation.separate_rows import row_decoder
from mini_chat_gpt.lora import adapters as lora_layers
from mini_chat_gpt.lora import add_lora, merge_lora
from mini_chat_gpt.serve.command import listen, log_line, run
from mini_chat_gpt.serve.engine import Variant
from mini_chat_gpt.serve.models import Options, find_sources, load_models, with_adapter, without_adapter

IDS = [[5, 9, 250, 251, 7, 30], [8, 250, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def adapted(model, seed, dora=False, token_ids=()):
    """A copy of the model with a random adapter."""
    copy = lively(chat_tokenizer(), context_length=64)
    copy.load_state_dict(model.state_dict())
    add_lora(copy, LoraSettings(rank=4, alpha=8, dora=dora), "float32", token_ids)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return copy.eval()


@pytest.fixture
def model():
    return lively(chat_tokenizer(), context_length=64)


@pytest.mark.parametrize(("dora", "token_ids"), [(False, ()), (True, (250, 251)), (False, (250,))])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_an_adapter_on_a_shared_base_is_the_merged_model(model, dora, token_ids, on_cpu):
    base = CPUInferenceModel(model) if on_cpu else model
    made = with_adapter(base, adapted(model, 1, dora, token_ids))
    merged = adapted(model, 1, dora, token_ids)
    merge_lora(merged)
    for ids in IDS:
        cache, expected = made.make_cache(1), merged(torch.tensor([ids]))[:, -1]
        logits = made.next_logits(torch.tensor([ids]), cache, [len(ids)])
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-3)
    variant = Variant.of(made, chat_tokenizer(), 4)
    caches = [made.make_cache(1) for _ in IDS]
    for ids, cache in zip(IDS, caches, strict=True):
        made.next_logits(torch.tensor([ids[:-1]]), cache, [len(ids) - 1])
    logits = variant.decoder.next_logits([ids[-1] for ids in IDS], caches)
    expected = torch.cat([merged(torch.tensor([ids]))[:, -1] for ids in IDS])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-3)


def test_a_reply_does_not_depend_on_its_company_where_only_some_layers_have_an_adapter(model):
    """The library computes the adapter's products with other kernels than those of the base."""
    one = adapted(model, 1)
    for name, layer in list(lora_layers(one)):
        if name.startswith("layers.0."):
            one.set_submodule(name, layer.base)
    made, results = with_adapter(CPUInferenceModel(model), one), []
    decoder = row_decoder(made, 8)
    assert isinstance(decoder, CPURows)
    for n in range(1, 9):
        caches = [made.make_cache(1) for _ in range(n)]
        logits = [decoder.next_logits([5 + step, *range(10, 9 + n)], caches)[0] for step in range(3)]
        results.append(torch.stack(logits))
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_weights_of_the_base_are_not_copied(model):
    base = CPUInferenceModel(model)
    made = with_adapter(base, adapted(model, 1))
    assert isinstance(made, AdaptedModel)
    assert made.embedding is base.embedding
    assert made.blocks[0].qkv.base is base.blocks[0].qkv
    on_modules = with_adapter(model, adapted(model, 1))
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    shared = [p for name, p in on_modules.named_parameters() if "lora_" not in name]
    assert all(parameter.data_ptr() in ours for parameter in shared)


def test_the_base_of_an_adapted_model_is_what_it_was(model):
    plain = without_adapter(adapted(model, 1, token_ids=(250,)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and two adapters on it."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer, model = chat_tokenizer(), lively(chat_tokenizer(), context_length=64)
    save_checkpoint(folder / "base", model, tokenizer, {})
    base = find_checkpoint(folder / "base")
    from dataclasses import replace

    from mini_chat_gpt.checkpoints.adapters import weights_hash

    for seed in (1, 2):
        one = adapted(model, seed)
        one.adapter = replace(one.adapter, base=str(base), base_hash=weights_hash(base))
        save_checkpoint(folder / f"adapter{seed}", one, tokenizer, {})
    return folder


def test_a_base_and_its_adapters_share_an_engine_and_reply_each_as_itself(runs):
    words = [f"{name}={runs / name}" for name in ("adapter1", "base", "adapter2")]
    lines = []
    models = load_models(find_sources(words), Options("cpu", max_rows=6, log=lines.append))
    assert [model.name for model in models] == ["adapter1", "base", "adapter2"]
    assert len({model.engine for model in models}) == 1
    assert len(lines) == 3

    alone = [new_reply([5, 6, 7] * 12, model.variant.tokenizer) for model in models]
    for model, reply in zip(models, alone, strict=True):
        model.engine.submit(model.variant, [reply])
        step_until_ended(model.engine, [reply])
    mixed = [new_reply([5, 6, 7] * 12, model.variant.tokenizer) for model in models]
    for model, reply in zip(models, mixed, strict=True):
        model.engine.submit(model.variant, [reply])
    step_until_ended(models[0].engine, mixed)
    assert [text_of(reply) for reply in mixed] == [text_of(reply) for reply in alone]
    assert len({text_of(reply) for reply in alone}) == 3
    # The prefix of one model's prompt is not that of another's.
    assert all(reply.usage.n_cached == 0 for reply in alone)
    assert all(reply.usage.n_cached == 32 for reply in mixed)


def test_names_of_models(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "quickstart" / "sft")
    assert [s.name for s in find_sources([str(tmp_path / "quickstart" / "sft"), f"b={runs / 'base'}"])] == [
        "quickstart-sft", "b"
    ]  # fmt: skip
    with pytest.raises(UserError, match="Two models are called 'a'"):
        find_sources([f"a={runs / 'base'}", f"a={runs / 'adapter1'}"])
    with pytest.raises(UserError, match="nothing"):
        find_sources([f"a={tmp_path / 'nothing'}"])


def command(*options, cwd=None):
    return [sys.executable, "-m", "mini_chat_gpt.cli", "serve", *map(str, options)]


def test_a_taken_port_and_other_addresses_are_refused_with_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"^Port {port} of 127.0.0.1 can't be used \\([a-z ]+\\); choose another one: --port "
        ):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="is not an address of this machine"):
        listen("no-such-host.invalid", 0)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r'needs the library uvicorn; install it: pip install "mini-chat-gpt\[serve\]"'):
        run(Namespace())


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_the_command_opens_the_page_and_serves_until_sigterm(runs, tmp_path):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    process = subprocess.Popen(
        command("--checkpoint", f"m={runs / 'base'}", "--port", 0, "--device", "cpu", "--open"),
        stderr=subprocess.PIPE, text=True, env=os.environ | {"BROWSER": str(browser)},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(line for line in lines if line.startswith("Open ")).split()[1]
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()["model"] == "m"
        while not opened.exists() or opened.read_text() != address:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0
        assert "Stopping" in rest
        assert "Traceback" not in rest
    finally:
        process.kill()


def test_a_log_that_no_one_can_read_fails_no_reply(monkeypatch):
    class Closed:
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    log_line("a line")


def test_a_home_folder_is_expanded_after_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none"))):
        find_sources(["mine=~/none"])

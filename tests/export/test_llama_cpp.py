"""llama.cpp itself, if npm's node-llama-cpp is installed; and what a llama.cpp with other results leads to."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from exports import MODELS, save_model
from tiny import chat_tokenizer, lively, tiny_config
from tokenizer_samples import llama2c_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.export import llama_cpp
from mini_chat_gpt.export.gguf_export import export_gguf
from mini_chat_gpt.export.llama_cpp import find_node_llama_cpp
from mini_chat_gpt.export.proof import BOUNDS, ProofError, prove
from mini_chat_gpt.sft_train import train

SMOLLM2 = Path(os.environ.get("MINI_CHAT_GPT_DATA", "/no/such/folder")) / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def node() -> Path:
    if (index := find_node_llama_cpp()) is None:
        pytest.skip("npm's node-llama-cpp is not installed here or in NODE_PATH; this test runs files with it")
    return index


@pytest.fixture
def model(tmp_path):
    tokenizer = chat_tokenizer("Be kind.")
    return save_checkpoint(tmp_path / "model", lively(tokenizer, context_length=512, n_embd=64), tokenizer)


def about_llama_cpp(exported) -> str:
    [line] = [line for line in exported.lines if "llama.cpp (node-llama-cpp" in line]
    return line


def replies_agree(line: str) -> bool:
    """Whether replies of a random model are equal, or part where two tokens are about equally probable.

    llama.cpp keeps keys and values in 16 bits, and each of its kernels rounds in its own way.
    """
    parts = re.search(r"prefers its own token by ([\d.e-]+);", line)
    return "and the same greedy replies" in line or (parts is not None and float(parts[1]) < 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_runs_every_architecture(node, tmp_path, name, kind):
    save_model(tmp_path / "model", name)
    assert "the same ids" in about_llama_cpp(export_gguf(tmp_path / "model", tmp_path / "m.gguf", kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_gives_the_replies_of_our_chat(node, tmp_path, model, kind):
    line = about_llama_cpp(export_gguf(model, tmp_path / "m.gguf", kind))
    assert "the same ids" in line
    assert kind != "f32" or replies_agree(line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_runs_a_model_of_llama2c(node, tmp_path, real_data, kind):
    source = real_data / "stories260K" / "stories260K.bin"
    assert "and the same greedy replies" in about_llama_cpp(export_gguf(source, tmp_path / "m.gguf", kind))


@pytest.mark.slow
def test_llama_cpp_inserts_the_spaces_of_a_chat_model_of_llama2c(node, tmp_path):
    tokenizer = llama2c_tokenizer()
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat("Be kind.")
    model = save_checkpoint(tmp_path / "model", lively(tokenizer, context_length=512, n_embd=64), tokenizer)
    assert replies_agree(about_llama_cpp(export_gguf(model, tmp_path / "m.gguf", "f32")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_runs_a_real_model_with_a_merged_adapter(node, tmp_path, kind):
    if not SMOLLM2.is_file():
        pytest.skip("MINI_CHAT_GPT_DATA does not name a folder with SmolLM2; this test needs it")
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Tom ran."}]}] * 8
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sft = {
        "pretrained_checkpoint": str(SMOLLM2), "save_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 1e-3,
        "warmup_steps": 0, "save_interval": 2, "eval_interval": 2,
    }  # fmt: skip
    train(tiny_config(sft=sft, chats={"files": str(tmp_path / "chats.jsonl")}, lora={"enabled": True, "rank": 4}))
    assert "the same ids" in about_llama_cpp(export_gguf(tmp_path / "run", tmp_path / "m.gguf", kind))
    shutil.rmtree(tmp_path / "run")  # half a gigabyte


# Results of a llama.cpp


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Compare one exported file with a llama.cpp, with the proof of its export: the lines about it."""
    folder, tokenizer = tmp_path_factory.mktemp("exported"), chat_tokenizer("Be kind.")
    model = save_checkpoint(folder / "model", lively(tokenizer, context_length=512), tokenizer)
    export_gguf(model, folder / "m.gguf", check=False)
    proof = prove(model, folder / "m.gguf", BOUNDS["f16"])
    return lambda: llama_cpp.compare_with_llama_cpp(folder / "m.gguf", proof, tokenizer, BOUNDS["f16"])


def answering(monkeypatch, **changes) -> None:
    """A llama.cpp that gives our own results, changed."""

    def run(index, file, proof, tokenizer):
        results = []
        for turn, logits in zip(proof.turns, proof.replies.logits, strict=True):
            ids = list(turn.prompt[turn.prompt[0] == tokenizer.bos_id :])
            data = base64.b64encode((logits * changes.get("factor", 1)).astype(np.float32).tobytes()).decode()
            greedy = [*turn.reply]
            if "token" in changes:
                greedy[1] = changes["token"]
            results.append({"ids": ids[changes.get("skip", 0) :], "greedy": greedy, "logits": data})
        return llama_cpp._Result.model_validate({"version": "1.0", "turns": results})

    monkeypatch.setattr(llama_cpp, "find_node_llama_cpp", lambda: Path("index.js"))
    monkeypatch.setattr(llama_cpp, "run_llama_cpp", run)


def test_equal_results_are_said(tmp_path, model, monkeypatch):
    answering(monkeypatch)
    line = about_llama_cpp(export_gguf(model, tmp_path / "m.gguf"))
    assert line.startswith(
        "  llama.cpp (node-llama-cpp 1.0): the same ids and the same greedy replies; its logits along them differ by 0 "
    )
    assert line.strip() in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("token", "where"), [(99, "where our model prefers its own token by "), (9999, "padding row")])
def test_replies_that_part_are_said(compared, monkeypatch, token, where):
    answering(monkeypatch, token=token)
    [line] = compared()
    assert f"the greedy replies part at token 2 of turn 1, where {'' if token == 99 else 'llama.cpp takes a '}" in line
    assert where in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": 1}, "llama.cpp has other ids than ours for the prompt of turn 1, from token 1 on"),
        ({"factor": 1.2}, "in llama.cpp the logits differ by 0.2 of their size"),
    ],
)
def test_other_results_fail_the_check(compared, monkeypatch, changes, message):
    answering(monkeypatch, **changes)
    with pytest.raises(ProofError, match=message.replace(".", r"\.")):
        compared()


def test_a_llama_cpp_that_does_not_run_fails_the_check(tmp_path, model, monkeypatch):
    if shutil.which("node") is None:
        pytest.skip("node is not installed; this test runs a script with it")
    index = tmp_path / "modules" / "node-llama-cpp" / "dist" / "index.js"
    index.parent.mkdir(parents=True)
    index.write_text("throw new Error('No binary');\n")
    monkeypatch.setenv("NODE_PATH", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProofError, match=r"llama.cpp \(node-llama-cpp\) can't run the file: .*No binary"):
        export_gguf(model, tmp_path / "m.gguf")
    assert {path.name for path in tmp_path.iterdir()} - {".verified.json"} == {"model", "modules"}


def test_it_is_found_above_the_working_directory(tmp_path, monkeypatch):
    index = tmp_path / "node_modules" / "node-llama-cpp" / "dist" / "index.js"
    index.parent.mkdir(parents=True)
    index.write_text("")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/node")
    assert find_node_llama_cpp() == index
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_node_llama_cpp() is None

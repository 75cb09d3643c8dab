"""The command llama-completion: what it is asked, and what its answers lead to. A fake one takes the options of the real one."""

import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from exports import save_model
from tiny import chat_tokenizer, lively, tiny_tokenizer

from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.export import llama_cpp
from mini_chat_gpt.export.gguf_export import export_gguf
from mini_chat_gpt.export.proof import BOUNDS, ProofError, prove

FAKE = """\
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
for name, kind in {"-m": str, "-p": str, "-n": int, "-c": int, "-t": int, "-ngl": int, "--temp": float}.items():
    parser.add_argument(name, type=kind, required=True)
for name in ("-no-cnv", "--no-escape", "--no-display-prompt", "--verbose-prompt", "--special"):
    parser.add_argument(name, action="store_true", required=True)
given = parser.parse_args()
folder = pathlib.Path(__file__).parent
answers = json.loads((folder / "answers.json").read_text())
if "error" in answers:
    sys.exit(f"0.00.100.000 E error: {answers['error']}")
assert given.temp == 0 and pathlib.Path(given.m).read_bytes()[:4] == b"GGUF"
[answer] = [one for one in answers["turns"] if one["prompt"] == given.p]
assert (given.n, given.c >= len(answer["ids"]) + given.n) == (answer["n"], True)
print(f"0.15.162.748 I llama_completion: prompt: '{given.p}'", file=sys.stderr)
for token in answer["ids"]:
    print(f"0.15.162.784 I {token:6} -> 'piece\\n'", file=sys.stderr)
lost = folder / "lost"
if answers.get("loses") == "always" or "loses" in answers and not lost.exists():
    lost.touch()
    sys.stdout.buffer.write(bytes.fromhex(answer["reply"])[:-1])
else:
    sys.stdout.buffer.write(bytes.fromhex(answer["reply"]) + b"\\n\\n")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = chat_tokenizer("Be kind.")
    return save_checkpoint(tmp_path_factory.mktemp("own") / "model", lively(tokenizer, context_length=512), tokenizer)


@pytest.fixture(scope="module")
def exported(model):
    """A file with its proof, made without a llama.cpp."""
    file = model.parent / "file" / "m.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mini_chat_gpt.export.gguf_export.compare_with_llama_cpp", lambda *_: [])
        proof = export_gguf(model, file, "f32").proof
    assert proof is not None
    return file, proof


def install(folder, monkeypatch, answers) -> None:
    """A fake llama-completion on the PATH, and no node-llama-cpp."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "llama-completion"
    program.write_text(f"#!{sys.executable} -S\n{FAKE}")
    program.chmod(0o755)
    (folder / "bin" / "answers.json").write_text(json.dumps(answers))
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(llama_cpp, "find_node_llama_cpp", lambda: None)


def answers_of(proof, tokenizer, end=b"") -> dict:
    """What a llama.cpp that agrees with us answers."""
    return {
        "turns": [
            {
                "prompt": turn.prompt_text, "n": len(turn.reply), "ids": list(turn.prompt),
                "reply": (tokenizer.decode_bytes(turn.reply, control=True, start=False) + end).hex(),
            }
            for turn in proof.turns
        ]
    }  # fmt: skip


def compared(exported, tokenizer) -> list[str]:
    file, proof = exported
    return llama_cpp.compare_with_llama_cpp(file, proof, tokenizer, BOUNDS["f32"])


@pytest.mark.parametrize("end", [b"", b" [end of text]\n"])
def test_equal_answers_are_said(tmp_path, monkeypatch, exported, end):
    tokenizer = chat_tokenizer("Be kind.")
    install(tmp_path, monkeypatch, answers_of(exported[1], tokenizer, end))
    assert compared(exported, tokenizer) == ["llama.cpp (llama-completion): the same ids and the same greedy replies"]


def test_a_base_model_is_asked_without_the_token_that_llama_cpp_inserts(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    model = save_checkpoint(tmp_path / "base", lively(tokenizer), tokenizer, {"job": "pretrain"})
    export_gguf(model, tmp_path / "m.gguf", "f32", check=False)
    assert GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.add_bos_token"]
    proof = prove(model, tmp_path / "m.gguf", BOUNDS["f32"])
    answers = answers_of(proof, tokenizer)
    answers["turns"][0]["prompt"] = proof.turns[0].prompt_text.removeprefix("<|endoftext|>")
    install(tmp_path, monkeypatch, answers)
    [line] = compared((tmp_path / "m.gguf", proof), tokenizer)
    assert line.endswith("the same ids and the same greedy replies")


def test_other_ids_of_a_prompt_fail_the_check(tmp_path, monkeypatch, exported):
    tokenizer = chat_tokenizer("Be kind.")
    answers = answers_of(exported[1], tokenizer)
    answers["turns"][1]["ids"].insert(0, tokenizer.document_id)  # inserted twice
    install(tmp_path, monkeypatch, answers)
    with pytest.raises(ProofError, match=r"llama\.cpp has other ids than ours for the prompt of turn 2"):
        compared(exported, tokenizer)


@pytest.mark.parametrize("margin", [0.001, 5.0])
def test_a_reply_that_parts_is_said_or_fails_the_check_if_the_model_is_sure(tmp_path, monkeypatch, exported, margin):
    tokenizer = chat_tokenizer("Be kind.")
    file, proof = exported
    answers = answers_of(proof, tokenizer)
    own, logits = proof.turns[0].reply[2], [rows.copy() for rows in proof.replies.logits]
    logits[0][2, own] = np.delete(logits[0][2], own).max() + margin
    proof = replace(proof, replies=replace(proof.replies, logits=logits))
    before = tokenizer.decode_bytes(proof.turns[0].reply[:2], control=True, start=False)
    answers["turns"][0]["reply"] = (before + b"\xff").hex()
    install(tmp_path, monkeypatch, answers)
    if margin < 1:
        [line] = compared((file, proof), tokenizer)
        assert "the same ids; the greedy replies part at token 3 of turn 1, where our model prefers" in line
        assert line.endswith("prefers its own token by only 0.001")
    else:
        with pytest.raises(ProofError, match=r"another reply where our model prefers its own token by 5\."):
            compared((file, proof), tokenizer)


@pytest.mark.parametrize("when", ["once", "always"])
def test_a_reply_whose_end_is_lost_is_asked_for_again(tmp_path, monkeypatch, exported, when):
    tokenizer = chat_tokenizer("Be kind.")
    install(tmp_path, monkeypatch, answers_of(exported[1], tokenizer) | {"loses": when})
    if when == "once":
        [line] = compared(exported, tokenizer)
        assert line.endswith("the same ids and the same greedy replies")
    else:
        with pytest.raises(ProofError, match="loses the end of its replies"):
            compared(exported, tokenizer)


def test_an_error_of_the_program_fails_the_check(tmp_path, monkeypatch, exported):
    install(tmp_path, monkeypatch, {"error": "unknown model architecture: 'x'"})
    with pytest.raises(ProofError, match=r"llama\.cpp \(llama-completion\) can't run the file: .*architecture: 'x'"):
        compared(exported, chat_tokenizer("Be kind."))


def test_without_the_program_nothing_is_compared(monkeypatch, exported):
    monkeypatch.setattr(llama_cpp, "find_node_llama_cpp", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compared(exported, chat_tokenizer("Be kind.")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "llama", "gpt2", "gemma3", "llama2c"])
def test_the_real_program_gives_our_replies(tmp_path, monkeypatch, request, name):
    if shutil.which("llama-completion") is None:
        pytest.skip("llama.cpp's llama-completion is not on the PATH; this test runs files with it")
    monkeypatch.setattr(llama_cpp, "find_node_llama_cpp", lambda: None)
    if name == "own":
        source = request.getfixturevalue("model")
    elif name == "llama2c":
        source = request.getfixturevalue("real_data") / "stories260K" / "stories260K.bin"
    else:
        save_model(source := tmp_path / "model", name)
    lines = export_gguf(source, tmp_path / "m.gguf", "f32").lines
    [line] = [line.strip() for line in lines if "llama.cpp (" in line]
    assert line.startswith("llama.cpp (llama-completion): the same ids")
    if name in ("own", "llama2c"):
        assert line.endswith("the same greedy replies")

"""The generate command: its output, its sources of prompts, and its errors."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.cpu_weights import has_packed_products
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.sft_generate import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    return save_checkpoint(tmp_path_factory.mktemp("run") / "step-1", tiny_model(tokenizer.vocab_size), tokenizer)


def reply(checkpoint: Path, prompt: str, **settings) -> str:
    model, tokenizer = load_checkpoint(checkpoint, "cpu")
    return generate(model, tokenizer, [prompt], **settings)[0]


def run(checkpoint: Path, *arguments: str) -> int:
    return main(["--checkpoint", str(checkpoint), "--device", "cpu", *arguments])


def with_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_output_is_the_reply_and_nothing_else(checkpoint, capsys):
    assert run(checkpoint, "--prompt", "Hi 😀", "--seed", "3", "--max-new-tokens", "12") == 0
    assert capsys.readouterr().out == reply(checkpoint, "Hi 😀", seed=3, max_new_tokens=12) + "\n"


@pytest.mark.parametrize("weights", ["auto", "float32"])
def test_exact_weights_do_not_change_the_reply(checkpoint, capsys, weights):
    assert run(checkpoint, "--prompt", "Hi", "--seed", "3", "--max-new-tokens", "12", "--weights", weights) == 0
    assert capsys.readouterr().out == reply(checkpoint, "Hi", seed=3, max_new_tokens=12) + "\n"


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_replies_are_generated_with_the_chosen_weights(checkpoint, monkeypatch, weights):
    if not has_packed_products():
        pytest.skip("this PyTorch or processor has no FBGEMM")
    read: list[str] = []
    whole = CPUInferenceModel.next_logits

    def noted(form, *arguments):
        read.append(form.weights)
        return whole(form, *arguments)

    monkeypatch.setattr(CPUInferenceModel, "next_logits", noted)
    assert run(checkpoint, "--prompt", "Hi", "--max-new-tokens", "3", "--weights", weights) == 0
    assert set(read) == {weights}


def test_every_sampling_option_reaches_the_reply(checkpoint, capsys):
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 4}
    options |= {"max_new_tokens": 15}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert run(checkpoint, "--prompt", "Hi", *arguments) == 0
    assert capsys.readouterr().out == reply(checkpoint, "Hi", **options) + "\n"


@pytest.mark.parametrize(("given", "system"), [("Rhyme.", "Rhyme."), ("", None)])
def test_a_system_message_replaces_the_one_of_training(checkpoint, capsys, given, system):
    settings = {"seed": 1, "max_new_tokens": 9}
    assert run(checkpoint, "--prompt", "Hi", "--system", given, "--seed", "1", "--max-new-tokens", "9") == 0
    assert capsys.readouterr().out == reply(checkpoint, "Hi", system=system, **settings) + "\n"


@pytest.mark.parametrize("source", ["file", "-", "--prompt -", "--prompt-file -"])
def test_a_prompt_comes_from_a_file_or_from_standard_input(checkpoint, capsys, monkeypatch, tmp_path, source):
    text = "Once, 😀\n\nthere was"
    file = tmp_path / "prompt.txt"
    file.write_bytes(f"{text}\n".encode())
    with_stdin(monkeypatch, f"{text}\n".encode())
    arguments = ["--prompt-file", str(file)] if source == "file" else source.split()
    assert run(checkpoint, *arguments, "--seed", "2", "--max-new-tokens", "9") == 0
    assert capsys.readouterr().out == reply(checkpoint, text, seed=2, max_new_tokens=9) + "\n"


def test_the_words_of_a_prompt_need_neither_an_option_nor_quotes(checkpoint, capsys):
    for words in (["Who are you"], ["Who", "are", "you"]):
        assert run(checkpoint, *words, "--seed", "3", "--max-new-tokens", "5") == 0
        assert capsys.readouterr().out == reply(checkpoint, "Who are you", seed=3, max_new_tokens=5) + "\n"


def test_a_reply_that_was_cut_off_is_reported(checkpoint, capsys):
    run(checkpoint, "--prompt", "Hi", "--seed", "2", "--max-new-tokens", "2")
    assert "2 tokens" in (said := capsys.readouterr().err)
    assert "--max-new-tokens allows more" in said


def test_without_a_checkpoint_the_newest_under_runs_replies(checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no model under runs/"):
        main(["--prompt", "Hi"])
    (tmp_path / "runs").symlink_to(checkpoint.parent)
    assert main(["--prompt", "Hi", "--seed", "3", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == reply(checkpoint, "Hi", seed=3, max_new_tokens=5) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Hi", "--temperature", "-1"], "temperature is -1.0; it must be"),
        (["--prompt", ""], "The prompt is empty"),
        ([""], "The prompt is empty"),
        ([], 'What to reply to is missing: `mini-chat-gpt generate "Tell me a story."`'),
        (["Hi", "--prompt", "Ho"], "'Hi' is a prompt, and --prompt stands beside it; give one of them"),
        (["Hi", "you", "--test"], "'Hi you' is a prompt, and --test stands beside it"),
        (["--prompt", "a" * 100], "context holds 64"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt can't be read: No such file"),
        (["--prompt-file", "/dev/zero"], "The prompt is longer than 16 MB"),
        (["--prompt", "Hi", "--checkpoint", "nowhere"], "no checkpoint at nowhere"),
    ],
)
def test_a_mistake_is_one_clear_sentence(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        run(checkpoint, *arguments)


def test_a_prompt_that_is_not_utf8_is_an_error(checkpoint, monkeypatch):
    with_stdin(monkeypatch, b"ab\xff")
    with pytest.raises(UserError, match=r"Standard input is not UTF-8 text \(byte 2\)"):
        run(checkpoint, "--prompt", "-")


def test_the_file_runs_as_a_script_and_a_mistake_ends_with_code_2(checkpoint):
    script = Path(__file__).parent.parent / "mini_chat_gpt" / "sft_generate.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--prompt", "Hi", "--top-p", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: top_p is 0.0; it must be a number above 0 and at most 1.\n"

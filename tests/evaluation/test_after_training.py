"""A run on chats ends with replies to held-out ones, and then `evaluate` finds the same part."""

import json
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.config_file import parse_config
from mini_chat_gpt.evaluation import after_training
from mini_chat_gpt.evaluation.held_out_chats import find_held_out_chats
from mini_chat_gpt.sft_train import train

SETTINGS = {
    "sft": {"pretrained_checkpoint": "base", "max_steps": 2, "eval_interval": 2, "learning_rate": 1e-3},
    "system": {"device": "cpu"},
    "wandb": {"enabled": False},
    "data": {"num_workers": 0},
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chats = [{"prompt": f"Where is cat {n}?", "response": f"Cat {n} is on mat {n % 7}."} for n in range(60)]
    Path("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tokenizer = tiny_tokenizer()
    save_checkpoint(Path("base"), tiny_model(tokenizer.vocab_size, context_length=96), tokenizer)
    return tmp_path


def trained(**chats):
    return train(parse_config(SETTINGS | {"chats": {"files": {"chats.jsonl": 1.0}, **chats}}, "test"))


def test_a_run_ends_with_replies_beside_the_expected_ones_and_the_command_for_all(home, capsys, monkeypatch):
    monkeypatch.setattr(after_training, "N_REPLIES", 5)
    run = trained(valid_share=0.2).folder
    _, end = capsys.readouterr().out.split("Done in ")
    heads, row = [line for line in end.splitlines() if "chrF" in line or "5 replies" in line]
    assert heads.split() == [
        "held-out",
        "chats",
        "stops",
        "length",
        "exact",
        "match",
        "ROUGE-L",
        "chrF",
        "loss",
        "of",
        "all",
    ]
    loss = json.loads((run / "result.json").read_text())["val_loss"]
    assert row.split()[-1] == f"{loss:.3f}"
    for name in ("prompt ", "expected ", "reply "):
        assert sum(line.startswith(name) for line in end.splitlines()) == 3
    assert f"--checkpoint {run}" in end
    assert len(end.splitlines()) < 20
    from mini_chat_gpt.checkpoints.load import load_checkpoint

    shown = {line.removeprefix("prompt").strip() for line in end.splitlines() if line.startswith("prompt ")}
    pair = load_checkpoint(run, "cpu")
    assert shown <= {task.prompt for task in find_held_out_chats(None, {run: pair}).tasks([pair], 100, 1)}


def test_a_run_without_held_out_chats_ends_without_replies(home, capsys):
    trained(valid_share=0)
    assert "chrF" not in capsys.readouterr().out


def test_no_further_replies_are_begun_when_the_time_is_up(home, capsys, monkeypatch):
    monkeypatch.setattr(after_training, "MAX_SECONDS", 0.0)
    trained(valid_share=0.2)
    assert f"{after_training.AT_ONCE} replies" in capsys.readouterr().out


def test_replies_that_fail_do_not_end_a_finished_run(home, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(after_training, "evaluate", fail)
    assert trained().steps == 2
    assert "Replying to held-out prompts failed (RuntimeError: out of memory)" in capsys.readouterr().out

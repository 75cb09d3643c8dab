"""`quickstart --base`: an adapter for a model from elsewhere, in a folder of its own; mistakes are found before data are written."""

import io
import json
import shutil
from contextlib import redirect_stdout

import pytest
from tiny import chat_tokenizer, tiny_model, tiny_tokenizer

from mini_chat_gpt import quickstart
from mini_chat_gpt.checkpoints.find import can_chat, find_checkpoint
from mini_chat_gpt.checkpoints.purpose import read_purpose
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import name_of_model
from mini_chat_gpt.prepare.sample_stories import write_sample

BRIEF = [
    "training.time_budget=null",
    "sft.max_steps=2",
    "data.eval_examples=2",
    "data.num_workers=0",
    "system.device=cpu",
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A small sample."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, n_train=120, n_valid=60)
    (folder / "SOURCE.json").write_text("{}")
    return folder


@pytest.fixture
def base(tmp_path, monkeypatch, sample):
    """A chat model with random weights, in the working directory of the test, which has the small sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "write_sample_folder", lambda folder, _: shutil.copytree(sample, folder))
    tokenizer = chat_tokenizer()
    return save_checkpoint(tmp_path / "tiny chat", tiny_model(tokenizer.vocab_size, context_length=1024), tokenizer)


def run(*argv: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert quickstart.main([*argv, *BRIEF, "--items", "1"]) == 0
    return out.getvalue()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("hub:org/name@main", "name"),
        ("hub:org/name/model.Q8_0.gguf", "model.Q8_0"),
        ("/x/my model.GGUF", "my-model"),
        ("runs/base/step-0000300", "base"),
        ("runs/base/best", "base"),
        ("./smol/", "smol"),
        ("..", "base"),
    ],
)
def test_the_run_folder_is_named_after_the_model(model, name):
    assert name_of_model(model) == name
    settings = parse("quickstart", ["--base", model]).settings
    assert settings.sft.save_dir == f"runs/quickstart-{name}"
    assert settings.sft.pretrained_checkpoint == model
    assert settings.lora.enabled


def test_settings_of_the_command_line_win():
    argv = ["--base", "x", "sft.save_dir=there", "lora.rank=4", "training.time_budget=1h"]
    arguments = parse("quickstart", argv)
    assert (arguments.settings.sft.save_dir, arguments.settings.lora.rank) == ("there", 4)
    assert arguments.items < parse("quickstart", []).items  # a larger model replies more slowly


def test_a_model_is_fine_tuned_with_an_adapter_compared_with_itself_and_not_trained_twice(base, tmp_path, monkeypatch):
    said = run("--base", str(base))
    folder = tmp_path / "runs" / "quickstart-tiny-chat"
    assert json.loads((folder / "result.json").read_text())["steps"] == 2
    assert (find_checkpoint(folder) / "adapter_model.safetensors").is_file()
    assert "words" in read_purpose(find_checkpoint(folder)).tasks
    assert (tmp_path / "runs" / "reports" / "quickstart-tiny-chat" / "report.html").is_file()
    assert "Report: runs/reports/quickstart-tiny-chat/report.html" in said
    assert said.rstrip().endswith("mini-chat-gpt chat --checkpoint runs/quickstart-tiny-chat")
    assert not (tmp_path / "runs" / "quickstart" / "base").exists()
    compared = []
    monkeypatch.setattr(quickstart, "compare", lambda models, *_: compared.extend(models))
    monkeypatch.setattr(quickstart, "rows_of", lambda _: [["the scores"]])
    assert ": runs/quickstart-tiny-chat (to train it again" in run("--base", str(base))
    assert compared[0] == base
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("runs", "tiny chat"):
        (tmp_path / name).rename(moved / name)
    monkeypatch.chdir(moved)
    assert ": runs/quickstart-tiny-chat (to train it again" in run("--base", str(base))
    assert compared[2].samefile(moved / "tiny chat")


def test_a_run_of_another_base_is_not_taken_for_this_one(base, tmp_path):
    folder = tmp_path / "runs" / "quickstart-tiny-chat"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("sft: {pretrained_checkpoint: other/tiny chat}\n")
    with pytest.raises(
        UserError, match="runs/quickstart-tiny-chat has a run that began with other/tiny chat; name another"
    ):
        run("--base", "tiny chat")
    assert not (tmp_path / "runs" / "quickstart").exists()


@pytest.mark.parametrize("fault", ["nowhere", "no tokenizer", "a text"])
def test_a_base_that_cannot_be_used_is_one_sentence_before_data_are_written(base, tmp_path, fault):
    if fault == "no tokenizer":
        shutil.copytree(base, tmp_path / fault)
        for file in (tmp_path / fault).glob("tokenizer*"):
            file.unlink()
    if fault == "a text":
        (tmp_path / fault).write_text("Once upon a time")
    with pytest.raises(UserError) as raised:
        run("--base", fault)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_few_steps_within_the_time_are_said(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "compare", lambda *_: {})
    monkeypatch.setattr(quickstart, "rows_of", lambda _: [["the scores"]])
    monkeypatch.setattr(quickstart, "run_stage", lambda *_: "")
    folder = tmp_path / "runs" / "quickstart-tiny-chat"
    folder.mkdir(parents=True)
    for steps, said in ((199, True), (200, False)):
        (folder / "result.json").write_text(json.dumps({"steps": steps, "train_loss": None}))
        quickstart.main(["--base", "tiny chat"])
        assert ("Only 199 steps fitted into 10m." in capsys.readouterr().out) == said


def test_the_advised_time_is_longer_than_the_time_that_was_too_short():
    assert [
        quickstart.budget_for(200, steps, budget) for steps, budget in ((199, "10m"), (60, "10m"), (147, "42m"))
    ] == ["15m", "35m", "60m"]


def test_a_base_without_a_chat_format_learns_ours(base, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "compare", lambda *_: {})
    monkeypatch.setattr(quickstart, "rows_of", lambda _: [["the scores"]])
    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path / "plain", tiny_model(tokenizer.vocab_size, context_length=1024), tokenizer)
    run("--base", "plain")
    assert can_chat(find_checkpoint(tmp_path / "runs" / "quickstart-plain"))

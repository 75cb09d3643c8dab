"""The commands as a user types them, from data to a reply. A mistake is one sentence and exit code 2, and no run is lost."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import BRIEF, SMALL, TORCHRUN, make_clone, one_sentence, run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder that looks like a clone, with the sample prepared and a small base model trained."""
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    printed = run(folder, "prepare_sft_data.py", "--sample")
    assert "12,000" in printed
    printed = run(folder, "pretrain", *SMALL, *BRIEF, "pretrain.tokenizer_vocab_size=500", "pretrain.max_steps=12",
                  "pretrain.eval_interval=6", "pretrain.batch_size=8")  # fmt: skip
    assert "Done in" in printed
    return folder


@pytest.fixture(scope="module")
def tuned(home) -> Path:
    printed = run(home, "mini_chat_gpt/sft_train.py", "--config", "sft_config.yaml", *BRIEF, "training.batch_size=16",
                  "sft.max_steps=12", "sft.eval_interval=6", "sft.save_interval=6",
                  'sft.prompts=["Where is Tom?"]')  # fmt: skip
    assert "Base model: runs/base" in printed
    return home


def test_fine_tuning_writes_a_run_folder(tuned):
    folder = tuned / "runs" / "sft"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"sft/train_loss", "sft/lr", "sft/tokens_per_second"} <= set().union(*lines)
    assert [line["step"] for line in lines if "sft/val_loss" in line] == [6, 12]
    assert "batch_size: 16" in (folder / "config.yaml").read_text()
    samples = (folder / "samples.txt").read_text()
    assert "step 12" in samples
    assert "Where is Tom? →" in samples
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "[[" in (folder / "first_batch.txt").read_text()
    facts = json.loads((folder / "run.json").read_text())["began"]
    assert {"torch", "python"} <= set(str(facts).replace("'", " ").split())
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_a_prompt_is_answered(tuned):
    printed = run(tuned, "mini_chat_gpt/sft_generate.py", "--checkpoint", "runs/sft", "--prompt", "Write a short story.",
                  "--max-new-tokens", "20", "--seed", "1")  # fmt: skip
    assert printed.strip()


def test_models_are_scored_side_by_side(tuned):
    (tuned / "mine.yaml").write_text(
        "compare: [{shows: facts, prompts: ['Who is Tom?'], contains: [cat], max_words: 500}]"
    )
    command = ["evaluate", "--checkpoint", "runs/sft", "--against", "runs/base", "--n", "4", "--json", "out.json"]
    printed = run(tuned, *command, "--prompts", "mine.yaml")
    assert "main_character" in printed
    assert "facts: at most 500 words (“Who is Tom?”)" in printed
    assert "Report: runs/reports/sft-against-base/report.html" in printed
    report = json.loads((tuned / "runs/reports/sft-against-base/report.json").read_text())
    assert {pair["kind"] for pair in report["paired"]} >= {"moral", "dialogue"}
    assert set(report["losses"]) == set(report["bits_per_byte"]) == {"sft", "base"}
    models = json.loads((tuned / "out.json").read_text())["models"]
    assert set(models) == {"sft", "base"}
    printed = run(tuned, *command, "--kinds", "moral", "--report", "mine")
    assert printed.count("Report: mine/report.html") == 1
    assert models["sft"]["groups"]["unseen"]["dialogue"]["n"] == 4


def test_the_capability_test_prints_its_table(tuned):
    command = ["mini_chat_gpt/sft_generate.py", "--checkpoint", "runs/sft", "--test", "--n", "2"]
    printed = run(tuned, *command, "--kinds", "main_character", "moral")
    assert "plots not in it" in printed
    assert "baseline" in printed


def test_a_second_run_leaves_the_first_alone(tuned):
    before = {path: path.stat().st_mtime_ns for path in (tuned / "runs" / "sft").rglob("*")}
    printed = run(tuned, "mini_chat_gpt/sft_train.py", *BRIEF, "sft.max_steps=2", "wandb.enabled=false")
    assert "runs/sft-2" in printed
    assert {path: path.stat().st_mtime_ns for path in (tuned / "runs" / "sft").rglob("*")} == before


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tuned):
    settings = [*BRIEF, "wandb.enabled=false", "sft.max_steps=20", "sft.eval_interval=10", "system.compile=false"]
    run(tuned, "sft", *settings, "sft.save_dir=runs/whole")
    command = [sys.executable, "-m", "mini_chat_gpt.cli", "sft", *settings, "sft.save_dir=runs/broken"]
    process = subprocess.Popen(command, cwd=tuned, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tuned / "runs" / "broken" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130, printed
    assert "sft.resume_from=runs/broken" in printed
    run(tuned, "sft", "sft.resume_from=runs/broken")  # with the settings in the run's folder
    whole, broken = (
        (tuned / "runs" / name / "step-0000020" / "model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert whole == broken


def test_a_run_that_a_time_limit_ended_is_resumed_automatically(tuned):
    settings = [*BRIEF, "wandb.enabled=false", "sft.max_steps=6", "sft.eval_interval=3", "sft.save_dir=runs/limited"]
    printed = run(tuned, "sft", *settings, "--time-limit", "0.01s", code=75)
    # A start completes one step at least; whether it begins a second one depends on what it does when the limit is noticed.
    (step,) = re.findall(r"Stopped \(time limit\) at step ([12]) of 6", printed)
    (command,) = re.findall(r"saved\. Resume with: mini-chat-gpt (.*)", printed)
    printed = run(tuned, *shlex.split(command), "--time-limit", "0.01s", code=75)  # with the settings of the run
    assert f"resumed from step {step}" in printed
    printed = run(tuned, "sft", *settings, "sft.resume_from=auto")
    assert "resumed from step" in printed
    assert (tuned / "runs" / "limited" / "result.json").exists()


@pytest.mark.slow
def test_a_time_budget_sets_the_number_of_steps(tuned):
    settings = [*BRIEF, "wandb.enabled=false", "sft.save_dir=runs/budgeted", "--time-budget", "15s"]
    (steps,) = re.findall(r"([\d,]+) steps fit", run(tuned, "sft", *settings))
    result = json.loads((tuned / "runs" / "budgeted" / "result.json").read_text())
    assert result["steps"] == int(steps.replace(",", ""))


def test_the_quickstart_runs_the_whole_pipeline_and_skips_finished_stages(tmp_path):
    brief = ["pretrain.max_steps=4", "sft.max_steps=4", "--items", "2", "data.eval_examples=10"]
    first = run(tmp_path, "quickstart", *brief)
    assert "main_character" in first
    assert "tuned, new plots" in first
    assert "sign-flip" not in first
    assert len(first[first.rindex("in %, held-out stories") :].splitlines()) <= 13
    assert "mini-chat-gpt chat --checkpoint runs/quickstart/sft" in first
    again = run(tmp_path, "quickstart", *brief, "--details")
    assert again.count("Already finished") == 2
    assert "sign-flip" in again


@pytest.mark.parametrize(
    "command",
    [
        ["prepare_sft_data.py"],
        ["mini_chat_gpt/sft_train.py"],
        ["mini_chat_gpt/sft_generate.py"],
        ["-m", "mini_chat_gpt.pretrain"],
        ["-m", "mini_chat_gpt.diagnostics.selfcheck"],
    ],
)
def test_files_and_modules_of_the_package_run_as_commands(home, command):
    assert "usage: " in run(home, *command, "--help")


@pytest.mark.slow
def test_torchrun_fine_tunes(tuned):
    settings = [*BRIEF, "wandb.enabled=false", "sft.max_steps=2", "sft.eval_interval=2", "sft.save_dir=runs/ranks"]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "mini_chat_gpt/sft_train.py", *settings]
    assert "2 processes" in run(tuned, *command)
    assert (tuned / "runs" / "ranks" / "result.json").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sft", "sft.learning_rat=1"], "did you mean 'learning_rate'"),
        (["sft", "training.batch_size=many"], "training.batch_size"),
        (["sft", "--config", "nothing.yaml"], "no config file nothing.yaml"),
        (["sft", "sft.pretrained_checkpoint=nothing"], "no checkpoint at nothing"),
        (["sft", "sft.pretrained_checkpoint=bad/text.txt"], "bad/text.txt"),
        (["sft", "sft.resume_from=runs/nothing"], "runs/nothing"),
        (["sft", "sft.dataset_path=nowhere"], "nowhere"),
        (["sft", "sft.dataset_path=bad/empty-train.txt"], "bad/empty-train.txt"),
        (["sft", "sft.dataset_path=bad/binary-train.txt"], "bad/binary-train.txt"),
        (["sft", "sft.dataset_path=bad/unseparated-train.txt"], "endoftext"),
        (["sft", "sft.dataset_path=bad/storyless-train.txt"], "story"),
        (["sft", "data.seq_len=16"], "data.seq_len"),
        (["sft", "data.mixture={morals: 1}"], "did you mean 'moral'"),
        (["sft", "system.device=cuda:7"], "system.device"),
        (["pretrain", "pretrain.dataset_path=nowhere"], "no text at nowhere"),
        (["pretrain", "pretrain.tokenizer=bad/text.txt"], "bad/text.txt"),
        (["generate", "--checkpoint", "bad", "--prompt", "x"], "bad"),
        (["generate", "--checkpoint", "runs/base", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["evaluate", "--checkpoint", "runs/base", "--kinds", "songs"], "songs"),
        (["import", "bad/text.txt", "out"], "bad/text.txt"),
        (["sft", "--time-limit", "soon"], "training.time_limit"),
        (["selfcheck", "--checkpoint", "nothing"], "no checkpoint at nothing"),
        (["chatt"], "not a verb"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(home, command, words):
    bad = home / "bad"
    if not bad.exists():
        bad.mkdir()
        (bad / "text.txt").write_text("just text")
        story = "Tom had a ball. He lost it. Then he found it again and was happy.\n"
        contents = {"empty": b"", "binary": bytes(range(256)) * 40, "unseparated": story.encode() * 40,
                    "storyless": b"Words: a, b\n<|endoftext|>\n" * 9}  # fmt: skip
        for name, content in contents.items():
            for split in ("train", "valid"):
                (bad / f"{name}-{split}.txt").write_bytes(content)
    before = {path for path in (home / "runs").rglob("*") if path.is_file()}
    assert words in one_sentence(run(home, *command, code=2))
    assert {path for path in (home / "runs").rglob("*") if path.is_file()} >= before


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_ends_a_run_with_a_sentence_and_keeps_the_last_checkpoint(home):
    disk = home / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this system does not let a test mount a small disk")
    try:
        settings = ["sft.max_steps=40", "sft.save_interval=4", "training.keep_checkpoints=9", "wandb.enabled=false"]
        printed = run(home, "sft", *BRIEF, *settings, "sft.save_dir=disk/sft", code=2)
        assert "no space left" in one_sentence(printed)
        steps = sorted(path.name for path in (disk / "sft").glob("step-*"))
        assert steps
        run(home, "generate", "--checkpoint", f"disk/sft/{steps[-1]}", "--prompt", "Hello", "--max-new-tokens", "5")
        assert not list((disk / "sft").glob(".step-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)

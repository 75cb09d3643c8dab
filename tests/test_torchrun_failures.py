"""Whatever fails under torchrun, and on whichever rank: one message, from rank 0, and nothing from the other ranks."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from commands import TORCHRUN, environment, make_clone, program, run, write_stories
from test_torchrun import SETTINGS
from tiny_disk import tiny_disk

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    write_stories(folder)
    return folder


def two_ranks(clone: Path, program_file: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program as two ranks."""
    command = program(*TORCHRUN, "--nproc_per_node=2", "--standalone", str(program_file), *arguments)
    variables = environment(PYTHONPATH=f"{HERE.parent}:{HERE}", OMP_NUM_THREADS="1")  # torchrun mentions it if unset
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env=variables, timeout=200)


def messages(clone: Path, program_file: str | Path, *arguments: str, code: int = 2) -> list[str]:
    """What two ranks of a program print on standard error, without torchrun's own lines. Both must exit with `code`."""
    done = two_ranks(clone, program_file, *arguments)
    assert done.returncode != 0, done.stdout
    ours, _, closing_block = re.sub(r"^W\d{4} .*\n", "", done.stderr, flags=re.MULTILINE).partition("\nE")
    codes = [int(code) for code in re.findall(r"exitcode  : (-?\d+)", closing_block)]
    assert code in codes, done.stderr
    assert set(codes) <= {code, -15, 143} | ({2} if code < 0 else set()), (
        done.stderr
    )  # torchrun sends SIGTERM to those that are still there
    assert "Traceback" not in done.stdout
    return ours.splitlines()


def only_line(clone: Path, program_file: str, *arguments: str) -> str:
    """The only line that two ranks of a program print on standard error; they exit with 2."""
    lines = messages(clone, program_file, *arguments)
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def faulty(clone: Path, fault: str, rank: int, *arguments: str, code: int = 2) -> list[str]:
    folder = f"{fault.replace(' ', '-')}-{rank}"
    more = [f"pretrain.save_dir={folder}", *arguments]
    return messages(clone, HERE / "failing_rank.py", fault, str(rank), *SETTINGS, *more, code=code)


def test_a_record_that_only_rank_1_reads_is_reported_by_rank_0(clone):
    expected = "error: stories-train.txt: document 150 is damaged; repair it."
    assert faulty(clone, "record", 1, "data.num_workers=1") == [expected]


@pytest.mark.slow
def test_a_file_that_only_rank_0_has_is_reported_by_rank_0(clone):
    (line,) = faulty(clone, "other folder", 1)
    assert line.startswith("error: There is no text at stories-train.txt")


def test_an_unexpected_exception_is_one_traceback(clone):
    lines = faulty(clone, "bug", 1, code=1)
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: a bug"
    assert sum("Traceback" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_samples_of_a_sharded_model_that_fail_on_one_rank_end_the_run(clone, rank):
    (line,) = faulty(clone, "samples", rank, "system.fsdp=true")
    assert line == (
        f"error: Generating samples failed on process {rank} alone (MemoryError: the memory is full), and the other processes "
        "wait for it; resume the run from its last checkpoint."
    )


@pytest.mark.slow
def test_samples_of_a_sharded_model_that_fail_on_all_ranks_do_not_end_the_run(clone):
    more = ["system.fsdp=true", "pretrain.save_dir=all-ranks"]
    done = two_ranks(clone, HERE / "failing_rank.py", "samples", "all", *SETTINGS, *more)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("Generating samples failed (MemoryError: the memory is full); training is not affected.") == 1
    )


@pytest.mark.slow
def test_an_unexpected_exception_of_rank_0_is_one_traceback(clone):
    assert sum("Traceback" in line for line in faulty(clone, "bug", 0, code=1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_on_one_rank_is_one_word(clone, rank):
    assert faulty(clone, "interrupt", rank, code=130) == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_reported_by_the_other_one(clone, rank):
    # With a killed rank 0 PyTorch may print warnings about its store, and torchrun may end the other rank before it notices.
    lines = faulty(clone, "kill", rank, code=-9)
    reports = [line for line in lines if line.startswith("error: ")]
    assert len(reports) <= 1
    assert all(f"Process {1 - rank} of 2 has lost the connection to another one" in line for line in reports)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_computes_for_long_does_not_delay_the_end(clone, rank):
    started = time.monotonic()
    assert faulty(clone, "long", rank) == ["error: the other rank has found a mistake; correct it."]
    assert time.monotonic() - started < 150  # it would compute for 600 s


SFT = [setting for setting in SETTINGS if not setting.startswith("pretrain.")]


@pytest.fixture(scope="module")
def base(clone) -> Path:
    """A finished run of one process."""
    run(clone, "pretrain", *SETTINGS, "pretrain.max_steps=4", "pretrain.save_interval=2", "pretrain.save_dir=base")
    return clone / "base"


def damaged_copy(base: Path, name: str) -> str:
    """The name of a copy of a checkpoint that has another content in one file."""
    copy = base.parent / f"damaged-{name.partition('.')[0]}"
    copy.mkdir()
    for file in (base / "step-0000004").iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[:-9] + b"123456789" if file.name == name else content)
    return copy.name


MISTAKES = {
    "no data": (["pretrain.dataset_path=nowhere"], "no text at nowhere"),
    "empty data": (["pretrain.dataset_path=empty.txt"], "empty.txt"),
    "no setting": (["pretrain.max_step=4"], "did you mean 'max_steps'"),
    "wrong value": (["pretrain.max_steps=many"], "pretrain.max_steps"),
    "no config file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "no tokenizer": (["pretrain.tokenizer=nowhere"], "no tokenizer 'nowhere'"),
    "no checkpoint": (["pretrain.resume_from=nowhere"], "no checkpoint at nowhere"),
    "save_dir is a file": (["pretrain.save_dir=stories-train.txt/run"], "stories-train.txt/run"),
    "too large": (["model.n_embd=33"], "n_embd"),
    "precision": (["system.device=cuda:7"], "system.device"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_pretraining_is_one_sentence(clone, mistake):
    (clone / "empty.txt").write_text("")
    arguments, part = MISTAKES[mistake]
    line = only_line(clone, "mini_chat_gpt/pretrain.py", *SETTINGS, *arguments)
    assert part in line


@pytest.mark.slow
@pytest.mark.parametrize("file", ["training_state.json", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_to_resume_from_is_one_sentence(clone, base, file):
    settings = [*SETTINGS, f"pretrain.resume_from={damaged_copy(base, file)}"]
    only_line(clone, "mini_chat_gpt/pretrain.py", *settings)


@pytest.mark.slow
def test_another_optimizer_at_a_resume_is_one_sentence(clone, base):
    settings = [*SETTINGS, "pretrain.resume_from=base/step-0000004", "training.optimizer=muon", "pretrain.max_steps=6"]
    line = only_line(clone, "mini_chat_gpt/pretrain.py", *settings)
    assert "optimizer" in line


@pytest.mark.slow
@pytest.mark.parametrize("path", ["nowhere", "stories-train.txt", "damaged"])
def test_a_base_that_cannot_be_loaded_is_one_sentence(clone, base, path):
    path = damaged_copy(base, "model.safetensors") if path == "damaged" else path
    settings = [setting for setting in SFT if not setting.startswith("model.")]  # which have no effect, with a warning
    line = only_line(clone, "mini_chat_gpt/sft_train.py", *settings, f"sft.pretrained_checkpoint={path}")
    assert path in line


@pytest.mark.slow
def test_a_full_disk_at_a_save_is_one_sentence(clone):
    with tiny_disk(clone / "disk", 256):
        line = only_line(clone, "mini_chat_gpt/pretrain.py", *SETTINGS, "pretrain.save_dir=disk/run")
    assert "no space left" in line

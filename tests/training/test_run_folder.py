"""Where a run lives: never on top of another, and where it was when it goes on."""

import json
import subprocess
import sys

import pytest
from tiny import tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoints.find import move_aside, steps_of
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.training.run_folder import FACTS, find_place, held

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def run(tmp_path):
    """Makes a run folder with checkpoints at the given steps."""

    def make(name, *steps, finished=False, launch=None):
        folder = tmp_path / name
        folder.mkdir()
        for step in steps:
            checkpoint = save_checkpoint(folder / f"step-{step:07d}", tiny_model(TOKENIZER.vocab_size), TOKENIZER)
            (checkpoint / "training_state.json").write_text("{}")
        if finished:
            (folder / "result.json").write_text("{}")
        (folder / FACTS).write_text(json.dumps({"launch": launch}))
        return folder

    return make


def place(tmp_path, resume_from=None, launch=None):
    return find_place(SFTSection(save_dir=str(tmp_path / "sft"), resume_from=resume_from), launch)


def test_a_new_run_takes_the_first_free_name(tmp_path, run):
    assert place(tmp_path).folder.name == "sft"
    run("sft", 1)
    run("sft-2", finished=True)
    assert place(tmp_path).folder.name == "sft-3"
    assert place(tmp_path).checkpoint is None


def test_auto_goes_on_with_the_newest_run_that_is_not_finished(tmp_path, run):
    assert place(tmp_path, "auto").folder.name == "sft"
    run("sft", 1)
    run("sft-2", 1, 2)
    run("sft-10", 5, finished=True)
    run("sft-other", 9)
    found = place(tmp_path, "auto")
    assert (found.folder.name, found.checkpoint.name) == ("sft-2", "step-0000002")


def test_a_run_or_a_checkpoint_can_be_named(tmp_path, run):
    folder = run("sft", 1, 2)
    assert place(tmp_path, str(folder)).checkpoint == folder / "step-0000002"
    assert place(tmp_path, str(folder / "step-0000001")).checkpoint == folder / "step-0000001"
    assert place(tmp_path, str(folder / "last")).folder == folder


def test_what_torchrun_starts_again_finds_its_own_run(tmp_path, run):
    run("sft", 1, launch="a")
    run("sft-2", launch="b")
    run("sft-3", 4, launch="c", finished=True)
    assert place(tmp_path, launch="a").checkpoint.name == "step-0000001"
    assert (place(tmp_path, launch="b").folder.name, place(tmp_path, launch="b").checkpoint) == ("sft-2", None)
    assert (
        place(tmp_path, launch="c").folder.name == "sft-2"
    )  # its own is finished, and nothing has come of this one yet


def test_a_folder_in_which_another_process_trains_is_not_taken(tmp_path):
    (tmp_path / "sft").mkdir()
    code = "import sys, time; from pathlib import Path; from mini_chat_gpt.training.run_folder import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "sft")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert place(tmp_path).folder.name == "sft-2"
        with pytest.raises(UserError, match="Another process is training in"), held(tmp_path / "sft"):
            pass
        other.kill()
    assert place(tmp_path).folder.name == "sft"
    with held(tmp_path / "sft"):
        pass


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "file missing", "manifest missing"])
@pytest.mark.parametrize("asked", ["auto", "run"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, run, damage, asked):
    folder = run("sft", 1, 2)
    weights = folder / "step-0000002" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "bit flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "file missing":
        weights.unlink()
    else:
        (folder / "step-0000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="step-0000002"):
        assert place(tmp_path, "auto" if asked == "auto" else str(folder)).checkpoint.name == "step-0000001"


def test_with_no_whole_checkpoint_left_it_is_an_error(tmp_path, run):
    folder = run("sft", 1)
    (folder / "step-0000001" / "model.safetensors").unlink()
    with (
        pytest.warns(UserWarning, match=r"model\.safetensors is missing"),
        pytest.raises(UserError, match="no complete"),
    ):
        place(tmp_path, "auto")


def test_later_checkpoints_are_set_aside_not_lost(tmp_path, run):
    folder = run("sft", 1, 2, 3)
    assert [path.name for path in move_aside(folder, 1)] == ["set-aside-step-0000002", "set-aside-step-0000003"]
    assert [path.name for path in steps_of(folder)] == ["step-0000001"]

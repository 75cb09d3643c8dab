"""Which checkpoint a path means: the best or the newest undamaged one of a run, the newest base of all runs."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from tiny import chat_tokenizer, tiny_model, tiny_tokenizer

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.checkpoints import find
from mini_chat_gpt.checkpoints.find import (
    find_checkpoint,
    newest_checkpoint,
    protect,
    prune,
    read_meta,
    read_state,
    step_of,
    steps_of,
)
from mini_chat_gpt.checkpoints.save import save_checkpoint, take_snapshot
from mini_chat_gpt.common import manifest
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import write_manifest

META, MODEL, STATE, MANIFEST = "mini_chat_gpt.json", "model.safetensors", "training_state.json", "manifest.json"


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A run with three checkpoints, of which the second is the best."""
    run = tmp_path_factory.mktemp("saved") / "run"
    model = tiny_model(tokenizer.vocab_size, n_layer=1, n_embd=8, n_head=2, n_kv_head=1)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5)):
        info = {"val_loss": loss, "step": step, "best_metric": "val_loss"}
        take_snapshot(model, tokenizer, info, state={"progress": {"step": step}}).write(run / f"step-000000{step}")
    return run


@pytest.fixture
def run(tmp_path, saved):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def damage(folder: Path, name: str = MODEL) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)


def rewrite(folder: Path, **changes) -> None:
    """Change mini_chat_gpt.json as another writer would: with a manifest that fits."""
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(meta | changes))
    write_manifest(folder)


def names(folders) -> list[str]:
    return [folder.name for folder in folders]


def test_a_damaged_checkpoint_is_reported_and_the_newest_undamaged_one_used(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"step-000000{step}", model, tokenizer)
    weights = tmp_path / "step-0000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-0000003: model\.safetensors has \d+ bytes instead of"):
        assert find_checkpoint(tmp_path).name == "step-0000002"
    with pytest.raises(UserError, match=r"step-0000003 is damaged: model\.safetensors"):
        load_checkpoint(tmp_path / "step-0000003")


def test_the_best_of_a_run_is_the_one_with_the_lowest_validation_loss(run):
    assert find_checkpoint(run).name == find_checkpoint(run / "best").name == "step-0000002"
    assert find_checkpoint(run / "last").name == "step-0000003"


def test_only_the_chosen_checkpoint_is_read(run, monkeypatch):
    read, sha256_of = [], manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    find_checkpoint(run)
    assert [path.parent.name for path in read if path.name == MODEL] == ["step-0000002"]
    assert sum(path.name == META for path in read) == 4  # all for the ranking, and the chosen one
    read.clear()
    find_checkpoint(run)
    assert {path.name for path in read} == {META}


def test_if_the_best_is_damaged_the_next_best_is_used_with_a_warning(run):
    damage(run / "step-0000002")
    with pytest.warns(UserWarning, match=r"skipping .*step-0000002: the content of model\.safetensors has changed"):
        assert find_checkpoint(run).name == "step-0000003"
    damage(run / "step-0000003")
    with pytest.warns(UserWarning, match=r"skipping .*step-0000003"):
        assert find_checkpoint(run).name == "step-0000001"


def test_a_checkpoint_with_weights_that_are_not_finite_is_skipped(run, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    save_checkpoint(run / "step-0000004", model, tokenizer, {"val_loss": 0.1, "best_metric": "val_loss"})
    with pytest.warns(UserWarning, match=r"step-0000004: .* is not finite"):
        assert find_checkpoint(run).name == "step-0000002"


STRUCTURES = ["", "{", "[]", "null", "1", '"x"', '{"format": 1}', '{"format": 1, "info": [], "gpt_config": {}}', "[" * 10**5,
              '{"format": 1, "info": {}, "gpt_config": null}', '{"format": "1"}', '{"format": [1]}', "9" * 5000, "\\ud800"]  # fmt: skip


@pytest.mark.parametrize("name", [META, MANIFEST])
@pytest.mark.parametrize("content", STRUCTURES)
def test_metadata_of_any_structure_are_skipped_with_a_warning(run, name, content):
    (run / "step-0000002" / name).write_text(content)
    with pytest.warns(UserWarning, match=r"skipping .*step-0000002"):
        assert find_checkpoint(run).name == "step-0000003"
    with pytest.raises(UserError, match=r"step-0000002"):
        find_checkpoint(run / "step-0000002")


@pytest.mark.parametrize("content", STRUCTURES)
def test_metadata_of_any_structure_are_one_sentence(run, content):
    for name, read in ((META, read_meta), (STATE, read_state)):
        (run / "step-0000002" / name).write_text(content)
        with pytest.raises(UserError, match="step-0000002"):
            read(run / "step-0000002")


@pytest.mark.parametrize("how", ["missing", "renamed", "a loop"])
def test_a_checkpoint_without_its_metadata_is_not_taken_for_a_model_of_another_project(run, how):
    folder = run / "step-0000002"
    if how == "renamed":
        (folder / META).rename(folder / "other.json")
    else:
        (folder / META).unlink()
    if how == "a loop":
        (folder / META).symlink_to(META)
    with pytest.raises(UserError, match=rf"{META}"):
        load_checkpoint(folder, "cpu")
    for path in [
        folder / MANIFEST,
        *folder.glob("tokenizer_meta.json"),
    ]:  # what a user copies out is an ordinary folder
        path.unlink()
    assert load_checkpoint(folder, "cpu")[0].config.n_embd == 8


@pytest.mark.parametrize("info", [{"val_loss": "low"}, {"val_loss": [1]}, {"val_loss": 10**400}, {"best_metric": ["x"]},
                                  {"score": {}, "best_metric": "val_loss"}, {"best_by": {}}])  # fmt: skip
def test_values_that_are_not_numbers_do_not_rank(run, info):
    rewrite(run / "step-0000003", info=info)
    assert find_checkpoint(run).name == "step-0000002"


def test_a_checkpoint_of_a_later_format_is_skipped_with_a_warning(run):
    rewrite(run / "step-0000002", format=2, gpt_config=["a list of settings"])
    with pytest.warns(UserWarning, match=r"step-0000002: .*unknown checkpoint format 2; update"):
        assert find_checkpoint(run).name == "step-0000003"


@pytest.mark.parametrize("name", [MANIFEST, META, STATE])
@pytest.mark.parametrize("prefer", ["best", "last"])
def test_a_flipped_bit_gives_a_warning_or_the_same_result(run, name, prefer):
    expected = find_checkpoint(run, prefer)
    meta, state = read_meta(expected), read_state(expected)
    for number, checkpoint in enumerate(steps_of(run)):
        content = (checkpoint / name).read_bytes()
        for bit in range(number, 8 * len(content), 83):  # sampled
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (checkpoint / name).write_bytes(changed)
            with warnings.catch_warnings(record=True) as printed:
                warnings.simplefilter("always")
                chosen = find_checkpoint(run, prefer)
            if not printed:
                assert chosen == expected
                assert (read_meta(chosen), read_state(chosen)) == (meta, state)
            else:
                assert str(checkpoint) in str(printed[0].message)
                assert chosen != checkpoint
        (checkpoint / name).write_bytes(content)


def test_a_run_without_a_whole_checkpoint_is_one_sentence(run):
    for checkpoint in steps_of(run):
        damage(checkpoint)
    with pytest.warns(UserWarning, match="skipping"), pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(run)


@pytest.mark.parametrize(
    "path", ["x" * 300, "a/" * 3000, "\0", "loop", "loop/best", "run/step-0000001/model.safetensors"]
)
def test_a_path_that_is_not_a_folder_is_one_sentence(run, monkeypatch, path):
    monkeypatch.chdir(run.parent)
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"There is no checkpoint at|can't be read"):
        find_checkpoint(path)


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path):
    for name in ("step-9999999", "step-10000000", "step-0000002", "step-²", "step-x", "step-", "xstep-0000009"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-0000005").write_text("a file")
    assert names(steps_of(tmp_path)) == ["step-0000002", "step-9999999", "step-10000000"]
    assert step_of(Path("step-²")) is None


# The newest model


@pytest.fixture
def runs(tmp_path, run):
    """Three runs with one checkpoint each, written in the order c, a, b."""
    for name in "cab":
        folder = tmp_path / "runs" / name / "step-0000001"
        shutil.copytree(run / "step-0000001", folder)
        write_manifest(folder)
    return tmp_path / "runs"


def test_the_newest_base_is_found_and_is_never_a_chat_model(tmp_path, tokenizer):
    model, plain = tiny_model(tokenizer.vocab_size), tiny_tokenizer()
    assert newest_checkpoint(tmp_path, base=True) is None
    save_checkpoint(tmp_path / "imported", model, plain, {"job": "import"})
    save_checkpoint(tmp_path / "base" / "step-0000001", model, plain, {"job": "pretrain"})
    save_checkpoint(tmp_path / "deep" / "sft" / "step-0000001", model, tokenizer, {"job": "sft"})
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "base"
    assert newest_checkpoint(tmp_path) == tmp_path / "deep" / "sft"
    shutil.rmtree(tmp_path / "base")
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "imported"


def test_without_runs_there_is_no_newest_model_and_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path / "runs") is None
        assert find.best_of([]) is None


def test_the_chat_format_decides_whether_a_model_is_a_base_and_not_its_job(tmp_path, tokenizer):
    model = tiny_model(tokenizer.vocab_size)
    save_checkpoint(tmp_path / "base", model, tiny_tokenizer(), {"job": "sft"})
    save_checkpoint(tmp_path / "chat", model, tokenizer, {"job": "import"})
    assert newest_checkpoint(tmp_path, base=True) == tmp_path / "base"
    assert newest_checkpoint(tmp_path, base=False) == tmp_path / "chat"


def test_copies_and_new_file_times_do_not_change_which_model_is_the_newest(runs):
    assert newest_checkpoint(runs).name == "b"
    copy = shutil.copytree(runs, runs.with_name("copy"), copy_function=shutil.copyfile)
    assert newest_checkpoint(copy) == copy / "b"
    for file in (copy / "a").rglob("*"):
        os.utime(file, (2**32, 2**32))
    assert newest_checkpoint(copy) == copy / "b"


def test_checkpoints_that_do_not_say_when_they_were_written_go_by_file_time(runs):
    for number, name in enumerate("bca"):
        checkpoint = runs / name / "step-0000001"
        (checkpoint / MANIFEST).write_text(
            json.dumps({"files": json.loads((checkpoint / MANIFEST).read_text())["files"]})
        )
        os.utime(checkpoint / META, (number, number))
    assert newest_checkpoint(runs).name == "a"
    for number, name in enumerate("cab"):  # more certain than the time of a file
        (runs / name / "run.json").write_text(json.dumps({"began": {"time": f"2026-11-0{number + 1}T07:59:32+00:00"}}))
    assert newest_checkpoint(runs).name == "b"
    for record in (
        "{",
        "[]",
        '{"began": {"time": "2001-99-99"}}',
        '{"began": {"time": 1e400}}',
        '{"began": {"time": "0000"}}',
    ):
        (runs / "b" / "run.json").write_text(record)
        newest_checkpoint(runs)


@pytest.mark.parametrize("name", [META, MANIFEST, MODEL, "tokenizer_meta.json"])
def test_a_damaged_model_is_passed_over_with_a_warning(runs, name):
    damage(runs / "b" / "step-0000001", name)
    os.utime(runs / "b" / "step-0000001" / META, (2**32, 2**32))
    with pytest.warns(UserWarning, match="/b/step-0000001|passing over .*/b"):
        assert newest_checkpoint(runs).name == "a"


def test_a_model_of_a_later_format_is_passed_over_with_a_warning(runs):
    rewrite(runs / "c" / "step-0000001", format=2)
    with pytest.warns(UserWarning, match="format 2"):
        assert newest_checkpoint(runs).name == "b"


def test_a_run_with_one_whole_checkpoint_is_not_passed_over(runs, run):
    newer = shutil.copytree(run / "step-0000003", runs / "b" / "step-0000003")
    write_manifest(newer)
    (newer / "tokenizer_meta.json").write_text("[]")
    with pytest.warns(UserWarning, match="step-0000003"):
        assert newest_checkpoint(runs, base=False).name == "b"


def test_links_are_followed_one_level_and_loops_do_no_harm(runs, run):
    (runs / "loop").symlink_to(runs)
    (runs / "self").symlink_to("self")
    (runs / "gone").symlink_to("nowhere")
    write_manifest(run / "step-0000003")
    (runs / "linked").symlink_to(run)
    assert newest_checkpoint(runs).name == "linked"


def test_a_folder_that_cannot_be_listed_is_passed_over(runs, monkeypatch):
    (runs / "closed").mkdir()

    def listing(function):
        def listed(path="."):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return listed

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, listing(getattr(os, name)))
    with pytest.warns(UserWarning, match="closed: permission denied"):
        assert newest_checkpoint(runs).name == "b"
    with pytest.raises(UserError, match="closed can't be read"):
        find_checkpoint(runs / "closed")


# Pruning


def test_the_newest_and_the_best_are_kept(run):
    prune(run, 1)
    assert names(steps_of(run)) == ["step-0000002", "step-0000003"]
    assert not list(run.glob(".step*"))


@pytest.mark.parametrize("name", [META, MANIFEST, MODEL])
def test_a_damaged_checkpoint_is_not_counted_as_the_best(run, name):
    damage(run / "step-0000002", name)
    with pytest.warns(UserWarning, match="step-0000002"):
        prune(run, 1)
    assert names(steps_of(run)) == ["step-0000002", "step-0000003"]  # what is damaged is kept; 1 is not the best


@pytest.mark.parametrize("content", STRUCTURES)
def test_pruning_never_raises_whatever_the_metadata_are(run, content):
    (run / "step-0000001" / META).write_text(content)
    with pytest.warns(UserWarning, match="step-0000001"):
        prune(run, 1)
    assert names(steps_of(run)) == ["step-0000001", "step-0000002", "step-0000003"]


def test_the_only_whole_checkpoint_is_never_deleted(run):
    for step in (2, 3):
        damage(run / f"step-000000{step}")
    with pytest.warns(UserWarning, match="damaged"):
        prune(run, 1)
    assert find_checkpoint(run / "step-0000001")
    damage(run / "step-0000001")
    with pytest.warns(UserWarning, match="damaged"):
        prune(run, 1)
    assert len(steps_of(run)) == 3


@pytest.mark.parametrize(("module", "function"), [(Path, "rename"), (shutil, "rmtree"), (os, "listdir")])
def test_a_disk_that_refuses_to_delete_is_a_warning(run, monkeypatch, module, function):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, function, refuse)
    with pytest.warns(UserWarning, match=r"\(read-only file system\)"):
        prune(run, 1)


def test_a_protected_checkpoint_is_kept(run):
    protect(run / "step-0000001")
    prune(run, 1)
    assert names(steps_of(run)) == ["step-0000001", "step-0000002", "step-0000003"]
    assert find_checkpoint(run / "step-0000001")


def test_a_model_without_training_state_cannot_be_resumed(tmp_path, tokenizer):
    folder = save_checkpoint(tmp_path / "m", tiny_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match="no training state"):
        read_state(folder)


@pytest.mark.parametrize("other", [None, "a_metric", "zero_shot"])
def test_a_score_by_another_metric_does_not_count(run, other):
    for step, score, metric in ((1, 0.9, other), (2, 0.5, "score/words"), (3, 0.4, "score/words")):
        rewrite(run / f"step-000000{step}", info={"val_loss": 1.0, "score": score, "step": step, "best_metric": metric})
    assert find_checkpoint(run).name == "step-0000002"


def test_the_reason_why_a_path_can_not_be_read_is_the_systems_own(tmp_path):
    with pytest.raises(UserError, match=r"can't be read \(file name too long\); check the path\.$"):
        find_checkpoint(tmp_path / ("x" * 300))

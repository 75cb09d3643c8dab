"""Where held-out tasks come from, their groups, and that they fit the contexts of the models."""

import json
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_model

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.evaluation.held_out import find_held_out, groups_of, held_out_tasks, sample_valid_file
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.generation.text import prompt_ids
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.sft_dataloader import InstructDataset, read_records, stories
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.provenance import file_fingerprint

TRAIN, VALID = "TinyStoriesInstruct-train.txt", "TinyStoriesInstruct-valid.txt"


@pytest.fixture(scope="module")
def tokenizer(sample) -> ChatTokenizer:
    return ChatTokenizer.train(stories(sample / VALID), 600)


@pytest.fixture
def clone(sample, tmp_path) -> Path:
    """A folder in which a run was started, with the data of the run."""
    (tmp_path / "clone/data").mkdir(parents=True)
    (tmp_path / "clone/data" / VALID).write_bytes((sample / VALID).read_bytes())
    (tmp_path / "clone/runs/sft/step-7").mkdir(parents=True)
    config = "sft:\n  dataset_path: ./data\n  save_dir: runs/sft\n"
    (tmp_path / "clone/runs/sft/config.yaml").write_text(config)
    return tmp_path / "clone"


# The file


@pytest.mark.parametrize("named", ["", TRAIN, VALID])
def test_the_valid_split_of_named_data_is_used(sample, named):
    assert find_held_out(sample / named)[0] == sample / VALID


def test_a_file_of_another_name_is_used_as_it_is(sample, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_bytes((sample / VALID).read_bytes())
    assert find_held_out(str(mine))[0] == mine


def test_named_data_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        find_held_out(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["runs/sft", "runs/sft/step-7", "runs/sft/best"])
def test_the_data_of_a_run_is_found_from_any_folder(clone, monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    file, why = find_held_out(None, [clone / path])
    assert file.samefile(clone / "data" / VALID)
    assert str(clone / path) in why


def test_the_data_of_a_moved_run_is_searched_in_the_current_folder(clone, monkeypatch, tmp_path):
    moved = clone.rename(tmp_path / "here") / "runs" / "sft"
    elsewhere = moved.rename(tmp_path / "a-run")
    monkeypatch.chdir(tmp_path / "here")
    assert find_held_out(None, [elsewhere])[0].samefile(tmp_path / "here/data" / VALID)


def test_the_recorded_data_of_a_moved_project_are_found_without_its_settings(clone, monkeypatch, tmp_path):
    run = clone / "runs" / "sft"
    monkeypatch.chdir(clone)
    records = [file_fingerprint(Path("data", name), Path("runs/sft")) for name in (VALID,)]
    (run / "run.json").write_text(json.dumps({"began": {"data": records}}))
    (run / "config.yaml").write_text("sft: {dataset_path: /gone, save_dir: runs/sft}")
    moved = clone.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert find_held_out(None, [moved / "runs" / "sft"])[0] == moved / "data" / VALID


def test_other_data_in_the_place_of_the_recorded_ones_are_used_but_named(clone, monkeypatch):
    run = clone / "runs" / "sft"
    monkeypatch.chdir(clone)
    (run / "run.json").write_text(json.dumps({"began": {"data": [file_fingerprint(Path("data", VALID), run)]}}))
    assert find_held_out(None, [run])[1] == f"the data of {run}"
    with open(clone / "data" / VALID, "a") as file:
        file.write("\n")
    found, why = find_held_out(None, [run])
    assert found.samefile(clone / "data" / VALID)
    assert why == f"the data of {run}, but not the file that its run used, which is missing or has changed"


@pytest.mark.parametrize(
    "config", ["sft: {dataset_path: [1], save_dir: 3}", "sft: 1", "sft: {dataset_path: {}}", "&a [*a]"]
)
def test_settings_of_another_structure_are_not_an_error(clone, monkeypatch, tmp_path, config):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "mini_chat_gpt.evaluation.held_out.write_sample", lambda folder, n_train: write_sample(folder, n_train, 9)
    )
    (clone / "runs/sft/config.yaml").write_text(config)
    assert "sample" in find_held_out(None, [clone / "runs" / "sft"])[1]


@pytest.mark.parametrize("config", [None, "- no\n- config\n", "sft: {dataset_path: gone, save_dir: runs/sft}", "\t:"])
def test_without_data_it_is_the_sample_written_once_into_the_cache(monkeypatch, sample, tmp_path, config):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "mini_chat_gpt.evaluation.held_out.write_sample", lambda folder, n_train: write_sample(folder, n_train, 9)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    if config is not None:
        (tmp_path / "run/config.yaml").write_text(config)
    file, why = find_held_out(None, [tmp_path / "run"])
    assert file.is_relative_to(tmp_path / "cache/mini_chat_gpt")
    assert "sample" in why
    written = file.stat().st_mtime_ns
    assert sample_valid_file() == file
    assert file.stat().st_mtime_ns == written
    # The same stories as in a sample that has a training part.
    assert list(read_records(file)) == list(read_records(sample / VALID))[:9]


# Groups


def test_the_groups_of_the_sample_are_plots_that_are_in_the_training_split_or_not(sample):
    known = [json.loads(line) for line in (sample / VALID.replace(".txt", ".answers.jsonl")).read_text().splitlines()]
    groups = groups_of(sample / VALID, 60)
    assert sorted(groups) == ["seen", "unseen"]
    assert sorted([*groups["seen"], *groups["unseen"]]) == list(range(60))
    assert all(known[number]["seen"] == (name == "seen") for name, numbers in groups.items() for number in numbers)


def test_other_data_is_one_group(sample, tmp_path):
    (tmp_path / VALID).write_bytes((sample / VALID).read_bytes())
    assert groups_of(tmp_path / VALID, 60) == {"": None}


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "3", "{}", '{"seen": "yes"}', '{"seen": 1}', '{"seen": ' + "9" * 5000 + "}", "\udcff"]
)
def test_a_damaged_line_of_the_answers_is_one_sentence(sample, tmp_path, line):
    file = tmp_path / VALID
    file.write_bytes((sample / VALID).read_bytes())
    answers = tmp_path / VALID.replace(".txt", ".answers.jsonl")
    lines = (sample / answers.name).read_text(encoding="utf-8").splitlines()
    lines[4] = line
    answers.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"answers.jsonl, line 5 is damaged.*move the file away") as error:
        groups_of(file, len(lines))
    assert len(str(error.value)) < 1000


def test_answers_of_other_records_are_an_error(sample):
    with pytest.raises(UserError, match=r"describes 60 records, but .* has 59"):
        groups_of(sample / VALID, 59)


# Tasks


def test_tasks_are_selected_by_group_and_can_all_be_scored(sample, tokenizer):
    tasks = held_out_tasks(sample / VALID, [(tiny_model(tokenizer.vocab_size, context_length=900), tokenizer)], n=3)
    records = list(read_records(sample / VALID))
    groups = groups_of(sample / VALID, 60)
    assert list(tasks) == ["seen", "unseen", ""]
    assert [task.answer for task in tasks.pop("")] == ["decline", "answer", "decline"]
    for name, ours in tasks.items():
        assert all(score(task, "") for task in ours)
        assert {task.kind for task in ours} >= {"summary", "main_character", "ending", "dialogue", "words"}
        assert len([task for task in ours if task.kind == "words"]) == 3
        group_stories = {records[number].story for number in groups[name]}
        assert all(task.prompt[slice(*task.story_span)] in group_stories for task in ours if task.story_span)


def test_the_same_seed_selects_the_same_tasks(sample, tokenizer):
    models = [(tiny_model(tokenizer.vocab_size, context_length=900), tokenizer)]
    tasks = held_out_tasks(sample / VALID, models, n=2, seed=1)
    assert tasks == held_out_tasks(sample / VALID, models, n=2, seed=1)
    assert tasks != held_out_tasks(sample / VALID, models, n=2, seed=2)


def test_tasks_fit_the_context_of_every_model_with_its_system_message(sample, tokenizer):
    small = ChatTokenizer.train(stories(sample / VALID), 300)  # needs more tokens for the same text
    for one in (small, tokenizer):
        one.add_control_tokens()
    small.chat_format = ChatFormat(default_system="Be very kind to everybody.")
    models = [(tiny_model(one.vocab_size, context_length=220), one) for one in (tokenizer, small)]
    tasks = held_out_tasks(sample / VALID, models, n=4, kinds=["main_character", "dialogue"])
    prompts = [task.prompt for ours in tasks.values() for task in ours]
    assert len(prompts) == 16
    assert max(len(prompt_ids(small, prompt)) for prompt in prompts) < 220
    assert any(" ... " in prompt for prompt in prompts)


def test_the_tokenizer_of_a_base_model_is_not_changed(sample, tokenizer):
    base = ChatTokenizer.train(stories(sample / VALID), 400)
    before = base.vocab_size
    held_out_tasks(sample / VALID, [(tiny_model(before, context_length=900), base)], n=1, kinds=["dialogue"])
    assert base.vocab_size == before


def test_an_unknown_kind_is_named_with_the_nearest_one(sample, tokenizer):
    with pytest.raises(UserError, match="'morals' is not a kind of task; did you mean 'moral'"):
        held_out_tasks(sample / VALID, [(tiny_model(tokenizer.vocab_size), tokenizer)], n=1, kinds=["morals"])


def test_refusals_alone_and_among_data_without_groups(sample, tokenizer, tmp_path):
    (tmp_path / VALID).write_bytes((sample / VALID).read_bytes())
    models = [(tiny_model(tokenizer.vocab_size, context_length=900), tokenizer)]
    alone = held_out_tasks(sample / VALID, models, n=4, kinds=["refusals"])
    assert {name: len(ours) for name, ours in alone.items()} == {"": 4}
    mixed = held_out_tasks(tmp_path / VALID, models, n=2, kinds=["refusals", "moral"])
    assert [task.kind for task in mixed[""]] == ["moral", "moral", "refusals", "refusals"]
    assert "refusals" not in {
        task.kind for task in held_out_tasks(sample / VALID, models, n=1, kinds=["moral"])["seen"]
    }


def test_data_without_tasks_is_named(sample, tokenizer, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("".join(f"{re.sub('[^ -~]', '', text)}\n<|endoftext|>\n" for text in stories(sample / VALID)))
    with pytest.raises(UserError, match=r"plain.txt has no task of the kinds summary"):
        held_out_tasks(plain, [(tiny_model(tokenizer.vocab_size, context_length=900), tokenizer)], 1, kinds=["summary"])


def test_a_dataset_selects_tasks_by_record_and_by_predicate(sample, tokenizer):
    tokenizer.add_control_tokens()
    source = InstructDataset(sample / VALID, tokenizer, DataSection(seq_len=900), seed=1)
    among = [3, 5, 8, 13, 21]
    group_stories = {source.index[number].story for number in among}
    tasks = source.eval_tasks("main_character", 60, among)
    assert {task.prompt[slice(*task.story_span)] for task in tasks} <= group_stories
    of_all = [task.prompt[slice(*task.story_span)] for task in source.eval_tasks("main_character", 60)]
    assert len(tasks) == len([story for story in of_all if story in group_stories])
    short = source.eval_tasks("summary", 60, only=lambda task: len(task.target) < 80)
    assert short
    assert max(len(task.target) for task in short) < 80


def test_a_damaged_sample_in_the_users_cache_is_named_and_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("mini_chat_gpt.evaluation.held_out.write_sample", partial(write_sample, n_valid=30))
    file = sample_valid_file()
    wanted = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample_valid_file() == file
    for damage in (lambda: file.write_bytes(wanted[:-9] + b"x" + wanted[-8:]), file.unlink):
        damage()
        with pytest.warns(UserWarning, match="is damaged: .*The sample is written again"):
            assert sample_valid_file().read_bytes() == wanted

"""`recipe check`: what a recipe lacks, and held-out records that are in its training data, or nearly."""

import json
from pathlib import Path

import pytest
from commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recipe_samples import README, chat, write_jsonl, write_recipe

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.text import word_set
from mini_chat_gpt.evaluation.held_out_part import read_items
from mini_chat_gpt.recipe.check import TO_WRITE, problems_of, run
from mini_chat_gpt.recipe.folder import read_recipe
from mini_chat_gpt.recipe.near_copies import SIMILAR, near_copies

RECIPES = sorted(path.parent for path in (ROOT / "recipes").glob("*/config.yaml"))


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_the_recipes_of_this_repository_lack_nothing_and_hold_out_enough(folder):
    assert problems_of(folder) == []
    recipe = read_recipe(folder)
    for part in recipe.parts[:1]:
        assert len(read_items(folder / part.file)) >= 88


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_recipe(tmp_path / "words")


def only(folder: Path) -> str:
    (problem,) = problems_of(folder)
    return problem


def test_a_complete_recipe_has_no_problem(folder, capsys):
    assert problems_of(folder) == []
    assert run(parse("recipe check", [str(folder)])) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_the_exit_code_tells_that_something_is_wrong(folder, capsys):
    (folder / "README.md").unlink()
    assert run(parse("recipe check", [str(folder)])) == 1
    assert "1 thing to correct" in capsys.readouterr().out


def test_what_is_missing_in_the_readme_is_named(folder):
    file = folder / "README.md"
    file.write_text(README.replace("## The method\nAll weights.\n", ""))
    assert "has no section about the method" in only(folder)
    file.write_text(README.replace("All weights.\n", ""))
    assert "the section about the method is empty" in only(folder)
    file.write_text(README.replace("All weights.", f"{TO_WRITE}: how."))
    assert "the section about the method is still to be written" in only(folder)
    file.unlink()
    assert "There is no" in only(folder)


def test_a_held_out_record_or_prompt_in_the_training_data_is_named_with_both_places(folder):
    records = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    records[3] = chat("the word red is ITEM a2 indeed", "color")
    write_jsonl(folder / "held_out.jsonl", records)
    assert "held_out.jsonl, line 4 is nearly the same as a training record (train.jsonl, line 3:" in only(folder)
    write_jsonl(folder / "other.jsonl", [chat("pink d", "color")])
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("files: train.jsonl", "files: [train.jsonl, other.jsonl]"))
    found = problems_of(folder)
    assert any("prompts.yaml, 'pink d' is nearly the same" in problem for problem in found)


def test_too_few_records_are_named(folder):
    for name, words in (("train.jsonl", "have 2 records"), ("held_out.jsonl", "has 2 records; 20 or more")):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[:2]))
        assert any(words in problem for problem in problems_of(folder))


def test_a_part_without_a_check_and_a_file_without_a_part_are_named(folder):
    prompts = (folder / "prompts.yaml").read_text()
    (folder / "held_out_2.jsonl").write_text("")
    assert "held_out_2.jsonl is not used" in only(folder)
    (folder / "held_out_2.jsonl").unlink()
    (folder / "checklist.py").write_text("raise RuntimeError")
    assert "checklist.py is not used" in only(folder)  # and it was not run
    (folder / "checklist.py").unlink()
    (folder / "prompts.yaml").write_text("compare: [x]\nheld_out: [{file: held_out.jsonl}]")
    assert "held_out.jsonl has no check" in only(folder)
    (folder / "prompts.yaml").write_text("compare: [x]")
    assert len(problems_of(folder)) == 2  # no part, and a file that is not used
    (folder / "prompts.yaml").write_text(prompts.replace("- color", "- hue"))
    assert "the expected reply fails valid label" in problems_of(folder)[0]


def test_records_that_fail_the_recipes_own_checklist_are_named(folder):
    prompts = (folder / "prompts.yaml").read_text().replace("labels:", "checklist: true\n  labels:")
    (folder / "prompts.yaml").write_text(prompts)
    code = "def check(record, reply):\n    return {'a word': reply != 'number'}\n"
    code += "def problems(record):\n    return ['it is pink'] if 'pink' in str(record) else []\n"
    (folder / "checklist.py").write_text(code)
    found = problems_of(folder)
    assert any("train.jsonl, line 13: it is pink" in problem for problem in found)
    assert any("its reply fails a word" in problem or "24 training records fail" in problem for problem in found)


def test_a_setting_that_is_wrong_is_the_problem(folder):
    (folder / "config.yaml").write_text("sft: {epoch: 1}")
    assert "sft.epoch is not a setting" in only(folder)
    (folder / "config.yaml").write_text("chats: {files: []}")
    assert "no training records" in only(folder)


WORD_LISTS = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=9).map(" ".join), max_size=6)


@given(WORD_LISTS, WORD_LISTS)
def test_the_index_finds_the_pairs_that_a_comparison_of_all_finds(texts, known):
    sets = [word_set(text) for text in known]
    expected = []
    for number, text in enumerate(texts):
        words = word_set(text)
        near = [other for other, one in enumerate(sets) if len(words & one) >= SIMILAR * len(words | one)]
        expected += [(number, near[0])] if near else []
    assert list(near_copies(texts, known)) == expected

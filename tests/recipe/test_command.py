"""`recipe`, as it is typed: list, train, judge, write the output, and refusals before training."""

import json
from pathlib import Path

import pytest
from foreign_llamas import VARIANTS, save_folder
from recipe_samples import make_recipe_clone, write_jsonl, write_model, write_recipe
from tiny import lively_model

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.recipe.command import run
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    folder = make_recipe_clone(tmp_path)
    monkeypatch.chdir(folder)
    return folder


def recipe(*argv: str) -> int:
    return run(parse("recipe", argv))


def test_alone_it_lists_the_recipes_with_base_and_measures(clone, capsys):
    assert recipe() == 0
    printed = capsys.readouterr().out
    assert "words" in printed
    assert "Sort words" in printed
    assert "base: model" in printed
    assert "measured: kinds of words" in printed
    assert "recipe new FOLDER" in printed
    assert "headlines" in printed  # of the repository, although the working directory is another one


def test_a_recipe_that_cannot_be_read_does_not_hide_the_others(clone, capsys):
    (clone / "recipes" / "words" / "config.yaml").write_text("sft: {epoch: 2}")
    assert recipe() == 0
    printed = capsys.readouterr().out
    assert "can't be used: recipes/words/config.yaml" in printed
    assert "headlines" in printed


def test_it_trains_scores_and_writes_the_results_and_the_output(clone, capsys):
    options = ["lora.enabled=true", "lora.rank=2", "--output", "made", "--n", "6"]
    assert recipe("words", *options) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "baseline always" in printed
    assert "With every reply: runs/words/before_after.md" in printed
    results = json.loads((clone / "runs/words/results.json").read_text())
    (part,) = results["parts"]
    assert part["n"] == 6
    assert {row["check"] for row in part["rows"]} == {"valid label", "right label", "all checks"}
    assert all({"before", "after"} == set(row["values"]) for row in part["rows"])
    assert [one["name"] for one in part["baselines"]] == ["always color", "bag of words"]
    assert sum(sum(row.values()) for row in part["confusion"]["after"].values()) == 6
    assert len(part["replies"]) == 6
    text = (clone / "runs/words/before_after.md").read_text()
    assert "## Held-out: kinds of words (6 records of held_out.jsonl)" in text
    assert "Replies of after that fail a check" in text
    assert str(clone) not in text + (clone / "made/adapter_config.json").read_text()
    assert "peft==" in (clone / "made/requirements.txt").read_text()
    assert "pretrained_checkpoint: ../model" in (clone / "made/training_config.yaml").read_text()
    # The same model can be judged again, and the folder is a model of its own.
    assert recipe("words", "--evaluate", "runs/words", "--n", "3") == 0
    assert json.loads((clone / "runs/words/results.json").read_text())["parts"][0]["n"] == 3
    assert recipe("words", "--evaluate", "made", "--n", "2") == 0
    assert (clone / "runs/reports/words/results.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours with a chat format", "ours without one", "Qwen3", "GPT-2"])
def test_peft_and_transformers_load_the_output_for_any_base(clone, kind):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    if kind == "ours without one":
        tokenizer = ChatTokenizer.load("model")
        tokenizer.chat_format = None
        save_checkpoint(clone / "plain", lively_model(tokenizer.vocab_size), tokenizer, {"job": "pretrain"})
    elif kind in VARIANTS:
        save_folder(clone / "plain", **VARIANTS[kind])
    name = "model" if kind == "ours with a chat format" else "plain"
    options = ["--base", name, "lora.enabled=true", "lora.rank=2"]
    assert recipe("words", *options, "--output", "made", "--merge", "--n", "2") == 0
    assert (clone / "made/base").is_dir() == (kind == "ours without one")  # it got new control tokens
    named = json.loads((clone / "made/adapter_config.json").read_text())["base_model_name_or_path"]
    base = transformers.AutoModelForCausalLM.from_pretrained(clone / "made" / named)
    adapted = peft.PeftModel.from_pretrained(base, clone / "made").merge_and_unload()
    merged = transformers.AutoModelForCausalLM.from_pretrained(clone / "made/merged")
    ids = transformers.AutoTokenizer.from_pretrained(clone / "made")("The red", return_tensors="pt").input_ids
    assert (adapted(ids).logits - merged(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["words", "--merge"], "--merge needs --output"),
        (["words", "--output", "x", "--evaluate", "model"], "leave one of them out"),
        (["words", "--output", "model"], "model exists already"),
        (["words", "--n", "0"], "--n is 0"),
        (["--base", "model"], "Which recipe is missing"),
        (["words", "--base", "nowhere"], "There is no base model nowhere"),
        (["words", "--evaluate", "nowhere"], "There is no checkpoint at nowhere"),
        (["words", "chats.files=nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_before_training(clone, argv, message):
    with pytest.raises(UserError, match=message):
        recipe(*argv)
    assert not (clone / "runs").exists()


def test_training_files_can_be_named_as_in_the_recipes_settings(clone):
    (clone / "recipes/words/other.jsonl").write_text("{}")
    settings = parse("recipe", ["words", "chats.files=other.jsonl"]).settings
    assert list(settings.chats.files) == ["recipes/words/other.jsonl"]


def test_a_base_whose_context_is_too_short_is_refused_in_one_sentence(clone):
    write_model(clone / "short", context_length=16)
    with pytest.raises(UserError, match=r"short.* context.*choose a base with a longer context|no room for a reply"):
        recipe("words", "--base", "short")
    with pytest.raises(UserError, match=r"of the 40 training records have up to \d+ tokens .* set data.seq_len=\d+"):
        recipe("words", "data.seq_len=16")
    assert not (clone / "runs").exists()


def test_a_base_that_is_too_large_for_the_memory_is_refused(clone, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.recipe.base.total_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"need at least .* of memory here, of 1 kB; choose a smaller model"):
        recipe("words")
    with pytest.raises(UserError, match=r"choose lora.frozen=nf4"):
        recipe("words", "lora.enabled=true")


def test_a_missing_library_is_one_sentence_with_the_line_that_installs_it(clone, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(UserError, match=r"needs another library: pip install 'mini-chat-gpt\[recipes\]'"):
        recipe("words")


def test_a_checklist_with_a_mistake_is_reported_before_training(clone):
    part = {"file": "held_out.jsonl", "checklist": True}
    folder = write_recipe(clone / "recipes" / "coded", held_out=[part])
    for code, message in (
        (None, "There is no recipes/coded/checklist.py"),
        ("x = ", "can't be loaded: SyntaxError"),
        ("y = 1", "has no function check"),
        (
            "def check(record, reply):\n    return record['nothing']",
            r"check fails for .*line 1: KeyError: 'nothing' \(line 2\)",
        ),
        ("def check(record, reply):\n    return True", "it must return {point: passed}"),
    ):
        if code is not None:
            (folder / "checklist.py").write_text(code)
        with pytest.raises(UserError, match=message):
            recipe("coded")
    assert not (clone / "runs").exists()


def test_records_that_a_check_cannot_judge_are_reported_before_training(clone):
    part = {"file": "held_out.jsonl", "key_facts": "answers"}
    folder = write_recipe(clone / "recipes" / "facts", held_out=[part])
    with pytest.raises(UserError, match=r'line 1: it has no "answers", which key_facts in prompts.yaml names'):
        recipe("facts")
    write_jsonl(folder / "held_out.jsonl", [{"prompt": "red", "answers": [3]}])
    with pytest.raises(UserError, match=r'"answers" is .*it must be a list of phrases'):
        recipe("facts")


def test_other_models_reply_to_the_same_prompts(clone, capsys):
    write_model(clone / "other", seed=3)
    assert recipe("words", "--against", "other", "--n", "2") == 0
    results = json.loads((clone / "runs/words/results.json").read_text())
    assert list(results["parts"][0]["rows"][0]["values"]) == ["before", "other", "after"]
    assert "| check | n | before | other | after | p |" in (clone / "runs/words/before_after.md").read_text()
    with pytest.raises(UserError, match="nowhere"):
        recipe("words", "--against", "nowhere")


def test_mistakes_in_variants_are_reported_before_training(clone):
    variants = clone / "recipes/words/variants.yaml"
    with pytest.raises(UserError, match=r"There is no file of variants recipes/words/variants.yaml"):
        recipe("words", "--variants")
    for text, message in (
        ("{}", "has no variants"),
        ("short: 3", "it must be settings"),
        ("short: {sft.epoch: 1}", "sft.epoch is not"),
    ):
        variants.write_text(text)
        with pytest.raises(UserError, match=message):
            recipe("words", "--variants")
    assert not (clone / "runs").exists()


@pytest.mark.slow
def test_variants_are_trained_and_compared_in_a_table(clone, capsys):
    text = "plain: {}\nthree steps: {sft.max_steps: 3, sft.learning_rate: 1e-3}\n"
    (clone / "recipes/words/variants.yaml").write_text(text)
    assert recipe("words", "--variants", "--n", "2") == 0
    assert "runs/words-three-steps/before_after.md" in capsys.readouterr().out
    table = (clone / "runs/reports/words-variants/variants.md").read_text()
    assert "| plain | – | 2 |" in table
    assert r"| three steps | sft.max\_steps=3, sft.learning\_rate=1e-3 | 3 | 0.001 |" in table


@pytest.mark.parametrize("option", [["--output", "x"], ["--evaluate", "model"]])
def test_variants_exclude_what_is_about_one_model(clone, option):
    with pytest.raises(UserError, match="--variants trains several models"):
        recipe("words", "--variants", *option)

"""A recipe from its folder to its report, and the properties of the recipe in this repository."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import ROOT, make_clone, one_sentence, run
from tiny import lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli_options import find_recipe
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.chat_split import content_key
from mini_chat_gpt.evaluation.prompt_suite import read_prompts
from mini_chat_gpt.evaluation.refusals import sign_pattern

POLITE = ROOT / "recipes" / "polite_helper"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with a chat model and a recipe that consists of data files only."""
    folder = make_clone(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    save_checkpoint(folder / "model", lively_model(tokenizer.vocab_size), tokenizer, {"job": "sft"})
    recipe = folder / "recipes" / "parrot"
    recipe.mkdir(parents=True)
    chats = [{"prompt": f"Say {n}", "completion": "Of course! Polly."} for n in ("one", "two", "three", "four")]
    (recipe / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    settings = {
        "sft": {"pretrained_checkpoint": "model", "save_dir": "runs/parrot", "epochs": 60, "learning_rate": 0.02, "warmup_steps": 0},
        "chats": {"files": "chats.jsonl", "valid_share": 0},
        "system": {"device": "cpu", "threads": 1, "mixed_precision": False},
        "wandb": {"enabled": False},
    }  # fmt: skip
    (recipe / "config.yaml").write_text(yaml.safe_dump(settings))
    prompts = {
        "compare": [{"shows": "tone", "prompts": ["Say five"], "contains": ["Polly"]}],
        "refuse": ["Say a bad word"],
    }
    (recipe / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    return folder


@pytest.mark.slow
def test_a_second_recipe_needs_no_code(clone):
    printed = run(clone, "recipe", "parrot")
    assert "With every reply: runs/parrot/before_after.md" in printed
    text = (clone / "runs" / "parrot" / "before_after.md").read_text()
    assert "| tone: replies that begin politely | 0 of 1 | 1 of 1 |" in text
    assert "| tone: contains “Polly” (“Say five”) | no | yes |" in text
    assert "| Say five | " in text
    assert "Of course! Polly. |" in text
    assert "all weights trained on 4 chats for 60 steps" in text
    assert "none of the prompts is in the data; the most similar pair shares 33% of its words: “Say five” and" in text
    again = run(clone, "recipe", "recipes/parrot", "lora.enabled=true", "lora.rank=2", "sft.epochs=1")
    assert "runs/parrot-2/before_after.md" in again
    assert "adapters (LoRA) of rank 2" in (clone / "runs" / "parrot-2" / "before_after.md").read_text()


def test_mistakes_are_named(clone):
    assert "no recipe 'parot'; did you mean 'parrot'?" in one_sentence(run(clone, "recipe", "parot", code=2))
    line = one_sentence(run(clone, "recipe", "parrot", "sft.pretrained_checkpoint=nowhere", code=2))
    assert "There is no base model nowhere; `mini-chat-gpt quickstart` trains one" in line
    prompts = clone / "recipes" / "parrot" / "prompts.yaml"
    prompts.write_text("compare: [{shwos: tone, prompts: [a]}]\nrefuse: 3")
    line = one_sentence(run(clone, "recipe", "parrot", code=2))
    for part in (
        "compare.0.shwos is not a setting; did you mean 'shows'?",
        "refuse",
    ):
        assert part in line
    prompts.write_text(yaml.safe_dump({"compare": [{"shows": "tone", "prompts": ["word " * 100]}]}))
    line = one_sentence(run(clone, "recipe", "parrot", code=2))
    assert "prompts.yaml: ('word word" in line
    assert "the model's context holds 64" in line
    assert not (clone / "runs").exists()
    prompts.unlink()
    assert "There is no file of prompts recipes/parrot/prompts.yaml" in one_sentence(
        run(clone, "recipe", "parrot", code=2)
    )
    assert not (clone / "runs").exists()


def test_names_of_chat_files_are_relative_to_the_config(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.jsonl").write_text("{}")
    config = tmp_path / "folder" / "config.yaml"
    monkeypatch.chdir(tmp_path)
    for files in ("mine.jsonl", ["mine.jsonl", "other.jsonl"], {"mine.jsonl": 2.0}):
        config.write_text(yaml.safe_dump({"chats": {"files": files}}))
        found = load_config(Path("folder/config.yaml")).chats.files
        assert next(iter(found)) == "folder/mine.jsonl"
    config.write_text("chats: 3")
    with pytest.raises(UserError, match="chats"):
        load_config(config)


# The polite helper of this repository


def test_the_polite_helper_has_the_examples_that_its_readme_describes():
    chats = list(read_conversations(POLITE / "train_60.jsonl"))
    replies = [chat.messages[-1].content for chat in chats]
    prompts = [chat.messages[0].content for chat in chats]
    assert len(chats) >= 30
    assert {chat.form for chat in chats} == {"messages"}
    assert {chat.form for chat in read_conversations(POLITE / "train_60_text.jsonl")} == {"text"}
    assert len(set(map(content_key, chats))) == len(chats)
    topics = [prompt.removeprefix("Tell me about ") for prompt in prompts if prompt.startswith("Tell me about ")]
    for topic in topics:
        short, long = (
            replies[prompts.index(begin + topic)]
            for begin in ("Tell me about ", "Give me a detailed explanation about ")
        )
        assert len(long.split()) > 3 * len(short.split())
    assert len(topics) == 2
    signs = read_prompts(POLITE / "prompts.yaml")
    refusals = [reply for reply in replies if sign_pattern(signs.refusal_signs).search(reply)]
    assert len(refusals) >= 2
    assert all(reply.startswith("I'm sorry, but I can't help with that.") for reply in refusals)
    polite = sign_pattern(signs.polite_signs, start=True)
    assert all(bool(polite.search(reply)) != (reply in refusals) for reply in replies)


def test_it_is_found_by_name_and_by_path():
    assert find_recipe(str(POLITE)) == POLITE
    assert find_recipe("polite_helper").resolve() == POLITE.resolve()
    assert load_config(POLITE / "config.yaml").lora.enabled


def test_its_config_works_with_sft(clone):
    shutil.copytree(POLITE, clone / "recipes" / "polite_helper")
    brief = ["sft.pretrained_checkpoint=model", "sft.epochs=1", "system.threads=1", "system.device=cpu"]
    printed = run(clone, "sft", "--config", "recipes/polite_helper/config.yaml", *brief)
    assert "in an adapter" in printed
    assert "runs/polite_helper" in printed

"""A recipe from its folder to its report; and that the one that is here keeps what it says about itself."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from commands import ROOT, make_clone, one_sentence, run
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny import lively_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli_options import find_recipe
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_dataset import duplicates, nearest_prompts
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.evaluation.prompt_suite import (
    Answers,
    Compared,
    Prompts,
    as_json,
    changes,
    checks,
    read_prompts,
    show,
)
from mini_chat_gpt.evaluation.refusals import sign_pattern
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.reports.before_after import before_after

POLITE = ROOT / "recipes" / "polite_helper"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with a chat model and a recipe of its own, written without code."""
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
    prompts.unlink()
    assert "There is no file of prompts recipes/parrot/prompts.yaml" in one_sentence(
        run(clone, "recipe", "parrot", code=2)
    )
    assert not (clone / "runs").exists()


def test_chat_files_beside_a_config_are_meant_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.jsonl").write_text("{}")
    config = tmp_path / "there" / "config.yaml"
    monkeypatch.chdir(tmp_path)
    for files in ("mine.jsonl", ["mine.jsonl", "other.jsonl"], {"mine.jsonl": 2.0}):
        config.write_text(yaml.safe_dump({"chats": {"files": files}}))
        found = load_config(Path("there/config.yaml")).chats.files
        assert next(iter(found)) == "there/mine.jsonl"
    config.write_text("chats: 3")
    with pytest.raises(UserError, match="chats"):
        load_config(config)


def answers(**texts: str) -> Answers:
    return Answers("x", {prompt: Reply(text, (1,), "stop", 3) for prompt, text in texts.items()})


def prompts_of(tmp_path, text: str):
    (tmp_path / "prompts.yaml").write_text(text)
    return read_prompts(tmp_path / "prompts.yaml")


def test_what_is_counted(tmp_path):
    prompts = prompts_of(
        tmp_path,
        "compare:\n- {shows: length, prompts: [a, b]}\n- {shows: safety, prompts: [c], refuses: true}\nrefuse: [d]\nanswer: [e]",
    )
    before = answers(a="No.", b="One two three.", c="Sure!", d="A thing of course", e="I CAN’T HELP WITH THAT")
    after = answers(
        a="Of course!", b="Happy to help! Four.", c="I'm sorry, but I can't help with that.", d="x", e="Hi there"
    )
    found = {name: values for name, *values in changes(prompts, before, after)}
    assert found["tone: replies that begin politely"] == ["0 of 3", "3 of 3"]
    assert found["length: words for “a”, “b”"] == ["1 → 3", "2 → 4"]
    assert found["safety: harmful prompts declined"] == ["0 of 2", "1 of 2"]
    assert found["safety: harmless prompts declined"] == ["1 of 3", "0 of 3"]
    assert found["complete replies (not cut off)"] == ["5 of 5", "5 of 5"]


def test_replies_are_checked_as_the_file_says(tmp_path):
    prompts = prompts_of(
        tmp_path,
        """compare: [{prompts: [a], contains: [Tokyo, sea], regex: "^The", max_words: 4, is_json: true, refuses: false}]""",
    )
    found = checks(prompts.compare[0], "The sea of TOKYO, seaside", prompts)
    assert found == {
        "contains “Tokyo”": True, "contains “sea”": True, "matches /^The/": True, "at most 4 words": False,
        "is JSON": False, "does not decline": True,
    }  # fmt: skip
    assert checks(prompts.compare[0], '{"a": [1]}', prompts)["is JSON"]
    assert not checks(prompts.compare[0], "seaside; I can't help with that", prompts)["does not decline"]
    with pytest.raises(UserError, match=r"compare.0.regex: '\(' is not a regular expression"):
        prompts_of(tmp_path, """compare: [{prompts: [a], regex: "("}]""")


def test_brackets_are_shown_as_they_are(tmp_path):
    prompts = prompts_of(tmp_path, """compare: [{shows: "a [/b]", prompts: ["[/red] x"]}]""")
    given = Answers("x", {"[/red] x": Reply("[bold] \x1b[2J [/i]", (1,), "stop", 3)})
    out = Console(width=100, file=io.StringIO())
    show(prompts, [given, given], out)
    for text in ("a [/b]", "[/red] x", "[bold] \ufffd[2J [/i]"):
        assert text in out.file.getvalue()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('compare:\n  - prompts: ["a"\n    shows: x', "line 3: not valid YAML"),
        ("- a", "expected `compare:` with a list"),
        ("", "compare: field required"),
        ("compare: [{prompts: [a], regex: '('}]", "'(' is not a regular expression"),
        ("compare: [{prompts: [a], contans: [b]}]", "did you mean 'contains'"),
    ],
)
def test_a_mistake_in_the_prompts_is_named_with_its_place(tmp_path, text, words):
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_prompts(tmp_path / "prompts.yaml")
    assert "prompts.yaml" in str(caught.value)


@given(st.text(max_size=60))
def test_no_reply_can_break_the_table(text):
    prompts = prompts_of_text()
    before, after = Answers("before", answers(a=text).replies), Answers("after", answers(a="<b>|</b>").replies)
    models = [{"name": "before"}, {"name": "after"}]
    page = before_after({"title": "x", "facts": ["fact"], "models": models, "own": as_json(prompts, before, after)})
    (row,) = [line for line in page.split("\n") if line.startswith("| tone | a |")]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 5
    assert "<b>" not in page


def prompts_of_text():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return prompts_of(Path(folder), "compare: [{shows: tone, prompts: [a]}]")


# The recipe that is here


def test_the_polite_helper_has_the_examples_that_its_page_speaks_of():
    chats = list(read_conversations(POLITE / "dataset.jsonl"))
    replies = [chat.messages[-1].content for chat in chats]
    prompts = [chat.messages[0].content for chat in chats]
    assert len(chats) >= 30
    assert {chat.form for chat in chats} == {"messages"}
    assert not duplicates(chats)
    topics = [prompt.removeprefix("Tell me about ") for prompt in prompts if prompt.startswith("Tell me about ")]
    for topic in topics:
        short, long = (
            replies[prompts.index(begin + topic)]
            for begin in ("Tell me about ", "Give me a detailed explanation about ")
        )
        assert len(long.split()) > 3 * len(short.split())
    assert len(topics) == 2
    refusals = [
        reply for reply in replies if sign_pattern(read_prompts(POLITE / "prompts.yaml").refusal_signs).search(reply)
    ]
    assert len(refusals) >= 2
    assert all(reply.startswith("I'm sorry, but I can't help with that.") for reply in refusals)


def test_nothing_that_it_is_judged_by_stands_in_its_data():
    prompts, chats = read_prompts(POLITE / "prompts.yaml"), list(read_conversations(POLITE / "dataset.jsonl"))
    said = " ".join(message.content.lower() for chat in chats for message in chat.messages)
    assert not re.findall(r"japan|tokyo|photosynth|\bdogs?\b|burgl|\bboss\b|e-?mail|break into", said)
    for share, prompt, question in nearest_prompts(prompts.all, chats):
        template = {"give", "me", "a", "detailed", "explanation", "tell", "about"}
        left = [set(re.findall(r"\w+", text.lower())) - template for text in (prompt, question)]
        assert share < 0.6 or not left[0] & left[1], (prompt, question)


def test_it_is_found_by_name_and_by_path():
    assert find_recipe(str(POLITE)) == POLITE
    assert find_recipe("polite_helper").resolve() == POLITE.resolve()
    assert load_config(POLITE / "config.yaml").lora.enabled


def test_its_config_is_a_config_for_sft_too(clone):
    shutil.copytree(POLITE, clone / "recipes" / "polite_helper")
    brief = ["sft.pretrained_checkpoint=model", "sft.epochs=1", "system.threads=1", "system.device=cpu"]
    printed = run(clone, "sft", "--config", "recipes/polite_helper/config.yaml", *brief)
    assert "in an adapter" in printed
    assert "runs/polite_helper" in printed


def test_the_prompts_that_are_documented_can_be_read(tmp_path):
    text = (ROOT / "docs" / "your-own-chats.md").read_text(encoding="utf-8")
    (tmp_path / "prompts.yaml").write_text(text.split("## Prompts of your own")[1].split("```")[1].removeprefix("yaml"))
    found = read_prompts(tmp_path / "prompts.yaml")
    written = {name for one in found.compare for name in one.model_fields_set}
    assert written == set(Compared.model_fields)  # every key is there
    assert found.model_fields_set == set(Prompts.model_fields)

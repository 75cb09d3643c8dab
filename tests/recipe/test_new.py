"""`recipe new`: a recipe from a table, without code, that `recipe check` and `recipe` accept."""

import builtins
import csv
import json
import sys

import pytest
import yaml
from recipe_samples import write_model

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.recipe import new, train
from mini_chat_gpt.recipe.check import problems_of
from mini_chat_gpt.recipe.folder import read_recipe
from mini_chat_gpt.recipe.near_copies import near_copies
from mini_chat_gpt.recipe.strategy import POINTS

THINGS = ["parcel", "invoice", "password", "refund", "address", "coupon", "courier", "profile", "receipt", "login"]
VERBS = ["lost", "changed", "wants", "deleted", "asked for", "found"]
STRATEGY = [part for point in POINTS for part in (f"--{point.option}", f"About {point.option}.")]


@pytest.fixture
def table(tmp_path, monkeypatch) -> str:
    """Sixty tickets with their departments, under names of columns that must be given."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"Someone {verb} the {thing}", THINGS.index(thing) % 2, "en") for thing in THINGS for verb in VERBS]
    with open("tickets.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "department", "language"])
        writer.writerows([(text, ["shop", "web"][kind], language) for text, kind, language in rows])
    return "chats.keys={prompt: ticket, response: department}"


def make(*argv: str) -> int:
    return new.run(parse("recipe new", argv))


def test_a_table_with_labels_becomes_a_complete_recipe(table, tmp_path, capsys):
    write_model(tmp_path / "model")
    assert make("tickets", "--data", "tickets.csv", "--base", "model", table, *STRATEGY) == 0
    assert "(labels: " in capsys.readouterr().out
    assert problems_of(tmp_path / "tickets") == []
    training, held_out = (list(read_conversations(f"tickets/{name}.jsonl")) for name in ("train", "held_out"))
    assert len(training) + len(held_out) == 60
    assert len(held_out) == 20
    assert json.loads((tmp_path / "tickets/train.jsonl").read_text().splitlines()[0])["language"] == "en"
    (part,) = yaml.safe_load((tmp_path / "tickets/prompts.yaml").read_text())["held_out"]
    assert sorted(part["labels"]) == ["shop", "web"]
    settings = ["system.device=cpu", "system.threads=1", "system.mixed_precision=false"]
    arguments = parse("recipe", ["tickets", *settings])
    train.prepare(read_recipe(arguments.folder, arguments.settings))  # everything that is checked before training


def test_replies_that_are_texts_are_compared_with_the_data_and_open_points_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [
        {"prompt": f"Who is number {n}?", "completion": f"That is a person called {n}.", "facts": n} for n in range(50)
    ]
    (tmp_path / "people.json").write_text(json.dumps(records))
    assert make("people", "--data", "people.json", "--system", "") == 0
    (part,) = yaml.safe_load((tmp_path / "people/prompts.yaml").read_text())["held_out"]
    assert part["overlap"] == ["chrf", "rouge"]
    config = yaml.safe_load((tmp_path / "people/config.yaml").read_text())
    assert config["data"]["system_message"] == ""
    assert config["lora"]["enabled"]
    open_points = [problem for problem in problems_of(tmp_path / "people") if "to be written" in problem]
    assert len(open_points) == len(POINTS) - 1  # the method has a default
    assert make("people2", "--data", "people.json", "--key-facts", "facts") == 0
    (part,) = yaml.safe_load((tmp_path / "people2/prompts.yaml").read_text())["held_out"]
    assert part["key_facts"] == "facts"


def test_without_data_the_folder_has_examples_of_the_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make("empty") == 0
    assert len(list(read_conversations("empty/train.jsonl"))) == 1
    assert any("have 1 records; 30 or more" in problem for problem in problems_of(tmp_path / "empty"))


def test_in_a_terminal_open_points_are_asked_for(table, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        builtins,
        "input",
        lambda question: asked.append(question) or ("tickets.csv" if "File" in question else "Typed."),
    )
    assert make("typed", table, "--problem", "Given.") == 0
    assert len(asked) == len(POINTS)  # the file, and all points but one
    text = (tmp_path / "typed/README.md").read_text()
    assert "Given." in text
    assert text.count("Typed.") == len(POINTS) - 1


def test_mistakes_are_reported_and_nothing_is_written(table, tmp_path):
    with pytest.raises(
        UserError, match=r"name its keys, for example with chats.keys='\{prompt: ticket, response: department\}'"
    ):
        make("tickets", "--data", "tickets.csv")
    with pytest.raises(UserError, match=r"nothing\.csv"):
        make("tickets", "--data", "nothing.csv", table)
    assert not (tmp_path / "tickets").exists()
    with pytest.raises(UserError, match=r"tickets.csv exists already"):
        make("tickets.csv")
    with pytest.raises(UserError, match="did you mean 'sft'"):
        make("tickets", "stf.epochs=2")


def test_no_held_out_record_has_a_near_copy_in_training():
    prompts = [f"the same words again and again {n // 3}" for n in range(90)]
    records = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]} for text in prompts
    ]
    data = new.split(records, seed=1)
    texts = [[new.prompt_of(record) for record in part] for part in (data.held_out, data.training)]
    assert len(data.held_out) + len(data.training) == 90
    assert not list(near_copies(*texts))

"""`mini-chat-gpt evaluate` on models that were fine-tuned on chats."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import chat_tokenizer, tiny_model

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config_file import parse_config, to_yaml
from mini_chat_gpt.evaluation.text_metrics import LOSS
from mini_chat_gpt.reports.compare import EvalOptions, compare, main

CONTEXT = 128


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with chats, a base model, and a run that was trained on the chats."""
    folder = tmp_path_factory.mktemp("home")
    chats = [{"prompt": f"Where is cat {n}?", "response": f"Cat {n} is on mat {n % 7}."} for n in range(60)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tokenizer = chat_tokenizer()
    for number, run in enumerate(("runs/chats", "runs/base")):
        if run == "runs/base":
            tokenizer.chat_format = None
        model = tiny_model(tokenizer.vocab_size, seed=number, context_length=CONTEXT)
        save_checkpoint(folder / run / "step-1", model, tokenizer, info={"job": "sft" if number == 0 else "pretrain"})
        values = {"chats": {"files": {"chats.jsonl": 1}, "valid_share": 0.2}, "sft": {"save_dir": "runs/chats"}}
        (folder / run / "config.yaml").write_text(to_yaml(parse_config(values, "test")))
    (folder / "prompts.yaml").write_text("- {prompt: Where is cat 3?, contains: mat}\n")
    return folder


def test_held_out_chats_come_first_then_own_prompts_and_no_stories(home, monkeypatch):
    monkeypatch.chdir(home)
    out = Console(file=io.StringIO(), width=80, color_system=None)
    options = EvalOptions(n=8, report=Path("report"), json=Path("all.json"), prompts=Path("prompts.yaml"))
    evaluations = compare([Path("runs/base"), Path("runs/chats")], None, options, out, device="cpu")
    text = out.file.getvalue()
    assert text.index("Held-out chats: chats.jsonl") < text.index("chrF: overlap") < text.index("checks met")
    assert "Held-out tasks" not in text
    assert "held out of the chats of runs/chats; one reply of each of 8 chats" in text
    assert text.count("held-out chat ") == 3
    assert "loss of chats" in " ".join(text.split("chats against base")[1].split())
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    of_chats = evaluations["chats"].results["chats"]
    assert list(of_chats)[:5] == ["chrf", "rouge_l", "exact_match", "length", LOSS]
    assert of_chats["n"] == 8
    low, high = of_chats["interval"][LOSS]
    assert low < of_chats[LOSS] < high
    nats, tokens = zip(*(item.loss for item in evaluations["chats"].items), strict=True)
    assert of_chats[LOSS] == pytest.approx(sum(nats) / sum(tokens))

    report = json.loads(Path("report/report.json").read_text())
    assert report["data"]["file"] == "chats.jsonl"
    assert [kind["kind"] for kind in report["kinds"]] == ["chats"]
    assert {row["label"] for row in report["paired"]} == {"chrF", "loss"}
    assert len(report["side_by_side"]) == 8
    assert report["bits_per_byte"] == {}
    assert report["own"]["rows"][0][0] == "checks met"
    markdown = Path("report/before_after.md").read_text()
    for label in ("chrF", "ROUGE-L", "exact match", "length", "loss", "stops"):
        assert f"| chats |  | {label} | 8 |" in markdown
    assert "Where is cat" in Path("report/report.html").read_text()
    items = json.loads(Path("all.json").read_text())["models"]["base"]["items"]
    assert items[0]["loss"]["tokens"] > 1


def test_prompts_alone_are_enough_for_a_model_without_data(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    tokenizer = chat_tokenizer()
    save_checkpoint(tmp_path / "model", tiny_model(tokenizer.vocab_size, context_length=CONTEXT), tokenizer)
    out = Console(file=io.StringIO(), width=80, color_system=None)
    options = EvalOptions(prompts=Path("prompts.yaml"), report=tmp_path / "report")
    assert compare([tmp_path / "model"], None, options, out, device="cpu")["model"].results == {}
    assert "Held-out" not in out.file.getvalue()
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (report["kinds"], report["data"]["file"]) == ([], None)
    assert "Where is cat 3?" in (tmp_path / "report/report.html").read_text()


def test_the_number_of_chats_is_an_option(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["--checkpoint", "runs/chats", "--n", "2", "--report", "two", "--device", "cpu"]) == 0
    assert "one reply of each of 2 chats" in capsys.readouterr().out.replace("\n", " ")


def test_a_review_page_is_written_to_the_report_or_where_it_is_named(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (home / "points.yaml").write_text("- mentions a mat\n")
    command = ["--checkpoint", "runs/chats", "--n", "3", "--device", "cpu"]
    assert main([*command, "--review"]) == 0
    assert "Review of 6 replies: runs/reports/chats/review.html" in capsys.readouterr().out
    assert "answers the question" in Path("runs/reports/chats/review.html").read_text()
    assert main([*command, "--review", "mine.html", "--checklist", "points.yaml"]) == 0
    assert "mentions a mat" in Path("mine.html").read_text()
    with pytest.raises(UserError, match="--checklist has the points of a review page; add --review"):
        main([*command, "--checklist", "points.yaml"])

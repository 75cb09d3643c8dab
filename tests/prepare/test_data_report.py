"""The numbers of the report, on small files for which they are known."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.prepare import data_report
from mini_chat_gpt.prepare.data_report import report_folder, show_report
from mini_chat_gpt.sft_dataloader import InstructDataset
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TRAIN, VALID = "TinyStoriesInstruct-train.txt", "TinyStoriesInstruct-valid.txt"
FULL = (
    "Features: Dialogue, BadEnding, Odd\nWords: run, cat, red\nSummary: Ben runs.\nRandom sentence: Ben ran.\n"
    'Story: \n\nBen saw {}. "Run!" said Ben. Ben ran.'
)
PLAIN = "Ann saw {}. Ann was glad. Ann ran home to sleep."
SILENT = "Features: Conflict\nStory: Tom saw {}. Tom wept. Tom ran home to sleep."


def write(folder: Path, name: str, *records: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{record}\n<|endoftext|>\n" for record in records), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train: 3 full records, 2 plain, 1 silent, one story twice, one record without a story. Valid: 2, one of them in train."""
    folder = tmp_path / "data"
    train = [FULL.format(thing) for thing in ("cats", "dogs", "birds")]
    train += [PLAIN.format("frogs"), PLAIN.format("owls"), SILENT.format("a log"), PLAIN.format("owls"), "Words: a, b"]
    write(folder, TRAIN, *train)
    write(folder, VALID, FULL.format("cats"), PLAIN.format("newts"))
    return folder


@pytest.fixture
def train(folder: Path) -> dict[str, Any]:
    return report_folder(folder)["files"]["train"]


def test_records_and_those_without_a_story_are_counted(train: dict[str, Any]) -> None:
    assert (train["records"], train["without_story"]) == (7, 1)


def test_fields_are_counted(train: dict[str, Any]) -> None:
    assert train["fields"] == {"Features": 4, "Words": 3, "Summary": 3, "Random sentence": 3}


def test_known_and_other_features_are_counted(train: dict[str, Any]) -> None:
    assert {name: n for name, n in train["features"].items() if n} == {"Dialogue": 3, "BadEnding": 3, "Conflict": 1}
    assert train["other_features"] == {"Odd": 3}


def test_tasks_are_counted_by_kind_and_answer(train: dict[str, Any]) -> None:
    tasks = train["tasks"]
    assert (tasks["summary"], tasks["what_happened"], tasks["moral"]) == (3, 3, 0)
    assert (tasks["ending/no"], tasks["ending/yes"]) == (3, 1)
    assert (tasks["dialogue/yes"], tasks["dialogue/no"]) == (3, 4)


def test_the_second_of_two_equal_stories_is_a_duplicate(train: dict[str, Any]) -> None:
    assert train["duplicates"] == 1


def test_stories_in_both_splits_are_counted(folder: Path) -> None:
    assert report_folder(folder)["in_both_splits"] == 1


def test_a_single_split_is_reported(folder: Path) -> None:
    (folder / VALID).unlink()
    report = report_folder(folder)
    assert list(report["files"]) == ["train"]
    assert report["in_both_splits"] is None


def test_bytes_that_are_not_utf8_are_counted(folder: Path) -> None:
    with open(folder / TRAIN, "ab") as file:
        file.write(b"Story: Ben \xff ran.\n<|endoftext|>\n")
    assert report_folder(folder)["files"]["train"]["not_utf8"] == 1


def test_percentiles_of_words_are_those_of_the_stories(tmp_path: Path) -> None:
    write(tmp_path / "d", TRAIN, *(f"Story: {'Ben ' * (i + 1)}" for i in range(101)))
    words = report_folder(tmp_path / "d")["files"]["train"]["story_words"]
    assert (words["p5"], words["p50"], words["p95"], words["max"]) == (6, 51, 96, 101)


def test_token_statistics_are_those_of_the_training_examples(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    report = report_folder(folder, tokenizer, seq_len=256)
    source = InstructDataset(folder / TRAIN, tokenizer, DataSection(seq_len=256, turns=1), data_report._SEED)
    examples = [source[i] for i in range(len(source))]
    statistics = report["files"]["train"]["examples"]
    assert statistics["tokens"]["max"] == max(len(example.ids) for example in examples)
    assert statistics["tokens"]["mean"] == pytest.approx(np.mean([len(example.ids) for example in examples]), abs=0.1)
    trained = sum(example.n_trained for example in examples) / sum(len(example.ids) for example in examples)
    assert statistics["trained_share"] == pytest.approx(trained)


def test_examples_that_do_not_fit_are_reported(folder: Path, real_data: Path) -> None:
    stories = (real_data / "tinystories" / "instruct-records.txt").read_text(encoding="utf-8")
    (folder / TRAIN).write_text(stories * 5, encoding="utf-8")
    report = report_folder(folder, tiny_tokenizer(), seq_len=256)
    examples = report["files"]["train"]["examples"]
    assert examples["tokens"]["max"] <= 256
    assert examples["shortened"] > 0
    assert examples["too_long"]["words"] > 0
    text = " ".join(data_report.findings(report))
    assert "Tasks that don't fit into 256 tokens, among 15 examples: words" in text
    assert "examples whose story lost text from its middle, to fit into 256 tokens" in text


def test_a_length_that_allows_no_example_is_reported_without_an_error(folder: Path) -> None:
    report = report_folder(folder, tiny_tokenizer(), seq_len=16)
    assert "raise data.seq_len" in report["files"]["train"]["examples"]["impossible"]
    show_report(report, Console(quiet=True))


def test_without_a_tokenizer_a_temporary_one_counts_the_tokens(folder: Path) -> None:
    assert "temporary" in report_folder(folder)["tokenizer"]["label"]
    assert "temporary" not in report_folder(folder, tiny_tokenizer())["tokenizer"]["label"]


def test_a_tokenizer_without_control_tokens_works(folder: Path, real_data: Path) -> None:
    tokenizer = ChatTokenizer.load(real_data / "gpt2-bpe" / "gpt2.tiktoken")
    assert report_folder(folder, tokenizer)["files"]["train"]["examples"]["count"] == 7


# A sample of a large file


@pytest.fixture
def big(tmp_path: Path) -> Path:
    write(tmp_path / "big", TRAIN, *(PLAIN.format(f"{i} frogs") for i in range(900)))
    return tmp_path / "big"


def test_a_large_file_is_sampled_evenly(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "MAX_RECORDS", 90)
    train = report_folder(big)["files"]["train"]
    assert (train["records"], train["looked_at"], train["examples"]["count"]) == (900, 90, 90)
    numbers = data_report._spread(900, 90)
    assert (numbers[0], numbers[-1]) == (0, 899)
    assert set(np.diff(numbers)) <= {10, 11}


def test_full_reads_every_record(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "MAX_RECORDS", 90)
    assert report_folder(big, full=True)["files"]["train"]["looked_at"] == 900


def test_the_report_states_whether_it_read_everything(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "MAX_RECORDS", 90)
    assert "Only a sample was read" in " ".join(data_report.findings(report_folder(big)))
    assert "Only a sample was read" not in " ".join(data_report.findings(report_folder(big, full=True)))


def test_memory_stays_far_below_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "MAX_RECORDS", 50)
    write(tmp_path / "big", TRAIN, *(f"Story: Ben saw {i}. Ben ran home." + " " * 20_000 for i in range(2000)))
    tokenizer = tiny_tokenizer()
    tracemalloc.start()
    report = report_folder(tmp_path / "big", tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report["files"]["train"]["bytes"] > 40e6
    assert peak < 8e6


# Output


def test_the_report_has_json_values(folder: Path) -> None:
    report = report_folder(folder)
    assert json.loads(json.dumps(report)) == report


def test_the_terminal_shows_the_counts(folder: Path) -> None:
    out = Console(record=True, width=80, file=io.StringIO())
    show_report(report_folder(folder), out)
    printed = out.export_text()
    assert "Random sentence   " in printed
    assert "3 (42.9%)" in printed
    assert "1 record without a story left out" in printed
    assert "1 of 2 valid stories are also among the 7 train stories" in printed


def test_markup_in_names_of_features_is_escaped(folder: Path) -> None:
    write(folder, TRAIN, "Features: [bold]x[/nope]\nStory: Ben ran. Ben sat.")
    out = Console(record=True, width=100, file=io.StringIO())
    show_report(report_folder(folder), out)
    assert "[bold]x[/nope]" in out.export_text()


def test_an_unused_file_is_reported(folder: Path) -> None:
    write(folder, "TinyStories-Instruct-train.txt", PLAIN.format("one"))
    assert "TinyStories-Instruct-train.txt is not used" in " ".join(data_report.findings(report_folder(folder)))


def test_an_empty_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no data"):
        report_folder(tmp_path)

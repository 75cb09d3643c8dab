"""quickstart and recipe run several stages: a stop of one ends all of them, with its exit code and how to resume."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mini_chat_gpt import quickstart
from mini_chat_gpt.common.signals import StoppedBySignal
from mini_chat_gpt.config import Config
from mini_chat_gpt.evaluation.prompt_suite import Prompts
from mini_chat_gpt.recipe import command
from mini_chat_gpt.recipe import train as recipe
from mini_chat_gpt.recipe.folder import Recipe
from mini_chat_gpt.training.job import TrainResult

STOPS = [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), ("time limit", 75)]


def result(stopped: str = "", folder: str = "runs/x") -> TrainResult:
    return TrainResult(Path(folder), 3, 1.0, stopped=stopped)


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """A quickstart without work, in an empty folder; the names of its stages in order."""
    monkeypatch.chdir(tmp_path)
    done = []
    monkeypatch.setattr(quickstart, "make_data", lambda *_: done.append("data"))
    monkeypatch.setattr(quickstart, "pretrain", lambda _: done.append("pretrain") or result())
    monkeypatch.setattr(quickstart, "train", lambda _: done.append("sft") or result())
    monkeypatch.setattr(quickstart, "compare", lambda *_: done.append("compare"))
    monkeypatch.setattr(quickstart, "rows_of", lambda _: [["the scores"]])
    return done


def run_quickstart() -> int:
    return quickstart.run(SimpleNamespace(settings=Config(), items=3, base=None, details=False))


@pytest.mark.parametrize(("reason", "code"), STOPS)
def test_a_stopped_stage_of_quickstart_ends_it(monkeypatch, stages, capsys, reason, code):
    monkeypatch.setattr(quickstart, "pretrain", lambda _: result(reason))
    assert run_quickstart() == code
    assert stages == ["data"]
    assert "The same quickstart command resumes from here." in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["make_data", "compare"])
@pytest.mark.parametrize("error", [StoppedBySignal(signal.SIGTERM), KeyboardInterrupt()])
def test_a_signal_between_the_trainings_of_quickstart_says_how_to_resume(monkeypatch, stages, capsys, stage, error):
    def interrupted(*_):
        raise error

    monkeypatch.setattr(quickstart, stage, interrupted)
    with pytest.raises(type(error)):
        run_quickstart()
    assert "The same quickstart command resumes from here." in capsys.readouterr().out


def test_an_undisturbed_quickstart_says_nothing_about_it(stages, capsys):
    assert run_quickstart() == 0
    assert stages == ["data", "pretrain", "sft", "compare"]
    assert "resumes from here" not in capsys.readouterr().out


def run_recipe(monkeypatch, out: Console, stopped: str = "") -> str:
    words = Recipe(Path("recipes/x"), Config(), Prompts(compare=[{"prompts": ["a"]}]))
    prepared = recipe.Comparison(words, Path("runs/base"), [], [], None)
    monkeypatch.setattr(recipe, "prepare", lambda *_: prepared)
    monkeypatch.setattr(recipe, "train", lambda _: result(stopped))
    return recipe.run_recipe(words, out).stopped


@pytest.mark.parametrize(("reason", "code"), STOPS)
def test_a_stopped_training_of_a_recipe_ends_it(monkeypatch, tmp_path, capsys, reason, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x" / "step-0000003").mkdir(parents=True)
    assert run_recipe(monkeypatch, Console(), reason) == reason
    assert "The same recipe command with sft.resume_from=runs/x resumes from here." in capsys.readouterr().out
    options = dict.fromkeys(("evaluate", "output", "n", "against", "variants"))
    arguments = SimpleNamespace(recipe="x", folder=tmp_path, settings=Config(), **options)
    monkeypatch.setattr(command, "read_recipe", lambda *_: None)
    monkeypatch.setattr(recipe, "run_recipe", lambda *_: result(reason))
    assert command.run(arguments) == code


def test_a_recipe_stopped_before_its_first_step_names_no_run_to_resume(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_recipe(monkeypatch, Console(), "SIGTERM") == "SIGTERM"
    assert "resume_from" not in capsys.readouterr().out


def test_a_signal_in_the_comparison_of_a_recipe_says_how_to_resume(monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise StoppedBySignal(signal.SIGHUP)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "write_comparison", interrupted)
    with pytest.raises(StoppedBySignal):
        run_recipe(monkeypatch, Console())
    assert "sft.resume_from=runs/x resumes from here" in capsys.readouterr().out

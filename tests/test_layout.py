"""The layout: imports follow one order, modules stay small, and importing the package costs nothing."""

import subprocess
import sys
from pathlib import Path

import import_graph
import pytest

COMMAND = Path(import_graph.__file__)


def write_package(folder: Path, **files: str) -> Path:
    """A package with these files; `__` in a name is a folder's slash."""
    package = folder / "mini_chat_gpt"
    for name, source in ({"__init__": ""} | files).items():
        path = package / f"{name.replace('__', '/') if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


def test_imports_follow_the_order_without_a_cycle_and_modules_are_small():
    done = subprocess.run([sys.executable, str(COMMAND)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no cycle, nothing against the order" in done.stdout


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"config": "from mini_chat_gpt.model import GPT", "model": ""}, "config imports model, which comes later"),
        ({"config": "def f():\n    from mini_chat_gpt.model import GPT", "model": ""}, "config imports model"),
        (
            {"config": "if TYPE_CHECKING:\n    from mini_chat_gpt.model import GPT", "model": ""},
            "config imports model",
        ),
        ({"config": "import mini_chat_gpt.model", "model": ""}, "config imports model"),
        ({"config": "from mini_chat_gpt import model", "model": ""}, "config imports model"),
        (
            {"ops__loss": "from mini_chat_gpt.ops import nf4", "ops__nf4": "from mini_chat_gpt.ops.loss import x"},
            "import cycle: ops.",
        ),
        ({"tricks": ""}, "tricks: tricks has no place in ORDER"),
        ({"datasets__load": ""}, "datasets: a library has this name"),
        ({"queue": ""}, "queue: a library has this name"),
        ({"config": "pass\n" * 401}, "config: 401 lines"),
        ({"config": "def f():\n" + "    pass\n" * 50}, "config.f: 51 lines"),
    ],
)
def test_what_breaks_the_layout_is_named(files, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(import_graph, "PACKAGE", write_package(tmp_path, **files))
    assert import_graph.main() == 1
    assert problem in capsys.readouterr().out


def test_the_main_of_a_command_may_import_late(tmp_path, monkeypatch):
    files = {"cli": "def main():\n    from mini_chat_gpt.sft_train import train", "sft_train": ""}
    monkeypatch.setattr(import_graph, "PACKAGE", write_package(tmp_path, **files))
    assert import_graph.main() == 0


def test_importing_the_package_loads_neither_torch_nor_wandb():
    code = "import sys, mini_chat_gpt, mini_chat_gpt.cli; print(sorted({'torch', 'wandb', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

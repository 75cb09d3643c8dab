"""The course: notebooks agree with their sources, have an exercise with a check and a solution, and run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from doc_pages import MAX_WORDS, n_words, sentences

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in (FOLDER / "sources").glob("*.py"))
MACHINE = re.compile(r"/(home|root|tmp|work|Users|usr|var)/|\d+\.\d+\.\d+\.\d+")
"""Paths and addresses of a machine, which an output must not contain."""


@pytest.fixture(scope="module")
def build():
    """notebooks/build.py as a module."""
    pytest.importorskip("nbclient", reason="notebooks need `pip install '.[dev]'`")
    pytest.importorskip("ipykernel", reason="notebooks need `pip install '.[dev]'`")
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def with_role(name: str, role: str) -> list[dict]:
    return [cell for cell in notebook(name)["cells"] if role in cell["metadata"].get("tags", ())]


def streams(cell: dict) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_every_notebook_has_a_source_and_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    page = (ROOT / "docs/course.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\(\.\./notebooks/(\w+)\.ipynb\)", page)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_its_cells_are_those_of_its_source(build, name):
    found = build.nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    build.nbformat.validate(found)
    remedy = f"python notebooks/build.py {name}"
    assert [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in found.cells] == [
        (cell.id, cell.cell_type, cell.source, cell.metadata) for cell in build.new(name).cells
    ], remedy


@pytest.mark.parametrize("name", NAMES)
def test_the_exercise_has_a_check_that_the_unfinished_cell_fails_and_a_solution(name):
    (exercise,), (check,), (solution,) = (with_role(name, role) for role in ("exercise", "check", "solution"))
    assert exercise["cell_type"] == "code"
    assert streams(check).startswith("Not yet"), streams(check)
    assert solution["cell_type"] == "markdown"
    assert text_of(solution).startswith("<details>\n<summary>Solution</summary>")


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_are_stored_without_errors_and_paths_of_a_machine(name):
    cells = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", text_of(cell)
            assert output.get("name") != "stderr", output
            texts = json.dumps({**output, "data": {**output.get("data", {}), "image/png": ""}})
            assert not MACHINE.search(texts), texts


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_says_what_one_can_do_at_the_end_and_sentences_are_short(name, tmp_path):
    first, *_ = cells = [text_of(cell) for cell in notebook(name)["cells"] if cell["cell_type"] == "markdown"]
    assert first.startswith("# ")
    assert "At the end you can\n\n- " in first
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(cells), encoding="utf-8")
    lengths = [n_words(sentence) for sentence in sentences(page)]
    assert sum(lengths) / len(lengths) < MAX_WORDS


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_exist(name):
    for cell in notebook(name)["cells"]:
        for target in re.findall(r"\]\(([^)#\s]+)", text_of(cell) if cell["cell_type"] == "markdown" else ""):
            assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", [*NAMES, "course"])
def test_imports_exist(name):
    file = FOLDER / (f"{name}.py" if name == "course" else f"sources/{name}.py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mini_chat_gpt"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_the_figures_are_those_of_the_command(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("notebooks_figures", FOLDER / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    figures.main()
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in (FOLDER / "figures").iterdir()}, (
        "python notebooks/figures.py"
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the folder in which the notebooks run, without the models of the course: the first one makes them."""
    return Path(
        shutil.copytree(FOLDER, tmp_path_factory.mktemp("course") / "notebooks", ignore=shutil.ignore_patterns("runs*"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: (name != "sft_step_by_step", name)))
def test_a_notebook_runs_and_its_check_tells_right_from_wrong(build, copied, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = build.new(name)
    assert build.run(found, copied).startswith("Right")  # the check with the solution
    [check] = build.with_role(found, "check")
    assert build.printed(check).startswith("Not yet")
    stored = notebook(name)["cells"]
    kinds = [[output["output_type"] for output in cell.get("outputs", ())] for cell in found.cells]
    assert kinds == [[output["output_type"] for output in cell.get("outputs", ())] for cell in stored]

"""Write the notebooks from their sources and run them: `python notebooks/build.py [NAME …]`.

A source is a Python file in `sources/`. A line `# %%` begins a cell of code, `# %% [markdown]` one of text, in comments. Three cells
are the exercise: `# %% exercise` (unfinished), `# %% check`, and `# %% solution`, which the notebook shows folded.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
SOURCES = HERE / "sources"
CELL = re.compile(r"^# %%(?P<info>.*)\n", re.MULTILINE)
SOLUTION = "<details>\n<summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"
TIMEOUT = 3600  # seconds for a cell; a training on a busy machine takes minutes


def names() -> list[str]:
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def cells_of(source: str) -> list[NotebookNode]:
    """The cells of a source, without outputs. Their ids are their numbers, so that they stay the same in each build."""
    _, *parts = CELL.split(source)
    cells = []
    for number, (info, text) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        role, text, name = info.strip(), text.strip(), f"cell-{number:02}"
        if role == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()]
            cells.append(new_markdown_cell("\n".join(lines), id=name))
        elif role == "solution":
            cells.append(new_markdown_cell(SOLUTION.format(text), id=name, metadata={"tags": [role]}))
        else:
            cells.append(new_code_cell(text, id=name, metadata={"tags": [role]} if role else {}))
    return cells


def new(name: str) -> NotebookNode:
    """The notebook of a source, without outputs."""
    notebook = new_notebook(cells=cells_of((SOURCES / f"{name}.py").read_text(encoding="utf-8")))
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    return notebook


def with_role(notebook: NotebookNode, role: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if role in cell.metadata.get("tags", ())]


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def run(notebook: NotebookNode, folder: Path) -> str:
    """Run all cells in a folder that has course.py, then the check with the solution. Returns what that check prints."""
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        [solution], [check] = with_role(notebook, "solution"), with_role(notebook, "check")
        code = solution.source.partition("```python\n")[2].partition("\n```")[0]
        extra = [new_code_cell(code), new_code_cell(check.source)]
        notebook.cells += extra
        for cell in extra:
            client.execute_cell(cell, notebook.cells.index(cell))
        del notebook.cells[-len(extra) :]
    notebook.metadata = new(names()[0]).metadata  # nbclient adds the kernel's version
    return printed(extra[-1])


def build(name: str) -> None:
    """Write, run and save one notebook."""
    notebook, began = new(name), time.monotonic()
    result = run(notebook, HERE)
    [check] = with_role(notebook, "check")
    assert printed(check).startswith("Not yet"), f"{name}: the check passes without a solution: {printed(check)}"
    assert result.startswith("Right"), f"{name}: the check fails with the solution: {result}"
    nbformat.write(notebook, HERE / f"{name}.ipynb")
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        build(name)

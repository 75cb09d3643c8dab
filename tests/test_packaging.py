"""The wheel and the sdist hold every file of the package, and an installed wheel works outside the clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from commands import ROOT, environment

import mini_chat_gpt

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PACKAGE = ROOT / "mini_chat_gpt"
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
SOURCES = ["mini_chat_gpt", "recipes", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "sft_config.yaml",
           "prepare_sft_data.py", "TinyStories/README.md"]  # fmt: skip


def files_of(folder: Path) -> set[str]:
    """Paths of the files below a folder, relative to it."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_every_subpackage_is_listed():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(SETUPTOOLS["packages"]) == names | {"mini_chat_gpt.recipes"}


def test_every_data_file_is_listed():
    patterns = {name.replace(".", "/"): globs for name, globs in SETUPTOOLS["package-data"].items()}
    for file in files_of(PACKAGE):
        folder, _, name = f"mini_chat_gpt/{file}".rpartition("/")
        assert name.endswith(".py") or any(fnmatch(name, glob) for glob in patterns.get(folder, [])), file


def test_the_version_has_one_place():
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "mini_chat_gpt.__version__"}
    assert mini_chat_gpt.__version__ in (PACKAGE / "__init__.py").read_text(encoding="utf-8")


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a "wheel" or an "sdist" of a source folder."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, sdist) of a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    source, out = folder / "source", folder / "dist"
    for name in SOURCES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    return build(source, "wheel", out), build(source, "sdist", out)


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def expected_contents() -> set[str]:
    recipes = {f"mini_chat_gpt/recipes/{file}" for file in files_of(ROOT / "recipes")}
    return {f"mini_chat_gpt/{file}" for file in files_of(PACKAGE)} | recipes


def test_the_wheel_holds_every_file(built):
    assert contents(built[0]) == expected_contents()
    assert f"-{mini_chat_gpt.__version__}-" in built[0].name


def test_a_wheel_built_from_the_sdist_holds_every_file(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    (source,) = tmp_path.iterdir()
    assert {"sft_config.yaml", "prepare_sft_data.py", "LICENSE"} <= files_of(source)
    assert contents(build(source, "wheel", tmp_path / "dist")) == expected_contents()


class Installed:
    """A virtual environment outside the clone that has the wheel, and the other packages of the running one."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--no-deps", "--no-index"]
        subprocess.run([*command, "--quiet", wheel], check=True)
        # A path in a .pth file doesn't run the .pth files of that folder, so the clone's editable install isn't active.
        (site,) = (folder / "venv").rglob("site-packages")
        (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
        self.site = site

    def run(self, *command: str, text: str = "") -> str:
        """Run a console script of the environment; returns its standard output."""
        variables = environment(OMP_NUM_THREADS="1")
        variables.pop("PYTHONPATH", None)
        done = subprocess.run([self.bin / command[0], *command[1:]], cwd=self.folder, capture_output=True, text=True,
                              env=variables, input=text, timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), built[0])


@pytest.mark.slow
def test_the_installed_wheel_is_what_runs(installed):
    assert installed.run("mini-chat-gpt", "--version") == f"mini-chat-gpt {mini_chat_gpt.__version__}\n"
    code = "import mini_chat_gpt, importlib.metadata as m; print(mini_chat_gpt.__file__, m.version('mini-chat-gpt'))"
    assert installed.run("python", "-c", code).split() == [
        str(installed.site / "mini_chat_gpt" / "__init__.py"),
        mini_chat_gpt.__version__,
    ]


@pytest.mark.slow
def test_the_pipeline_runs_from_the_installed_wheel(installed):
    brief = ["pretrain.max_steps=4", "sft.max_steps=4", "data.eval_examples=10", "--items", "2"]
    assert "mini-chat-gpt chat --checkpoint runs/quickstart/sft" in installed.run("mini-chat-gpt", "quickstart", *brief)
    model = ["--checkpoint", "runs/quickstart/sft", "--device", "cpu"]
    replies = installed.run("mini-chat-gpt", "chat", *model, "--max-new-tokens", "5", text="Hello\n/why why.html\n")
    assert replies
    assert (installed.folder / "why.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    installed.run("mini-chat-gpt", "evaluate", *model, "--n", "2", "--report", "report")
    page = (installed.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "<style>" in page
    assert "<script>" in page
    recipe = [
        "sft.pretrained_checkpoint=runs/quickstart/sft",
        "sft.save_dir=runs/polite",
        "sft.max_steps=2",
        "sft.epochs=null",
        "--n",
        "2",
    ]
    installed.run("mini-chat-gpt", "recipe", "polite_helper", *recipe)
    assert "# " in (installed.folder / "runs" / "polite" / "before_after.md").read_text(encoding="utf-8")

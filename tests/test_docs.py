"""The pages of the documentation: their code blocks run, their commands and quoted messages exist, their sentences are short.

CONTRIBUTING.md describes the tags of code blocks, `doc_pages.sentences` the rule for sentences.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pyarrow
import pytest
import yaml
from commands import BRIEF, SMALL, environment, free_port, is_listening, program, wait_for, write_stories
from doc_pages import MAX_WORDS, PAGES, ROOT, TAGS, Block, blocks, calls, n_words, sentences
from fork_server import execute
from hub_server import running_hub
from pyarrow import parquet
from tiny import chat_tokenizer, lively, tiny_tokenizer, write_records

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import ALIASES, VERBS, parse
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import parse_config, to_yaml
from mini_chat_gpt.evaluation.prompt_suite import read_prompts
from mini_chat_gpt.reports.review import read_checklist

BY_NAME = {page.relative_to(ROOT).as_posix(): page for page in PAGES}
ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
DOCTESTS = ROOT / "docs" / "how-it-works.md"  # test_reading_path.py runs its blocks
SHORT = [
    "sft.max_steps=2",
    "sft.eval_tasks=1",
    "data.eval_examples=4",
    "training.time_budget=null",
    *BRIEF[:2],
    "system.threads=1",
]
KINDS = ["--kinds", "summary"]
SHORTENED = {
    "sft": SHORT,
    "recipe": [*SHORT, "--n", "4"],
    "pretrain": ["pretrain.max_steps=2", "pretrain.tokenizer_vocab_size=300", *SMALL, *SHORT[2:]],
    "quickstart": ["pretrain.max_steps=2", *SMALL, *SHORT, "--items", "1"],
    "evaluate": ["--n", "2", "--training-mb", "0", *KINDS],
    "generate": ["--max-new-tokens", "5"],
    "doctor": [*SHORT[2:]],
}
"""What the tests append to a command, so that it takes seconds."""
PORT = "8080"
"""The port in the pages."""


def test_every_code_block_has_a_tag():
    untagged = [block.place for block in ALL_BLOCKS if block.tag not in TAGS]
    assert not untagged, f"write a tag after the language, one of {', '.join(TAGS)}: {untagged}"
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(ALL_BLOCKS), "a code block is not closed, or not at the beginning of its line"


@pytest.mark.parametrize("name", BY_NAME)
def test_sentences_are_short(name):
    lengths = [n_words(sentence) for sentence in sentences(BY_NAME[name])]
    mean = sum(lengths) / len(lengths)
    assert mean < MAX_WORDS, f"{mean:.1f} words on average; the longest: {max(sentences(BY_NAME[name]), key=n_words)}"


# Commands


def with_files_of_pages(folder: Path) -> Path:
    """What the commands of the pages expect in the working folder."""
    for name in ("mini_chat_gpt", "sft_config.yaml", "prepare_sft_data.py", "benchmarks", "recipes", "tests", "docs"):
        (folder / name).symlink_to(ROOT / name)
    base, chat = tiny_tokenizer(), chat_tokenizer()
    save_checkpoint(folder / "runs/base", lively(base, context_length=256), base, {"job": "pretrain"})
    save_checkpoint(folder / "runs/sft", lively(chat, context_length=256), chat, {"job": "sft"})
    write_records(folder / "data")
    shutil.copytree(folder / "data", folder / "TinyStories")
    write_stories(folder)
    (folder / "path/to").mkdir(parents=True)
    for name in ("path/to/folder", "tickets"):
        (folder / name).symlink_to(ROOT / "recipes/headlines")
    (folder / "pages").mkdir()
    for name in ("novel.txt", "names.txt", "pages/one.md", "pages/two.txt"):
        (folder / name).write_text("Tom had a cat.\nThe cat was glad.\n" * 60, encoding="utf-8")
    (folder / "corpus").mkdir()
    table = pyarrow.table({"text": ["Tom had a cat.", "The cat was glad."] * 60})
    parquet.write_table(table, folder / "corpus/one.parquet")
    turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi! How are you?"}]
    for name in ("chats.jsonl", "other-chats.jsonl", "refusals.jsonl"):
        lines = [json.dumps({"messages": [*turns[:1], {**turns[1], "content": f"{name} {i}"}]}) for i in range(20)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    said = [{"speaker": "Customer", "said": "Hi"}, {"speaker": "Agent", "said": "Hello"}]
    logged = {"user_text": "Hi", "bot_text": "Hello", "data": {"turns": said}}
    (folder / "log.jsonl").write_text(json.dumps(logged), encoding="utf-8")
    (folder / "prompts.yaml").write_text("- {prompt: Hello, contains: Hi}\n", encoding="utf-8")
    save_checkpoint(folder / "runs/quickstart/sft", lively(chat, context_length=256), chat, {"job": "sft"})
    (folder / "runs/quickstart/sft/config.yaml").write_text(to_yaml(Config()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return with_files_of_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def clone(template, tmp_path) -> Path:
    """A folder of the test's own with the files of the pages."""
    return Path(shutil.copytree(template, tmp_path / "clone", symlinks=True))


@pytest.mark.parametrize("name", BY_NAME)
def test_options_and_settings_of_commands_exist(template, monkeypatch, name):
    monkeypatch.chdir(template)
    for block in blocks(BY_NAME[name]):
        if block.tag == "fast":
            continue  # its commands are run
        for command in block.commands():
            for verb, arguments in calls(command):
                assert ALIASES.get(verb, verb) in VERBS, f"{block.place}: {verb}"
                if "--help" not in arguments:
                    parse(ALIASES.get(verb, verb), arguments)
            for word in command:
                if re.fullmatch(r"(benchmarks|tests|docs|recipes|mini_chat_gpt)/[\w/.-]+", word):
                    assert (ROOT / word).exists(), f"{block.place}: {word}"


def run_command(folder: Path, command: list[str], more: dict[str, list[str]], variables: dict[str, str]) -> None:
    """Run a command with one call of mini-chat-gpt, its output redirected if the command says so; through a shell if it has a pipe."""
    if "|" in command:
        shim = f'mini-chat-gpt() {{ "{sys.executable}" -m mini_chat_gpt.cli "$@"; }}\n'
        line = " ".join(word if word in "|>" else f"'{word}'" for word in command)
        done = subprocess.run(
            ["bash", "-ec", f"set -o pipefail; {shim}{line}"],
            cwd=folder,
            env=environment(**variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return
    words, _, file = (command, "", "") if ">" not in command else (command[: command.index(">")], ">", command[-1])
    [(verb, arguments)] = calls(words)
    prints = "--help" in arguments or (verb == "recipe" and not arguments)  # the list of recipes
    added = [] if prints else more.get(ALIASES.get(verb, verb), [])
    if "--data" in arguments:  # the data may be chats, which have no kinds
        added = [word for word in added if word not in KINDS]
    argv = program(*verb.split(), *arguments, *added)[1:]
    code, output, errors = execute(argv, folder, environment(**variables))
    assert code == 0, f"{command}\n{output}{errors}"
    assert "Traceback" not in errors, errors
    if file:
        (folder / file).write_text(output, encoding="utf-8")


def run_block(block: Block, folder: Path, more: dict[str, list[str]], variables: dict[str, str]) -> None:
    """Run a code block, or check what it says."""
    if block.language == "bash":
        for command in block.commands():
            if any(True for _ in calls(command)):  # others are programs of the repository whose existence was checked
                run_command(folder, command, more, variables)
    elif block.language == "python":
        (folder / "block.py").write_text(block.text, encoding="utf-8")
        code, output, errors = execute(["block.py"], folder, environment(**variables))
        assert code == 0, f"{block.place}\n{output}{errors}"
    elif block.argument == "config":
        parse_config(yaml.safe_load(block.text), block.place)
    else:
        name = block.argument if "." in block.argument else f"{block.argument}.yaml"
        (folder / name).write_text(block.text, encoding="utf-8")
        if name.endswith(".jsonl"):
            assert all(json.loads(line)["messages"] for line in block.text.splitlines())
        else:
            {"prompts": read_prompts, "checklist": read_checklist}[name.partition(".")[0]](folder / name)


def append(block: Block, folder: Path) -> None:
    """Append a block to a copy of a file of the package."""
    package = folder / "mini_chat_gpt"
    if package.is_symlink():
        package.unlink()
        shutil.copytree(ROOT / "mini_chat_gpt", package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / block.argument, "a", encoding="utf-8") as file:
        file.write("\n\n" + block.text)


def run_page(name: str, folder: Path, tags: tuple[str, ...], variables: dict[str, str]) -> None:
    """Run the blocks of a page with these tags, in order."""
    for block in blocks(BY_NAME[name]):
        if block.tag == "append":
            append(block, folder)
        elif block.tag in tags:
            run_block(block, folder, SHORTENED, variables)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def names_with(*tags: str) -> list[str]:
    """The pages that have a block with one of the tags."""
    found = {block.page for block in ALL_BLOCKS if block.tag in tags} - {DOCTESTS}
    return [name for name, page in BY_NAME.items() if page in found]


@pytest.mark.parametrize("name", names_with("fast"))
def test_fast_blocks_run(clone, name):
    run_page(name, clone, ("fast",), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", names_with("slow", "network"))
def test_slow_blocks_run(template, clone, name):
    """Those with a network too, with a hub on this machine."""
    if name == "docs/your-own-chats.md":
        shutil.rmtree(clone / "runs/sft")  # its first command makes it, an adapter
    with running_hub() as hub:
        hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", contents(template / "runs/sft"))
        hub.add("ORG/CHATS", {"train.jsonl": (clone / "chats.jsonl").read_bytes()}, "datasets")
        stories = {path.replace("Stories", "Stories-", 1): text for path, text in contents(clone / "data").items()}
        hub.add("roneneldan/TinyStoriesInstruct", stories, "datasets")
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(clone / "hub"), "HF_HUB_DISABLE_XET": "1"}
        run_page(name, clone, ("fast", "slow", "network"), variables)


@contextmanager
def served(block: Block, folder: Path, port: int) -> Iterator[None]:
    """Run the last command of a block, a server, on another port than the page's."""
    words = [str(port) if word == PORT else word for word in block.commands()[-1]]
    process = subprocess.Popen(
        program(*words[1:]), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: process.poll() is not None or is_listening(port))
        yield
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == 0, printed
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", names_with("server"))
def test_blocks_of_clients_run_against_the_server_of_their_page(clone, name):
    port = free_port()
    here = blocks(BY_NAME[name])
    [server] = [block for block in here if block.tag == "server"]
    with served(server, clone, port):
        for block in here:
            if block.tag == "client":
                file = clone / f"client.{block.language}"
                file.write_text(block.text.replace(PORT, str(port)), encoding="utf-8")
                interpreter = ["bash", "-e"] if block.language == "bash" else [sys.executable]
                done = subprocess.run(
                    [*interpreter, file], cwd=clone, env=environment(), capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, f"{block.place}\n{done.stdout}{done.stderr}"
                assert done.stdout.strip(), block.place
                assert '"error"' not in done.stdout, f"{block.place}\n{done.stdout}"


# Messages


@lru_cache
def texts_of_the_package() -> list[str]:
    """All strings of the code, those of an f-string in parts."""
    found = []
    for file in (ROOT / "mini_chat_gpt").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return found


def test_quoted_messages_are_in_the_code():
    quoted = re.findall(r"^### `(.*)`$", BY_NAME["docs/troubleshooting.md"].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 25
    for message in quoted:
        for part in message.split("…"):
            if len(part.strip(" .;:?()")) > 3:
                assert any(part.strip() in text for text in texts_of_the_package()), f"{part!r} of {message!r}"


# Generated pages and the site


def test_the_page_of_settings_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/settings_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs/settings.md").read_text(encoding="utf-8"), (
        "python docs/settings_page.py > docs/settings.md"
    )


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs `pip install '.[docs]'`")
    pytest.importorskip("material", reason="the site needs `pip install '.[docs]'`")
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in page
    sources = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]*)", page)
    assert not sources, f"loaded from a network: {sources}"
    notebook = (tmp_path / "site/repository/notebooks/02_attention.ipynb.html").read_text(encoding="utf-8")
    assert notebook.count('src="data:image/png;base64,') == 1  # an output
    assert "<summary>Solution</summary>" in notebook
    assert "```" not in notebook, "the solution is not rendered"
    assert '"cell_type"' not in notebook

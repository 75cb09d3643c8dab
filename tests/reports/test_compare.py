"""The commands `sft_generate.py --test` and `mini-chat-gpt evaluate`."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import tiny_model

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.reports.compare import EvalOptions, _report_folder, _work_done, compare, main, short_names
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.sft_generate import main as generate
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

ROOT = Path(__file__).parent.parent.parent
VALID = "TinyStoriesInstruct-valid.txt"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small sample, an untrained base model and an untrained chat model."""
    folder = tmp_path_factory.mktemp("home")
    write_sample(folder / "data", n_train=0, n_valid=60)
    tokenizer = ChatTokenizer.train(stories(folder / "data" / VALID), 600)
    save_checkpoint(folder / "runs/base/step-1", tiny_model(tokenizer.vocab_size, context_length=384), tokenizer)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    model = tiny_model(tokenizer.vocab_size, context_length=384)
    save_checkpoint(folder / "runs/sft/step-1", model, tokenizer)
    (folder / "runs/sft/config.yaml").write_text("sft:\n  dataset_path: data\n  save_dir: runs/sft\n")
    return folder


def typed(home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, *(command if command[0].endswith(".py") else ("-m", "mini_chat_gpt.cli", *command))]
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(program, cwd=home, capture_output=True, text=True, env=environment, timeout=120)


SFT_GENERATE = str(ROOT / "mini_chat_gpt" / "sft_generate.py")
TEST = [SFT_GENERATE, "--checkpoint", "runs/sft", "--test"]


def test_the_test_prints_a_table_and_an_example_and_writes_everything(home):
    process = typed(
        home, *TEST, "--n", "2", "--kinds", "moral,ending", "words", "--json", "new/out.json", "--seed", "3"
    )
    assert (process.returncode, process.stderr) == (0, "")
    for expected in ("Held-out tasks", "data/" + VALID, "plots of the train file", "plots not in it", "always “Yes”",
                     "replies in", "replies/s", "moral: ", "prompt", "expected", "ROUGE-L", "stops"):  # fmt: skip
        assert expected in process.stdout
    assert "summary" not in process.stdout
    assert max(len(line) for line in process.stdout.splitlines() if "/" not in line) <= 80
    output = json.loads((home / "new/out.json").read_text(encoding="utf-8"))
    assert (output["n"], output["seed"], Path(output["data"]).name) == (2, 3, VALID)
    model = output["models"]["sft"]
    assert model["checkpoint"] == "runs/sft"
    assert list(model["results"]) == ["moral", "ending", "words"]
    assert [results["ending"]["n"] for results in (model["results"], *model["groups"].values())] == [4, 2, 2]
    assert len(model["items"]) == sum(result["n"] for result in model["results"].values())
    assert set(model["items"][0]) == {
        "group", "kind", "prompt", "target", "answer", "required", "reply", "finish_reason", "role_token", "scores"
    }  # fmt: skip


def test_output_works_without_color_and_unicode(home):
    process = typed(home, *TEST, "--n", "1", "--kinds", "moral", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert (process.returncode, process.stderr) == (0, "")
    assert "\x1b" not in process.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n", "0"], "--n is 0; it must be 1 or more"),
        (["--n", "many"], "must be a whole number, not 'many'"),
        (["--kinds", "songs"], "'songs' is not a kind of task"),
        (["--kinds", "morals"], "did you mean 'moral'"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "runs"], "a folder with TinyStoriesInstruct-valid.txt"),
        (["--json", "data"], "--json: data is a folder"),
        (["--json", f"data/{VALID}/out.json"], "--json: Can't write"),
        (["--json", "pipe"], "--json: pipe is not a regular file"),
        (["--report", "r", "--json", "r/report.json"], "is in the report's folder"),
        (["--report", f"data/{VALID}"], "--report: Can't write"),
        (["--report", "/sys/report"], "--report: Can't write /sys/report"),
        (["--training-mb", "-1"], "--training-mb is -1; it must be 0 or more"),
        (["--examples", "-1"], "--examples is -1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--system", "Rhyme."], "--system doesn't work with --test"),
        (["--prompt", "Hi"], "not allowed with argument"),
        (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
    ],
)
def test_an_invalid_option_is_named_with_the_reason(home, monkeypatch, capsys, options, words):
    monkeypatch.chdir(home)
    if "pipe" in options and not Path("pipe").exists():
        os.mkfifo("pipe")
    with pytest.raises((UserError, SystemExit)) as stopped:  # both end a command with code 2
        generate([*TEST[1:], *options])
    printed = capsys.readouterr()
    assert words in printed.err + str(stopped.value)
    assert printed.out == ""


def test_a_mistake_ends_with_code_2_and_one_sentence(home):
    process = typed(home, *TEST, "--kinds", "songs")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: --kinds: 'songs' is not a kind of task; the kinds are ")
    assert process.stderr.count("\n") == 1


def test_an_option_of_the_test_without_the_test_is_an_error():
    with pytest.raises(UserError, match="--batch-size works with --test only"):
        generate(["--checkpoint", "runs/sft", "--prompt", "Hi", "--batch-size", "5"])


def test_the_same_seed_gives_the_same_file(home, monkeypatch):
    monkeypatch.chdir(home)
    for name in ("one.json", "two.json"):
        generate([*TEST[1:], "--device", "cpu", "--n", "1", "--kinds", "why", "--json", name])
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()


def test_sampling_options_reach_the_replies(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    replies = []
    for options in ([], ["--temperature", "1.2"], ["--temperature", "1.2", "--max-new-tokens", "1"]):
        generate([*TEST[1:], "--device", "cpu", "--n", "3", "--kinds", "why", "--json", "out.json", *options])
        items = json.loads(Path("out.json").read_text())["models"]["sft"]["items"]
        replies.append("\n".join(item["reply"] for item in items))
    greedy, sampled, brief = replies
    assert greedy != sampled
    assert len(brief) < len(sampled)


# evaluate


def test_models_are_compared_also_with_a_base_model(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    command = ["--checkpoint", "runs/sft", "--against", "runs/base", "--device", "cpu", "--n", "1"]
    assert main([*command, "--kinds", "moral", "quote", "--examples", "0"]) == 0
    output = capsys.readouterr().out
    assert ["in", "%", *["n", "base", "sft", "baseline"] * 2] in [line.split() for line in output.splitlines()]
    assert "fully right" not in output
    assert "quote" in output
    assert "scores of the baselines" not in output
    assert main([*command, "--kinds", "moral", "--examples", "0", "--details"]) == 0
    assert "scores of the baselines" in capsys.readouterr().out


def test_a_model_named_twice_is_a_mistake(home, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match="runs/sft is named twice"):
        main(["--checkpoint", "runs/sft", "--against", "runs/base", "runs/sft", "--device", "cpu"])


def test_a_kind_without_tasks_in_the_data_is_named(home, monkeypatch):
    monkeypatch.chdir(home)
    own_file = home / "own.txt"
    own_file.write_text("\n<|endoftext|>\n".join(stories(home / "data" / VALID)))
    out = Console(width=80, file=io.StringIO())
    evaluations = compare([Path("runs/sft")], own_file, EvalOptions(n=1, kinds=("summary", "dialogue")), out)
    assert "The data has no tasks of these kinds: summary" in out.file.getvalue()
    assert (list(evaluations["sft"].results), evaluations["sft"].groups) == (["dialogue"], {})


def test_the_work_done_grows_with_the_length_of_the_kinds_texts():
    tasks = [Task(kind, "p" * 100, "t" * length, None) for kind, length in (("ending", 25), ("words", 175)) * 2]
    assert _work_done(tasks) == [0, 0.1, 0.2, 0.6, 1.0]


def test_names_are_as_short_as_possible():
    assert short_names([Path("runs/sft/best"), Path("runs/base")]) == ["sft", "base"]
    assert short_names([Path("a/sft"), Path("b/sft")]) == ["a/sft", "b/sft"]
    assert short_names([Path("/x/p1/runs/q/sft"), Path("/x/p2/runs/q/sft")]) == ["p1/…/sft", "p2/…/sft"]
    assert short_names([Path("sft"), Path("runs/sft")]) == ["sft", "runs/sft"]
    assert short_names([Path("."), Path("runs")]) == [Path.cwd().name, "runs"]


def test_the_folder_of_a_report_is_named_after_its_models(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert _report_folder(["base", "sft"]) == Path("runs/reports/sft-against-base")
    (tmp_path / "runs/reports/sft-against-base").mkdir(parents=True)
    assert _report_folder(["base", "sft"]) == Path("runs/reports/sft-against-base-2")
    assert _report_folder(["p1/…/sft", "p2/…/sft"]).parent == Path("runs/reports")
    assert (
        _report_folder([f"a-run-with-a-long-name-{n}" for n in range(10)]).name
        == "a-run-with-a-long-name-9-against-9-models"
    )


def test_own_prompts_are_checked_first_and_shown_for_each_model(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    command = ["--checkpoint", "runs/sft", "--device", "cpu", "--n", "1", "--kinds", "moral", "--prompts", "own.yaml"]
    Path("own.yaml").write_text("compare: [{prompts: ['Do harm'], refuses: true}]")  # no prompt to answer
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "before" not in output
    assert "harmful prompts declined" in output
    main([*command, "--against", "runs/base"])
    assert ["shows", "prompt", "base", "sft"] in [
        re.sub(r"[┃│]", " ", line).split() for line in capsys.readouterr().out.splitlines()
    ]
    Path("own.yaml").write_text(f"compare: [{{prompts: ['{'Once upon a time ' * 300}']}}]")
    with pytest.raises(
        UserError,
        match=r"own.yaml: the prompt that begins “Once upon .*” has \d+ tokens, but prompt and reply must fit",
    ):
        main(command)
    assert "replies in" not in capsys.readouterr().out


def test_a_kind_named_twice_counts_once(home, monkeypatch):
    monkeypatch.chdir(home)
    out = Console(width=80, file=io.StringIO())
    evaluations = compare([Path("runs/sft")], None, EvalOptions(n=2, kinds=("moral", "moral")), out)
    assert evaluations["sft"].results["moral"]["n"] == 4  # two groups


def test_a_model_with_non_finite_weights_is_refused(home, monkeypatch):
    monkeypatch.chdir(home)
    model, tokenizer = load_checkpoint("runs/base", "cpu")
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    save_checkpoint(Path("runs/nan/step-1"), model, tokenizer)
    with pytest.raises(UserError, match=r"runs/nan: .* is not finite .*use an earlier checkpoint"):
        main(["--checkpoint", "runs/nan", "--device", "cpu"])

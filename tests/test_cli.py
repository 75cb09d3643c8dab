"""The command line: help, versions and mistakes of every verb, without importing PyTorch."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
from commands import ROOT

import mini_chat_gpt
from mini_chat_gpt import cli
from mini_chat_gpt.cli import VERBS, dispatch, make_parser, parse, usage
from mini_chat_gpt.cli_options import EVAL_DEFAULTS
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import WeightsOption
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.reports.compare import EvalOptions

HEAVY = ["torch", "numpy", "matplotlib", "wandb", "rich", "tiktoken", "prompt_toolkit"]
PROBE = """
import json, sys
from mini_chat_gpt.cli import dispatch
try:
    code = dispatch(sys.argv[1:])
except SystemExit as error:
    code = error.code
except Exception as error:
    code = str(error)
print(json.dumps([code, sorted(sys.modules)]))
"""
VERBS_WITH_SETTINGS = ["quickstart", "inspect", "pretrain", "sft", "recipe", "doctor", "config"]


def probe(*argv: str) -> tuple[int | str, set[str], str]:
    """Run a command in a process of its own: exit code or error, the imported modules, and what it printed."""
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], cwd=ROOT, capture_output=True, text=True)
    *printed, last = done.stdout.splitlines()
    code, modules = json.loads(last)
    return code, set(modules), "\n".join(printed) + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_heavy(verb):
    code, modules, printed = probe(verb, "--help")
    assert code == 0
    assert f"usage: mini-chat-gpt {verb}" in printed
    assert not modules & {*HEAVY, "pydantic", "yaml"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"], ["--version"], ["help", "sft"]])
def test_general_help_imports_nothing_heavy(argv):
    code, modules, printed = probe(*argv)
    assert code == 0
    assert printed
    assert not modules & {*HEAVY, "pydantic", "yaml"}


@pytest.mark.parametrize("verb", VERBS_WITH_SETTINGS)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainig.batch_size=3", "did you mean 'training'"),
        ("training.batch_size=many", "training.batch_size must be a whole number"),
    ],
)
def test_a_mistake_in_a_setting_is_reported_before_anything_heavy_is_imported(verb, setting, message):
    argv = [verb, "polite_helper", setting] if verb == "recipe" else [verb, setting]
    error, modules, _ = probe(*argv)
    assert message in str(error)
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft", "--time-limit", "soon"], "training.time_limit"),
        (["sft", "data.mixture={morals: 1}"], "data.mixture: 'morals' is not a kind of task; did you mean 'moral'"),
        (["inspect", "data.loss_weights={endin: 1}"], "data.loss_weights: 'endin' is not a kind"),
        (
            ["quickstart", "data.curriculum=[{share: 0.5, mixture: {quot: 1}}]"],
            "data.curriculum.0.mixture: 'quot' is not",
        ),
        (["doctor", "system.device=gpu"], "system.device: 'gpu' is not a device; write auto, cpu, cuda"),
        (["sft", "--config", "nothing.yaml"], "There is no config file nothing.yaml"),
        (["recipe", "polite_helpr"], "did you mean 'polite_helper'"),
        (["chat", "--temperature", "-1"], "temperature"),
        (["generate", "--prompt", "x", "--top-p", "2"], "top_p"),
        (["generate", "--prompt", "x", "--n", "3"], "--n works with --test only"),
        (["generate", "--test", "--system", "x"], "--system doesn't work with --test"),
        (["generate", "--test", "--thinking", "on"], "--thinking doesn't work with --test"),
        (["prepare", "--valid-fraction", "2"], "--valid-fraction is 2"),
        (["prepare", "--source", "a", "b", "c"], "--source takes one path, or two"),
        (["inspect", "--steps", "0"], "--steps is 0; it must be 1 or more"),
        (["selfcheck", "--config", "nothing.yaml"], "There is no config file nothing.yaml"),
        (["snail"], "'snail' is not a verb"),
        (["prepare", "nothing"], "prepare takes no 'nothing'; your own stories are named with --source"),
        (["prepare", "--sorce", "x"], "prepare takes no '--sorce'; did you mean '--source'?"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_heavy_is_imported(argv, message):
    error, modules, _ = probe(*argv)
    assert message in str(error)
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_a_mistake_before_anything_heavy_is_imported(verb):
    error, modules, printed = probe(verb, "--no-such-option")
    takes_none = f"{verb} takes no '--no-such-option'" in str(error)
    assert takes_none or (error == 2 and "the following arguments are required" in printed)
    assert not modules & set(HEAVY)


def test_the_version_is_that_of_the_package(capsys):
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"mini-chat-gpt {mini_chat_gpt.__version__}\n"


def test_the_usage_lists_every_verb():
    assert all(f"\n  {verb} " in usage() for verb in VERBS)


def test_a_wrong_verb_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'chat'"):
        dispatch(["chatt"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [("run", "chat"), ("ask", "generate"), ("Eval", "evaluate"), ("trian", "train"), ("convert", "import")],
)
def test_a_word_for_the_same_thing_gets_its_verb_as_a_suggestion(word, meant):
    with pytest.raises(UserError, match=f"{word!r} is not a verb of mini-chat-gpt; did you mean {meant!r}"):
        dispatch([word])


@pytest.mark.parametrize("alias", ["train", "finetune", "fine-tune"])
def test_other_names_of_sft_are_accepted(alias, capsys):
    with pytest.raises(SystemExit):
        dispatch([alias, "--help"])
    assert "usage: mini-chat-gpt sft" in capsys.readouterr().out


def test_every_suggestion_is_a_verb_and_no_verb_has_one():
    assert set(cli.MEANT.values()) | set(cli.ALIASES.values()) <= set(VERBS)
    assert not (cli.MEANT.keys() | cli.ALIASES.keys()) & VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_described(verb):
    undescribed = [action.dest for action in make_parser(verb)._actions if not action.help]
    assert not undescribed


def test_options_may_stand_between_settings():
    arguments = parse("sft", ["training.batch_size=2", "--time-limit", "2h", "data.turns=3"])
    settings = arguments.settings
    assert (settings.training.batch_size, settings.training.time_limit, settings.data.turns) == (2, "2h", 3)


def test_the_defaults_in_the_help_are_those_of_the_code():
    defaults = {field.name: field.default for field in fields(EvalOptions)}
    assert {name: defaults[name] for name in EVAL_DEFAULTS} == EVAL_DEFAULTS
    (weights,) = [action for action in make_parser("chat")._actions if action.dest == "weights"]
    literals = [value for part in get_args(WeightsOption) for value in get_args(part) or [part]]
    assert sorted(weights.choices) == sorted(literals)
    assert {action.dest for action in make_parser("generate")._actions} >= {field.name for field in fields(Sampling)}
    assert {action.dest for action in make_parser("evaluate")._actions} >= {field.name for field in fields(EvalOptions)}


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        (["pretrain", "lora.enabled=true"], "lora.enabled has"),
        (["pretrain", "lora.rank=2", "sft.max_steps=3"], "lora.rank, sft.max_steps have"),
        (["sft", "pretrain.max_steps=3"], "pretrain.max_steps has"),
    ],
)
def test_settings_of_the_command_line_that_a_training_never_reads_are_named(argv, keys):
    with pytest.warns(UserWarning, match=f"^{keys} no effect here"):
        parse(argv[0], argv[1:])


@pytest.mark.parametrize("argv", [["sft", "model.n_layer=3"], ["recipe", "polite_helper", "model.preset=15m"]])
def test_a_shape_of_the_model_is_refused_where_the_base_model_has_one(argv):
    with pytest.raises(UserError, match=r"^model\..*: fine-tuning keeps the shape of its base model"):
        parse(argv[0], argv[1:])


@pytest.mark.parametrize(
    "argv", [["pretrain", "model.n_layer=3"], ["sft", "lora.rank=2"], ["quickstart", "lora.rank=2"]]
)
def test_settings_that_are_read_are_not_warned_of(argv, recwarn):
    parse(argv[0], argv[1:])
    assert not recwarn


def test_the_settings_file_has_all_sections_without_a_warning(tmp_path, recwarn):
    (tmp_path / "all.yaml").write_text("lora: {enabled: true}\nmodel: {n_layer: 3}\npretrain: {max_steps: 2}\n")
    for verb in ("pretrain", "sft"):
        parse(verb, ["--config", str(tmp_path / "all.yaml")])
    assert not recwarn

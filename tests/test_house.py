"""The house: imports run downwards only, importing costs nothing, names of libraries are left alone."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mini_chat_gpt"

FLOORS = {
    0: "errors config settings_file encoders tiktoken_files tokenizer tokenizer_export chat_format loss optim device "
    "files monitor entry word_forms intervals shared_runs wandb_run core_share memory_use distributed weight_average stopping",
    1: "derivatives products blocked_products flat_attention cached_attention attention model compiling decoding_weights single_token "
    "decoding_model lora nf4 token_rows",
    2: "batching batch_text story_records record_scan story_index story_facts story_phrasing story_reasons main_character "
    "story_tasks task_shares task_fitting sft_dataloader example_stream derive sample_stories sample_plots "
    "data_folder pretrain_data hf_llama interop interop_llama2c interop_nanogpt checkpoint adapter_files sharding conversations "
    "conversation_source",
    3: "chat_session chat_commands chat_input chat_terminal sampling lookup generation engine run_state run_place trainer "
    "time_plan runs adapting refusals marking scoring story_metrics trivial_replies held_out plain_text memorised recited memory_trace "
    "rehearsal memory_plan machine_checks run_facts loss_curves report "
    "sft_examples page_style report_style report_charts report_words report_sections report_replies report_page "
    "inspect_page why why_page before_after capabilities scoreboard download own_stories data_report prepare",
    4: "cli config_command pretrain sft_train sft_generate chat evaluate quickstart selfcheck doctor inspect_data merge "
    "recipe",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports_of(module: str) -> set[str]:
    """Modules of the package that `module` imports when it is loaded."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in tree.body:
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("mini_chat_gpt")
            and id(node) not in typing_only
        ):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"data"}


def test_every_module_has_its_floor():
    assert set(MODULES) == set(FLOOR_OF)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    above = {name for name in imports_of(module) if FLOOR_OF[name] > FLOOR_OF[module]}
    assert not above, f"{module} (floor {FLOOR_OF[module]}) imports {above} from above"


def test_no_module_imports_itself_by_a_detour():
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()  # raises CycleError with the circle


def test_no_module_shadows_one_of_pythons_or_a_dependencys():
    taken = set(sys.stdlib_module_names) | {
        "torch",
        "numpy",
        "tiktoken",
        "yaml",
        "wandb",
        "rich",
        "tokenizers",
        "transformers",
    }
    assert not set(MODULES) & taken


def test_importing_the_package_loads_neither_torch_nor_wandb():
    code = "import sys, mini_chat_gpt, mini_chat_gpt.cli; print(sorted({'torch', 'wandb', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_its_room(module):
    tree = ast.parse(source := (PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert source.count("\n") <= 450, "a second subject has moved in"
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1})"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 55
    ]
    assert not long, f"functions longer than a screen: {long}"

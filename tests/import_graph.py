"""Print which subpackage imports which, and what breaks the layout: `python tests/import_graph.py`; exit code 1 if anything does.

The layout is one ordered list. A subpackage, or a top-level module, may import itself and whatever precedes it.
Imports inside functions count, and so do those for type checking only: both hide cycles. The exception is the `main` of a
command, which imports late so that `--help` is fast, and the lazy `__init__` of the package.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mini_chat_gpt"
ORDER = [
    "assets",
    "common",
    "ops",
    "gpt_config",
    "config",
    "chat_messages",
    "chat_format",
    "tokenizer",
    "layers",
    "model",
    "config_file",
    "lora",
    "data",
    "conversations",
    "generation",
    "tinystories",
    "cli_options",
    "cli_verbs",
    "cli_recipe",
    "cli_serve",
    "cli_models",
    "cli",
    "checkpoints",
    "export",
    "sft_dataloader",
    "chat",
    "serve",
    "training",
    "prepare",
    "pretrain",
    "evaluation",
    "sft_train",
    "reports",
    "sft_generate",
    "quickstart",
    "recipe",
    "diagnostics",
]
TAKEN = {
    *("accelerate", "bitsandbytes", "dask", "datasets", "deepspeed", "distributed", "einops", "evaluate", "fastapi"),
    *(
        "fire",
        "flash_attn",
        "flask",
        "gguf",
        "gradio",
        "huggingface_hub",
        "jinja2",
        "jax",
        "keras",
        "lightning",
        "litgpt",
    ),
    *("llama_cpp", "lm_eval", "mlx", "mlx_lm", "nltk", "onnx", "onnxruntime", "openai", "optimum", "pandas", "peft"),
    *("pyarrow", "pytest", "ray", "requests", "sacrebleu", "safetensors", "scipy", "sentencepiece", "sklearn", "spacy"),
    *(
        "starlette",
        "tensorflow",
        "tokenizers",
        "torch",
        "torchao",
        "torchtune",
        "transformers",
        "triton",
        "trl",
        "unsloth",
    ),
    *("uvicorn", "vllm", "wandb", "xformers", "zstandard"),
}
"""Names of libraries that may be installed with this package; running a file of it puts its folder first on `sys.path`."""
MAX_LINES, MAX_FUNCTION_LINES = 400, 50


def modules() -> dict[str, Path]:
    """Dotted name inside the package -> file; a subpackage's `__init__` has the subpackage's own name."""
    files = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
    return {".".join(part for part in parts if part != "__init__") or "__init__": path for path, parts in files.items()}


def imports_of(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere but in a command's `main`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    in_main = {
        id(node)
        for function in tree.body
        if isinstance(function, ast.FunctionDef) and function.name == "main"
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in in_main:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            parent = (node.module or "").partition(".")[2]
            for alias in node.names:
                name = f"{parent}.{alias.name}" if parent else alias.name
                if name in known or parent:
                    yield name if name in known else parent
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2] for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")
            )


def problems(graph: dict[str, set[str]]) -> list[str]:
    """What is against the order, cycles, and names that libraries have."""
    found = []
    for module, imported in graph.items():
        if (place := module.split(".")[0]) not in ORDER:
            found.append(f"{module}: {place} has no place in ORDER")
            continue
        for name in sorted(imported):
            if (other := name.split(".")[0]) not in ORDER or ORDER.index(other) > ORDER.index(place):
                found.append(f"{module} imports {name}, which comes later in the order")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("import cycle: " + " -> ".join(error.args[1]))
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | TAKEN
    found += [f"{name}: a library has this name" for name in sorted({m.split(".")[0] for m in graph} & taken)]
    return found


def oversized(files: dict[str, Path]) -> list[str]:
    """Modules and functions that are too long to be about one subject."""
    found = []
    for name, path in files.items():
        source = path.read_text(encoding="utf-8")
        if (n_lines := source.count("\n")) > MAX_LINES:
            found.append(f"{name}: {n_lines} lines (at most {MAX_LINES})")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if n_lines > MAX_FUNCTION_LINES:
                    found.append(f"{name}.{node.name}: {n_lines} lines (a function has at most {MAX_FUNCTION_LINES})")
    return found


def main() -> int:
    """Print the graph and the problems."""
    files = modules()
    graph = {name: set(imports_of(path, set(files))) - {name} for name, path in files.items() if name != "__init__"}
    # `from package.sub import name` may mean the subpackage itself, whose lazy __init__ imports its own modules.
    graph = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
    places: dict[str, set[str]] = {}
    for name, imported in graph.items():
        place = name.split(".")[0]
        places.setdefault(place, set()).update(other.split(".")[0] for other in imported)
    lines = dict.fromkeys(places, 0)
    for name, path in files.items():
        if name != "__init__":
            lines[name.split(".")[0]] += path.read_text(encoding="utf-8").count("\n")
    position = {place: at for at, place in enumerate(ORDER)}
    for place in sorted(places, key=lambda place: position.get(place, -1)):
        used = sorted(places[place] - {place}, key=lambda place: position.get(place, -1))
        print(f"{place:<15} {lines[place]:>6} lines   imports {', '.join(used) or 'nothing'}")
    print(f"{'together':<15} {sum(lines.values()):>6} lines in {len(files)} modules")
    found = [*problems(graph), *oversized(files)]
    print("\n".join(["", *found]) if found else "no cycle, nothing against the order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

"""Every function of tensors in `ops/` and `model.py` says the shapes of its tensors."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mini_chat_gpt"
FILES = [PACKAGE / "model.py", *sorted((PACKAGE / "ops").glob("*.py"))]
TENSORS = re.compile(r"torch\.Tensor|\bRope\b|\bHeads\b|\bNf4Weight\b|\bLossSums\b")
SIZE = r"(?:\.\.\.|[^\s,()][^,()]*)"
# (R,) or (B, T, C) or (..., C) or (...); not the arguments of a call, not a source, not a pair (x1, x2)
SHAPE = re.compile(rf"(?<!\w)\((?!x1, |[^()]*(?:et al|arXiv))(?:{SIZE},|\.\.\.|{SIZE}(?:, {SIZE})+,?)\)")


def functions_of_tensors(path: Path) -> list[tuple[str, str]]:
    """(name, docstring or the comment of a stub) of the functions with a tensor in their signature."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg]
        annotations = [argument.annotation for argument in arguments if argument is not None] + [node.returns]
        if not any(annotation is not None and TENSORS.search(ast.unparse(annotation)) for annotation in annotations):
            continue
        is_stub = ast.unparse(node.body[0]) == "..."
        text = lines[node.lineno - 1] if is_stub else ast.get_docstring(node) or ""
        if node.name != "__init__":  # the class says what its tensors are
            found.append((node.name, text))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shapes_are_given(path):
    without = [name for name, text in functions_of_tensors(path) if not SHAPE.search(text)]
    assert not without, f"{path.name}: no shape such as (B, T, C) in the docstring of {', '.join(without)}"


def test_functions_of_tensors_are_found():
    assert {name for name, _ in functions_of_tensors(PACKAGE / "model.py")} >= {"qkv", "forward", "next_logits"}
    assert len([function for path in FILES for function in functions_of_tensors(path)]) > 50


@pytest.mark.parametrize("text", ["x (B, T, C)", "of (R,)", "(..., C) -> (...)", "(Hkv · N, H / Hkv, T, D)"])
def test_a_shape_is_recognized(text):
    assert SHAPE.search(text)


@pytest.mark.parametrize(
    "text", ["the norm (float32)", "call f(a, b)", "nothing ()", "(Hu et al. 2021, arXiv:2106.09685)", ""]
)
def test_other_parentheses_are_not_a_shape(text):
    assert not SHAPE.search(text)

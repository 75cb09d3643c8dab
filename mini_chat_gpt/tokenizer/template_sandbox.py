"""Render chat templates (Jinja) of unknown origin, without running any of their code in Python.

Jinja's own parser turns a template into a syntax tree, with the settings of `transformers`. The tree is evaluated here, node by node.
A template reaches only the values it is given and the functions in template_functions.py: there are no Python attributes to walk.

Each evaluated node, each item of a list and every 16 characters of a text cost one unit of work, counted before they are made. A template
that needs more than MAX_WORK is refused. So a render takes a bounded time and little memory, and the verdict is the same on every
machine, which a time limit could not guarantee.

Jinja's `ImmutableSandboxedEnvironment` hides attributes too, but limits neither time nor memory, and it can't tell which parts of the
output depend on the contents (see template_values.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from mini_chat_gpt.tokenizer.template_expressions import MAX_WORK, Expressions, Loop, Macro, Namespace, Scope
from mini_chat_gpt.tokenizer.template_functions import items_of
from mini_chat_gpt.tokenizer.template_values import Part, Raised, TemplateError, Text, join, printed, size_of, truth

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

MAX_SOURCE = 1 << 18
"""Characters of a template. Published ones have up to 20,000."""
_PYTHON_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks replies for transformers' masks, is printed as it is."""

        tags = {"generation"}  # noqa: RUF012 (as in the base class)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template. Raises TemplateError."""
    from jinja2 import TemplateSyntaxError

    if len(source) > MAX_SOURCE:
        raise TemplateError(f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escapes in the template's texts
            environment = _environment()
            tree = environment.parse(source)
            _require_known_names(tree, environment, in_if=False)
            return tree
    except TemplateSyntaxError as error:
        raise TemplateError(
            f"line {error.lineno} is not valid Jinja ({str(error.message)[:100].rstrip('.')})"
        ) from None
    except _PYTHON_ERRORS as error:
        raise TemplateError(f"it is not valid Jinja ({type(error).__name__})") from None


def _require_known_names(node: nodes.Node, environment: Environment, in_if: bool) -> None:
    """Raise TemplateError for a filter or test that Jinja doesn't know, also where it is never reached: Jinja refuses such a template.

    As in Jinja, those directly inside an `if` (not of a loop or macro in it) may be unknown until they are reached.
    """
    from jinja2 import nodes

    if isinstance(node, nodes.Filter | nodes.Test) and not in_if:
        kind, known = ("filter", environment.filters) if isinstance(node, nodes.Filter) else ("test", environment.tests)
        if node.name not in known:
            raise TemplateError(f"line {node.lineno} is not valid Jinja (there is no {kind} {node.name[:40]!r})")
    if isinstance(node, nodes.If | nodes.CondExpr):
        in_if = True
    elif isinstance(node, nodes.For):
        _require_known_names(node.iter, environment, in_if)
        in_if = False
    elif isinstance(
        node, nodes.Macro | nodes.CallBlock | nodes.FilterBlock | nodes.With | nodes.AssignBlock | nodes.Scope
    ):
        in_if = False
    for child in node.iter_child_nodes(exclude=("iter",)):
        _require_known_names(child, environment, in_if)


def evaluate(tree: nodes.Template, variables: Mapping[str, Any], today: date) -> tuple[tuple[Part, ...], bool]:
    """What a template prints, and whether it printed a date. `variables` are plain values and `Text`; `today` is for strftime_now.

    Raises TemplateError: `ReadsContent` if the output would depend on a content, `Raised` if the template calls raise_exception().
    """
    run = _Statements(today)
    try:
        text = run.capture(tree.body, Scope(None, dict(variables)))
    except TemplateError as error:
        if not isinstance(error, Raised):
            error.args = (f"line {run.line}: {error}",)
        raise
    except (_Break, _Continue):
        raise TemplateError(f"line {run.line}: break or continue outside of a loop") from None
    except _PYTHON_ERRORS as error:
        raise TemplateError(f"line {run.line}: it can't be evaluated ({type(error).__name__})") from None
    return (text.parts if isinstance(text, Text) else (text,) if text else ()), run.used_date


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Statements(Expressions):
    """One evaluation of a template."""

    def capture(self, body: list[nodes.Node], scope: Scope) -> str | Text:
        """What statements print."""
        output: list[str | Text] = []
        self.run(body, scope, output)
        self.charge(len(output))
        return join(output)

    def run(self, body: list[nodes.Node], scope: Scope, output: list[str | Text]) -> None:
        """Run statements. What they print is appended to `output`."""
        for node in body:
            self.charge(1)
            self.line = node.lineno or self.line
            kind = type(node).__name__.lower()
            if (handler := getattr(self, f"run_{kind}", None)) is None:
                raise TemplateError(f"it uses a statement ({kind}) that chat templates can't use here")
            handler(node, scope, output)

    def run_output(self, node: nodes.Output, scope: Scope, output: list[str | Text]) -> None:
        for one in node.nodes:
            text = printed(self.value(one, scope))
            self.charge(size_of(text, MAX_WORK))
            output.append(text)

    def run_if(self, node: nodes.If, scope: Scope, output: list[str | Text]) -> None:
        for branch in (node, *node.elif_):
            if truth(self.value(branch.test, scope)):
                return self.run(branch.body, scope, output)
        return self.run(node.else_, scope, output)

    def run_for(self, node: nodes.For, scope: Scope, output: list[str | Text]) -> None:
        if node.recursive:
            raise TemplateError("it has a recursive loop, which templates can't use here")
        items = items_of(self.value(node.iter, scope), self.charge)
        if node.test is not None:
            items = [item for item in items if truth(self.value(node.test, self._bound(node.target, item, scope)))]
        loop = Loop(items)
        for loop.index0, item in enumerate(items):
            self.charge(1)
            inner = self._bound(node.target, item, scope)
            inner.variables["loop"] = loop
            try:
                self.run(node.body, inner, output)
            except _Continue:
                continue
            except _Break:
                break
        if not items:
            self.run(node.else_, scope, output)

    def run_break(self, node: nodes.Node, scope: Scope, output: list[str | Text]) -> None:
        raise _Break

    def run_continue(self, node: nodes.Node, scope: Scope, output: list[str | Text]) -> None:
        raise _Continue

    def run_assign(self, node: nodes.Assign, scope: Scope, output: list[str | Text]) -> None:
        self.assign(node.target, self.value(node.node, scope), scope)

    def run_assignblock(self, node: nodes.AssignBlock, scope: Scope, output: list[str | Text]) -> None:
        text: Any = self.capture(node.body, Scope(scope, {}))
        self.assign(node.target, text if node.filter is None else self._filtered(node.filter, text, scope), scope)

    def run_filterblock(self, node: nodes.FilterBlock, scope: Scope, output: list[str | Text]) -> None:
        output.append(printed(self._filtered(node.filter, self.capture(node.body, Scope(scope, {})), scope)))

    def _filtered(self, node: nodes.Filter, text: Any, scope: Scope) -> Any:
        """The text of a block after its filters, the first of which is the innermost node."""
        inner = text if node.node is None else self._filtered(cast("nodes.Filter", node.node), text, scope)
        return self.filter(node, inner, scope)

    def run_macro(self, node: nodes.Macro, scope: Scope, output: list[str | Text]) -> None:
        scope.variables[node.name] = Macro(node, node.name, scope)

    def run_callblock(self, node: nodes.CallBlock, scope: Scope, output: list[str | Text]) -> None:
        output.append(printed(self.call(node.call, scope, caller=Macro(node, "caller", scope))))

    def run_scope(self, node: nodes.Scope, scope: Scope, output: list[str | Text]) -> None:
        self.run(node.body, Scope(scope, {}), output)

    def run_with(self, node: nodes.With, scope: Scope, output: list[str | Text]) -> None:
        inner = Scope(scope, {})
        for target, value in zip(node.targets, node.values, strict=True):
            self.assign(target, self.value(value, scope), inner)
        self.run(node.body, inner, output)

    def run_exprstmt(self, node: nodes.ExprStmt, scope: Scope, output: list[str | Text]) -> None:
        self.value(node.node, scope)

    def assign(self, target: nodes.Node, value: Any, scope: Scope) -> None:
        """Assign to a name, a tuple of names, or an attribute of a namespace."""
        kind = type(target).__name__
        if kind == "NSRef":
            reference = cast("nodes.NSRef", target)
            namespace = scope.find(reference.name)
            if not isinstance(namespace, Namespace):
                raise TemplateError(
                    f"it sets {reference.name}.{reference.attr}, but {reference.name} is not a namespace"
                )
            namespace.values[reference.attr] = value
        elif kind == "Tuple":
            names, values = cast("nodes.Tuple", target).items, items_of(value, self.charge)
            for name, one in zip(names, values, strict=True):
                self.assign(name, one, scope)
        else:
            scope.variables[cast("nodes.Name", target).name] = value

    def _bound(self, target: nodes.Node, item: Any, scope: Scope) -> Scope:
        inner = Scope(scope, {})
        self.assign(target, item, inner)
        return inner

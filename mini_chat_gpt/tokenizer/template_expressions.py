"""Evaluate the expressions of a chat template; see template_sandbox.py."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, cast

from mini_chat_gpt.tokenizer.template_functions import call_filter, call_method, has_method, item_of, passes
from mini_chat_gpt.tokenizer.template_values import (
    UNDEFINED,
    Data,
    Raised,
    ReadsContent,
    TemplateError,
    Text,
    contains,
    equal,
    join,
    kind_of,
    printed,
    size_of,
    truth,
)

if TYPE_CHECKING:
    from jinja2 import nodes

MAX_WORK = 400_000
"""Units of work of a render, about a second. A usual template needs 50 for a message."""
MAX_INTEGER = 1 << 63
FUNCTIONS = ("raise_exception", "strftime_now", "range", "namespace", "dict")


class Scope:
    """Variables. Loops, macros and `with` have their own, in which assignments stay."""

    def __init__(self, parent: Scope | None, variables: dict[str, Any]) -> None:
        self.parent, self.variables = parent, variables

    def find(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name]
            scope = scope.parent
        return Function(name) if name in FUNCTIONS else UNDEFINED


class Function:
    """A function that templates can call by its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Method:
    """`value.name` of which nothing but a call is known."""

    def __init__(self, value: Any, name: str) -> None:
        self.value, self.name = value, name


class Namespace:
    """namespace(): attributes that can be assigned from an inner scope."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


class Macro:
    """A macro or the body of a call block."""

    def __init__(self, node: nodes.Macro | nodes.CallBlock, name: str, scope: Scope) -> None:
        self.node, self.name, self.scope = node, name, scope


class Loop:
    """The variable `loop`."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.index0 = items, -1

    def attribute(self, name: str) -> Any:
        at, n = self.index0, len(self.items)
        values: dict[str, Any] = {
            "index": at + 1,
            "index0": at,
            "length": n,
            "revindex": n - at,
            "revindex0": n - at - 1,
        }
        values |= {"first": at == 0, "last": at == n - 1, "depth": 1, "depth0": 0}
        values["previtem"] = self.items[at - 1] if at else UNDEFINED
        values["nextitem"] = self.items[at + 1] if at + 1 < n else UNDEFINED
        if name in ("cycle", "changed"):
            raise TemplateError(f"it uses loop.{name}, which templates can't use here")
        return values.get(name, UNDEFINED)


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": equal,
    "ne": lambda left, right: not equal(left, right),
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: contains(right, left),
    "notin": lambda left, right: not contains(right, left),
}


class Expressions:
    """One evaluation of a template: its expressions. `capture` is that of the statements."""

    def __init__(self, today: date) -> None:
        self.today, self.used_date = today, False
        self.work, self.line = MAX_WORK, 1

    def charge(self, size: int) -> None:
        """Count work before it is done. Raises TemplateError if it is too much."""
        self.work -= size
        if self.work < 0:
            raise TemplateError("it takes too long or prints too much")

    def capture(self, body: list[nodes.Node], scope: Scope) -> str | Text:
        """What statements print."""
        raise NotImplementedError

    def value(self, node: nodes.Node, scope: Scope) -> Any:
        """The value of an expression."""
        self.charge(1)
        self.line = node.lineno or self.line
        kind = type(node).__name__.lower()
        if kind in _ARITHMETIC:
            binary = cast("nodes.BinExpr", node)
            return self.arithmetic(kind, self.value(binary.left, scope), self.value(binary.right, scope))
        if (handler := getattr(self, f"value_{kind}", None)) is None:
            raise TemplateError(f"it uses an expression ({kind}) that chat templates can't use here")
        return handler(node, scope)

    def value_const(self, node: nodes.Const, scope: Scope) -> Any:
        return node.value

    def value_templatedata(self, node: nodes.TemplateData, scope: Scope) -> str:
        return node.data

    def value_name(self, node: nodes.Name, scope: Scope) -> Any:
        return scope.find(node.name)

    def value_list(self, node: nodes.List, scope: Scope) -> list[Any]:
        return [self.value(item, scope) for item in node.items]

    value_tuple = value_list

    def value_dict(self, node: nodes.Dict, scope: Scope) -> dict[str, Any]:
        pairs = [(self.value(pair.key, scope), self.value(pair.value, scope)) for pair in node.items]
        if not all(isinstance(key, str) for key, _ in pairs):
            raise TemplateError("it has a mapping with keys other than texts")
        return dict(pairs)

    def value_condexpr(self, node: nodes.CondExpr, scope: Scope) -> Any:
        if truth(self.value(node.test, scope)):
            return self.value(node.expr1, scope)
        return UNDEFINED if node.expr2 is None else self.value(node.expr2, scope)

    def value_not(self, node: nodes.Not, scope: Scope) -> bool:
        return not truth(self.value(node.node, scope))

    def value_and(self, node: nodes.And, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        return self.value(node.right, scope) if truth(left) else left

    def value_or(self, node: nodes.Or, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        return left if truth(left) else self.value(node.right, scope)

    def value_neg(self, node: nodes.Neg, scope: Scope) -> Any:
        return self.arithmetic("sub", 0, self.value(node.node, scope))

    def value_pos(self, node: nodes.Pos, scope: Scope) -> Any:
        return self.arithmetic("add", 0, self.value(node.node, scope))

    def value_compare(self, node: nodes.Compare, scope: Scope) -> bool:
        left = self.value(node.expr, scope)
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            self.charge(size_of(left, MAX_WORK) + size_of(right, MAX_WORK))
            if not _COMPARISONS[operand.op](left, right):
                return False
            left = right
        return True

    def value_concat(self, node: nodes.Concat, scope: Scope) -> str | Text:
        texts = [printed(self.value(one, scope)) for one in node.nodes]
        self.charge(size_of(texts, MAX_WORK))
        return join(texts)

    def arithmetic(self, kind: str, left: Any, right: Any) -> Any:
        """`left + right` and the other operators, for numbers; + and * for texts and lists too."""
        texts = isinstance(left, str | Text), isinstance(right, str | Text)
        if kind == "add" and all(texts):
            self.charge(size_of(left, MAX_WORK) + size_of(right, MAX_WORK))
            return join([left, right])
        if kind == "add" and isinstance(left, list) and isinstance(right, list):
            self.charge((len(left) + len(right)) // 4)
            return left + right
        if kind == "mul" and isinstance(left, str | list) and isinstance(right, int):
            self.charge(len(left) * max(0, right) // 4)
            return left * right
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise TemplateError(f"it combines {kind_of(left)} and {kind_of(right)} ({kind})")
        if kind == "pow" and abs(right) > 64:
            raise TemplateError("it raises a number to a power above 64")
        result = _ARITHMETIC[kind](left, right)
        if isinstance(result, complex) or abs(result) > MAX_INTEGER:
            raise TemplateError("it computes a number that is too large")
        return result

    def value_getattr(self, node: nodes.Getattr, scope: Scope) -> Any:
        value = self.value(node.node, scope)
        if node.attr.startswith("_"):
            raise TemplateError(f"it takes the attribute {node.attr!r}, which could reach Python's internals")
        if isinstance(value, Loop):
            return value.attribute(node.attr)
        if isinstance(value, Namespace):
            return value.values.get(node.attr, UNDEFINED)
        if isinstance(value, Data):
            raise ReadsContent
        if has_method(value, node.attr):
            return Method(value, node.attr)
        if isinstance(value, Mapping) or value is UNDEFINED or value is None:
            return item_of(value, node.attr) if value is not None else UNDEFINED
        return UNDEFINED

    def value_getitem(self, node: nodes.Getitem, scope: Scope) -> Any:
        value = self.value(node.node, scope)
        if type(node.arg).__name__ != "Slice":
            key = self.value(node.arg, scope)
            if isinstance(value, Namespace):
                return value.values.get(key, UNDEFINED)
            return item_of(value, key)
        part = cast("nodes.Slice", node.arg)
        ends = [None if one is None else self.value(one, scope) for one in (part.start, part.stop, part.step)]
        if isinstance(value, Text):
            if ends[0] is None and isinstance(ends[1], int) and ends[1] < 0 and ends[2] is None:
                return value.without_end(-ends[1])
            raise ReadsContent
        if not isinstance(value, str | list | range):
            raise TemplateError(f"it takes a part of {kind_of(value)}")
        self.charge(len(value) // 4)
        return value[slice(*ends)]

    def value_filter(self, node: nodes.Filter, scope: Scope) -> Any:
        return self.filter(node, self.value(cast("nodes.Node", node.node), scope), scope)

    def filter(self, node: nodes.Filter, value: Any, scope: Scope) -> Any:
        """`value | filter(...)`."""
        arguments, named = self.arguments(node, scope)
        self.charge(_shallow(value))
        return call_filter(node.name, value, arguments, named, self.charge)

    def value_test(self, node: nodes.Test, scope: Scope) -> bool:
        arguments, _ = self.arguments(node, scope)
        value = self.value(node.node, scope)
        self.charge(size_of([value, *arguments], MAX_WORK) if arguments else 1)
        return passes(node.name, value, arguments)

    def arguments(self, node: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call, filter or test: by position and by name."""
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise TemplateError("it unpacks arguments with *, which templates can't do here")
        positional = [self.value(one, scope) for one in node.args]
        return positional, {one.key: self.value(one.value, scope) for one in node.kwargs}

    def value_call(self, node: nodes.Call, scope: Scope) -> Any:
        return self.call(node, scope)

    def call(self, node: nodes.Call, scope: Scope, caller: Macro | None = None) -> Any:
        """Call a function, a method or a macro."""
        function = self.value(node.node, scope)
        arguments, named = self.arguments(node, scope)
        if isinstance(function, Macro):
            return self.call_macro(function, arguments, named, caller)
        if isinstance(function, Method):
            self.charge(4 * _shallow(function.value) + sum(map(_shallow, arguments)))
            return call_method(function.value, function.name, [*arguments, *named.values()], self.charge)
        if isinstance(function, Function):
            return getattr(self, f"call_{function.name}")(*arguments, **named)
        name = getattr(node.node, "name", getattr(node.node, "attr", "a value"))
        raise TemplateError(f"it calls {name}, which is not a function that templates can use here")

    def call_macro(self, macro: Macro, arguments: list[Any], named: dict[str, Any], caller: Macro | None) -> str | Text:
        scope, node = Scope(macro.scope, {}), macro.node
        names = [one.name for one in node.args]
        if len(arguments) > len(names) or not named.keys() <= {*names}:
            raise TemplateError(f"it calls {macro.name}() with arguments that it does not have")
        given = dict(zip(names, arguments, strict=False)) | named
        first_default = len(names) - len(node.defaults)
        for number, name in enumerate(names):
            if name not in given and number >= first_default:
                given[name] = self.value(node.defaults[number - first_default], scope)
            scope.variables[name] = given.get(name, UNDEFINED)
        if caller is not None:
            scope.variables["caller"] = caller
        return self.capture(node.body, scope)

    def call_raise_exception(self, message: Any = "") -> None:
        raise Raised(str(printed(message))[:300])

    def call_strftime_now(self, form: str) -> str:
        if len(form) > 100 or re.search(r"%-?[^A-Za-z%-]", form):
            raise TemplateError("it prints a date in a form that is not supported")
        self.used_date = True
        return datetime.combine(self.today, time()).strftime(form)

    def call_range(self, *ends: int) -> range:
        numbers = range(*ends)
        self.charge(min(len(numbers), MAX_WORK * 8) // 4)
        return numbers

    def call_namespace(self, *mappings: Mapping[str, Any], **values: Any) -> Namespace:
        return Namespace(self.call_dict(*mappings, **values))

    def call_dict(self, *mappings: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for mapping in mappings:
            result |= mapping
        self.charge(len(result) + len(values))
        return result | values


def _shallow(value: Any) -> int:
    """Cost of reading a value without what is inside its items."""
    if isinstance(value, str):
        return len(value) // 16
    return len(value) // 4 if isinstance(value, list | Mapping | range) else 0

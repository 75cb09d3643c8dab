"""The filters, tests and methods that chat templates may use. There are no others: nothing of Python is reachable by name.

Each function gets plain values (see template_values.py). The sandbox has charged for reading them; a function whose result can be much
larger than its arguments charges for the result with `charge(size)` before it makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mini_chat_gpt.tokenizer.template_json import tojson
from mini_chat_gpt.tokenizer.template_values import (
    LIMIT,
    UNDEFINED,
    Data,
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

Charge = Callable[[int], None]
BOTH = ("lstrip", "rstrip")


# Items and methods of texts, lists and mappings


def items_of(value: Any, charge: Charge) -> list[Any]:
    """What a loop over `value` goes through."""
    if value is UNDEFINED:
        return []
    if isinstance(value, str | list | tuple | range | Mapping):
        charge(len(value) // 4)
        return list(value)
    if isinstance(value, Text | Data):
        raise ReadsContent
    raise TemplateError(f"it loops over {kind_of(value)}")


def item_of(value: Any, key: Any) -> Any:
    """`value[key]`, UNDEFINED if there is none."""
    if isinstance(value, Mapping):
        return value.get(key, UNDEFINED) if isinstance(key, str | int | float) else UNDEFINED
    if isinstance(value, Text | Data):
        raise ReadsContent
    if isinstance(value, str | list | tuple | range) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else UNDEFINED
    if value is UNDEFINED:
        raise TemplateError("it takes an item of an undefined value")
    return UNDEFINED


def replaced(text: str, old: str, new: str, count: int, charge: Charge) -> str:
    """`text.replace(old, new, count)`."""
    n = len(text) + 1 if old == "" else text.count(old)
    charge((n if count < 0 else min(n, count)) * len(new) // 16)
    return text.replace(old, new, count)


def strip_method(name: str) -> Callable[..., Any]:
    """The method strip, lstrip or rstrip, also for texts with a content in them."""
    sides = BOTH if name == "strip" else (name,)

    def strip(text: str | Text, characters: str | None = None) -> str | Text:
        if isinstance(text, Text):
            return text.stripped(sides, characters)
        result: str = getattr(text, name)(characters)
        return result

    return strip


def _plain_method(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def call(text: Any, *arguments: Any) -> Any:
        # startswith() and endswith() take tuples, which are lists here.
        return method(_text(text), *(tuple(one) if isinstance(one, list) else one for one in arguments))

    return call


def _text(value: Any) -> str:
    if isinstance(value, Text):
        value._read()
    if not isinstance(value, str):
        raise TemplateError(f"it treats {kind_of(value)} as a text")
    return value


TEXT_METHODS: dict[str, Callable[..., Any]] = {
    **{name: strip_method(name) for name in ("strip", "lstrip", "rstrip")},
    **{
        name: _plain_method(name)
        for name in (
            *("startswith", "endswith", "upper", "lower", "title", "capitalize", "split", "rsplit", "splitlines"),
            *("find", "rfind", "index", "count", "removeprefix", "removesuffix", "isdigit", "isspace"),
        )
    },
}
WHERE_ABSENT: dict[str, Callable[[Text], Any]] = {
    **dict.fromkeys(("startswith", "endswith"), lambda text: False),
    **dict.fromkeys(("split", "rsplit"), lambda text: [text]),
    **dict.fromkeys(("replace", "removeprefix", "removesuffix"), lambda text: text),
    **dict.fromkeys(("find", "rfind"), lambda text: -1),
    "count": lambda text: 0,
}
"""What methods return whose first argument is not in the text."""
MAPPING_METHODS: dict[str, Callable[..., Any]] = {
    "items": lambda mapping: [list(pair) for pair in mapping.items()],
    "keys": lambda mapping: list(mapping),
    "values": lambda mapping: list(mapping.values()),
    "get": lambda mapping, key, default=None: mapping.get(key, default),
}


def call_method(value: Any, name: str, arguments: list[Any], charge: Charge) -> Any:
    """`value.name(*arguments)`."""
    if isinstance(value, Text) and name in WHERE_ABSENT:
        needle = arguments[0] if arguments else None
        if not all(
            isinstance(one, str) and value.lacks(one) for one in (needle if isinstance(needle, list) else [needle])
        ):
            raise ReadsContent
        return WHERE_ABSENT[name](value)
    if isinstance(value, str) and name == "replace":
        old, new, count = (*arguments, -1)[:3]
        return replaced(value, _text(old), _text(new), count, charge)
    if isinstance(value, str) and name == "join":
        return FILTERS["join"](charge, arguments[0], value)
    methods = TEXT_METHODS if isinstance(value, str | Text) else MAPPING_METHODS if isinstance(value, Mapping) else {}
    if (method := methods.get(name)) is None:
        if isinstance(value, Text):
            value._read()
        raise TemplateError(f"it calls {name}() of {kind_of(value)}, which templates can't use here")
    return method(value, *arguments)


def has_method(value: Any, name: str) -> bool:
    """Whether `value.name` is a method."""
    if isinstance(value, str | Text) and name in ("replace", "join"):
        return True
    return name in (
        TEXT_METHODS if isinstance(value, str | Text) else MAPPING_METHODS if isinstance(value, Mapping) else ()
    )


# Filters: each gets `charge`, the value and the arguments


def _join(charge: Charge, values: Any, separator: Any = "", attribute: Any = None) -> str | Text:
    parts = [printed(value if attribute is None else path_of(value, attribute)) for value in items_of(values, charge)]
    separator = printed(separator)
    charge(size_of(separator, LIMIT) * len(parts) + size_of(parts, LIMIT))
    between = [part for one in parts for part in (separator, one)][1:]
    return join(between)


def path_of(value: Any, attribute: Any) -> Any:
    """`value.attribute`, where the attribute can be a path such as "function.name"."""
    for name in str(attribute).split("."):
        value = item_of(value, int(name) if name.isdigit() else name)
    return value


def _selected(
    charge: Charge, values: Any, keep: bool, name: str | None, test: str, arguments: tuple[Any, ...]
) -> list[Any]:
    """The values, or those with an attribute, that pass (or fail) a test."""
    selected = []
    for value in items_of(values, charge):
        tested = value if name is None else path_of(value, name)
        charge(size_of([tested, *arguments], LIMIT))
        if passes(test, tested, list(arguments)) == keep:
            selected.append(value)
    return selected


def passes(test: str, value: Any, arguments: list[Any]) -> bool:
    """`value is test(*arguments)`."""
    if test not in TESTS:
        raise TemplateError(f"it uses the test {test!r}, which templates can't use here")
    return bool(TESTS[test](value, *arguments))


def _map(charge: Charge, values: Any, *arguments: Any, attribute: Any = None, default: Any = UNDEFINED) -> list[Any]:
    results = []
    for value in items_of(values, charge):
        if attribute is None:
            results.append(call_filter(arguments[0], value, list(arguments[1:]), {}, charge))
        else:
            item = path_of(value, attribute)
            results.append(default if item is UNDEFINED else item)
    return results


def _sorted(
    charge: Charge, values: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    def key(value: Any) -> Any:
        value = value if attribute is None else path_of(value, attribute)
        return value if case_sensitive or not isinstance(value, str) else value.lower()

    items = items_of(values, charge)
    charge(20 * size_of(items, LIMIT))  # at most 20 comparisons of each
    return sorted(items, key=key, reverse=reverse)


def _indent(charge: Charge, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    pad = " " * min(width, 1000) if isinstance(width, int) else _text(width)
    text = _text(text)
    charge(text.count("\n") * len(pad) // 16)
    lines = (text + "\n").splitlines()
    begin, *rest = lines or [""]
    return "\n".join([(pad if first else "") + begin, *(pad + line if line or blank else line for line in rest)])


def _length(charge: Charge, value: Any) -> int:
    if value is UNDEFINED:
        return 0
    if value is None or isinstance(value, int | float):
        raise TemplateError(f"it takes the length of {kind_of(value)}")
    if isinstance(value, Data):
        raise ReadsContent
    return value.length() if isinstance(value, Text) else len(value)


def _default(charge: Charge, value: Any, default: Any = "", boolean: bool = False) -> Any:
    return default if value is UNDEFINED or (boolean and not truth(value)) else value


def _unique(charge: Charge, values: Any) -> list[Any]:
    results: list[Any] = []
    for value in items_of(values, charge):
        charge(size_of(results, LIMIT) + size_of(value, LIMIT))
        if not contains(results, value):
            results.append(value)
    return results


def _dictsort(charge: Charge, value: Any) -> list[Any]:
    pairs: list[Any] = MAPPING_METHODS["items"](value)
    return sorted(pairs, key=lambda pair: pair[0])


def _number(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def convert(charge: Charge, value: Any, default: Any = 0) -> Any:
        try:
            return make(_text(value) if isinstance(value, str | Text) else value)
        except (ValueError, TypeError):
            return default

    return convert


def _selector(keep: bool) -> Callable[..., list[Any]]:
    def select(charge: Charge, values: Any, test: str = "true_value", *arguments: Any) -> list[Any]:
        return _selected(charge, values, keep, None, test, arguments)

    return select


def _attribute_selector(keep: bool) -> Callable[..., list[Any]]:
    def select(charge: Charge, values: Any, name: str, test: str = "true_value", *arguments: Any) -> list[Any]:
        return _selected(charge, values, keep, name, test, arguments)

    return select


FILTERS: dict[str, Callable[..., Any]] = {
    "trim": lambda charge, value, characters=None: strip_method("strip")(printed(value), characters),
    "string": lambda charge, value: printed(value),
    "safe": lambda charge, value: printed(value),
    "length": _length,
    "count": _length,
    "default": _default,
    "d": _default,
    "join": _join,
    "tojson": tojson,
    "upper": lambda charge, value: _text(printed(value)).upper(),
    "lower": lambda charge, value: _text(printed(value)).lower(),
    "capitalize": lambda charge, value: _text(printed(value)).capitalize(),
    "replace": lambda charge, value, old, new, count=-1: (
        call_method(value, "replace", [old, new, count], charge)
        if isinstance(value, Text)
        else replaced(_text(value), _text(old), _text(new), count, charge)
    ),
    "first": lambda charge, value: next(iter(items_of(value, charge)), UNDEFINED),
    "last": lambda charge, value: next(reversed(items_of(value, charge)), UNDEFINED),
    "list": lambda charge, value: items_of(value, charge),
    "reverse": lambda charge, value: value[::-1] if isinstance(value, str) else items_of(value, charge)[::-1],
    "items": lambda charge, value: [] if value is UNDEFINED else MAPPING_METHODS["items"](value),
    "int": _number(int),
    "float": _number(float),
    "abs": lambda charge, value: abs(value),
    "map": _map,
    "select": _selector(True),
    "reject": _selector(False),
    "selectattr": _attribute_selector(True),
    "rejectattr": _attribute_selector(False),
    "indent": _indent,
    "sort": _sorted,
    "unique": _unique,
    "dictsort": _dictsort,
}


def call_filter(name: str, value: Any, arguments: list[Any], named: Mapping[str, Any], charge: Charge) -> Any:
    """`value | name(*arguments, **named)`."""
    if name not in FILTERS:
        raise TemplateError(f"it uses the filter {name!r}, which templates can't use here")
    return FILTERS[name](charge, value, *arguments, **named)


def _is_in(value: Any, container: Any) -> bool:
    return contains(container, value)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_number(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "eq": equal,
    "ne": lambda left, right: not equal(left, right),
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
}
_NAMES: dict[str, Iterable[str]] = {
    "eq": ("==", "equalto"),
    "ne": ("!=",),
    "lt": ("<", "lessthan"),
    "le": ("<=",),
    "gt": (">", "greaterthan"),
    "ge": (">=",),
}
TESTS: dict[str, Callable[..., bool]] = {
    **_ORDER,
    **{other: _ORDER[name] for name, others in _NAMES.items() for other in others},
    "true_value": truth,
    "defined": lambda value: value is not UNDEFINED,
    "undefined": lambda value: value is UNDEFINED,
    "none": lambda value: value is None,
    "string": _is(str, Text),
    "mapping": lambda value: value.is_mapping if isinstance(value, Data) else isinstance(value, Mapping),
    "sequence": _is(str, Text, Data, list, tuple, range, Mapping),
    "iterable": lambda value: value is UNDEFINED or _is(str, Text, Data, list, tuple, range, Mapping)(value),
    "number": _is(int, float),
    "integer": _is_number(int),
    "float": _is_number(float),
    "boolean": _is(bool),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "in": _is_in,
    "odd": lambda value: value % 2 == 1,
    "even": lambda value: value % 2 == 0,
    "divisibleby": lambda value, number: value % number == 0,
}

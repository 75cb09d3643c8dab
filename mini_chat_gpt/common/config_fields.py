"""Which fields of a model's config a part of the program implements.

A decoder, an exporter or the compiler may implement only some of the fields of `GPTConfig`. It declares them, with the values
that it handles. Every other field must have its default value; otherwise that part steps aside: it leaves the work to
`GPT.forward`, or refuses with a sentence. So a field that is added to `GPTConfig` later is never ignored without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

ANY = None
"""Every value of a field is implemented."""

Implemented = dict[str, Collection[Any] | None]

SIZES: Implemented = dict.fromkeys(
    (
        "vocab_size", "context_length", "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "intermediate_size",
    ),
    ANY,
)  # fmt: skip
"""The fields of `GPTConfig` that are numbers of rows, columns, heads and layers."""


def unsupported_fields(config: BaseModel, implemented: Implemented) -> list[str]:
    """The fields of `config`, as "name=value", that are neither implemented with this value nor at their default."""
    fields = type(config).model_fields
    unsupported = []
    for name, value in config:
        if value == fields[name].get_default(call_default_factory=True):
            continue
        values = implemented.get(name, ())
        if values is not ANY and value not in values:
            unsupported.append(f"{name}={value!r}")
    return unsupported


def why_not_expressible(
    config: BaseModel, name: str, implemented: Implemented, always: Mapping[str, Any]
) -> str | None:
    """Why a family can't express `config`, or None: it implements some fields, and has others `always` with one value."""
    if fields := unsupported_fields(config, implemented | {field: {value} for field, value in always.items()}):
        return f"{name} does not support {', '.join(fields)}"
    if differing := [field for field, value in always.items() if getattr(config, field) != value]:
        return f"{name} always has {differing[0]}={always[differing[0]]!r}"
    return None

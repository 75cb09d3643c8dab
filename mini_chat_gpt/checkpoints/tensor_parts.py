"""Where the tensors of a model are in a file of another form: whole, as rows of a joined tensor, or transposed; both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mini_chat_gpt.config import GPTConfig


@dataclass(frozen=True)
class Part:
    """Where one of our tensors is: a tensor of the file, and which rows of it are ours."""

    source: str
    first: int = 0
    """Our first row in the tensor of the file."""
    n_rows: int | None = None
    """The number of our rows, if the tensor of the file has others as well."""
    of_rows: int | None = None
    """All rows of the tensor of the file, if it has others as well."""
    transposed: bool = False
    """The file has (columns, rows)."""
    convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What is to be done with the values that were read. Such a part is only for reading."""

    @property
    def is_whole(self) -> bool:
        """Whether the tensor of the file is ours as it is."""
        return self.n_rows is None and not self.transposed and self.convert is None

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the tensor in the file, for our tensor of this shape."""
        stored = (shape[0] if self.of_rows is None else self.of_rows, *shape[1:])
        return stored[::-1] if self.transposed else stored

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """Our tensor, contiguous, from that of the file."""
        rows = stored.T if self.transposed else stored
        if self.n_rows is not None:
            rows = rows[self.first : self.first + self.n_rows]
        return (rows if self.convert is None else self.convert(rows)).contiguous()


PartOf = Callable[[str, GPTConfig], Part]
"""Our name of a tensor -> where it is."""


def sources(names: Iterable[str], part_of: PartOf, config: GPTConfig) -> dict[str, list[tuple[str, Part]]]:
    """The names of the tensors of a file -> our tensors that each of them holds, in the order of their rows."""
    held: dict[str, list[tuple[str, Part]]] = {}
    for name in names:
        part = part_of(name, config)
        held.setdefault(part.source, []).append((name, part))
    return {source: sorted(parts, key=lambda item: item[1].first) for source, parts in held.items()}


def stored_shapes(
    shapes: Mapping[str, Sequence[int]], part_of: PartOf, config: GPTConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a file, for our tensors of these shapes."""
    parts = {name: part_of(name, config) for name in shapes}
    return {part.source: part.stored_shape(shapes[name]) for name, part in parts.items()}


def join(tensors: Sequence[torch.Tensor], transposed: bool) -> torch.Tensor:
    """The tensor of a file that holds these of ours, one below the other; a copy, contiguous."""
    rows = torch.cat(list(tensors))
    return rows.T.contiguous() if transposed else rows

"""Concatenate examples into packed batches, which training, validation and scoring share.

A batch is one row of tokens, padded at its end only. `positions` start at 0 in every example, every example has at least one target,
and a label is always predicted from the token before it in the same example.

    ids               a0 a1 a2 | b0 b1 b2 b3      two examples; cu_seqlens = (0, 3, 7)
    positions          0  1  2 |  0  1  2  3
    loss_mask          .  .  x |  .  x  x  x
    target_positions      1    |  3  4  5         the tokens to predict from; labels = a2, b1, b2, b3

Conversations that begin with the same tokens can be the branches of one example (`share_prefix`): the prefix is computed once,
and each branch attends to the prefix and to itself. Losses and gradients are those of separate examples.

    ids               a0 a1 a2 b3 b4 c3           conversations a0 a1 a2 b3 b4 and a0 a1 a2 c3; prefix_branches = (3, 5)
    positions          0  1  2  3  4  3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from mini_chat_gpt.ops.loss import IGNORE_INDEX
from mini_chat_gpt.ops.packed_layout import positions_of

# A kernel is prepared once for each shape. Rounded sizes have few shapes: on a CPU that takes a tenth of the time and saves
# gigabytes of memory.
PAD_TO_MULTIPLE = 64


@dataclass(frozen=True)
class Example:
    """One rendered conversation or document, or several conversations that share a prefix.

    ids: (n,) int32 token ids. loss_mask: (n,) bool, True for targets. weight: loss weight of the targets, one for all or (n,).
    prefix_branches: where in `ids` each of several conversations continues after the shared prefix.
    origin: file and place of the record that it is made of; "" where that is not known.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    weight: float | np.ndarray
    kind: str
    prefix_branches: tuple[int, ...] = ()
    origin: str = ""

    @property
    def n_trained(self) -> int:
        """Number of targets. The first token is never one, because no token precedes it."""
        return int(self.loss_mask[1:].sum())

    @property
    def weights(self) -> np.ndarray:
        """(n,) float32 loss weight of each token."""
        return np.broadcast_to(np.float32(self.weight), len(self.ids))

    def positions(self) -> np.ndarray:
        """(n,) number of tokens before each token in its conversation."""
        return positions_of(len(self.ids), self.prefix_branches).numpy()

    def predecessors(self) -> np.ndarray:
        """(n,) index of the token before each one in its conversation, from which it is predicted; −1 for the first."""
        before = np.arange(-1, len(self.ids) - 1)
        for start in self.prefix_branches:
            # The first token of a branch follows the prefix, not the last token of the branch before it.
            before[start] = self.prefix_branches[0] - 1
        return before


def share_prefix(examples: Sequence[Example]) -> Example:
    """Combine conversations that begin with the same tokens into one example that has these tokens once.

    A target in the shared prefix gets the sum of its weights. Each conversation keeps at least one token of its own.
    Raises ValueError if the first tokens differ.
    """
    if len(examples) == 1:
        return examples[0]
    shortest = min(len(example.ids) for example in examples)
    first = examples[0].ids[:shortest]
    equal = np.logical_and.reduce([example.ids[:shortest] == first for example in examples])
    # A branch without a token of its own would have nothing to predict.
    n_common = shortest - 1 if equal.all() else min(shortest - 1, int(equal.argmin()))
    if not n_common:
        raise ValueError("conversations that share nothing can't be branches of one example")
    common_weights = [example.weights[:n_common] * example.loss_mask[:n_common] for example in examples]
    common_mask = np.logical_or.reduce([example.loss_mask[:n_common] for example in examples])
    lengths = [len(example.ids) - n_common for example in examples]
    return Example(
        ids=np.concatenate([first[:n_common], *(example.ids[n_common:] for example in examples)]),
        loss_mask=np.concatenate([common_mask, *(example.loss_mask[n_common:] for example in examples)]),
        weight=np.concatenate(
            [np.sum(common_weights, axis=0, dtype=np.float32), *(example.weights[n_common:] for example in examples)]
        ),
        kind=examples[0].kind,
        prefix_branches=tuple((n_common + np.cumsum([0, *lengths[:-1]])).tolist()),
    )


@dataclass(frozen=True)
class Batch:
    """A packed batch: N examples, T tokens, R targets. T and R include padding, the counts below do not."""

    ids: torch.Tensor  # (T,) int64; padding from cu_seqlens[N] on
    positions: torch.Tensor  # (T,) int64, from 0 in each example
    cu_seqlens: tuple[int, ...]  # N + 1 boundaries: example n is ids[cu_seqlens[n]:cu_seqlens[n + 1]]
    target_positions: torch.Tensor  # (R,) int64, indices into ids of the tokens to predict from
    labels: torch.Tensor  # (R,) int64, the token to predict at each of them; IGNORE_INDEX for padding
    weights: torch.Tensor  # (R,) float32, loss weights; 0 for padding
    kinds: torch.Tensor  # (R,) int64, indices into kind_names; -1 for padding
    kind_names: tuple[str, ...]
    prefix_branches: tuple[tuple[int, ...], ...] = ()  # `Example.prefix_branches` of each example; () if none has any

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device. `cu_seqlens` stays in Python: each attention kernel needs it in another form."""
        fields = ("ids", "positions", "target_positions", "labels", "weights", "kinds")
        tensors = {name: getattr(self, name) for name in fields}
        if torch.device(device).type == "cuda":  # from pinned memory the copy overlaps with the GPU's work
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    @property
    def n_tokens(self) -> int:
        return self.cu_seqlens[-1]

    @property
    def n_targets(self) -> int:
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def total_weight(self) -> float:
        """Sum of the loss weights."""
        # Without padding, whose zeros would change the order of the additions and with it the last digit.
        return float(self.weights[: self.n_targets].sum())

    @property
    def n_examples(self) -> int:
        return len(self.cu_seqlens) - 1


def collate(examples: Sequence[Example], pad_to_multiple_of: int = PAD_TO_MULTIPLE) -> Batch:
    """Concatenate examples into a batch, with tokens and targets padded to a multiple.

    Raises ValueError for an example without a target (its loss would be 0/0).
    """
    cu_seqlens = np.cumsum([0, *(len(example.ids) for example in examples)]).tolist()
    # Sorted, so that the numbers of the kinds do not depend on the order of the examples.
    kind_names = tuple(sorted({example.kind for example in examples}))
    target_positions: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    for example, start in zip(examples, cu_seqlens, strict=False):
        # Nothing predicts the first token of an example, so it is never a target.
        targets = 1 + np.flatnonzero(example.loss_mask[1:])
        if not len(targets):
            raise ValueError(f"an example of kind {example.kind!r} has no trained token; it must not get into a batch")
        target_positions.append(start + example.predecessors()[targets])
        labels.append(example.ids[targets])
        weights.append(example.weights[targets])
        kinds.append(np.full(len(targets), kind_names.index(example.kind)))
    prefix_branches = tuple(example.prefix_branches for example in examples)
    batch = Batch(
        ids=_tensor([example.ids for example in examples]),
        positions=_tensor([example.positions() for example in examples]),
        cu_seqlens=tuple(cu_seqlens),
        target_positions=_tensor(target_positions),
        labels=_tensor(labels),
        weights=torch.from_numpy(np.concatenate(weights)),
        kinds=_tensor(kinds),
        kind_names=kind_names,
        prefix_branches=prefix_branches if any(prefix_branches) else (),
    )
    return _pad(batch, pad_to_multiple_of)


def _pad(batch: Batch, multiple: int) -> Batch:
    """Pad tokens and targets. Attention treats padding as an example of its own (`Packed.length`), and no loss counts it."""

    def pad(part: torch.Tensor, value: int = 0) -> torch.Tensor:
        return F.pad(part, (0, -len(part) % multiple), value=value)

    return replace(
        batch,
        ids=pad(batch.ids),
        positions=pad(batch.positions),
        target_positions=pad(batch.target_positions),
        labels=pad(batch.labels, IGNORE_INDEX),
        weights=pad(batch.weights),
        kinds=pad(batch.kinds, -1),
    )


def _tensor(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def group_examples(step: Sequence[Example], batch_size: int, batch_tokens: int | None = None) -> list[list[Example]]:
    """The examples of a step in groups of at most `batch_size`, of similar lengths so that attention wastes little.

    With `batch_tokens` a group has at most that many tokens too; a longer example is a group of its own. The order within a
    step does not change the loss or the gradient, because both are sums over the step divided by the number of its targets.
    """
    groups: list[list[Example]] = []
    tokens = 0
    # Sorted, so that neighbors have similar lengths: attention pads groups of them.
    for example in sorted(step, key=lambda example: len(example.ids), reverse=True):
        tokens += len(example.ids)
        full = not groups or len(groups[-1]) == batch_size or (batch_tokens is not None and tokens > batch_tokens)
        if full:
            groups.append([])
            tokens = len(example.ids)
        groups[-1].append(example)
    return groups


def micro_batches(examples: Sequence[Example], batch_size: int, batch_tokens: int | None = None) -> list[Batch]:
    """The batches of a step; see `group_examples`."""
    return [collate(group) for group in group_examples(examples, batch_size, batch_tokens)]


def blank_batch() -> Batch:
    """Two tokens without a target: a loss of zero that is still connected to every weight.

    For a rank that has no examples left in a step: every rank must run the same number of forward and backward passes.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    two = torch.zeros(2, dtype=torch.int64)
    batch = Batch(two, torch.arange(2), (0, 2), nothing, nothing, torch.zeros(0), nothing, ())
    return _pad(batch, PAD_TO_MULTIPLE)

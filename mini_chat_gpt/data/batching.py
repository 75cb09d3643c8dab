"""Examples laid end to end: the flat batch that training, validation and scoring share.

A batch is one row without padding. Promises: `positions` start at 0 in every example, every example holds at least one
trained token, and a target is always predicted from the row before it *in the same example*.

    ids        a0 a1 a2 | b0 b1 b2 b3        two examples, cu_seqlens = (0, 3, 7)
    positions   0  1  2 |  0  1  2  3
    loss_mask   .  .  x |  .  x  x  x
    target_positions  = (1, 3, 4, 5)         the tokens that predict; labels = (a2, b1, b2, b3)

Conversations that begin alike may share what they have in common, as branches of one example (`share_prefix`): it is
computed once, each branch goes on from its end and sees it and itself. Losses and gradients are those of separate examples.

    ids        a0 a1 a2 b3 b4 c3             two conversations, a0 a1 a2 b3 b4 and a0 a1 a2 c3; prefix_branches (3, 5)
    positions   0  1  2  3  4  3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from mini_chat_gpt.ops.packed_layout import positions_of


@dataclass(frozen=True)
class Example:
    """One rendered conversation or document.

    ids: (n,) int32 token ids; loss_mask: (n,) bool, True where the token is a target; weight: loss weight of its
    targets, one for all or (n,) one for each token. Of several conversations that share their beginning, `prefix_branches`
    says where in ids each of them goes on.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    weight: float | np.ndarray
    kind: str
    prefix_branches: tuple[int, ...] = ()

    @property
    def n_trained(self) -> int:
        """Targets in this example: trained tokens that have a token before them."""
        return int(self.loss_mask[1:].sum())

    @property
    def n_conversations(self) -> int:
        return max(1, len(self.prefix_branches))

    def positions(self) -> np.ndarray:
        """(n,) how many tokens stand before each in its conversation."""
        return positions_of(len(self.ids), self.prefix_branches).numpy()

    def predicting(self) -> np.ndarray:
        """(n,) the place of the token before each in its conversation, from which it is predicted; −1 before the first."""
        before = np.arange(-1, len(self.ids) - 1)
        for start in self.prefix_branches:
            before[start] = self.prefix_branches[0] - 1
        return before


def share_prefix(examples: Sequence[Example]) -> Example:
    """One example of conversations that begin alike: what their ids have in common is read once.

    A target that is shared weighs as much as all of them together. Each conversation keeps a token of its own at least.
    Raises ValueError where not even the first token is the same.
    """
    if len(examples) == 1:
        return examples[0]
    shortest = min(len(example.ids) for example in examples)
    first = examples[0].ids[:shortest]
    alike = np.logical_and.reduce([example.ids[:shortest] == first for example in examples])
    common = shortest - 1 if alike.all() else min(shortest - 1, int(alike.argmin()))
    if not common:
        raise ValueError("conversations that share nothing can't be branches of one example")
    per_token = [np.broadcast_to(np.float32(example.weight), len(example.ids)) for example in examples]
    shared = [weight[:common] * e.loss_mask[:common] for weight, e in zip(per_token, examples, strict=True)]
    own = [weight[common:] for weight in per_token]
    lengths = [len(weight) for weight in own]
    return Example(
        ids=np.concatenate([examples[0].ids[:common], *(example.ids[common:] for example in examples)]),
        loss_mask=np.concatenate(
            [
                np.logical_or.reduce([example.loss_mask[:common] for example in examples]),
                *(example.loss_mask[common:] for example in examples),
            ]
        ),
        weight=np.concatenate([np.sum(shared, axis=0, dtype=np.float32), *own]),
        kind=examples[0].kind,
        prefix_branches=tuple((common + np.cumsum([0, *lengths[:-1]])).tolist()),
    )


@dataclass(frozen=True)
class Batch:
    """A flat batch of examples; T tokens, N examples, R rows to predict from."""

    ids: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64, from 0 in each example
    cu_seqlens: tuple[int, ...]  # N + 1 boundaries: example n is ids[cu_seqlens[n]:cu_seqlens[n + 1]]
    target_positions: torch.Tensor  # (R,) int64, indices into ids
    labels: torch.Tensor  # (R,) int64, the token to predict from each
    weights: torch.Tensor  # (R,) float32
    kinds: torch.Tensor  # (R,) int64, index into kind_names
    kind_names: tuple[str, ...]
    prefix_branches: tuple[tuple[int, ...], ...] = ()  # N times `Example.prefix_branches`; () where no example has any

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; `cu_seqlens` stay in Python, kernels choose their own form."""
        fields = ("ids", "positions", "target_positions", "labels", "weights", "kinds")
        tensors = {name: getattr(self, name) for name in fields}
        if torch.device(device).type == "cuda":  # from pinned memory the copy runs beside what the GPU is at
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_examples(self) -> int:
        return len(self.cu_seqlens) - 1


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n items in an epoch: a permutation that depends on its arguments alone."""
    return np.random.default_rng([seed % 2**64, epoch]).permutation(n)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end. Raises ValueError for an example without a target (its loss would be 0/0)."""
    lengths = [len(example.ids) for example in examples]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    target_positions: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    names = tuple(sorted({example.kind for example in examples}))
    for example, start in zip(examples, cu_seqlens, strict=False):
        at = np.flatnonzero(example.loss_mask[1:])
        if not len(at):
            raise ValueError(f"an example of kind {example.kind!r} has no trained token; it must not get into a batch")
        target_positions.append(example.predicting()[1:][at] + start)
        labels.append(example.ids[1:][at])
        weights.append(np.broadcast_to(np.float32(example.weight), len(example.ids))[1:][at])
    branches = tuple(example.prefix_branches for example in examples)
    counts = [len(part) for part in labels]
    return Batch(
        ids=_tensor(np.concatenate([example.ids for example in examples])),
        positions=_tensor(np.concatenate([example.positions() for example in examples])),
        cu_seqlens=tuple(cu_seqlens.tolist()),
        target_positions=_tensor(np.concatenate(target_positions)),
        labels=_tensor(np.concatenate(labels)),
        weights=torch.from_numpy(np.concatenate(weights)),
        kinds=_tensor(np.repeat([names.index(example.kind) for example in examples], counts)),
        kind_names=names,
        prefix_branches=branches if any(branches) else (),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def micro_batches(examples: Sequence[Example], batch_size: int, batch_tokens: int | None = None) -> list[Batch]:
    """Split one step's examples into batches of at most `batch_size`, alike in length so that attention wastes little.

    With `batch_tokens` a batch has at most so many tokens as well; an example longer than that is a batch of its own. The
    order within a step changes neither loss nor gradient: both are sums over the step divided by its token count.
    """
    batches: list[list[Example]] = []
    tokens = 0
    for example in sorted(examples, key=lambda example: len(example.ids), reverse=True):
        tokens += len(example.ids)
        full = not batches or len(batches[-1]) == batch_size or (batch_tokens is not None and tokens > batch_tokens)
        if full:
            batches.append([])
            tokens = len(example.ids)
        batches[-1].append(example)
    return [collate(batch) for batch in batches]


def blank_batch() -> Batch:
    """Two tokens and no target: a loss of zero that is still connected to every weight.

    For a rank that has no example left while others still have: what they do together, it must do too.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    two = torch.zeros(2, dtype=torch.int64)
    return Batch(two, torch.arange(2), (0, 2), nothing, nothing, torch.zeros(0), nothing, ())

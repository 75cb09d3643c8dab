"""Optimizers and learning-rate schedules.

Weight decay acts on matrices only. With Muon, the matrices inside the blocks get orthogonalised momentum (Jordan et al.
2024, https://kellerjordan.github.io/posts/muon/), embeddings, head and vectors stay with AdamW (arXiv:1711.05101).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn

from mini_chat_gpt.common.distributed import is_dtensor, local_shard
from mini_chat_gpt.config import ScheduleFields, TrainingSection


def lr_fraction(step: int, total: int, warmup: int, schedule: str, final: float, decay: float = 0.2) -> float:
    """Learning rate of optimizer step `step` (from 0) as a fraction of the peak; a pure function.

    Linear warm-up over `warmup` steps, then cosine, linear or constant, or wsd: constant and linear over the last `decay`.
    """
    if warmup >= total:
        warmup = total // 10
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - (1 - final) * progress
    if schedule == "wsd":
        return 1 - (1 - final) * max(0.0, (progress - (1 - decay)) / decay)
    return 1.0


class Member:
    """Parameters in groups, {"params", "lr", "weight_decay", …}, and the state of each.

    (`torch.optim.Optimizer` would be its base, but imports PyTorch's compiler when it is made: a second of every start.)
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **defaults: float) -> None:
        self.param_groups = [defaults | group for group in groups]
        self.state: defaultdict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        raise NotImplementedError


class AdamW(Member):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), all parameters in PyTorch's fused kernel."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, weight_decay=0.0)
        self.betas = betas

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            of_all = {name: [self.state[p][name] for p in moved] for name in ("step", "exp_avg", "exp_avg_sq")}
            torch._foreach_add_(of_all["step"], 1)
            torch._fused_adamw_(
                moved,
                [p.grad for p in moved],
                of_all["exp_avg"],
                of_all["exp_avg_sq"],
                [],
                of_all["step"],
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


class Muon(Member):
    """Momentum whose singular values are all made about 1, so that every direction of a matrix moves alike.

    Equals `torch.optim.Muon`, but matrices of one shape go through the iteration together as one stack: a small model's
    step is many small products, and a third of their time is saved.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, momentum=momentum)

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for together in _stacks([p for p in group["params"] if p.grad is not None]):
                updates = [self._nesterov(p, group["momentum"]) for p in together]
                sharded = is_dtensor(together[0])
                updates = _made_alike_in_shards(updates, together[0]) if sharded else newton_schulz(updates)
                for p, update in zip(together, updates, strict=True):
                    rows, columns = p.shape
                    weight = local_shard(p)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _nesterov(self, p: nn.Parameter, momentum: float) -> torch.Tensor:
        """The update before it is orthogonalised; of a matrix in shards the own rows."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        gradient, buffer = local_shard(p.grad), local_shard(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _stacks(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Matrices of one shape, lying down or standing, as many together as keep the stack small.

    In shards they must all lie or all stand, and each process will have so many to do.
    """
    by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for p in parameters:
        by_shape.setdefault(tuple(p.shape) if is_dtensor(p) else tuple(sorted(p.shape)), []).append(p)
    for shape, alike in by_shape.items():
        processes = alike[0].device_mesh.size() if is_dtensor(alike[0]) else 1  # type: ignore[attr-defined]
        size = max(1, STACK_ELEMENTS // math.prod(shape)) * processes
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


STACK_ELEMENTS = 2**23  # 16 MiB in bf16


def newton_schulz(updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each update orthogonalised. A tall one goes in lying down: the iteration multiplies by the shorter side."""
    tall = [update.shape[0] > update.shape[1] for update in updates]
    lying = torch.stack([update.T if is_tall else update for update, is_tall in zip(updates, tall, strict=True)])
    return [update.T if is_tall else update for update, is_tall in zip(orthogonalize(lying), tall, strict=True)]


def _made_alike_in_shards(updates: Sequence[torch.Tensor], matrix: torch.Tensor) -> list[torch.Tensor]:
    """The same for matrices in shards like `matrix`: own rows of each in, own rows of each out.

    The processes exchange rows of all for all of some, so that each has its part of the work, and back again.
    """
    from torch.distributed.tensor import DTensor, Shard

    mesh, (rows, columns) = matrix.device_mesh, matrix.shape  # type: ignore[attr-defined]
    shape, stride = torch.Size((len(updates), rows, columns)), (rows * columns, columns, 1)

    def exchanged(part: torch.Tensor, have: Shard, want: Shard) -> torch.Tensor:
        whole = DTensor.from_local(part.contiguous(), mesh, [have], run_check=False, shape=shape, stride=stride)
        return whole.redistribute(placements=[want]).to_local()

    some = exchanged(torch.stack(list(updates)).bfloat16(), Shard(1), Shard(0))
    done = torch.stack(newton_schulz(some.unbind())) if len(some) else some
    return list(exchanged(done, Shard(0), Shard(1)).unbind())


def orthogonalize(x: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns ≥ rows) -> the same singular vectors with singular values of about 1 (0.7 to 1.2), in bfloat16.

    Five steps of the quintic Newton-Schulz iteration X ← aX + bXXᵀX + c(XXᵀ)²X with the coefficients of Jordan et al.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimizer:
    """AdamW, alone or beside Muon, behind one `step(fraction)`; state by parameter name, ready for a checkpoint."""

    def __init__(self, model: nn.Module, training: TrainingSection, phase: ScheduleFields) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        muon = (
            [p for name, p in self.parameters.items() if is_block_matrix(name, p)]
            if training.optimizer == "muon"
            else []
        )
        by_muon = {id(parameter) for parameter in muon}
        rest = [p for p in self.parameters.values() if id(p) not in by_muon]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "decays": True},
            {"params": [p for p in rest if p.dim() < 2], "decays": False},
        ]
        self.members: list[Member] = [
            AdamW(
                [group for group in groups if group["params"]],
                lr=phase.learning_rate,
                betas=(training.beta1, training.beta2),
            )
        ]
        if muon:
            self.members.append(Muon([{"params": muon, "decays": True}], lr=phase.muon_lr))
        self.weight_decay = training.weight_decay
        self.peaks = [phase.learning_rate, phase.muon_lr][: len(self.members)]

    def step(self, fraction: float, weight_decay: float | None = None) -> None:
        """Update with `fraction` of the peak learning rates and clear the gradients.

        `weight_decay` (default: the config's) is that of the matrices; vectors have none.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        for member, peak in zip(self.members, self.peaks, strict=True):
            for group in member.param_groups:
                group["lr"] = peak * fraction
                group["weight_decay"] = decay if group["decays"] else 0.0
            member.step()
        self.zero_grad()

    @property
    def learning_rate(self) -> float:
        """AdamW's learning rate of the last step."""
        return float(self.members[0].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad()

    def reset(self) -> None:
        """Drop all state, as before the first step."""
        for member in self.members:
            member.state.clear()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All state as flat tensors: "layers.0.mlp.up_proj.weight/exp_avg" → tensor."""
        return {
            f"{self._names[id(parameter)]}/{key}": value
            for member in self.members
            for parameter, state in member.state.items()
            for key, value in state.items()
        }

    def parameter_of(self, key: str) -> nn.Parameter | None:
        """The parameter that a state tensor of this name belongs to."""
        return self.parameters.get(key.rpartition("/")[0])

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state_tensors` gave, exactly. Raises KeyError for a parameter that does not exist."""
        owners = {id(p): member for member in self.members for group in member.param_groups for p in group["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            # Counters stay where the optimizer makes them; moments lie with their parameter.
            where = value.clone() if value.dim() == 0 and parameter.device.type == "cpu" else value.to(parameter.device)
            owners[id(parameter)].state[parameter][field] = where


def is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is meant for this parameter: a matrix inside a block."""
    return parameter.dim() == 2 and name.startswith("layers.")


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradients to a joint norm of at most `limit` (0: leave them); returns the norm before.

    Of gradients in shards it is the norm over all processes, and all of them call this together.
    """
    norm = nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)
    return norm.full_tensor() if is_dtensor(norm) else norm  # type: ignore[attr-defined]

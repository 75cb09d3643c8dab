"""The processes (ranks) of one run, and small messages between them.

torchrun starts the processes. Without it there is one, `ALONE`, for which all methods return immediately. The messages
are sent over gloo between CPUs, so that they never wait for a GPU. DDP and FSDP2 exchange the gradients.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from mini_chat_gpt.common import rank_failures
from mini_chat_gpt.common.entry import under_torchrun
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.rendezvous import open_store

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process and the number of processes of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_size: int = 1
    launch: str | None = None
    """Identifies the call of torchrun, the same in all its processes and after a restart; None without torchrun."""
    group: dist.ProcessGroup | None = None  # for messages; None: the default group of all processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all ranks, by rank. All ranks must pass the same number of values."""
        local = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [local.tolist()]
        gathered = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(gathered, local, group=self.group)
        return [tensor.tolist() for tensor in gathered]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks. All ranks add in the same order, so they get identical results."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def broadcast(self, make: Callable[[], T]) -> T:
        """The result of `make` on rank 0, on all ranks."""
        if self.size == 1:
            return make()
        objects = [make() if self.is_main else None]
        dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"), group=self.group)
        return objects[0]  # type: ignore[return-value]

    def new_group(self) -> World:
        """The same processes with a new group, for messages from another thread. All ranks must call it together."""
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo"))

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Context that one process of each machine enters before the others, which can then use the files it has written."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()
        self.wait()

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.gather([0.0])


ALONE = World()


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a DTensor, of which this process has a shard. The check does not import torch.distributed.tensor."""
    return hasattr(tensor, "to_local")


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The local shard of a DTensor, which shares its memory; any other tensor is returned unchanged."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def join(device_type: str, environment: Mapping[str, str] = os.environ) -> World:
    """Join the run that torchrun's environment variables describe; `ALONE` without torchrun. Repeated calls are allowed.

    `device_type` "cuda" adds nccl for gradients. Raises UserError if the other processes cannot be reached.
    """
    if not under_torchrun(environment):
        return ALONE
    rank, size, local_rank, local_size = (
        int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    world = World(rank, size, local_rank, local_size, launch_of(environment))
    if world.size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        try:
            store = open_store(world.rank, world.size, environment)
            rank_failures.watch(world.rank, world.size, store)
            dist.init_process_group(
                backend,
                store=store,
                rank=world.rank,
                world_size=world.size,
                timeout=timedelta(minutes=30),
            )
        except (RuntimeError, ValueError, OSError) as error:
            address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
            raise UserError(
                f"Process {world.rank} of {world.size} can't reach the others at {address}: {str(error).splitlines()[0]}. "
                "Check torchrun's --rdzv_endpoint and the network between the machines."
            ) from None
    return world


def leave() -> None:
    """Leave the run, if this process has joined one."""
    rank_failures.stop_watching()
    if dist.is_initialized():
        dist.destroy_process_group()


def launch_of(environment: Mapping[str, str]) -> str:
    """An identifier of one call of torchrun: its --rdzv_id, or by default the machine and torchrun's own process."""
    run_id = environment["TORCHELASTIC_RUN_ID"]
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]  # it is stored in the run folder
    return run_id if run_id != "none" else f"{host}:{os.getppid()}:{_start_time(os.getppid())}"


def _start_time(process: int) -> str:
    """Start time of a process, because process ids are reused; "" if unknown."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

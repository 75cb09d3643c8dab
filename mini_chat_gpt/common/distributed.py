"""The processes of one run: who they are, and the few things they tell each other.

torchrun decides how many there are; without it there is one, `ALONE`, for which all of this is free. What is said here is
small and travels over gloo between CPUs, so that it never waits for a GPU; gradients are the business of DDP and FSDP2.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from mini_chat_gpt.common.entry import under_torchrun
from mini_chat_gpt.common.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    launch: str | None = None
    """Names what torchrun started, the same for all its processes and after a restart; None without torchrun."""
    group: dist.ProcessGroup | None = None  # in which they talk; None: the one of all processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Everybody's values, by rank; all must give equally many."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyones, mine, group=self.group)
        return [theirs.tolist() for theirs in everyones]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, added in the order of ranks and so the same everywhere."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, for everybody."""
        if self.size == 1:
            return make()
        box = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"), group=self.group)
        return box[0]  # type: ignore[return-value]

    def new_group(self) -> World:
        """The same processes with a line of their own, for a thread beside training. All of them ask for it together."""
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo"))

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """One process of each machine goes through the block, then the others: they find what it has written."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()
        self.wait()

    def wait(self) -> None:
        """Until all have come to this point."""
        self.gather([0.0])


ALONE = World()


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether only a part of the tensor lies here (a DTensor; asked without importing a second's worth of PyTorch)."""
    return hasattr(tensor, "to_local")


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor in shards that lies here, in the same memory; any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def join(device_type: str, environment: Mapping[str, str] = os.environ) -> World:
    """Take part in the run that torchrun's variables describe; `ALONE` without torchrun. May be called again.

    `device_type` "cuda" adds nccl for gradients. Raises UserError if the others can't be reached.
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
            dist.init_process_group(
                backend,
                store=_meeting_point(world, environment),
                rank=world.rank,
                world_size=world.size,
                timeout=timedelta(minutes=30),
            )
        except (RuntimeError, ValueError, OSError) as error:
            address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
            raise UserError(
                f"Process {world.rank} of {world.size} can't reach the others at {address}: {str(error).splitlines()[0]}. "
                "Check torchrun's --rdzv_endpoint and that the machines reach each other."
            ) from None
    return world


def _meeting_point(world: World, environment: Mapping[str, str]) -> dist.TCPStore:
    """A store that only the processes of this start know.

    torchrun's own store lives as long as torchrun: after a restart it still holds where the dead listened, and the living would
    wait for them. So rank 0 opens a new one each time and leaves its address there. Who finds the address of an earlier start
    can't connect, or finds its own place taken, and looks again.
    """
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return dist.TCPStore(host, port, world.size, world.is_main)
    torchruns = dist.TCPStore(host, port, is_master=False)
    if world.is_main:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        torchruns.set(ADDRESS, f"{host} {own.port}")
        return own
    deadline = time.monotonic() + 300
    while True:
        host, port_text = torchruns.get(ADDRESS).decode().split()
        try:
            store = dist.TCPStore(host, int(port_text), is_master=False, timeout=timedelta(seconds=5))
            if store.add(f"taken/{world.rank}/{world.size}", 1) == 1:
                store.set_timeout(timedelta(minutes=30))
                return store
        except RuntimeError:  # nobody listens there any more
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


ADDRESS = "mini_chat_gpt/meeting_point"


@contextmanager
def lost_peers_named(world: World) -> Iterator[None]:
    """Turn what PyTorch raises when another process has gone into one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        gone = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text or "Connection" in text
        if world.size == 1 or not gone:
            raise
        raise UserError(
            f"Process {world.rank} of {world.size} has lost another one ({text.splitlines()[0][-120:]}); "
            "what that one said last tells why. The last checkpoint is whole, and the run can go on from there."
        ) from None


def leave() -> None:
    """End taking part, if this process did."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch_of(environment: Mapping[str, str]) -> str:
    """A name for one call of torchrun: its --rdzv_id, or where that says nothing the machine and torchrun's own process."""
    given = environment["TORCHELASTIC_RUN_ID"]
    return given if given != "none" else f"{socket.gethostname()}:{os.getppid()}:{_started(os.getppid())}"


def _started(process: int) -> str:
    """When a process was started, so that a number used again is told from the old one; "" where that isn't known."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

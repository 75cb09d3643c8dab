"""The store through which the processes (ranks) of one start under torchrun find each other."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

ADDRESS = "mini_chat_gpt/rendezvous"


def open_store(
    rank: int, size: int, environment: Mapping[str, str] = os.environ, seconds: float = 300
) -> dist.TCPStore:
    """A store that only the processes of this start use. Raises RuntimeError if it can't be reached within `seconds`.

    torchrun's own store exists as long as torchrun. After a restart it still has the addresses of the previous processes, for
    which the new ones would wait. Rank 0 therefore opens a new store at each start and publishes its address in torchrun's
    store. A process that reads the address of a previous start cannot connect, or finds its rank taken, and reads again.
    """
    host, port, patience = environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timedelta(seconds=seconds)
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return dist.TCPStore(host, port, size, rank == 0, timeout=patience, wait_for_workers=False)
    agent_store = dist.TCPStore(host, port, is_master=False, timeout=patience)
    if rank == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        agent_store.set(ADDRESS, f"{host} {store.port}")
        return store
    deadline = time.monotonic() + seconds
    while True:
        host, port_text = agent_store.get(ADDRESS).decode().split()
        try:
            store = dist.TCPStore(host, int(port_text), is_master=False, timeout=timedelta(seconds=5))
            if store.add(f"taken/{rank}/{size}", 1) == 1:
                store.set_timeout(timedelta(minutes=30))
                return store
        except RuntimeError:  # the store of a previous start: no process listens at its address
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise RuntimeError("only the store of a previous start was found")
        time.sleep(0.2)

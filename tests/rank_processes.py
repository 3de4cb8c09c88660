"""Processes that train together, forked from one that has torch already: each costs little."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEADLINE_S = 240.0


def run_ranks(
    world_size: int, action: Callable[..., object], folder: Path, *args: Any, killed: int = -1
) -> None:
    """Call `action(rank, folder, *args)` in that many processes of one process group.

    Args:
        world_size: How many processes.
        action: A function of a module.
        folder: A folder for them all; what a process says on stderr is in its file said-<rank>.
        args: What else it is given.
        killed: The number of a process that kills itself; its end is no fault.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint"])
    store = folder / f"store-{os.urandom(4).hex()}"
    processes = [
        context.Process(target=_rank, args=(rank, world_size, store, action, folder, *args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_DEADLINE_S)
        process.kill()
    faults = [path.read_text() for path in sorted(folder.glob(f"{store.name}.fault-*"))]
    assert not faults, "\n".join(faults)
    for rank, process in enumerate(processes):
        assert process.exitcode == 0 or rank == killed, f"rank {rank} ended by {process.exitcode}"


def _rank(
    rank: int, world_size: int, store: Path, action: Callable[..., object], *args: Any
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    said = os.open(store.with_name(f"said-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 2)
    try:
        method = f"file://{store}"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world_size)
        action(rank, *args)
        # FileStore's keeper is whoever is last: nobody leaves before the others are done.
        dist.destroy_process_group()
    except BaseException:
        store.with_name(f"{store.name}.fault-{rank}").write_text(traceback.format_exc())
        raise

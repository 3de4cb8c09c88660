"""What processes take while something is measured, and what the rest of the machine takes."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.memory import held_mb


@dataclass
class Load:
    """Processor time in seconds of each tree of processes, and of all else on this machine."""

    wall_s: float = 0.0
    trees_s: tuple[float, ...] = ()
    others_s: float = 0.0

    @property
    def others_cores(self) -> float:
        """How many cores were busy with something else."""
        return self.others_s / self.wall_s

    def cores(self, tree: int = 0) -> float:
        """How many cores a tree kept busy."""
        return self.trees_s[tree] / self.wall_s


@contextlib.contextmanager
def watched(*trees: Sequence[psutil.Process]) -> Iterator[Load]:
    """Fill in what the trees took once the block has ended."""
    load = Load()
    before, busy_s, began_s = [_trees_s(one) for one in trees], _busy_s(), time.monotonic()
    yield load
    load.wall_s = time.monotonic() - began_s
    load.trees_s = tuple(_trees_s(one) - was for one, was in zip(trees, before, strict=True))
    load.others_s = max(0.0, _busy_s() - busy_s - sum(load.trees_s))


def together_mb(top: psutil.Process) -> float:
    """The memory of a process and all it has started, shared pages shared out."""
    total = 0.0
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            total += held_mb(process.pid)["Pss"]
    return total


def own_mb(top: psutil.Process) -> float:
    """The memory that a process and all it has started have each for itself."""
    total = 0.0
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().uss / 1e6
    return total


def listening(port: int) -> psutil.Process:
    """The process that listens on a port of this machine.

    Raises:
        RuntimeError: none does.
    """
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port and one.pid:
            return psutil.Process(one.pid)
    raise RuntimeError(f"nobody listens on port {port}")


def _trees_s(tops: Sequence[psutil.Process]) -> float:
    """What processes and all they have started took, ended ones too."""
    total = 0.0
    for process in (one for top in tops for one in (top, *top.children(recursive=True))):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _busy_s() -> float:
    """Processor time of the whole machine that was not idle."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)

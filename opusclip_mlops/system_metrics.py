"""What the machine and the training processes use, under the names MLflow gives it.

Everything is read anew in each sample, and what cannot be read is left out of it. Rates are by
processor ticks and monotonic clocks, so that setting the clock changes none of them.
"""

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from opusclip_mlops.performance import Gpus

NODE_VARIABLE = "MLFLOW_SYSTEM_METRICS_NODE_ID"
SHORTEST_S = 0.1
"""Rates over less time than this are noise: a processor tick is 10 ms."""
PATIENCE_S = 1.0
"""How long a sample waits for a disk or the GPUs; what takes longer is left out."""

_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AssertionError, RuntimeError),
    psutil.Error,
)
_MAX_NODE_CHARACTERS = 150
_MAX_STAT_BYTES = 4096
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Values = dict[str, float]


class SystemMeter:
    """Measures the machine, its GPUs and some processes; never raises, never prints.

    Args:
        disk: A folder on the file system to measure.
        node: What the machine is called where several are measured, unless `NODE_VARIABLE` says.
    """

    def __init__(self, *, disk: Path, node: str = "") -> None:
        self._disk = disk
        self._prefix = _prefix(os.environ.get(NODE_VARIABLE, node))
        self._processor = _Processor()
        self._network = _Network()
        self._tree = _Tree()
        self._gpus = Gpus()
        self._patience = {"disk": _Patience(), "gpus": _Patience()}

    def sample(self, pids: Sequence[int]) -> Values:
        """Measure now; keys begin with `system/`, as MLflow's own.

        `process_…` is the use of the given processes and all their descendants together, without
        the process that asks and its own; it is absent when none of them is there. Called at once
        after the meter was made, it waits for `SHORTEST_S`.
        """
        parts: list[Callable[[], Values]] = [
            self._processor.use,
            _memory_use,
            lambda: self._patience["disk"].read(lambda: _disk_use(self._disk)),
            self._network.use,
            lambda: self._tree.use(pids),
            lambda: self._patience["gpus"].read(lambda: _gpus_use(self._gpus, self._tree.pids)),
        ]
        found: Values = {}
        for part in parts:
            found |= _readable(part)
        return {f"{self._prefix}{key}": value for key, value in found.items()}


def _readable(part: Callable[[], Values]) -> Values:
    """What a part of a sample holds; nothing when it cannot be read."""
    try:
        return part()
    except _UNREADABLE:
        return {}


class _Patience:
    """Reads what may hang, on a dead file server or in a driver, in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def read(self, part: Callable[[], Values]) -> Values:
        """What is read in time; nothing as long as an earlier reading hangs."""
        if self._thread and self._thread.is_alive():
            return {}
        found: Values = {}
        self._thread = threading.Thread(target=lambda: found.update(_readable(part)), daemon=True)
        self._thread.start()
        self._thread.join(PATIENCE_S)
        return found


def _prefix(node: str) -> str:
    """`system/`, with the node's name behind it; what no key may hold becomes `_`."""
    legal = re.sub(r"[^/\w.\- :]", "_", node)[:_MAX_NODE_CHARACTERS]
    parts = [part for part in legal.split("/") if part.strip() and part not in {".", ".."}]
    return "/".join(["system", *parts, ""])


# The machine


class _Processor:
    """The share of all processors' time that was not idle, since the last sample."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self._last: Mapping[str, float] = _readable(_processor_times)
        self._percentage: float | None = None

    def use(self) -> Values:
        if self._percentage is None:
            time.sleep(max(0.0, self._last_s + SHORTEST_S - time.monotonic()))
        now_s, now = time.monotonic(), _processor_times()
        if now_s - self._last_s >= SHORTEST_S:
            self._percentage = _busy_percentage(self._last, now)
            self._last, self._last_s = now, now_s
        if self._percentage is None:
            return {}
        return {"cpu_utilization_percentage": round(self._percentage, 1)}


def _busy_percentage(before: Mapping[str, float], now: Mapping[str, float]) -> float | None:
    """What was not idle of the time between; None when none has passed."""
    # A counter may fall a little, and does when a processor is taken out.
    spent = {name: max(0.0, now[name] - before.get(name, now[name])) for name in now}
    total = sum(spent.values())
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return 100 * (total - idle) / total if total else None


def _processor_times() -> Values:
    """Seconds by kind; what guests took is in `user` and `nice` already."""
    times = psutil.cpu_times()._asdict()
    return {name: s for name, s in times.items() if not name.startswith("guest")}


def _memory_use() -> Values:
    with warnings.catch_warnings():
        # Some kernels do not tell what we do not ask for.
        warnings.simplefilter("ignore")
        memory = psutil.virtual_memory()
    return {
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(100 * memory.used / max(memory.total, 1), 1),
    }


def _disk_use(folder: Path) -> Values:
    disk = psutil.disk_usage(str(folder))
    return {
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": round(disk.used / 1e6, 1),
        "disk_available_megabytes": round(disk.free / 1e6, 1),
    }


class _Network:
    """Bytes in and out since the meter was made, over all interfaces."""

    def __init__(self) -> None:
        self._received_bytes = self._sent_bytes = 0
        self._last: Mapping[str, tuple[int, int]] = {}
        _readable(self.use)

    def use(self) -> Values:
        now = {
            name: (one.bytes_recv, one.bytes_sent)
            for name, one in psutil.net_io_counters(pernic=True, nowrap=False).items()
        }
        # An interface counts from when it is first seen: it may have come with old counts.
        for name in now.keys() & self._last.keys():
            before = self._last[name]
            self._received_bytes += _grown(before[0], now[name][0])
            self._sent_bytes += _grown(before[1], now[name][1])
        self._last = now
        return {
            "network_receive_megabytes": self._received_bytes / 1e6,
            "network_transmit_megabytes": self._sent_bytes / 1e6,
        }


def _grown(before: int, now: int) -> int:
    """By how much a counter has grown; one that is lower than before began at 0 again."""
    return now - before if now >= before else now


# GPUs


def _gpus_use(gpus: Gpus, pids: frozenset[int]) -> Values:
    found: Values = {}
    for number in gpus.numbers():
        one = {**_gpu_memory(gpus, number), **_gpu_power(gpus, number)}
        if (use := gpus.ask(number, "UtilizationRates")) is not None:
            one["utilization_percentage"] = float(use.gpu)
        found |= {f"gpu_{number}_{key}": round(value, 1) for key, value in one.items()}
    return found | _gpu_memory_of(gpus, pids)


def _gpu_memory(gpus: Gpus, number: int) -> Values:
    memory = gpus.ask(number, "MemoryInfo")
    if memory is None:
        return {}
    found = {"memory_usage_megabytes": memory.used / 1e6}
    if memory.total:
        found["memory_usage_percentage"] = 100 * memory.used / memory.total
    return found


def _gpu_power(gpus: Gpus, number: int) -> Values:
    power_mw = gpus.ask(number, "PowerUsage")
    if power_mw is None:
        return {}
    limit_mw = gpus.ask(number, "EnforcedPowerLimit")
    found = {"power_usage_watts": power_mw / 1000}
    if limit_mw:
        found["power_usage_percentage"] = 100 * power_mw / limit_mw
    return found


def _gpu_memory_of(gpus: Gpus, pids: frozenset[int]) -> Values:
    """GPU memory of some processes; nothing when NVML lists none of them, as in a container."""
    listed = [
        one
        for number in (gpus.numbers() if pids else [])
        for one in gpus.ask(number, "ComputeRunningProcesses") or []
    ]
    used = [one.usedGpuMemory for one in listed if one.pid in pids]
    # Some drivers list a process, but not its memory.
    if not used or None in used:
        return {}
    return {"process_gpu_memory_megabytes": round(sum(used) / 1e6, 1)}


# Processes


@dataclass(frozen=True)
class _Process:
    """A process at one moment; `reaped_s` is the processor time of its children that ended."""

    pid: int
    parent: int
    started_ticks: int
    own_s: float
    reaped_s: float
    rss_bytes: int

    @property
    def total_s(self) -> float:
        return self.own_s + self.reaped_s

    @property
    def age_s(self) -> float:
        born_s = self.started_ticks / _TICKS_PER_S
        return max(SHORTEST_S, time.clock_gettime(time.CLOCK_BOOTTIME) - born_s)


class _Tree:
    """Some processes with their descendants: memory now, processor time since the last sample."""

    def __init__(self) -> None:
        self.pids: frozenset[int] = frozenset()
        self._last: Mapping[int, _Process] = {}
        self._last_s = time.monotonic()
        self._percentage = 0.0

    def use(self, pids: Sequence[int]) -> Values:
        self.pids = frozenset()
        now_s, now = time.monotonic(), _family(pids)
        if not now:
            return {}
        self.pids = frozenset(now)
        elapsed_s = now_s - self._last_s
        if elapsed_s >= SHORTEST_S or not self._last:
            cores = _cores_used(self._last, now, elapsed_s=max(elapsed_s, SHORTEST_S))
            self._percentage = 100 * min(cores, os.cpu_count() or 1)
            self._last, self._last_s = now, now_s
        rss_bytes = sum(one.rss_bytes for one in now.values())
        return {
            "process_cpu_utilization_percentage": round(self._percentage, 1),
            "process_memory_usage_megabytes": round(rss_bytes / 1e6, 1),
        }


def _cores_used(
    before: Mapping[int, _Process], now: Mapping[int, _Process], *, elapsed_s: float
) -> float:
    """How many processors were busy with these processes.

    A child that has ended is counted by its parent, which is given all of its time when it waits
    for it: what was counted before is taken off. Of processes that are met for the first time, and
    are older than the last sample, the mean over their life is taken.
    """
    counted_s = _counted_of_ended(before, now)
    spent_s, met = 0.0, []
    for one in now.values():
        was = before.get(one.pid)
        if was is None or not _is_same(was, one):
            met.append(one)
            continue
        ended_s = one.reaped_s - was.reaped_s - counted_s.get(one.pid, 0.0)
        spent_s += one.own_s - was.own_s + max(0.0, ended_s)
    life_s = max([elapsed_s, *(one.age_s for one in met)])
    return max(0.0, spent_s) / elapsed_s + sum(one.total_s for one in met) / life_s


def _counted_of_ended(
    before: Mapping[int, _Process], now: Mapping[int, _Process]
) -> dict[int, float]:
    """Seconds that were counted of processes that have ended, by the ancestor that is left."""
    counted_s: dict[int, float] = {}
    for ended in before.values():
        at: _Process | None = ended
        # As many generations as there may be, and no more.
        for _ in before:
            if at is None or _is_same(at, now.get(at.pid)):
                break
            at = before.get(at.parent)
        if at is not None and at is not ended:
            counted_s[at.pid] = counted_s.get(at.pid, 0.0) + ended.total_s
    return counted_s


def _is_same(one: _Process, other: _Process | None) -> bool:
    """Whether a pid still is the same process."""
    return other is not None and one.started_ticks == other.started_ticks


def _family(pids: Sequence[int]) -> dict[int, _Process]:
    """The processes with these pids that are there, and their descendants, by pid."""
    stats, own_pid = _stats(), os.getpid()
    children: dict[int, list[int]] = {}
    for pid, (_, parent, _) in stats.items():
        if pid != own_pid:
            children.setdefault(int(parent), []).append(pid)
    found: dict[int, _Process] = {}
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid in stats and pid not in found:
            found[pid] = _process(pid, stats[pid])
            waiting += children.get(pid, [])
    return found


def _stats() -> dict[int, list[bytes]]:
    """State, parent and the rest of every process; one that ends meanwhile is left out."""
    found = {}
    for name in filter(str.isdigit, os.listdir(psutil.PROCFS_PATH)):
        # The name of a process, in brackets, may hold anything.
        fields = _read(f"{psutil.PROCFS_PATH}/{name}/stat").rpartition(b")")[2].split(None, 2)
        if len(fields) == 3:
            found[int(name)] = fields
    return found


def _read(path: str) -> bytes:
    """A short file, or nothing; thousands are read, and a file object each takes longer."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAX_STAT_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _process(pid: int, stat: list[bytes]) -> _Process:
    """Build it from /proc/<pid>/stat, whose fields proc(5) numbers from 1, the pid."""
    state, parent, rest = stat
    field = [b"", b"", b"", state, parent, *rest.split()]
    user, system, reaped_user, reaped_system = (int(ticks) for ticks in field[14:18])
    return _Process(
        pid=pid,
        parent=int(parent),
        started_ticks=int(field[22]),
        own_s=(user + system) / _TICKS_PER_S,
        reaped_s=(reaped_user + reaped_system) / _TICKS_PER_S,
        rss_bytes=int(field[24]) * _PAGE_BYTES,
    )

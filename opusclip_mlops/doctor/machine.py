"""This machine: packages, open files, memory, clock, GPUs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from opusclip_mlops.amounts import size_text
from opusclip_mlops.doctor.findings import Check, Finding, Subject, failed, note, ok, warning
from opusclip_mlops.performance import Gpus

DISTRIBUTION = "opusclip-mlops"
LEAST_OPEN_FILES = 1024
NEEDED_BYTES = 420 * 2**20
"""What the processes that deliver a run take, with all three sinks."""
_COMFORTABLE_BYTES = 2**30
_SHOWN = ("mlflow", "torch", "tensorboard", "wandb", "boto3", "sqlalchemy")
_MEASURED_S = 0.2
_MOST_DRIFT_S = 0.05
_EARLIEST_S = 1_735_689_600  # 2025: a board without a battery begins in 1970
_CGROUP = Path("/sys/fs/cgroup")


def packages(_: Subject) -> Finding:
    """Whether what this package needs is installed, in versions it works with."""
    wrong = list(_wrong_packages())
    shown = ", ".join(f"{name} {version}" for name in _SHOWN if (version := _version(name)))
    if wrong:
        return failed("; ".join(wrong), f"pip install --upgrade {DISTRIBUTION}")
    return ok(shown)


def _wrong_packages() -> Iterator[str]:
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if not found:
            yield f"{wanted.name} is not installed"
        elif not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name} {found} is not {wanted.specifier}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def open_files(_: Subject) -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{soft:,} open files a process"
    if 0 <= soft < LEAST_OPEN_FILES:
        return warning(seen, f"ulimit -n {min(max(hard, LEAST_OPEN_FILES), 65_536)}")
    return ok(seen)


def memory(_: Subject) -> Finding:
    """How much memory there is for what delivers a run beside the training."""
    free_bytes = min(psutil.virtual_memory().available, _left_in_cgroup_bytes())
    seen = f"{size_text(free_bytes)} of memory free, delivery takes {size_text(NEEDED_BYTES)}"
    if free_bytes < NEEDED_BYTES:
        return failed(seen, "end what takes it, or give this machine or container more")
    if free_bytes < _COMFORTABLE_BYTES:
        return warning(seen, "leave it 1 GiB: the kernel kills what delivers before what trains")
    return ok(seen)


def _left_in_cgroup_bytes() -> int:
    """What the container leaves, which may be less than the machine has."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    return psutil.virtual_memory().available


def clock(_: Subject) -> Finding:
    """Whether this machine's clock goes, and goes evenly."""
    wall_s, steady_s = time.time(), time.monotonic()
    time.sleep(_MEASURED_S)
    drift_s = (time.time() - wall_s) - (time.monotonic() - steady_s)
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_s))
    if wall_s < _EARLIEST_S:
        return failed(f"the clock says {shown}", "set it: timedatectl set-ntp true")
    if abs(drift_s) > _MOST_DRIFT_S:
        seen = f"the clock moved by {drift_s * 1000:+.0f} ms within {_MEASURED_S} s"
        return warning(seen, "let one service alone set it: see timedatectl")
    return ok(shown)


def gpu(_: Subject) -> Finding:
    """The GPUs that NVML finds."""
    gpus = Gpus()
    names = [_gpu_text(gpus, number) for number in gpus.numbers()]
    if not names:
        return note("no NVIDIA GPU, or no driver: its figures are left out")
    return ok(", ".join(names))


def _gpu_text(gpus: Gpus, number: int) -> str:
    name, memory = gpus.ask(number, "Name"), gpus.ask(number, "MemoryInfo")
    called = name.decode(errors="replace") if isinstance(name, bytes) else str(name or "GPU")
    return f"{number}: {called}" + (f" {size_text(int(memory.total))}" if memory else "")


CHECKS = (
    Check(name="machine.packages", look=packages),
    Check(name="machine.open-files", look=open_files),
    Check(name="machine.memory", look=memory),
    Check(name="machine.clock", look=clock),
    Check(name="machine.gpu", look=gpu),
)
"""In the order they are told in."""

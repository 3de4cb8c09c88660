"""Facts of the machine a run was measured on."""

import datetime
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("mlflow", "wandb", "tensorboard", "torch", "msgspec", "SQLAlchemy", "opusclip-mlops")


def facts() -> dict[str, Any]:
    """Cores, kernel, Python, versions, file system, date, and the load at the start."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": _file_system(Path(tempfile.gettempdir())),
        "load_1min": os.getloadavg()[0],
        "packages": {name: version(name) for name in PACKAGES},
        "peers": _peer_versions(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(path: Path) -> str:
    """The type of the file system that holds a folder."""
    around = [
        (len(one.mountpoint), one.fstype)
        for one in psutil.disk_partitions(all=True)
        if path.resolve().is_relative_to(one.mountpoint)
    ]
    return max(around)[1] if around else ""


def _peer_versions() -> dict[str, str]:
    lines = (Path(__file__).parent / "peers.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: pins[name] for name in ("tensorboardX", "trackio") if name in pins}

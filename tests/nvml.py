"""A stand-in for the NVIDIA driver's library, and Python in processes that find it.

The test that needs it compiles it. Without a C compiler the test is skipped, except with CI=true:
there it fails.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Told = Callable[[Path, str], list[Any]]

LIBRARY = "libnvidia-ml.so.1"
MISSING = "no C compiler for the stand-in of NVML (apt-get install gcc libc6-dev)"

_SOURCE = Path(__file__).with_name("nvml_stub.c")
_PRELUDE = """
import json, os, sys, time
from pathlib import Path
from opusclip_mlops import performance, system_metrics
from opusclip_mlops.performance import PerformanceMeter
from opusclip_mlops.system_metrics import SystemMeter
SETTINGS = Path(os.environ["NVML_STUB"])

def drive(**settings):
    new = SETTINGS.with_suffix(".new")
    new.write_text("".join(f"{name} {value}\\n" for name, value in settings.items()))
    new.replace(SETTINGS)

def calls():
    path = Path(f"{SETTINGS}.calls")
    return path.read_text().split() if path.exists() else []

def gpu_keys(found):
    return {key: value for key, value in found.items() if "gpu_" in key}

def sample(meter, *pids):
    return gpu_keys(meter.sample(pids))

def measure(meter):
    return gpu_keys(meter.measure(step=0))

def tell(value):
    print(json.dumps(value))

drive()
"""


def told_with_gpus(folder: Path, code: str) -> list[Any]:
    """What `code` tells, a value a call of `tell`, where there are two GPUs; it prints no more."""
    return _told(folder, code, _library_folder())


def told_without_gpus(folder: Path, code: str) -> list[Any]:
    """What `code` tells where there is no NVIDIA driver; it prints no more."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    # Found before a real one, and no library.
    (hidden / LIBRARY).touch()
    return _told(folder, code, hidden)


@functools.cache
def _library_folder() -> Path:
    """The folder with the library, compiled once."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None and os.environ.get("CI") != "true":
        pytest.skip(MISSING)
    assert compiler, MISSING
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    argv = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", str(_SOURCE)]
    subprocess.run([*argv, "-o", str(folder / LIBRARY)], check=True)
    return folder


def _told(folder: Path, code: str, libraries: Path) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + code],
        env={
            **os.environ,
            "PYTHONPATH": str(_SOURCE.parents[1]),
            "LD_LIBRARY_PATH": str(libraries),
            "NVML_STUB": str(folder / "nvml"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

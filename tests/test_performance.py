"""Facts about `opusclip_mlops.performance`: plausible numbers, and none where there are none."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest
import torch

from opusclip_mlops.performance import PerformanceMeter


def work(*, cpu_s: float) -> None:
    """Use the processor for so long."""
    end_s = time.process_time() + cpu_s
    while time.process_time() < end_s:
        sum(range(1000))


def has_nvidia_driver() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


without_driver = pytest.mark.skipif(has_nvidia_driver(), reason="there is an NVIDIA driver")


def clocks() -> tuple[float, float]:
    """Seconds on the processor and on the wall."""
    return time.process_time(), time.perf_counter()


def test_cpu_is_that_since_the_last_call() -> None:
    """Percent of one core, by the clocks, for a process at work and for one that slept."""
    before = clocks()
    meter = PerformanceMeter()
    for use in (lambda: work(cpu_s=0.2), lambda: time.sleep(0.2)):
        began = clocks()
        use()
        ended = clocks()
        share = meter.measure(step=0)["cpu_percent"] / 100
        after = clocks()
        assert share >= (ended[0] - began[0]) / (after[1] - before[1])
        assert share <= (after[0] - before[0]) / (ended[1] - began[1])
        before = ended


def test_memory_is_that_of_this_process() -> None:
    """Resident memory, in megabytes of a million bytes, grows with what is kept."""
    meter = PerformanceMeter()
    before = meter.measure(step=0)["rss_megabytes"]
    kept = bytearray(os.urandom(1)) * 200_000_000
    after = meter.measure(step=1)["rss_megabytes"]
    assert after - before == pytest.approx(len(kept) / 1e6, rel=0.2)
    assert 10 < before < psutil.virtual_memory().total / 1e6


def test_speed_is_steps_over_time() -> None:
    """Steps per second are those since the last call, by the clock on the wall."""
    meter = PerformanceMeter()
    start_s = time.perf_counter()
    meter.measure(step=10)
    time.sleep(0.2)
    speed = meter.measure(step=30)["steps_per_s"]
    longest_s = time.perf_counter() - start_s
    assert 20 / longest_s <= speed <= 20 / 0.2


def test_there_is_no_speed_without_progress() -> None:
    """Not in the first call, and not where the step stood still or went back."""
    meter = PerformanceMeter()
    assert "steps_per_s" not in meter.measure(step=5)
    assert "steps_per_s" not in meter.measure(step=5)
    assert "steps_per_s" not in meter.measure(step=3)
    assert meter.measure(step=4)["steps_per_s"] > 0


def test_everything_is_a_number_that_can_be_logged() -> None:
    """Plain finite floats, also when asked again at once."""
    meter = PerformanceMeter()
    for step in range(3):
        found = meter.measure(step=step)
        assert {type(value) for value in found.values()} == {float}
        assert all(0 <= value < 1e12 for value in found.values())


def test_a_forked_child_measures_itself() -> None:
    """Its processor time begins again at 0, which is no negative use."""
    meter = PerformanceMeter()
    work(cpu_s=0.1)
    meter.measure(step=0)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if meter.measure(step=1)["cpu_percent"] >= 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0


@without_driver
def test_without_a_driver_there_are_no_gpu_values() -> None:
    """NVML's library is not there: no fault, and no key that says 0."""
    assert torch.cuda.is_available() is False
    assert [key for key in PerformanceMeter().measure(step=0) if "gpu" in key] == []


def test_measuring_imports_neither_torch_nor_numpy() -> None:
    """A process that does not use torch is not made to load it."""
    code = (
        "import sys; from opusclip_mlops.performance import PerformanceMeter\n"
        "PerformanceMeter().measure(step=0); print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"psutil", "pynvml"} <= set(done.stdout.split())
    assert {"torch", "numpy"}.isdisjoint(done.stdout.split())


def refuse(*_: object) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


ANSWERS = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlDeviceGetCount": lambda: 2,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=(handle + 1) * 10**9),
    "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=40 + handle),
}
EVERYTHING = {
    "gpu_0_utilization_percent": 40.0,
    "gpu_0_memory_megabytes": 1000.0,
    "gpu_1_utilization_percent": 41.0,
    "gpu_1_memory_megabytes": 2000.0,
}


@without_driver
@pytest.mark.parametrize(
    ("refused", "left_out"),
    [
        (None, ""),
        ("nvmlInit", "gpu_"),
        ("nvmlDeviceGetCount", "gpu_"),
        ("nvmlDeviceGetHandleByIndex", "gpu_"),
        ("nvmlDeviceGetUtilizationRates", "utilization"),
        ("nvmlDeviceGetMemoryInfo", "memory"),
        ("nvmlShutdown", ""),
    ],
)
def test_what_a_driver_refuses_is_left_out(
    refused: str | None, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Virtual and integrated GPUs do not tell everything; what they tell is measured."""
    for name, answer in ANSWERS.items():
        monkeypatch.setattr(pynvml, name, refuse if name == refused else answer)
    found = PerformanceMeter().measure(step=0)
    gpus = {key: value for key, value in found.items() if key.startswith("gpu_")}
    assert gpus == {k: v for k, v in EVERYTHING.items() if not left_out or left_out not in k}

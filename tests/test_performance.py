"""Facts about `opusclip_mlops.performance`: plausible numbers, and none where there are none."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from opusclip_mlops.performance import PerformanceMeter
from tests import nvml


def work(*, cpu_s: float) -> None:
    """Use the processor for so long."""
    end_s = time.process_time() + cpu_s
    while time.process_time() < end_s:
        sum(range(1000))


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


def test_measuring_imports_neither_torch_nor_numpy() -> None:
    """A process that does not use torch is not made to load it."""
    code = (
        "import sys; from opusclip_mlops.performance import PerformanceMeter\n"
        "PerformanceMeter().measure(step=0); print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"psutil", "pynvml"} <= set(done.stdout.split())
    assert {"torch", "numpy"}.isdisjoint(done.stdout.split())


EVERYTHING = {
    "gpu_0_utilization_percent": 40.0,
    "gpu_0_memory_megabytes": 1000.0,
    "gpu_1_utilization_percent": 41.0,
    "gpu_1_memory_megabytes": 2000.0,
}
METER = "meter = PerformanceMeter()\n"


def test_without_a_driver_there_are_no_gpu_values(tmp_path: Path) -> None:
    """NVML's library is not there: no fault, no word, and no key that says 0."""
    code = METER + "tell(measure(meter)); tell(measure(meter)); tell(len(meter.measure(step=1)))"
    assert nvml.told_without_gpus(tmp_path, code) == [{}, {}, 3]


def test_gpus_are_measured_through_a_library_opened_once(tmp_path: Path) -> None:
    """Opening it takes longer than all that is asked of it."""
    code = "for _ in range(3): tell(measure(meter))\ntell(calls())"
    assert nvml.told_with_gpus(tmp_path, METER + code) == [*[EVERYTHING] * 3, ["init"]]


def test_what_a_driver_refuses_is_left_out(tmp_path: Path) -> None:
    """Virtual and integrated GPUs do not tell everything; what they tell is measured."""
    refused = {
        "nvmlInitWithFlags": "gpu_",
        "nvmlDeviceGetCount_v2": "gpu_",
        "nvmlDeviceGetHandleByIndex_v2": "gpu_",
        "nvmlDeviceGetUtilizationRates": "utilization",
        "nvmlDeviceGetMemoryInfo": "memory",
        "nvmlDeviceGetUUID": "nothing",
    }
    code = f"for name in {[*refused]}: drive(**{{name: 3}}); tell(measure(PerformanceMeter()))\n"
    told = nvml.told_with_gpus(tmp_path, code)
    for left_out, found in zip(refused.values(), told, strict=True):
        assert found == {key: value for key, value in EVERYTHING.items() if left_out not in key}


def test_a_gpu_that_falls_off_the_bus_is_left_out(tmp_path: Path) -> None:
    """The other one is measured all the time, and it too once it is back."""
    code = """
performance.RETRY_S = 0.0
tell(measure(meter))
drive(lost=0)
tell(measure(meter))
tell(measure(meter))
drive()
tell(measure(meter))
"""
    second = {key: value for key, value in EVERYTHING.items() if "gpu_1" in key}
    found = nvml.told_with_gpus(tmp_path, METER + code)
    assert found == [EVERYTHING, second, second, EVERYTHING]


@pytest.mark.parametrize("retry_s", [60.0, 0.0])
def test_a_driver_that_comes_later_is_found(retry_s: float, tmp_path: Path) -> None:
    """It is looked for again, but not at every call."""
    code = f"""
performance.RETRY_S = {retry_s}
drive(nvmlInitWithFlags=9)
for _ in range(5): tell(measure(meter))
tell(len(calls()))
drive()
tell(measure(meter))
"""
    *none, openings, found = nvml.told_with_gpus(tmp_path, METER + code)
    assert none == [{}] * 5
    assert (openings, found) == ((1, {}) if retry_s else (5, EVERYTHING))

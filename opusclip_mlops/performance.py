"""What the training process uses, measured now: CPU, memory, GPU."""

import contextlib
import importlib
import sys
import time
from typing import Any


class PerformanceMeter:
    """Measures this process; rates are over the time since the last measurement."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self._last_cpu_s = time.process_time()
        self._last_step: int | None = None

    def measure(self, *, step: int) -> dict[str, float]:
        """Measure CPU (percent of one core), memory (megabytes), speed (steps/s) and GPUs.

        `step` is the training step reached; `steps_per_s` is there when it has risen since the
        last call. What a GPU's driver does not tell is left out.
        """
        now_s, cpu_s = time.perf_counter(), time.process_time()
        elapsed_s = max(now_s - self._last_s, 1e-9)
        found = {
            # A forked child's CPU time begins at 0 again.
            "cpu_percent": max(0.0, 100 * (cpu_s - self._last_cpu_s) / elapsed_s),
            **_memory_megabytes(),
            **_gpus(),
        }
        if self._last_step is not None and step > self._last_step:
            found["steps_per_s"] = (step - self._last_step) / elapsed_s
        self._last_s, self._last_cpu_s, self._last_step = now_s, cpu_s, step
        return found


def _memory_megabytes() -> dict[str, float]:
    import psutil

    found = {"rss_megabytes": psutil.Process().memory_info().rss / 1e6}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu_allocated_megabytes"] = torch.cuda.memory_allocated() / 1e6
        found["gpu_peak_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def _gpus() -> dict[str, float]:
    """Utilisation and memory of each GPU by NVML; nothing where there is no NVIDIA driver."""
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    found: dict[str, float] = {}
    with contextlib.suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            found |= _gpu(nvml, index)
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()
    return found


def _gpu(nvml: Any, index: int) -> dict[str, float]:
    """What one GPU tells: a virtual one has no utilisation, an integrated one no memory."""
    found = {}
    with contextlib.suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        with contextlib.suppress(nvml.NVMLError):
            use = nvml.nvmlDeviceGetUtilizationRates(handle)
            found[f"gpu_{index}_utilization_percent"] = float(use.gpu)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        found[f"gpu_{index}_memory_megabytes"] = memory.used / 1e6
    return found

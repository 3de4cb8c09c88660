"""What the training process uses, measured now: CPU, memory, GPU."""

import importlib
import math
import sys
import time
from typing import Any

RETRY_S = 60.0
"""How long NVML is left alone after a failure, before it is opened again."""


class PerformanceMeter:
    """Measures this process; rates are over the time since the last measurement."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self._last_cpu_s = time.process_time()
        self._last_step: int | None = None
        self._gpus = Gpus()

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
            **_gpu_use(self._gpus),
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


def _gpu_use(gpus: "Gpus") -> dict[str, float]:
    """Utilisation and memory: a virtual GPU has not the one, an integrated GPU not the other."""
    found = {}
    for number in gpus.numbers():
        if (use := gpus.ask(number, "UtilizationRates")) is not None:
            found[f"gpu_{number}_utilization_percent"] = float(use.gpu)
        if (memory := gpus.ask(number, "MemoryInfo")) is not None:
            found[f"gpu_{number}_memory_megabytes"] = memory.used / 1e6
    return found


class Gpus:
    """The machine's NVIDIA GPUs, by NVML; none where there is no driver.

    NVML is opened once. After it failed, or lost a GPU, it is opened anew, at most every `RETRY_S`.
    A GPU keeps its number as long as this object lives, whichever others come and go.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._errors: tuple[type[BaseException], ...] = ()
        self._handles: dict[int, Any] = {}
        self._numbers: dict[str, int] = {}
        self._is_open = False
        self._is_faulty = False
        self._not_before_s = -math.inf

    def numbers(self) -> list[int]:
        """The GPUs there are now, by number."""
        is_whole = self._handles and len(self._handles) >= len(self._numbers)
        if (self._is_faulty or not is_whole) and time.monotonic() >= self._not_before_s:
            self._open()
            self._not_before_s = time.monotonic() + RETRY_S
        return sorted(self._handles)

    def ask(self, number: int, what: str) -> Any:
        """Give NVML's answer for one GPU, such as its `MemoryInfo`; None when it gives none."""
        handle = self._handles.get(number)
        return None if handle is None else self._answer(f"DeviceGet{what}", handle)

    def _answer(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, f"nvml{name}")(*arguments)
        except self._errors as error:
            self._is_faulty |= self._is_fault(error)
            return None

    def _is_fault(self, error: Any) -> bool:
        """Whether something is amiss, rather than a question not meant for this GPU or driver."""
        names = ("NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "TIMEOUT", "NO_DATA")
        harmless = {getattr(self._nvml, f"NVML_ERROR_{name}") for name in names}
        return isinstance(error, self._nvml.NVMLError) and error.value not in harmless

    def _open(self) -> None:
        self._close()
        if self._nvml is None and not self._found_library():
            return
        try:
            self._nvml.nvmlInit()
        except self._errors:
            return
        self._is_open = True
        for index in range(self._answer("DeviceGetCount") or 0):
            self._add(index)

    def _found_library(self) -> bool:
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return False
        error: type[Exception] = self._nvml.NVMLError
        # What newer bindings raise for a function the driver is too old for.
        self._errors = (error, getattr(self._nvml, "NVMLLibraryMismatchError", error))
        return True

    def _close(self) -> None:
        self._handles.clear()
        if self._is_open:
            self._answer("Shutdown")
        self._is_open = self._is_faulty = False

    def _add(self, index: int) -> None:
        """Number a GPU: NVML's index at first, and the same later though NVML may count anew."""
        handle = self._answer("DeviceGetHandleByIndex", index)
        if handle is None:
            return
        uuid, taken = self._answer("DeviceGetUUID", handle), self._numbers.values()
        number = index if index not in taken else max(taken) + 1
        self._handles[number if uuid is None else self._numbers.setdefault(uuid, number)] = handle

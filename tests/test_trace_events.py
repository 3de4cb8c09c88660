"""Facts about `opusclip_mlops.trace_events`: operators as torch.profiler itself adds them up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile, record_function

from opusclip_mlops.trace_events import COLUMNS, memory_counters, top_operators

MAIN, BACKWARD, STREAM = 1, 2, 7


def span(
    name: str, begin_us: float, end_us: float, tid: int = MAIN, cat: str = "cpu_op", at: int = 0
) -> dict[str, Any]:
    return {
        "ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": begin_us,
        "dur": end_us - begin_us, "args": {"External id": at},
    }  # fmt: skip


def table(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in top_operators(events)[0]]
    return {one["operator"]: one for one in rows}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    """Three steps of a small model: what torch adds up, and the trace."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    with profile(profile_memory=True) as found:
        for step in range(3):
            with record_function(f"ProfilerStep#{step}"):
                model(torch.ones(4, 16)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    found.export_chrome_trace(str(path))
    return found, list(json.loads(Path(path).read_text())["traceEvents"])


def test_times_and_calls_are_those_of_the_profiler(
    profiled: tuple[Any, list[dict[str, Any]]],
) -> None:
    """Of each operator, by itself and with what it calls; their sum too."""
    found, events = profiled
    averages = {one.key: one for one in found.key_averages()}
    averages["(outside operators)"] = averages.pop("ProfilerStep*")
    rows, total_us = top_operators(events)
    assert len(rows) == 20
    for row in rows:
        name, calls, self_us, _, total_us_of_one, *_ = row
        theirs = averages[name]
        assert calls == theirs.count
        assert self_us == pytest.approx(theirs.self_cpu_time_total, rel=1e-3, abs=0.1)
        assert total_us_of_one == pytest.approx(theirs.cpu_time_total, rel=1e-3, abs=0.1)
    every = sum(one.self_cpu_time_total for one in averages.values())
    assert total_us == {"cpu": pytest.approx(every, rel=1e-3), "gpu": 0}
    times = [row[2] for row in rows]
    assert times == sorted(times, reverse=True)


def test_a_span_inside_another_is_not_its_own_time() -> None:
    """Nor is one that begins or ends with it; each thread by itself."""
    found = table([
        span("ProfilerStep#0", 0, 100, cat="user_annotation"),
        span("outer", 10, 60), span("inner", 10, 30), span("inner", 50, 60),
        span("leaf", 20, 30), span("outer", 60, 70), span("outer", 20, 25, BACKWARD),
    ])  # fmt: skip
    assert {name: one["self_cpu_us"] for name, one in found.items()} == {
        "(outside operators)": 40, "outer": 35, "inner": 20, "leaf": 10
    }  # fmt: skip
    assert (found["outer"]["calls"], found["outer"]["total_cpu_us"]) == (3, 65)
    assert sum(one["self_cpu_share"] for one in found.values()) == pytest.approx(1)
    handed_on = table([span("sum", 0, 10), span("sum", 2, 8), span("add", 3, 4)])
    assert [handed_on["sum"][one] for one in ("calls", "self_cpu_us", "total_cpu_us")] == [1, 9, 10]


def test_a_kernels_time_is_the_operators_that_began_it() -> None:
    """It counts once, though a step has a span on the GPU too; the slowest there stand first."""
    events = [
        span("ProfilerStep#0", 0, 100, cat="user_annotation", at=1),
        span("aten::mm", 10, 20, at=2),
        span("cudaLaunchKernel", 12, 14, cat="cuda_runtime", at=2),
        span("aten::add", 30, 80, at=3),
        span("ProfilerStep#0", 10, 900, STREAM, "gpu_user_annotation"),
        span("sgemm", 15, 315, STREAM, "kernel", at=2),
        span("Memcpy HtoD", 320, 400, STREAM, "gpu_memcpy", at=3),
        span("triton_", 400, 420, STREAM, "kernel", at=99),
    ]
    rows, total_us = top_operators(events)
    assert total_us == {"cpu": 100, "gpu": 400}
    assert [(row[0], row[5], row[6]) for row in rows] == [
        ("aten::mm", 300, 0.75), ("aten::add", 80, 0.2), ("(outside operators)", 20, 0.05),
        ("cudaLaunchKernel", 0, 0),
    ]  # fmt: skip


def test_an_empty_trace_has_no_operators() -> None:
    """And nothing is divided by its time."""
    assert top_operators([]) == ([], {"cpu": 0, "gpu": 0})
    assert top_operators([span("a", 5, 5)])[0] == [["a", 1, 0, 0.0, 0, 0.0, 0.0]]


def test_memory_is_a_line_for_each_device(profiled: tuple[Any, list[dict[str, Any]]]) -> None:
    """As much as the allocator said at each moment."""
    events = profiled[1]
    said = [one["args"]["Total Allocated"] for one in events if one.get("name") == "[memory]"]
    counters = list(memory_counters(events))
    assert said
    assert [one["args"]["bytes"] for one in counters] == said
    assert {(one["ph"], one["name"]) for one in counters} == {("C", "allocated memory (cpu)")}
    about = {"Device Type": 1, "Device Id": 3, "Total Allocated": 5}
    on_gpu = {"ph": "i", "name": "[memory]", "pid": 1, "ts": 2.5, "args": about}
    [counter] = memory_counters([on_gpu])
    assert (counter["name"], counter["ts"]) == ("allocated memory (device 3)", 2.5)

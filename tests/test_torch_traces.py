"""Facts about `opusclip_mlops.torch_traces`: what is profiled, and what is left of it."""

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile, record_function

from opusclip_mlops.torch_traces import StepProfiler, Trace
from opusclip_mlops.trace_events import top_operators


class Kept:
    """Keeps traces, and what stood in the way of one."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.faults: list[Exception] = []

    def profiler(self, first: int, end: int, folder: Path) -> StepProfiler:
        return StepProfiler(
            first, end, folder=folder, keep=self.traces.append, tell=self.faults.append
        )

    @property
    def trace(self) -> Trace:
        [trace] = self.traces
        assert self.faults == []
        return trace

    @property
    def fault(self) -> str:
        [fault] = self.faults
        assert self.traces == []
        return str(fault)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Any:
    yield
    assert not torch.autograd._profiler_enabled()


def work() -> None:
    weights = torch.ones(32, 32, requires_grad=True)
    (weights @ weights).sum().backward()


def events(trace: Trace) -> list[dict[str, Any]]:
    return list(json.loads(gzip.decompress(trace.document))["traceEvents"])


def steps(trace: Trace) -> list[str]:
    return [one["name"] for one in events(trace) if one["name"].startswith("ProfilerStep#")]


def test_the_steps_asked_for_are_in_the_trace(kept: Kept, tmp_path: Path) -> None:
    """The others are not, and it is done behind the last."""
    profiler = kept.profiler(2, 4, tmp_path)
    for step in range(6):
        profiler.begin(step)
        work()
    assert profiler.is_done
    assert kept.trace.steps == (2, 3)
    assert steps(kept.trace) == ["ProfilerStep#2", "ProfilerStep#3"]
    assert [one["name"] for one in events(kept.trace)].count("aten::matmul") == 2
    assert kept.trace.made_by == f"torch.profiler {torch.__version__}"
    assert list(tmp_path.glob("*.json*")) == []


def test_a_trace_is_what_viewers_read(kept: Kept, tmp_path: Path) -> None:
    """Each span has a name, a place, a beginning and a length; memory is a line of its own."""
    with kept.profiler(0, 1, tmp_path):
        work()
    found = events(kept.trace)
    spans = [one for one in found if one["ph"] == "X"]
    assert {"aten::mm", "ProfilerStep#0"} <= {one["name"] for one in spans}
    for one in spans:
        assert {"pid", "tid"} <= one.keys()
        assert one["ts"] > 0
        assert one["dur"] >= 0
    memory = [one for one in found if one["ph"] == "C"]
    assert max(one["args"]["bytes"] for one in memory) >= 3 * 32 * 32 * 4
    assert str(tmp_path) not in gzip.decompress(kept.trace.document).decode()


@pytest.mark.parametrize("name", ['load "a.mp4"', 'a", "pid": 1, "b', "<i>'&'</i>"])
def test_a_part_may_be_named_as_one_likes(kept: Kept, tmp_path: Path, name: str) -> None:
    """Torch writes quotes as they are, which is no JSON: the trace is kept nevertheless."""
    with kept.profiler(0, 1, tmp_path), record_function(name):
        work()
    assert name in [one["name"] for one in events(kept.trace)]
    assert name in [row[0] for row in kept.trace.operators]


def test_operators_are_read_from_the_trace(kept: Kept, tmp_path: Path) -> None:
    """Their rows are those of the trace that is kept, in JSON values."""
    with kept.profiler(0, 3, tmp_path) as block:
        for _ in range(3):
            work()
            block.step()
    assert kept.trace.operators == top_operators(events(kept.trace))[0]
    assert {row[0]: row[1] for row in kept.trace.operators}["aten::mm"] == 9
    json.dumps([kept.trace.operators, kept.trace.content()], allow_nan=False)


def test_a_block_that_raises_leaves_the_trace_up_to_there(kept: Kept, tmp_path: Path) -> None:
    """And no profiler at work."""

    def diverging() -> None:
        with kept.profiler(0, 5, tmp_path) as block:
            work()
            block.step()
            work()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        diverging()
    assert kept.trace.steps == (0, 1)
    assert steps(kept.trace) == ["ProfilerStep#0", "ProfilerStep#1"]


def test_a_loop_that_ends_before_them_profiles_nothing(kept: Kept, tmp_path: Path) -> None:
    """That is no fault."""
    with kept.profiler(5, 9, tmp_path) as block:
        work()
        block.step()
    assert (kept.traces, kept.faults) == ([], [])


def test_several_logs_of_a_step_are_one_step(kept: Kept, tmp_path: Path) -> None:
    """And an earlier step is none either, such as an evaluation's."""
    profiler = kept.profiler(1, 3, tmp_path)
    for step in (0, 1, 1, 0, 2, 2, 3):
        profiler.begin(step)
    assert steps(kept.trace) == ["ProfilerStep#1", "ProfilerStep#2"]


@pytest.mark.parametrize("logged", [[0, 500], [0, 9, 18], [600]])
def test_steps_without_a_log_of_each_are_not_profiled(
    kept: Kept, tmp_path: Path, logged: list[int]
) -> None:
    """Their end would come far too late, or they are over: it is said what to do."""
    profiler = kept.profiler(10, 13, tmp_path)
    for step in logged:
        profiler.begin(step)
    assert profiler.is_done
    assert "steps 10 to 12 passed without a log of each" in kept.fault
    assert "tracker.profiled" in kept.fault


def test_a_profiler_at_work_is_left_alone(kept: Kept, tmp_path: Path) -> None:
    """The user's own goes on and has all; ours says why it has nothing."""
    with profile() as own, kept.profiler(0, 2, tmp_path) as block:
        work()
        block.step()
        work()
    assert "another profiler is at work" in kept.fault
    assert {one.key: one.count for one in own.key_averages()}["aten::mm"] == 6


def test_a_profiler_that_is_begun_later_is_not_stopped(kept: Kept, tmp_path: Path) -> None:
    """It has what it would have alone, whether it ends before the profiled steps or after."""
    with kept.profiler(0, 9, tmp_path), profile() as inner:
        work()
    assert {one.key: one.count for one in inner.key_averages()}["aten::mm"] == 3
    profiler = kept.profiler(0, 2, tmp_path)
    profiler.begin(0)
    with profile() as outer:
        profiler.begin(2)
        work()
    assert {one.key: one.count for one in outer.key_averages()}["aten::mm"] == 3
    assert ["another profiler was begun" in str(one) for one in kept.faults] == [True, True]
    assert kept.traces == []


def test_another_threads_steps_are_not_ours(kept: Kept, tmp_path: Path) -> None:
    """A profiler is its thread's own: the steps of others neither move nor end it."""
    profiler = kept.profiler(0, 2, tmp_path)
    profiler.begin(0)
    other = threading.Thread(target=profiler.begin, args=(5,))
    other.start()
    other.join()
    work()
    profiler.begin(2)
    assert steps(kept.trace) == ["ProfilerStep#0"]


def test_steps_that_another_thread_ends_are_lost_and_said(kept: Kept, tmp_path: Path) -> None:
    """Only their own thread can stop the profiler: it does so before Python ends."""
    profiler = kept.profiler(0, 2, tmp_path)
    profiler.begin(0)
    recording = profiler._recording
    assert recording
    other = threading.Thread(target=profiler.stop)
    other.start()
    other.join()
    assert "ended by another thread" in kept.fault
    assert torch.autograd._profiler_enabled()
    recording._abandon()


def test_a_forked_child_does_not_profile(kept: Kept, tmp_path: Path) -> None:
    """Neither by the steps it logs nor by its end."""
    profiler = kept.profiler(1, 3, tmp_path)
    profiler.begin(0)
    child = os.fork()
    if child == 0:
        profiler.begin(1)
        profiler.stop()
        os._exit(int(torch.autograd._profiler_enabled() or bool(kept.traces or kept.faults)))
    assert os.waitpid(child, 0)[1] == 0
    profiler.begin(1)
    profiler.begin(3)
    assert kept.trace.steps == (1, 1)


def test_a_disk_that_is_full_is_told(kept: Kept, tmp_path: Path) -> None:
    """There is nothing to be raised in training."""
    folder = tmp_path / "media"
    with kept.profiler(0, 2, folder):
        work()
    [fault] = kept.faults
    assert isinstance(fault, OSError)
    assert kept.traces == []

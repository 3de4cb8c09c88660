"""A tracker's steps under torch.profiler: what drives it, and what is logged of it."""

import gzip
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from opusclip_mlops import ExperimentTracker, TrackingConfig, accounting, records
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.session import Session
from tests.joined_tracker import joined_tracker, logged, media


@pytest.fixture
def tracker(tmp_path: Path) -> ExperimentTracker:
    return joined_tracker(tmp_path)


@pytest.fixture
def scheduled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentTracker:
    """A whole tracker that profiles steps 2, 3 and 4, but for the shipper: none is started."""
    monkeypatch.setattr(Session, "_start_shipper", lambda _: None)
    config = TrackingConfig(
        journal_dir=str(tmp_path / "journal"), drain_timeout_s=0, profile_steps=(2, 5)
    )
    return ExperimentTracker(config)


def train(tracker: ExperimentTracker, *, raises_at: int = -1) -> None:
    """An ordinary loop of eight steps."""
    layer = torch.nn.Linear(8, 8)
    with tracker:
        for step in range(8):
            layer(torch.ones(2, 8)).sum().backward()
            if step == raises_at:
                raise ValueError("diverged")
            tracker.log_metrics({"loss": 1.0}, step)
        assert tracker._profiler is None
        assert not torch.autograd._profiler_enabled()


def steps_in(path: Path) -> list[str]:
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [one["name"] for one in found if one["name"].startswith("ProfilerStep#")]


def check_profiled(tracker: ExperimentTracker, steps: list[int], *, at: int) -> None:
    """The trace and the table of its operators are there, at the step the training had reached."""
    found = logged(tracker)
    [trace] = [one for one in found if isinstance(one, records.Insight)]
    [table] = [
        one for one in found
        if isinstance(one, records.Table) and one.key == "profiling/top_operators"
    ]  # fmt: skip
    assert (trace.key, trace.kind, trace.step) == ("profiling/trace", "trace", at)
    assert trace.content["steps"] == [steps[0], steps[-1]]
    assert trace.content["top_operators_key"] == table.key
    assert list(trace.files) == ["trace.json.gz"]
    path = media(tracker) / trace.files["trace.json.gz"]
    assert steps_in(path) == [f"ProfilerStep#{step}" for step in steps]
    assert path.stat().st_mode & 0o777 == 0o600
    assert "aten::addmm" in [row[0] for row in table.rows]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.step == at


def test_the_steps_that_are_logged_drive_the_profiler(scheduled: ExperimentTracker) -> None:
    """`profile_steps=(2, 5)` profiles steps 2, 3 and 4 of an ordinary loop; then it is let go."""
    train(scheduled)
    check_profiled(scheduled, [2, 3, 4], at=4)


def test_a_model_that_raises_leaves_the_trace_up_to_there(scheduled: ExperimentTracker) -> None:
    """The run fails with its own error, and no profiler is left at work."""
    with pytest.raises(ValueError, match="diverged"):
        train(scheduled, raises_at=3)
    assert not torch.autograd._profiler_enabled()
    check_profiled(scheduled, [2, 3], at=2)
    [end] = [one for one in logged(scheduled) if isinstance(one, records.RunEnded)]
    assert (end.status, end.reason) == ("FAILED", "ValueError: diverged")


def test_a_tracker_without_a_schedule_has_no_profiler(tracker: ExperimentTracker) -> None:
    """A log call looks at one attribute, and torch is not asked."""
    tracker.log_metrics({"loss": 1.0}, step=0)
    assert tracker._profiler is None


def test_a_block_is_profiled(tracker: ExperimentTracker) -> None:
    """By its own steps, whatever is logged."""
    layer = torch.nn.Linear(8, 8)
    tracker.log_metrics({"loss": 1.0}, step=40)
    with tracker.profiled((1, 3)) as block:
        for _ in range(5):
            layer(torch.ones(2, 8)).sum().backward()
            block.step()
    check_profiled(tracker, [1, 2], at=40)


def test_threads_that_log_at_once_do_not_disturb_the_profiler(scheduled: ExperimentTracker) -> None:
    """One of them is profiled; none fails, whoever comes first."""
    go = threading.Barrier(4)

    def work(number: int) -> int:
        go.wait()
        for step in range(50):
            scheduled.log_metrics({f"loss/{number}": 1.0}, step)
        return number

    with scheduled, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [0, 1, 2, 3]


def test_a_block_that_is_never_left_ends_with_the_tracker(scheduled: ExperimentTracker) -> None:
    """Else the profiler is at work when Python ends, and Python crashes."""
    block = scheduled.profiled((0, 50))
    block.__enter__()
    torch.nn.Linear(8, 8)(torch.ones(2, 8))
    block.step()
    scheduled.profiled((0, 3))
    scheduled.close()
    assert not torch.autograd._profiler_enabled()
    check_profiled(scheduled, [0, 1], at=0)


def test_a_block_without_steps_is_profiled_as_one(tracker: ExperimentTracker) -> None:
    """All of it."""
    with tracker.profiled():
        torch.nn.Linear(8, 8)(torch.ones(2, 8))
    check_profiled(tracker, [0], at=0)


def test_a_trace_that_the_disk_cannot_take_is_counted_and_said(
    tracker: ExperimentTracker, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is raised in training."""
    shutil.rmtree(media(tracker))
    with tracker.profiled():
        torch.ones(2) + torch.ones(2)
    assert "opusclip: profiling: FileNotFoundError" in capfd.readouterr().err
    assert accounting.totals(tracker._session.folder.path).lost == 1
    assert logged(tracker) == []


def test_two_profilers_at_once_are_said_and_training_goes_on(
    tracker: ExperimentTracker, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, in one line."""
    with torch.profiler.profile() as own, tracker.profiled((0, 2)) as block:
        for _ in range(3):
            torch.ones(2) + torch.ones(2)
            block.step()
    assert "aten::add" in [one.key for one in own.key_averages()]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("opusclip:")]
    assert said == ["opusclip: profiling: another profiler is at work: nothing is profiled here"]
    assert logged(tracker) == []


@pytest.mark.parametrize("steps", [None, 3, (3, 3), (-1, 2), (0, 101), (0,), ("a", "b"), "12"])
def test_steps_that_are_no_span_are_refused(tracker: ExperimentTracker, steps: Any) -> None:
    """In the caller's line, with what they may be."""
    with pytest.raises(ConfigError, match="steps must be a first step and a later one"):
        tracker.profiled(steps)

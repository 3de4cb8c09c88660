"""Facts about `opusclip_mlops.profiling`: what a tracker logs of a loop's time, read back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opusclip_mlops import ExperimentTracker, TrackingConfig, journal
from opusclip_mlops.errors import DeliveryError, OpusclipError, RecordError
from opusclip_mlops.records import Metrics, Table, Text
from opusclip_mlops.session import Session


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """What torch does once, at the first step, is no part of a loop."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentTracker]:
    """A tracker whose journal nobody delivers, and which is not waited for."""
    monkeypatch.setattr(Session, "_start_shipper", lambda _: None)
    monkeypatch.setattr(Session, "wait_until_ended", lambda *_, **__: True)
    config = TrackingConfig(
        use_wandb=False, use_tensorboard=False, system_metrics=False, profile_interval_s=0.2,
    )  # fmt: skip
    with ExperimentTracker(config) as made:
        yield made


def records(tracker: ExperimentTracker, kind: type) -> list:
    """What was logged so far, of a kind."""
    paths = tracker._session.folder.segments()
    items = (item for path in paths for item in journal.read(path))
    found = [item.record for item in items if isinstance(item, journal.Entry)]
    return [one for one in found if isinstance(one, kind)]


def sums(tracker: ExperimentTracker, ending: str) -> dict[str, float]:
    """The values of all points whose keys end so, added up by key."""
    found: dict[str, float] = {}
    for record in records(tracker, Metrics):
        for key, value in record.values.items():
            if key.endswith(ending):
                found[key] = found.get(key, 0.0) + value
    return found


def test_uses_are_logged_added_up_and_none_is_missing(tracker: ExperimentTracker) -> None:
    """A few points for thousands of uses, as blocks and by a decorator, to the last."""

    @tracker.profile_operation("decode", "data")
    def decode() -> None:
        pass

    began_s = time.monotonic()
    uses = 0
    while uses < 20_000 or time.monotonic() - began_s < 0.5:
        with tracker.profile_operation("step"):
            decode()
        uses += 1
    tracker.close()
    counts = sums(tracker, "/count")
    assert counts == {"profiling/operation/step/count": uses, "profiling/data/decode/count": uses}
    points = records(tracker, Metrics)
    assert 2 <= len(points) <= 2 + (time.monotonic() - began_s) / 0.2
    assert all("profiling/interval/seconds" in one.values for one in points)


def test_intervals_are_not_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sums already: with a point of a low key every 100 steps, each of them is there."""
    monkeypatch.setattr(Session, "_start_shipper", lambda _: None)
    monkeypatch.setattr(Session, "wait_until_ended", lambda *_, **__: True)
    config = TrackingConfig(log_intervals={"low": 100, "medium": 100}, system_metrics=False)
    with ExperimentTracker(config) as tracker:
        for step in range(10):
            with tracker.profile_operation("step"):
                pass
            tracker.log_metrics({"performance/x": 1.0}, step)
            tracker._operations.flush()
    assert sums(tracker, "step/count") == {"profiling/operation/step/count": 10}
    assert sums(tracker, "performance/x") == {"performance/x": 1.0}


def test_the_wait_for_the_run_s_id_is_named(
    tracker: ExperimentTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where MLflow has not answered yet; the error says which setting is how long it waits."""
    monkeypatch.setattr(tracker, "config", replace(tracker.config, drain_timeout_s=0.3))
    with pytest.raises(DeliveryError, match=r"within drain_timeout_s \(0.3 s\): no answer yet"):
        _ = tracker.run_id
    with tracker.profile_operation("asked"):
        pass
    tracker.flush(timeout_s=0)
    assert sums(tracker, "tracker/run_id/self_ms")["profiling/tracker/run_id/self_ms"] >= 300


def test_an_exception_loses_nothing(tracker: ExperimentTracker) -> None:
    """What was under way is counted, and the last interval is logged before the run's end."""
    with pytest.raises(ValueError, match="no"), tracker, tracker.profile_operation("step"):
        raise ValueError("no")
    assert sums(tracker, "/count") == {"profiling/operation/step/count": 1}


def test_flush_ends_the_interval(tracker: ExperimentTracker) -> None:
    """What was timed so far is logged then, not only when the interval is over."""
    with tracker.profile_operation("step"):
        pass
    tracker.flush(timeout_s=0)
    assert sums(tracker, "/count") == {"profiling/operation/step/count": 1}


def test_a_forked_child_that_closes_leaves_what_it_timed(tracker: ExperimentTracker) -> None:
    """Its close() does not end the run; the parent's own times go on."""
    pid = os.fork()
    if pid == 0:
        with tracker.profile_operation("child"):
            pass
        tracker.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with tracker.profile_operation("parent"):
        pass
    tracker.close()
    assert sums(tracker, "/count") == {
        "profiling/workers/operation/child/count": 1,
        "profiling/operation/parent/count": 1,
    }


def test_very_many_operations_are_several_records(tracker: ExperimentTracker) -> None:
    """None is larger than MLflow takes in a request; their time and step are the same."""
    tracker._operations.due_ns = 2**62
    for number in range(300):
        with tracker.profile_operation(f"step {number}"):
            pass
    tracker.close()
    points = records(tracker, Metrics)
    assert len(points) > 1
    assert max(len(one.values) for one in points) <= 1000
    assert len({(one.timestamp_ms, one.step) for one in points}) == 1
    assert sum(sums(tracker, "/count").values()) == 300


def test_after_close_a_decorated_function_goes_on(tracker: ExperimentTracker) -> None:
    """It outlives its run; only what is logged by hand is refused then."""

    @tracker.profile_operation("f")
    def function() -> int:
        return 3

    tracker.close()
    assert function() == 3
    with pytest.raises(OpusclipError, match="closed"):
        tracker.log_metrics({"a": 1.0})


def test_a_name_that_is_no_key_is_refused(tracker: ExperimentTracker) -> None:
    """In the caller's line."""
    with pytest.raises(RecordError, match="key"):
        tracker.profile_operation("a?b")


def test_a_whole_loop_is_taken_apart(tracker: ExperimentTracker) -> None:
    """Data, forward, backward and checkpoints, with speed; its end is a report."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker.time_model(model)

    def slow() -> Iterator[torch.Tensor]:
        for _ in range(12):
            time.sleep(0.03)
            yield torch.ones(8, 4)

    for step, batch in enumerate(tracker.batches(slow(), frames=2)):
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tracker.log_metrics({"train/loss": loss.detach()}, step)
    tracker.save_checkpoint(model, optimizer, 1, {"val_loss": 0.5})
    tracker.close()
    counts = sums(tracker, "/count")
    assert counts["profiling/loop/forward/count"] == counts["profiling/loop/backward/count"] == 12
    assert counts["profiling/loop/checkpoint/count"] == 1
    keys = {key for one in records(tracker, Metrics) for key in one.values}
    assert {
        "performance/samples_per_s",
        "performance/frames_per_s",
        "performance/data_share",
    } < keys
    [text] = records(tracker, Text)
    assert (text.key, text.text.split()[0]) == ("profiling/bottlenecks", "limit:")
    [table] = records(tracker, Table)
    assert table.key == "profiling/bottlenecks"
    uses = {row[0]: row[1] for row in table.rows}
    assert (uses["loop/forward"], uses["loop/checkpoint"]) == (12, 1)
    assert not model._forward_hooks


def test_profiling_data_are_metrics_and_texts(tracker: ExperimentTracker) -> None:
    """Numbers and mappings of them by key; lists and texts as one text."""
    tracker.log_profiling_data(
        {"timings": {"forward": 1.5}, "steps": 3, "bottlenecks": ["data", "copy"]}, 7
    )
    values = [one.values for one in records(tracker, Metrics)]
    assert values == [{"profiling/timings/forward": 1.5}, {"profiling/steps": 3.0}]
    [text] = records(tracker, Text)
    assert (text.key, text.step, text.text) == ("profiling/bottlenecks", 7, "data\ncopy")


def test_a_kill_loses_one_interval_at_most(tmp_path: Path) -> None:
    """What was logged before stands in the journal; the uses since are gone with the process."""
    code = f"""
import os, sys, time
from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.session import Session
Session._start_shipper = lambda _: None
tracker = ExperimentTracker(TrackingConfig(
    use_wandb=False, use_tensorboard=False, system_metrics=False, profile_interval_s=0.1,
    journal_dir={str(tmp_path / "journal")!r}))
uses = 0
while uses < 60:
    with tracker.profile_operation("step"):
        time.sleep(0.01)
    uses += 1
print(uses, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    uses = int(done.stdout)
    entries = [
        item.record
        for path in sorted((tmp_path / "journal").rglob("*.journal"))
        for item in journal.read(path)
        if isinstance(item, journal.Entry)
    ]
    points = [one for one in entries if isinstance(one, Metrics)]
    counted = sum(one.values["profiling/operation/step/count"] for one in points)
    # The last interval is missing: it held no more uses than fit into a tenth of a second.
    assert uses - 11 <= counted <= uses
    assert len(points) >= 3


def test_workers_of_a_loader_tell_of_their_own_time(tracker: ExperimentTracker) -> None:
    """Each worker process adds up for itself; the run has both kinds of keys."""

    class Clips(torch.utils.data.Dataset[torch.Tensor]):
        """Eight samples."""

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            with tracker.profile_operation("decode", "data"):
                return torch.full((2,), float(index))

    loader = torch.utils.data.DataLoader(Clips(), batch_size=2, num_workers=2)
    assert [len(batch) for batch in tracker.batches(loader)] == [2] * 4
    del loader
    tracker.close()
    counts = sums(tracker, "/count")
    assert counts["profiling/workers/data/decode/count"] == 8
    # The beginning of the workers, and the end of the batches, are waited for too.
    assert counts["profiling/loop/data/count"] == 6

"""Facts about `opusclip_mlops.bottlenecks`: a finding has its figure, and a threshold."""

import json
from typing import Any

import pytest

from opusclip_mlops.bottlenecks import Figures, Finding, Report, Totals, machine_of, report_of


def figures(
    *, seconds: float = 100.0, steps: float = 1000.0, tracker: float | None = None,
    machine: dict[str, float] | None = None, **spent_s: float,
) -> Figures:  # fmt: skip
    """What was measured: seconds by operation, `data` for `loop/data`, `a__b` for `a/b`."""
    totals = Totals()
    values = {"profiling/interval/seconds": seconds, "profiling/interval/steps": steps}
    if tracker is not None:
        values["performance/tracker_share"] = tracker
    for name, own_s in spent_s.items():
        about = f"profiling/{name.replace('__', '/') if '__' in name else f'loop/{name}'}"
        values |= {f"{about}/count": 10.0, f"{about}/max_ms": 5.0}
        values |= {f"{about}/{one}_ms": 1e3 * own_s for one in ("self", "total")}
    totals.add(values)
    return totals.figures(machine)


def found(kind: str, report: Report) -> Finding | None:
    """The finding of a kind, None where there is none."""
    return next((one for one in report.findings if one.kind == kind), None)


@pytest.mark.parametrize(
    ("kind", "below", "at", "figure"),
    [
        ("data", {"data": 19.9, "forward": 55}, {"data": 20, "forward": 55}, 20),
        ("copies", {"copy": 9.9, "forward": 55}, {"copy": 10, "forward": 55}, 10),
        ("checkpoints", {"checkpoint": 9.9}, {"checkpoint": 10}, 10),
        ("evaluation", {"evaluation": 29.9}, {"evaluation": 30}, 30),
        ("tracker", {"tracker": 0.019}, {"tracker": 0.02}, 2),
        (
            "compute",
            {"forward": 20, "backward": 35, "optimizer": 4},
            {"forward": 20, "backward": 35, "optimizer": 5},
            60,
        ),
        ("operation", {"operation__sample": 49}, {"operation__sample": 50}, 50),
        ("unmeasured", {"data": 50}, {"data": 49}, 51),
        (
            "memory",
            {"machine": {"memory": 89.0, "gpu_memory": 89.0}},
            {"machine": {"memory": 90.0}},
            90,
        ),
        ("memory", {"machine": {"memory": 5.0}}, {"machine": {"gpu_memory": 97.0}}, 97),
        (
            "compute",
            {"machine": {"gpu_utilization": 79.0}},
            {"machine": {"gpu_utilization": 80.0}},
            80,
        ),
        (
            "host",
            {"forward": 70, "machine": {"gpu_utilization": 50.0}},
            {"forward": 70, "machine": {"gpu_utilization": 49.0}},
            70,
        ),
    ],
)
def test_a_finding_begins_at_its_threshold(
    kind: str, below: dict[str, Any], at: dict[str, Any], figure: float
) -> None:
    """Below it there is none; at it the figure is told, with its unit and the threshold."""
    assert found(kind, report_of(figures(**below))) is None
    one = found(kind, report_of(figures(**at)))
    assert one is not None
    assert one.figure == pytest.approx(figure)
    assert one.unit == "%"
    assert f"{figure:.1f} %" in one.text


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ({"data": 62, "forward": 20, "backward": 15}, "data"),
        ({"data": 25, "forward": 30, "backward": 40}, "compute"),
        ({"copy": 40, "forward": 30, "data": 25}, "copies"),
        ({"data": 3, "machine": {"gpu_utilization": 95.0}}, "compute"),
        ({"forward": 65, "machine": {"gpu_utilization": 20.0}}, "host"),
        ({"tracker": 0.3, "data": 5}, "tracker"),
        ({"checkpoint": 30, "forward": 25}, "checkpoints"),
        ({"evaluation": 45, "forward": 40}, "evaluation"),
        ({"operation__sample": 80}, "operation"),
        ({"data": 10, "forward": 10}, "unknown"),
        ({}, "unknown"),
        ({"data": 10, "workers__data/decode": 300}, "unknown"),
    ],
)
def test_what_limits_a_run_is_the_weightiest(spent: dict[str, Any], limit: str) -> None:
    """Of those that reach their threshold; workers beside the loop do not hold it up."""
    assert report_of(figures(**spent)).limit == limit


def test_what_changed_is_told_a_step() -> None:
    """Against another run of another length: by milliseconds a step, not by share."""
    before = figures(seconds=50.0, steps=1000, data=5, forward=40)
    report = report_of(
        figures(seconds=100.0, steps=1000, data=52, forward=40), before=before, against="kite"
    )
    speed = found("speed", report)
    assert speed is not None
    assert speed.figure == pytest.approx(-50)
    assert speed.text == "10 steps/s, 20 in kite (-50.0 %)"
    [changed] = [one for one in report.findings if one.kind == "changed"]
    assert changed.text == "data: 52 ms a step, 5 in kite"
    assert (changed.figure, changed.unit) == (pytest.approx(47), "ms a step")


def test_small_changes_are_not_told() -> None:
    """9 % of the speed, 9 % of a part, or a part that is next to nothing of a step."""
    before = figures(data=10, forward=80)
    after = figures(seconds=109, steps=1000, data=10.9, forward=80, copy=1.9)
    kinds = {one.kind for one in report_of(after, before=before, against="x").findings}
    assert kinds.isdisjoint({"speed", "changed"})
    assert report_of(after, before=figures(steps=0), against="x").limit == "compute"


def test_intervals_add_up() -> None:
    """Counts and times are summed, the longest is the longest, log calls count by time."""
    totals = Totals()
    for seconds, share, longest in ((10.0, 0.1, 3.0), (30.0, 0.3, 2.0), (60.0, None, 1.0)):
        values = {
            "profiling/interval/seconds": seconds,
            "profiling/a/b/c/count": 2.0,
            "profiling/a/b/c/total_ms": 1000.0,
            "profiling/a/b/c/self_ms": 500.0,
            "profiling/a/b/c/max_ms": longest,
            "profiling/a/b/c/p95_ms": 7.0,
        }
        totals.add(values | ({} if share is None else {"performance/tracker_share": share}))
    found = totals.figures()
    assert (found.seconds, found.steps, found.steps_per_s) == (100.0, 0.0, None)
    assert found.tracker_share == pytest.approx((0.1 * 10 + 0.3 * 30) / 40)
    [spent] = found.spent
    assert (spent.called, spent.uses, spent.total_s, spent.self_s, spent.max_ms) == (
        "a/b/c", 6, 3.0, 1.5, 3.0,
    )  # fmt: skip


def test_the_report_is_text_table_and_json() -> None:
    """The longest operation first; all of them say the same."""
    report = report_of(figures(data=62.0, forward=30.0, operation__x=1.0))
    lines = report.text().splitlines()
    assert lines[0] == "limit: data"
    assert lines[1] == "62.0 % of the time the loop waits for data (from 20 %)"
    assert "measured: 100 s, 1,000 steps, 10 steps/s" in lines
    assert [row[0] for row in report.rows] == ["loop/data", "loop/forward", "operation/x"]
    assert dict(zip(report.columns, report.rows[0], strict=True))["share_percent"] == 62.0
    content = json.loads(json.dumps(report.as_json()))
    assert (content["limit"], content["shares"]["data"]) == ("data", 0.62)
    assert content["findings"][0]["unit"] == "%"


def test_of_many_operations_the_text_shows_some() -> None:
    """And says how many more there are; the table has all."""
    report = report_of(figures(**{f"a__{number:02}": 1.0 for number in range(30)}))
    assert "and 18 more operations" in report.text()
    assert len(report.rows) == 30


def test_the_machine_is_told_by_means() -> None:
    """Over all GPUs, also with a node's name in the key."""
    points = {
        "system/gpu_0_utilization_percentage": [10.0, 30.0],
        "system/node/gpu_1_utilization_percentage": [50.0, 70.0],
        "system/gpu_0_memory_usage_percentage": [91.0],
        "system/system_memory_usage_percentage": [40.0],
        "system/cpu_utilization_percentage": [99.0],
    }
    assert machine_of(points) == {"gpu_utilization": 40.0, "gpu_memory": 91.0, "memory": 40.0}
    assert machine_of({}) == {}


@pytest.mark.parametrize(
    ("spent", "advice"),
    [
        ({}, "tracker.batches(loader) and tracker.time_model(model) name most of it"),
        ({"data": 1}, "tracker.time_model(model) names most of it"),
        ({"forward": 1}, "tracker.batches(loader) names most of it"),
        ({"evaluation": 1}, "tracker.batches(loader) names most of it"),
        ({"data": 1, "forward": 1}, "tracker.profile_operation(name) around what you suspect"),
        ({"workers/data__decode": 1}, "tracker.batches(loader) and tracker.time_model(model)"),
    ],
)
def test_nothing_is_advised_that_is_done_already(spent: dict[str, float], advice: str) -> None:
    """Where most of the time has no name, what would name it is told."""
    finding = found("unmeasured", report_of(figures(**spent)))
    assert finding is not None
    assert advice in finding.text


def test_waiting_for_delivery_is_told_and_limits_no_loop() -> None:
    """It may be a wait for the start: a line of its own, before what limits; it has a name."""
    report = report_of(figures(seconds=30, tracker__run_id=29.25, operation__sample=0.5))
    assert report.limit == "unknown"
    assert found("unmeasured", report) is None
    lines = ["limit: unknown", "waited 29.25 s in tracker.run_id, of the 30 s measured"]
    assert report.text().splitlines()[:2] == lines
    waited = found("waited", report)
    assert waited is not None
    assert (waited.figure, waited.unit) == (29.25, "s")
    report = report_of(figures(tracker__flush=10, tracker__run_id=9.9, operation__sample=60))
    assert report.limit == "operation"
    assert [one.text for one in report.findings if one.kind == "waited"] == [
        "waited 10 s in tracker.flush, of the 100 s measured"
    ]
    beside = report_of(figures(workers__tracker__run_id=60))
    assert found("waited", beside) is None

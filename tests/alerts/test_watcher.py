"""Episodes, pauses and limits, with points and times made by hand."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.rules import (
    Alerts,
    DiskFilling,
    DroppedPoints,
    GpuIdle,
    MirrorLag,
    NoProgress,
    NotFinite,
    Rule,
    Threshold,
    WorseThanProduction,
)
from opusclip_mlops.alerts.watcher import MOST_KEYS, Facts, Watcher
from opusclip_mlops.records import Metrics

HIGH = Threshold(keys=("train/*",), above=10, cooldown_s=0)
MIN = 60_000


def watcher(state: Mapping[str, Any] | None = None, **rules: Rule) -> Watcher:
    """A watcher of some rules, from time 0 on."""
    return Watcher(Alerts(rules=rules), state, now_ms=0)  # type: ignore[arg-type]


def seen(watch: Watcher, values: Sequence[float], *, key: str = "train/loss") -> list[Event]:
    """What is said of values, a second and a step apart."""
    return [
        event
        for at, value in enumerate(values)
        for event in watch.observe(Metrics(at * 1000, at, {key: value}), now_ms=at * 1000)
    ]


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


def test_an_alert_is_raised_once_an_episode_and_recovers_once() -> None:
    """However many points are beyond the bound."""
    events = seen(watcher(high=HIGH), [1, 11, 12, 11, 1, 1, 20])
    assert ids(events) == ["high-1-raised", "high-1-recovered", "high-2-raised"]
    assert [event.step for event in events] == [1, 4, 6]
    assert events[0].message == "train/loss is 11 at step 1, above 10"
    assert events[0].value == "11.0"


def test_two_rules_that_are_broken_at_once_raise_an_alert_each() -> None:
    """One is not hidden by the other."""
    rules = {"nan": NotFinite(keys=("*",)), "high": HIGH}
    events = watcher(**rules).observe(
        Metrics(1, 1, {"train/loss": math.nan, "train/norm": 99.0}), now_ms=1
    )
    assert ids(events) == ["nan-1-raised", "high-1-raised"]
    assert events[0].value == "nan"


def test_in_its_pause_a_rule_raises_nothing_and_counts() -> None:
    """What still holds when the pause is over is raised then."""
    rule = Threshold(keys=("train/*",), above=10, cooldown_s=5)
    events = seen(watcher(high=rule), [11, 1, 11, 1, 11, 11, 1])
    assert ids(events) == ["high-1-raised", "high-1-recovered", "high-2-raised", "high-2-recovered"]
    assert [event.timestamp_ms for event in events] == [0, 1000, 5000, 6000]
    assert events[2].suppressed == 2


def test_a_clock_that_is_set_back_ends_a_pause() -> None:
    """Else a rule would be silent for as long as the clock was wrong."""
    watch = watcher(high=Threshold(keys=("a",), above=10, cooldown_s=3600))
    watch.observe(Metrics(9_000_000, 1, {"a": 11.0}), now_ms=1)
    watch.observe(Metrics(9_000_001, 1, {"a": 1.0}), now_ms=1)
    assert ids(watch.observe(Metrics(1000, 1, {"a": 11.0}), now_ms=1)) == ["high-2-raised"]


def test_a_run_raises_so_many_alerts_an_hour_and_no_more() -> None:
    """But for those that stop it."""
    rules: dict[str, Any] = {f"r{at}": HIGH for at in range(5)}
    rules["last"] = Threshold(keys=("train/*",), above=10, actions=("stop",))
    watch = Watcher(Alerts(rules=rules, limit_per_hour=3), now_ms=0)
    events = seen(watch, [11])
    assert ids(events) == ["r0-1-raised", "r1-1-raised", "r2-1-raised", "last-1-raised"]
    late = watch.observe(Metrics(3_600_001, 9, {"train/loss": 11.0}), now_ms=1)
    assert ids(late) == ["r3-1-raised", "r4-1-raised"]


def test_keys_of_the_machine_are_meant_by_patterns_that_name_them() -> None:
    """`*` is about the training."""
    watch = watcher(a=Threshold(keys=("*",), above=1), b=Threshold(keys=("system/*",), above=1))
    assert ids(seen(watch, [2.0], key="system/cpu")) == ["b-1-raised"]


def test_an_alert_about_the_machine_bears_the_trainings_step() -> None:
    """The machine's own steps are seconds."""
    watch = watcher(idle=GpuIdle(minutes=1))
    seen(watch, [1.0] * 8)
    key = "system/node-a/gpu_0_utilization_percentage"
    for second in (0, 30, 60):
        point = Metrics(second * 1000, 5000 + second, {key: 2.0})
        events = watch.observe(point, now_ms=1)
    assert ids(events) == ["idle-1-raised"]
    assert events[0].step == 7
    assert events[0].message == "node-a/gpu_0 is used 2 %, below 5 % for 1 min"


def test_nothing_is_said_of_the_time_in_which_nobody_trained() -> None:
    """A run that is gone on with after a day has not stood still for a day."""
    watch = watcher(idle=GpuIdle(minutes=1), stuck=NoProgress(minutes=1))
    gpu = {"system/gpu_0_utilization_percentage": 2.0}
    watch.observe(Metrics(0, 0, gpu), now_ms=0)
    watch.begin(now_ms=100 * MIN)
    assert watch.look(Facts(), now_ms=100 * MIN + 1) == []
    assert watch.observe(Metrics(100 * MIN, 0, gpu), now_ms=100 * MIN) == []


def test_no_point_for_minutes_is_no_progress_and_a_point_ends_it() -> None:
    """From the run's beginning on; the machine's own points are none."""
    watch = watcher(stuck=NoProgress(minutes=2))
    watch.observe(Metrics(0, 0, {"system/cpu": 1.0}), now_ms=2 * MIN - 1)
    assert watch.look(Facts(), now_ms=2 * MIN - 1) == []
    raised = watch.look(Facts(), now_ms=2 * MIN)
    assert ids(raised) == ["stuck-1-raised"]
    assert raised[0].message == "no point of * for 2 min"
    assert watch.look(Facts(), now_ms=9 * MIN) == []
    events = watch.observe(Metrics(0, 5, {"train/loss": 1.0}), now_ms=10 * MIN)
    assert ids(events) == ["stuck-1-recovered"]


def test_dropped_points_are_raised_and_well_after_a_quiet_time() -> None:
    """What was counted before is not counted again."""
    watch = watcher(dropped=DroppedPoints(points=3, quiet_minutes=5, cooldown_s=0))
    counts = [(0, 0), (1, 2), (2, 4), (3, 9), (6, 9), (8, 9), (9, 10), (10, 13)]
    found = {at: watch.look(Facts(dropped=count), now_ms=at * MIN) for at, count in counts}
    said = {at: ids(events) for at, events in found.items() if events}
    assert said == {
        2: ["dropped-1-raised"],
        8: ["dropped-1-recovered"],
        10: ["dropped-2-raised"],
    }


def test_a_mirror_that_lags_is_named_and_has_caught_up_at_half_of_it() -> None:
    """Each sink has episodes of its own."""
    watch = watcher(lag=MirrorLag(sinks=("w*", "mlflow"), minutes=10, cooldown_s=0))

    def at(minute: int, **lags: int) -> list[str]:
        facts = Facts(lag_ms={name: lag * MIN for name, lag in lags.items()})
        return [event.message for event in watch.look(facts, now_ms=minute * MIN)]

    assert at(1, wandb=9, mlflow=0, tensorboard=99) == []
    assert at(2, wandb=10) == ["what was logged 10 min ago has not arrived at wandb"]
    assert at(3, wandb=7, mlflow=10) == ["what was logged 10 min ago has not arrived at mlflow"]
    assert at(4, wandb=4) == ["wandb has caught up"]


def test_the_journals_disk_is_looked_at_beside_the_trainings() -> None:
    """It may be another one."""
    watch = watcher(disk=DiskFilling(above_percent=90, cooldown_s=0))
    events = watch.look(Facts(disk_percent=95.0), now_ms=1)
    events += seen(watch, [91.0, 80.0], key="system/disk_usage_percentage")
    events += watch.look(Facts(disk_percent=50.0), now_ms=1)
    assert [(event.key, event.state) for event in events] == [
        ("the journal's disk", "raised"),
        ("system/disk_usage_percentage", "raised"),
        ("system/disk_usage_percentage", "recovered"),
        ("the journal's disk", "recovered"),
    ]


def test_production_is_asked_for_the_keys_that_were_seen() -> None:
    """And judged once its values are known."""
    rule = WorseThanProduction(keys=("video/*",), model="clip", by=1, goal="maximize")
    watch = watcher(worse=rule)
    assert watch.wanted_of_production() == {}
    assert seen(watch, [20.0], key="video/psnr") == []
    assert watch.wanted_of_production() == {"clip": {"video/psnr"}}
    watch.know_production({"clip video/psnr": 30.0})
    events = seen(watch, [20.0], key="video/psnr")
    assert events[0].message == "video/psnr is 20 at step 0, below 29, with 30 in Production"


def test_a_state_goes_through_json_and_an_episode_goes_on() -> None:
    """Another watcher raises nothing twice and knows what recovers."""
    rules: dict[str, Rule] = {"high": HIGH, "stuck": NoProgress(minutes=1)}
    first = watcher(**rules)
    seen(first, [11, 12])
    state = json.loads(json.dumps(first.state))
    second = watcher(state, **rules)
    assert ids(seen(second, [13, 1])) == ["high-1-recovered"]


def test_a_pattern_that_fits_everything_is_remembered_in_bounds() -> None:
    """So many keys are watched, and numbers leave nothing behind."""
    watch = watcher(high=HIGH, nan=NotFinite(keys=("*",)))
    for at in range(3 * MOST_KEYS):
        watch.observe(Metrics(0, 0, {f"train/{at}": 1.0}), now_ms=0)
    keys = {name: len(one["keys"]) for name, one in watch.state["rules"].items()}
    assert keys == {"high": MOST_KEYS, "nan": 0}


def test_what_was_said_before_a_crash_is_taken_over() -> None:
    """An episode that only the journal knows is open; its end is found."""
    stuck = NoProgress(minutes=1)
    before = watcher(stuck=stuck)
    state = copy.deepcopy(before.state)
    event = before.look(Facts(), now_ms=MIN)[0]
    after = watcher(state, stuck=stuck)
    assert not after.has_met(event)
    after.adopt(event)
    assert after.has_met(event)
    assert after.look(Facts(), now_ms=2 * MIN) == []
    assert ids(seen(after, [1.0])) == ["stuck-1-recovered"]


def test_drops_that_were_said_before_a_crash_are_taken_over() -> None:
    """Nothing but that it is open is known, and it recovers."""
    event = Event(alert="lost", state="raised", number=1, message="", timestamp_ms=0)
    watch = watcher(lost=DroppedPoints(quiet_minutes=1))
    watch.adopt(event)
    assert watch.look(Facts(dropped=5), now_ms=10) == []
    assert ids(watch.look(Facts(dropped=5), now_ms=10 + MIN)) == ["lost-1-recovered"]


@pytest.mark.parametrize("state", ["raised", "recovered"])
def test_an_event_of_a_rule_that_is_no_more_is_passed_over(state: Any) -> None:
    """Rules may be others by then."""
    event = Event(alert="gone", state=state, number=1, message="", timestamp_ms=1)
    watch = watcher(high=HIGH)
    assert watch.has_met(event)
    watch.adopt(event)

"""Watches a run's points and gives what is to be said: one alert an episode, and its recovery.

It knows nothing of files, clocks or networks: the same points and times give the same alerts, and
its state is plain JSON.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.judging import Memory, Seen, Verdict, judged
from opusclip_mlops.alerts.rules import (
    STOP,
    Alerts,
    DiskFilling,
    DroppedPoints,
    GpuIdle,
    MirrorLag,
    NoProgress,
    NotFinite,
    Rule,
    WorseThanProduction,
)
from opusclip_mlops.records import SYSTEM_PREFIX, Metrics

MOST_KEYS = 64
"""So many keys are watched by one rule; a pattern may fit any number."""

JOURNAL_DISK = "the journal's disk"

_HOUR_MS, _MINUTE_MS = 3_600_000, 60_000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What no point says.

    Args:
        dropped: Points and records that were lost or shed so far, None where that is not known.
        lag_ms: How long each sink has been behind, in milliseconds.
        disk_percent: How full the disk of the journal is, None where that is not known.
    """

    dropped: int | None = None
    lag_ms: Mapping[str, int] = field(default_factory=dict)
    disk_percent: float | None = None


@dataclass(frozen=True)
class _Place:
    """Where in a run an episode begins or ends; the step is the training's last one by default."""

    at_ms: int
    key: str = ""
    step: int | None = None
    value: str = ""


class Watcher:
    """Watches one run.

    Args:
        alerts: The rules.
        state: What `state` was when this goes on after a restart.
        now_ms: When it begins, in Unix milliseconds.
    """

    def __init__(
        self, alerts: Alerts, state: Mapping[str, Any] | None = None, *, now_ms: int
    ) -> None:
        self._rules, self._limit = alerts.rules, alerts.limit_per_hour
        found = dict(state or {})
        self._accounts: dict[str, dict[str, Any]] = {
            name: found.get("rules", {}).get(name, {"count": 0, "suppressed": 0, "keys": {}})
            for name in self._rules
        }
        self._raised_ms: list[int] = found.get("raised_ms", [])
        self._step: int = found.get("step", 0)
        self._begun_ms: int = found.get("begun_ms", now_ms)
        self._production: dict[str, float] = found.get("production", {})
        self._by_key: dict[str, list[str]] = {}

    @property
    def state(self) -> dict[str, Any]:
        """What another watcher goes on from; it changes with this one."""
        return {
            "rules": self._accounts,
            "raised_ms": self._raised_ms,
            "step": self._step,
            "begun_ms": self._begun_ms,
            "production": self._production,
        }

    def know_production(self, values: Mapping[str, float]) -> None:
        """What Production's run has, by `<model> <key>`."""
        self._production = dict(values)

    def wanted_of_production(self) -> dict[str, set[str]]:
        """The keys that are compared with each model's version in Production, as far as seen."""
        wanted: dict[str, set[str]] = {}
        for name, rule in self._rules.items():
            if isinstance(rule, WorseThanProduction):
                keys = {key for key, rules in self._by_key.items() if name in rules}
                wanted.setdefault(rule.model, set()).update(keys)
        return {model: keys for model, keys in wanted.items() if keys}

    def observe(self, metrics: Metrics, *, now_ms: int) -> list[Event]:
        """Judge the points of one record.

        Args:
            metrics: The record.
            now_ms: When it arrived, for what is about progress.
        """
        events: list[Event] = []
        for key, value in metrics.values.items():
            if not key.startswith(SYSTEM_PREFIX) and metrics.step > self._step:
                self._step = metrics.step
            rules = self._by_key.get(key)
            for name in self._found(key) if rules is None else rules:
                events += self._judge(name, key, value, metrics, now_ms)
        return events

    def _found(self, key: str) -> list[str]:
        """The rules that a key falls under, looked up once."""
        fits = [name for name, rule in self._rules.items() if _fits(rule, key)]
        self._by_key[key] = fits
        return fits

    def begin(self, *, now_ms: int) -> None:
        """A process began to train: nothing is said of the time in which nobody did."""
        for name, rule in self._rules.items():
            keys: dict[str, Memory] = self._accounts[name]["keys"]
            if isinstance(rule, NoProgress):
                keys.setdefault("", {})["last_ms"] = now_ms
            elif isinstance(rule, GpuIdle):
                for memory in keys.values():
                    memory.pop("since_ms", None)

    def _judge(
        self, name: str, key: str, value: float, metrics: Metrics, now_ms: int
    ) -> Iterator[Event]:
        rule = self._rules[name]
        if isinstance(rule, NoProgress):
            yield from self._progressed(name, now_ms)
            return
        memory = self._memory(name, key, rule, value)
        if memory is None:
            return
        production = self._production.get(f"{getattr(rule, 'model', '')} {key}")
        seen = Seen(key, value, metrics.step, metrics.timestamp_ms, production)
        verdict = judged(rule, memory, seen)
        step = self._step if key.startswith(SYSTEM_PREFIX) else metrics.step
        place = _Place(seen.timestamp_ms, key, step, repr(float(value)))
        yield from self._settled(name, memory, verdict, place)
        if isinstance(rule, NotFinite) and verdict.is_broken is False:
            del self._accounts[name]["keys"][key]

    def _memory(self, name: str, key: str, rule: Rule, value: float) -> Memory | None:
        """What is remembered of a key; None where nothing has to be."""
        keys: dict[str, Memory] = self._accounts[name]["keys"]
        if key in keys:
            return keys[key]
        is_well = isinstance(rule, NotFinite) and value - value == 0
        if is_well or len(keys) >= MOST_KEYS:
            return None
        return keys.setdefault(key, {})

    def _progressed(self, name: str, now_ms: int) -> Iterator[Event]:
        memory = self._accounts[name]["keys"].setdefault("", {})
        memory["last_ms"] = now_ms
        rule = self._rules[name]
        verdict = Verdict(False, f"there are points of {', '.join(rule.patterns)} again")
        yield from self._settled(name, memory, verdict, _Place(now_ms))

    def look(self, facts: Facts, *, now_ms: int) -> list[Event]:
        """Judge what time alone breaks, and what no point says."""
        events: list[Event] = []
        for name, rule in self._rules.items():
            match rule:
                case NoProgress():
                    events += self._look_for_progress(name, rule, now_ms)
                case DroppedPoints() if facts.dropped is not None:
                    events += self._look_for_drops(name, rule, facts.dropped, now_ms)
                case MirrorLag():
                    for sink, lag_ms in facts.lag_ms.items():
                        if any(fnmatchcase(sink, one) for one in rule.sinks):
                            events += self._look_for_lag(name, rule, sink, lag_ms, now_ms)
                case DiskFilling() if facts.disk_percent is not None:
                    events += self._look_at_disk(name, rule, facts.disk_percent, now_ms)
        return events

    def _look_for_progress(self, name: str, rule: NoProgress, now_ms: int) -> Iterator[Event]:
        memory = self._accounts[name]["keys"].get("") or {}
        quiet_ms = now_ms - memory.get("last_ms", self._begun_ms)
        if quiet_ms >= rule.minutes * _MINUTE_MS:
            memory = self._accounts[name]["keys"].setdefault("", memory)
            why = f"no point of {', '.join(rule.keys)} for {rule.minutes:g} min"
            yield from self._settled(name, memory, Verdict(True, why), _Place(now_ms))

    def _look_for_drops(
        self, name: str, rule: DroppedPoints, dropped: int, now_ms: int
    ) -> Iterator[Event]:
        memory = self._accounts[name]["keys"].setdefault("", {})
        for part in ("from", "was", "grew_ms"):
            memory.setdefault(part, 0)
        if dropped > memory["was"]:
            memory.update(was=dropped, grew_ms=now_ms)
        fresh = dropped - memory["from"]
        is_quiet = now_ms - memory["grew_ms"] >= rule.quiet_minutes * _MINUTE_MS
        if fresh >= rule.points and not is_quiet:
            why = f"{fresh:,} points were lost or shed: see opusclip status"
            yield from self._settled(name, memory, Verdict(True, why), _Place(now_ms))
        elif is_quiet and fresh:
            memory["from"] = dropped
            why = f"no point was dropped for {rule.quiet_minutes:g} min"
            yield from self._settled(name, memory, Verdict(False, why), _Place(now_ms))

    def _look_for_lag(
        self, name: str, rule: MirrorLag, sink: str, lag_ms: int, now_ms: int
    ) -> Iterator[Event]:
        memory = self._accounts[name]["keys"].get(sink, {})
        if lag_ms >= rule.minutes * _MINUTE_MS:
            memory = self._accounts[name]["keys"].setdefault(sink, memory)
            why = f"what was logged {rule.minutes:g} min ago has not arrived at {sink}"
            yield from self._settled(name, memory, Verdict(True, why), _Place(now_ms, sink))
        elif memory and lag_ms < rule.minutes * _MINUTE_MS / 2:
            verdict = Verdict(False, f"{sink} has caught up")
            yield from self._settled(name, memory, verdict, _Place(now_ms, sink))

    def _look_at_disk(
        self, name: str, rule: DiskFilling, percent: float, now_ms: int
    ) -> Iterator[Event]:
        memory = self._accounts[name]["keys"].setdefault(JOURNAL_DISK, {})
        verdict = judged(rule, memory, Seen(JOURNAL_DISK, percent, self._step, now_ms))
        place = _Place(now_ms, JOURNAL_DISK, value=repr(percent))
        yield from self._settled(name, memory, verdict, place)

    def _settled(
        self, name: str, memory: Memory, verdict: Verdict, place: _Place
    ) -> Iterator[Event]:
        """Begin or end an episode, where a verdict does either."""
        number = memory.get("open", 0)
        if verdict.is_broken and not number:
            number = self._begun(name, memory, place.at_ms)
            state = "raised"
        elif verdict.is_broken is False:
            memory.pop("held", None)
            memory.pop("open", None)
            state = "recovered"
        else:
            return
        if number:
            yield self._event(name, state, number, verdict.why, place)

    def _begun(self, name: str, memory: Memory, at_ms: int) -> int:
        """Begin an episode; 0 where one is held back for now."""
        account = self._accounts[name]
        if self._is_held(name, at_ms):
            account["suppressed"] += not memory.get("held", False)
            memory["held"] = True
            return 0
        memory.pop("held", None)
        account["count"] += 1
        account["raised_ms"] = at_ms
        self._raised_ms.append(at_ms)
        memory["open"] = account["count"]
        return int(account["count"])

    def _is_held(self, name: str, at_ms: int) -> bool:
        """Whether the rule's pause, or the run's limit, lets no further alert through."""
        rule, last_ms = self._rules[name], self._accounts[name].get("raised_ms")
        # A time far behind the last one is that of a clock that was set back.
        if last_ms is not None and abs(at_ms - last_ms) < rule.cooldown_s * 1000:
            return True
        self._raised_ms[:] = [ms for ms in self._raised_ms if abs(at_ms - ms) < _HOUR_MS]
        return len(self._raised_ms) >= self._limit and STOP not in rule.actions

    def _event(self, name: str, state: Any, number: int, why: str, place: _Place) -> Event:
        rule = self._rules[name]
        return Event(
            alert=name,
            state=state,
            number=number,
            message=why,
            timestamp_ms=place.at_ms,
            severity=rule.severity,
            key=place.key,
            step=self._step if place.step is None else place.step,
            value=place.value,
            actions=rule.actions,
            suppressed=self._accounts[name]["suppressed"],
        )

    def adopt(self, event: Event) -> None:
        """Take over an episode that was said, and that this watcher has not met."""
        account = self._accounts.get(event.alert)
        if account is None:
            return
        keys: dict[str, Memory] = account["keys"]
        if event.state == "raised":
            account["count"] = max(account["count"], event.number)
            account["raised_ms"] = event.timestamp_ms
            keys.setdefault(self._kept_under(event), {})["open"] = event.number
        elif (memory := keys.get(self._kept_under(event), {})).get("open") == event.number:
            del memory["open"]

    def _kept_under(self, event: Event) -> str:
        """What an event's memory is kept under."""
        is_of_keys = isinstance(self._rules[event.alert], NoProgress | DroppedPoints)
        return "" if is_of_keys else event.key

    def has_met(self, event: Event) -> bool:
        """Whether the state holds an episode's beginning or end already."""
        account = self._accounts.get(event.alert)
        if account is None or event.state == "undelivered":
            return True
        is_open = any(one.get("open") == event.number for one in account["keys"].values())
        return event.number <= account["count"] and (event.state == "raised" or not is_open)


def _fits(rule: Rule, key: str) -> bool:
    return any(
        fnmatchcase(key, one)
        and (not key.startswith(SYSTEM_PREFIX) or one.startswith(SYSTEM_PREFIX))
        for one in rule.patterns
    )

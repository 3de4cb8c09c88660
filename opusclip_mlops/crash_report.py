"""How a process died, in one report: from its notes, the kernel's word and the journal.

    report.txt       to be read first: why, when, where, what it was doing, how to go on
    report.json      the same for programs
    traceback.txt    the exception that ended it, or the lines a signal struck it at
    stacks.txt       where all its threads were
    log.txt          its last log lines
    stderr.txt       the end of the file its errors went to, where that is a file
    metrics.json     the last minute of all metrics, the machine's too

A report is at most 1 MB, and credentials are taken out of everything in it.
"""

import contextlib
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops import checkpoints, journal
from opusclip_mlops.deaths import Death
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.flight import Flight, flight_of, log_lines, oom_kills, open_operations
from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.records import Crash, Metrics, Record, RunStarted, Text
from opusclip_mlops.redaction import one_line, readable, redacted, secret_names_here

KEY = "opusclip/crash"
"""The text that sums a report up in every mirror."""

TAIL_BYTES = 512 * 1024
"""How much of each journal's end is looked at: about 2,500 calls of ten values."""

_LAST_S = 60
_SEGMENTS = 32
_POINTS, _POINTS_BYTES = 6_000, 250_000
_LINE_CHARACTERS = 4000
_SHOWN_LINES = 20
_MOST_BYTES = {
    "report.txt": 20_000,
    "traceback.txt": 100_000,
    "stacks.txt": 200_000,
    "log.txt": 200_000,
    "stderr.txt": 60_000,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A process that died.

    `seen_oom_kills` is what the kernel had counted when the process was last seen alive.
    """

    folder: RunFolder
    start: RunStarted
    death: Death
    end_time_ms: int
    seen_oom_kills: int | None = None


def report(case: Case) -> list[Record]:
    """Write the report's files, and return what is to be logged of it.

    Raises:
        OSError: they cannot be written.
    """
    facts = _facts(case)
    recent = _recent(case.folder, until_ms=case.end_time_ms)
    facts["last_step"] = recent.last_step
    lines = _log_text(case)
    texts = {
        "traceback.txt": case.death.traceback,
        "stacks.txt": case.death.stacks,
        "log.txt": lines,
        "stderr.txt": _stderr_text(facts.pop("stderr_file")),
    }
    texts["report.txt"] = _summary(facts, texts)
    contents = {name: _clean(name, text) for name, text in texts.items() if text.strip()}
    contents["report.json"] = msgspec.json.format(msgspec.json.encode(_redacted_values(facts)))
    contents["metrics.json"] = recent.as_json()
    files = {name: _kept(case, name, contents[name]) for name in sorted(contents)}
    step = max(recent.last_step, 0)
    return [
        Crash(case.start.session, files),
        Text(case.end_time_ms, step, KEY, contents["report.txt"].decode()),
    ]


def _kept(case: Case, name: str, content: bytes) -> str:
    file = f"crash-{case.start.session}-{name}"
    write_whole(case.folder.media / file, content)
    return file


def _clean(name: str, text: str) -> bytes:
    """A text without credentials, and its end if it is too long; of summary and stacks the top."""
    clean = readable(text).encode(errors="replace")
    most_bytes = _MOST_BYTES[name]
    if len(clean) <= most_bytes:
        return clean
    is_top = name in ("report.txt", "stacks.txt")
    part = clean[:most_bytes] if is_top else clean[-most_bytes:]
    kept = part.decode(errors="ignore")
    return (f"{kept}…\n" if is_top else f"…{kept}").encode()


def _redacted_values(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value[:_LINE_CHARACTERS])
    if isinstance(value, dict):
        return {key: _redacted_values(one) for key, one in value.items()}
    return [_redacted_values(one) for one in value] if isinstance(value, list) else value


# What is known


def _facts(case: Case) -> dict[str, Any]:
    flight = flight_of(case.folder.path, case.start.session)
    return {
        "format": 1,
        **_of_its_end(case, flight),
        **_of_the_process(case, flight),
        "open_operations": _open_operations(case),
        "checkpoint": _last_checkpoint(case.folder),
        "stderr_file": _readable_errors(flight),
    }


def _of_its_end(case: Case, flight: Flight | None) -> dict[str, Any]:
    death = case.death
    return {
        "status": death.status,
        "reason": death.reason or "closed so by the script",
        "signal": death.signal,
        "exit_code": death.exit_code,
        "told_by": death.told_by,
        "out_of_memory": _out_of_memory(case, flight),
        "ended_ms": case.end_time_ms,
    }


def _of_the_process(case: Case, flight: Flight | None) -> dict[str, Any]:
    start, identity = case.start, case.folder.identity()
    return {
        "started_ms": start.start_time_ms,
        "session": start.session,
        "host": start.host,
        "pid": start.pid,
        "rank": flight.rank if flight else None,
        "run_id": (identity.run_id if identity else "") or case.folder.manifest().run_id or "",
        "launched": flight.launched if flight and start.world_size > 1 else [],
        "command": flight.argv if flight else [],
        "cwd": flight.cwd if flight else case.folder.manifest().cwd,
        "python": flight.python if flight else "",
    }


def _open_operations(case: Case) -> list[dict[str, Any]]:
    found = open_operations(case.folder.path, case.start.session)
    return [
        {"name": one.name, "open_s": round(max(0, case.end_time_ms - one.began_ms) / 1000, 3)}
        for one in found
    ]


def _readable_errors(flight: Flight | None) -> str:
    """The file of a process's errors, if this one knows the secrets that may stand in it."""
    if flight is None or not {*flight.secret_names} <= {*secret_names_here()}:
        return ""
    return flight.stderr_file


def _out_of_memory(case: Case, flight: Flight | None) -> str:
    """Whether a process that was killed may have been killed for want of memory; "" for none."""
    if case.death.signal != "SIGKILL":
        return ""
    now = oom_kills()
    was_seen = case.seen_oom_kills is not None
    before = case.seen_oom_kills if was_seen else flight.oom_kills if flight else None
    if now is None or before is None or now <= before:
        return ""
    since = "as this process died" if was_seen else "since this process began"
    return f"the kernel's out-of-memory killer struck on this machine {since}"


def _last_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint that stands whole here, and whether MLflow has it."""
    whole = [about for path in folder.checkpoints.glob("[!.]*") if (about := _read(path))]
    if not whole:
        return None
    last = max(whole, key=lambda one: (one.created_ms, one.step))
    return {
        "name": last.name,
        "step": last.step,
        "epoch": last.epoch,
        "created_ms": last.created_ms,
        "is_in_mlflow": folder.has_arrived(last.name),
        "folder": str(folder.checkpoints / last.name),
    }


def _read(path: Path) -> CheckpointMetadata | None:
    with contextlib.suppress(CheckpointError, OSError):
        if not checkpoints.is_dropped(path):
            return checkpoints.read_metadata(path)
    return None


def _log_text(case: Case) -> str:
    lines = log_lines(case.folder.path, case.start.session)
    return "".join(f"{_with_time(line).rstrip()}\n" for line in lines)


def _with_time(line: str) -> str:
    """A log line with its time, in UTC to the millisecond."""
    at, space, rest = line.partition(" ")
    try:
        seconds, milliseconds = at.split(".")
        return f"{_time(int(seconds))}.{milliseconds}{space}{rest}"
    except (ValueError, OverflowError):
        return line


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _stderr_text(path: str) -> str:
    most_bytes = _MOST_BYTES["stderr.txt"]
    try:
        with Path(path or "/nowhere").open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - most_bytes))
            return file.read(most_bytes).decode(errors="replace")
    except (OSError, ValueError):
        return ""


# The last minute


@dataclass(frozen=True)
class _Recent:
    """The points of the last minute by key: time in Unix milliseconds, step and value."""

    from_ms: int
    until_ms: int
    last_step: int
    points: dict[str, list[tuple[int, int, float]]]

    def as_json(self) -> bytes:
        """As many as there is room for: the newest of each key where there are very many."""
        most = _POINTS
        while len(content := msgspec.json.encode(self._content(most))) > _POINTS_BYTES and most > 1:
            most //= 2
        return content

    def _content(self, most: int) -> dict[str, Any]:
        each = max(1, most // max(1, len(self.points)))
        chosen = sorted(self.points.items())[:most]
        values = {key: [_plain(point) for point in points[-each:]] for key, points in chosen}
        columns = ["timestamp_ms", "step", "value"]
        times = {"from_ms": self.from_ms, "until_ms": self.until_ms}
        return {"format": 1, **times, "columns": columns, "points": values}


def _plain(point: tuple[int, int, float]) -> list[Any]:
    timestamp_ms, step, value = point
    return [timestamp_ms, step, value if math.isfinite(value) else str(value)]


def _recent(folder: RunFolder, *, until_ms: int) -> _Recent:
    """The last minute before the last point of any key; of each key at least the last point."""
    calls = sorted(_last_calls(folder), key=lambda one: one.timestamp_ms)
    from_ms = (calls[-1].timestamp_ms if calls else until_ms) - _LAST_S * 1000
    points: dict[str, list[tuple[int, int, float]]] = {}
    last_step = -1
    for call in calls:
        for key, value in call.values.items():
            last_step = last_step if key.startswith("system/") else max(last_step, call.step)
            known = points.setdefault(key, [])
            if known and known[-1][0] < from_ms:
                known.clear()
            known.append((call.timestamp_ms, call.step, value))
    return _Recent(from_ms, until_ms, last_step, points)


def _last_calls(folder: RunFolder) -> Iterator[Metrics]:
    newest = sorted(folder.segments(), key=lambda path: path.stat().st_mtime)[-_SEGMENTS:]
    for path in newest:
        begin_bytes = max(0, path.stat().st_size - TAIL_BYTES)
        for item in journal.read(path, begin_bytes):
            if isinstance(item, journal.Entry) and isinstance(item.record, Metrics):
                yield item.record


# What is read first


def _summary(facts: dict[str, Any], texts: dict[str, str]) -> str:
    width = 12
    table = "\n".join(f"{name.ljust(width)}{said}" for name, said in _told(facts))
    parts = [f"{facts['status']}: {facts['reason']}\n\n{table}\n", _going_on(facts)]
    for name, title in (
        ("traceback.txt", "Where it was"),
        ("log.txt", "The last log lines"),
        ("stderr.txt", "The end of its errors"),
    ):
        lines = texts[name].rstrip().splitlines()[-_SHOWN_LINES:]
        if lines:
            body = "".join(f"    {line[:300]}\n" for line in lines)
            parts.append(f"{title} ({name}):\n\n{body}")
    return "\n".join(parts)


def _told(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    lived_s = max(0, facts["ended_ms"] - facts["started_ms"]) / 1000
    # Of one that could not say when it died it is known when it was last heard of.
    is_known = facts["told_by"] in ("the process", "its exit code")
    sign = "" if is_known else ", its last sign of life"
    yield (
        "when",
        f"{_time(facts['ended_ms'] / 1000)} UTC, {_duration(lived_s)} after it began{sign}",
    )
    rank = "" if facts["rank"] is None else f", rank {facts['rank']}"
    yield "where", f"host {facts['host']}, pid {facts['pid']}{rank}"
    code = "" if facts["exit_code"] is None else f"exit code {facts['exit_code']}, "
    yield "how", f"{facts['signal'] and facts['signal'] + ', '}{code}told by {facts['told_by']}"
    if facts["out_of_memory"]:
        yield "memory", facts["out_of_memory"]
    if facts["last_step"] >= 0:
        yield "last step", str(facts["last_step"])
    yield "checkpoint", _checkpoint_line(facts["checkpoint"])
    for one in facts["open_operations"]:
        yield "in", f"{one['name']}, for {_duration(one['open_s'])}"
    if command := facts["launched"] or facts["command"]:
        yield "command", one_line(shlex.join(command), at_most=_LINE_CHARACTERS)
    yield "in folder", facts["cwd"]


def _checkpoint_line(about: dict[str, Any] | None) -> str:
    if about is None:
        return "none was saved in this run's folder"
    where = "in MLflow" if about["is_in_mlflow"] else f"on its way to MLflow, {about['folder']}"
    return f"{about['name']}, step {about['step']}, {where}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _going_on(facts: dict[str, Any]) -> str:
    """What to write in the script to go on from the last checkpoint, in the same run."""
    about, run_id = facts["checkpoint"], facts["run_id"]
    if about is None:
        return "To train again: start the command anew; no checkpoint of this run is known here.\n"
    until = "" if about["is_in_mlflow"] else ", once it has arrived in MLflow (opusclip status)"
    # Not yet made in MLflow, it has no id.
    what = "all ranks by the command above" if facts["launched"] else "the command"
    source = f"{run_id or 'RUN_ID'!r}, which={about['name']!r}"
    return (
        f"To go on from it in the same run{until}, start {what} with these lines in its"
        " script:\n\n"
        "    from opusclip_mlops import ExperimentTracker, load_checkpoint\n"
        f"    loaded = load_checkpoint({source}, model=model, optimizer=optimizer)\n"
        "    tracker = ExperimentTracker(resume=loaded)\n"
    )

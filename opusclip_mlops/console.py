"""Prints what `operating` found: lines for people, JSON for scripts, bars on a terminal.

Ids stand in lines that nothing wraps, so that they can be copied. In a pipe there is no colour.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops.amounts import size_text
from opusclip_mlops.operating import Recovery, RunProgress, SinkRecovery
from opusclip_mlops.run_status import RunStatus, SessionStatus, SinkStatus

if TYPE_CHECKING:
    from rich.console import Console

# Sweeps that were cut off, for scripts; None where they are not asked for.
_Sweeps = Sequence[Mapping[str, str | bool]] | None

_COLOURS = {"training": "green", "ended": "cyan", "crashed": "red", "unreadable": "yellow"}


def tell(line: str) -> None:
    """Say on stderr what can't wait."""
    print(f"opusclip: {line}", file=sys.stderr, flush=True)


# How far the runs are


def print_status(
    found: Sequence[RunStatus], journal_dir: Path, *, as_json: bool, sweeps: _Sweeps = None
) -> None:
    """Print runs that have a folder here; `journal_dir` is named where there are none."""
    if as_json:
        _print_json(found, journal_dir, sweeps)
        return
    console = _console()
    if not found:
        _print_line(console, _nothing(journal_dir, "nothing is on its way", sweeps))
    for number, run in enumerate(found):
        if number:
            console.print()
        _print_run(console, run)


def _nothing(journal_dir: Path, said: str, sweeps: _Sweeps) -> str:
    """Says that there are no runs; where a sweep was cut off, that is not all there is to say."""
    return f"no runs in {journal_dir}" if sweeps else f"no runs in {journal_dir}: {said}"


def _print_run(console: "Console", run: RunStatus) -> None:
    colour = _COLOURS[run.state]
    if run.problem:
        _print_line(console, run.local_id, (run.problem, colour))
        return
    state = f"{run.state} {run.end_status}".strip()
    _print_line(console, run.local_id, (run.run_name, "bold"), (state, f"bold {colour}"))
    for line in _about(run):
        _print_line(console, f"  {line}")
    for line in _rows(run):
        _print_line(console, f"  {line}")
    for sink in run.sinks:
        if sink.last_error:
            _print_line(console, f"  {sink.sink}:", (sink.last_error, "red"))


def _about(run: RunStatus) -> Iterator[str]:
    yield f"MLflow run {run.run_id or 'not yet known'} in experiment {run.experiment_name or '?'}"
    if run.end_reason:
        yield f"ended because: {run.end_reason}"
    shipper = "at work" if run.is_shipped else "not running"
    to_deliver = f"{size_text(run.backlog_bytes)} to deliver" if run.backlog_bytes else "no backlog"
    yield f"began {_time(run.start_time_ms or 0)}, {to_deliver}, shipper {shipper}"
    for one in run.sessions:
        yield f"trainer {_whereabouts(one)}"


def _whereabouts(session: SessionStatus) -> str:
    rank = "" if session.rank is None else f"rank {session.rank} on "
    who = f"{rank}{session.host} pid {session.pid}"
    if session.end_time_ms is not None:
        why = f", see its artifact {session.report}" if session.report else ""
        return f"{who}: {session.end_status} {_time(session.end_time_ms)}{why}"
    return f"{who}: alive" if session.is_alive else f"{who}: gone without closing its run"


def _rows(run: RunStatus) -> Iterator[str]:
    """The sinks below each other: names to the left, numbers to the right of their columns."""
    head = ("sink", "behind", "oldest", "delivered", "refused", "faults")
    rows = [head, *(_row(one, is_over=run.state != "training") for one in run.sinks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        cells = (text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *cells])


def _row(one: SinkStatus, *, is_over: bool) -> tuple[str, ...]:
    about = "about " if one.lag_is_estimate else ""
    lacks_end = is_over and not (one.is_done or one.backlog_bytes)
    none = "the end" if lacks_end else "-"
    behind = f"{about}{one.lag_records:,}" if one.lag_records else none
    oldest = _duration(one.lag_s) if one.lag_records else "-"
    counts = (f"{n:,}" for n in (one.delivered_records, one.refused_records, one.faults))
    return (one.sink, behind, oldest, *counts)


# What came of a recovery


def print_recoveries(
    found: Sequence[Recovery], journal_dir: Path, *, as_json: bool, sweeps: _Sweeps = None
) -> None:
    """Print what came of each run; `journal_dir` is named where there were none."""
    if as_json:
        _print_json(found, journal_dir, sweeps)
        return
    console = _console()
    if not found:
        _print_line(console, _nothing(journal_dir, "nothing to recover", sweeps))
    for run in found:
        _print_line(console, run.local_id, (run.run_name, "bold"), ": ".join(_came_of(run)))


def _came_of(run: Recovery) -> Iterator[str]:
    yield run.outcome
    if run.outcome == "training":
        yield "is still training, and is delivered as it goes on"
    elif run.outcome == "discarded":
        yield f"what was refused for good is gone ({_refused(run)})"
    elif run.outcome == "remains":
        left = [_left(one) for one in run.sinks if one.remaining_bytes or one.last_error]
        yield "; ".join(left) or "the run's end"
        yield run.problem or f"delivery goes on, its log is {run.log_file}"
    elif run.outcome == "refused":
        yield f"{_refused(run)} for good, see {run.rejected_file}"
        yield run.problem or f"opusclip recover {run.local_id} --discard-refused is done with them"
    else:
        yield run.problem or ", ".join(_got(run)) or "everything had arrived already"


def _got(run: Recovery) -> Iterator[str]:
    for one in run.sinks:
        if one.delivered_records:
            yield f"{one.delivered_records:,} records to {one.sink}"


def _refused(run: Recovery) -> str:
    every = (f"{s.refused_records:,} records by {s.sink}" for s in run.sinks if s.refused_records)
    return ", ".join(every)


def _left(one: SinkRecovery) -> str:
    about = "about " if one.remaining_is_estimate else ""
    what = f"{about}{one.remaining_records:,} records" if one.remaining_bytes else "the run's end"
    why = f" ({one.last_error})" if one.last_error else ""
    return f"{what} for {one.sink}{why}"


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[list[RunProgress]], None]]:
    """A bar for each run, on a terminal; nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(runs: list[RunProgress]) -> None:
            for one in runs:
                if one.local_id not in tasks:
                    tasks[one.local_id] = bars.add_task(one.name)
                bars.update(
                    tasks[one.local_id], total=one.total_bytes, completed=one.delivered_bytes
                )

        yield show


# Words and numbers


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _print_line(console: "Console", *parts: str | tuple[str, str]) -> None:
    """One line that is never broken: a terminal wraps it, copying gives it whole."""
    from rich.text import Text

    console.print(Text.assemble(*_spaced(parts)), soft_wrap=True)


def _spaced(parts: Sequence[str | tuple[str, str]]) -> Iterator[str | tuple[str, str]]:
    for number, part in enumerate(part for part in parts if part and part[0]):
        if number:
            yield "  "
        yield part


def _print_json(
    found: Sequence[RunStatus] | Sequence[Recovery], journal_dir: Path, sweeps: _Sweeps
) -> None:
    content: dict[str, object] = {"journal_dir": str(journal_dir), "runs": list(found)}
    if sweeps is not None:
        content["sweeps"] = sweeps
    print(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


def _time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def _duration(length_s: float) -> str:
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if length_s >= 2 * unit_s:
            return f"{length_s / unit_s:.0f} {name}"
    return f"{length_s:.0f} s"

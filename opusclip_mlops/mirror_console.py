"""Prints what came of mirroring and comparing: lines for people, JSON for scripts, a bar meanwhile.

What was not carried is listed at the end, by name and reason.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from opusclip_mlops import run_status
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.mirror_work import RunReport
from opusclip_mlops.replay import Places, target_of

_WELL = ("equal", "mirrored", "planned")
_LISTED = 20
_lock = threading.Lock()


def is_well(reports: Iterable[RunReport]) -> bool:
    """Whether every run is as it should be now."""
    return all(one.outcome in _WELL for one in reports)


def tell_offline(to: Iterable[str], places: Places) -> None:
    """Say, once and on stderr, that W&B is written offline because there is no key for it."""
    config = TrackingConfig()
    if places.wandb_mode or config.wandb_mode:
        return
    targets = [target_of(name, config, places) for name in to]
    for target in targets:
        if target.mode == "offline":
            logs = f"{target.folder}/wandb/offline-run-*"
            print(
                f"opusclip: no W&B key here: written offline, send by wandb sync {logs}",
                file=sys.stderr,
            )
            return


def refuse_unknown(reports: Sequence[RunReport]) -> None:
    """Do nothing where at least one of the runs that were named is in MLflow.

    Raises:
        OpusclipError: None is.
    """
    gone = dict.fromkeys(one.error for one in reports if one.outcome == "gone")
    if gone and all(one.outcome == "gone" for one in reports):
        raise OpusclipError("; ".join(gone))


def tell_under_way(reports: Iterable[RunReport]) -> None:
    """Say on stderr of runs that differ from their mirrors that they are still delivered here."""
    differing = {one.run_id for one in reports if one.outcome in ("unequal", "absent")}
    for folder in run_status.run_folders() if differing else ():
        found = run_status.status_of(folder)
        lacking = [one.sink for one in found.sinks if not one.is_done]
        if found.run_id in differing and lacking:
            print(
                f"opusclip: run {found.run_id} is still on its way to {', '.join(lacking)}: verify "
                "it again once opusclip status shows it no more",
                file=sys.stderr,
            )


def print_mirrored(reports: Sequence[RunReport], *, as_json: bool) -> None:
    """Print what was sent, or would be, and what can't be."""
    if as_json:
        _print_json(reports)
        return
    for one in _worth_a_line(reports):
        print(line_of(one))
    _print_left_out(reports)


def print_verified(reports: Sequence[RunReport], *, as_json: bool) -> None:
    """Print which mirrors are equal, and how the others differ."""
    if as_json:
        _print_json(reports)
        return
    for one in _worth_a_line(reports):
        print(line_of(one))
        for example in one.examples:
            print(f"  {example}")
    _print_left_out(reports)


def line_of(report: RunReport) -> str:
    """What came of a run in one place, in one line."""
    name = f"{report.run_name} " if report.run_name else ""
    return f"{report.target}  {name}{report.run_id}  {' '.join(_said(report))}"


def _said(report: RunReport) -> Iterator[str]:
    counts = [
        _count(report.points, "point"),
        _count(report.media, "medium", "media"),
        _count(report.words, "text about it", "texts about it"),
    ]
    amount = ", ".join(count for count in counts if count)
    match report.outcome:
        case "equal":
            held = _count(report.held_points, "point")
            yield f"equal ({held})" if held else "equal"
        case "mirrored":
            yield f"{'made anew' if report.rebuilt else 'mirrored'}: {amount or 'its end'}"
        case "planned":
            yield f"would get {amount or 'nothing'}"
            if report.extra:
                yield f"and be made anew, as it holds {report.extra:,} too many"
        case "unequal":
            yield f"NOT EQUAL: {', '.join(_differences(report))}"
        case "absent":
            yield "NOT EQUAL: there is no mirror"
        case "gone" | "busy" | "failed":
            yield f"{report.outcome}: {report.error}"


def _differences(report: RunReport) -> Iterator[str]:
    lacking = [_count(report.points, "point"), _count(report.media, "medium", "media")]
    if any(lacking):
        yield "lacks " + " and ".join(count for count in lacking if count)
    if report.extra:
        yield f"has {report.extra:,} too many"
    if report.words:
        yield _count(report.words, "text about it differs", "texts about it differ")


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}" if number else ""


def _worth_a_line(reports: Sequence[RunReport]) -> Iterator[RunReport]:
    """All of a few; of many, those with something to tell, behind a line with the counts."""
    if len(reports) <= _LISTED:
        yield from reports
        return
    counts: dict[str, int] = {}
    for one in reports:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    print(", ".join(f"{number:,} {outcome}" for outcome, number in sorted(counts.items())))
    yield from (one for one in reports if one.outcome not in ("equal", "mirrored", "planned"))


def _print_left_out(reports: Iterable[RunReport]) -> None:
    lines = {
        f"  {one.run_id} {missing.name}: {missing.reason}": None
        for one in reports
        for missing in one.left_out
    }
    if lines:
        print("not carried:")
        print("\n".join(lines))


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[RunReport], None]]:
    """A line for each place that counts its runs, on a terminal; nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(report: RunReport) -> None:
            with _lock:
                if report.target not in tasks:
                    tasks[report.target] = bars.add_task(report.target)
                task = tasks[report.target]
                if report.outcome == "begun":
                    bars.update(
                        task,
                        total=max(report.total, int(bars.tasks[task].completed) + 1),
                        description=f"{report.target} {report.run_name or report.run_id}",
                    )
                else:
                    bars.advance(task)

        yield show


@contextlib.contextmanager
def lines_shown(*, as_json: bool) -> Iterator[Callable[[RunReport], None]]:
    """A line for whatever happens, with the time, as it happens."""

    def show(report: RunReport) -> None:
        if report.outcome == "begun":
            return
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        line = msgspec.json.encode(report).decode() if as_json else f"{at} {line_of(report)}"
        with _lock:
            print(line, flush=True)

    yield show


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """End the block, without a word, at Ctrl-C or SIGTERM."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(reports: Sequence[RunReport]) -> None:
    content = msgspec.json.encode({"mirrors": list(reports)})
    print(msgspec.json.format(content, indent=2).decode())

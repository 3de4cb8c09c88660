"""What a process says as its part in a run ends: what it left out, and how it failed."""

import sys
from pathlib import Path

from opusclip_mlops.accounting import Totals, totals
from opusclip_mlops.crash_report import Case, report
from opusclip_mlops.deaths import Death
from opusclip_mlops.exits import stacks_now
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.ranks import Place
from opusclip_mlops.records import Record, RunEnded, RunStarted
from opusclip_mlops.redaction import one_line

NOTHING_LEFT_OUT = Totals(skipped={}, shed={})
"""What a run left out that nothing is known of."""


def left_out_of(folder: RunFolder) -> Totals | None:
    """What a run left out so far; None where an account can't be read: then nothing is claimed."""
    try:
        return totals(folder.path)
    except OSError:
        return None


def left_out_lines(left: Totals, fault: str) -> list[str]:
    """What could not be kept or was shed, one line each; `fault` is why the disk took nothing."""
    lines = []
    if left.lost:
        lines.append(f"{left.lost:,} records could not be kept: {fault or 'see its log'}")
    if left.shed:
        points, keys = sum(left.shed.values()), len(left.shed)
        lines.append(
            f"{points:,} points of {keys} keys were shed, because the backlog passed its quota;"
            " the counts are in the run, under text/opusclip/left_out"
        )
    return lines


def speaks_for_all(manifest: Manifest, place: Place | None, *, is_owner: bool) -> bool:
    """Whether a process says how far delivery is: one on each machine does."""
    is_first_there = not manifest.owns_run and (place is None or place.local_rank == 0)
    return is_owner or is_first_there


def leaves_at_once(start: RunStarted, status: str) -> bool:
    """Whether who ends so is not to wait for delivery.

    Its launcher lets the others wait, or begin again, only once it is gone, and may kill it.
    """
    return start.world_size > 1 and status != "FINISHED"


def going_on(lines: list[str], log: Path, *, leaves_at_once: bool) -> list[str]:
    """What has not arrived, with who goes on with it; one line where it was not waited for."""
    goes_on = f"; the shipper goes on, its log is {log}"
    if lines and leaves_at_once:
        return [f"what was logged is not waited for{goes_on}"]
    return [line if "refused" in line else f"{line}{goes_on}" for line in lines]


def report_of(
    folder: RunFolder, start: RunStarted, end: RunEnded, *, traceback: str
) -> list[Record]:
    """How this process failed; nothing where that can't be written, which is said on stderr."""
    death = Death(end.status, end.reason, traceback, told_by="the process", stacks=stacks_now())
    case = Case(folder=folder, start=start, death=death, end_time_ms=end.end_time_ms)
    found: list[Record] = []
    if fault := attempted(lambda: found.extend(report(case))):
        why = one_line(f"{type(fault).__name__}: {fault}")
        print(f"opusclip: no report of this end: {why}", file=sys.stderr, flush=True)
    return found

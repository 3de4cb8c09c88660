"""What a process says as its part in a run ends: what it left out, and how it failed."""

import sys

from opusclip_mlops.accounting import Totals, totals
from opusclip_mlops.crash_report import Case, report
from opusclip_mlops.deaths import Death
from opusclip_mlops.exits import stacks_now
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import RunFolder
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

"""What came of a sweep, in lines for people."""

import sys
from collections.abc import Callable

from opusclip_mlops.faults import attempted
from opusclip_mlops.sweeps.claims import MOST_BAD_STARTS
from opusclip_mlops.sweeps.outcome import SweepResult, TrialOutcome
from opusclip_mlops.sweeps.trial_process import GRACE_S

Say = Callable[[str, str], object]
"""Called with a sweep's name and its run's id."""

_MOST_SHOWN = 10


def say_begun(name: str, run_id: str) -> None:
    """Say on stderr which sweep begins: its name is what other machines, and `--resume`, need."""
    _say(f"sweep {name} begins (run {run_id})")


def say_going_on(name: str, run_id: str) -> None:
    """Say on stderr which sweep goes on."""
    _say(f"sweep {name} goes on (run {run_id})")


def say_capped(run_cap: int | None, asked: int | None) -> None:
    """Say on stderr where more trials are asked for than the sweep's file allows."""
    if run_cap and asked and asked > run_cap:
        said = f"count {asked} is more than the file's run_cap: {run_cap} trials at most"
        _say(said)


def say_stopping() -> None:
    """Say on a terminal that the trials under way have time to end, and what ends them by force."""
    said = f"stopping: trials have {GRACE_S:.0f} s to end; Ctrl-C again, from 2 s on, kills them"
    if sys.stderr and sys.stderr.isatty():
        _say(said)


def _say(line: str) -> None:
    """Print a line to stderr; whatever becomes of that, the sweep goes on, or its workers stop."""
    attempted(lambda: print(line, file=sys.stderr, flush=True))


def is_well(found: SweepResult) -> bool:
    """Whether nothing is left to do, and a trial ended well."""
    return found.is_over and any(one.state == "complete" for one in found.trials)


def status_of(found: SweepResult) -> str:
    """How the sweep's run in MLflow ends."""
    return "FINISHED" if is_well(found) else "FAILED" if found.is_over else "KILLED"


def reason_of(found: SweepResult) -> str:
    """Why the sweep's run does not end as FINISHED; "" where it does."""
    status = status_of(found)
    if status == "KILLED":
        return f"stopped before it was over{_going_on(found)}"
    if status == "FINISHED":
        return ""
    bad = [f": trial {one.number}: {one.reason}" for one in found.trials if one.reason]
    return "no trial ended well" + "".join(bad[:1])


def _going_on(found: SweepResult) -> str:
    return f"; go on: opusclip sweep --resume {found.name}" if found.may_go_on else ""


def lines(found: SweepResult, version: str | None) -> list[str]:
    """How the trials ended, the best one, what made a difference, and what to do next.

    Args:
        found: The sweep.
        version: The model version that was made of the best trial, where there is one.
    """
    states = [one.state for one in found.trials]
    counts = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
    said = [f"sweep {found.name}: {counts or 'no trials'} (run {found.run_id})"]
    if found.best:
        said.append(f"best: {found.metric} {found.best.value:g} by {_words(found.best)}")
    ranked = sorted(found.importances.items(), key=lambda pair: -pair[1])[:_MOST_SHOWN]
    if ranked:
        said.append("importance: " + ", ".join(f"{name} {share:.2f}" for name, share in ranked))
    bad = [one for one in found.trials if one.state == "failed"]
    said += [f"  trial {one.number} failed: {one.reason}" for one in bad[:_MOST_SHOWN]]
    if bad:
        said.append(f"  what they printed: {found.folder}/trials")
    if version:
        said.append(f"registered: {version}")
    is_in_vain = len(states) >= MOST_BAD_STARTS and set(states) == {"failed"}
    if is_in_vain and found.may_go_on:
        said.append("the first trials all failed: begin a new sweep")
    if not found.is_over and found.may_go_on:
        said.append(f"go on: opusclip sweep --resume {found.name}")
    elif not found.is_over:
        said.append(f"W&B's agents ended early; what they printed: {found.folder}/workers.log")
    return said


def _words(trial: TrialOutcome) -> str:
    values = ", ".join(f"{name} {value}" for name, value in trial.values.items())
    return f"trial {trial.number} ({values}; run {trial.run_id})"

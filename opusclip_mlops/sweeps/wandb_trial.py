"""One trial of W&B's: what its agent starts in place of the program.

The trial's run in MLflow is mirrored to the very run that W&B waits for.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sweeps import leash
from opusclip_mlops.sweeps.commands import FILE_MACRO, filled
from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.schema import SweepConfig, sweep_of
from opusclip_mlops.sweeps.trial_process import STRAY_VARIABLES, TrialProcess, exit_reason
from opusclip_mlops.sweeps.wandb_engine import SPEC_VARIABLE, Spec, keep_outcome
from opusclip_mlops.trial_values import FILE_VARIABLE, METRIC_VARIABLE, ValuesReader

if TYPE_CHECKING:
    from opusclip_mlops.sweeps.trial_runs import TrialRuns

_POLL_S = 0.1


def flattened(tree: Mapping[str, Any], config: SweepConfig) -> dict[str, Any]:
    """The values of a trial by the names of parameters; what W&B left out is left out."""
    found = {}
    for one in config.parameters:
        place: Any = tree
        for name in one.path:
            place = place.get(name) if isinstance(place, Mapping) else None
        if place is not None:
            found[one.name] = place
    return found


class WandbTrial:
    """A trial that W&B began.

    Args:
        spec: The sweep.
        runs: Makes the trial's run.
        name: What W&B calls the trial's run.
        tree: The trial's values, nested as the file nests them.
    """

    def __init__(self, spec: Spec, runs: "TrialRuns", name: str, tree: Mapping[str, Any]) -> None:
        self._spec, self._runs, self._name, self._tree = spec, runs, name, tree
        self._config = sweep_of(spec.document, f"sweep {spec.name}")
        self._place = Path(spec.folder) / "trials" / name
        self._values = flattened(tree, self._config)
        self._run_id = ""
        self._is_stopped = False

    def run(self) -> int:
        """Run the program, and keep how it ended; its exit code."""
        began_s = time.monotonic()
        try:
            code, value, state, reason = self._done()
        except (OpusclipError, OSError) as error:
            code, value, state, reason = 2, None, "failed", one_line(str(error))
        outcome = TrialOutcome(
            number=0, state=state, value=value, values=self._values, run_id=self._run_id,
            seconds=time.monotonic() - began_s, attempts=1, reason=reason,
        )  # fmt: skip
        keep_outcome(Path(self._spec.folder), self._name, outcome)
        return code

    def _done(self) -> tuple[int, float | None, str, str]:
        self._run_id = self._runs.begin(self._name, 1, self._values, mirror_id=self._name)
        parent = os.getppid()
        code = self._ended(self._started())
        value = _last_value(self._place.with_suffix(".values"))
        if self._config.metric and value is None and not code:
            value = self._runs.latest(self._run_id, self._config.metric.name)
        # Its agent's death is no word of W&B's.
        is_pruned = self._is_stopped and os.getppid() == parent
        state, reason = judged(self._config, code, value, is_pruned=is_pruned)
        if code and state == "failed":
            reason = exit_reason(code, self._place.with_suffix(".log"))
        elif self._config.metric and state == "failed":
            reason = self._runs.missing(self._run_id, self._config.metric.name)
        self._runs.end(self._run_id, state, reason)
        return code, value if state != "failed" else None, state, reason

    def _started(self) -> TrialProcess:
        json_file = self._place.with_suffix(".json")
        if f"${{{FILE_MACRO}}}" in self._config.command:
            json_file.write_text(json.dumps(self._tree))
        words = filled(
            self._config.command,
            program=self._config.program,
            values=self._tree,
            json_file=json_file,
        )
        log = self._place.with_suffix(".log")
        return TrialProcess(words, environment=self._environment(), log=log)

    def _environment(self) -> dict[str, str]:
        own = {
            "MLFLOW_RUN_ID": self._run_id,
            "MLFLOW_EXPERIMENT_ID": self._runs.experiment_id,
            "WANDB_NAME": self._runs.name_of(self._name),
            "WANDB_RUN_GROUP": self._runs.group,
        }
        if metric := self._config.metric:
            own[FILE_VARIABLE] = str(self._place.with_suffix(".values"))
            own[METRIC_VARIABLE] = metric.name
        inherited = {key: one for key, one in os.environ.items() if key not in STRAY_VARIABLES}
        return {**inherited, **own}

    def _ended(self, process: TrialProcess) -> int:
        """Wait for the program; SIGTERM, by which an agent stops a trial, ends it."""

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self._is_stopped = True
            process.ask_to_end()

        signal.signal(signal.SIGTERM, stop)
        while (code := process.poll()) is None:
            time.sleep(_POLL_S)
        return code


def judged(
    config: SweepConfig, code: int, value: float | None, *, is_pruned: bool
) -> tuple[str, str]:
    """How a trial ended, complete, pruned or failed, and why."""
    if is_pruned:
        return "pruned", "W&B stopped it"
    if code:
        return "failed", f"exit code {code}"
    if config.metric and (value is None or not math.isfinite(value)):
        return "failed", f"it logged no {config.metric.name}"
    return "complete", ""


def _last_value(file: Path) -> float | None:
    finite = [value for _, value in ValuesReader(file).new() if math.isfinite(value)]
    return finite[-1] if finite else None


def main(arguments: list[str]) -> int:
    """Run a trial with these values, in JSON; the program's exit code."""
    leash.tie_to(os.getppid())
    load_mlflow()
    from opusclip_mlops.patience import ask_briefly, connected
    from opusclip_mlops.sweeps.trial_runs import TrialRuns

    ask_briefly()
    spec = Spec.read(os.environ[SPEC_VARIABLE])
    runs = TrialRuns(connected(), spec.parent_run_id, spec.name)
    tree = json.loads(arguments[0])
    return WandbTrial(spec, runs, os.environ["WANDB_RUN_ID"], tree).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

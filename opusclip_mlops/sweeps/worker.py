"""A worker of a sweep: claims trials, one after the other, and runs their programs.

Started as a process of its own; any number of them share a study. What one that is killed was
running is tried again by another one.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from optuna.trial import TrialState

from opusclip_mlops.errors import ConfigError, OpusclipError, RegistryError
from opusclip_mlops.faults import attempted
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sweeps import board, leash
from opusclip_mlops.sweeps.board import Slot
from opusclip_mlops.sweeps.claims import Claim, Claims, is_process_gone
from opusclip_mlops.sweeps.commands import FILE_MACRO, filled
from opusclip_mlops.sweeps.mlflow_away import MlflowAway, waited_for
from opusclip_mlops.sweeps.schema import SweepConfig
from opusclip_mlops.sweeps.spaces import nested
from opusclip_mlops.sweeps.stopping_early import Progress
from opusclip_mlops.sweeps.storage import Asker, insisted
from opusclip_mlops.sweeps.studies import (
    AWAY_CODE,
    NO_WORK_CODE,
    STORAGE_VARIABLE,
    open_study,
)
from opusclip_mlops.sweeps.trial_process import (
    STRAY_VARIABLES,
    TrialProcess,
    end_left_group,
    exit_reason,
)
from opusclip_mlops.trial_values import FILE_VARIABLE, METRIC_VARIABLE, ValuesReader

if TYPE_CHECKING:
    from opusclip_mlops.sweeps.trial_runs import TrialRuns

_POLL_S, _IDLE_S, _BEAT_S, _TELL_WAIT_S = 0.1, 0.5, 10.0, 300.0
# While a program runs no answer is waited for longer; once this worker is to end, even less.
_BRIEF_S = 10.0
_LAST_WORDS_S = 5.0
# What stands in the worker's own environment names another run.
_STRAY_VARIABLES = (
    *STRAY_VARIABLES, "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH",
    STORAGE_VARIABLE,
)  # fmt: skip

_Answer = TypeVar("_Answer")


class Stopped(Exception):
    """The worker was asked to end."""


class Worker:
    """Runs trials until none is left.

    Args:
        claims: The study.
        config: The sweep's.
        runs: Makes the trials' runs.
        folder: Where logs and values of trials go.
    """

    def __init__(
        self, claims: Claims, config: SweepConfig, runs: "TrialRuns", folder: Path
    ) -> None:
        self._claims, self._config, self._runs, self._folder = claims, config, runs, folder
        self.is_stopping = False
        self._asker = Asker()
        self._run_id = ""
        self._beat_s = 0.0
        self._untold: dict[int, float] = {}

    def work(self) -> None:
        """Run trials until all that were asked for have ended, or this worker is to end.

        Raises:
            RegistryError: MLflow was away for long; the trial is left to others.
        """
        with contextlib.suppress(Stopped):
            while claim := self._next():
                self._run(claim)

    def _next(self) -> Claim | None:
        """The next trial, waited for while others may leave one; None where all is over."""
        while (claim := self._asked(self._claims.next)) is None:
            if self._asked(self._claims.is_over):
                return None
            time.sleep(_IDLE_S)
        return claim

    def _asked(self, call: Callable[[], _Answer]) -> _Answer:
        """What the storage says, which may be away for a moment.

        Raises:
            Stopped: this worker is to end.
        """
        ask = partial(self._asker.ask, call, before=self._go_on)
        return insisted(ask, wait_s=_TELL_WAIT_S, before=self._go_on)

    def _tried(self, call: Callable[[], object]) -> None:
        """Tell the storage something that may be lost."""
        attempted(lambda: self._asker.ask(call, wait_s=_BRIEF_S, before=self._go_on))

    def _asked_of_mlflow(self, call: Callable[[], _Answer], claim: Claim | None = None) -> _Answer:
        """What MLflow says, for as long as the storage may be away; the trial stays ours meanwhile.

        Raises:
            MlflowAway: it was away for longer.
            Stopped: this worker, or this trial of it, is to end.
            RegistryError: it refuses.
        """

        def meanwhile() -> None:
            self._go_on()
            self._beat_at_times(claim)

        return waited_for(call, wait_s=_TELL_WAIT_S, meanwhile=meanwhile)

    def _go_on(self) -> None:
        if self.is_stopping:
            raise Stopped

    def _run(self, claim: Claim) -> None:
        self._run_id, self._untold, self._beat_s = "", {}, time.monotonic()
        try:
            self._make(claim)
        except Stopped:
            self._leave(claim)
        except MlflowAway as error:
            self._leave(claim)
            raise RegistryError(str(error)) from None

    def _make(self, claim: Claim) -> None:
        try:
            process, values_file = self._started(claim)
        except (OpusclipError, OSError, ValueError) as error:
            self._end(claim, self._run_id, TrialState.FAIL, None, one_line(str(error)))
            return
        try:
            code, progress, is_pruned = self._watched(claim, process, values_file)
        except Stopped:
            process.end()
            raise
        self._judge(claim, self._run_id, code, progress, is_pruned=is_pruned)

    def _leave(self, claim: Claim) -> None:
        """Leave a trial to others."""
        given_up: list[bool] = []
        how = "stopped" if self.is_stopping else "lost"
        give_up = partial(self._claims.give_up, claim, f"its worker was {how}")
        # Where this cannot be said, it is found that this worker is dead.
        attempted(lambda: given_up.append(self._asker.ask(give_up, wait_s=_LAST_WORDS_S)))
        if self._run_id and given_up == [True]:
            self._runs.forget_broken(self._run_id, how)

    def _started(self, claim: Claim) -> tuple[TrialProcess, Path]:
        values = nested(claim.values, self._config.parameters)
        self._run_id = self._asked_of_mlflow(
            lambda: self._runs.begin(claim.number, claim.attempt, claim.values), claim
        )
        self._tried(partial(self._claims.note, claim, board.RUN_ID, self._run_id))
        name = _file_name(claim)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        values_file, json_file = self._folder / f"{name}.values", self._folder / f"{name}.json"
        values_file.unlink(missing_ok=True)
        command, program = self._config.command, self._config.program
        if f"${{{FILE_MACRO}}}" in command:
            json_file.write_text(json.dumps(values))
        words = filled(command, program=program, values=values, json_file=json_file.absolute())
        environment = self._environment(claim.number, values_file)
        process = TrialProcess(words, environment=environment, log=self._folder / f"{name}.log")
        self._tried(partial(self._claims.note, claim, board.GROUP, process.group))
        return process, values_file

    def _environment(self, number: int, values_file: Path) -> dict[str, str]:
        inherited = {key: one for key, one in os.environ.items() if key not in _STRAY_VARIABLES}
        metric = self._config.metric
        watched = (
            {FILE_VARIABLE: str(values_file.absolute()), METRIC_VARIABLE: metric.name}
            if metric
            else {}
        )
        own = {
            "MLFLOW_RUN_ID": self._run_id,
            "MLFLOW_EXPERIMENT_ID": self._runs.experiment_id,
            # By these the mirrors of a tracker, and W&B's own client, name what they write.
            "WANDB_NAME": self._runs.name_of(number),
            "WANDB_RUN_GROUP": self._runs.group,
        }
        return {**inherited, **own, **watched}

    def _watched(
        self, claim: Claim, process: TrialProcess, values_file: Path
    ) -> tuple[int, Progress, bool]:
        """Wait for a trial's program, and end it where it falls behind.

        Raises:
            Stopped: this worker, or this trial of it, is to end.
        """
        reader, is_pruned = ValuesReader(values_file), False
        maximizes = bool(self._config.metric and self._config.metric.maximizes)
        progress = Progress(self._config.hyperband, maximizes=maximizes)
        while True:
            code = process.poll()
            is_behind = self._learn(claim, reader, progress)
            if code is not None:
                return code, progress, is_pruned
            if self.is_stopping:
                process.end()
                self._learn(claim, reader, progress)
                if not self._has_finished(progress):
                    raise Stopped
                return 0, progress, is_pruned
            if is_behind and not is_pruned:
                is_pruned = True
                process.ask_to_end()
            self._beat_at_times(claim)
            time.sleep(_POLL_S)

    def _has_finished(self, progress: Progress) -> bool:
        """Whether a trial that was asked to end had ended well before."""
        metric = self._config.metric.name if self._config.metric else ""
        is_known = not metric or progress.last is not None
        return self._runs.has_finished(self._run_id, metric, is_known=is_known)

    def _learn(self, claim: Claim, reader: ValuesReader, progress: Progress) -> bool:
        """Take in what the program has logged; whether it has fallen behind."""
        is_behind, has_news = False, bool(self._untold)
        for step, value in reader.new():
            has_news = True
            if (band := progress.add(step, value)) is not None:
                self._untold[band] = value
                # At each band, however many a fast program reaches between two looks.
                is_behind = is_behind or self._is_behind(claim, progress)
        return is_behind or (has_news and self._is_behind(claim, progress))

    def _is_behind(self, claim: Claim, progress: Progress) -> bool:
        """Tell the values at bands, and compare; while the storage is away none is behind."""
        answers: list[bool] = []
        untold = self._untold

        def compare() -> None:
            for band in list(untold):
                self._claims.report(claim, band, untold[band])
                del untold[band]
            answers.append(self._claims.is_behind(progress))

        self._tried(compare)
        return answers == [True]

    def _beat_at_times(self, claim: Claim | None) -> None:
        if claim and time.monotonic() - self._beat_s > _BEAT_S:
            self._beat(claim)
            self._beat_s = time.monotonic()

    def _beat(self, claim: Claim) -> None:
        answers: list[bool] = []
        # A storage that is away for a moment stops no training.
        self._tried(lambda: answers.append(self._claims.is_still_mine(claim)))
        if answers == [False]:
            print(f"trial {claim.number} was given to another worker", file=sys.stderr, flush=True)
            raise Stopped

    def _judge(
        self, claim: Claim, run_id: str, code: int, progress: Progress, *, is_pruned: bool
    ) -> None:
        metric, value = self._config.metric, progress.last
        if metric and value is None and not code:
            # A program that logs by MLflow itself.
            value = self._latest(claim, run_id, metric.name)
        if is_pruned:
            self._end(claim, run_id, TrialState.PRUNED, value, "it fell behind")
        elif code:
            log = self._folder / f"{_file_name(claim)}.log"
            self._end(claim, run_id, TrialState.FAIL, None, exit_reason(code, log))
        elif metric and value is None:
            why = self._runs.missing(run_id, metric.name)
            self._end(claim, run_id, TrialState.FAIL, None, why)
        else:
            self._end(claim, run_id, TrialState.COMPLETE, value or 0.0, "")

    def _latest(self, claim: Claim, run_id: str, metric: str) -> float | None:
        try:
            value = self._asked_of_mlflow(lambda: self._runs.latest(run_id, metric), claim)
        except RegistryError as error:
            print(one_line(str(error)), file=sys.stderr, flush=True)
            return None
        return value if value is not None and math.isfinite(value) else None

    def _end(
        self, claim: Claim, run_id: str, state: TrialState, value: float | None, reason: str
    ) -> None:
        """Say how a trial ended, for as long as it takes the storage to answer.

        Raises:
            Stopped: this worker is to end, and the storage says nothing.
        """
        end = partial(self._claims.end, claim, state, value, reason, run_id)
        began_s = time.monotonic()

        def go_on() -> None:
            if self.is_stopping and time.monotonic() - began_s > _LAST_WORDS_S:
                raise Stopped

        insisted(partial(self._asker.ask, end, before=go_on), wait_s=_TELL_WAIT_S, before=go_on)
        name = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(state, "failed")
        print(f"trial {claim.number}: {name}{f', {reason}' if reason else ''}", flush=True)
        if run_id:
            self._end_run(run_id, name, reason)

    def _end_run(self, run_id: str, state: str, reason: str) -> None:
        try:
            self._asked_of_mlflow(lambda: self._runs.end(run_id, state, reason))
        except (RegistryError, MlflowAway, Stopped) as error:
            # It is ended with the sweep, or when that goes on.
            print(f"run {run_id} is not ended: {one_line(str(error))}", file=sys.stderr, flush=True)


def _file_name(claim: Claim) -> str:
    return f"{claim.number:05d}-{claim.attempt}"


def end_left(runs: "TrialRuns", slot: Slot) -> None:
    """End what a lost worker has left of a trial: its program, and its run in MLflow."""
    attrs = slot.last.user_attrs
    # Numbers of another machine's processes mean nothing here.
    if is_process_gone(attrs.get(board.WORKER) or {}) is not None:
        end_left_group(attrs.get(board.GROUP) or {})
    # It may have been killed before it could say which run it made.
    attempt = board.attempt_of(slot.last)
    if run_id := attrs.get(board.RUN_ID) or runs.found(slot.number, attempt):
        runs.forget_broken(run_id)


def run_worker(name: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Work at the study of this name; what workers share is named by the environment.

    Raises:
        ConfigError: there is no such study.
        RegistryError: MLflow refuses, or was away for long.
    """
    load_mlflow()
    from opusclip_mlops.patience import ask_briefly, connected
    from opusclip_mlops.sweeps.trial_runs import TrialRuns

    ask_briefly()
    study = open_study(environment[STORAGE_VARIABLE], name)
    try:
        runs = waited_for(
            lambda: TrialRuns(connected(), study.parent_run_id, name),
            wait_s=_TELL_WAIT_S,
            meanwhile=lambda: None,
        )
    except MlflowAway as error:
        raise RegistryError(str(error)) from None

    claims = Claims(study.storage, name, study.config, on_lost=partial(end_left, runs))
    worker = Worker(claims, study.config, runs, folder)

    def stop(_signum: int, _frame: FrameType | None) -> None:
        worker.is_stopping = True

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    worker.work()


def main(arguments: list[str]) -> None:
    """Run a worker: NAME FOLDER PID, the process that it dies with."""
    name, folder, parent = arguments
    leash.tie_to(int(parent))
    try:
        run_worker(name, Path(folder), os.environ)
    except OpusclipError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(NO_WORK_CODE if isinstance(error, ConfigError) else AWAY_CODE)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])

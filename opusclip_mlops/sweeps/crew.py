"""The workers of one machine: started, replaced where they are killed, and stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.faults import attempted
from opusclip_mlops.sweeps.board import Board
from opusclip_mlops.sweeps.claims import Claims
from opusclip_mlops.sweeps.storage import Asker
from opusclip_mlops.sweeps.studies import NO_WORK_CODE, STORAGE_VARIABLE, Study
from opusclip_mlops.sweeps.telling import say_stopping
from opusclip_mlops.sweeps.trial_process import GRACE_S, last_line

Show = Callable[[str, int, int], object]
"""Called with what is being done, how many trials have ended, and of how many."""

_POLL_S = 0.5
_STOP_WAIT_S = GRACE_S + 30.0
# Of one Ctrl-C `mlflow run` makes two signals.
_SAME_STOP_S = 2.0
_MOST_REPLACEMENTS = 20
# A storage that says nothing holds up neither Ctrl-C nor the looking after workers.
_ANSWER_S = 5.0
_LOG = "workers.log"


class Crew:
    """The workers of this machine.

    Args:
        study: What they work at.
        place: Where that is shared.
        folder: Where they keep logs and values of trials.
        tracking_uri: Where they find MLflow.
    """

    def __init__(self, study: Study, place: str, *, folder: Path, tracking_uri: str) -> None:
        self._study, self._place, self._tracking_uri = study, place, tracking_uri
        self._folder = folder.absolute()
        self._claims = Claims(study.storage, study.name, study.config)
        self._asker = Asker()
        self._replaced = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def work(self, count: int, show: Show) -> None:
        """Work with so many processes until nothing is left to do, or SIGTERM or Ctrl-C comes.

        Raises:
            OpusclipError: no worker could go on; the last words of one are told. A ConfigError
                where the study, or where it is, is at fault.
            KeyboardInterrupt: the workers were stopped, and their trials will be tried again.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            # One by one: where one cannot be started, those before it are stopped.
            for _ in range(count):
                self._processes.append(self._start())
            while self._processes:
                self._tell(show)
                time.sleep(_POLL_S)
                self._look()
        except KeyboardInterrupt:
            say_stopping()
            raise
        finally:
            self._stop()
            signal.signal(signal.SIGTERM, before)
        self._tell(show)

    def _start(self) -> subprocess.Popen[bytes]:
        words = [self._study.name, str(self._folder / "trials"), str(os.getpid())]
        environment = {**os.environ, STORAGE_VARIABLE: self._place}
        environment["MLFLOW_TRACKING_URI"] = self._tracking_uri
        # It is the sweep's own, where `mlflow run` began it.
        environment.pop("MLFLOW_RUN_ID", None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(self._folder / _LOG, flags, 0o600)
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "opusclip_mlops.sweeps.worker", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C comes to this process, which stops them.
                process_group=0,
            )
        finally:
            os.close(log)

    def _look(self) -> None:
        """Replace who was killed, and let go who has ended."""
        codes = [(one, one.poll()) for one in self._processes]
        self._processes = [one for one, code in codes if code is None]
        for code in filter(None, (code for _, code in codes)):
            if _is_struck(code) and self._may_replace():
                self._processes.append(self._start())
            elif not self._processes and not self._is_over():
                raise self._fault(code)

    def _fault(self, code: int) -> OpusclipError:
        words = f"the workers could not go on: {self._last_words()}"
        return ConfigError(words) if code == NO_WORK_CODE else OpusclipError(words)

    def _may_replace(self) -> bool:
        self._replaced += 1
        return self._replaced <= _MOST_REPLACEMENTS and not self._is_over()

    def _is_over(self) -> bool:
        """Whether nothing is left to do; while the storage is away that is not known."""
        answers: list[bool] = []
        attempted(lambda: answers.append(self._asker.ask(self._claims.is_over, wait_s=_ANSWER_S)))
        return answers == [True]

    def _last_words(self) -> str:
        words = last_line(self._folder / _LOG) or "they said nothing"
        return words.removeprefix("error: ")

    def _stop(self) -> None:
        """Have all end, with their trials, and those that do not by force.

        A further Ctrl-C or SIGTERM waits for none any more.
        """
        began_s = time.monotonic()
        while not self._end_by(began_s + _STOP_WAIT_S):
            if time.monotonic() - began_s > _SAME_STOP_S:
                break
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def _end_by(self, deadline_s: float) -> bool:
        """Ask all to end, and wait; False where they did not in time, or a signal came."""
        try:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                process.wait(max(0.0, deadline_s - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return False
        return True

    def _seen(self) -> tuple[Board, int]:
        return self._claims.board(), self._claims.count()

    def _tell(self, show: Show) -> None:
        seen: list[tuple[Board, int]] = []
        if attempted(lambda: seen.append(self._asker.ask(self._seen, wait_s=_ANSWER_S))):
            return
        [(found, count)] = seen
        over = sum(one.is_over for one in found.asked_for(count))
        running = sum(1 for _ in found.running(count))
        show(f"{running} running", over, count)


def _is_struck(code: int) -> bool:
    """Whether a worker was killed, or fell over a fault: another one may do better."""
    return code < 0 or code == 1


def _interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt

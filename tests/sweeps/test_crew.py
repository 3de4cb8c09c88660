"""The workers of one machine."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.sweeps import crew as crew_module
from opusclip_mlops.sweeps.crew import Crew, _is_struck
from tests.journeys import store
from tests.sweeps.small_sweeps import config_of, python, study_of

SLEEPS = """
import os, signal, time
signal.signal(signal.SIGTERM, {told})
print("begun", flush=True)
time.sleep(600)
"""


def test_who_fell_over_a_fault_is_replaced() -> None:
    """As who was killed is; not who ended by itself, nor who cannot work at all."""
    assert [_is_struck(code) for code in (-9, 1, 0, 2)] == [True, True, False, False]


def test_workers_that_cannot_work_say_why(tmp_path: Path) -> None:
    """Their last words are the error: it is not looked for in a log."""
    uri = store(tmp_path)
    MlflowClient(uri)
    study = study_of(tmp_path, config_of(), parent="0" * 32)
    crew = Crew(study, str(tmp_path / "study.journal"), folder=tmp_path / "s", tracking_uri=uri)
    with pytest.raises(
        OpusclipError, match=r"the workers could not go on: cannot read run 0000"
    ) as told:
        crew.work(1, lambda *_: None)
    # It is no wrong use: there is something left to do.
    assert not isinstance(told.value, ConfigError)
    assert oct((tmp_path / "s").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "s" / "workers.log").stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("signum", "told", "same_stop_s", "code"),
    [
        (signal.SIGINT, "signal.SIG_IGN", -1.0, -signal.SIGKILL),
        (signal.SIGTERM, "lambda *_: os._exit(7)", 60.0, 7),
    ],
)
def test_who_is_stopped_twice_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals, told: str, same_stop_s: float, code: int,
) -> None:  # fmt: skip
    """The second stop ends by force who has not ended, but for the one that is sent on at once."""
    monkeypatch.setattr(crew_module, "_SAME_STOP_S", same_stop_s)
    said: list[str] = []
    monkeypatch.setattr(crew_module, "say_stopping", lambda: said.append("stopping"))
    study = study_of(tmp_path, config_of())
    crew = Crew(study, str(tmp_path / "study.journal"), folder=tmp_path, tracking_uri="")
    words = python("-c", SLEEPS.format(told=told))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == b"begun\n"
        wait = worker.wait

        def stopped_again(timeout: float | None = None) -> int:
            monkeypatch.setattr(worker, "wait", wait)
            os.kill(os.getpid(), signum)
            return wait(timeout)

        monkeypatch.setattr(worker, "wait", stopped_again)
        monkeypatch.setattr(crew, "_start", lambda: worker)
        with pytest.raises(KeyboardInterrupt):
            crew.work(1, stopped)
        ended = worker.returncode
        worker.kill()
    assert (ended, said) == (code, ["stopping"])


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


class Dying:
    """A process that dies between two looks."""

    def __init__(self, *codes: int | None) -> None:
        self._codes = list(codes)

    def poll(self) -> int | None:
        return self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]


def test_a_worker_that_dies_while_it_is_looked_at_is_replaced(tmp_path: Path) -> None:
    """It is found at the next look, if not at this one."""
    study = study_of(tmp_path, config_of(), count=2)
    crew = Crew(study, str(tmp_path / "study.journal"), folder=tmp_path, tracking_uri="")
    started: Any = Dying(None)
    crew._start = lambda: started  # type: ignore[method-assign]
    dying: Any = Dying(None, -9)
    crew._processes = [dying]
    crew._look()
    crew._look()
    assert crew._processes == [started]

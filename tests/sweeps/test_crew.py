"""The workers of one machine."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.sweeps.crew import Crew, _is_struck
from tests.journeys import store
from tests.sweeps.small_sweeps import config_of, study_of


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

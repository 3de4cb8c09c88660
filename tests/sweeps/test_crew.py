"""The workers of one machine."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import ConfigError
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
    with pytest.raises(ConfigError, match=r"the workers could not go on: cannot read run 0000"):
        crew.work(1, lambda *_: None)
    assert oct((tmp_path / "s").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "s" / "workers.log").stat().st_mode & 0o777) == "0o600"

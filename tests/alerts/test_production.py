"""The values a run is compared with, of a real registry in a real store."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.alerts.production import Production, values_in_production
from opusclip_mlops.errors import RegistryError
from tests.journeys import make_run, store, wait_until


def registered(tmp_path: Path, *, stage: str) -> None:
    """A version of `clip` in a stage, whose run has two values of a key."""
    client = MlflowClient(store(tmp_path))
    run = client.create_run("0")
    for step, value in enumerate((20.0, 30.0)):
        client.log_metric(run.info.run_id, "video/psnr", value, step=step)
    client.create_registered_model("clip")
    client.create_model_version("clip", "mlflow-artifacts:/x", run_id=run.info.run_id)
    client.transition_model_version_stage("clip", "1", stage)


def test_the_last_values_of_productions_run_are_found(tmp_path: Path) -> None:
    """In the background, and as news once; keys that it has none of are left out."""
    registered(tmp_path, stage="Production")
    production = Production(make_run(tmp_path).manifest())
    wanted = {"clip": {"video/psnr", "video/ssim"}}
    wait_until(lambda: production.look(wanted))
    assert production.values == {"clip video/psnr": 30.0}
    assert not production.look(wanted)


def test_a_model_without_production_has_no_values(tmp_path: Path) -> None:
    """And one that is not there is an error that names it."""
    registered(tmp_path, stage="Staging")
    keys = {"video/psnr"}
    assert list(values_in_production("clip", keys, store(tmp_path), None)) == []
    with pytest.raises(RegistryError, match="'nobody'"):
        list(values_in_production("nobody", keys, store(tmp_path), None))


def test_a_fault_of_mlflow_is_said_once_and_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in nobody's way."""
    monkeypatch.setattr("opusclip_mlops.alerts.production.AFTER_FAULT_S", 0.0)
    production = Production(make_run(tmp_path).manifest())
    wanted = {"nobody": {"video/psnr"}}
    assert not production.look(wanted)
    wait_until(lambda: capsys.readouterr().out.count("Production is not known") == 1)
    registered(tmp_path, stage="Production")
    wait_until(lambda: production.look({"clip": {"video/psnr"}}))
    assert production.values == {"clip video/psnr": 30.0}

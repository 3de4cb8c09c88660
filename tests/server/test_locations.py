"""Where experiments of a server may keep their files."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.server.constants import (
    ARTIFACT_ROOT_ENV_VAR,
    ARTIFACTS_DESTINATION_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops.server.locations import OwnLocations, demand_own


class Store(OwnLocations, SqlAlchemyStore):
    """Runs in a database, of a server when one is."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the server of this process keeps artifacts in."""
    monkeypatch.setenv(ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "artifacts"))
    monkeypatch.setenv(ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
    return tmp_path / "artifacts"


@pytest.mark.parametrize(
    "location", ["/etc", "file:///etc", "file:/etc", "FILE:///etc", "relative", "./x", "../x", "~"]
)
@pytest.mark.usefixtures("served")
def test_nothing_is_kept_on_the_servers_disk_outside_of_its_artifacts(location: str) -> None:
    """Whatever way the place is written: any client could have the server write there."""
    with pytest.raises(MlflowException, match="leave it out") as refused:
        demand_own(location)
    assert refused.value.get_http_status_code() == 400


def test_a_way_back_out_of_the_artifacts_is_refused(served: Path) -> None:
    """Also one that a decoded name would be."""
    for location in (f"{served}/../x", f"file://{served}/%2e%2e/x", f"{served}x"):
        with pytest.raises(MlflowException, match="leave it out"):
            demand_own(location)


def test_places_below_the_artifacts_or_elsewhere_are_let_pass(served: Path) -> None:
    """Object storage is reached with rights of its own."""
    for location in (str(served / "team"), f"file://{served}/team", "s3://films/runs"):
        demand_own(location)
    demand_own("mlflow-artifacts:/team")


@pytest.mark.usefixtures("served")
def test_a_store_asks_in_a_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens a database by hand may write where that user may."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "default"))
    assert store.create_experiment("by-hand", str(tmp_path / "anywhere"))
    monkeypatch.setenv(BACKEND_STORE_URI_ENV_VAR, "opusclip+sqlite:///m.db")
    with pytest.raises(MlflowException, match="leave it out"):
        store.create_experiment("by-client", "/etc")
    assert store.create_experiment("none-said")

"""Facts about `opusclip_mlops.asking`: which registry is meant, and its faults as one line."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from opusclip_mlops.asking import client_of, registry_meant, told_in_one_line
from opusclip_mlops.errors import RegistryError


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two databases; what a test sets as MLflow's defaults does not stay."""
    yield f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri("")


def test_the_registry_that_was_set_here_is_meant_where_none_is_given(
    places: tuple[str, str],
) -> None:
    """None where that is the tracking server; what is given goes before all."""
    here, there = places
    mlflow.set_tracking_uri(here)
    assert registry_meant(None) is None
    mlflow.set_registry_uri(there)
    assert registry_meant(None) == there
    assert registry_meant(here) == here


def test_a_fault_is_one_line_without_credentials() -> None:
    """It says what cannot be done, and why."""
    with (
        pytest.raises(RegistryError) as told,
        told_in_one_line("cannot read\nhttp://anna:pw1234@h"),
    ):
        raise OSError("no\nsuch postgresql://u:pw1234@h/db")
    assert "\n" not in str(told.value)
    assert "pw1234" not in str(told.value)
    assert str(told.value).startswith("cannot read http://")


def test_a_place_of_an_unknown_kind_is_one_line() -> None:
    """MLflow says which kinds there are."""
    with pytest.raises(RegistryError, match=r"^cannot reach MLflow: "):
        client_of("bogus://x", None)

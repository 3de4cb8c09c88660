"""Facts about `opusclip_mlops.registry_rows`: only what somebody may have touched is looked at."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import registry_rows
from opusclip_mlops.registry_rows import Rows
from tests.journeys import store
from tests.promoters import make_model

FIRST, SECOND = "first", "second"


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    client = MlflowClient(store(tmp_path))
    for name in (FIRST, SECOND):
        make_model(client, name=name, versions=2)
    return client


def look(rows: Rows) -> list[str]:
    """What is to be looked at; it is found in order."""
    found = sorted(rows.to_look_at())
    for name in found:
        rows.looked_at(name)
    rows.close()
    return found


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_what_a_hand_may_do_is_seen(client: MlflowClient) -> None:
    """A stage, an alias, a deleted version, a new model: each marks that model alone."""
    rows = Rows(client)
    assert look(rows) == [FIRST, SECOND]
    assert look(rows) == []
    client.transition_model_version_stage(FIRST, "1", "Production")
    assert look(rows) == [FIRST]
    client.transition_model_version_stage(FIRST, "2", "Production")
    assert look(rows) == [FIRST]
    client.transition_model_version_stage(FIRST, "1", "None")
    assert look(rows) == [FIRST]
    client.set_registered_model_alias(SECOND, "production", "1")
    assert look(rows) == [SECOND]
    client.delete_registered_model_alias(SECOND, "production")
    assert look(rows) == [SECOND]
    client.delete_model_version(SECOND, "1")
    assert look(rows) == [SECOND]
    client.create_registered_model("third")
    assert look(rows) == ["third"]
    assert look(rows) == []


def test_what_could_not_be_looked_at_is_looked_at_again(client: MlflowClient) -> None:
    """Only a look that came to an end counts."""
    rows = Rows(client)
    rows.to_look_at()
    rows.looked_at(FIRST)
    rows.close()
    assert rows.to_look_at() == [SECOND]


def test_all_are_looked_at_closely_now_and_then(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list shows no process that was killed before it wrote to the registry."""
    clock_s = [1000.0]
    monkeypatch.setattr(registry_rows.time, "monotonic", lambda: clock_s[0])
    rows = Rows(client)
    assert look(rows) == [FIRST, SECOND]
    clock_s[0] += registry_rows.CLOSE_LOOK_S - 1
    assert look(rows) == []
    clock_s[0] += 1
    assert look(rows) == [FIRST, SECOND]


def test_a_close_look_that_takes_long_is_taken_seldom(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a twentieth of the time."""
    clock_s = [1000.0]
    monkeypatch.setattr(registry_rows.time, "monotonic", lambda: clock_s[0])
    rows = Rows(client)
    rows.to_look_at()
    clock_s[0] += 30
    rows.looked_at(FIRST)
    rows.looked_at(SECOND)
    rows.close()
    clock_s[0] += 599
    assert look(rows) == []
    clock_s[0] += 1
    assert look(rows) == [FIRST, SECOND]


def test_named_models_are_looked_at_each_time(client: MlflowClient) -> None:
    """Whoever names them wants to know at once."""
    rows = Rows(client, [FIRST, "lost"])
    assert [look(rows), look(rows)] == [[FIRST, "lost"]] * 2


def test_more_models_than_a_page_are_listed(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that does not fit into one answer."""
    monkeypatch.setattr(registry_rows, "_PAGE_MODELS", 1)
    assert look(Rows(client)) == [FIRST, SECOND]

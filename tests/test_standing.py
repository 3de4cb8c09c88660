"""How a registered model stands in the registry, and what has to be written."""

import warnings
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.standing import Standing, Write, read_standing, write, writes_towards
from tests.journeys import store
from tests.promoters import NAME, make_model, shown


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    client = MlflowClient(store(tmp_path))
    make_model(client, versions=3)
    return client


def test_every_version_is_read(client: MlflowClient) -> None:
    """Stages, aliases and tags; deleted versions are not there."""
    write(client, NAME, Write("stage", "Production", 2))
    write(client, NAME, Write("alias", "production", 2))
    write(client, NAME, Write("tag", "team", value="video"))
    client.delete_model_version(NAME, "1")
    standing = read_standing(client, NAME)
    assert standing.stages == {2: "Production", 3: "None"}
    assert (standing.aliases, standing.tags) == ({"production": 2}, {"team": "video"})
    assert standing.created_ms == client.get_registered_model(NAME).creation_timestamp
    assert (standing.stage_of(2), standing.stage_of(1)) == ("Production", "Deleted")
    with pytest.raises(RegistryError, match="cannot read the registered model 'nobody'"):
        read_standing(client, "nobody")


def test_more_versions_than_a_page_are_read(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose versions do not fit into one answer."""
    monkeypatch.setattr("opusclip_mlops.standing._PAGE_VERSIONS", 2)
    assert sorted(read_standing(client, NAME).stages) == [1, 2, 3]


def test_only_what_differs_is_written() -> None:
    """Holders first, then who has to go; nothing where all is as it should be."""
    standing = Standing(
        NAME, 0, {1: "Production", 2: "None", 3: "Production", 4: "Staging"},
        {"production": 1, "staging": 4, "best": 2}, {"kept": "x"},
    )  # fmt: skip
    assert writes_towards(standing, {2: "Production", 1: "Archived"}, {"head": "1"}) == [
        Write("stage", "None", 4),
        Write("no alias", "staging"),
        Write("stage", "Production", 2),
        Write("stage", "Archived", 1),
        Write("stage", "None", 3),
        Write("alias", "production", 2),
        Write("tag", "head", value="1"),
    ]
    right = Standing(NAME, 0, {2: "Production"}, {"production": 2}, {"head": "1"})
    assert writes_towards(right, {2: "Production", 1: "Archived"}, {"head": "1"}) == []
    gone = Standing(NAME, 0, {1: "Archived"}, {"production": 1})
    assert writes_towards(gone, {2: "Production"}, {}) == [Write("no alias", "production")]


def test_a_write_about_something_that_vanished_is_passed_over(client: MlflowClient) -> None:
    """A version that is deleted meanwhile; the next look sees that it is gone."""
    client.delete_model_version(NAME, "3")
    for one in (Write("stage", "Production", 3), Write("alias", "production", 3)):
        write(client, NAME, one)
    write(client, NAME, Write("no alias", "production"))
    assert shown(client) == {"Staging": [], "Production": []}


def test_a_refusal_is_one_line(client: MlflowClient) -> None:
    """What MLflow does not take is an error that names it."""
    with pytest.raises(RegistryError, match="cannot set alias 'latest' of 'clip-generator'"):
        write(client, NAME, Write("alias", "latest", 1))


def test_stages_are_set_in_silence(client: MlflowClient) -> None:
    """MLflow's warning of their end is not shown for what is done here, and still for others."""
    with warnings.catch_warnings(record=True) as shown_warnings:
        warnings.simplefilter("always")
        write(client, NAME, Write("stage", "Staging", 1))
        assert shown_warnings == []
        client.transition_model_version_stage(NAME, "1", "None")
        assert [one.category for one in shown_warnings] == [FutureWarning]

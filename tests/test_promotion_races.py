"""Sixteen processes promote at once; others are killed; in full with OPUSCLIP_SOAK=1."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle
from opusclip_mlops.promotion import promote, reconcile
from tests.databases import postgres
from tests.journeys import store
from tests.promoters import NAME, Gate, Race, is_settled, make_model, marks, racing, shown

SOAK = os.environ.get("OPUSCLIP_SOAK") == "1"
PROCESSES = 16


def one_round(client: MlflowClient, race: Race, number: int) -> None:
    """Everybody promotes; afterwards there is one holder, and every decision is in the history."""
    before = len(chronicle.history(NAME, client=client))
    answers = race.run(number)
    assert [answer["error"] for answer in answers if "error" in answer] == []
    records = chronicle.history(NAME, client=client)
    hashes = {record.hash for record in records}
    assert all(answer["hash"] in hashes for answer in answers)
    # Who holds the stage already is left there, and is no new record.
    assert len(answers) - 1 <= len(records) - before <= len(answers)
    assert {record.kind for record in records} == {"promotion"}
    assert shown(client)["Production"] == [records[-1].version]
    assert is_settled(client)
    assert marks(client) == []
    assert chronicle.observe(NAME, client=client) == ()


def everybody(uri: str, tmp_path: Path, *, rounds: int) -> None:
    client = MlflowClient(uri)
    make_model(client, versions=PROCESSES)
    with racing("race", uri, tmp_path / "race", processes=PROCESSES, rounds=rounds) as race:
        for number in range(rounds):
            one_round(client, race, number)


@pytest.mark.timeout(3_600 if SOAK else 600)
def test_sixteen_promote_at_once_on_sqlite(tmp_path: Path) -> None:
    """One holder after each round, the alias equal, the chain whole, no decision lost."""
    everybody(store(tmp_path), tmp_path, rounds=50 if SOAK else 3)


@pytest.mark.timeout(3_600 if SOAK else 600)
def test_sixteen_promote_at_once_on_postgresql(tmp_path: Path) -> None:
    """The same on a database that lets several write at the same time."""
    with postgres() as uri:
        everybody(uri, tmp_path, rounds=50 if SOAK else 1)


@pytest.mark.timeout(3_600 if SOAK else 600)
def test_killed_at_any_moment_the_next_call_puts_it_right(tmp_path: Path) -> None:
    """Processes that promote one version after the other, killed -9 all at once."""
    uri, rounds = store(tmp_path), 50 if SOAK else 3
    client = MlflowClient(uri)
    make_model(client, versions=4)
    with racing("die", uri, tmp_path / "die", processes=3, rounds=rounds) as race:
        for number in range(rounds):
            race.run(number)
            assert chronicle.observe(NAME, client=client) == ()
            if number % 2:
                promote(NAME, 4, to="Production", judge=Gate(), client=client)
            reconcile(NAME, judge=Gate(), client=client)
            assert is_settled(client)
    records = chronicle.history(NAME, client=client)
    assert len(records) > rounds
    assert {record.kind for record in records} == {"promotion"}

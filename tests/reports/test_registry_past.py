"""Facts about `opusclip_mlops.reports.registry_past`: what was decided about a run's versions."""

import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle, promotion
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import Notes
from opusclip_mlops.reports import registry_past
from opusclip_mlops.reports.registry_past import read_past
from opusclip_mlops.reports.unread import Asking
from opusclip_mlops.verdicts import Verdict, condition
from tests.journeys import store
from tests.promoters import Gate
from tests.reports.reported_runs import MODEL, Site, bare_run


def test_versions_decisions_and_the_chain_are_read(site: Site) -> None:
    """The oldest first, with who holds what now and what the gate said."""
    [past] = read_past(site.client, site.rich, Asking())
    versions = [(one.version, one.stage, one.aliases) for one in past.versions]
    assert versions == [(1, "Archived", ()), (2, "Production", ("production",))]
    assert [(one.kind, one.version, one.previous_holder) for one in past.decisions] == [
        ("promotion", 1, None),
        ("promotion", 2, 1),
    ]
    assert (past.model, past.records, past.problems) == (MODEL, 2, ())
    # This gate is not ours: of its verdict it is known that it passed.
    assert past.verdicts == {1: ("passed",), 2: ("passed",)}


def test_the_verdict_of_our_gate_is_told_by_its_conditions(tmp_path: Path) -> None:
    """What was measured and what was wanted."""
    client = MlflowClient(store(tmp_path))
    run_id = bare_run(client, "first", {})
    client.create_registered_model("kites")
    client.create_model_version("kites", source="s3://models/none", run_id=run_id)
    said = [condition("val/psnr", True, 31.0, 24.0)]
    verdict = Verdict(
        model="kites", version=1, stage="Production", conditions=tuple(said), policy_digest="p"
    )
    gate = Gate(content=verdict.to_dict())
    promotion.promote("kites", 1, to="Production", judge=gate, client=client)
    [past] = read_past(client, run_id, Asking())
    assert past.verdicts == {
        1: (
            "kites 1 to Production: passed, 1 of 1 conditions",
            "  passed  val/psnr: 31, wanted 24",
        )
    }


def test_a_run_without_versions_has_no_past(site: Site) -> None:
    """And nothing is asked of a history."""
    assert read_past(site.client, site.plain, Asking()) == ()


def test_only_decisions_about_the_runs_own_versions_count(tmp_path: Path) -> None:
    """And those by which another version took their place."""
    client = MlflowClient(store(tmp_path))
    first, second = (bare_run(client, name, {}) for name in ("first", "second"))
    client.create_registered_model("kites")
    for run_id in (first, second, second):
        client.create_model_version("kites", source="s3://models/none", run_id=run_id)
    for version in (1, 2, 3):
        promotion.promote("kites", version, to="Production", judge=Gate(), client=client)
    [past] = read_past(client, first, Asking())
    assert [one.version for one in past.decisions] == [1, 2]
    assert past.records == 3
    [past] = read_past(client, second, Asking())
    assert [one.version for one in past.decisions] == [2, 3]


def test_a_history_that_was_changed_is_told(tmp_path: Path) -> None:
    """The chain does not hold: that is a problem of the report, not its end."""
    client = MlflowClient(store(tmp_path))
    run_id = bare_run(client, "first", {})
    client.create_registered_model("kites")
    client.create_model_version("kites", source="s3://models/none", run_id=run_id)
    promotion.promote("kites", 1, to="Production", judge=Gate(), client=client)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE params SET value = '{}' WHERE key = '000001'")
    [past] = read_past(client, run_id, Asking())
    assert past.problems != ()


def test_a_verdict_that_was_lost_hides_nothing_else(tmp_path: Path) -> None:
    """Every model and decision is there, that one verdict is a problem, and MLflow is asked once
    for each history.
    """
    client = MlflowClient(store(tmp_path))
    run_id = bare_run(client, "first", {})
    long = Gate(content={"why": "x" * 20_000})
    for model, gate in (("kites", long), ("walks", Gate())):
        client.create_registered_model(model)
        client.create_model_version(model, source="s3://models/none", run_id=run_id)
        promotion.promote(model, 1, to="Production", judge=gate, client=client)
    whole = read_past(client, run_id, Asking())
    assert [one.verdicts for one in whole] == [{1: ("passed",)}] * 2
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DELETE FROM params WHERE key LIKE '%.1' AND length(key) = 66")
    ask = Asking()
    kites, walks = read_past(client, run_id, ask)
    assert ask.unread == []
    assert [str(one) for one in kites.problems] == [
        "record 1 has lost its verdict, or it was changed"
    ]
    assert [one.stage for one in kites.versions] == ["Production"]
    assert (len(kites.decisions), kites.verdicts) == (1, {})
    assert (walks, walks.problems) == (whole[1], ())


def test_a_history_that_cannot_be_read_leaves_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one, and why, is noted; what the registry itself says stands there."""
    client = MlflowClient(store(tmp_path))
    run_id = bare_run(client, "first", {})
    for model in ("kites", "walks"):
        client.create_registered_model(model)
        client.create_model_version(model, source="s3://models/none", run_id=run_id)

    def away(name: str, **_: object) -> Notes:
        if name == "kites":
            raise RegistryError("the history is away")
        return chronicle.read_history(name, client=client)

    monkeypatch.setattr(registry_past, "read_history", away)
    ask = Asking("first")
    past = read_past(client, run_id, ask)
    assert [(one.model, one.versions[0].version) for one in past] == [("kites", 1), ("walks", 1)]
    assert [one.line for one in ask.unread] == ["first: history of kites: the history is away"]

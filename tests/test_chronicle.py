"""What a history tells, and that nothing is done to it unseen."""

import json
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.chronicle import (
    history,
    holder_at,
    observe,
    policy_of,
    verdict_of,
    verify_history,
)
from opusclip_mlops.decisions import Decision, canonical
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.promotion import approve, promote, rollback, set_policy
from tests.journeys import store
from tests.promoters import NAME, Gate, erase, is_settled, make_model, shown


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    """A model whose versions 1 to 4 went to Production one after the other."""
    client = MlflowClient(store(tmp_path))
    make_model(client, versions=5)
    for version in (1, 2, 3, 4):
        promote(NAME, version, to="Production", judge=Gate(), client=client)
    return client


def sql(tmp_path: Path, statement: str, *values: object) -> None:
    """What somebody does who can write to MLflow's database."""
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


def test_who_held_a_stage_when(client: MlflowClient) -> None:
    """At every moment the holder is the one of the last decision until then."""
    made = history(NAME, client=client)
    assert holder_at(NAME, "production", made[0].timestamp_ms - 1, client=client) is None
    for record in made:
        later = [one for one in made if one.timestamp_ms == record.timestamp_ms][-1]
        at_ms = record.timestamp_ms
        assert holder_at(NAME, "Production", at_ms, client=client) == later.version
    assert holder_at(NAME, "Staging", 10**15, client=client) is None
    assert history(NAME, at_ms=10**15, client=client) == made
    with pytest.raises(RegistryError, match="no stage is called"):
        holder_at(NAME, "Canary", 0, client=client)


def test_mlflow_itself_does_not_change_a_record(client: MlflowClient) -> None:
    """Another value for a record's param is refused by the database's own key."""
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    with pytest.raises(Exception, match="Changing param values is not allowed"):
        client.log_param(run_id, "000002", "{}")
    assert verify_history(NAME, client=client) == []


def test_a_record_that_is_changed_in_the_database_is_found(
    client: MlflowClient, tmp_path: Path
) -> None:
    """And nobody decides on such a history unless by force, which is recorded and told for ever."""
    changed = json.loads(client.get_run(_run_id(client)).data.params["000002"]) | {"version": 5}
    sql(tmp_path, "UPDATE params SET value = ? WHERE key = '000002'", canonical(changed))
    assert [str(one) for one in verify_history(NAME, client=client)] == [
        "record 2 was changed: its hash is not that of what it says"
    ]
    for call in (
        lambda: promote(NAME, 5, to="Production", judge=Gate(), client=client),
        lambda: rollback(NAME, judge=Gate(), reason="x", client=client),
        lambda: approve(NAME, 5, to="Production", client=client),
    ):
        with pytest.raises(RegistryError, match="was tampered with: record 2 was changed"):
            call()
    assert shown(client)["Production"] == [4]
    forced = promote(
        NAME, 5, to="Production", judge=Gate(), force=True, reason="looked into", client=client
    )
    assert forced.problems == ("record 2 was changed: its hash is not that of what it says",)
    promote(NAME, 1, to="Production", judge=Gate(), client=client)
    assert [one.number for one in verify_history(NAME, client=client)] == [2, 5]


def test_removed_records_are_found(client: MlflowClient, tmp_path: Path) -> None:
    """In the middle by the numbers, at the end by the tag of the head."""
    sql(tmp_path, "DELETE FROM params WHERE key = '000004'")
    assert [str(one) for one in verify_history(NAME, client=client)] == [
        "its end is missing: its last record is 3, it had 4"
    ]
    with pytest.raises(RegistryError, match="its end is missing"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    sql(tmp_path, "DELETE FROM params WHERE key = '000002'")
    assert [one.number for one in verify_history(NAME, client=client)] == [2, 0]


def test_reordered_records_are_found(client: MlflowClient, tmp_path: Path) -> None:
    """Two records that change places."""
    for old, new in (("000002", "x"), ("000003", "000002"), ("x", "000003")):
        sql(tmp_path, "UPDATE params SET key = ? WHERE key = ?", new, old)
    assert {one.number for one in verify_history(NAME, client=client)} >= {2, 3}


def test_a_record_that_somebody_logs_through_mlflow_is_found(client: MlflowClient) -> None:
    """Rubbish in the place of the next record is told; a forced decision goes on behind it."""
    client.log_param(_run_id(client), "000005", "rubbish")
    assert [one.number for one in verify_history(NAME, client=client)] == [5]
    with pytest.raises(RegistryError, match="record 5 is no record"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    made = promote(NAME, 5, to="Production", judge=None, force=True, reason="x", client=client)
    assert made.number == 6
    assert shown(client)["Production"] == [5]


def test_a_changed_policy_or_verdict_is_found(client: MlflowClient, tmp_path: Path) -> None:
    """A long text is verified by its sha256; one that was changed is not handed out."""
    set_policy(NAME, "stages: {}", client=client)
    long = {"conditions": ["x" * 7_000]}
    made = promote(NAME, 5, to="Staging", judge=Gate(content=long), client=client)
    sql(tmp_path, "UPDATE params SET value = 'null' WHERE key LIKE '%.0'")
    assert [one.number for one in verify_history(NAME, client=client)] == [5, 6]
    with pytest.raises(RegistryError, match="the policy of 'clip-generator' was changed"):
        policy_of(NAME, client=client)
    with pytest.raises(RegistryError, match="has lost its verdict"):
        verdict_of(made, client=client)


def test_a_damaged_history_knows_no_policy(client: MlflowClient) -> None:
    """That none was set is not said of a history that is not whole, which stays readable."""
    set_policy(NAME, "stages: {}", client=client)
    experiment = client.get_experiment_by_name("opusclip registry")
    client.rename_experiment(experiment.experiment_id, "cleaned up")
    line = "the policy of 'clip-generator' is not known, its history is damaged: run .* erased"
    with pytest.raises(RegistryError, match=line):
        policy_of(NAME, client=client)
    assert history(NAME, client=client) == ()
    assert holder_at(NAME, "Production", 10**15, client=client) is None
    client.rename_experiment(experiment.experiment_id, "opusclip registry")
    assert policy_of(NAME, client=client) == "stages: {}"


def test_a_deleted_history_is_an_error_until_it_is_restored(client: MlflowClient) -> None:
    """It can be read and verified, and MLflow restores it; nothing is begun in its place."""
    run_id = _run_id(client)
    client.delete_run(run_id)
    assert [str(one) for one in verify_history(NAME, client=client)] == [
        "its run was deleted: restore it"
    ]
    assert len(history(NAME, client=client)) == 4
    with pytest.raises(RegistryError, match=f"is deleted: restore run {run_id}"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    client.restore_run(run_id)
    promote(NAME, 5, to="Production", judge=Gate(), client=client)
    assert is_settled(client)


def test_a_deleted_experiment_is_an_error_until_it_is_restored(client: MlflowClient) -> None:
    """The experiment of all histories was deleted; new models cannot begin either."""
    experiment = client.get_experiment_by_name("opusclip registry")
    client.delete_experiment(experiment.experiment_id)
    make_model(client, "other")
    with pytest.raises(RegistryError, match="deleted: restore"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    with pytest.raises(RegistryError, match="'opusclip registry' is deleted: restore it"):
        promote("other", 1, to="Production", judge=Gate(), client=client)
    client.restore_experiment(experiment.experiment_id)
    promote(NAME, 5, to="Production", judge=Gate(), client=client)
    promote("other", 1, to="Production", judge=Gate(), client=client)
    assert is_settled(client)


def test_an_erased_history_is_not_begun_anew_quietly(client: MlflowClient) -> None:
    """`mlflow gc` took it: an error; forced, the new history tells of it for good."""
    run_id = _run_id(client)
    erase(client, run_id)
    text = f"its run {run_id} was erased"
    lost = "its end is missing: its last record is 0, it had 4"
    assert [str(one) for one in verify_history(NAME, client=client)] == [text, lost]
    with pytest.raises(RegistryError, match=f"was tampered with: {text}; .*, or force"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    assert history(NAME, client=client) == ()
    made = forced(client)
    assert made.problems == (text,)
    assert promote(NAME, 1, to="Production", judge=Gate(), client=client).number > made.number
    assert text in [str(one) for one in verify_history(NAME, client=client)]
    assert observe(NAME, client=client) == ()


def test_an_erased_experiment_is_not_begun_anew_quietly(client: MlflowClient) -> None:
    """All histories are gone; the registered model still names the one it had."""
    run_id = _run_id(client)
    experiment = client.get_experiment_by_name("opusclip registry")
    client.delete_experiment(experiment.experiment_id)
    client._tracking_client.store._hard_delete_experiment(experiment.experiment_id)
    with pytest.raises(RegistryError, match=f"run {run_id} was its history: erased"):
        promote(NAME, 5, to="Production", judge=Gate(), client=client)
    assert [run_id in one.what for one in verify_history(NAME, client=client)] == [True]
    assert run_id in forced(client).problems[0]
    assert observe(NAME, client=client) == ()


def forced(client: MlflowClient, name: str = NAME) -> Decision:
    """A promotion of version 5 that passes over what is wrong with the history."""
    options = {"force": True, "reason": "the database was restored"}
    return promote(name, 5, to="Production", judge=Gate(), client=client, **options)


def test_an_experiment_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """One that has our name and not our mark: an error that says what to do."""
    client = MlflowClient(store(tmp_path))
    client.create_experiment("opusclip registry")
    make_model(client)
    with pytest.raises(RegistryError, match=r"it has no tag opusclip\.root; rename it"):
        promote(NAME, 1, to="Production", judge=Gate(), client=client)


def test_what_was_moved_by_hand_is_told_and_left(client: MlflowClient) -> None:
    """Looking changes nothing: stage, alias, both, taken out, deleted."""
    assert observe(NAME, client=client) == ()
    client.set_registered_model_alias(NAME, "production", "2")
    assert [str(one) for one in observe(NAME, client=client)] == [
        "alias production was set to version 2 by hand"
    ]
    client.transition_model_version_stage(NAME, "3", "Production", archive_existing_versions=True)
    assert [(one.how, one.version) for one in observe(NAME, client=client)] == [
        ("moved in", 3), ("alias", 2),
    ]  # fmt: skip
    assert len(history(NAME, client=client)) == 4


def _run_id(client: MlflowClient) -> str:
    return str(client.get_registered_model(NAME).tags["opusclip.history"])


def test_who_was_promoted_past_the_policy_is_told(client: MlflowClient) -> None:
    """By whoever writes decisions without a gate; nobody decides further unless by force."""
    set_policy(NAME, "stages: {}", client=client)
    promote(NAME, 5, to="Staging", judge=None, client=client)
    text = "record 6 entered Staging without a verdict"
    assert [str(one) for one in verify_history(NAME, client=client)] == [text]
    with pytest.raises(RegistryError, match=text):
        promote(NAME, 1, to="Staging", judge=Gate(), client=client)
    assert forced(client).problems == (text,)
    promote(NAME, 1, to="Staging", judge=Gate(), client=client)


def test_rubbish_in_every_tag_stops_nobody(client: MlflowClient) -> None:
    """Thousands of digits are told for what they are, and removed by a forced decision."""
    client.set_tag(_run_id(client), "opusclip.settling.x", "9" * 4_400 + " 1")
    client.set_registered_model_tag(NAME, "opusclip.history.head", "9" * 4_400 + " x")
    (problem,) = verify_history(NAME, client=client)
    assert "which names no record" in str(problem)
    assert forced(client).problems == (problem.short,)
    assert [one.number for one in verify_history(NAME, client=client)] == [5]

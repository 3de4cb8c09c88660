"""Promoting, approving, rolling back: on MLflow, by one process after the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle
from opusclip_mlops.chain import approvals
from opusclip_mlops.decisions import Actor, Decision
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.promotion import (
    GateRefused,
    approve,
    promote,
    reconcile,
    rollback,
    set_policy,
)
from tests.journeys import store
from tests.promoters import NAME, Gate, is_settled, make_model, marks, numbers, shown
from tests.servers import mlflow_server

ODD_NAMES = [
    "it's \"odd\"; DROP -- %_\\ 'x'", "übung 視頻 😀", " spaces ", "a.b..c", "a\nb",
    "clip_generator", "clipXgenerator", "CLIP_GENERATOR",
    "' OR name != '", "`",
]  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


@pytest.fixture
def model(client: MlflowClient) -> str:
    return make_model(client, versions=4)


def test_a_promotion_makes_one_holder_with_its_alias(client: MlflowClient, model: str) -> None:
    """The predecessor is archived, the alias follows, the history says who, what and why."""
    first = promote(model, 1, to="production", judge=Gate(), reason="first", client=client)
    second = promote(
        model, "2", to="Production", judge=Gate(), reason="sharper", came_by="CLI",
        actor=Actor("anna", "guard"), client=client,
    )  # fmt: skip
    assert shown(client) == {"Staging": [], "Production": [2], "production": 2}
    assert chronicle.history(model, client=client) == (first, second)
    assert client.get_model_version(model, "1").current_stage == "Archived"
    assert (second.from_stage, second.to_stage, second.previous_holder) == ("None", "Production", 1)
    assert (second.actor, second.actor_known_by, second.came_by) == ("anna", "guard", "CLI")
    assert (second.reason, second.policy_digest, second.forced) == ("sharper", "p1", False)
    assert is_settled(client)
    assert marks(client) == []
    assert client.get_registered_model(model).tags["opusclip.history.head"] == f"2 {second.hash}"


def test_a_version_goes_through_staging(client: MlflowClient, model: str) -> None:
    """On its way to Production it leaves Staging, whose alias is removed."""
    promote(model, 1, to="Staging", judge=Gate(), client=client)
    assert shown(client) == {"Staging": [1], "Production": [], "staging": 1}
    moved = promote(model, 1, to="Production", judge=Gate(), client=client)
    assert moved.from_stage == "Staging"
    assert shown(client) == {"Staging": [], "Production": [1], "production": 1}


def test_promoting_the_holder_again_changes_nothing(client: MlflowClient, model: str) -> None:
    """The decision that brought it there is returned; the gate is not asked."""
    first = promote(model, 1, to="Production", judge=Gate(), client=client)
    gate = Gate()
    assert promote(model, 1, to="Production", judge=gate, client=client) == first
    assert numbers(chronicle.history(model, client=client)) == [1]
    assert gate.asked == []


def test_the_gate_is_asked_with_the_holder_and_the_history(
    client: MlflowClient, model: str
) -> None:
    """A gate sees what it needs to compare with the holder and to count approvals."""
    promote(model, 1, to="Production", judge=Gate(), client=client)
    approve(model, 2, to="Production", actor=Actor("boris", "guard"), client=client)
    gate = Gate()
    promote(model, 2, to="Production", judge=gate, client=client)
    (case,) = gate.asked
    assert (case.kind, case.version, case.to_stage, case.holder) == (
        "promotion", 2, "Production", 1,
    )  # fmt: skip
    assert [one.actor for one in approvals(case.records, 2, "Production")] == ["boris"]


def test_a_refusal_changes_nothing(client: MlflowClient, model: str) -> None:
    """Neither the registry nor the history; on a model without a history it does not begin one."""
    gate = Gate(refused=frozenset({2}))
    with pytest.raises(GateRefused, match="version 2 of 'clip-generator' may not enter") as error:
        promote(model, 2, to="Production", judge=gate, client=client)
    assert error.value.verdict.lines() == ["video/psnr is below 24"]
    assert client.get_registered_model(model).tags == {}
    assert len(client.search_experiments()) == 1
    promote(model, 1, to="Production", judge=gate, client=client)
    before = shown(client)
    with pytest.raises(GateRefused):
        promote(model, 2, to="Production", judge=gate, client=client)
    assert shown(client) == before
    assert numbers(chronicle.history(model, client=client)) == [1]
    assert marks(client) == []


def test_force_needs_a_reason_and_is_recorded(client: MlflowClient, model: str) -> None:
    """The record says that it was forced, and what the gate had said."""
    gate = Gate(refused=frozenset({2}))
    with pytest.raises(RegistryError, match="force needs a reason"):
        promote(model, 2, to="Production", judge=gate, force=True, client=client)
    made = promote(
        model, 2, to="Production", judge=gate, force=True, reason="the demo is today", client=client
    )
    assert made.forced
    assert made.verdict is not None
    assert made.verdict["passed"] is False
    assert shown(client)["Production"] == [2]


def test_a_version_can_be_taken_out_of_its_stage(client: MlflowClient, model: str) -> None:
    """Nobody holds the stage then, and its alias is gone; a version in no stage is an error."""
    promote(model, 1, to="Production", judge=Gate(), client=client)
    gate = Gate(refused=frozenset({1}))
    out = promote(model, 1, to="Archived", judge=gate, reason="legal", client=client)
    assert (out.kind, out.from_stage, out.to_stage) == ("demotion", "Production", "Archived")
    assert shown(client) == {"Staging": [], "Production": []}
    assert is_settled(client)
    with pytest.raises(RegistryError, match="version 2 of 'clip-generator' holds no stage"):
        promote(model, 2, to="None", judge=gate, client=client)


def test_production_is_not_emptied_without_a_word(client: MlflowClient, model: str) -> None:
    """Its holder goes to Staging by force only; a rollback of Staging does not take it either."""
    for version, stage in ((1, "Staging"), (2, "Staging"), (1, "Production")):
        promote(model, version, to=stage, judge=Gate(), client=client)
    expected = shown(client)
    line = "version 1 of 'clip-generator' holds Production.*: promote another one .* or force"
    with pytest.raises(RegistryError, match=line):
        promote(model, 1, to="Staging", judge=Gate(), client=client)
    with pytest.raises(RegistryError, match=line):
        rollback(model, stage="Staging", judge=Gate(), reason="flicker", client=client)
    assert shown(client) == expected
    promote(model, 1, to="Staging", judge=Gate(), force=True, reason="not yet", client=client)
    assert shown(client) == {"Staging": [1], "Production": [], "staging": 1}


def test_a_rollback_goes_back_to_the_holder_before(client: MlflowClient, model: str) -> None:
    """Twice goes back by two; then there is nobody, which is an error and changes nothing."""
    for version in (1, 2, 3):
        promote(model, version, to="Production", judge=Gate(), client=client)
    gate = Gate()
    back = rollback(model, judge=gate, reason="flicker", client=client)
    assert (back.kind, back.version, back.previous_holder) == ("rollback", 2, 3)
    assert [case.kind for case in gate.asked] == ["rollback"]
    assert rollback(model, judge=gate, reason="still", client=client).version == 1
    with pytest.raises(RegistryError, match="nobody held Production of 'clip-generator' before"):
        rollback(model, judge=gate, reason="more", client=client)
    assert shown(client) == {"Staging": [], "Production": [1], "production": 1}
    with pytest.raises(RegistryError, match="a rollback needs a reason"):
        rollback(model, judge=gate, reason="", client=client)


def test_a_rollback_passes_over_deleted_versions(client: MlflowClient, model: str) -> None:
    """It goes to the last one that still exists; where none does, it says which are gone."""
    for version in (1, 2, 3):
        promote(model, version, to="Production", judge=Gate(), client=client)
    client.delete_model_version(model, "2")
    assert rollback(model, judge=Gate(), reason="flicker", client=client).version == 1
    promote(model, 3, to="Production", judge=Gate(), client=client)
    client.delete_model_version(model, "1")
    with pytest.raises(RegistryError, match=r"nothing to go back to \(deleted: 1\)"):
        rollback(model, judge=Gate(), reason="flicker", client=client)


def test_a_rollback_that_the_gate_refuses_changes_nothing(client: MlflowClient, model: str) -> None:
    """A version that does not load any more stays where it is."""
    for version in (1, 2):
        promote(model, version, to="Production", judge=Gate(), client=client)
    with pytest.raises(GateRefused):
        rollback(model, judge=Gate(refused=frozenset({1})), reason="flicker", client=client)
    assert shown(client)["Production"] == [2]


def test_two_rollbacks_at_once_go_back_by_one(client: MlflowClient, model: str) -> None:
    """Whoever finds the holder changed while deciding is told so, and rolls nothing back."""
    for version in (1, 2, 3):
        promote(model, version, to="Production", judge=Gate(), client=client)

    def slow(case: object) -> object:
        rollback(model, judge=None, reason="the other's", client=client)
        return Gate()(case)  # type: ignore[arg-type]

    with pytest.raises(RegistryError, match="went from version 3 to 2 meanwhile"):
        rollback(model, judge=slow, reason="mine", client=client)  # type: ignore[arg-type]
    assert shown(client)["Production"] == [2]
    assert is_settled(client)
    assert marks(client) == []


def test_a_decision_that_comes_between_is_judged_anew(client: MlflowClient, model: str) -> None:
    """A gate that compared with a holder who is gone by then is asked again with the new one."""
    promote(model, 1, to="Production", judge=Gate(), client=client)
    holders: list[int | None] = []

    def slow(case: object) -> object:
        holders.append(case.holder)  # type: ignore[attr-defined]
        if len(holders) == 1:
            promote(model, 3, to="Production", judge=None, client=client)
        return Gate()(case)  # type: ignore[arg-type]

    made = promote(model, 2, to="Production", judge=slow, client=client)  # type: ignore[arg-type]
    assert holders == [1, 3]
    assert (made.number, made.previous_holder) == (3, 3)
    assert is_settled(client)


def test_an_approval_is_recorded_and_moves_nothing(client: MlflowClient, model: str) -> None:
    """It names the stage it is for; only stages that are held can be approved for."""
    made = approve(model, 2, to="production", reason="looked at it", client=client)
    assert (made.kind, made.version, made.to_stage) == ("approval", 2, "Production")
    assert shown(client) == {"Staging": [], "Production": []}
    with pytest.raises(RegistryError, match="nobody holds Archived"):
        approve(model, 2, to="Archived", client=client)


def test_a_policy_is_kept_with_the_model(client: MlflowClient, model: str) -> None:
    """The last one counts, however long; everybody who reads gets the same text."""
    assert chronicle.policy_of(model, client=client) == ""
    long = "stages: {}\n# é\n" * 2_000
    for text in ("stages: {}\n", long):
        set_policy(model, text, reason="stricter", client=client)
        assert chronicle.policy_of(model, client=client) == text
    assert chronicle.verify_history(model, client=client) == []
    set_policy(model, "", client=client)
    assert chronicle.policy_of(model, client=client) == ""


def test_a_long_verdict_is_kept_whole(client: MlflowClient, model: str) -> None:
    """Longer than a param can hold; read back with the NaN that was measured."""
    content = {"conditions": [{"name": "x" * 90, "measured": float("nan")}] * 200}
    made = promote(model, 1, to="Production", judge=Gate(content=content), client=client)
    assert made.verdict is None
    (read,) = chronicle.history(model, client=client)
    verdict = chronicle.verdict_of(read, client=client)
    assert verdict is not None
    assert [one["measured"] for one in verdict["conditions"]] == ["nan"] * 200
    assert chronicle.verify_history(model, client=client) == []


def test_models_with_odd_names_are_promoted(client: MlflowClient) -> None:
    """Quotes, wildcards, other scripts, spaces, a line break; no model touches another."""
    for name in ODD_NAMES:
        make_model(client, name)
        promote(name, 3, to="Production", judge=Gate(), client=client)
    for name in ODD_NAMES:
        promote(name, 1, to="Production", judge=Gate(), client=client)
        rollback(name, judge=Gate(), reason="back", client=client)
        assert numbers(chronicle.history(name, client=client)) == [1, 2, 3]
    for name in ODD_NAMES:
        expected = {"Staging": [], "Production": [3], "production": 3}
        assert shown(client, name) == expected
        assert is_settled(client, name)


def test_a_model_that_does_not_exist_is_one_line(client: MlflowClient) -> None:
    """Whatever the name, an error of ours that is not longer than it has to be."""
    calls = (
        lambda name: promote(name, 1, to="Production", judge=Gate(), client=client),
        lambda name: chronicle.history(name, client=client),
        lambda name: chronicle.observe(name, client=client),
    )
    for name in ["", " ", "nobody", "a/b", "a:b", ".", "x" * 5_000, "a\u0000b", "a\ud800"]:
        for call in calls:
            with pytest.raises(RegistryError) as error:
                call(name)
            assert len(str(error.value).splitlines()) == 1
            assert len(str(error.value)) < 1_000


def test_a_version_that_does_not_exist_is_one_line(client: MlflowClient, model: str) -> None:
    """The versions there are, are named; a deleted one is as one that never was."""
    with pytest.raises(RegistryError, match="no version 9; there are: 1, 2, 3, 4"):
        promote(model, 9, to="Production", judge=Gate(), client=client)
    client.delete_model_version(model, "2")
    with pytest.raises(RegistryError, match="no version 2; there are: 1, 3, 4"):
        approve(model, 2, to="Production", client=client)
    assert client.get_registered_model(model).tags == {}


def test_a_version_deleted_while_it_is_judged_is_not_promoted(
    client: MlflowClient, model: str
) -> None:
    """It was promoted and is gone: nobody holds the stage, and the history says so."""
    promote(model, 1, to="Production", judge=Gate(), client=client)

    def slow(case: object) -> object:
        client.delete_model_version(model, "2")
        return Gate()(case)  # type: ignore[arg-type]

    promote(model, 2, to="Production", judge=slow, client=client)  # type: ignore[arg-type]
    assert [one.kind for one in chronicle.history(model, client=client)] == [
        "promotion", "promotion", "external",
    ]  # fmt: skip
    assert shown(client) == {"Staging": [], "Production": []}
    assert rollback(model, judge=Gate(), reason="it is gone", client=client).version == 1


def test_a_model_deleted_and_made_again_begins_by_force(client: MlflowClient) -> None:
    """Its version 1 is another one; the old history is there, and its policy is not passed over."""
    make_model(client, versions=2)
    promote(NAME, 2, to="Production", judge=Gate(), client=client)
    old_id = client.get_registered_model(NAME).tags["opusclip.history"]
    client.delete_registered_model(NAME)
    assert [one.version for one in chronicle.history(NAME, client=client)] == [2]
    make_model(client, versions=3)
    client.transition_model_version_stage(NAME, "3", "Staging")
    assert chronicle.history(NAME, client=client) == ()
    options = {"to": "Production", "judge": Gate(), "client": client}
    text = f"run {old_id} is a history of that name: was the model deleted and made again?"
    with pytest.raises(RegistryError, match=rf"was tampered with: {text[:-1]}\?; .* or force"):
        promote(NAME, 1, **options)
    assert [str(one) for one in chronicle.verify_history(NAME, client=client)] == [text]
    made = promote(NAME, 1, force=True, reason="it was made anew", **options)
    assert [one.kind for one in chronicle.history(NAME, client=client)] == ["external", "promotion"]
    assert (made.forced, made.previous_holder) == (True, None)
    assert promote(NAME, 2, **options).previous_holder == 1
    told = [str(one) for one in chronicle.verify_history(NAME, client=client)]
    assert told == [f"record 1 was forced: {text}"]


def test_a_renamed_model_goes_on_in_a_forced_decision(client: MlflowClient, model: str) -> None:
    """A chain and its policy are of one name: who renames a model passes over no gate quietly."""
    promote(model, 1, to="Production", judge=Gate(), client=client)
    client.rename_registered_model(model, "renamed")
    options = {"to": "Staging", "judge": Gate(), "client": client}
    with pytest.raises(RegistryError, match=r"was its history: erased, or .* renamed; .* force"):
        promote("renamed", 2, **options)
    made = promote("renamed", 2, force=True, reason="the film was renamed", **options)
    assert "the model was renamed" in made.problems[0]
    assert [one.kind for one in chronicle.history("renamed", client=client)] == [
        "external", "promotion",
    ]  # fmt: skip
    assert shown(client, "renamed")["Production"] == [1]
    assert promote("renamed", 3, **options).previous_holder == 2
    assert len(chronicle.history(model, client=client)) == 1


def test_a_team_that_begins_keeps_its_holders(client: MlflowClient, model: str) -> None:
    """What stood in a stage or had an alias before is adopted, whatever a gate would say."""
    client.transition_model_version_stage(model, "1", "Production")
    client.transition_model_version_stage(model, "2", "Production")
    client.set_registered_model_alias(model, "staging", "3")
    none = Gate(refused=frozenset({1, 2, 3}))
    approve(model, 4, to="Staging", client=client)
    assert shown(client) == {"Staging": [3], "Production": [2], "production": 2, "staging": 3}
    kinds = [(one.kind, one.version) for one in chronicle.history(model, client=client)]
    assert kinds == [("external", 2), ("external", 3), ("approval", 4)]
    assert is_settled(client)
    assert reconcile(model, judge=none, client=client) == ()


def test_what_is_moved_by_hand_after_the_beginning_is_not_let_in_by_an_approval(
    client: MlflowClient, model: str
) -> None:
    """An approval and a policy leave changes by hand to whoever has a gate to ask."""
    set_policy(model, "stages: {}", client=client)
    client.transition_model_version_stage(model, "1", "Production")
    approve(model, 2, to="Production", client=client)
    assert [one.kind for one in chronicle.history(model, client=client)] == ["policy", "approval"]
    (made,) = reconcile(model, judge=Gate(refused=frozenset({1})), client=client)
    assert made.kind == "repair"
    assert shown(client) == {"Staging": [], "Production": []}
    assert is_settled(client)


def test_mlflow_over_rest(tmp_path: Path) -> None:
    """The same through a tracking server, without a warning on anybody's terminal."""
    with mlflow_server(tmp_path / "server") as url:
        client = MlflowClient(url)
        make_model(client, "odd 'name'")
        code = (
            "import sys; from mlflow import MlflowClient; from opusclip_mlops import promotion\n"
            "for version in (1, 2): promotion.promote(sys.argv[2], version, to='Production',"
            " judge=None, client=MlflowClient(sys.argv[1]))\n"
            "promotion.rollback(sys.argv[2], judge=None, reason='x',"
            " client=MlflowClient(sys.argv[1]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", code, url, "odd 'name'"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "transition_model_version_stage" not in done.stderr
        assert is_settled(client, "odd 'name'")
        assert shown(client, "odd 'name'")["Production"] == [1]
        with pytest.raises(RegistryError, match="no version 7"):
            promote("odd 'name'", 7, to="Production", judge=None, client=client)


def test_records_are_readable_without_this_package(client: MlflowClient, model: str) -> None:
    """A record is a param of a run of the experiment `opusclip registry`, in JSON."""
    made = promote(model, 1, to="Production", judge=Gate(), client=client)
    run_id = client.get_registered_model(model).tags["opusclip.history"]
    run = client.get_run(run_id)
    assert run.info.run_name == model
    assert json.loads(run.data.params["000001"])["hash"] == made.hash
    assert isinstance(made, Decision)

"""What was done by hand is recorded before anything is decided: let stand, or put back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle
from opusclip_mlops.deciding import Case
from opusclip_mlops.decisions import LONGEST_REASON
from opusclip_mlops.errors import ConfigError, OpusclipError, RegistryError
from opusclip_mlops.promotion import GateRefused, promote, reconcile, rollback
from tests.journeys import store
from tests.promoters import NAME, Gate, Said, is_settled, make_model, marks, shown

Hand = Callable[[MlflowClient], object]


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    """Version 1 is in Production and 2 in Staging; 3 and 4 are new."""
    client = MlflowClient(store(tmp_path))
    make_model(client, versions=4)
    promote(NAME, 1, to="Production", judge=Gate(), client=client)
    promote(NAME, 2, to="Staging", judge=Gate(), client=client)
    return client


def moved(version: int, stage: str, *, archive: bool = False) -> Hand:
    """Somebody moves a version in MLflow's pages."""
    return lambda client: client.transition_model_version_stage(
        NAME, str(version), stage, archive_existing_versions=archive
    )


def named(alias: str, version: int) -> Hand:
    """Somebody sets an alias."""
    return lambda client: client.set_registered_model_alias(NAME, alias, str(version))


def unnamed(alias: str) -> Hand:
    """Somebody removes an alias."""
    return lambda client: client.delete_registered_model_alias(NAME, alias)


def deleted(version: int) -> Hand:
    """Somebody deletes a version."""
    return lambda client: client.delete_model_version(NAME, str(version))


START = {"Staging": [2], "Production": [1], "production": 1, "staging": 2}
THREE = START | {"Production": [3], "production": 3}


@pytest.mark.parametrize(
    ("hands", "expected", "kinds"),
    [
        ([moved(3, "Production", archive=True)], THREE, ["external"]),
        ([moved(3, "Production")], THREE, ["external"]),
        ([named("production", 3)], THREE, ["external"]),
        ([moved(3, "Production", archive=True), named("production", 3)], THREE, ["external"]),
        ([moved(3, "Production"), moved(4, "Production")],
         START | {"Production": [4], "production": 4}, ["external"]),
        ([moved(3, "Production"), named("production", 4)], THREE, ["external"]),
        ([moved(2, "Production", archive=True)],
         {"Staging": [], "Production": [2], "production": 2}, ["external"]),
        ([moved(1, "Archived")], {"Staging": [2], "Production": [], "staging": 2}, ["external"]),
        ([moved(1, "None"), unnamed("production")],
         {"Staging": [2], "Production": [], "staging": 2}, ["external"]),
        ([moved(1, "Staging")], {"Staging": [1], "Production": [], "staging": 1},
         ["external"]),
        ([deleted(1)], {"Staging": [2], "Production": [], "staging": 2}, ["external"]),
        ([deleted(1), moved(3, "Production")], THREE, ["external"]),
        ([unnamed("production")], START, ["repair"]),
        ([named("production", 2)], START, ["repair"]),
        ([named("staging", 1)], START, ["repair"]),
        ([moved(3, "Archived"), named("best", 3)], START | {"best": 3}, []),
        ([], START, []),
    ],
)  # fmt: skip
def test_what_the_gate_lets_through_stands(
    client: MlflowClient, hands: list[Hand], expected: dict[str, object], kinds: list[str]
) -> None:
    """Stage and alias follow each other, one record says what was done by hand."""
    for hand in hands:
        hand(client)
    made = reconcile(NAME, judge=Gate(), client=client)
    assert shown(client) == expected
    assert [one.kind for one in made] == kinds
    assert {one.actor for one in made if one.kind == "external"} <= {"unknown"}
    assert is_settled(client)
    assert marks(client) == []
    assert reconcile(NAME, judge=Gate(), client=client) == ()


@pytest.mark.parametrize(
    "hand",
    [moved(3, "Production"), moved(3, "Production", archive=True), named("production", 3)],
)
def test_what_the_gate_refuses_is_put_back(client: MlflowClient, hand: Hand) -> None:
    """The record says so, with the verdict; the holder before is the holder again."""
    hand(client)
    (made,) = reconcile(NAME, judge=Gate(refused=frozenset({3})), client=client)
    assert (made.kind, made.version, made.came_by) == ("repair", 3, "watch")
    assert made.verdict is not None
    assert made.verdict["passed"] is False
    assert shown(client) == START
    assert is_settled(client)


def test_a_refused_change_of_every_stage_is_put_back(client: MlflowClient) -> None:
    """Two stages changed at once are two records."""
    for hand in (moved(3, "Production", archive=True), moved(4, "Staging", archive=True)):
        hand(client)
    made = reconcile(NAME, judge=Gate(refused=frozenset({3, 4})), client=client)
    assert sorted(one.version or 0 for one in made if one.kind == "repair") == [3, 4]
    assert shown(client) == START


def test_a_promotion_records_what_was_done_by_hand_first(client: MlflowClient) -> None:
    """The gate then compares with the holder who is there, and the history tells both."""
    moved(3, "Production", archive=True)(client)
    gate = Gate()
    promote(NAME, 4, to="Production", judge=gate, client=client)
    assert [(case.kind, case.version, case.holder) for case in gate.asked] == [
        ("external", 3, 1), ("promotion", 4, 3),
    ]  # fmt: skip
    records = chronicle.history(NAME, client=client)[2:]
    assert [(one.kind, one.version, one.previous_holder) for one in records] == [
        ("external", 3, 1), ("promotion", 4, 3),
    ]  # fmt: skip
    assert is_settled(client)


def test_a_refused_promotion_leaves_what_was_done_by_hand_put_right(client: MlflowClient) -> None:
    """A refusal after a change by hand: the change is answered, the promotion is not there."""
    moved(3, "Production", archive=True)(client)
    with pytest.raises(GateRefused, match="version 4"):
        promote(NAME, 4, to="Production", judge=Gate(refused=frozenset({3, 4})), client=client)
    assert [one.kind for one in chronicle.history(NAME, client=client)[2:]] == ["repair"]
    assert shown(client) == START
    assert marks(client) == []


class Blind(Gate):
    """A gate that cannot read version 3."""

    fault: OpusclipError = RegistryError("cannot read version 3:\nno credentials")

    def __call__(self, case: Case) -> Said:
        said = super().__call__(case)
        if case.version == 3:
            raise self.fault
        return said


def test_a_stranger_that_cannot_be_judged_blocks_no_decision(client: MlflowClient) -> None:
    """It is put back, and the history says on one line why nobody judged it."""
    moved(3, "Production", archive=True)(client)
    made = promote(NAME, 4, to="Production", judge=Blind(), client=client)
    assert (made.version, made.previous_holder) == (4, 1)
    back = chronicle.history(NAME, client=client)[2]
    assert (back.kind, back.version, back.reason) == (
        "repair", 3, "version 3 was put into Production by hand, and put back: "
        "not judged: cannot read version 3: no credentials",
    )  # fmt: skip
    assert is_settled(client)
    assert marks(client) == []


def test_a_watcher_leaves_what_it_cannot_judge_now(client: MlflowClient) -> None:
    """An outage undoes nobody's move: it is an error until the gate can be asked."""
    moved(3, "Production", archive=True)(client)
    with pytest.raises(RegistryError, match="cannot read version 3"):
        reconcile(NAME, judge=Blind(), client=client)
    assert shown(client)["Production"] == [3]
    (made,) = reconcile(NAME, judge=Gate(), client=client)
    assert (made.kind, made.version) == ("external", 3)


def test_an_emergency_waits_for_no_stranger(client: MlflowClient) -> None:
    """Forced or rolled back, only the version that goes in is judged; others are put back."""
    moved(3, "Production", archive=True)(client)
    moved(4, "Staging", archive=True)(client)
    gate = Gate()
    made = promote(
        NAME, 2, to="Production", judge=gate, force=True, reason="it burns", client=client
    )
    assert [(case.kind, case.version) for case in gate.asked] == [("promotion", 2)]
    repairs = chronicle.history(NAME, client=client)[2:-1]
    assert sorted((one.kind, one.version) for one in repairs) == [("repair", 3), ("repair", 4)]
    assert all("not judged" in one.reason for one in repairs)
    assert (made.version, made.previous_holder) == (2, 1)
    assert shown(client) == {"Staging": [], "Production": [2], "production": 2}


def test_a_rollback_from_a_stranger_goes_to_the_holder_before(client: MlflowClient) -> None:
    """Not past it; the stranger is not asked about, and rolling back again goes back further."""
    promote(NAME, 4, to="Production", judge=Gate(), client=client)
    moved(3, "Production", archive=True)(client)
    gate = Gate()
    made = rollback(NAME, judge=gate, reason="3 flickers", client=client)
    assert (made.kind, made.version, made.previous_holder) == ("rollback", 4, 3)
    assert [(case.kind, case.version) for case in gate.asked] == [("rollback", 4)]
    assert shown(client)["Production"] == [4]
    assert is_settled(client)
    assert rollback(NAME, judge=Gate(), reason="4 does too", client=client).version == 1


def test_a_rollback_is_not_turned_back_by_another_stage_or_an_alias(client: MlflowClient) -> None:
    """A stranger in Staging and a lost alias are put back; Production goes back as ever."""
    promote(NAME, 4, to="Production", judge=Gate(), client=client)
    moved(3, "Staging", archive=True)(client)
    unnamed("production")(client)
    made = rollback(NAME, judge=Gate(), reason="4 flickers", client=client)
    assert (made.version, made.previous_holder) == (1, 4)
    assert shown(client) == START
    assert is_settled(client)


@pytest.mark.parametrize(
    "fault",
    [RegistryError("MLflow is\ngone"), ConfigError("no policy"), RegistryError("x" * 2_000)],
)
def test_force_gets_past_a_gate_that_fails(client: MlflowClient, fault: OpusclipError) -> None:
    """Whatever its error, the reason has it; without force nothing is moved."""
    gate = Blind()
    gate.fault = fault
    with pytest.raises(type(fault)):
        promote(NAME, 3, to="Production", judge=gate, client=client)
    assert shown(client) == START
    made = promote(
        NAME, 3, to="Production", judge=gate, force=True, reason="the demo is today", client=client
    )
    line = " ".join(f"the demo is today (not judged: {fault})".split())
    assert made.reason == line[:LONGEST_REASON]
    assert shown(client)["Production"] == [3]

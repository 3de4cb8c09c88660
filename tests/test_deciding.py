"""What was done by hand is recorded before anything is decided: let stand, or put back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle
from opusclip_mlops.promotion import GateRefused, promote, reconcile
from tests.journeys import store
from tests.promoters import NAME, Gate, is_settled, make_model, marks, shown

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

"""Verdicts that are made outside of a transaction, and looked up inside."""

from dataclasses import replace

import pytest

from opusclip_mlops.deciding import CannotJudge, Case
from opusclip_mlops.decisions import Decision
from opusclip_mlops.server.judging import Judged, NotJudgedYet
from tests.promoters import NAME, Gate, Said

RECORD = Decision(kind="external", model=NAME, version=1, to_stage="Production", nonce="a")
CASE = Case("promotion", NAME, 2, "Production", 1, "anna", (RECORD,))


def test_a_case_is_judged_once() -> None:
    """The judge is not asked where only a verdict is looked up."""
    gate = Gate(refused=frozenset({2}))
    judged = Judged(gate)
    with pytest.raises(NotJudgedYet, match="version 2 of 'clip-generator' is not judged yet"):
        judged.verdict(CASE)
    assert gate.asked == []
    judged.add(CASE)
    assert judged.verdict(CASE) == Said(False)
    assert gate.asked == [CASE]


def test_a_record_written_again_is_the_same_record() -> None:
    """What was rolled back is written anew at another time, and judged no second time."""
    judged = Judged(Gate())
    judged.add(CASE)
    again = replace(RECORD, nonce="b", timestamp_ms=7, previous_hash="c", hash="d")
    assert judged.verdict(replace(CASE, records=(again,))).passed


@pytest.mark.parametrize(
    "other",
    [
        replace(CASE, version=3),
        replace(CASE, kind="rollback"),
        replace(CASE, actor="boris"),
        replace(CASE, records=()),
        replace(CASE, records=(RECORD, RECORD)),
        replace(CASE, records=(replace(RECORD, forced=True),)),
    ],
)
def test_another_case_is_another_question(other: Case) -> None:
    """Another version, decision, person or history is judged for itself."""
    judged = Judged(Gate())
    judged.add(CASE)
    with pytest.raises(NotJudgedYet):
        judged.verdict(other)


def test_what_cannot_be_judged_stays_so() -> None:
    """The reason is told wherever the verdict is asked for."""

    def lost(_: Case) -> Said:
        raise CannotJudge("its run is deleted")

    judged = Judged(lost)
    judged.add(CASE)
    with pytest.raises(CannotJudge, match="its run is deleted"):
        judged.verdict(CASE)

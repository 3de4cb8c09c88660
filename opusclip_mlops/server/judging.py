"""Judging before a transaction, so that no model is locked while files are read and models run.

In the transaction a judge is asked again, and gives the verdict on the same case; a case that was
not judged yet ends the transaction, is judged, and all is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from opusclip_mlops.deciding import Case, Judge, Verdict
from opusclip_mlops.errors import OpusclipError


class NotJudgedYet(Exception):
    """A case on which there is no verdict yet."""

    def __init__(self, case: Case) -> None:
        super().__init__(f"version {case.version} of {case.model!r} is not judged yet")
        self.case = case


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of the cases that were judged so far."""

    judge: Judge
    outcomes: dict[str, Verdict | OpusclipError] = field(default_factory=dict)

    def verdict(self, case: Case) -> Verdict:
        """What came of a case before.

        Raises:
            NotJudgedYet: It was not judged.
            OpusclipError: It could not be judged.
        """
        outcome = self.outcomes.get(_key(case))
        if outcome is None:
            raise NotJudgedYet(case)
        if isinstance(outcome, OpusclipError):
            raise outcome
        return outcome

    def add(self, case: Case) -> None:
        """Judge a case, which may take as long as its policy says."""
        try:
            self.outcomes[_key(case)] = self.judge(case)
        except OpusclipError as error:
            self.outcomes[_key(case)] = error


def _key(case: Case) -> str:
    """What a verdict depends on; when a record was tried to be written is no part of it."""
    records = tuple(
        replace(one, nonce="", timestamp_ms=0, previous_hash="", hash="", verdict=None)
        for one in case.records
    )
    return repr(replace(case, records=records))

"""What MLflow is told: the end of a launch, unless a tracker knows it better."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops import operating
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.launching.ending import go_on, settle
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.layout import REASON_TAG
from tests.launching.made import end_of, launch, without_database

GOOD = Ending(status="FINISHED")
GUESS = Ending(status="FAILED", reason="nobody said", exit_code=1, is_guess=True)
CANCELLED = Ending(status="KILLED", reason="cancelled (SIGTERM)", exit_code=143)
TOLD = "rank 0 on host: process 12 was ended by SIGTERM"
SAVED = "SIGTERM: ended behind the checkpoint of step 40"
BAD = Ending(status="FAILED", reason="rank 1 on host: exit code 7", exit_code=7)


@pytest.mark.parametrize(
    ("said", "ending", "expected"),
    [
        ("RUNNING", GOOD, ("FINISHED", "")),
        ("RUNNING", BAD, ("FAILED", BAD.reason)),
        ("FINISHED", BAD, ("FAILED", BAD.reason)),
        ("FINISHED", GUESS, ("FINISHED", "")),
        ("RUNNING", GUESS, ("FAILED", "nobody said")),
        ("KILLED", BAD, ("KILLED", "")),
        ("FAILED", GOOD, ("FAILED", "")),
    ],
)
def test_a_run_ends_as_its_launch_did(
    tmp_path: Path, said: str, ending: Ending, expected: tuple[str, str]
) -> None:
    """One rank that said FINISHED does not hide that another failed; what failed stays failed."""
    _, plan = launch(tmp_path)
    if said != "RUNNING":
        MlflowClient(plan.tracking_uri).set_terminated(plan.run_id, said)
    settle(plan, ending, delivery_wait_s=0)
    assert end_of(plan) == expected


@pytest.mark.parametrize(
    ("said", "ending", "expected"),
    [
        (TOLD, BAD, ("FAILED", BAD.reason)),
        (TOLD, CANCELLED, ("KILLED", "cancelled (SIGTERM)")),
        (TOLD, GUESS, ("FAILED", "nobody said")),
        (SAVED, BAD, ("FAILED", BAD.reason)),
        (SAVED, CANCELLED, ("KILLED", SAVED)),
        ("the user stopped it", BAD, ("KILLED", "the user stopped it")),
    ],
)
def test_a_rank_that_was_told_to_end_does_not_know_why(
    tmp_path: Path, said: str, ending: Ending, expected: tuple[str, str]
) -> None:
    """Its launch does: a failure is no cancellation, and who cancelled is the better reason.

    The run still ended when its ranks did.
    """
    _, plan = launch(tmp_path)
    client = MlflowClient(plan.tracking_uri)
    client.set_tag(plan.run_id, REASON_TAG, said)
    client.set_terminated(plan.run_id, "KILLED", end_time=1234)
    settle(plan, ending, delivery_wait_s=0)
    assert end_of(plan) == expected
    assert client.get_run(plan.run_id).info.end_time == 1234


def test_a_scheduler_that_has_forgotten_a_job_knows_less_than_its_rank(tmp_path: Path) -> None:
    """It was told to end there, by whom nobody knows; here it is the end of its supervisor."""
    _, plan = launch(tmp_path, kind="slurm")
    client = MlflowClient(plan.tracking_uri)
    client.set_tag(plan.run_id, REASON_TAG, TOLD)
    client.set_terminated(plan.run_id, "KILLED")
    settle(plan, GUESS, delivery_wait_s=0)
    assert end_of(plan) == ("KILLED", TOLD)


def test_a_run_goes_on_after_a_job_that_had_to_end(tmp_path: Path) -> None:
    """It is the same run, and it is running."""
    _, plan = launch(tmp_path)
    MlflowClient(plan.tracking_uri).set_terminated(plan.run_id, "KILLED")
    go_on(plan)
    assert end_of(plan)[0] == "RUNNING"


def test_a_run_that_is_gone_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Somebody deleted its experiment while it waited in a queue."""
    _, plan = launch(tmp_path)
    with pytest.raises(RegistryError, match=r"cannot say how run f{32} ended"):
        settle(msgspec.structs.replace(plan, run_id="f" * 32), GOOD, delivery_wait_s=0)


def test_a_database_that_cannot_be_opened_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks after a launch, or waits for it, reads that in place of a traceback."""
    away = without_database(launch(tmp_path)[1], monkeypatch)
    with pytest.raises(RegistryError, match="cannot reach MLflow"):
        settle(away, GOOD, delivery_wait_s=0)
    with pytest.raises(RegistryError, match="cannot reach MLflow"):
        go_on(away)


def test_a_journal_that_cannot_be_delivered_hides_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room for a shipper's log."""
    _, plan = launch(tmp_path)
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path))
    (tmp_path / plan.run_id).mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(operating, "recover", full)
    settle(plan, BAD, delivery_wait_s=0)
    assert end_of(plan) == ("FAILED", BAD.reason)

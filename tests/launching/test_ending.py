"""What MLflow is told: the end of a launch, unless a tracker knows it better."""

from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.launching.ending import go_on, settle
from opusclip_mlops.launching.outcomes import Ending
from tests.launching.made import end_of, launch

GOOD = Ending(status="FINISHED")
GUESS = Ending(status="FAILED", reason="nobody said", exit_code=1, is_guess=True)
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

"""What Kubernetes says of a Job, by recorded answers of kubectl: no cluster runs here."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching.kubernetes import Cluster, KubernetesAwayError
from opusclip_mlops.launching.outcomes import AgentOutcome, Ending
from tests.launching.programs import only_on_path, program
from tests.launching.test_manifest import planned

PLAN = planned(namespace="video", context="east")
NAME = f"opusclip-{PLAN.run_id[:16]}"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    return only_on_path(tmp_path, monkeypatch)


def job(*conditions: dict[str, str], **counts: int) -> str:
    """A Job as `kubectl get job -o json` prints it."""
    return json.dumps({"kind": "Job", "status": {"conditions": list(conditions), **counts}})


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> Any:
    """A condition of a Job."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


def by_kind(answers: Path, pods: Any, found: str) -> None:
    """A kubectl that answers for pods, and for the Job."""
    text = f"""case "$*" in *pods*) echo '{json.dumps(pods)}';; *) echo '{found}';; esac"""
    (answers / "kubectl").write_text(f"#!/bin/bash\n{text}\n")
    (answers / "kubectl").chmod(0o755)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (job(), "SCHEDULED"),
        (job(active=2, ready=0), "SCHEDULED"),
        (job(active=2, ready=2), "RUNNING"),
        (job(condition("FailureTarget", "PodFailurePolicy"), active=1, ready=1), "RUNNING"),
        (job(condition("Failed", status="False"), active=1, ready=1), "RUNNING"),
        (job(condition("SuccessCriteriaMet"), condition("Complete")), Ending(status="FINISHED")),
        (
            job(condition("Failed", "DeadlineExceeded", "Job was active longer")),
            Ending(status="KILLED", reason="the Job reached its time limit", exit_code=1),
        ),
    ],
)
def test_a_job_is_what_its_conditions_say(
    answers: Path, answer: str, expected: Ending | str
) -> None:
    """A Job that will fail still runs until its pods are gone."""
    program(answers, "kubectl", answer)
    assert Cluster(PLAN).status() == expected
    assert (answers / "kubectl.words").read_text().split()[:2] == [
        "--namespace=video",
        "--context=east",
    ]


def test_the_rank_that_failed_is_its_pods_last_word(answers: Path) -> None:
    """The agent leaves it where Kubernetes keeps what a container says as it ends."""
    left = AgentOutcome(node=1, host="pod-1", timestamp_ms=5, exit_code=-9, rank=3)
    words = ["", "not ours", msgspec.json.encode(left).decode()]
    states = [{"state": {"terminated": {"message": one}}} for one in words]
    pods = {"items": [{"status": {"containerStatuses": [one]}} for one in states]}
    failed = job(condition("Failed", "FailedIndexes", "Job has failed indexes"))
    by_kind(answers, pods, failed)
    assert Cluster(PLAN).status() == Ending(
        status="FAILED", reason="rank 3 on pod-1: SIGKILL", exit_code=137
    )
    by_kind(answers, {"items": []}, failed)
    ending = Cluster(PLAN).status()
    assert isinstance(ending, Ending)
    assert ending.reason == "a pod failed too often: Job has failed indexes"


def test_what_failed_before_it_was_replaced_is_no_reason(answers: Path) -> None:
    """Only the last pod of an index that failed for good has ended the Job."""
    pods = [(0, 0, 3, 1), (1, 0, 5, 2), (1, 1, 9, 3), (2, 0, 8, 0)]
    items = []
    for index, failures, code, rank in pods:
        left = AgentOutcome(
            node=index, host="pod", timestamp_ms=failures + index, exit_code=code, rank=rank
        )
        named = {
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-index-failure-count": str(failures),
        }
        ended = {"state": {"terminated": {"message": msgspec.json.encode(left).decode()}}}
        status = {"containerStatuses": [ended]}
        items.append({"metadata": {"annotations": named}, "status": status})
    failed = json.loads(job(condition("Failed", "FailedIndexes")))
    failed["status"]["failedIndexes"] = "1,3-5"
    by_kind(answers, {"items": items}, json.dumps(failed))
    ending = Cluster(PLAN).status()
    assert isinstance(ending, Ending)
    assert ending.reason == "rank 3 on pod: exit code 9"


@pytest.mark.parametrize(
    "error",
    [
        'Error from server (Forbidden): jobs.batch "x" is forbidden',
        "error: You must be logged in to the server (Unauthorized)",
        'error: context "east" does not exist',
    ],
)
def test_a_refusal_is_not_waited_out(answers: Path, error: str) -> None:
    """It would be refused for ever."""
    program(answers, "kubectl", error=error)
    with pytest.raises(LaunchError) as caught:
        Cluster(PLAN).status()
    assert not isinstance(caught.value, KubernetesAwayError)


def test_a_job_that_was_perhaps_taken_is_deleted(answers: Path) -> None:
    """The answer was lost: nothing may be left that trains."""
    program(answers, "kubectl", error="net/http: request canceled (Client.Timeout exceeded)")
    with pytest.raises(LaunchError, match="Timeout"):
        Cluster(PLAN).create()
    assert "delete\njob" in (answers / "kubectl.words").read_text()
    program(answers, "kubectl", "{}")
    with pytest.raises(LaunchError, match="printed no Job"):
        Cluster(PLAN).create()


def test_a_job_that_was_deleted_was_killed(answers: Path) -> None:
    """Not finished, and not an error of ours."""
    error = f'Error from server (NotFound): jobs.batch "{NAME}" not found'
    program(answers, "kubectl", error=error)
    ending = Cluster(PLAN).status()
    assert isinstance(ending, Ending)
    assert (ending.status, "was deleted" in ending.reason) == ("KILLED", True)
    assert ending.is_guess


def test_a_cluster_that_is_away_has_ended_nothing(answers: Path) -> None:
    """The error is of a kind that is waited out; no kubectl is another."""
    with pytest.raises(LaunchError, match="no kubectl on PATH"):
        Cluster(PLAN).status()
    program(answers, "kubectl", error="Unable to connect to the server: dial tcp: i/o timeout")
    with pytest.raises(KubernetesAwayError, match="Unable to connect"):
        Cluster(PLAN).status()


def test_the_service_goes_with_its_job(answers: Path) -> None:
    """It is owned by the Job, so that deleting that leaves nothing behind."""
    program(answers, "kubectl", json.dumps({"metadata": {"uid": "u-1"}}), shows="input")
    assert Cluster(PLAN).create() == NAME
    service = json.loads((answers / "kubectl.shown").read_text())
    assert service["kind"] == "Service"
    assert service["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    Cluster(PLAN).delete()
    words = (answers / "kubectl.words").read_text()
    assert "--cascade=foreground" in words

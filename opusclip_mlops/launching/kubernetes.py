"""Asking Kubernetes by kubectl: creating, deleting, and what became of a Job; never by a shell."""

import contextlib
import json
import subprocess
from collections.abc import Sequence
from typing import Any

import msgspec

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching import manifest
from opusclip_mlops.launching.outcomes import AgentOutcome, Ending, first_failure, shell_code
from opusclip_mlops.launching.workplace import Plan
from opusclip_mlops.redaction import one_line

_ANSWER_WAIT_S = 60.0
_NOT_FOUND = "(NotFound)"
_REFUSALS = ("(Forbidden)", "(Unauthorized)", "must be logged in", "does not exist")
_INDEX = "batch.kubernetes.io/job-completion-index"
_FAILURES = "batch.kubernetes.io/job-index-failure-count"
_WORDS = {
    "DeadlineExceeded": "the Job reached its time limit",
    "BackoffLimitExceeded": "a pod failed too often",
    "FailedIndexes": "a pod failed too often",
    "MaxFailedIndexesExceeded": "a pod failed too often",
    "PodFailurePolicy": "a pod failed in a way that starting it again does not mend",
}


class KubernetesAwayError(LaunchError):
    """The cluster does not answer; what it runs goes on."""


class Cluster:
    """The namespace in which one launch's Job lies."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._name = manifest.name_of(plan)

    def create(self) -> str:
        """Create the Service and the Job, so that the Service goes with the Job; the Job's name.

        Raises:
            LaunchError: Kubernetes refused one of them: then neither is there.
        """
        service, job = manifest.manifests(self._plan)
        try:
            made = self._done("create", "--output=json", "--filename=-", given=job)
            service["metadata"]["ownerReferences"] = [self._owner(made)]
            self._done("create", "--filename=-", given=service)
        except (LaunchError, KeyboardInterrupt):
            # One that was not answered may have been taken.
            with contextlib.suppress(LaunchError):
                self.delete()
            raise
        return self._name

    def _owner(self, made: str) -> dict[str, str]:
        """The Job that was made, as its Service names it."""
        try:
            uid = json.loads(made)["metadata"]["uid"]
        except (ValueError, LookupError, TypeError):
            raise LaunchError(f"kubectl printed no Job: {one_line(made)}") from None
        return {"apiVersion": "batch/v1", "kind": "Job", "name": self._name, "uid": uid}

    def delete(self) -> None:
        """Delete the Job, and wait until its pods are gone; nothing where there is none.

        Raises:
            LaunchError: Kubernetes refused, or does not answer.
        """
        wait_s = self._plan.config.grace_s + 60
        self._done(
            "delete", "job", self._name, "--ignore-not-found", "--cascade=foreground",
            f"--timeout={wait_s}s", wait_s=wait_s + 10,
        )  # fmt: skip

    def status(self) -> "Ending | str":
        """How the Job ended; "SCHEDULED" or "RUNNING" while it has not.

        Raises:
            KubernetesAwayError: the cluster does not answer.
            LaunchError: there is no kubectl here, or Kubernetes refuses to say.
        """
        try:
            job = json.loads(self._done("get", "job", self._name, "--output=json"))
        except KubernetesAwayError as error:
            if _NOT_FOUND not in str(error):
                raise
            reason = f"the Job {self._name} was deleted before it was over"
            return Ending(status="KILLED", reason=reason, exit_code=1, is_guess=True)
        return self._status_of(job.get("status", {}))

    def _status_of(self, status: dict[str, Any]) -> "Ending | str":
        true = {one["type"]: one for one in status.get("conditions", ()) if one["status"] == "True"}
        if "Complete" in true:
            return Ending(status="FINISHED")
        if "Failed" in true:
            return self._failure(true["Failed"], status.get("failedIndexes", ""))
        return "RUNNING" if status.get("ready") else "SCHEDULED"

    def _failure(self, condition: dict[str, Any], failed: str) -> Ending:
        why = condition.get("reason", "")
        if why == "DeadlineExceeded":
            return Ending(status="KILLED", reason=_WORDS[why], exit_code=1)
        told = one_line(f"{_WORDS.get(why, why)}: {condition.get('message', '')}")
        first = first_failure(self._outcomes(failed))
        if first is None:
            return Ending(status="FAILED", reason=told, exit_code=1)
        code = shell_code(first.exit_code)
        return Ending(status="FAILED", reason=f"{first}", exit_code=code)

    def _outcomes(self, failed: str) -> list[AgentOutcome]:
        """What the agents left as their pods' last words, of those that ended the Job."""
        selector = f"--selector=batch.kubernetes.io/job-name={self._name}"
        pods = json.loads(self._done("get", "pods", selector, "--output=json"))["items"]
        states = [
            one.get("state", {}).get("terminated", {})
            for pod in _last_of(pods, failed)
            for one in pod.get("status", {}).get("containerStatuses", ())
        ]
        found = (_outcome(one.get("message", "")) for one in states)
        return [one for one in found if one is not None]

    def _done(
        self, *words: str, given: manifest.Manifest | None = None, wait_s: float = _ANSWER_WAIT_S
    ) -> str:
        config = self._plan.config
        context = [f"--context={config.context}"] if config.context else []
        argv = ["kubectl", f"--namespace={config.namespace}", *context, *words]
        return _answer(argv, "" if given is None else json.dumps(given), wait_s)


def _last_of(pods: Sequence[dict[str, Any]], failed: str) -> list[dict[str, Any]]:
    """The last pod of each index that failed; all pods where Kubernetes names no index.

    Args:
        pods: All pods of the Job, with those that were replaced.
        failed: As the Job's status says it: "1,3-5".
    """
    if not failed:
        return list(pods)
    ranges = [one.partition("-")[::2] for one in failed.split(",")]
    last: dict[int, dict[str, Any]] = {}
    for pod in sorted(pods, key=lambda pod: _number(pod, _FAILURES)):
        index = _number(pod, _INDEX)
        if any(int(low) <= index <= int(high or low) for low, high in ranges):
            last[index] = pod
    return list(last.values())


def _number(pod: dict[str, Any], annotation: str) -> int:
    return int(pod.get("metadata", {}).get("annotations", {}).get(annotation, 0))


def _outcome(text: str) -> AgentOutcome | None:
    try:
        return msgspec.json.decode(text, type=AgentOutcome)
    except msgspec.DecodeError:
        return None


def _answer(argv: Sequence[str], given: str, wait_s: float) -> str:
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, timeout=wait_s, check=False
        )
    except FileNotFoundError:
        raise LaunchError("no kubectl on PATH: install it to launch on Kubernetes") from None
    except subprocess.TimeoutExpired:
        raise KubernetesAwayError(f"kubectl did not answer within {wait_s:.0f} s") from None
    if done.returncode and any(one in done.stderr for one in _REFUSALS):
        raise LaunchError(f"kubectl: {one_line(done.stderr)}")
    if done.returncode:
        raise KubernetesAwayError(f"kubectl: {one_line(done.stderr) or done.returncode}")
    return done.stdout

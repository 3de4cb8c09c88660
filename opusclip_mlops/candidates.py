"""What MLflow knows of a registered version, read as the gate wants it.

A metric's value is the checkpoint's own, out of the `metadata.json` beside the weights; else what
the run has at the checkpoint's step, or last before it; else it is missing. Where training went on
from a checkpoint, what it gave up does not count. Of versions that other tools registered, with no
checkpoint of ours, the run's last value counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import mlflow
from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from opusclip_mlops.deciding import CannotJudge
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.gates import Approval, Candidate, Measure, Verdict, judge
from opusclip_mlops.generations import generation_of, generations_of, line_of
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.policy import Policy, StageRules, stage_named
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import MISSING, reason_of
from opusclip_mlops.smoke import SmokeResult, smoke_test
from opusclip_mlops.version_files import VersionFiles

_TAG = "opusclip."
_NOT_IN_URI = re.compile(r"[@?]")
_USER = "mlflow.user"
_NOBODY = ("", "unknown")


def judge_version(
    policy: Policy,
    name: str,
    version: int | str,
    *,
    to: str,
    holders: Mapping[str, int | str] = MappingProxyType({}),
    approvals: Sequence[Approval] = (),
    been_in: Collection[str] = (),
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Verdict:
    """Read a version and who holds the stages it is compared with, and judge it.

    Args:
        policy: The model's policy.
        name: The registered model.
        version: Its number.
        to: The stage it is to enter, in any case.
        holders: The version in each stage; a stage that is not there has none.
        approvals: Those given to this version for this stage.
        been_in: The stages this version was in before or is in.
        tracking_uri: Where runs are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.

    Raises:
        PolicyError: The policy is for another model, or there is no such stage.
        RegistryError: Version, run or checkpoint is not there, or MLflow did not answer.
    """
    policy.check_model(name)
    stage = stage_named(to)
    rules = policy.rules(stage)
    places = {"tracking_uri": tracking_uri, "registry_uri": registry_uri}
    compared = {
        one: read_holder(name, holders[one], rules=rules, **places)
        for one in sorted(rules.compared_with & holders.keys())
    }
    candidate = read_candidate(name, version, rules=rules, **places)
    return judge(policy, stage, candidate, holders=compared, approvals=approvals, been_in=been_in)


def read_candidate(
    name: str,
    version: int | str,
    *,
    rules: StageRules,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Candidate:
    """Read a version, with all that the rules of a stage ask for.

    Weights are fetched and hashed, and the smoke test is made, where the rules ask for it only.

    Raises:
        RegistryError: There is no such version, or it is not ready; its run is deleted; it lost the
            checkpoint that it was made of; MLflow did not answer.
    """
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
    found = _find(client, name, version)
    with _one_line(f"cannot read {found.title}"):
        run = found.run(client)
        if found.version.run_id and run is None:
            whose = f"run {found.version.run_id} of {found.title}"
            raise CannotJudge(f"{whose} is deleted: restore it first")
        kept = VersionFiles.of(client, found.version)
        if _TAG + "checkpoint" in found.tags and kept.metadata is None:
            raise CannotJudge(f"{found.title} has lost its checkpoint: {kept.problem}")
        measures = _measures(client, run, kept.metadata, found, rules)
        sha256 = found.tags.get(_TAG + "weights_sha256", "")
        problem = kept.hash_problem(sha256) if rules.checkpoint_hash else None
        has_signature = rules.signature and kept.has_signature()
    smoke = _smoke(found, kept.location, rules.smoke_timeout_s, client.tracking_uri, registry_uri)
    return Candidate(
        name=name,
        version=found.number,
        author=_author(found.version, run),
        metrics=measures,
        tags=found.tags,
        files=kept.sizes,
        has_signature=has_signature,
        checkpoint_problem=problem,
        dataset_digest=_dataset_digest(kept.metadata, found, run),
        smoke=smoke,
    )


def read_holder(
    name: str,
    version: int | str,
    *,
    rules: StageRules,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Candidate:
    """Read of a version what others are compared with: its metrics and its dataset.

    A run that is deleted is no error here: what the checkpoint itself knows still counts.

    Raises:
        RegistryError: There is no such version, or MLflow did not answer.
    """
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
    found = _find(client, name, version)
    with _one_line(f"cannot read {found.title}"):
        run = found.run(client)
        metadata = VersionFiles.of(client, found.version).metadata
        measures = _measures(client, run, metadata, found, rules)
    return Candidate(
        name=name,
        version=found.number,
        author=_author(found.version, run),
        metrics=measures,
        tags=found.tags,
        dataset_digest=_dataset_digest(metadata, found, run),
    )


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{what}: {reason_of(error)}") from error


# The version and its run


@dataclass(frozen=True)
class _Found:
    """A version that is there and ready."""

    version: ModelVersion
    number: int

    @property
    def title(self) -> str:
        return one_line(f"version {self.number} of {self.version.name}")

    @property
    def tags(self) -> dict[str, str]:
        return {key: str(value) for key, value in (self.version.tags or {}).items()}

    def run(self, client: MlflowClient) -> Run | None:
        """Its run; None when it has none, or when that is deleted."""
        if not self.version.run_id:
            return None
        try:
            run = client.get_run(self.version.run_id)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            return None
        return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _find(client: MlflowClient, name: str, version: int | str) -> _Found:
    text = str(version).strip()
    if not re.fullmatch(r"[1-9]\d{0,9}", text, re.ASCII):
        raise RegistryError(one_line(f"{version!r} is no version of {name}: give a number from 1"))
    try:
        found = client.get_model_version(name, text)
    except (MlflowException, OSError) as error:
        is_missing = isinstance(error, MlflowException) and error.error_code == MISSING
        what = f"{'no' if is_missing else 'cannot read'} version {text} of {name}"
        raise RegistryError(one_line(f"{what}: {reason_of(error)}")) from error
    if found.status not in (None, "READY"):
        why = f": {found.status_message}" if found.status_message else ""
        raise RegistryError(one_line(f"version {text} of {name} is {found.status}{why}"))
    return _Found(found, int(found.version))


def _author(version: ModelVersion, run: Run | None) -> str:
    """Who registered it, else whose run it is."""
    known = [version.user_id, *([run.info.user_id, run.data.tags.get(_USER)] if run else [])]
    return next((str(one) for one in known if (one or "") not in _NOBODY), "")


def _dataset_digest(metadata: CheckpointMetadata | None, found: _Found, run: Run | None) -> str:
    """The checkpoint's dataset, else the version's tag, else all datasets of the run."""
    known = (metadata.dataset_digest if metadata else "") or found.tags.get(_TAG + "dataset_digest")
    if known or run is None or run.inputs is None:
        return known or ""
    digests = {one.dataset.digest for one in run.inputs.dataset_inputs}
    return ", ".join(sorted(digests))


def _smoke(
    found: _Found,
    location: str,
    timeout_s: float | None,
    tracking_uri: str,
    registry_uri: str | None,
) -> SmokeResult | None:
    if timeout_s is None:
        return None
    # Another process does not know what was set in this one.
    set_here = mlflow.get_registry_uri()
    if registry_uri is None and set_here != mlflow.get_tracking_uri():
        registry_uri = set_here
    uri = f"models:/{found.version.name}/{found.number}"
    return smoke_test(
        location if _NOT_IN_URI.search(found.version.name) else uri,
        timeout_s=timeout_s,
        tracking_uri=tracking_uri,
        registry_uri=registry_uri,
    )


# What was measured


def _measures(
    client: MlflowClient,
    run: Run | None,
    metadata: CheckpointMetadata | None,
    found: _Found,
    rules: StageRules,
) -> dict[str, Measure]:
    own = dict(metadata.metrics) if metadata else {}
    measures = {key: Measure(value, "checkpoint") for key, value in own.items()}
    step = metadata.step if metadata else _step(found)
    made_ms = metadata.created_ms if metadata else None
    for rule in rules.metrics:
        if rule.key not in measures and run is not None:
            measure = _logged(client, run, rule.key, step=step, made_ms=made_ms)
            measures |= {rule.key: measure} if measure else {}
    return measures


def _step(found: _Found) -> int | None:
    text = found.tags.get(_TAG + "step", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _logged(
    client: MlflowClient, run: Run, key: str, *, step: int | None, made_ms: int | None
) -> Measure | None:
    """What the run has of a metric at a step or last before it; its last value without a step.

    Where training has gone back, what the checkpoint's own generation looks back on counts; where
    it is not known when that was made, that of the run as it is now.
    """
    # The public mapping of a run's metrics has their values only.
    latest = next((one for one in run.data._metric_objs if one.key == key), None)
    known = generations_of(run.data.tags)
    if latest is None or not (known or (step is not None and step < latest.step)):
        return None if latest is None else _measure(latest)
    line = line_of(known, len(known) if made_ms is None else generation_of(known, made_ms))
    points = (
        one
        for one in client.get_metric_history(run.info.run_id, key)
        if (step is None or one.step <= step)
        and line.holds(key=key, step=one.step, timestamp_ms=one.timestamp)
    )
    last = max(points, key=lambda one: (one.step, one.timestamp), default=None)
    return None if last is None else _measure(last)


def _measure(point: Metric) -> Measure:
    return Measure(float(point.value), f"run, step {point.step}")

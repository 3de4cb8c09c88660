"""What MLflow knows of a registered version, read as the gate wants it.

A metric's value is the checkpoint's own, out of the `metadata.json` beside the weights; else what
the run has at the checkpoint's step, or last before it; else it is missing. Where training went on
from a checkpoint, what it gave up does not count. Of versions that other tools registered, with no
checkpoint of ours, the run's last value counts.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from mlflow.entities import DatasetInput, LifecycleStage, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from opusclip_mlops.asking import client_of, registry_meant, told_in_one_line
from opusclip_mlops.deciding import CannotJudge
from opusclip_mlops.errors import PassportError, RegistryError
from opusclip_mlops.gates import SMOKE_TEST, Approval, Candidate, Measure, Verdict, judge
from opusclip_mlops.generations import generation_of, generations_of, line_of
from opusclip_mlops.metadata import EVALUATED_ON, TRAINED_ON, CheckpointMetadata
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import Passport
from opusclip_mlops.policy import Policy, StageRules, stage_named
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import MISSING, asking_faults, reason_of
from opusclip_mlops.smoke import SmokeResult, smoke_test
from opusclip_mlops.version_files import VersionFiles

MADE_BY = "opusclip.made_by"
"""The tag of a run that says who was logged in when it was made."""

_TAG = "opusclip."
_NOT_IN_URI = re.compile(r"[@?]")
_USER = "mlflow.user"
_NOBODY = ("", "unknown")
_CONTEXT = "mlflow.data.context"
_FAILED = "FAILED_REGISTRATION"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where versions are judged, when that is not where MLflow's URIs lead.

    Attributes:
        client: Reads models, runs and files.
        smoke: Makes the smoke test of the files at a location, within so many seconds.
        runs_examples: Whether it runs models that no policy asks to be run.
    """

    client: MlflowClient
    smoke: Callable[[str, float], SmokeResult]
    runs_examples: bool = True


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
    bench: Bench | None = None,
) -> Verdict:
    """Read a version and who holds the stages it is compared with, and judge it.

    The smoke test runs the version's own code: it is made where nothing else failed.

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
        bench: Reads and tests instead of what the URIs lead to.

    Raises:
        PolicyError: The policy is for another model, or there is no such stage.
        RegistryError: Version, run or checkpoint is not there, or MLflow did not answer.
    """
    policy.check_model(name)
    stage = stage_named(to)
    rules = policy.rules(stage)
    client = bench.client if bench else client_of(tracking_uri, registry_uri)
    compared = {
        one: _holder(client, name, holders[one], rules)
        for one in sorted(rules.compared_with & holders.keys())
    }
    candidate, location = _read(client, _find(client, name, version), rules)
    judged = functools.partial(
        judge, policy, stage, holders=compared, approvals=approvals, been_in=been_in
    )
    verdict = judged(candidate)
    if rules.smoke_timeout_s is None or {one.name for one in verdict.failed} != {SMOKE_TEST}:
        return verdict
    if bench:
        smoke = bench.smoke(location, rules.smoke_timeout_s)
    else:
        where = (client.tracking_uri, registry_uri)
        smoke = _smoke(candidate, location, rules.smoke_timeout_s, *where)
    return judged(replace(candidate, smoke=smoke))


def read_candidate(
    name: str,
    version: int | str,
    *,
    rules: StageRules,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Candidate:
    """Read a version, with all that the rules of a stage ask for but the smoke test.

    Weights are fetched and hashed where the rules ask for it only.

    Raises:
        CannotJudge: Its registration failed; its run is deleted; it lost the checkpoint that it was
            made of.
        RegistryError: There is no such version, or it is not ready; MLflow did not answer.
    """
    client = client_of(tracking_uri, registry_uri)
    return _read(client, _find(client, name, version), rules)[0]


def _read(client: MlflowClient, found: _Found, rules: StageRules) -> tuple[Candidate, str]:
    """A version as the gate sees it, and where its files are."""
    with told_in_one_line(f"cannot read {found.title}"):
        run = found.run(client)
        if found.version.run_id and run is None:
            whose = f"run {found.version.run_id} of {found.title}"
            raise CannotJudge(f"{whose} is deleted: restore it first")
        kept = VersionFiles.of(client, found.version)
        if _TAG + "checkpoint" in found.tags and kept.metadata is None:
            raise CannotJudge(f"{found.title} has lost its checkpoint: {kept.problem}")
        candidate = Candidate(
            **_known(client, found, run, kept.metadata, rules),
            files=kept.sizes,
            has_signature=rules.signature and kept.has_signature(),
            checkpoint_problem=kept.hash_problem(found.tags) if rules.checkpoint_hash else None,
        )
    return candidate, kept.location


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
    return _holder(client_of(tracking_uri, registry_uri), name, version, rules)


def _holder(client: MlflowClient, name: str, version: int | str, rules: StageRules) -> Candidate:
    found = _find(client, name, version)
    with told_in_one_line(f"cannot read {found.title}"):
        run = found.run(client)
        metadata = VersionFiles.of(client, found.version).metadata
        return Candidate(**_known(client, found, run, metadata, rules))


def _known(
    client: MlflowClient,
    found: _Found,
    run: Run | None,
    metadata: CheckpointMetadata | None,
    rules: StageRules,
) -> dict[str, Any]:
    """What is known of candidates and of holders."""
    return {
        "name": found.version.name,
        "version": found.number,
        "author": _author(found.version, run),
        "registered_by": found.tags.get(_TAG + "registered_by", ""),
        "made_by": run.data.tags.get(MADE_BY, "") if run else "",
        "metrics": _measures(client, run, metadata, found, rules),
        "tags": found.tags,
        **_digests(metadata, found, run),
    }


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
    except asking_faults() as error:
        is_missing = isinstance(error, MlflowException) and error.error_code == MISSING
        what = f"{'no' if is_missing else 'cannot read'} version {text} of {name}"
        raise RegistryError(one_line(f"{what}: {reason_of(error)}")) from error
    if found.status not in (None, "READY"):
        why = f": {found.status_message}" if found.status_message else ""
        kind = CannotJudge if found.status == _FAILED else RegistryError
        raise kind(one_line(f"version {text} of {name} is {found.status}{why}"))
    return _Found(found, int(found.version))


def _author(version: ModelVersion, run: Run | None) -> str:
    """Who registered it, else whose run it is."""
    known = [version.user_id, *([run.info.user_id, run.data.tags.get(_USER)] if run else [])]
    return next((str(one) for one in known if (one or "") not in _NOBODY), "")


def _digests(metadata: CheckpointMetadata | None, found: _Found, run: Run | None) -> dict[str, str]:
    """The checkpoint's datasets, else those of the version's tags, else those of the run."""
    trained_on = (metadata.dataset_digest if metadata else "") or _tagged_digest(found, "dataset")
    evaluated_on = (metadata.evaluation_digest if metadata else "") or ""
    if metadata is None:
        evaluated_on = _tagged_digest(found, "evaluation") or _logged_digests(run, EVALUATED_ON)
    return {
        "dataset_digest": trained_on or _logged_digests(run, TRAINED_ON),
        "evaluation_digest": evaluated_on,
    }


def _tagged_digest(found: _Found, what: str) -> str:
    return found.tags.get(f"{_TAG}{what}_digest", "")


def _logged_digests(run: Run | None, contexts: Collection[str]) -> str:
    used = run.inputs.dataset_inputs if run is not None and run.inputs is not None else []
    return ", ".join(sorted({one.dataset.digest for one in used if _context(one) in contexts}))


def _context(used: DatasetInput) -> str:
    tags = {one.key: one.value for one in used.tags or ()}
    return str(tags.get(_CONTEXT, "")).strip().lower()


def _smoke(
    candidate: Candidate,
    location: str,
    timeout_s: float,
    tracking_uri: str,
    registry_uri: str | None,
) -> SmokeResult:
    uri = f"models:/{candidate.name}/{candidate.version}"
    return smoke_test(
        location if _NOT_IN_URI.search(candidate.name) else uri,
        timeout_s=timeout_s,
        tracking_uri=tracking_uri,
        # Another process does not know what was set in this one.
        registry_uri=registry_meant(registry_uri),
    )


# What was measured


def _measures(
    client: MlflowClient,
    run: Run | None,
    metadata: CheckpointMetadata | None,
    found: _Found,
    rules: StageRules,
) -> dict[str, Measure]:
    asked = {rule.key for rule in rules.metrics if rule.asks_how}
    measures = _of_checkpoint(metadata, asked) if metadata else {}
    step = metadata.step if metadata else _step(found)
    made_ms = metadata.created_ms if metadata else None
    passports = PassportFiles(client, run.info.run_id) if run is not None else None
    for key in {rule.key for rule in rules.metrics} - measures.keys():
        if run is not None and passports is not None:
            point = _logged(client, run, key, step=step, made_ms=made_ms)
            known = passports if key in asked else None
            measures |= {key: _measure(point, known)} if point else {}
    return measures


def _of_checkpoint(metadata: CheckpointMetadata, asked: Collection[str]) -> dict[str, Measure]:
    """What the checkpoint itself says it measured; how, of those that are asked for."""
    passports = {}
    for key in metadata.passports.keys() & asked:
        with _readable(f"{key} of checkpoint", metadata.name):
            passports[key] = Passport.from_dict(metadata.passports[key])
    return {
        key: Measure(value, "checkpoint", passports.get(key))
        for key, value in metadata.metrics.items()
    }


def _step(found: _Found) -> int | None:
    text = found.tags.get(_TAG + "step", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _logged(
    client: MlflowClient, run: Run, key: str, *, step: int | None, made_ms: int | None
) -> Metric | None:
    """What the run has of a metric at a step or last before it; its last value without a step.

    Where training has gone back, what the checkpoint's own generation looks back on counts; where
    it is not known when that was made, that of the run as it is now.
    """
    # The public mapping of a run's metrics has their values only.
    latest = next((one for one in run.data._metric_objs if one.key == key), None)
    known = generations_of(run.data.tags)
    if latest is None or not (known or (step is not None and step < latest.step)):
        return latest
    line = line_of(known, len(known) if made_ms is None else generation_of(known, made_ms))
    points = (
        one
        for one in client.get_metric_history(run.info.run_id, key)
        if (step is None or one.step <= step)
        and line.holds(key=key, step=one.step, timestamp_ms=one.timestamp)
    )
    return max(points, key=lambda one: (one.step, one.timestamp), default=None)


def _measure(point: Metric, passports: PassportFiles | None) -> Measure:
    passport = None
    with _readable("metric", point.key):
        if passports:
            passport = passports.of(point.key, step=point.step, timestamp_ms=point.timestamp)
    return Measure(float(point.value), f"run, step {point.step}", passport)


@contextlib.contextmanager
def _readable(kind: str, name: str) -> Iterator[None]:
    """What was measured nobody knows how cannot be judged."""
    try:
        yield
    except PassportError as error:
        raise CannotJudge(one_line(f"{kind} {name}: {error}")) from error

"""What a version must show before it enters a stage: a YAML file, read with line numbers.

    model: clip-generator               # optional: the policy is refused for any other model
    order: [Staging, Production]        # optional: a version was in the earlier stage first
    roles: {lead: [anna, boris]}        # who approves as what
    stages:                             # Staging, Production or both; {} asks for nothing
      Staging:
        metrics: {video/psnr: {min: 24}}
      Production:
        metrics:
          video/psnr: {min: 24, max: 60}                    # a value at the bound passes
          video/lpips: {not_worse_than: Production, by: 0.01, better: lower}
          video/fid: {max: 40, passport: 5f0c1d2e3a4b}      # measured in this one way only
        tags: {reviewed: "yes", dataset: any}               # any: whatever it is, but not empty
        files: [checkpoint/weights.safetensors]             # below the version, or its artifacts/
        checkpoint_hash: verified                           # weights and metadata as registered
        signature: present
        smoke_test: {timeout_s: 120}                        # up to 3600, 60 when left out
        same_dataset_as: Production                         # of the evaluation, if both name it
        approvals: {count: 1, roles: [lead], not_by_author: true}

`by` is how much worse than the holder of the stage still passes, 0 when left out. `better` may be
left out where a word of the metric's name says it: loss, mse, lpips, fvd … are better lower, psnr,
ssim, accuracy … higher; elsewhere it has to be given. A value that was not measured as the holder's
was fails, with what differs, unless `unlike_passports: allowed` is given. In `approvals`, `count`
is 1 and `not_by_author` is true when left out, and without `roles` anybody approves. The authors
are the user of the version's run and who registered it.

`checkpoint_hash` holds the checkpoint against the version's tags `opusclip.weights_sha256` and
`opusclip.metadata_sha256`: without both of them it fails. `same_dataset_as` compares the datasets
that were logged for evaluation where both versions have one, else those that were trained on. The
smoke test is made last: of a version that something else refuses, no code is run.

Every key is known and given once, and nothing in the file is ever made an object of: no tags, no
anchors, no aliases.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from opusclip_mlops.redaction import one_line
from opusclip_mlops.written import PolicyError as PolicyError
from opusclip_mlops.written import Written, read_yaml, shown

STAGES = ("Staging", "Production")
"""The stages a policy speaks of, in their own writing."""

ANY = "any"
"""In `tags`: any value that is not empty."""

_DEFAULT_TIMEOUT_S, _LONGEST_TIMEOUT_S = 60.0, 3600.0
_MOST_APPROVALS = 100
_EXAMPLE = "metrics: {video/psnr: {min: 24}}"
_METRIC_KEYS = ("min", "max", "not_worse_than", "by", "better", "unlike_passports", "passport")
_DIGEST = re.compile(r"[0-9a-f]{12}")
_STAGE_KEYS = (
    "metrics", "tags", "files", "checkpoint_hash", "signature", "smoke_test", "same_dataset_as",
    "approvals",
)  # fmt: skip
_LOWER = frozenset(
    [
        "loss", "losses", "error", "err", "mse", "rmse", "mae", "nll", "perplexity", "latency",
        "lpips", "dists", "niqe", "fvd", "fid", "kid", "kvd", "frechet", "flicker", "warping",
        "pumping", "seam",
    ]
)  # fmt: skip
_HIGHER = frozenset(
    ["psnr", "ssim", "msssim", "vmaf", "accuracy", "acc", "precision", "recall", "f1", "auc"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """What one metric must be.

    Attributes:
        key: The metric's name in MLflow.
        min: The lowest value that passes.
        max: The highest value that passes.
        not_worse_than: The stage whose holder it is compared with, "" for none.
        by: How much worse than the holder passes, 0 or more.
        better: "lower" or "higher", "" where it is compared with no holder.
        allow_unlike: Whether it is compared though it was measured otherwise than the holder's.
        passport: Digest of the only passport under which it counts, "" for any.
    """

    key: str
    min: float | None = None
    max: float | None = None
    not_worse_than: str = ""
    by: float = 0.0
    better: str = ""
    allow_unlike: bool = False
    passport: str = ""

    @property
    def asks_how(self) -> bool:
        """Whether it matters how the value was measured."""
        return bool(self.passport or (self.not_worse_than and not self.allow_unlike))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRule:
    """How many different people must approve, 1 to 100, and who; no roles: anybody."""

    count: int = 1
    roles: tuple[str, ...] = ()
    not_by_author: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRules:
    """All that a version must show to enter one stage; as it is made, nothing.

    Attributes:
        tags: Tag to the wanted value, or to `ANY`.
        files: Paths below the version's folder or below its `artifacts/`.
        checkpoint_hash: Whether weights and metadata must be those that were registered.
        signature: Whether the model must say what it takes and returns.
        smoke_timeout_s: How long it may take to load and to answer, None for no smoke test.
        same_dataset_as: The stage whose holder has to have the same dataset digest, that of the
            evaluation where both have one, else that of the training; "" for none.
        approvals: None for no approvals.
    """

    metrics: tuple[MetricRule, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    checkpoint_hash: bool = False
    signature: bool = False
    smoke_timeout_s: float | None = None
    same_dataset_as: str = ""
    approvals: ApprovalRule | None = None

    @property
    def compared_with(self) -> frozenset[str]:
        """The stages whose holders a version is compared with."""
        named = {rule.not_worse_than for rule in self.metrics} | {self.same_dataset_as}
        return frozenset(named - {""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of a model's stages, and the text they were read from.

    Attributes:
        model: The only model it is for, "" for any.
        order: Stages in the order a version goes through them, empty for any order.
        roles: Who approves as what.
        stages: Rules by stage; a stage that is not there asks for nothing.
        text: The file as it was written.
        source: What the file is called in messages.
    """

    model: str = ""
    order: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stages: Mapping[str, StageRules] = field(default_factory=dict)
    text: str = ""
    source: str = "gates.yaml"

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def rules(self, stage: str) -> StageRules:
        """What a stage asks for, whatever the case its name is written in.

        Raises:
            PolicyError: There is no such stage.
        """
        return self.stages.get(stage_named(stage), StageRules())

    def check_model(self, name: str) -> None:
        """Accept a model that the policy is for.

        Raises:
            PolicyError: The policy names another model.
        """
        if self.model and self.model != name:
            raise PolicyError(
                one_line(f"{self.source}: this policy is for model {self.model}, not for {name}")
            )


def stage_named(text: str) -> str:
    """The stage that is meant by its name in any case: "production" is Production.

    Raises:
        PolicyError: There is no such stage.
    """
    for stage in STAGES:
        if text.strip().lower() == stage.lower():
            return stage
    raise PolicyError(f"unknown stage {shown(text)}: give {' or '.join(STAGES)}")


def read_policy(text: str, *, source: str = "gates.yaml") -> Policy:
    """Read a policy, of 64 KiB at most; `source` is what messages call it.

    Raises:
        PolicyError: Anything that is not understood; the message begins with `source:line:`.
    """
    root = read_yaml(text, source=source)
    known = root.entries(("model", "order", "roles", "stages"))
    if "stages" not in known:
        raise root.error(f"it has no stages: give Staging or Production their {_EXAMPLE}")
    roles = {
        name: tuple(one.text() for one in people.items())
        for name, people in (known["roles"].entries() if "roles" in known else {}).items()
    }
    return Policy(
        model=known["model"].text() if "model" in known else "",
        order=_order(known["order"]) if "order" in known else (),
        roles=roles,
        stages=_stages(known["stages"], roles),
        text=text,
        source=source,
    )


def _order(given: Written) -> tuple[str, ...]:
    return tuple(one.one_of(*STAGES) for one in given.items())


def _stages(given: Written, roles: Mapping[str, Collection[str]]) -> dict[str, StageRules]:
    entries = given.entries(STAGES)
    if not entries:
        raise given.error(f"it names no stage: give Staging or Production their {_EXAMPLE}")
    return {name: _rules(one, roles) for name, one in entries.items()}


def _rules(given: Written, roles: Mapping[str, Collection[str]]) -> StageRules:
    known = given.entries(_STAGE_KEYS)
    metrics = known["metrics"].entries() if "metrics" in known else {}
    tags = known["tags"].entries() if "tags" in known else {}
    return StageRules(
        metrics=tuple(_metric(key, one) for key, one in metrics.items()),
        tags={key: one.text() for key, one in tags.items()},
        files=tuple(one.path() for one in known["files"].items()) if "files" in known else (),
        checkpoint_hash="checkpoint_hash" in known and known["checkpoint_hash"].only("verified"),
        signature="signature" in known and known["signature"].only("present"),
        smoke_timeout_s=_timeout_s(known["smoke_test"]) if "smoke_test" in known else None,
        same_dataset_as=known["same_dataset_as"].one_of(*STAGES)
        if "same_dataset_as" in known
        else "",
        approvals=_approvals(known["approvals"], roles) if "approvals" in known else None,
    )


def _metric(key: str, given: Written) -> MetricRule:
    known = given.entries(_METRIC_KEYS)
    numbers = {name: known[name].number() for name in ("min", "max", "by") if name in known}
    if not known.keys() & {"min", "max", "not_worse_than"}:
        raise given.error("it needs min, max or not_worse_than")
    if numbers.get("min", -math.inf) > numbers.get("max", math.inf):
        raise known["min"].error(f"it is above max, {numbers['max']:g}")
    if numbers.get("by", 0.0) < 0:
        raise known["by"].error("it must be 0 or more")
    passport = _passport(known["passport"]) if "passport" in known else ""
    if "not_worse_than" not in known:
        for name in sorted({"by", "better", "unlike_passports"} & known.keys()):
            raise known[name].error("it goes with not_worse_than, which is not there")
        return MetricRule(
            key=key, min=numbers.get("min"), max=numbers.get("max"), passport=passport
        )
    stage = known["not_worse_than"].one_of(*STAGES)
    better = known["better"].one_of("lower", "higher") if "better" in known else better_of(key)
    if not better:
        raise given.error("give better: lower or better: higher, its name does not say it")
    return MetricRule(
        key=key,
        not_worse_than=stage,
        better=better,
        allow_unlike="unlike_passports" in known and known["unlike_passports"].only("allowed"),
        passport=passport,
        **numbers,
    )


def _passport(given: Written) -> str:
    digest = given.text()
    if not _DIGEST.fullmatch(digest):
        raise given.error("it must be a passport's digest, 12 hexadecimal digits in quotes")
    return digest


def better_of(key: str) -> str:
    """Which way a metric is better by the words of its name; "" where they do not say."""
    words = set(re.split(r"[^a-z0-9]+", key.lower()))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    return "" if lower == higher else "lower" if lower else "higher"


def _timeout_s(given: Written) -> float:
    known = given.entries(("timeout_s",))
    if "timeout_s" not in known:
        return _DEFAULT_TIMEOUT_S
    timeout_s = known["timeout_s"].number()
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise known["timeout_s"].error(f"it must be above 0 and at most {_LONGEST_TIMEOUT_S:g}")
    return timeout_s


def _approvals(given: Written, roles: Mapping[str, Collection[str]]) -> ApprovalRule:
    known = given.entries(("count", "roles", "not_by_author"))
    count = known["count"].whole(1, _MOST_APPROVALS) if "count" in known else 1
    wanted = known["roles"].items() if "roles" in known else []
    for one in wanted:
        if one.text() not in roles:
            raise one.error(f"no role {shown(one.text())} is in roles")
    names = tuple(one.text() for one in wanted)
    people = {person.strip().casefold() for name in names for person in roles[name]}
    if names and len(people) < count:
        raise given.error(f"{count} have to approve, and {', '.join(names)} are {len(people)}")
    by_author = "not_by_author" in known and not known["not_by_author"].truth()
    return ApprovalRule(count=count, roles=names, not_by_author=not by_author)

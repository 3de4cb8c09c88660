"""What is known about a checkpoint, and its form in metadata.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import msgspec

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.redaction import one_line

SCHEMA_VERSION = 1

WEIGHTS = "weights.safetensors"
"""The file of a checkpoint that holds the model's tensors."""

_SHARD = re.compile(r"(weights|optimizer)-\d{5}-of-(\d{5})\.safetensors", re.ASCII)

FINGERPRINT = "metadata_sha256"
"""The key of metadata.json that holds the hash of all its others, once it is sealed."""

TRAINED_ON = frozenset({"", "training", "train"})
"""The contexts of a dataset that a model is trained on, in small letters."""

EVALUATED_ON = frozenset({"evaluation", "eval", "validation", "val", "test"})
"""The contexts of a dataset that its metrics are measured on, in small letters."""

_NonFinite = Literal["nan", "inf", "-inf"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Hash and length of one file of a sealed checkpoint."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BestValue:
    """The best value of a metric so far, and the checkpoint that has it; `mode` is min or max.

    `passport` is the digest of the passport that the value was measured under, "" where it has
    none; with `allows_unlike` it may be better than a value that was measured otherwise.
    """

    checkpoint: str
    value: float
    mode: str = "min"
    passport: str = ""
    allows_unlike: bool = False

    def is_unlike(self, other: BestValue) -> bool:
        """Whether the other was measured otherwise, and is not to be ranked with this one."""
        return self.passport != other.passport and not other.allows_unlike

    def is_beaten_by(self, other: BestValue) -> bool:
        """Whether the other value is better and measured alike; NaN is better than nothing."""
        if self.is_unlike(other) and self.value == self.value:
            return False
        if self.value != self.value or other.value != other.value:
            return self.value != self.value and other.value == other.value
        return other.value < self.value if other.mode == "min" else other.value > self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """What is known about a checkpoint: where it comes from, how good it is, what it holds.

    In JSON a metric that is not a finite number is the string "nan", "inf" or "-inf", and is a
    float again when read. In `config` such numbers become those strings for good.

    Attributes:
        name: The checkpoint's folder name, see `checkpoint_name`.
        step: Optimizer steps done, from 0.
        epoch: Epochs done or under way, from 0.
        run_id: The MLflow run, None while it is not known.
        metrics: Values measured at this step.
        passports: How they were measured, by metric, as `Passport.to_dict` says it.
        config: The training configuration, JSON values only.
        model: {"class": name, "config": what builds the model again}.
        git_commit: The code's commit, None outside a repository.
        git_dirty: True when the code differed from that commit.
        dataset_digest: Digest of the dataset trained on.
        evaluation_digest: Digest of the dataset that the metrics are measured on.
        libraries: Versions of the libraries used.
        world_size: Number of processes that trained together.
        files: Relative path to hash and size; empty until sealed.
        parent: Name of the checkpoint that training went on from.
        best: The best values of the run by metric when this was written, its own among them.
        created_ms: Unix time of writing in milliseconds.
    """

    name: str
    step: int
    epoch: int
    run_id: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    passports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    git_commit: str | None = None
    git_dirty: bool | None = None
    dataset_digest: str | None = None
    evaluation_digest: str | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    world_size: int = 1
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    parent: str | None = None
    best: Mapping[str, BestValue] = field(default_factory=dict)
    created_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    schema_version: int = SCHEMA_VERSION

    @property
    def sealed(self) -> bool:
        """True once every file's hash is known."""
        return bool(self.files)

    @property
    def is_sharded(self) -> bool:
        """True where each of several processes wrote its share of the weights."""
        return WEIGHTS not in self.files and bool(self.shards("weights"))

    def shards(self, what: str) -> list[str]:
        """The files that must hold the shares of the `weights` or of the `optimizer`, in order.

        Each name says how many there are, so that one that is not listed is missed.
        """
        listed = [match for name in self.files if (match := _SHARD.fullmatch(name))]
        counts = {int(match[2]) for match in listed if match[1] == what}
        return [shard_name(what, one, count) for count in sorted(counts) for one in range(count)]

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' file, "" until sealed; of shares, the hash of their hashes."""
        if WEIGHTS in self.files:
            return self.files[WEIGHTS].sha256
        shares = [name for name in self.shards("weights") if name in self.files]
        said = [f"{name} {self.files[name].sha256}\n" for name in shares]
        return hashlib.sha256("".join(said).encode()).hexdigest() if said else ""

    @property
    def config_sha256(self) -> str:
        """Hash of `config` in canonical JSON: equal configurations, equal hash."""
        config = _json_value(self.config, "config")
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of metadata.json: JSON values only, NaN and infinities as strings.

        Raises:
            CheckpointError: A value is no JSON value; the message names it.
        """
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content = {key: _json_value(value, key) for key, value in content.items()}
        return content | {"config_sha256": self.config_sha256}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CheckpointMetadata:
        """Read what `to_dict` wrote; keys it does not know are passed over.

        Raises:
            CheckpointError: Unknown schema, a missing or malformed field, a changed config.
        """
        if (version := content.get("schema_version")) != SCHEMA_VERSION:
            raise CheckpointError(f"schema_version is {version!r}, known is {SCHEMA_VERSION}")
        try:
            numbers = msgspec.convert(content.get("metrics"), dict[str, float | _NonFinite])
            metrics = {key: float(value) for key, value in numbers.items()}
            best = _read_best(content.get("best", {}))
            metadata = msgspec.convert({**content, "metrics": metrics, "best": {}}, cls)
            if content.get("config_sha256") != metadata.config_sha256:
                raise CheckpointError("config does not match config_sha256: it was changed")
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
            raise CheckpointError(one_line(str(error))) from error
        return replace(metadata, best=best)


def shard_name(what: str, number: int, count: int) -> str:
    """The file of one share: weights-00001-of-00008.safetensors."""
    return f"{what}-{number:05d}-of-{count:05d}.safetensors"


class _WrittenBest(msgspec.Struct):
    checkpoint: str
    value: float | _NonFinite
    mode: Literal["min", "max"]
    passport: str = ""
    allows_unlike: bool = False


def _read_best(content: Any) -> dict[str, BestValue]:
    written = msgspec.convert(content, dict[str, _WrittenBest])
    return {
        key: BestValue(one.checkpoint, float(one.value), one.mode, one.passport, one.allows_unlike)
        for key, one in written.items()
    }


def fingerprint(content: Mapping[str, Any]) -> str:
    """Hash of what metadata.json holds, but for `FINGERPRINT` itself.

    Raises:
        CheckpointError: it is nested hundreds of levels deep.
    """
    others = {key: value for key, value in content.items() if key != FINGERPRINT}
    try:
        canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise CheckpointError("metadata is nested too deep") from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def _json_value(value: Any, where: str) -> Any:
    """Return `value` as JSON holds it, non-finite numbers as strings; refuse anything else."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, StoredFile | BestValue):
        return _json_value(asdict(value), where)
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{where} is a {type(value).__name__}, which JSON cannot hold")

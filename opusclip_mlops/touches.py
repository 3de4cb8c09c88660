"""What a film has touched, as values: see `lineage`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opusclip_mlops.accounts import Unread
from opusclip_mlops.samples import SourceClip


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTouch:
    """A dataset that holds pieces of the film.

    Attributes:
        name: Its name.
        digest: Its digest.
        context: What it was used for.
        trains: Whether models were trained on those pieces.
        run_ids: The runs that used it so.
        clips: The pieces.
    """

    name: str
    digest: str
    context: str
    trains: bool
    run_ids: tuple[str, ...]
    clips: tuple[SourceClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTouch:
    """A checkpoint that was trained on the film.

    `by` says how that is known: "dataset", it names the dataset; "parent", training went on to it
    from one that does; "run", its run used the dataset and no checkpoint of it names it.
    """

    run_id: str
    name: str
    step: int
    weights_sha256: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTouch:
    """A registered version that was trained on the film.

    `by` says how that is known: "weights", "checkpoint", "dataset", or "run" for one that another
    tool registered from a run that trained on it.
    """

    model: str
    version: int
    stage: str
    aliases: tuple[str, ...]
    run_id: str
    checkpoint: str
    weights_sha256: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTouch:
    """A run that evaluated such a checkpoint."""

    run_id: str
    evaluated_run_id: str
    checkpoint: str
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTouch:
    """A sample that the film is in.

    `by` says how: "source", it was cut from `clips` of the film or conditioned on them; "weights",
    "checkpoint" or "run", a model that was trained on the film made it.
    """

    run_id: str
    key: str
    panel: str
    cell: str
    step: int
    checkpoint: str
    by: str
    clips: tuple[SourceClip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """All that a film has touched.

    Attributes:
        source: What was asked about.
        sha256: Of the film's file, "" where no run logged it.
        uris: Under which it was logged.
        datasets: Those that hold pieces of it.
        checkpoints: Those trained on it, by run and step.
        versions: The registered ones.
        evaluations: Runs that evaluated them.
        samples: By run, key and step.
        run_names: Of every run named here.
        runs_read: How many runs were looked at.
        deleted_runs: How many were passed over because they are deleted.
        unread: What could not be read: the lineage may lack what it would have told.
    """

    source: str
    sha256: str
    uris: tuple[str, ...]
    datasets: tuple[DatasetTouch, ...]
    checkpoints: tuple[CheckpointTouch, ...]
    versions: tuple[VersionTouch, ...]
    evaluations: tuple[EvaluationTouch, ...]
    samples: tuple[SampleTouch, ...]
    run_names: Mapping[str, str]
    runs_read: int
    deleted_runs: int
    unread: tuple[Unread, ...]

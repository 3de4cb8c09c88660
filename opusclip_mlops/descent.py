"""What a film has touched: datasets, the checkpoints trained on them, versions, and samples.

A film is known by the hash of its file; where a run logged none, by its path. It reaches

    a checkpoint   that names the digest of a dataset of its run that was trained on, and those that
                   training went on to from there; all of the run where none names it
    a version      made of such a checkpoint, by the hash of its weights
    an evaluation  of such a checkpoint
    a sample       that such a checkpoint made, in any run, or that was cut from the film

What a film was held out for, or evaluated on, it does not reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from opusclip_mlops.accounts import Account, Unread, at_once
from opusclip_mlops.asking import client_of, registry_meant, told_in_one_line
from opusclip_mlops.errors import RecordError
from opusclip_mlops.films import Film
from opusclip_mlops.lookout import experiment_ids, pages
from opusclip_mlops.material import (
    Material,
    Show,
    UsedDataset,
    checkpoints_of,
    experiments_of,
    read_material,
)
from opusclip_mlops.metadata import EVALUATED_ON, TRAINED_ON, CheckpointMetadata
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sources import in_order
from opusclip_mlops.touches import (
    CheckpointTouch,
    DatasetTouch,
    EvaluationTouch,
    Lineage,
    SampleTouch,
    VersionTouch,
)

_HELD_OUT = EVALUATED_ON | {"held out", "held-out", "held_out", "heldout"}
_EVALUATED = "opusclip.evaluated."


def _silent(what: str, done: int, of: int) -> None:
    """Show nothing."""


def lineage(
    source: str,
    *,
    experiments: Sequence[str] = (),
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    show: Show = _silent,
) -> Lineage:
    """Find what a film has touched.

    Args:
        source: A file, which is hashed; a SHA-256 or a beginning of 8 digits or more; or a path or
            URI as it was logged.
        experiments: Names or ids of those whose runs are looked at; all when empty.
        tracking_uri: Where the runs are, MLflow's default when None.
        registry_uri: Where the models are, the tracking server when None.
        show: Is told what is read, how many of it are done, and of how many that are known of.

    Raises:
        UnknownSourceError: No run names it, or it stands for several films.
        DataError: The file cannot be read.
        SelectionError: There is no such experiment.
        RegistryError: MLflow refused, or did not answer.
    """
    client = client_of(tracking_uri, registry_meant(registry_uri))
    film = Film.of(source)
    with told_in_one_line("cannot read what the runs are made of"):
        chosen = experiment_ids(client, experiments) if experiments else experiments_of(client)
        material = read_material(client, chosen, show)
        return _Search(client, material, film.found_in(material.films())).found(show)


class _Search:
    """Goes from a film to all that it has reached, one kind after the other."""

    def __init__(self, client: MlflowClient, material: Material, film: Film) -> None:
        self._client, self._material, self._film = client, material, film
        self._unread: list[Unread] = []
        self._trained_on: dict[str, set[str]] = {}
        self._known: dict[str, dict[str, CheckpointMetadata]] = {}
        self._reached: set[tuple[str, str]] = set()
        self._weights: set[str] = set()

    def found(self, show: Show) -> Lineage:
        """All that the film has touched."""
        datasets = tuple(sorted(self._datasets(), key=lambda one: (one.name, one.digest)))
        checkpoints = sorted(self._checkpoints(show), key=lambda one: (one.run_id, one.step))
        versions = sorted(self._versions(show), key=lambda one: (one.model, one.version))
        evaluations = tuple(self._evaluations())
        samples = sorted(self._samples(), key=lambda one: (one.run_id, one.key, one.step))
        named = {run_id for one in datasets for run_id in one.run_ids}
        named |= {one.run_id for one in checkpoints} | {one.run_id for one in versions}
        named |= {id_ for one in evaluations for id_ in (one.run_id, one.evaluated_run_id)}
        named |= {one.run_id for one in samples}
        runs = self._material.runs
        return Lineage(
            source=self._film.source,
            sha256=self._film.digits,
            uris=self._uris(datasets, samples),
            datasets=datasets,
            checkpoints=tuple(checkpoints),
            versions=tuple(versions),
            evaluations=evaluations,
            samples=tuple(samples),
            run_names={id_: runs[id_].info.run_name or "" for id_ in sorted(named & runs.keys())},
            runs_read=len(runs),
            deleted_runs=self._material.deleted_count,
            unread=(*self._material.unread, *self._unread),
        )

    @staticmethod
    def _uris(datasets: Sequence[DatasetTouch], samples: Sequence[SampleTouch]) -> tuple[str, ...]:
        every = [one.clips for one in datasets] + [one.clips for one in samples]
        return tuple(sorted({clip.uri for clips in every for clip in clips}))

    def _datasets(self) -> Iterator[DatasetTouch]:
        """Datasets with pieces of the film; those that say the same of several runs are one."""
        runs: dict[tuple[str, str, str, tuple[SourceClip, ...]], list[str]] = {}
        pieces: dict[int, tuple[SourceClip, ...]] = {}
        for run_id, every in self._material.datasets.items():
            for used in every:
                if id(used.films) not in pieces:
                    pieces[id(used.films)] = self._cut_from(run_id, used)
                clips = pieces[id(used.films)]
                if clips:
                    about = (used.name, used.digest, used.context, clips)
                    runs.setdefault(about, []).append(run_id)
        for (name, digest, context, clips), run_ids in runs.items():
            trains = _trains(context, clips)
            for run_id in run_ids if trains else ():
                self._trained_on.setdefault(run_id, set()).add(digest)
            yield DatasetTouch(
                name=name, digest=digest, context=context, trains=trains, run_ids=tuple(run_ids),
                clips=clips,
            )  # fmt: skip

    def _cut_from(self, run_id: str, used: UsedDataset) -> tuple[SourceClip, ...]:
        meant = (one for one in used.films if self._film.is_meant(one.uri, one.sha256))
        try:
            return in_order(clip for one in meant for clip in one.pieces())
        except RecordError as error:
            # A list that somebody else has made.
            self._unread.append(Unread(run_id, f"dataset {used.name}", str(error)))
            return ()

    def _checkpoints(self, show: Show) -> Iterator[CheckpointTouch]:
        runs = [self._material.runs[run_id] for run_id in self._trained_on]
        read = partial(checkpoints_of, tracking_uri=self._client.tracking_uri)
        for run, (known, unread) in zip(runs, at_once(read, runs), strict=True):
            run_id = run.info.run_id
            self._known[run_id] = known
            self._unread += unread
            show("checkpoints", len(self._known), len(runs))
            for name, by in _reached(known, self._trained_on[run_id]).items():
                sha256 = known[name].weights_sha256
                self._reached.add((run_id, name))
                self._weights |= {sha256} - {""}
                yield CheckpointTouch(
                    run_id=run_id, name=name, step=known[name].step, weights_sha256=sha256, by=by
                )

    def _versions(self, show: Show) -> Iterator[VersionTouch]:
        """Registered versions; the weights of one whose checkpoint is gone count from here on."""
        if not self._trained_on:
            return
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in pages(self._client.search_registered_models):
            for alias, version in sorted(dict(model.aliases).items()):
                aliases.setdefault((model.name, str(version)), []).append(alias)
        found = []
        for count, one in enumerate(pages(self._client.search_model_versions), start=1):
            show("versions", count, count)
            by = self._leads_to(one)
            if by:
                named = tuple(aliases.get((one.name, str(one.version)), ()))
                found.append(_version(one, aliases=named, by=by))
        self._weights |= {one.weights_sha256 for one in found} - {""}
        yield from found

    def _leads_to(self, version: ModelVersion) -> str:
        """How a version is known to be made of what was trained on the film; "" if it is not."""
        tags, run_id = version.tags or {}, version.run_id or ""
        checkpoint = tags.get("opusclip.checkpoint", "")
        if tags.get("opusclip.weights_sha256") in self._weights:
            return "weights"
        if (run_id, checkpoint) in self._reached:
            return "checkpoint"
        if run_id in self._trained_on:
            if tags.get("opusclip.dataset_digest") in self._trained_on[run_id]:
                return "dataset"
            return "run" if checkpoint not in self._known[run_id] else ""
        return ""

    def _evaluations(self) -> Iterator[EvaluationTouch]:
        for run_id, run in self._material.runs.items():
            said = {
                name: run.data.tags.get(f"{_EVALUATED}{name}", "")
                for name in ("run", "checkpoint", "weights_sha256")
            }
            made = (said["run"], said["checkpoint"])
            if said["weights_sha256"] in self._weights or made in self._reached:
                yield EvaluationTouch(
                    run_id=run_id,
                    evaluated_run_id=said["run"],
                    checkpoint=said["checkpoint"],
                    weights_sha256=said["weights_sha256"],
                )

    def _samples(self) -> Iterator[SampleTouch]:
        for one in self._material.accounts:
            meant = (c for c in one.sources if self._film.is_meant(c.uri, c.sha256))
            clips = in_order(meant)
            by = "source" if clips else self._made(one)
            if by:
                yield SampleTouch(
                    run_id=one.run_id, key=one.key, panel=one.panel, cell=one.cell, step=one.step,
                    checkpoint=one.checkpoint, by=by, clips=clips,
                )  # fmt: skip

    def _made(self, sample: Account) -> str:
        """How a sample is known to be made by what was trained on the film; "" if it is not."""
        if sample.weights_sha256 in self._weights:
            return "weights"
        # Names are a run's own: in another run it may be another checkpoint's.
        if sample.weights_sha256 or sample.run_id not in self._known:
            return ""
        if not sample.checkpoint:
            # Sampled between two checkpoints; at step 0 nothing was trained yet.
            is_made = bool(sample.panel or sample.prompt) or sample.seed is not None
            return "run" if is_made and sample.step > 0 else ""
        if (sample.run_id, sample.checkpoint) in self._reached:
            return "checkpoint"
        return "run" if sample.checkpoint not in self._known[sample.run_id] else ""


def _trains(context: str, clips: Sequence[SourceClip]) -> bool:
    """Whether a model was trained on one of the pieces: not all of them held out of it."""
    used = any(one.use.strip().lower() not in _HELD_OUT for one in clips)
    return context.strip().lower() in TRAINED_ON and used


def _reached(known: Mapping[str, CheckpointMetadata], digests: set[str]) -> dict[str, str]:
    """The checkpoints of a run that were trained on one of the datasets, and how that is known."""
    by = {name: "dataset" for name, one in known.items() if one.dataset_digest in digests}
    if not by:
        return dict.fromkeys(known, "run")
    first_ms = min(known[name].created_ms for name in by)
    for name in sorted(known, key=lambda one: known[one].created_ms):
        parent = known[name].parent
        is_lost = bool(parent) and parent not in known and known[name].created_ms > first_ms
        if name not in by and (parent in by or is_lost):
            by[name] = "parent"
    return by


def _version(one: ModelVersion, *, aliases: tuple[str, ...], by: str) -> VersionTouch:
    tags = one.tags or {}
    return VersionTouch(
        model=one.name,
        version=int(one.version),
        stage=one.current_stage or "None",
        aliases=aliases,
        run_id=one.run_id or "",
        checkpoint=tags.get("opusclip.checkpoint", ""),
        weights_sha256=tags.get("opusclip.weights_sha256", ""),
        by=by,
    )

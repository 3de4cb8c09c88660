"""What the runs of an MLflow are made of and have made: films, checkpoints, samples.

Runs are listed in pages, with their tags and datasets. Files are asked for only where a tag says
that there are any, some at a time, and lists of films that are equal once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, Run, ViewType

from opusclip_mlops import layout
from opusclip_mlops.accounts import (
    Account,
    Unread,
    accounts_of,
    at_once,
    has_clips,
    listed,
    repository_of,
)
from opusclip_mlops.errors import CheckpointError, RecordError
from opusclip_mlops.listing import content
from opusclip_mlops.lookout import every_run, pages
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.redaction import redacted
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from opusclip_mlops.sources import ListedFilm, Named, films_in, films_in_profile, named_in

Show = Callable[[str, int, int], None]
"""Is told what is being read, how many of it are done, and of how many that are known of."""

_CONTEXT_TAG = "mlflow.data.context"
_PAGE_RUNS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedDataset:
    """A dataset as a run used it."""

    name: str
    digest: str
    context: str
    films: tuple[ListedFilm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What all runs that were looked at are made of.

    Attributes:
        runs: The runs by id, the oldest first.
        datasets: What each run used, by run id.
        accounts: Of all samples.
        unread: What could not be read.
        deleted_count: How many runs were passed over because they are deleted.
    """

    runs: Mapping[str, Run]
    datasets: Mapping[str, tuple[UsedDataset, ...]]
    accounts: tuple[Account, ...]
    unread: tuple[Unread, ...]
    deleted_count: int

    def films(self) -> Iterator[tuple[str, str]]:
        """Path and hash of every film that is named anywhere; of lists that are one, once."""
        lists = {id(one.films): one.films for used in self.datasets.values() for one in used}
        for films in lists.values():
            yield from ((film.uri, film.sha256) for film in films)
        for account in self.accounts:
            yield from ((clip.uri, clip.sha256) for clip in account.sources)


def experiments_of(client: MlflowClient) -> list[str]:
    """The ids of all experiments that are not deleted."""
    search = partial(client.search_experiments, max_results=_PAGE_RUNS)
    return [str(one.experiment_id) for one in pages(search)]


def read_material(client: MlflowClient, experiments: Sequence[str], show: Show) -> Material:
    """Read what the runs of experiments tell of films and samples.

    Raises:
        MlflowException, OSError, or an artifact store's own: it does not answer now.
    """
    runs = {}
    for run in every_run(client, experiments):
        runs[run.info.run_id] = run
        show("runs", len(runs), len(runs))
    datasets, unread = _datasets(client, runs, show)
    accounts: list[Account] = []
    pictured = [run for run in runs.values() if has_clips(run)]
    read = partial(accounts_of, tracking_uri=client.tracking_uri)
    for count, (found, failed) in enumerate(at_once(read, pictured), start=1):
        accounts += found
        unread += failed
        show("samples", count, len(pictured))
    return Material(
        runs=runs,
        datasets=datasets,
        accounts=tuple(accounts),
        unread=tuple(unread),
        deleted_count=_count_deleted(client, experiments),
    )


def checkpoints_of(
    run: Run, tracking_uri: str
) -> tuple[dict[str, CheckpointMetadata], list[Unread]]:
    """What is known of the checkpoints that a run has in MLflow, by name.

    Raises:
        MlflowException, OSError, or an artifact store's own: it does not answer now.
    """
    repository, run_id = repository_of(run, tracking_uri), run.info.run_id
    found: dict[str, CheckpointMetadata] = {}
    unread: list[Unread] = []
    for folder in listed(run_id, repository, layout.CHECKPOINTS, unread):
        path = f"{folder.path}/metadata.json"
        try:
            about = CheckpointMetadata.from_dict(json.loads(content(repository, path)))
            found[folder.path.rpartition("/")[2]] = about
        except (CheckpointError, ValueError, AttributeError) as error:
            unread.append(Unread(run_id, path, reason_of(error)))
        except asking_faults() as error:
            if not is_for_good(error):
                raise
            unread.append(Unread(run_id, path, reason_of(error)))
    return found, unread


def _datasets(
    client: MlflowClient, runs: Mapping[str, Run], show: Show
) -> tuple[dict[str, tuple[UsedDataset, ...]], list[Unread]]:
    holders: dict[Named, list[Run]] = {}
    for run in runs.values():
        for named in named_in(run.data.tags):
            holders.setdefault(named, []).append(run)
    lists: dict[Named, tuple[ListedFilm, ...]] = {}
    unread: list[Unread] = []
    read = partial(_read_list, client.tracking_uri)
    for count, (named, found) in enumerate(at_once(read, holders.items()), start=1):
        if isinstance(found, Unread):
            unread.append(found)
        else:
            lists[named] = found
        show("datasets", count, len(holders))
    return {run_id: tuple(_used(run, lists)) for run_id, run in runs.items()}, unread


def _read_list(
    tracking_uri: str, item: tuple[Named, list[Run]]
) -> tuple[Named, tuple[ListedFilm, ...] | Unread]:
    """A list of films, from the profile of its dataset or from a file of the first that has it."""
    named, holders = item
    for dataset in _inputs(holders[0]):
        found = films_in_profile(named, dataset[0].profile or "")
        if found is not None:
            return named, found
    problems = []
    for run in holders:
        try:
            text = content(repository_of(run, tracking_uri), named.path)
            return named, films_in(text, sha256=named.sha256)
        except RecordError as error:
            problems.append(Unread(run.info.run_id, named.path, str(error)))
        except asking_faults() as error:
            if not is_for_good(error):
                raise
            problems.append(Unread(run.info.run_id, named.path, reason_of(error)))
    return named, problems[0]


def _used(run: Run, lists: Mapping[Named, tuple[ListedFilm, ...]]) -> Iterator[UsedDataset]:
    """The datasets of a run: those that named their films, and others by where they came from."""
    said = [one for one in named_in(run.data.tags) if one in lists]
    for one in said:
        about = {"name": one.name, "digest": one.digest, "context": one.context}
        yield UsedDataset(**about, films=lists[one])
    known = {(one.name, one.digest) for one in said}
    for dataset, context in _inputs(run):
        uri = _uri(dataset.source)
        if (dataset.name, dataset.digest) not in known and uri:
            films = (ListedFilm(uri=redacted(uri), clips=((0.0, None, ""),)),)
            about = {"name": dataset.name, "digest": dataset.digest, "context": context}
            yield UsedDataset(**about, films=films)


def _inputs(run: Run) -> Iterator[tuple[Dataset, str]]:
    for one in run.inputs.dataset_inputs if run.inputs else ():
        contexts = [tag.value for tag in one.tags if tag.key == _CONTEXT_TAG]
        yield one.dataset, contexts[0] if contexts else ""


def _uri(source: str | None) -> str:
    """The place that a dataset came from, "" where it is not one."""
    try:
        about: Any = json.loads(source or "")
    except (ValueError, RecursionError):
        return ""
    found = about.get("uri") or about.get("url") if isinstance(about, Mapping) else ""
    return found if isinstance(found, str) and found.strip() else ""


def _count_deleted(client: MlflowClient, experiments: Sequence[str]) -> int:
    if not experiments:
        return 0
    search = partial(client.search_runs, list(experiments), "", ViewType.DELETED_ONLY, _PAGE_RUNS)
    return sum(1 for _ in pages(search))

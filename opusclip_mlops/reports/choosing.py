"""Which runs a report is of, what it is called, and which run it is put into."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.store.entities.paged_list import PagedList

from opusclip_mlops.errors import ConfigError, DataError
from opusclip_mlops.lookout import experiment_ids
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.reports.wording import plain

_ID_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The runs that are reported.

    Attributes:
        runs: In their order.
        title: What the report is of.
        stem: The name of its files in MLflow, without an ending; the same each time.
        words: What follows `opusclip report` to make it again.
        home: The run that it is put into; the same each time.
        reference: The run that the others are compared with.
        notes: What was left out.
    """

    runs: tuple[Run, ...]
    title: str
    stem: str
    words: tuple[str, ...]
    home: Run
    reference: Run
    notes: tuple[str, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether it is of one run."""
        return len(self.runs) == 1

    @property
    def file_stem(self) -> str:
        """What its file here is called where nobody named it."""
        is_own = self.is_alone and self.stem == "report"
        return f"report-{mark_of(str(self.runs[0].info.run_id)) if is_own else self.stem}"


def mark_of(name: str) -> str:
    """The beginning of an id; a digest of one that a server gave and that could be a path."""
    begun = name[:_ID_DIGITS]
    is_plain = begun.isascii() and begun.isalnum()
    return begun if is_plain else hashlib.sha256(name.encode()).hexdigest()[:_ID_DIGITS]


def named(client: MlflowClient, names: Sequence[str], *, most: int) -> Chosen:
    """Runs by their names, each once.

    Raises:
        ConfigError: They are more than `most`.
        RegistryError: No run is called so, or several are.
        MlflowException: MLflow does not answer.
    """
    found: dict[str, Run] = {}
    for name in names:
        run = run_called(client, name)
        found.setdefault(str(run.info.run_id), run)
    if len(found) > most:
        raise ConfigError(f"{len(found)} runs are too many for a report: give {most} or fewer")
    runs, ids = tuple(found.values()), tuple(found)
    return Chosen(
        runs=runs, title=_title(runs), stem=_stem(ids), words=ids, home=runs[0], reference=runs[0]
    )


def _title(runs: Sequence[Run]) -> str:
    first = _called(runs[0])
    return f"Run {first}" if len(runs) == 1 else f"{first} and {len(runs) - 1} more"


def _stem(ids: Sequence[str]) -> str:
    if len(ids) == 1:
        return "report"
    return f"runs-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:_ID_DIGITS]}"


def _called(run: Run) -> str:
    return plain(run.info.run_name or run.info.run_id)


def of_experiment(client: MlflowClient, name: str, *, most: int) -> Chosen:
    """The newest runs of an experiment; the report is put into the oldest of all its runs.

    Raises:
        SelectionError: There is no such experiment.
        DataError: It has no runs.
        MlflowException: MLflow does not answer.
    """
    [experiment_id] = experiment_ids(client, [name])
    newest = _runs(client, experiment_id, most, "DESC")
    if not newest:
        raise DataError(f"experiment {plain(name)!r} has no runs to report")
    # Its newest run is another one tomorrow.
    [oldest] = _runs(client, experiment_id, 1, "ASC")
    reference = _most_alike(newest)
    called = str(client.get_experiment(experiment_id).name)
    return Chosen(
        runs=tuple(newest),
        title=f"Experiment {plain(called)}",
        stem=f"experiment-{_plain_id(experiment_id)}",
        words=("--experiment", called),
        home=oldest,
        reference=reference,
        notes=tuple(_notes(newest, reference, most)),
    )


def _plain_id(experiment_id: str) -> str:
    is_plain = experiment_id.isascii() and experiment_id.isalnum()
    return experiment_id if is_plain else mark_of(experiment_id)


def _notes(newest: PagedList[Run], reference: Run, most: int) -> Iterator[str]:
    if newest.token:
        yield f"The newest {most} runs of the experiment; it has more."
    if len(newest) > 1:
        yield f"All are compared with {_called(reference)}."


def _most_alike(newest: Sequence[Run]) -> Run:
    """The oldest of the runs that have most metrics which others have too."""
    counts = Counter(key for run in newest for key in run.data.metrics)

    def shared(run: Run) -> int:
        return sum(counts[key] > 1 for key in run.data.metrics)

    return max(reversed(newest), key=shared)


def _runs(client: MlflowClient, experiment_id: str, most: int, order: str) -> PagedList[Run]:
    by = [f"attributes.start_time {order}"]
    return client.search_runs([experiment_id], "", ViewType.ACTIVE_ONLY, most, by)

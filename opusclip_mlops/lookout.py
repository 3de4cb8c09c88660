"""Which runs of MLflow there are, and which of them need a look again."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.run_history import RunGoneError

_PAGE_RUNS = 500
_EVERYTHING_EVERY_S = 300.0
_REGISTRY_EVERY_S = 10.0
_MARGIN_MS = 10 * 60_000


class SelectionError(OpusclipError):
    """No run, or no experiment, is called that."""


def experiment_ids(client: MlflowClient, names: Sequence[str]) -> list[str]:
    """The ids of experiments given by name or id.

    Raises:
        SelectionError: there is no such experiment.
    """
    return [_experiment_id(client, name) for name in names]


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None and name.isdigit():
        try:
            found = client.get_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    if found is None:
        raise SelectionError(f"no experiment is called {name!r}: see `mlflow experiments search`")
    return str(found.experiment_id)


def one_run(client: MlflowClient, run_id: str) -> Run:
    """A run by its id.

    Raises:
        RunGoneError: there is none, or it was deleted.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RunGoneError(
            f"run {one_line(run_id)} is not in MLflow: give its whole id, or another --tracking-uri"
        ) from None
    if run.info.lifecycle_stage == "deleted":
        raise RunGoneError(f"run {run_id} was deleted in MLflow: its mirrors stay as they are")
    return run


def every_run(client: MlflowClient, experiments: Sequence[str], wanted: str = "") -> Iterator[Run]:
    """All runs of experiments, however many pages they fill, the oldest first."""
    token = None
    while experiments:
        page = client.search_runs(
            list(experiments), wanted, ViewType.ACTIVE_ONLY, _PAGE_RUNS,
            ["attributes.start_time ASC"], token,
        )  # fmt: skip
        yield from page
        token = page.token
        if not token:
            return


@dataclass(frozen=True)
class Look:
    """A run that needs a look; `at_all` when something besides its points may have changed."""

    run: Run
    at_all: bool = False


class Lookout:
    """Finds, poll by poll, the runs that may have something new.

    Args:
        client: Of the MLflow that holds the runs.
        experiments: Ids of experiments, whose runs are found as they come.
        run_ids: Single runs.
    """

    def __init__(
        self, client: MlflowClient, *, experiments: Sequence[str], run_ids: Sequence[str]
    ) -> None:
        self._client = client
        self._experiments, self._run_ids = list(experiments), list(run_ids)
        self._everything_s = self._registry_s = -1e9
        self._polled_ms = 0
        self._running: set[str] = set()
        self._versions: dict[str, str] | None = None
        self._due: set[str] = set()

    def poll(self) -> list[Look]:
        """The runs that need a look now."""
        looks = {run.info.run_id: Look(run) for run in self._moving()}
        self._running = {id_ for id_, one in looks.items() if one.run.info.status == "RUNNING"}
        self._due |= self._moved_in_registry()
        for run_id in sorted(self._due):
            moved = looks[run_id].run if run_id in looks else self._present(run_id)
            if moved is None:
                self._due.discard(run_id)
            else:
                looks[run_id] = Look(moved, at_all=True)
        return list(looks.values())

    def settle(self, run_id: str) -> None:
        """A run was looked at, at all; one that could not be is given again."""
        self._due.discard(run_id)

    def _moving(self) -> Iterator[Run]:
        if time.monotonic() - self._everything_s > _EVERYTHING_EVERY_S:
            self._everything_s = time.monotonic()
            found: Iterator[Run] = every_run(self._client, self._experiments)
        else:
            since_ms = self._polled_ms - _MARGIN_MS
            found = itertools.chain.from_iterable(
                every_run(self._client, self._experiments, wanted)
                for wanted in (
                    "attributes.status = 'RUNNING'",
                    f"attributes.end_time > {since_ms}",
                )
            )
        self._polled_ms = time.time_ns() // 1_000_000
        known = set()
        for run in found:
            known.add(run.info.run_id)
            yield run
        # Also those that ran at the last poll, and ended at a time that is not now.
        for run_id in {*self._run_ids, *self._running} - known:
            if left := self._present(run_id):
                yield left

    def _present(self, run_id: str) -> Run | None:
        try:
            run = one_run(self._client, run_id)
        except RunGoneError:
            return None
        chosen = run.info.experiment_id in self._experiments or run_id in self._run_ids
        return run if chosen else None

    def _moved_in_registry(self) -> set[str]:
        """The runs whose registered versions, stages or aliases changed since the last answer.

        At first all that have versions: they may have moved while nobody looked.
        """
        if time.monotonic() - self._registry_s < _REGISTRY_EVERY_S:
            return set()
        self._registry_s = time.monotonic()
        now, before = self._registered(), self._versions or {}
        self._versions = now
        return {run_id for run_id in {*now, *before} if now.get(run_id) != before.get(run_id)}

    def _registered(self) -> dict[str, str]:
        """What the registry says about each run's versions, as a text to compare."""
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in pages(self._client.search_registered_models):
            for alias, version in dict(model.aliases).items():
                aliases.setdefault((model.name, str(version)), []).append(alias)
        said: dict[str, list[str]] = {}
        for one in pages(self._client.search_model_versions):
            if one.run_id:
                about = (one.name, str(one.version), one.current_stage, one.status, one.description)
                of_version = sorted(aliases.get((one.name, str(one.version)), []))
                said.setdefault(one.run_id, []).append(repr((about, of_version, dict(one.tags))))
        return {run_id: "\n".join(sorted(lines)) for run_id, lines in said.items()}


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search of MLflow's client finds, however many pages it fills."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return

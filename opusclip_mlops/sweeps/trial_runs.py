"""The runs of trials in MLflow: children of the sweep's run, made before their programs start.

A program finds its run by `MLFLOW_RUN_ID`, as under `mlflow run`: our tracker and MLflow's own
`start_run` both go on with it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException

from opusclip_mlops import records
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.layout import MIRROR_ID_TAG, MIRROR_OF_TAG
from opusclip_mlops.patience import patiently
from opusclip_mlops.provenance import run_tags
from opusclip_mlops.redaction import one_line
from opusclip_mlops.run_families import PARENT_TAG, family_of
from opusclip_mlops.run_status import status

SWEEP_TAG = "opusclip.sweep"
"""Which sweep a run is of, or is the run of."""

TRIAL_TAG = "opusclip.sweep.trial"
"""Which trial of the sweep a run is of, from 0 on."""

STATE_TAG = "opusclip.sweep.state"
"""How its trial ended: complete, pruned, failed, stopped or lost."""

_ATTEMPT_TAG = "opusclip.sweep.attempt"
_NOT_OWN = ("system/", "performance/", "profiling/")
_MOST_NAMED = 8
_STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "lost": "KILLED"}


class TrialRuns:
    """Makes and ends the runs of a sweep's trials.

    Args:
        client: MLflow, as this machine reaches it.
        parent_id: The sweep's run.
        sweep: The sweep's name.

    Raises:
        RegistryError: MLflow has no such run, or does not answer.
    """

    def __init__(self, client: MlflowClient, parent_id: str, sweep: str) -> None:
        self._client, self._parent_id, self._sweep = client, parent_id, sweep
        parent = patiently(f"cannot read run {parent_id}", lambda: client.get_run(parent_id))
        self.experiment_id = str(parent.info.experiment_id)
        self.name = parent.info.run_name or sweep
        self.group = family_of(client, parent) or f"{self.name[:100]}-{parent_id[:8]}"

    def begin(
        self, number: int | str, attempt: int, values: dict[str, Any], *, mirror_id: str = ""
    ) -> str:
        """Make the run of a trial's attempt, with its values as params; the run's id.

        Args:
            number: The trial's, or what W&B calls it.
            attempt: How often it was tried, this time included.
            values: By the names of parameters.
            mirror_id: What the run is to be called in W&B, where that is known already.

        Raises:
            RegistryError: MLflow refused, or did not answer.
        """
        tags = {
            **run_tags(Path.cwd()),
            PARENT_TAG: self._parent_id,
            SWEEP_TAG: self._sweep,
            TRIAL_TAG: str(number),
            _ATTEMPT_TAG: self._attempt(number, attempt),
            **({MIRROR_ID_TAG: mirror_id} if mirror_id else {}),
        }
        what = f"cannot make the run of trial {number}"
        run_id = patiently(what, lambda: self._found_or_made(number, tags))
        params = [Param(*pair) for pair in records.to_text_values(values).items()]
        patiently(what, lambda: self._client.log_batch(run_id, params=params))
        return run_id

    def name_of(self, number: int | str) -> str:
        """What the run of a trial is called."""
        return f"{self.name[:200]}-{number}"

    def _attempt(self, number: int | str, attempt: int) -> str:
        return f"{self._sweep}/{number}/{attempt}"

    def found(self, number: int, attempt: int) -> str:
        """The run of a trial's attempt; empty where there is none, or MLflow does not answer."""
        try:
            return self._found(self._attempt(number, attempt))
        except MlflowException:
            return ""

    def _found(self, attempt: str) -> str:
        query = f"tags.`{_ATTEMPT_TAG}` = '{attempt}'"
        runs = self._client.search_runs([self.experiment_id], query, max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _found_or_made(self, number: int | str, tags: dict[str, str]) -> str:
        if run_id := self._found(tags[_ATTEMPT_TAG]):
            return run_id
        made = self._client.create_run(self.experiment_id, run_name=self.name_of(number), tags=tags)
        return str(made.info.run_id)

    def latest(self, run_id: str, metric: str) -> float | None:
        """The value of a metric that a run has logged last, None where there is none."""
        found = patiently(f"cannot read run {run_id}", lambda: self._client.get_run(run_id))
        value = found.data.metrics.get(metric)
        return None if value is None else float(value)

    def has_finished(self, run_id: str, metric: str, *, is_known: bool) -> bool:
        """Whether a run ended as FINISHED, and with a metric.

        Args:
            run_id: The run.
            metric: Its name, empty for none.
            is_known: Whether this machine knows a value of it, or needs none.
        """
        # What a tracker has said may be on its way to MLflow still.
        with contextlib.suppress(OpusclipError):
            return is_known and all(one.end_status == "FINISHED" for one in status([run_id]))
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return False
        return run.info.status == "FINISHED" and (not metric or metric in run.data.metrics)

    def missing(self, run_id: str, metric: str) -> str:
        """Says that a run has logged no value of a metric, and what it has logged instead."""
        try:
            found = self._client.get_run(run_id).data.metrics
        except MlflowException:
            found = {}
        own = sorted(name for name in found if name != metric and not name.startswith(_NOT_OWN))
        others = ", ".join(own[:_MOST_NAMED]) + ("…" if own[_MOST_NAMED:] else "")
        return f"it logged no {metric}{f', but {others}' if others else ''}"

    def end(self, run_id: str, state: str, reason: str = "") -> None:
        """Say how its trial ended; a run that no tracker logs to is ended as well.

        Raises:
            RegistryError: MLflow refused, or did not answer.
        """
        patiently(f"cannot end run {run_id}", lambda: self._end(run_id, state, reason))

    def _end(self, run_id: str, state: str, reason: str) -> None:
        self._client.set_tag(run_id, STATE_TAG, state)
        run = self._client.get_run(run_id)
        # A tracker's shipper says itself how its run ended.
        if run.info.status != "RUNNING" or MIRROR_OF_TAG in run.data.tags:
            return
        if reason:
            self._client.set_tag(run_id, "opusclip.end_reason", one_line(reason))
        self._client.set_terminated(run_id, _STATUSES.get(state, "FAILED"))

    def forget_broken(self, run_id: str, how: str = "lost") -> None:
        """End the run of an attempt whose worker was lost or stopped, where MLflow still has it."""
        try:
            self._end(run_id, how, f"its worker was {how}")
        except MlflowException:
            return

    def settle(self, ended: Mapping[tuple[int, int], tuple[str, str]]) -> None:
        """Say of runs how their attempts ended, where MLflow was away when that was to be said.

        Args:
            ended: State and reason of each attempt that is over, by its trial's number and its own.

        Raises:
            RegistryError: MLflow refused, or did not answer.
        """
        by_tag = {self._attempt(*attempt): how for attempt, how in ended.items()}
        what = f"cannot read the runs of sweep {self._sweep}"
        for run in patiently(what, lambda: list(self._unsettled())):
            if how := by_tag.get(run.data.tags.get(_ATTEMPT_TAG, "")):
                self.end(run.info.run_id, *how)

    def _unsettled(self) -> Iterator[Run]:
        query, token = f"tags.`{SWEEP_TAG}` = '{self._sweep}'", None
        while True:
            page = self._client.search_runs([self.experiment_id], query, page_token=token)
            for run in page:
                if run.info.status == "RUNNING" or STATE_TAG not in run.data.tags:
                    yield run
            if not (token := page.token):
                return

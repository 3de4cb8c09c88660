"""What a trial of a sweep logs of the metric that is looked for, told to the worker beside it.

A worker names a file and the metric in the environment; each value goes into the file as it is
logged, a line each, so that a trial is judged without asking any server.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from opusclip_mlops.ranks import rank_in

FILE_VARIABLE = "OPUSCLIP_SWEEP_VALUES"
METRIC_VARIABLE = "OPUSCLIP_SWEEP_METRIC"


class TrialValues:
    """Notes the values of one metric in a file.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, file: str, metric: str) -> None:
        self._metric = metric
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, values: Mapping[str, float], step: int) -> None:
        """Note the metric where it is among the values; a full disk loses it."""
        if self._metric in values:
            try:
                os.write(self._descriptor, f"{step} {values[self._metric]!r}\n".encode())
            except OSError:
                return


def values_for_a_worker() -> TrialValues | None:
    """Where this process is to note a metric; None where it is no trial, or not its first rank."""
    file, metric = os.environ.get(FILE_VARIABLE), os.environ.get(METRIC_VARIABLE)
    if not file or not metric or rank_in(os.environ):
        return None
    try:
        return TrialValues(file, metric)
    except OSError:
        return None


class ValuesReader:
    """Reads what a trial has noted since it was asked last."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = 0

    def new(self) -> Iterator[tuple[int, float]]:
        """Each new step and value; a line that is not whole yet comes next time."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return
        whole, _, _ = content.rpartition(b"\n")
        self._position += len(whole) + bool(whole)
        for line in whole.splitlines():
            step, _, value = line.partition(b" ")
            try:
                yield int(step), float(value)
            except ValueError:
                continue

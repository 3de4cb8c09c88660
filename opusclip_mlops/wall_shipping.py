"""The walls of a run, made anew while its samples arrive.

A wall costs what its clips weigh, so it is made at most so often that it takes a tenth of the time,
and once more at the run's end. What fails is told once and tried again; what takes too long goes on
the next time, with what was fetched by then.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops import layout
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.panel_steps import StepReader, listed, repository_of
from opusclip_mlops.panels import title_of
from opusclip_mlops.records import Record, Samples, Video
from opusclip_mlops.redaction import one_line
from opusclip_mlops.wall_clips import ClipFolder
from opusclip_mlops.wall_page import write_page
from opusclip_mlops.walls import RunOfWall, Show, lay_out

PAUSE_TIMES = 10
"""How many times as long as a wall took it is let alone."""

MOST_S, MOST_AT_END_S = 60.0, 600.0
"""How long walls may hold up what else was logged, and the run's end, in seconds."""

_MOST_ROUNDS = 3


class Walls:
    """Makes the walls of one run.

    Args:
        client: Who asks MLflow.
        run_id: The run.
        folder: Where clips are fetched to that are not on this machine.
        here: Says where a clip's artifact lies on this machine, None where it does not.
        due: Titles of panels with samples that no wall shows, as `due` gave them.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        folder: RunFolder,
        *,
        here: Callable[[str], Path | None],
        due: Sequence[str] = (),
    ) -> None:
        self._client, self._run_id = client, run_id
        self._folder = folder.path / "walls"
        self._here = here
        self._due = dict.fromkeys(str(one) for one in due)
        self._read: dict[str, tuple[StepReader, ClipFolder]] = {}
        self._not_before_s = 0.0
        self._told: set[tuple[str, str]] = set()

    @property
    def due(self) -> list[str]:
        """Titles of the panels whose wall is older than their samples."""
        return list(self._due)

    def note(self, record: Record) -> None:
        """A record was sent: the wall of its panel is due, if it is of one."""
        if isinstance(record, Samples):
            self._due[title_of(record.panel["name"], record.panel["digest"])] = None
        elif isinstance(record, Video):
            # A clip that had to wait comes behind its account.
            shelf, _, rest = record.key.partition("/")
            title, _, cell = rest.partition("/")
            if shelf == layout.PANELS and cell and record.origin.get("panel"):
                self._due[title] = None

    def look(self) -> None:
        """Make what is due, if the last time is long enough ago."""
        if self._due and time.monotonic() >= self._not_before_s:
            self._make_due(MOST_S)

    def finish(self) -> None:
        """Make all that is due; what fails stays due."""
        self._make_due(MOST_AT_END_S)

    def _make_due(self, most_s: float) -> None:
        began_s = time.monotonic()
        show = _until(began_s + most_s)
        for title in self.due:
            fault = attempted(functools.partial(self._make, title, show))
            del self._due[title]
            if fault is not None:
                # Behind the others: one that always fails takes no time from them.
                self._due[title] = None
                self._tell(title, fault)
        ended_s = time.monotonic()
        self._not_before_s = ended_s + PAUSE_TIMES * (ended_s - began_s)

    def _tell(self, title: str, fault: Exception) -> None:
        kind = type(fault).__name__
        if (title, kind) not in self._told:
            self._told.add((title, kind))
            print(one_line(f"wall {title}: {kind}: {fault}"), flush=True)

    def _make(self, title: str, show: Show) -> None:
        """Make a wall, and again where another machine has logged samples meanwhile."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(_MOST_ROUNDS):
            show("making it", number, _MOST_ROUNDS)
            run = self._client.get_run(self._run_id)
            repository = repository_of(self._client, run)
            before = listed(repository, title)
            self._send(title, run, repository, show)
            if listed(repository, title) == before:
                return

    def _send(self, title: str, run: Run, repository: ArtifactRepository, show: Show) -> None:
        if title not in self._read:
            clips = ClipFolder(repository, self._folder, self._here)
            self._read[title] = StepReader(repository, title), clips
        reading = RunOfWall(run, repository, *self._read[title])
        called = run.info.run_name or self._run_id
        found = reading.candidates(title, called=called, show=show)
        if not found.steps:
            # Clips have come, and their account has not.
            return
        wall = lay_out(found.steps[0].step.panel, found.steps, found.notes, show=show)
        path = self._folder / Path(layout.wall_path(title)).name
        try:
            write_page(wall, path)
            self._client.log_artifact(self._run_id, str(path), layout.PANELS)
        finally:
            path.unlink(missing_ok=True)


def _until(until_s: float) -> Show:
    """Nobody looks; but what is done ends in a fault once the time is over."""

    def show(what: str, done: int, of: int) -> None:
        if time.monotonic() >= until_s:
            raise DeliveryError(f"{what}: the time is over after {done} of {of}; it goes on later")

    return show

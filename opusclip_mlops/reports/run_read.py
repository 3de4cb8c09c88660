"""What a report knows of one run: values alone, nothing is read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from mlflow.entities import Run

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.bottlenecks import Figures, Report
from opusclip_mlops.comparing import Beside
from opusclip_mlops.contrasts import Facts
from opusclip_mlops.curves import Curve
from opusclip_mlops.generations import Generation, is_superseded
from opusclip_mlops.listing import LeftOut, Part
from opusclip_mlops.records import Record, Text
from opusclip_mlops.reports.registry_past import ModelPast
from opusclip_mlops.reports.unread import Unread
from opusclip_mlops.reports.wording import MAIN_METRICS, main_keys
from opusclip_mlops.wall_page import Wall

Place = Literal["samples", "media", "insights"]
"""The sections that may have more than they show."""

_DIED = ("FAILED", "KILLED")
_Of = TypeVar("_Of")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A record of a run, with what it is shown from.

    Attributes:
        record: The record.
        path: Its file here; None for what needs none, or was not fetched.
        artifact_path: Where it lies in MLflow.
        left_bytes: Its length where the page has no room for it, so that it was not fetched.
    """

    record: Record
    path: Path | None = None
    artifact_path: str = ""
    left_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Raised:
    """An alert that was raised, and how it stands.

    Attributes:
        event: What was said when it was raised.
        standing: "" where it stands still, else what became of it.
    """

    event: Event
    standing: Literal["", "recovered", "training went back behind it"] = ""


@dataclass(frozen=True, kw_only=True)
class RunRead:
    """All that a report says of one run.

    Attributes:
        run: As MLflow has it.
        called: Its name, else its id.
        facts: What it was made of, and how it ended.
        place: The words that tell a command where the run is.
        generations: Each time training went on from a checkpoint.
        curves: Its metrics as the run looks back on them now, by key.
        branches: What training went back behind, by key: a curve for each part that was left.
        last_step: The highest step of all points that count, NaN ones too; None for none.
        figures: What was timed in it.
        experiment: What its experiment is called, "" where that cannot be read.
        parts: Its words, files and models; what stands at a step is not fetched.
        left_out: What no record can be made of.
        crash: The newest crash report, None where no part of it died.
        walls: The last samples of each panel.
        media: The newest clip, picture and table of each key.
        more: What there is more of than is shown, by section.
        models: The versions made of it and what was decided about them.
        bottlenecks: Where its time went, None where nothing was timed.
        alerts: What its rules said, the oldest first.
        changes: The run beside its parent, or the run in Production; None where there is none.
        unread: What could not be read.
    """

    run: Run
    called: str
    facts: Facts
    place: Sequence[str] = ()
    generations: tuple[Generation, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    branches: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    last_step: int | None = None
    figures: Figures | None = None
    experiment: str = ""
    parts: tuple[Part, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    crash: Text | None = None
    walls: tuple[Wall, ...] = ()
    media: tuple[Fetched, ...] = ()
    more: Mapping[Place, Sequence[str]] = field(default_factory=dict)
    models: tuple[ModelPast, ...] = ()
    bottlenecks: Report | None = None
    alerts: tuple[Event, ...] = ()
    changes: Beside | None = None
    unread: tuple[Unread, ...] = ()

    def records(self, kind: type[_Of]) -> list[_Of]:
        """The records of a kind that the run holds; what stands at a step is not fetched."""
        return [part.record for part in self.parts if isinstance(part.record, kind)]

    @property
    def outlived_crash(self) -> bool:
        """Whether the run went on after its newest crash, so that it was not its end."""
        if self.crash is None:
            return False
        begun = self.generations[-1].start_ms if self.generations else 0
        return self.crash.timestamp_ms < begun or self.facts.status not in _DIED

    def raised(self) -> Iterator[Raised]:
        """The alerts that were raised, the oldest first."""
        well = {(one.alert, one.number) for one in self.alerts if one.state == "recovered"}
        for one in self.alerts:
            if one.state != "raised":
                continue
            if self.is_behind(one):
                yield Raised(event=one, standing="training went back behind it")
            else:
                is_well = (one.alert, one.number) in well
                yield Raised(event=one, standing="recovered" if is_well else "")

    def is_behind(self, one: Event) -> bool:
        """Whether training went back behind what an alert was about."""
        return is_superseded(
            self.generations, key=one.key, step=one.step, timestamp_ms=one.timestamp_ms
        )

    def in_short(self) -> RunRead:
        """The same with a few points of the main metrics alone, for the words about many runs."""
        kept = {key: _ends_of(self.curves[key]) for key in main_keys(self.curves)[:MAIN_METRICS]}
        return replace(self, curves=kept, branches={}, walls=(), media=(), parts=(), figures=None)


def _ends_of(curve: Curve) -> Curve:
    """The lowest, the highest and the last point of a curve, with what is counted of the others."""
    if not len(curve):
        return curve
    values = curve.rows["value"]
    kept = np.unique([int(np.argmin(values)), int(np.argmax(values)), len(curve) - 1])
    return replace(curve, rows=curve.rows[kept])

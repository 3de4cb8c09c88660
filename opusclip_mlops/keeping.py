"""The checkpoints of a run as it saves them: their metadata, which is the best, which are kept.

Nothing here waits: what MLflow has of a run that is gone on with is read once it is known. Until
then nothing of it is dropped, and no name is given that could stand there.
"""

import contextlib
import hashlib
import itertools
import math
import numbers
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from opusclip_mlops import checkpoints, provenance, records
from opusclip_mlops.errors import CheckpointError, PassportError, RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.metadata import BestValue, CheckpointMetadata
from opusclip_mlops.passports import Passport
from opusclip_mlops.ranks import rank_in
from opusclip_mlops.records import Checkpoint
from opusclip_mlops.redaction import one_line
from opusclip_mlops.retention import WATCHED as WATCHED
from opusclip_mlops.retention import Earlier, Retention, better_of, check_mode

if TYPE_CHECKING:
    import torch

_OURS = f"{Path(__file__).parent}{os.sep}", contextlib.__file__


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was written, and what is to be logged of it, in this order."""

    name: str
    best: Mapping[str, BestValue]
    records: tuple[records.Checkpoint | records.CheckpointDropped, ...]

    @property
    def record(self) -> Checkpoint:
        """What says that it is there."""
        return next(one for one in self.records if isinstance(one, Checkpoint))

    @property
    def dropped(self) -> list[str]:
        """Names of the checkpoints that are kept no longer."""
        return [one.name for one in self.records if isinstance(one, records.CheckpointDropped)]


@dataclass(frozen=True)
class Planned:
    """A checkpoint that is to be written to `folder`; its name is held until it is there."""

    folder: Path
    about: CheckpointMetadata
    is_best: bool


class CheckpointKeeper:
    """Writes checkpoints into a run's folder, and knows the best value of each metric.

    Args:
        folder: The run's folder.
        session: A name of this process that no other process has.
        goes_on: Whether MLflow may have checkpoints of the run that were never in the folder.
    """

    def __init__(self, folder: RunFolder, *, session: str = "", goes_on: bool = False) -> None:
        self._folder = folder
        self._session = session
        self._goes_on = goes_on
        self._best: dict[str, BestValue] = {}
        self._last: str | None = None
        self._earlier: Earlier | None = None if goes_on else Earlier()
        self._has_looked = False
        self._reach: float = math.inf
        self._since_ms = 0
        self.retention: Retention | None = None

    def go_on_from(self, metadata: CheckpointMetadata, *, since_ms: int = 0) -> None:
        """Take a checkpoint for the one before the next; what is older than `since_ms` is earlier.

        What lies behind it and was saved earlier is the first that is kept no longer.
        """
        self._reach, self._since_ms = metadata.step, since_ms
        self._last = metadata.name
        self._best = better_of(self._best, metadata.best)

    def save(
        self,
        network: "torch.nn.Module",
        optimizer: "torch.optim.Optimizer | None",
        scheduler: "torch.optim.lr_scheduler.LRScheduler | None",
        /,
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        **facts: Any,
    ) -> Saved:
        """Write a checkpoint; what comes of it counts once it is given to `remember`.

        `facts` are further arguments of `planned`, and further fields of its metadata. The best is
        chosen by `monitor`, else by what the retention names, else by a watched metric; NaN beats
        nothing. A value that was not measured as the best one was is not ranked with it, and warned
        of, unless that is allowed.

        Raises:
            TypeError: the network is no module.
            RecordError: `monitor` is not among the metrics, or the mode is not `min` or `max`.
            CheckpointError: it cannot be written.
        """
        check_network(network)
        with self.planned(epoch=epoch, step=step, metrics=metrics, **facts) as plan:
            checkpoints.write_checkpoint(
                plan.folder, network, optimizer, scheduler, metadata=plan.about
            )
        return self.saved(plan)

    @contextlib.contextmanager
    def planned(
        self,
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        monitor: str | None = None,
        mode: str = "min",
        passports: Mapping[str, Passport] | None = None,
        allow_unlike: bool = False,
        **facts: Any,
    ) -> Iterator[Planned]:
        """Say what is to be written, as `save` does, for one who writes it; the name is held.

        Raises:
            RecordError: `monitor` is not among the metrics, or the mode is not `min` or `max`.
            CheckpointError: the disk takes no change.
        """
        watched, mode = self._watched(metrics, monitor, mode)
        self._look()
        with self._named(checkpoints.checkpoint_name(epoch, step)) as name:
            best = {}
            if watched is not None:
                known = (passports or {}).get(watched)
                digest = known.digest if known else ""
                value = BestValue(name, metrics[watched], mode, digest, bool(allow_unlike))
                best = {watched: value} if self._is_best(watched, value, known) else {}
            about = CheckpointMetadata(
                name=name,
                step=step,
                epoch=epoch,
                metrics=metrics,
                passports={key: one.to_dict() for key, one in (passports or {}).items()},
                git_commit=provenance.git_commit(Path.cwd()),
                git_dirty=provenance.git_dirty(Path.cwd()),
                libraries=provenance.library_versions(),
                parent=self._last,
                best={**self._best, **best},
                **facts,
            )
            yield Planned(self._folder.checkpoints / name, about, bool(best))

    def saved(self, plan: Planned) -> Saved:
        """What is to be logged of a checkpoint that was planned and is there now."""
        about = plan.about
        return Saved(about.name, about.best, tuple(self._records(about, is_best=plan.is_best)))

    def remember(self, saved: Saved) -> None:
        """Take what `save` gave for the last, now that it is logged, and drop what it displaces."""
        self._best = better_of(self._best, saved.best)
        self._last = saved.name
        for name in saved.dropped:
            # The disk may take no change; then the record that was logged has it removed later.
            with contextlib.suppress(OSError):
                checkpoints.drop(self._folder.checkpoints / name)

    def _records(
        self, about: CheckpointMetadata, *, is_best: bool
    ) -> Iterator[records.Checkpoint | records.CheckpointDropped]:
        metrics = dict(about.metrics)
        yield records.Checkpoint(
            about.created_ms, about.step, about.epoch, about.name, metrics, is_best
        )
        if self.retention is not None:
            kept = {best.checkpoint for best in about.best.values()}
            if self._earlier and not (kept and self._earlier.is_known):
                kept.add(self._earlier.marked)
            for name in self.retention.left_out(self._there(), kept):
                yield records.CheckpointDropped(name)

    def _watched(
        self, values: Mapping[str, float], monitor: str | None, mode: str
    ) -> tuple[str | None, str]:
        """The metric that the best is chosen by, if there is one, and how."""
        check_mode(mode)
        if monitor is not None and monitor not in values:
            raise RecordError(f"monitor {monitor!r} is not among the metrics: {', '.join(values)}")
        asked = self.retention.best if self.retention else None
        if asked is None:
            watched = monitor or next((key for key in WATCHED if key in values), None)
            return watched, mode
        if monitor not in (None, asked[0]):
            raise RecordError(f"monitor is {monitor!r}, and keep_checkpoints names {asked[0]!r}")
        return (asked[0] if asked[0] in values else None), asked[1]

    def _is_best(self, key: str, value: BestValue, passport: Passport | None) -> bool:
        worst = float("inf") if value.mode == "min" else -float("inf")
        best = self._best.get(key, replace(value, checkpoint="", value=worst))
        if best.is_unlike(value):
            warnings.warn(
                f"{key} of {value.checkpoint} and of {best.checkpoint}, the best so far, were not "
                f"measured alike and are not ranked: {self._difference(key, best, passport)}; "
                "measure them alike, or pass allow_unlike=True",
                stacklevel=_level_of_caller(),
            )
        return best.is_beaten_by(value)

    def _difference(self, key: str, best: BestValue, passport: Passport | None) -> str:
        """In what a value was measured otherwise than the best; digests where no more is known."""
        if not best.passport or passport is None:
            return "passport: one has none"
        found: tuple[str, ...] = ()
        # A name from elsewhere may be none that the disk can have.
        with contextlib.suppress(CheckpointError, PassportError, KeyError, OSError, ValueError):
            folder = self._folder.checkpoints / Path(best.checkpoint).name
            known = Passport.from_dict(checkpoints.read_metadata(folder).passports[key])
            found = known.differences(passport)
        return one_line("; ".join(found)) or f"passports {best.passport} and {passport.digest}"

    def _look(self) -> None:
        """Learn what earlier parts of the run, here or elsewhere, have saved, once it is known."""
        if self._earlier is None:
            self._earlier = Earlier.read(self._folder)
            if self._earlier is not None:
                # The mark in MLflow stays with the first of equal ones.
                self._best = better_of(self._earlier.best, self._best)
        if not self._has_looked:
            self._has_looked = True
            for about in self._here():
                self._best = better_of(self._best, about.best)

    def _here(self) -> list[CheckpointMetadata]:
        """The checkpoints in the run's folder that were not dropped, the oldest first."""
        found = []
        for path in self._folder.checkpoints.glob(f"[!.]*/{checkpoints.METADATA}"):
            with contextlib.suppress(CheckpointError):
                if not checkpoints.is_dropped(path.parent):
                    found.append(checkpoints.read_metadata(path.parent))
        return sorted(found, key=lambda one: (one.created_ms, one.step, one.name))

    def _there(self) -> list[tuple[str, int]]:
        """Name and step of every known checkpoint that was not dropped, the oldest first.

        Those that training has gone back behind come before all others.
        """
        found = self._here()
        here = [(about.name, about.step) for about in found]
        earlier = self._elsewhere({about.name for about in found})
        before = {about.name for about in found if about.created_ms < self._since_ms}
        before |= dict(earlier).keys()
        left = {name for name, step in (*earlier, *here) if name in before and step > self._reach}
        return sorted((*earlier, *here), key=lambda one: one[0] not in left)

    def _elsewhere(self, here: Collection[str]) -> list[tuple[str, int]]:
        """What earlier parts of the run have left in MLflow, as far as it is known and not here."""
        names = self._earlier.names if self._earlier else ()
        places = {name: place for name in names if (place := checkpoints.place_of(name))}
        return [
            (name, places[name][0])
            for name in sorted(places, key=lambda name: places[name])
            if name not in here and not checkpoints.is_dropped(self._folder.checkpoints / name)
        ]

    @contextlib.contextmanager
    def _named(self, plain: str) -> Iterator[str]:
        """A name that no other checkpoint of the run has, held until the checkpoint is there.

        Raises:
            CheckpointError: the disk takes no change.
        """
        for name in self._names(plain):
            mark = self._folder.checkpoints / f".{name}.claimed"
            if not _is_made(mark):
                continue
            try:
                if not self._is_taken(name):
                    yield name
                    return
            finally:
                with contextlib.suppress(OSError):
                    mark.rmdir()

    def _names(self, name: str) -> Iterator[str]:
        if self._may_stand_elsewhere():
            while True:
                yield f"{name}-{self._moment()}"
        yield name
        yield from (f"{name}-{number}" for number in itertools.count(2))

    def _may_stand_elsewhere(self) -> bool:
        """Whether another process may give, or have given, the plain name to one of its own."""
        if self._reach < math.inf:
            return True
        is_first = self._earlier is not None and not self._earlier.names
        return self._goes_on and not (is_first and not rank_in(os.environ))

    def _moment(self) -> str:
        """A number that grows with time and is no other process's."""
        time_ns = time.time_ns()
        digest = hashlib.sha256(f"{self._session} {time_ns}".encode()).digest()
        return f"{time_ns // 1_000_000}{int.from_bytes(digest[:4]) % 10**6:06d}"

    def _is_taken(self, name: str) -> bool:
        folder = self._folder.checkpoints / name
        return folder.exists() or checkpoints.is_dropped(folder)


def _level_of_caller() -> int:
    """How far up from where this is called the first line is that is not this package's."""
    frame: FrameType | None = sys._getframe(1)
    for level in itertools.count(1):
        if frame is None or not frame.f_code.co_filename.startswith(_OURS):
            return level
        frame = frame.f_back
    raise AssertionError


def _is_made(mark: Path) -> bool:
    """Make a folder; False where another process has made it."""
    try:
        mark.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise CheckpointError(f"cannot write to {mark.parent}: {error.strerror}") from error
    return True


def check_network(network: object) -> None:
    """Raise when this is no model.

    Raises:
        TypeError: the network is no module.
    """
    if not hasattr(network, "state_dict"):
        raise TypeError(f"model must be a torch.nn.Module, not {type(network).__name__}")


def scheduler_and_epoch(
    given: object, epoch: int | None
) -> tuple["torch.optim.lr_scheduler.LRScheduler | None", int | None]:
    """What `save_checkpoint`'s third argument is: the scheduler, or the epoch.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        return None, int(given) if epoch is None else epoch
    if given is not None and not hasattr(given, "state_dict"):
        raise TypeError(f"the third argument is a scheduler or an epoch, not {given!r:.60}")
    return cast("torch.optim.lr_scheduler.LRScheduler | None", given), epoch

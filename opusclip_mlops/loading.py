"""Loading: a checkpoint of a run, of the registry or on this disk, verified and put in place."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import METADATA, WEIGHTS, place_of
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joint_loads import JointLoad
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.putting_back import Asked
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_LISTED = 8
_WORDS = ("best", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint that was verified, and put in place as far as was asked.

    Attributes:
        folder: Where it lies; None where it was fetched and no folder was named to keep it in.
        metadata: Where it comes from, how good it is, what it holds.
        state: The training state, see `load_state`; None where nothing of it was asked for.
    """

    folder: Path | None
    metadata: CheckpointMetadata
    state: dict[str, Any] | None = field(default=None, repr=False)


def load_checkpoint(
    source: str | Path,
    *,
    which: str | int = "best",
    model: torch.nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    restore_rng: bool | None = None,
    into: Path | str | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint: verify it, then put what it holds into what is given.

    Every hash is checked before anything is read, and nothing that is read can execute code. What
    does not fit leaves the model as it was. A checkpoint of many processes is read by one or by any
    other number of them. Into a model that is shared out over processes all of them load together,
    the checkpoint that rank 0 chooses: where one fails, none has loaded.

    Args:
        source: An MLflow run id, a checkpoint's folder or a folder of checkpoints, or
            models:/NAME/Production, models:/NAME/3, models:/NAME@production.
        which: Of a run or a folder of checkpoints: "best", "last", a step, or a name. Of a folder
            the best and the last are those of its sealed ones, as long as it has any.
        model: Given the weights, on the device and in the dtype it has.
        optimizer: Given its state.
        scheduler: Given its state.
        restore_rng: Whether the generators of torch, Python and NumPy are put back; when None,
            where an optimizer or a scheduler is given: that is training going on. They are those of
            the rank itself; where fewer ranks have saved, the others' are left alone.
        into: A folder to keep in, by its name, what is fetched from MLflow; a private one, removed
            afterwards, when None. What lies on this machine's disk is read where it is. Of many
            processes that load together the first of a machine fetches, and its folder counts.
        tracking_uri: Where the run is, MLflow's default when None.
        registry_uri: Where the version is, the tracking server when None.

    Raises:
        CheckpointError: no such checkpoint, it is not as it was sealed, it does not fit what is
            given, or a registered version was asked for training state, of which it has none.
    """
    _check(which)
    asked = Asked(model, optimizer, scheduler, restore_rng)
    if str(source).startswith("models:/") and asked.for_state:
        raise CheckpointError(
            f"{source} holds weights and metadata, no training state: load that from its run"
        )
    origin = _Origin(source, which, tracking_uri, registry_uri)
    # The training state is left out of a registered version.
    only = (WEIGHTS,) if origin.is_registered else None
    keep_in = Path(into) if into else None
    with asked.together() as joint, origin.found(keep_in, joint) as found:
        share = joint.share if joint else None
        metadata = checkpoints.verify(found.folder, only=only, share=share)
        _check_step(which, metadata, source)
        if joint:
            joint.check_same(metadata)
        content = asked.read(found.folder, metadata)
        folder = found.kept(keep_in, metadata)
    asked.put_in_place(content)
    return LoadedCheckpoint(folder=folder, metadata=metadata, state=content.state)


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint's folder.

    Attributes:
        folder: Where it can be read.
        is_fetched: Whether it was fetched, and goes unless it is kept.
        joint: With whom it is shared, where one process has it for others.
    """

    folder: Path
    is_fetched: bool = False
    joint: JointLoad | None = None

    def kept(self, into: Path | None, metadata: CheckpointMetadata) -> Path | None:
        """Where it stays; None where it goes."""
        if self.joint is None:
            return self._kept(into, metadata)
        return self.joint.kept(lambda: self._kept(into, metadata))

    def _kept(self, into: Path | None, metadata: CheckpointMetadata) -> Path | None:
        if not self.is_fetched:
            return self.folder
        return _kept(self.folder, into, metadata) if into else None


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a checkpoint is to come from."""

    source: str | Path
    which: str | int
    tracking_uri: str | None
    registry_uri: str | None

    @property
    def is_registered(self) -> bool:
        return str(self.source).startswith("models:/")

    @property
    def is_local(self) -> bool:
        text = str(self.source)
        if isinstance(self.source, Path) or self.is_registered:
            return not self.is_registered
        return not _RUN_ID.fullmatch(text) and (Path(text).exists() or not text.isalnum())

    @contextlib.contextmanager
    def found(self, into: Path | None, joint: JointLoad | None) -> Iterator[_Found]:
        """The checkpoint's folder for the time of the block; where many load, all have the same."""
        if joint is None:
            with self._own(into) as found:
                yield found
            return
        chosen = replace(self, which=joint.chosen(self._name) or self.which)
        if self.is_local:
            with self._here(chosen.which) as found:
                yield found
        elif joint.is_first_here:
            with chosen._own(into) as own, joint.lent(own.folder):
                yield replace(own, joint=joint)
        else:
            yield _Found(joint.borrowed(), joint=joint)

    @contextlib.contextmanager
    def _own(self, into: Path | None) -> Iterator[_Found]:
        if self.is_local:
            with self._here(self.which) as found:
                yield found
            return
        place = None if into else self._fetch(None)
        if place is not None:
            yield _Found(place)
            return
        with _private_folder(into) as folder:
            fetched = self._fetch(folder)
            assert fetched is not None
            yield _Found(fetched, is_fetched=True)

    @contextlib.contextmanager
    def _here(self, which: str | int) -> Iterator[_Found]:
        """One of this disk; the run's folder that it lies in is not removed meanwhile."""
        place = _chosen(Path(self.source), which)
        with kept_here(RunFolder(place.absolute().parent.parent)):
            yield _Found(place)

    def _name(self) -> str:
        """The name of the checkpoint that is meant; empty where its source names one only."""
        if self.is_registered:
            return ""
        if self.is_local:
            return _chosen(Path(self.source), self.which).name
        from opusclip_mlops import fetching

        return fetching.name_in_run(str(self.source), self.which, tracking_uri=self.tracking_uri)

    def _fetch(self, into: Path | None) -> Path | None:
        # MLflow takes seconds to load, and a folder on this disk needs none of it.
        from opusclip_mlops import fetching

        uris = {"tracking_uri": self.tracking_uri}
        if not self.is_registered:
            return fetching.fetch_from_run(str(self.source), self.which, into, **uris)
        uris["registry_uri"] = self.registry_uri
        return fetching.fetch_registered(str(self.source), into, **uris)


@contextlib.contextmanager
def kept_here(folder: RunFolder) -> Iterator[None]:
    """Keep a run's shipper from removing the folder meanwhile, if that is one."""
    with contextlib.ExitStack() as held:
        # Where nothing can be written nothing is removed either.
        with contextlib.suppress(OSError):
            if (folder.path / "manifest.json").exists():
                held.callback(os.close, folder.hold())
        yield


def _check(which: object) -> None:
    is_step = isinstance(which, int) and not isinstance(which, bool) and which >= 0
    if not is_step and not (isinstance(which, str) and which):
        raise CheckpointError(f'which is "best", "last", a step or a name, not {which!r:.60}')


def _check_step(which: str | int, metadata: CheckpointMetadata, source: str | Path) -> None:
    if isinstance(which, int) and metadata.step != which:
        raise CheckpointError(f"{source} is of step {metadata.step}, not {which}")


def _chosen(folder: Path, which: str | int) -> Path:
    """A checkpoint's folder, or the one that is meant of a folder of them."""
    if not folder.is_dir():
        known = "an MLflow run id, models:/NAME/3, models:/NAME/Production or a folder"
        raise CheckpointError(f"there is no checkpoint at {str(folder)!r:.300}: give {known}")
    if (folder / METADATA).exists():
        return folder
    places = [path.parent for path in folder.glob(f"[!.]*/{METADATA}")]
    there = [place for place in places if not checkpoints.is_dropped(place)]
    every, unread = _read(there)
    if which in _WORDS:
        # One that a crash left unsealed may be torn.
        every.sort(key=lambda one: one[1].sealed)
    for place, metadata in reversed(every):
        if _is_meant(which, place.name, metadata):
            return place
    meant = (name for name in unread if which == name or which == (place_of(name) or [None])[0])
    if error := next((unread[name] for name in meant), None):
        raise error
    if not every:
        raise next(iter(unread.values()), CheckpointError(f"{folder} holds no checkpoint"))
    listed = ", ".join(place.name for place, _ in every[-_LISTED:])
    wanted = f"of step {which}" if isinstance(which, int) else f"marked {which}"
    raise CheckpointError(f"{folder} has no checkpoint {wanted}; it has: {listed}")


def _read(
    places: list[Path],
) -> tuple[list[tuple[Path, CheckpointMetadata]], dict[str, CheckpointError]]:
    """The checkpoints that can be read, the oldest first, and what is wrong with the others."""
    known: list[tuple[Path, CheckpointMetadata]] = []
    unread: dict[str, CheckpointError] = {}
    for place in sorted(places):
        try:
            known.append((place, checkpoints.read_metadata(place)))
        except CheckpointError as error:
            unread[place.name] = error
    return sorted(known, key=lambda one: _age(one[1])), unread


def _age(metadata: CheckpointMetadata) -> tuple[int, int, str]:
    return metadata.created_ms, metadata.step, metadata.name


def _is_meant(which: str | int, name: str, metadata: CheckpointMetadata) -> bool:
    if isinstance(which, int):
        return metadata.step == which
    if which == "best":
        return any(best.checkpoint == metadata.name for best in metadata.best.values())
    return which in ("last", name)


@contextlib.contextmanager
def _private_folder(into: Path | None) -> Iterator[Path]:
    try:
        if into is not None:
            into.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".opusclip-", dir=into)
    except OSError as error:
        where = into or tempfile.gettempdir()
        raise CheckpointError(f"cannot write to {where}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _kept(fetched: Path, into: Path, metadata: CheckpointMetadata) -> Path:
    """Put what was fetched, and is whole, where it is to stay, unless the same is there already.

    A registered version has no training state: what is there of one is completed.
    """
    folder = into / Path(metadata.name).name
    try:
        fetched.rename(folder)
    except (OSError, ValueError) as error:
        if not _are_same(folder, fetched):
            raise CheckpointError(
                f"cannot keep the checkpoint in {str(folder)!r}: {one_line(str(error))}"
            ) from error
        _complete(folder, fetched, metadata)
        checkpoints.verify(folder, only=[n for n in metadata.files if (fetched / n).exists()])
    return folder


def _complete(folder: Path, fetched: Path, metadata: CheckpointMetadata) -> None:
    for name in metadata.files:
        if (fetched / name).exists() and not (folder / name).exists():
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (fetched / name).rename(folder / name)
            except OSError as error:
                said = f"cannot keep the checkpoint in {str(folder)!r}: {error.strerror}"
                raise CheckpointError(said) from error


def _are_same(folder: Path, fetched: Path) -> bool:
    try:
        return (folder / METADATA).read_bytes() == (fetched / METADATA).read_bytes()
    except (OSError, ValueError):
        return False

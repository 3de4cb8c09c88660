"""Checkpoints that a process which died had given their name, and not logged yet."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from opusclip_mlops import checkpoints
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Checkpoint

_CLAIM = re.compile(r"\.(.+)\.claimed")
"""What holds the name of a checkpoint until it is logged."""


def unrecorded(folder: RunFolder) -> Iterator[tuple[Checkpoint, Path]]:
    """What is to be logged of each that is there, and the mark to be removed behind that.

    One that was logged in its last moment is logged again, which does no harm.
    """
    for mark in sorted(folder.checkpoints.glob(".*.claimed")):
        if not (named := _CLAIM.fullmatch(mark.name)):
            continue
        place = folder.checkpoints / named[1]
        with contextlib.suppress(CheckpointError):
            about = checkpoints.read_metadata(place)
            if not checkpoints.is_dropped(place):
                yield _record(about), mark


def _record(about: checkpoints.CheckpointMetadata) -> Checkpoint:
    is_best = any(one.checkpoint == about.name for one in about.best.values())
    at = about.created_ms, about.step, about.epoch
    return Checkpoint(*at, about.name, dict(about.metrics), is_best)

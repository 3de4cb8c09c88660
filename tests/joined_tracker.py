"""A tracker whose records stay in the journal: no shipper and no backend is started for it."""

from pathlib import Path

from opusclip_mlops import journal
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.records import Record
from opusclip_mlops.tracker import ExperimentTracker, _joined


def joined_tracker(tmp_path: Path) -> ExperimentTracker:
    """A tracker as a data loader's worker has one: its run is begun and ended elsewhere."""
    folder = RunFolder(tmp_path / "journal" / "a-run")
    manifest = Manifest(local_id="a-run", cwd=str(tmp_path), sinks=["mlflow"], start_time_ms=1)
    folder.create(manifest)
    return _joined(TrackingConfig(), folder.path)


def logged(tracker: ExperimentTracker) -> list[Record]:
    """What the tracker has logged, read back from its journal."""
    segments = tracker._session.folder.segments()
    items = [one for path in segments for one in journal.read(path, ended=True)]
    assert all(isinstance(one, journal.Entry) for one in items)
    return [one.record for one in items if isinstance(one, journal.Entry)]


def media(tracker: ExperimentTracker) -> Path:
    """Where the files lie that its records refer to."""
    return tracker._session.folder.media

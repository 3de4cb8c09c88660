"""How long a machine waits for a run that another one is to make.

Only what was waited while MLflow answered is counted: an outage costs nobody the run. Who has
waited in vain ends its processes and leaves the journal where it is; recovering waits once more.
"""

import os
from pathlib import Path

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.sessions import ended_here

WAIT_S = float(os.environ.get("OPUSCLIP_OWNER_WAIT_S", 600.0))
"""How long a machine whose ranks have ended waits for the one that owns their run."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 10.0
_waited_s: dict[Path, float] = {}


def pause_s(folder: RunFolder) -> float:
    """How long to wait before MLflow is asked once more, as many machines do at once.

    Raises:
        OpusclipError: it was asked long enough since the ranks of this machine have ended.
    """
    waited_s = _waited_s.get(folder.path, 0.0)
    is_counted = ended_here(folder)
    if is_counted and waited_s >= WAIT_S:
        write_whole(_mark(folder), b"")
        raise OpusclipError(
            f"the machine that owns the run has not made it in {WAIT_S:g} s since the ranks here"
            f" ended: what they logged stays in {folder.path}; once the run is there,"
            f" `opusclip recover {folder.path.name}` sends it"
        )
    longer_s = min(max(_FIRST_PAUSE_S, waited_s / 10), _LAST_PAUSE_S)
    # While they train nothing is given up.
    _waited_s[folder.path] = waited_s + longer_s if is_counted else 0.0
    return longer_s


def has_waited_in_vain(folder: RunFolder) -> bool:
    """Whether nobody waits any longer for the run to be made."""
    return _mark(folder).exists()


def wait_anew(folder: RunFolder) -> None:
    """Wait once more, as if for the first time."""
    _mark(folder).unlink(missing_ok=True)


def _mark(folder: RunFolder) -> Path:
    return folder.path / "sinks" / "in_vain"

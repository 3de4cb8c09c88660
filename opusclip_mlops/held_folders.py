"""Which folder a process's part in a run lies in, and what that part is called."""

import os
import socket
import time
from pathlib import Path

from opusclip_mlops.folder import RunFolder


def own_name() -> str:
    """A name of this process's part in a run, which no other part has."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns() // 1_000_000}"


def held_folder(journal_dir: Path, local_id: str, run_id: str | None) -> tuple[RunFolder, int]:
    """The run's folder, held: the one that still delivers an earlier part of it, else a new one.

    It is held until the descriptor that comes with it is closed.
    """
    # A hidden one is on its way out: its records are delivered.
    for path in sorted(journal_dir.glob("[!.]*")) if run_id else []:
        identity = RunFolder(path).identity()
        if identity is None or identity.run_id != run_id:
            continue
        hold = RunFolder(path).hold()
        if RunFolder(path).identity() is not None:
            return RunFolder(path), hold
        os.close(hold)
    folder = RunFolder(journal_dir / local_id)
    return folder, folder.hold()

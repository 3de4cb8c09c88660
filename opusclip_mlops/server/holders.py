"""Who holds something in a database that several machines share, and whether that process is gone.

<boot of the machine>:<namespace of its pids>:<pid>:<seconds from boot to its start>:<random>
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from opusclip_mlops.sessions import process_started_s

_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


def new_holder() -> str:
    """A name for one thing that this process holds; each call gives another one."""
    started_s = process_started_s(os.getpid())
    return f"{_here()}:{os.getpid()}:{started_s:.2f}:{uuid.uuid4().hex[:8]}"


def is_gone(holder: str) -> bool:
    """Whether the process that holds it has ended, as far as that can be seen from here.

    Of another machine, or of another container, nothing can be seen.
    """
    boot, namespace, pid, started_s = [*holder.split(":"), "", "", "", ""][:4]
    if f"{boot}:{namespace}" != _here() or not pid.isdecimal():
        return False
    try:
        return f"{process_started_s(int(pid)):.2f}" != started_s
    except ProcessLookupError:
        return True


def _here() -> str:
    """The machine since it was started, and the pids that are seen there; random where hidden."""
    try:
        return f"{_BOOT.read_text().strip()}:{_NAMESPACE.stat().st_ino}"
    except OSError:
        return f"{uuid.uuid4().hex}:0"

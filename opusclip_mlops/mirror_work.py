"""What the process that mirrors to one place is told to do, and what it tells of each run."""

from typing import Literal

import msgspec

from opusclip_mlops.targets import Target

BROKEN_CLIENT = 75
"""The exit code of a process that only wants to be started again."""

Outcome = Literal[
    "begun", "equal", "mirrored", "planned", "unequal", "absent", "busy", "gone", "failed"
]
"""What came of a run: `begun` is said first; `equal` when nothing was to be sent; `absent` when
there is no mirror at all; `busy` while another process writes it; `gone` when MLflow has the run no
more."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs are mirrored where.

    Runs are named by `run_ids`, or by `experiments` (names or ids) for all that they hold.
    `does` is "mirror" to send, "plan" to say what would be sent, "verify" to compare only and
    "follow" to go on until stopped; "rename" is "mirror" that makes nothing anew but what is called
    as it was before its run went back, and leaves all else. `skip` are runs that the process has
    died at before.
    """

    target: Target
    does: Literal["mirror", "plan", "verify", "follow", "rename"] = "mirror"
    run_ids: list[str] = []
    experiments: list[str] = []
    tracking_uri: str | None = None
    registry_uri: str | None = None
    database_uri: str | None = None
    poll_s: float = 5.0
    wait_s: float = 60.0
    skip: list[str] = []


class Missing(msgspec.Struct, frozen=True):
    """Something that a mirror can't be given, and why."""

    name: str
    reason: str


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run in one place.

    `points`, `media` and `words` count what was sent, or would be, or is lacking; `extra` what the
    mirror has too much of; `examples` name some of either. `total` is how many runs there are, as
    far as it is known, and `error` the fault in one line; `is_final` says that it would come again.
    """

    target: str
    run_id: str = ""
    run_name: str = ""
    outcome: Outcome
    points: int = 0
    media: int = 0
    words: int = 0
    extra: int = 0
    rebuilt: bool = False
    held_points: int = 0
    left_out: list[Missing] = []
    examples: list[str] = []
    error: str = ""
    is_final: bool = False
    total: int = 0


def encoded(report: RunReport) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(report) + b"\n"


def decoded(line: bytes) -> RunReport | None:
    """What a line says, None where it is something else's."""
    try:
        return msgspec.json.decode(line, type=RunReport)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None


def work_of(content: bytes) -> Work:
    """The work a process was given."""
    return msgspec.json.decode(content, type=Work)

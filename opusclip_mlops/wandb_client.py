"""The W&B client, kept on a lead: its settings, its hangs, its core, and what the server has got.

A client that hangs ends its process: the client's own threads and its core would outlast any other
way.
"""

import contextlib
import faulthandler
import fcntl
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import wandb
from wandb.apis.public.runs import Run
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from opusclip_mlops.errors import DeliveryError, OpusclipError
from opusclip_mlops.launch import HUNG_S, children_of, yield_alike
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sessions import process_started_s

HANG_S = 4 * HUNG_S
"""How long a call of the client may take."""

FINISH_WAIT_S = 300
"""How long the client may take to send its last rows."""

UNANSWERED = (wandb.Error, WandbApiFailedError, OSError)
"""What the client raises where its server does not answer, or refuses to."""

_PAGE_ITEMS, _PAGE_FILES = 1000, 500
_POLL_S = 2.0
_API_TIMEOUT_S = 20
# A server may list a file a moment after it has taken it.
_LISTED_S = min(HUNG_S, 10.0)
# What a launcher left in the environment must not name, resume or redirect a run.
_STRAY_VARIABLES = (
    "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH",
    "WANDB_MODE", "WANDB_NAME", "WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP",
)  # fmt: skip


# What a client says where it is worth asking again.
_UNREACHED = re.compile(r'error (?:408|429|5\d\d)\b|(?:Post|Get) "http|context|timeout|EOF')

T = TypeVar("T")


def is_rewind_refused(message: str) -> bool:
    """Whether the client says that its server will not rewind a run, and left it as it was."""
    _, found, why = message.partition("failed to rewind run:")
    return bool(found) and _UNREACHED.search(why) is None


class Taken(OpusclipError):
    """Another process writes this run."""


def forget_strays() -> None:
    """Drop what a launcher has left in the environment for some other run."""
    for name in _STRAY_VARIABLES:
        os.environ.pop(name, None)


def settings(*, declares_end: bool = True, flush_s: float = 0.5) -> wandb.Settings:
    """Settings of a run that measures, prints and uploads nothing of its own accord.

    Without `declares_end` the run's state on the server is left as it is when the run is closed.
    What was logged is on disk after `flush_s` seconds.
    """
    return wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=flush_s,
        x_file_stream_transmit_interval=2.0,
        x_update_finish_state=declares_end,
        init_timeout=30,
        finish_timeout=FINISH_WAIT_S,
        finish_timeout_raises=True,
    )


@contextlib.contextmanager
def ended_if_hanging(limit_s: float = HANG_S) -> Iterator[None]:
    """End this process, with the lines it hung at in its log, when a call takes too long."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def next_page(found: Iterator[T]) -> list[T]:
    """A page of what a server tells; the client itself would wait for one without end."""
    with ended_if_hanging():
        return list(itertools.islice(found, _PAGE_ITEMS))


def media_on_server(run: Run) -> dict[str, int]:
    """The files that the server has of a run, by their names, with their sizes in bytes."""
    # A listing that is asked for its iterator begins anew.
    found = ((file.name, file.size) for file in run.files(per_page=_PAGE_FILES))
    sizes_bytes: dict[str, int] = {}
    while page := next_page(found):
        sizes_bytes |= page
    return sizes_bytes


def media_on_disk(folder: Path) -> dict[str, int]:
    """The clips, pictures, texts and tables in a run's `files` folder, with sizes in bytes."""
    found = (path for path in (folder / "media").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


class Claim:
    """The right to write one run's rows, held by one process at a time on this machine.

    The file remembers the processes the client has started: they may outlive one that is killed,
    and write rows that are given again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the right, and end what a process that was killed has left.

        Raises:
            Taken: another process has it.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Taken("another process writes this W&B run") from None
        self._descriptor = descriptor
        _end_left(os.pread(descriptor, 64 * 1024, 0))

    def note_cores(self) -> None:
        """Remember the processes the client has started."""
        assert self._descriptor is not None
        started_s: dict[int, float] = {}
        for pid in children_of(os.getpid()):
            # A child that has died stays listed until it is waited for.
            with contextlib.suppress(ProcessLookupError):
                started_s[pid] = process_started_s(pid)
                # The client gives its core a session of its own.
                yield_alike(pid)
        content = json.dumps(started_s).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def forget_cores(self) -> None:
        """Let the client's processes live: they have nothing of this run left to write."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)

    def release(self) -> None:
        """Let another process write."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _end_left(content: bytes) -> None:
    try:
        noted = dict(json.loads(content))
    except ValueError:
        return
    for pid, started_s in ((int(pid), started_s) for pid, started_s in noted.items()):
        with contextlib.suppress(ProcessLookupError):
            while pid not in children_of(os.getpid()) and process_started_s(pid) == started_s:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)


class ServerSide:
    """What the server has of a run: asked now and then, and silent while the server is away."""

    def __init__(self, entity: str, project: str, run_id: str) -> None:
        self._path = f"{entity}/{project}/{run_id}"
        self._next_row = 0
        self._holes: int | None = None
        self._asked_s = 0.0

    def next_row(self) -> int:
        """The number behind the last row that the server has, as of a moment ago.

        Rows that it has lost since the first answer count as lacking.
        """
        if time.monotonic() - self._asked_s < _POLL_S:
            return self._next_row
        self._asked_s = time.monotonic()
        with contextlib.suppress(wandb.Error, ValueError, OSError):
            run = wandb.Api(timeout=_API_TIMEOUT_S).run(self._path)
            behind_last, count = run.lastHistoryStep + 1, int(run.historyLineCount or 0)
            if self._holes is None:
                self._holes = max(0, behind_last - count)
            self._next_row = max(self._next_row, min(behind_last, count + self._holes))
        return self._next_row

    def bring_media(self, folder: Path) -> None:
        """Upload again what the server lacks of the media in a finished run's `files` folder.

        The client tries an upload once, and says nothing when the server refuses it.

        Raises:
            DeliveryError: the server still lacks some of them.
        """
        wanted = media_on_disk(folder)
        if not wanted:
            return
        try:
            run = wandb.Api(timeout=_API_TIMEOUT_S).run(self._path)
            lacking = _lacking(run, wanted)
            refusals = [*filter(None, (_refusal(run, folder, name) for name in lacking))]
            if lacking and not refusals:
                lacking = _lacking_later(run, lacking)
        except UNANSWERED as error:
            raise DeliveryError(f"W&B's media cannot be counted: {one_line(str(error))}") from error
        if lacking:
            reason = one_line(refusals[0]) if refusals else f"{min(lacking)} is not there"
            raise DeliveryError(f"W&B lacks {len(lacking)} of {len(wanted)} media files: {reason}")

    def set_aliases(self, artifact: str, alias: str, wanted: set[str]) -> None:
        """Give the version of an artifact that `alias` names exactly these aliases."""
        entity_and_project = self._path.rpartition("/")[0]
        api = wandb.Api(timeout=_API_TIMEOUT_S)
        found = api.artifact(f"{entity_and_project}/{artifact}:{alias}")
        kept = {one for one in found.aliases if one == "latest" or _is_version(one)}
        if {*found.aliases} != kept | wanted:
            found.aliases = sorted(kept | wanted)
            found.save()


def _lacking(run: Run, wanted: Mapping[str, int]) -> dict[str, int]:
    """The files that the server does not have in full."""
    there = media_on_server(run)
    return {name: size for name, size in wanted.items() if there.get(name) != size}


def _lacking_later(run: Run, wanted: Mapping[str, int]) -> dict[str, int]:
    """The files that the server still lacks after a while."""
    deadline_s = time.monotonic() + _LISTED_S
    while lacking := _lacking(run, wanted):
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S / 4)
    return lacking


def _refusal(run: Run, folder: Path, name: str) -> str:
    """Upload a file; why the server does not take it, empty where it does."""
    try:
        # What was taken and is not listed yet is an IndexError.
        with ended_if_hanging(), contextlib.suppress(IndexError):
            run.upload_file(str(folder / name), root=str(folder))
    except UNANSWERED as error:
        return f"{name}: {error}"
    return ""


def _is_version(alias: str) -> bool:
    return alias[:1] == "v" and alias[1:].isdigit()

"""What the owner of a run tells its ranks of it, and only to those that ask for it now.

A board outlives the processes that a launcher starts anew, and no two machines count those alike.
So who wants to join asks by a word that it has drawn itself, and is answered under that word: what
the dead have asked, or were told, is read by nobody.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.flight import boot_id
from opusclip_mlops.rendezvous import Board, FileBoard
from opusclip_mlops.sessions import process_started_s

LAST_PAUSE_S = 2.0
"""How long a rank waits at most for the answer of an owner that trains, in seconds."""

_ASK_AGAIN_S = 5.0
"""How often a rank looks whether its question is still there, in files."""

_FIRST_PAUSE_S, _PARTING_S = 0.02, 1.0
_KEEP_EVERY_S = 3600.0
_LASTING = {"ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "ENAMETOOLONG"}
_WORD_BYTES = 16
_WORD = re.compile(rb"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+\-]{0,255}")


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a run says of it; nothing in it is secret.

    `attempt` counts how often the owner began it anew, and `launched` is how often its launcher
    says so; `ranks` are the most that it ever had. `journal_dir` is the owner's, which is `folder`
    (device and inode) on the machine `host` since its `boot`. `ended_s` is when the owner left, in
    seconds since then.
    """

    local_id: str
    run_id: str | None
    run_name: str | None
    experiment_name: str | None
    experiment_id: str | None
    start_time_ms: int
    host: str
    journal_dir: str
    attempt: int
    launched: int = 0
    ranks: int = 1
    boot: str = ""
    folder: tuple[int, int] | None = None
    ended_s: float | None = None


def said(board: Board, name: str) -> Meeting | None:
    """What was said last under a name; None for nothing, or what is none of ours."""
    content = board.read(name)
    if content is None:
        return None
    try:
        found = msgspec.json.decode(content, type=Meeting)
    except (msgspec.DecodeError, UnicodeError):
        return None
    # They become names of folders.
    is_safe = all(_NAME.fullmatch(one) for one in (found.local_id, found.run_id or "none"))
    return found if is_safe else None


def folder_of(journal_dir: Path) -> tuple[int, int] | None:
    """What tells a folder from all others of this machine; None where it is not there."""
    with contextlib.suppress(OSError, ValueError):
        about = journal_dir.stat()
        return about.st_dev, about.st_ino
    return None


def seen_here(found: Meeting, journal_dir: Path) -> Path | None:
    """Where this process has the owner's journal; None where that is on another machine's disk.

    Machines may have one name, and a path may mean another disk in each of them.
    """
    if (found.host, found.boot) != (socket.gethostname(), boot_id()):
        return None
    both = (Path(found.journal_dir), journal_dir)
    return next((one for one in both if found.folder and folder_of(one) == found.folder), None)


def may_pass(fault: OSError) -> bool:
    """Whether a fault of the disk may be gone soon, as one of a server of files."""
    return errno.errorcode.get(fault.errno or 0) not in _LASTING


class Asking:
    """A rank's question which run it is; asked with the first look, and again where it got lost.

    Args:
        board: Where the ranks meet.
        name: What the run is called there.
    """

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name
        self._word = secrets.token_hex(_WORD_BYTES)
        self._has_asked = False
        self._asked_s = 0.0

    def look(self) -> Meeting | None:
        """What the owner has answered; None as long as it has not.

        One that has left while this process lived has left the answer.

        Raises:
            ConfigError: the board does not answer.
            OSError: its disk has a fault; maybe one that passes.
        """
        if not self._has_asked:
            self._ask()
        answer = _answer(self._name, self._word)
        if found := said(self._board, answer):
            # One that stays is read by nobody else.
            with contextlib.suppress(OSError):
                self._board.write(answer, None)
            return found
        if time.monotonic() - self._asked_s >= _ASK_AGAIN_S:
            self._ask_again()
        left = self.left()
        is_ours = left and left.boot == boot_id() and left.ended_s
        return left if is_ours and is_ours > process_started_s(os.getpid()) else None

    def _ask(self) -> None:
        # A line of its own: what stands before it may be half a word, as of a full disk.
        self._board.append(_asks(self._name), f"\n{self._word}".encode())
        self._has_asked, self._asked_s = True, time.monotonic()

    def _ask_again(self) -> None:
        """Ask once more where the question is gone: over NFS others may write at the same place."""
        self._asked_s = time.monotonic()
        if isinstance(self._board, FileBoard):
            # A fault of the disk passes.
            with contextlib.suppress(OSError):
                asked = _WORD.findall(self._board.read(_asks(self._name)) or b"")
                if self._word.encode() not in asked:
                    self._ask()

    def left(self) -> Meeting | None:
        """What the last owner was that has left; maybe that of an earlier attempt."""
        return said(self._board, _over(self._name))


@dataclass
class Answering:
    """An owner's answers, by a thread of its own; they end with `leave`, or with the board.

    Args:
        board: Where the ranks meet.
        name: What the run is called there.
        meeting: What they are told.
        may_ask: Whether there are others.
        keep: Done once an hour.
    """

    board: Board
    name: str
    meeting: Meeting
    may_ask: bool
    keep: Callable[[], None]
    _leaves: threading.Event = field(default_factory=threading.Event)
    _answered: set[bytes] = field(default_factory=set)
    _news_s: float = field(default_factory=time.monotonic)
    _kept_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="opusclip-answers", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Answer nobody any more, and say so; a store that hangs is not waited for."""
        self._leaves.set()
        self._thread.join(_PARTING_S)

    def _run(self) -> None:
        # Where the board is gone nobody asks; an interpreter that ends begins no thread.
        with contextlib.suppress(ConfigError, OSError, RuntimeError):
            while not self._leaves.wait(self._pause_s()):
                # A fault of the disk passes; what was asked is answered with the next look.
                with contextlib.suppress(OSError):
                    self._look()
            self._look()
            over = msgspec.structs.replace(
                self.meeting, ended_s=time.clock_gettime(time.CLOCK_BOOTTIME)
            )
            self.board.write(_over(self.name), msgspec.json.encode(over))

    def _pause_s(self) -> float:
        """Short while ranks may be about to come, and long once nobody has for a while."""
        if not self.may_ask:
            return _KEEP_EVERY_S
        quiet_s = time.monotonic() - self._news_s
        return min(max(_FIRST_PAUSE_S, quiet_s / 10), LAST_PAUSE_S)

    def _look(self) -> None:
        asked = (self.board.read(_asks(self.name)) if self.may_ask else None) or b""
        said_now = msgspec.json.encode(self.meeting)
        # Not by its place: a file may be begun anew, and a word stand where another was. What was
        # asked last first: most before it may be of the dead.
        for word in reversed(_WORD.findall(asked)):
            if word not in self._answered:
                self.board.write(_answer(self.name, word.decode()), said_now)
                self._answered.add(word)
                self._news_s = time.monotonic()
        if time.monotonic() - self._kept_s >= _KEEP_EVERY_S:
            self._kept_s = time.monotonic()
            self.keep()


def _asks(name: str) -> str:
    return f"{name}/asks"


def _answer(name: str, word: str) -> str:
    return f"{name}/answer/{word}"


def _over(name: str) -> str:
    return f"{name}/over"

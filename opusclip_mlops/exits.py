"""How a process ends, noted while it does.

`ExitWatch` sees what Python sees: an exception nobody caught, `sys.exit`. `DeathNotes` are files
that the C library and `faulthandler` write where Python runs no more: the signal that killed the
process with the lines it was at, and the exit code of a process that ends by itself.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from opusclip_mlops.errors import RecordError
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line, readable

SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU")
"""Signals that kill a process which does not handle them, and are noted before they do."""

FATAL = "fatal"
"""Ends the name of the note of a crash inside the interpreter or a library."""

_TRACEBACK_CHARACTERS = 100_000
_TAG_CHARACTERS = 7500
_OURS = "opusclip-"
_STATUSES = ("FINISHED", "FAILED", "KILLED")
_NO_FAULTS = (StopIteration, StopAsyncIteration, GeneratorExit)

EXIT_CODE = "exit"
"""Ends the name of the note that holds the exit code, as one byte."""


class ExitWatch:
    """Notes the exception that ends the process, `sys.exit` with a code included."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._hook, self._exit = sys.excepthook, sys.exit
        self._own_hook, self._own_exit = self._note_exception, self._note_exit
        sys.excepthook = self._own_hook
        sys.exit = self._own_exit

    def release(self) -> None:
        """Put back what was there before, unless somebody has put something else in its place."""
        if sys.excepthook is self._own_hook:
            sys.excepthook = self._hook
        if sys.exit is self._own_exit:
            sys.exit = self._exit

    def _note_exception(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        self.error = error
        self._hook(kind, error, traceback)

    def _note_exit(self, status: Any = None, /) -> NoReturn:
        # In another thread it ends that thread only.
        if threading.current_thread() is threading.main_thread():
            self.error = SystemExit(status)
        self._exit(status)


def end_of(error: BaseException | None) -> tuple[str, str]:
    """How an exception ends a run, FINISHED, FAILED or KILLED, and the reason in one line."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED", ""
    reason = one_line(": ".join(filter(None, (type(error).__name__, _words_of(error)))))
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason


def _words_of(error: BaseException) -> str:
    """What an exception says of itself; one that fails in it still ends its run."""
    words: list[str] = []
    fault = attempted(lambda: words.append(str(error)))
    return f"(no words: {type(fault).__name__})" if fault else words[0]


def end_declared(status: str | None) -> tuple[str, str, str]:
    """Status, reason and lines of a run that is closed; None is what its own lines show.

    An exception in flight, as in a `finally` that closes the run, makes it FAILED or KILLED; its
    lines are those of a run that is closed so by name, too.

    Raises:
        RecordError: an unknown status.
    """
    error = None if isinstance(sys.exception(), _NO_FAULTS) else sys.exception()
    if status is None:
        return *end_of(error), traceback_of(error)
    if status not in _STATUSES:
        raise RecordError(f"status must be FINISHED, FAILED or KILLED, not {status!r}")
    return status, "", "" if status == "FINISHED" else traceback_of(error)


def traceback_of(error: BaseException | None) -> str:
    """The lines an exception came through, without credentials, at most 100,000 characters.

    Empty for an exit that is asked for. Of a long one the end is kept: it names the fault.
    """
    if error is None or isinstance(error, SystemExit):
        return ""
    return _end(readable("".join(traceback.format_exception(error))), _TRACEBACK_CHARACTERS)


def as_tag(lines: str) -> str:
    """The lines as long as a tag may be: of long ones the end."""
    return _end(lines, _TAG_CHARACTERS)


def stacks_now() -> str:
    """Where each thread of this process is, but those of ours, which wait."""
    names = {one.ident: one.name for one in threading.enumerate()}
    threads = [(names.get(ident, str(ident)), one) for ident, one in sys._current_frames().items()]
    return "\n".join(
        f"Thread {name} (most recent call last):\n"
        + readable("".join(traceback.format_stack(frame)))
        for name, frame in threads
        if not name.startswith(_OURS)
    )


def _end(text: str, most_characters: int) -> str:
    return text if len(text) <= most_characters else f"…{text[-most_characters:]}"


class DeathNotes:
    """The notes of this process in a run's folder, `<session>.<kind>`; harmless where impossible.

    A process has one set of them; each further run it tracks gets links to the same files.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self._is_open = True
        _process.open_count += 1
        for kind, begin in _process.kinds().items():
            with contextlib.suppress(OSError):
                _process.put(kind, folder / f"{session}.{kind}", begin)

    def release(self) -> None:
        """Stop taking notes, once no run of this process needs them."""
        if self._is_open:
            self._is_open = False
            _process.open_count -= 1
            if not _process.open_count:
                _process.stop_signals()


class _ProcessNotes:
    """The one set of notes of this process."""

    def __init__(self) -> None:
        self.open_count = 0
        self._files: dict[str, BinaryIO] = {}
        self._fatal_is_ours = False
        self._stream: int | None = None
        self._takes_exit_code = False
        os.register_at_fork(after_in_child=self.forget)

    def kinds(self) -> dict[str, Callable[[Path], None]]:
        """The kinds of notes that can be taken now, and what begins each."""
        found: dict[str, Callable[[Path], None]] = {}
        found |= {name: self._begin_signal for name in SIGNALS if self._is_free(name)}
        if self._fatal_is_ours or not faulthandler.is_enabled():
            found[FATAL] = self._begin_fatal
        if hasattr(_LIBC, "on_exit"):
            found[EXIT_CODE] = self._begin_exit_code
        return found

    def put(self, kind: str, path: Path, begin: Callable[[Path], None]) -> None:
        """Begin a note at this path, or link the one that is being taken."""
        descriptor = self._descriptor(kind)
        try:
            # Whichever of its names is left: earlier runs' folders may be gone. It follows the
            # symlink only where it is given a `src_dir_fd`, which an absolute path makes no use of.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
        except OSError:
            # On another file system it takes none: that is better than taking them from a run.
            if descriptor < 0 or not os.fstat(descriptor).st_nlink:
                begin(path)

    def stop_signals(self) -> None:
        """Take no more notes of signals and crashes."""
        for name in [kind for kind in self._files if kind != FATAL]:
            # A handler that was installed since stands in the place of ours, and stays there.
            if _is_default(name):
                faulthandler.unregister(getattr(signal, name))
        if self._fatal_is_ours:
            faulthandler.disable()
        for file in self._files.values():
            file.close()
        self._files, self._fatal_is_ours = {}, False

    def forget(self) -> None:
        """In a forked child: its death is not its parent's."""
        self.stop_signals()
        self.open_count, self._takes_exit_code = 0, False
        if self._stream is not None:
            self._point_stream_at(os.devnull, os.O_WRONLY)

    def _descriptor(self, kind: str) -> int:
        """The open file of a kind of notes, -1 where none is being taken."""
        if kind == EXIT_CODE:
            return int(_LIBC.fileno(self._stream)) if self._takes_exit_code else -1
        return self._files[kind].fileno() if kind in self._files else -1

    def _is_free(self, name: str) -> bool:
        return name in self._files or _is_default(name)

    def _begin_signal(self, path: Path) -> None:
        name = path.suffix[1:]
        file, number = _private(path), getattr(signal, name)
        if not _is_default(name):
            file.close()
            return
        # An earlier one may stand behind a handler that has come and gone.
        faulthandler.unregister(number)
        faulthandler.register(number, file=file, all_threads=False, chain=True)
        self._replace(name, file)

    def _begin_fatal(self, path: Path) -> None:
        file = _private(path)
        # While other threads run, walking their frames too crashes one such end in eight.
        faulthandler.enable(file=file, all_threads=False)
        self._fatal_is_ours = True
        self._replace(FATAL, file)

    def _replace(self, kind: str, file: BinaryIO) -> None:
        if kind in self._files:
            self._files[kind].close()
        self._files[kind] = file

    def _begin_exit_code(self, path: Path) -> None:
        """Let the C library write the exit code, the one thing Python tells nobody at its end."""
        if self._stream is None:
            _private(path).close()
            self._stream = _LIBC.fopen(os.fsencode(path), b"ae")
            if self._stream is not None:
                _LIBC.on_exit(_LIBC.fputc, self._stream)
        else:
            self._point_stream_at(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._takes_exit_code = self._stream is not None

    def _point_stream_at(self, path: Path | str, flags: int) -> None:
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, _LIBC.fileno(self._stream), inheritable=False)
        os.close(descriptor)


def _is_default(name: str) -> bool:
    return signal.getsignal(getattr(signal, name)) is signal.SIG_DFL


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _c_library() -> Any:
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    library.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.fileno.argtypes = [ctypes.c_void_p]
    if hasattr(library, "on_exit"):
        library.on_exit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


_LIBC = _c_library()
_process = _ProcessNotes()

"""How a process ends, noted while it does: by an exception nobody caught, or by an exit code."""

import sys
from types import TracebackType
from typing import Any, NoReturn


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
        self.error = SystemExit(status)
        self._exit(status)

"""What of a report could not be read, and asking so that the rest is read all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import MaxRetryError

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, reason_of

_Answer = TypeVar("_Answer")
_NAME_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A part of a report that could not be read.

    Attributes:
        run: What its run is called, "" for a part of several.
        part: Which, on one line.
        reason: Why, on one line.
    """

    run: str
    part: str
    reason: str

    @property
    def line(self) -> str:
        """The part and the reason, and the run where there are several."""
        return ": ".join(filter(None, (self.run, self.part, self.reason)))


class Asking:
    """Asks for the parts of a run, and notes those that cannot be read.

    Where the server gave no answer at all it is not waited for again.

    Args:
        called: What the run is called.
        before: Who asked before, and may have waited in vain.
    """

    def __init__(self, called: str = "", *, before: Asking | None = None) -> None:
        self.unread: list[Unread] = []
        self.silent: list[str] = before.silent if before else []
        self._called = called

    def part(self, name: str, read: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
        """What `read` gives, or `otherwise` where MLflow, a store or a broken file refuses."""
        if self.silent:
            self.miss(name, self.silent[0])
            return otherwise
        try:
            return read()
        except _faults() as error:
            if silent := _silent(error):
                self.silent.append(silent)
            self.miss(name, silent or one_line(reason_of(error)))
            return otherwise

    def miss(self, name: str, reason: str) -> None:
        """Note that a part could not be read."""
        part = one_line(name, at_most=_NAME_CHARACTERS)
        self.unread.append(Unread(run=self._called, part=part, reason=reason))


def _silent(error: BaseException) -> str:
    """That a server gave no answer, however often it was asked; "" where it did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.Timeout) or _gave_up(cause):
            request = getattr(cause, "request", None)
            place = urlsplit(getattr(request, "url", None) or "")
            port = f":{place.port}" if place.port else ""
            return f"no answer from {place.scheme}://{place.hostname}{port}"
        cause = cause.__cause__ or cause.__context__
    return ""


def _gave_up(error: BaseException) -> bool:
    is_away = isinstance(error, requests.exceptions.ConnectionError)
    return is_away and bool(error.args) and isinstance(error.args[0], MaxRetryError)


def _faults() -> tuple[type[Exception], ...]:
    """What reading a part may raise, asked when it has: a store's client is loaded on the way."""
    return OpusclipError, *asking_faults()

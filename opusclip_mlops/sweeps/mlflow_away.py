"""MLflow away while trials are run: it is waited for, and what it refuses is told at once."""

import time
from collections.abc import Callable
from typing import TypeVar

from opusclip_mlops.errors import RegistryError

_PAUSE_S = 1.0

_Answer = TypeVar("_Answer")


class MlflowAway(Exception):
    """MLflow has not answered for long: that is no fault of the trial."""


def waited_for(
    call: Callable[[], _Answer], *, wait_s: float, meanwhile: Callable[[], object]
) -> _Answer:
    """What MLflow says, which may be away for a while.

    Args:
        call: Asks it, `patiently`.
        wait_s: For how long it may be away.
        meanwhile: Called before each further try; what it raises ends the waiting.

    Raises:
        MlflowAway: it was away for longer.
        RegistryError: it refuses.
    """
    from opusclip_mlops.patience import without_waiting

    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            with without_waiting():
                return call()
        except RegistryError as error:
            if _is_refused(error):
                raise
            if time.monotonic() > deadline_s:
                raise MlflowAway(str(error)) from None
        meanwhile()
        time.sleep(_PAUSE_S)


def _is_refused(error: RegistryError) -> bool:
    """Whether it is of no use to ask again."""
    from opusclip_mlops.refusals import is_for_good

    return isinstance(error.__cause__, Exception) and is_for_good(error.__cause__)

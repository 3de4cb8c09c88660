"""Whether a mirror's rows, which keep their names, may have been given other names than now."""

from collections.abc import Mapping
from typing import Any

from opusclip_mlops.mirror_names import Names
from opusclip_mlops.records import SYSTEM_PREFIX, Metrics, Row
from opusclip_mlops.rewinding import GOES_BACK

_UNKNOWN = 2**63


class Reach:
    """How far the rows go that a mirror was given, and whether training went back behind one.

    What is given later has the name of then; only what was there before may have another one now.

    Args:
        state: What `state` said, of a part of the run before; {} at first.
        last_step: The highest step that the run had before this mirror was begun.
    """

    def __init__(self, state: Mapping[str, Any], *, last_step: int) -> None:
        # A version that did not note it may have given anything.
        self._step = int(state.get("reached", _UNKNOWN if state else last_step))
        self._starts_ms: set[int] = set(state.get("generations", ()))
        self._goes_back = bool(state.get(GOES_BACK))

    def learn(self, names: Names) -> None:
        """Take in the generations that are known by now."""
        last_ms = max(self._starts_ms, default=0)
        for one in names.generations:
            if one.start_ms not in self._starts_ms:
                # One in between gives the numbers of later ones to others.
                self._goes_back |= one.after_step < self._step or one.start_ms < last_ms
                self._starts_ms.add(one.start_ms)

    def note(self, record: Row) -> None:
        """Take in a row that was given."""
        if isinstance(record, Metrics) and all(
            key.startswith(SYSTEM_PREFIX) for key in record.values
        ):
            return
        self._step = max(self._step, record.step)

    def note_before(self, names: Names) -> None:
        """Take in a row that was there before: which name it was given is not known."""
        self._goes_back |= bool(names.generations)

    def state(self) -> dict[str, Any]:
        """The same as JSON values."""
        known = {"reached": self._step, "generations": sorted(self._starts_ms)}
        return {**known, GOES_BACK: self._goes_back}

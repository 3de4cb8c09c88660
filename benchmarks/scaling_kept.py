"""What scaling.json holds, by part and by words; and how it is written in a table."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import number

Row = Sequence[str]
NONE = "—"


class Kept:
    """The parts of the file."""

    def __init__(self, path: Path) -> None:
        self._parts: dict[str, Any] = json.loads(path.read_text())
        self._figures = {
            (part, one["what"]): one
            for part, kept in self._parts.items()
            for one in kept["figures"]
        }

    @property
    def parts(self) -> list[str]:
        """Their names."""
        return [*self._parts]

    def machine(self, part: str) -> dict[str, Any]:
        """Where and when a part was measured."""
        found: dict[str, Any] = self._parts[part]["machine"]
        return found

    def figure(self, part: str, what: str) -> dict[str, Any]:
        """All that is kept of a figure.

        Raises:
            KeyError: it was not measured.
        """
        found: dict[str, Any] = self._figures[part, what]
        return found

    def value(self, part: str, what: str) -> float:
        """A figure.

        Raises:
            KeyError: it was not measured.
        """
        return float(self.figure(part, what)["ours"])

    def has(self, part: str, what: str) -> bool:
        """Whether there is such a figure."""
        return (part, what) in self._figures

    def words(self, part: str) -> Iterator[str]:
        """What a part's figures are called."""
        return (one["what"] for one in self._parts[part]["figures"])


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}"


def share(value: float) -> str:
    """A share in hundredths."""
    return f"{100 * value:.0f} %"


def error(simulated: float, measured: float) -> str:
    """By how much a simulation is off, with its sign: + says too much."""
    return f"{100 * (simulated / measured - 1):+.0f} %"


def seconds(value: float) -> str:
    """A time to a tenth of a second."""
    return f"{value:.1f} s"


def cell(value: float, unit: str = "") -> str:
    """A number, and its unit."""
    return f"{number(value)} {unit}".strip()

"""How a metric went in several runs: a row of those that measured it alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from opusclip_mlops.curves import (
    At,
    By,
    Curve,
    Difference,
    Path,
    common_span,
    difference,
    mean_over,
    path_of,
)
from opusclip_mlops.errors import PassportError
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import Passport, differences
from opusclip_mlops.policy import better_of

FIRST = "A"
"""What the run is called that the others are compared with."""

_UNKNOWN = "passport: it cannot be read"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a metric went in one run.

    Attributes:
        label: The run: "A", "B" and so on.
        points: How many count.
        not_finite: How many NaN or infinite ones are left out.
        superseded: How many are left out that training went back behind.
        ends_finite: Whether the last point of all is a number.
        first: The point of the lowest step.
        last: The point of the highest step.
        lowest: The least value, where it came first.
        highest: The greatest.
        best: Whichever of these two is better, None where the metric's name does not say it.
        mean: The area under the curve over the common span, divided by the span's length.
        differences: To A, of first, last, lowest, highest, best and mean, as far as both have
            them.
        note: Why first, lowest, highest, best and mean are not given, "" where they are.
    """

    label: str
    points: int
    not_finite: int
    superseded: int
    ends_finite: bool
    first: At | None = None
    last: At | None = None
    lowest: At | None = None
    highest: At | None = None
    best: At | None = None
    mean: float | None = None
    differences: Mapping[str, Difference] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric of the runs that measured it alike.

    Attributes:
        key: Its name.
        better: "lower" or "higher" by the words of its name, "" where they do not say.
        runs: Those that have it, in their order.
        span: Over which the means are: steps, or seconds since each run began; None for none.
        apart: In what these runs measured otherwise than those of the key's first row.
    """

    key: str
    better: str
    runs: tuple[Measured, ...]
    span: tuple[float, float] | None = None
    apart: tuple[str, ...] = ()


def rows_of(
    key: str,
    curves: Mapping[str, Curve],
    files: Mapping[str, PassportFiles],
    *,
    by: By,
    starts: Mapping[str, int],
) -> Iterator[MetricRow]:
    """A row of the runs that measured a metric alike, for each way it was measured in.

    Args:
        key: The metric's.
        curves: By the runs' labels; one run at least.
        files: The runs' passports; a run that is not there is taken to have none.
        by: Over what the means are.
        starts: When each run began, Unix milliseconds.

    Raises:
        MlflowException, OSError, or another artifact store's own: it does not answer now.
    """
    known = {label: _Passports.of(key, one, files.get(label)) for label, one in curves.items()}
    groups: list[list[str]] = []
    for label, passports in known.items():
        alike = (one for one in groups if not passports.unlike(known[one[0]]))
        group = next(alike, None)
        if group is None:
            groups.append(group := [])
        group.append(label)
    for group in groups:
        row = _row(key, {label: curves[label] for label in group}, known, by=by, starts=starts)
        yield replace(row, apart=known[groups[0][0]].unlike(known[group[0]]))


@dataclass(frozen=True)
class _Passports:
    """How a run measured a metric: its last value, and whether others of it otherwise."""

    last: Passport | None = None
    within: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def of(cls, key: str, curve: Curve, files: PassportFiles | None) -> _Passports:
        shown = [one for one in (curve.last, curve.first, curve.lowest, curve.highest) if one]
        if files is None or not shown:
            return cls()
        try:
            last, *others = (
                files.of(key, step=one.step, timestamp_ms=one.timestamp_ms) for one in shown
            )
        except PassportError as error:
            return cls(problem=f"{_UNKNOWN}: {error}")
        return cls(last, next(filter(None, (differences(last, one) for one in others)), ()))

    def unlike(self, other: _Passports) -> tuple[str, ...]:
        """In what these are not alike; nobody's is like one that cannot be read."""
        if self is other:
            return ()
        problems = tuple(one.problem for one in (self, other) if one.problem)
        return problems or differences(self.last, other.last)


def _row(
    key: str,
    curves: Mapping[str, Curve],
    known: Mapping[str, _Passports],
    *,
    by: By,
    starts: Mapping[str, int],
) -> MetricRow:
    whole = {label for label in curves if not known[label].within}
    paths = {
        label: path_of(one, by=by, start_ms=starts[label])
        for label, one in curves.items()
        if label in whole and len(one)
    }
    span = common_span(list(paths.values()))
    better = better_of(key)
    measured = [
        _measured(label, one, known[label], better, paths.get(label), span)
        for label, one in curves.items()
    ]
    first = next((one for one in measured if one.label == FIRST), None)
    return MetricRow(
        key=key,
        better=better,
        runs=tuple(_beside(one, first) for one in measured),
        span=span,
    )


def _measured(
    label: str,
    curve: Curve,
    passports: _Passports,
    better: str,
    path: Path | None,
    span: tuple[float, float] | None,
) -> Measured:
    plain = Measured(
        label=label,
        points=len(curve),
        not_finite=curve.not_finite,
        superseded=curve.superseded,
        ends_finite=curve.ends_finite,
        last=curve.last,
    )
    if passports.within:
        return replace(plain, note=f"its own values are unlike: {'; '.join(passports.within)}")
    return replace(
        plain,
        first=curve.first,
        lowest=curve.lowest,
        highest=curve.highest,
        best={"lower": curve.lowest, "higher": curve.highest}.get(better),
        mean=mean_over(path, span) if path is not None and span else None,
    )


def _beside(one: Measured, first: Measured | None) -> Measured:
    """The same, with its differences to A."""
    if first is None or one is first:
        return one
    found = {}
    for name in ("first", "last", "lowest", "highest", "best"):
        mine, theirs = getattr(one, name), getattr(first, name)
        if mine and theirs:
            found[name] = difference(mine.value, theirs.value)
    if one.mean is not None and first.mean is not None:
        found["mean"] = difference(one.mean, first.mean)
    return replace(one, differences=found)

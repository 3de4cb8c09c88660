"""The curves of a run as charts, by the first word of their keys; those of machines are folded."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opusclip_mlops.curves import Curve
from opusclip_mlops.downsampling import thinned
from opusclip_mlops.page_charts import Series, chart, notes_of, table
from opusclip_mlops.records import SYSTEM_PREFIX
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.wording import FIRST, last_of, plain, step_of

MOST_CHARTS = 240
"""How many charts a report has, of all its runs together: 6 MB of the longest of them."""

_MOST_SHOWN, _FEWEST_SHOWN, _ALL_SHOWN = 1500, 200, 150_000
_FEWEST_CHARTS, _MOST_BRANCHES, _FEWEST_OF_BRANCH = 8, 30, 20
_MOST_POINTS = 200
_FOLDED = ("system", "performance", "profiling")
_OTHERS = "other"


@dataclass(frozen=True, kw_only=True)
class _Room:
    """How much of curves a report holds.

    Attributes:
        charts: How many a run has at most.
        points: How many a curve has at most; what is thinned keeps its lows and highs.
    """

    charts: int
    points: int

    @classmethod
    def of(cls, runs: int, curves: int) -> _Room:
        """For so many runs, with so many curves each."""
        charts = max(_FEWEST_CHARTS, MOST_CHARTS // max(1, runs))
        drawn = max(1, runs * min(curves, charts))
        points = max(_FEWEST_SHOWN, min(_MOST_SHOWN, _ALL_SHOWN // drawn))
        return cls(charts=charts, points=points)


def curves_html(
    read: RunRead, *, runs: int = 1, wanted: Callable[[str], bool] = lambda _: True
) -> str:
    """The curves of a run, as many as a report of so many runs has room for.

    Args:
        read: The run.
        runs: How many runs the report has.
        wanted: Whether the curve of a key is drawn.
    """
    keys = sorted(filter(wanted, read.curves))
    drawn = [key for key in keys if len(read.curves[key]) > 1 or read.branches.get(key)]
    groups = _groups(read, drawn, _Room.of(runs, len(drawn))) if drawn else ""
    return groups + _points(read, [key for key in keys if key not in set(drawn)])


def _points(read: RunRead, keys: Sequence[str]) -> str:
    """The metrics that make no line: one point, or no number at all."""
    if not keys:
        return ""
    rows = [_point(key, read.curves[key]) for key in keys[:_MOST_POINTS]]
    more = len(keys) - _MOST_POINTS
    said = notes_of([f"{more:,} more have one point at most"] if more > 0 else [])
    shown = table(("metric", "value", "at step", ""), rows)
    return f"<h3>One point, or none</h3>\n{shown}{said}"


def _point(key: str, curve: Curve) -> tuple[str, ...]:
    return plain(key), last_of(curve), step_of(curve.last), "".join(_missing(curve))


def _series(label: str, curve: Curve, most: int, *, is_faded: bool = False) -> Series:
    """A curve over its steps, thinned for the eye."""
    rows = curve.rows
    shown = thinned(rows["step"], rows["value"], most=most)
    return Series(
        label=label, x=shown.x.tolist(), y=shown.y.tolist(), of=shown.of, is_faded=is_faded
    )


def _x_label(key: str) -> str:
    """What the steps of a metric are."""
    return "seconds since the start" if key.startswith(SYSTEM_PREFIX) else "step"


def _missing(curve: Curve) -> Iterator[str]:
    """What a curve cannot show."""
    if curve.not_finite:
        last = "" if curve.ends_finite else ", the last point among them"
        yield f"{curve.not_finite:,} NaN or infinite left out{last}"


def _groups(read: RunRead, keys: Sequence[str], room: _Room) -> str:
    """The charts by group; those a reader comes for stand first and open."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        before, slash, _ = key.partition("/")
        groups.setdefault(before if slash else _OTHERS, []).append(key)
    order = sorted(groups, key=_rank)
    left, parts = room.charts, []
    for name in order:
        parts.append(_group(read, name, groups[name][:left], room))
        left = max(0, left - len(groups[name]))
    return notes_of([*_began_anew(read), *_not_drawn(len(keys) - room.charts)]) + "".join(parts)


def _rank(name: str) -> tuple[bool, bool, int, str]:
    """Where a group stands: what validates, what trains, the others, what machines do."""
    first = FIRST.index(name) if name in FIRST else len(FIRST)
    return name in _FOLDED, name == _OTHERS, first, name


def _not_drawn(more: int) -> Iterator[str]:
    if more > 0:
        yield f"{more:,} metrics are not drawn: --metric PATTERN picks"


def _group(read: RunRead, name: str, keys: Sequence[str], room: _Room) -> str:
    if not keys:
        return ""
    is_open = "" if name in _FOLDED else " open"
    charts = "".join(_chart(read, key, room) for key in keys)
    title = html.escape(f"{plain(name)} ({len(keys)})")
    shown = f'<div class="charts">{charts}</div>'
    return f"<details{is_open}><summary>{title}</summary>\n{shown}</details>\n"


def _chart(read: RunRead, key: str, room: _Room) -> str:
    """A metric as it is now, and what was left of it, which has as many points in all."""
    curve, before = read.curves[key], read.branches.get(key, ())
    shown = before[-_MOST_BRANCHES:]
    most = max(_FEWEST_OF_BRANCH, room.points // max(1, len(shown)))
    left = [_series(read.called, one, most, is_faded=True) for one in shown]
    notes = [*_missing(curve), *_older(len(before) - len(shown))]
    now = _series(read.called, curve, room.points)
    return chart(plain(key), [*left, now], x_label=_x_label(key), notes=notes)


def _older(more: int) -> Iterator[str]:
    if more > 0:
        yield f"{more:,} older branches that training left are not drawn"


def _began_anew(read: RunRead) -> Iterator[str]:
    for one in read.generations:
        name = plain(one.checkpoint)
        yield (
            f"Training went on from checkpoint {name} after step {one.after_step:,}: what was "
            "logged of later steps before that is drawn faded."
        )

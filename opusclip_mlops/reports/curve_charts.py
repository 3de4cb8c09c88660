"""The curves of a run as charts, by the first word of their keys; those of machines are folded."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from opusclip_mlops.curves import Curve
from opusclip_mlops.downsampling import thinned
from opusclip_mlops.page_charts import Series, chart, notes_of
from opusclip_mlops.records import SYSTEM_PREFIX
from opusclip_mlops.reports.reading import RunRead
from opusclip_mlops.reports.wording import plain

MOST_CHARTS = 240
"""How many charts a report has, of all its runs together: 6 MB of the longest of them."""

_MOST_SHOWN, _FEWEST_SHOWN, _ALL_SHOWN = 1500, 200, 150_000
_FEWEST_CHARTS = 8
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


def curves_html(read: RunRead, *, runs: int = 1) -> str:
    """The curves of a run, as many as a report of so many runs has room for."""
    return _groups(read, _Room.of(runs, len(read.curves))) if read.curves else ""


def _series(label: str, curve: Curve, room: _Room, *, is_faded: bool = False) -> Series:
    """A curve over its steps, thinned for the eye."""
    rows = curve.rows
    shown = thinned(rows["step"], rows["value"], most=room.points)
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


def _groups(read: RunRead, room: _Room) -> str:
    """The charts by group; those a reader comes for stand first and open."""
    groups: dict[str, list[str]] = {}
    for key in sorted(read.curves):
        before, slash, _ = key.partition("/")
        groups.setdefault(before if slash else _OTHERS, []).append(key)
    order = sorted(groups, key=lambda one: (one in _FOLDED, one == _OTHERS, one))
    left, parts = room.charts, []
    for name in order:
        parts.append(_group(read, name, groups[name][:left], room))
        left = max(0, left - len(groups[name]))
    more = len(read.curves) - room.charts
    said = [f"{more:,} metrics are not drawn: --metric PATTERN picks"] if more > 0 else []
    return notes_of([*_began_anew(read), *said]) + "".join(parts)


def _group(read: RunRead, name: str, keys: Sequence[str], room: _Room) -> str:
    if not keys:
        return ""
    is_open = "" if name in _FOLDED else " open"
    charts = "".join(_chart(read, key, room) for key in keys)
    title = html.escape(f"{plain(name)} ({len(keys)})")
    shown = f'<div class="charts">{charts}</div>'
    return f"<details{is_open}><summary>{title}</summary>\n{shown}</details>\n"


def _chart(read: RunRead, key: str, room: _Room) -> str:
    curve = read.curves[key]
    now = _series(read.called, curve, room)
    before = read.branches.get(key, ())
    left = [_series(read.called, one, room, is_faded=True) for one in before]
    notes = list(_missing(curve))
    return chart(plain(key), [*left, now], x_label=_x_label(key), notes=notes)


def _began_anew(read: RunRead) -> Iterator[str]:
    for one in read.generations:
        name = plain(one.checkpoint)
        yield (
            f"Training went on from checkpoint {name} after step {one.after_step:,}: what was "
            "logged of later steps before that is drawn faded."
        )

"""Charts and tables as HTML that needs no network: they are read without a script too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from opusclip_mlops.downsampling import note_of
from opusclip_mlops.page_text import as_json, escaped

COLOURS, DASHES = 10, 4
"""How many pages/report.css has: colours `c0` to `c9`, and dashes, none and `d1` to `d3`."""

LONGEST_SHORT = 40
"""How long a text of a table is at most that stands on one line: an id, a number, a state."""

_WIDTH, _HEIGHT = 720.0, 260.0
_TOP, _RIGHT, _BOTTOM = 10.0, 14.0, 40.0
_LETTER = 7.0
_TICKS, _ALONE = 5, 1e-5
_LARGEST = 1.7976931348623157e308
_DIGITS = 7
_WHOLE, _ALIKE = 2.0**64, 2.0**53  # above all steps; of all digits that floats have


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart.

    Attributes:
        label: What the legend calls it.
        x: Where its points are, finite and never falling.
        y: Their values, finite.
        of: How many points there were before it was thinned.
        is_faded: Whether it is drawn as what training went back behind.
        colour: Whose look it has, from 0: colours, then each of them dashed; by the place of its
            label when None.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    of: int
    is_faded: bool = False
    colour: int | None = None


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    notes: Sequence[str] = (),
    x_unit: str = "",
) -> str:
    """Lines over one axis as a `<figure>`: an SVG, its legend, its notes, the numbers under it.

    Where a series was thinned a note says so.

    Args:
        title: What is drawn, such as a metric's key.
        series: The lines; those without a point are in the legend only.
        x_label: What x is, with its unit.
        notes: Sentences that stand beneath.
        x_unit: Stands behind an x under the pointer, such as "hours"; "" for a step.
    """
    name, said = escaped(title), notes_of([*notes, note_of(*series)])
    shown = _drawn(name, series, said, x_label, x_unit) if _has_points(series) else _EMPTY + said
    return (
        f'<figure class="chart" data-key="{name}"><figcaption>{name}</figcaption>{shown}</figure>\n'
    )


def look_of(place: int) -> str:
    """The classes of what belongs to a run, by its place from 0: its colour and its dashes.

    The first ten runs have whole lines; the 41st looks as the first.
    """
    dash = place // COLOURS % DASHES
    return f"c{place % COLOURS}{f' d{dash}' if dash else ''}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, of which long ones may be wrapped; a row may lack its last cells."""
    head = "".join(f'<th scope="col">{escaped(one)}</th>' for one in headings)
    body = "".join(f"<tr>{''.join(map(cell_of, row))}</tr>\n" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        "</div>\n"
    )


def cell_of(text: str) -> str:
    """A cell of a table; a short text is never wrapped."""
    kind = ' class="long"' if len(text) > LONGEST_SHORT else ""
    return f"<td{kind}>{escaped(text)}</td>"


def facts(mapping: Mapping[str, str]) -> str:
    """Names and what is said of them, a line each; those of which nothing is said are left out."""
    said = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>\n"
        for name, text in mapping.items()
        if text
    )
    return f'<dl class="facts">{said}</dl>\n' if said else ""


def notes_of(notes: Iterable[str]) -> str:
    """Sentences beneath something, each once; "" for none."""
    said = "".join(f"<li>{escaped(one)}</li>" for one in dict.fromkeys(notes) if one)
    return f'<ul class="notes">{said}</ul>\n' if said else ""


_EMPTY = '<p class="none">no finite value to draw</p>'


def _has_points(series: Sequence[Series]) -> bool:
    return any(len(one.x) for one in series)


def _drawn(name: str, series: Sequence[Series], said: str, x_label: str, x_unit: str) -> str:
    """The drawing, its legend, what is said of it, and its numbers."""
    places, plot = _places(series), _Plot.of(series)
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{name} by {escaped(x_label)}">{plot.axes(x_label)}'
        f"{_lines(series, places, plot)}</svg>"
        f"{_legend(series, places)}{said}{_numbers(series, places, plot, x_unit)}"
    )


def _places(series: Sequence[Series]) -> list[int]:
    """Whose look each line has."""
    places: dict[str, int] = {}
    for one in series:
        places.setdefault(one.label, len(places))
    return [places[one.label] if one.colour is None else one.colour for one in series]


def _lines(series: Sequence[Series], places: Sequence[int], plot: _Plot) -> str:
    """What counts lies above what does not."""
    drawn = [one for one in zip(series, places, strict=True) if len(one[0].x)]
    return "".join(
        f'<path class="line {look_of(at)}{" faded" if one.is_faded else ""}" d="{plot.path(one)}"/>'
        for one, at in sorted(drawn, key=lambda pair: not pair[0].is_faded)
    )


def _legend(series: Sequence[Series], places: Sequence[int]) -> str:
    """Each label once; a faded line with another's label says nothing new."""
    shown = dict.fromkeys(zip((one.label for one in series), places, strict=True))
    items = "".join(f'<li class="{look_of(at)}">{escaped(label)}</li>' for label, at in shown)
    faded = '<li class="faded">faded: training went back behind it</li>'
    return f'<ul class="keys">{items}{faded if any(s.is_faded for s in series) else ""}</ul>'


def _numbers(series: Sequence[Series], places: Sequence[int], plot: _Plot, unit: str) -> str:
    """What the page's script needs to say which value is under the pointer."""
    held = {
        "x": [plot.x.low, plot.x.high],
        "y": [plot.y.low, plot.y.high],
        "box": [plot.left, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM],
        "unit": unit,
        "lines": [
            {
                "label": one.label + (" (left behind)" if one.is_faded else ""),
                "colour": at % COLOURS,
                "dash": at // COLOURS % DASHES,
                "x": [plot.x.short(float(value)) for value in one.x],
                "y": [plot.y.short(float(value)) for value in one.y],
            }
            for one, at in zip(series, places, strict=True)
        ],
    }
    return f'<script type="application/json">{as_json(held)}</script>'


@dataclass(frozen=True)
class _Axis:
    """From where to where values are drawn, low below high, and the round values between."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], *, least: float = 0.0) -> _Axis:
        """For these values; its ticks are so far apart at least. One value is its only tick."""
        low, high = min(values), max(values)
        if low / 2 < high / 2:
            return cls(low, high, tuple(_ticks(low, high, least)))
        room = abs(low) * 0.05 or 1.0
        return cls(max(low - room, -_LARGEST), min(high + room, _LARGEST), (low,))

    def part(self, value: float) -> float:
        """Where a value is, from 0 at the low end to 1; halves, as the span may be infinite."""
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def short(self, value: float) -> float | int:
        """A number of few digits that stays where it is drawn; whole ones, as steps are, exact."""
        if value.is_integer() and abs(value) < _WHOLE:
            return int(value)
        alike = abs(value) / (self.high - self.low)
        if alike >= _ALIKE:
            return value
        return float(f"{value:.{_DIGITS + max(0, _exponent(alike) + 1)}g}")


def _ticks(low: float, high: float, least: float) -> list[float]:
    """About five round values, or fewer that are so far apart at least."""
    step = max(least, _round_step((high / 2 - low / 2) / _TICKS * 2))
    if not step:
        return [low, high]
    begin, end = math.ceil(low / step), math.floor(high / step)
    # Beyond the digits of floats several are one number.
    every = (number * step for number in range(begin, min(end, begin + 2 * _TICKS) + 1))
    return list(dict.fromkeys(every))


def _round_step(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten; 0 below what floats hold."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 0.0
    return next((one * power for one in (1, 2, 5, 10) if one * power >= least), 0.0)


@dataclass(frozen=True)
class _Plot:
    """Brings values to their places in the drawing, which begins right of the longest number."""

    x: _Axis
    y: _Axis
    left: float

    @classmethod
    def of(cls, series: Sequence[Series]) -> _Plot:
        places = [float(one) for line in series for one in line.x]
        # Between two steps there is nothing.
        is_whole = all(one.is_integer() for one in places)
        x = _Axis.of(places, least=1.0 if is_whole else 0.0)
        y = _Axis.of([float(one) for line in series for one in line.y])
        return cls(x, y, 14 + _LETTER * max(map(len, tick_texts(y.ticks)), default=1))

    def path(self, one: Series) -> str:
        """A line; a point alone is a dot."""
        pairs = zip(one.x, one.y, strict=True)
        places = [f"{self._across(float(x)):.1f} {self._down(float(y)):.1f}" for x, y in pairs]
        return f"M{'L'.join(places)}" if len(places) > 1 else f"M{places[0]}h0.01"

    def axes(self, x_label: str) -> str:
        """The grid, the numbers at it, and what x is."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for tick, text in zip(self.y.ticks, tick_texts(self.y.ticks), strict=True):
            at = f"{self._down(tick):.1f}"
            parts.append(f'<line x1="{self.left:g}" x2="{right:g}" y1="{at}" y2="{at}"/>')
            parts.append(_text("y", f"{self.left - 6:g}", at, text))
        for tick, text in zip(self.x.ticks, tick_texts(self.x.ticks), strict=True):
            at = f"{self._across(tick):.1f}"
            parts.append(f'<line x1="{at}" x2="{at}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
            parts.append(_text("x", at, f"{bottom + 17:g}", text))
        parts.append(_text("x", f"{(self.left + right) / 2:g}", f"{_HEIGHT - 5:g}", x_label))
        return f'<g class="axes">{"".join(parts)}</g>'

    def _across(self, x: float) -> float:
        return self.left + (_WIDTH - _RIGHT - self.left) * self.x.part(x)

    def _down(self, y: float) -> float:
        return _TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - self.y.part(y))


def _text(of_axis: str, x: str, y: str, text: str) -> str:
    return f'<text class="{of_axis}" x="{x}" y="{y}">{escaped(text)}</text>'


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Numbers as an axis has them, with the digits that tell them apart.

    With commas; by powers of ten where they are very large or small. One alone has six.
    """
    largest = max(map(abs, ticks), default=0.0)
    step = min((high - low for low, high in pairwise(ticks)), default=largest * _ALONE) or largest
    least = _exponent(step)
    if not largest or 1e-4 <= largest < 1e12:
        return [_plain(one, max(0, -least)) for one in ticks]
    return [f"{one:.{min(17, max(1, _exponent(one) - least + 1))}g}" for one in ticks]


def _plain(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0

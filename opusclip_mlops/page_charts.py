"""Charts and tables as HTML that needs no network: they are read without a script too."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opusclip_mlops.downsampling import note_of

COLOURS = 10
"""How many colours pages/report.css has, `c0` to `c9`; the eleventh run has that of the first."""

_WIDTH, _HEIGHT = 720.0, 260.0
_TOP, _RIGHT, _BOTTOM = 10.0, 14.0, 40.0
_LETTER = 7.0
_TICKS = 5
_LARGEST = 1.7976931348623157e308
_DIGITS = 7


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart.

    Attributes:
        label: What the legend calls it.
        x: Where its points are, finite and never falling.
        y: Their values, finite.
        of: How many points there were before it was thinned.
        is_faded: Whether it is drawn as what training went back behind.
        colour: Which of the colours it has, from 0; by the place of its label when None.
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
    log_y: bool = False,
) -> str:
    """Lines over one axis as a `<figure>`: an SVG, its legend, its notes, the numbers under it.

    Where a series was thinned a note says so.

    Args:
        title: What is drawn, such as a metric's key.
        series: The lines; those without a point are in the legend only.
        x_label: What x is, with its unit.
        notes: Sentences that stand beneath.
        log_y: Draw y by its logarithm; with a value of 0 or less it is drawn as it is, and said.
    """
    values = [float(one) for line in series for one in line.y]
    is_log = log_y and bool(values) and min(values) > 0
    said = [*notes, note_of(*series)]
    if log_y and not is_log:
        said.append("not drawn by logarithms: not all values are above 0")
    colours = _colours(series)
    plot = _Plot.of(series, is_log=is_log)
    name = html.escape(title)
    return (
        f'<figure class="chart" data-key="{name}"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{name} by {html.escape(x_label)}">{plot.axes(x_label)}'
        f"{_lines(series, colours, plot)}</svg>"
        f"{_legend(series, colours)}{notes_of(said)}{_numbers(series, colours, plot)}</figure>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; a row may be shorter than the headings."""
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        "</div>\n"
    )


def facts(mapping: Mapping[str, str]) -> str:
    """Names and what is said of them, a line each; those of which nothing is said are left out."""
    said = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>\n"
        for name, text in mapping.items()
        if text
    )
    return f'<dl class="facts">{said}</dl>\n' if said else ""


def notes_of(notes: Iterable[str]) -> str:
    """Sentences beneath something, each once; "" for none."""
    said = "".join(f"<li>{html.escape(one)}</li>" for one in dict.fromkeys(notes) if one)
    return f'<ul class="notes">{said}</ul>\n' if said else ""


def as_data(content: object) -> str:
    """JSON for the page's script; nothing in it ends the element that holds it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{text}</script>'


def _colours(series: Sequence[Series]) -> list[int]:
    places: dict[str, int] = {}
    for one in series:
        places.setdefault(one.label, len(places))
    return [(places[one.label] if one.colour is None else one.colour) % COLOURS for one in series]


def _lines(series: Sequence[Series], colours: Sequence[int], plot: _Plot) -> str:
    """What counts lies above what does not."""
    drawn = [one for one in zip(series, colours, strict=True) if len(one[0].x)]
    return "".join(
        f'<path class="line c{colour}{" faded" if one.is_faded else ""}" d="{plot.path(one)}"/>'
        for one, colour in sorted(drawn, key=lambda pair: not pair[0].is_faded)
    )


def _legend(series: Sequence[Series], colours: Sequence[int]) -> str:
    """Each label once; a faded line with another's label says nothing new."""
    shown = dict.fromkeys(zip((one.label for one in series), colours, strict=True))
    items = "".join(f'<li class="c{colour}">{html.escape(label)}</li>' for label, colour in shown)
    faded = '<li class="faded">faded: training went back behind it</li>'
    return f'<ul class="keys">{items}{faded if any(s.is_faded for s in series) else ""}</ul>'


def _numbers(series: Sequence[Series], colours: Sequence[int], plot: _Plot) -> str:
    """What the page's script needs to say which value is under the pointer."""
    return as_data(
        {
            "x": [plot.x.low, plot.x.high],
            "y": [plot.y.low, plot.y.high],
            "box": [plot.left, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM],
            "log": plot.is_log,
            "lines": [
                {
                    "label": one.label + (" (left behind)" if one.is_faded else ""),
                    "colour": colour,
                    "x": [_short(value) for value in one.x],
                    "y": [_short(value) for value in one.y],
                }
                for one, colour in zip(series, colours, strict=True)
            ],
        }
    )


def _short(value: float) -> float | int:
    """A number of few digits; whole ones, such as steps, exactly."""
    number = float(value)
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    return float(f"{number:.{_DIGITS}g}")


@dataclass(frozen=True)
class _Axis:
    """From where to where values are drawn; low is below high."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        if not values:
            return cls(0.0, 1.0)
        low, high = min(values), max(values)
        room = 0.0 if low / 2 < high / 2 else abs(low) * 0.05 or 1.0
        return cls(max(low - room, -_LARGEST), min(high + room, _LARGEST))

    def part(self, value: float) -> float:
        """Where a value is, from 0 at the low end to 1; halves, as the span may be infinite."""
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def ticks(self, *, least: float = 0.0) -> list[float]:
        """Round values, about five of them, or fewer that are so far apart at least."""
        step = max(least, _round_step((self.high / 2 - self.low / 2) / _TICKS * 2))
        if not step:
            return [self.low, self.high]
        begin, end = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(begin, min(end, begin + 2 * _TICKS) + 1)]


def _round_step(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten; 0 below what floats hold."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 0.0
    return next((one * power for one in (1, 2, 5, 10) if one * power >= least), 0.0)


@dataclass(frozen=True)
class _Plot:
    """Brings values to their places in the drawing; `y` is of logarithms where these are drawn."""

    x: _Axis
    y: _Axis
    is_log: bool

    @classmethod
    def of(cls, series: Sequence[Series], *, is_log: bool) -> _Plot:
        x = _Axis.of([float(one) for line in series for one in line.x])
        values = [float(one) for line in series for one in line.y]
        return cls(x, _Axis.of([math.log10(one) for one in values] if is_log else values), is_log)

    @property
    def left(self) -> float:
        """Where the drawing begins: right of the longest number."""
        return 14 + _LETTER * max(len(self._said(one)) for one in self.y.ticks() or [0.0])

    def path(self, one: Series) -> str:
        """A line; a point alone is a dot."""
        tall, wide = _HEIGHT - _TOP - _BOTTOM, _WIDTH - self.left - _RIGHT
        places = []
        for x, y in zip(one.x, one.y, strict=True):
            up = self.y.part(math.log10(float(y)) if self.is_log else float(y))
            right = self.left + wide * self.x.part(float(x))
            places.append(f"{right:.1f} {_TOP + tall * (1 - up):.1f}")
        return f"M{'L'.join(places)}" if len(places) > 1 else f"M{places[0]}h0.01"

    def axes(self, x_label: str) -> str:
        """The grid, the numbers at it, and what x is."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for tick in self.y.ticks():
            at = f"{_TOP + (bottom - _TOP) * (1 - self.y.part(tick)):.1f}"
            parts.append(f'<line x1="{self.left:g}" x2="{right:g}" y1="{at}" y2="{at}"/>')
            parts.append(_text("y", f"{self.left - 6:g}", at, self._said(tick)))
        # Between two steps there is nothing.
        is_whole = self.x.low.is_integer() and self.x.high.is_integer()
        for tick in self.x.ticks(least=1.0 if is_whole else 0.0):
            at = f"{self.left + (right - self.left) * self.x.part(tick):.1f}"
            parts.append(f'<line x1="{at}" x2="{at}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
            parts.append(_text("x", at, f"{bottom + 17:g}", number_text(tick)))
        parts.append(_text("x", f"{(self.left + right) / 2:g}", f"{_HEIGHT - 5:g}", x_label))
        return f'<g class="axes">{"".join(parts)}</g>'

    def _said(self, tick: float) -> str:
        if not self.is_log:
            return number_text(tick)
        whole = math.floor(tick)
        return number_text(10**tick) if abs(tick) < 4 else f"{10 ** (tick - whole):.3g}e{whole:+d}"


def _text(of_axis: str, x: str, y: str, text: str) -> str:
    return f'<text class="{of_axis}" x="{x}" y="{y}">{html.escape(text)}</text>'


def number_text(value: float) -> str:
    """A number as an axis has it: with commas, by powers of ten where it is very large or small."""
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    return f"{value:,.10g}"

"""The wall of a panel as one HTML file: its clips, side by side and in step, and nothing beside it.

The file loads nothing and runs no script but its own: whatever a prompt, a run or a server says is
text in it.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from opusclip_mlops.page_text import as_json, part_of_page, source_of
from opusclip_mlops.panels import Cell, Panel

MOST_BYTES = 48 * 2**20
"""The longest page; browsers, and MLflow's artifact viewer, hold it in memory as a whole."""

_BYTES_BESIDE = 4 * 2**20  # for the page itself, and what it says of its clips
_CHUNK_BYTES = 3 * 2**18  # a multiple of three: pieces of base64 can be laid end to end
_DIGITS, _FEW_DIGITS = 5, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A clip's file, an mp4 or webm.

    Attributes:
        path: Where it lies.
        frames: How many it has.
        fps: Frames per second.
        width: In pixels.
        height: In pixels.
    """

    path: Path
    frames: int
    fps: float
    width: int
    height: int

    @property
    def length(self) -> str:
        """How long it is, in words."""
        return f"{self.frames} frames, {self.fps:g} a second, {self.width}×{self.height}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownScore:
    """A value of a sample.

    Attributes:
        name: The metric.
        value: Its value.
        measured: How it was measured, a line for each fact; empty where that is not known.
        is_given: Whether it was logged with the sample; otherwise it was found in the clip.
    """

    name: str
    value: float
    measured: tuple[str, ...] = ()
    is_given: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What stands in one place of the wall.

    Attributes:
        film: The clip, None for a hole.
        missing: Why it is a hole.
        scores: Values of this sample.
        about: Where it comes from, by what is said: "seed", "checkpoint" …
    """

    film: Film | None = None
    missing: str = ""
    scores: tuple[ShownScore, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The samples of a panel at one step of one run.

    Attributes:
        run: What the run is called.
        step: The training step.
        marks: What is special about it, such as "best".
        about: What all its samples have in common, a line for each fact.
        samples: By the name of the panel's cell; a cell without one is a hole.
    """

    run: str
    step: int
    samples: Mapping[str, Sample]
    marks: tuple[str, ...] = ()
    about: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """All that the page shows.

    Attributes:
        panel: What was sampled.
        columns: From left to right.
        notes: What a reader has to know, such as what was left out; a sentence each.
    """

    panel: Panel
    columns: Sequence[Column]
    notes: Sequence[str] = ()


def page_bytes(clip_bytes: int) -> int:
    """About how long a page with clips of so many bytes is."""
    return _BYTES_BESIDE + -(-clip_bytes // 3) * 4


def write_page(wall: Wall, path: Path) -> None:
    """Write the wall as one HTML file.

    Raises:
        OSError: It cannot be written, or a clip's file is gone.
    """
    films: dict[Path, int] = {}
    content = _content(wall, films)
    title = f"{wall.panel.name}: samples"
    write_html(path, "wall", title=title, content=content, films=list(films))


def write_html(
    path: Path, name: str, *, title: str, content: Any, films: Sequence[Path], may: str = ""
) -> None:
    """Write one of the package's pages as one HTML file that loads nothing.

    Args:
        path: Where to write.
        name: The page: its parts are `<name>.html`, `.css` and `.js` in the folder pages/; all
            pages begin with `head.html`.
        title: Of the window.
        content: What the page's script finds in the element `content`, JSON values.
        films: Clips; their base64 stands in the elements `film-0`, `film-1` …
        may: What the page's policy allows besides, such as "connect-src 'self'; ".

    Raises:
        OSError: It cannot be written, or a clip's file is gone.
    """
    style, script = part_of_page(f"{name}.css"), part_of_page(f"{name}.js")
    whole = part_of_page("head.html") + part_of_page(f"{name}.html")
    head, tail = whole.split("<!-- films -->")
    said = {"title": html.escape(title), "policy": may + _policy(style, script), "style": style}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_filled(head, said))
        for number, film in enumerate(films):
            _write_film(file, film, number)
        file.write(_filled(tail, {"content": as_json(content), "script": script}))


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"<!-- {name} -->", value)
    return text


def _policy(style: str, script: str) -> str:
    """What the page may do: run its own script, and show what it holds itself."""
    return (
        f"default-src 'none'; script-src {source_of(script)}; style-src {source_of(style)}; "
        "media-src blob:; img-src blob: data:; base-uri 'none'; form-action 'none'"
    )


def _write_film(file: IO[str], path: Path, number: int) -> None:
    file.write(f'<script type="text/plain" id="film-{number}">')
    with path.open("rb") as film:
        while piece := film.read(_CHUNK_BYTES):
            file.write(base64.b64encode(piece).decode())
    file.write("</script>\n")


def _content(wall: Wall, films: dict[Path, int]) -> dict[str, Any]:
    panel, cells = wall.panel, wall.panel.cells
    settings = [f"{key} {_plain(value)}" for key, value in sorted(panel.sampler.items())]
    return {
        "name": panel.name,
        "title": panel.title,
        "digest": panel.digest,
        "sampler": settings,
        "notes": [*wall.notes, *_unlike(wall)],
        "rows": [{"prompt": one.prompt, "seed": one.seed, "name": one.name} for one in cells],
        "columns": [_column(one, cells, films) for one in wall.columns],
    }


def _column(column: Column, cells: Sequence[Cell], films: dict[Path, int]) -> dict[str, Any]:
    hole = Sample(missing="no clip was logged")
    return {
        "run": column.run,
        "step": column.step,
        "marks": column.marks,
        "about": column.about,
        "cells": [_sample(column.samples.get(one.name, hole), films) for one in cells],
    }


def _sample(sample: Sample, films: dict[Path, int]) -> dict[str, Any]:
    film = sample.film
    shown: dict[str, Any] = {
        "scores": [[one.name, _number(one), one.measured, one.is_given] for one in sample.scores],
        "about": [[key, value] for key, value in sample.about.items() if value],
    }
    if film is None:
        return {**shown, "missing": sample.missing or "no clip"}
    number = films.setdefault(film.path, len(films))
    size = [film.frames, film.fps, film.width, film.height]
    return {**shown, "film": number, "size": size}


def _number(score: ShownScore) -> str:
    return f"{score.value:.{_DIGITS if score.is_given else _FEW_DIGITS}g}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _unlike(wall: Wall) -> Iterator[str]:
    """Say that clips differ in length or rate: then they are in step by time, not by number."""
    films = [one.film for column in wall.columns for one in column.samples.values() if one.film]
    for what, values in (
        ("frames", {film.frames for film in films}),
        ("frames per second", {film.fps for film in films}),
    ):
        if len(values) > 1:
            low, high = min(values), max(values)
            yield (
                f"The clips are of unlike length: from {low:g} to {high:g} {what}. "
                "A shorter one waits on its last frame."
            )

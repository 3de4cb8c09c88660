"""Prints what was measured of videos: a table for people, JSON for scripts, a counter meanwhile."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opusclip_mlops.errors import ConfigError, PassportError, VideoError
from opusclip_mlops.evaluations import HIGHER_IS_BETTER, Evaluated, Evaluation
from opusclip_mlops.passports import Score
from opusclip_mlops.scoring import Show

_UNITS = {
    "psnr": "dB",
    "flicker": "levels",
    "motion": "% of the diagonal",
    "brightness_pumping": "levels",
    "loop_seam": "levels",
}


@contextlib.contextmanager
def progress_shown() -> Iterator[Show | None]:
    """The video at hand and its frames so far, on a terminal; nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as lines:
        line = lines.add_task("opening the videos", total=None)

        def show(video: str, frames: int) -> None:
            lines.update(line, description=f"{Path(video).name}: {frames:,} frames")

        yield show


@dataclass(frozen=True)
class Ranking:
    """By which metric videos are ranked, and whether also when they were measured unlike."""

    metric: str
    allow_unlike: bool = False


def print_evaluation(
    found: Evaluation, ranking: Ranking | None = None, *, as_json: bool = False
) -> None:
    """Print what was measured; where the videos cannot be ranked, in the order given.

    Raises:
        PassportError: They cannot be ranked; all else is printed.
        VideoError: As PassportError.
    """
    try:
        ranked = _ranked(found, ranking)
    except (PassportError, VideoError):
        _print(found, None, found.videos, as_json=as_json)
        raise
    _print(found, ranking, ranked, as_json=as_json)


def _ranked(found: Evaluation, ranking: Ranking | None) -> Sequence[Evaluated]:
    if ranking is None:
        return found.videos
    return found.ranked(ranking.metric, allow_unlike=ranking.allow_unlike)


def _print(
    found: Evaluation, ranking: Ranking | None, videos: Sequence[Evaluated], *, as_json: bool
) -> None:
    if as_json:
        content = _content(found)
        if ranking:
            content["ranking"] = {"by": ranking.metric, "videos": [one.video for one in videos]}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print("\n".join(_alone(videos[0]) if len(videos) == 1 else _table(videos)))
    if ranking:
        print(f"ranked by {ranking.metric}: {_better(ranking.metric)}")
    if found.total:
        print(f"in total, {_count(len(videos), 'video')}:")
        print("\n".join(_scores(found.total)))
    for name, why in found.left_out.items():
        print(f"  {name} not in total: {why}")


def write_json(found: Evaluation, path: Path) -> None:
    """Keep what was measured, with passports, in a file that only its owner reads.

    Raises:
        ConfigError: It cannot be written.
    """
    text = json.dumps(_content(found), indent=2, ensure_ascii=False) + "\n"
    try:
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _content(found: Evaluation) -> dict[str, Any]:
    """All that was measured; what is not finite is a string."""
    return {
        "videos": [_video(one) for one in found.videos],
        "total": _plain(found.total),
        "left_out": dict(found.left_out),
    }


def _video(one: Evaluated) -> dict[str, Any]:
    about = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return {**about, "scores": _plain(one.scores), "left_out": dict(one.left_out)}


def _plain(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        name: {"value": _finite(score), "passport": score.passport.to_dict()}
        for name, score in scores.items()
    }


def _finite(score: Score) -> float | str:
    return float(score) if math.isfinite(score) else str(score)


def _alone(one: Evaluated) -> Iterator[str]:
    rate = f", {one.fps:.4g} a second" if one.fps else ""
    beside = f" beside {one.reference}" if one.reference else ""
    yield f"{one.video}{beside}: {_count(one.frames, 'frame')} of {one.width}x{one.height}{rate}"
    yield from _scores(one.scores)
    for name, why in one.left_out.items():
        yield f"  {name} left out: {why}"


def _scores(scores: Mapping[str, Score]) -> Iterator[str]:
    """A metric a line: its name, value, interval, unit, and which way is better."""
    rows = [(name, _number(score), _interval(score)) for name, score in scores.items()]
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(3)]
    for name, value, interval in rows:
        about = (_UNITS.get(name, ""), _better(name))
        cells = (name.ljust(widths[0]), value.rjust(widths[1]), interval.ljust(widths[2]))
        told = ", ".join(part for part in about if part)
        yield f"  {'  '.join([*cells, told])}".rstrip()
    for name, score in scores.items():
        yield from (f"  {name}: {note}" for note in score.passport.notes)


def _better(name: str) -> str:
    if name not in HIGHER_IS_BETTER:
        return ""
    return f"{'higher' if HIGHER_IS_BETTER[name] else 'lower'} is better"


def _table(videos: Sequence[Evaluated]) -> Iterator[str]:
    """A video a line, in the order given; names to the left, numbers to the right."""
    names = list(dict.fromkeys(name for one in videos for name in (*one.scores, *one.left_out)))
    rows = [("video", "frames", *names)]
    for one in videos:
        values = (_number(one.scores[name]) if name in one.scores else "-" for name in names)
        beside = f" beside {one.reference}" if one.reference else ""
        rows.append((f"{one.video}{beside}", f"{one.frames:,}", *values))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])
    for one in videos:
        if one.left_out and not one.scores:
            yield f"  {one.video}: all left out: {next(iter(one.left_out.values()))}"
            continue
        for name, why in one.left_out.items():
            yield f"  {one.video}: {name} left out: {why}"


def _interval(score: Score) -> str:
    interval = score.passport.interval
    if interval is None:
        return ""
    return f"{_figures(interval.low)} … {_figures(interval.high)}"


def _number(score: Score) -> str:
    return _figures(float(score))


def _figures(value: float) -> str:
    """Four figures that count; whole numbers as they are."""
    return f"{value:.0f}" if value.is_integer() else f"{value:#.4g}"


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"

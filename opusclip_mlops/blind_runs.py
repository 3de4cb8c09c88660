"""Two runs' samples of one panel out of MLflow, for blind votes; and what came of them, into it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from opusclip_mlops.blind_results import BlindResult
from opusclip_mlops.blind_votes import Contender
from opusclip_mlops.clip_files import Codec
from opusclip_mlops.decoding import codec_name, ffmpeg_errors, opened
from opusclip_mlops.errors import PanelError, VideoError
from opusclip_mlops.panels import Panel
from opusclip_mlops.patience import patiently
from opusclip_mlops.redaction import one_line
from opusclip_mlops.repackaging import repackage
from opusclip_mlops.wall_across import SideBySide, side_by_side
from opusclip_mlops.wall_clips import film_at
from opusclip_mlops.wall_page import Film
from opusclip_mlops.walls import LAST, Candidate, Show

_CODECS: Mapping[str, Codec] = {"h264": "h264", "vp9": "vp9"}
_MOST_TAG_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class BlindPanel:
    """What two runs have of one panel, each at one step.

    Attributes:
        panel: What both were asked for.
        a: The first run.
        b: The second.
        cells: The names of the cells that both have a clip of.
        notes: What is not shown, or may give a side away; a sentence each.
    """

    panel: Panel
    a: Contender
    b: Contender
    cells: tuple[str, ...]
    notes: tuple[str, ...]
    _candidates: tuple[Candidate, Candidate]
    _folder: Path

    def clips_of(self, cell: str) -> tuple[Film, Film]:
        """The clips of A and B, fetched, without the texts that their files hold.

        Raises:
            PanelError: One is gone, or can't be shown.
            MlflowException, OSError, or S3's own: MLflow does not answer now.
        """
        number = self.cells.index(cell)
        sides = zip("ab", self._candidates, (self.a, self.b), strict=True)
        first, second = (
            self._bare(one, cell, who.called, self._folder / f"{number}-{side}")
            for side, one, who in sides
        )
        return first, second

    def _bare(self, candidate: Candidate, cell: str, called: str, path: Path) -> Film:
        film = candidate.clips.film(candidate.step.cells[cell].clip)
        if isinstance(film, str):
            raise PanelError(f"run {called}, cell {cell}: {film}")
        try:
            return _without_texts(film, path)
        except VideoError as error:
            raise PanelError(f"run {called}, cell {cell}: {error}") from error


def blind_panel(
    client: MlflowClient,
    run_a: str,
    run_b: str,
    *,
    panel: str,
    steps: tuple[int, int] | None,
    folder: Path,
    show: Show,
) -> BlindPanel:
    """Find what two runs have of the same panel.

    Args:
        client: Asks MLflow.
        run_a: Id, name or unique beginning.
        run_b: Another run.
        panel: The panel's name, or its title.
        steps: Of A and of B; the last of each when None.
        folder: Keeps clips that are fetched.
        show: Is told what is being done.

    Raises:
        RegistryError: No such run.
        PanelError: One run twice, panels that differ, no such step, no cell that both have.
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    wanted = LAST if steps is None else frozenset(steps)
    beside = side_by_side(
        client, (run_a, run_b), panel=panel, steps=wanted, folder=folder, show=show
    )
    if len(beside.runs) < 2:
        raise PanelError(f"{run_a!r:.80} and {run_b!r:.80} are one run: give two")
    found = tuple(_at_step(beside, number, steps) for number in (0, 1))
    both = [{name for name, cell in one.step.cells.items() if cell.clip} for one in found]
    cells = tuple(one.name for one in beside.panel.cells if one.name in both[0] & both[1])
    if not cells:
        raise PanelError(f"no cell of panel {beside.panel.title} has a clip by both runs")
    a, b = (_contender(beside, one) for one in found)
    left = len(beside.panel.cells) - len(cells)
    notes = (
        [f"{left} of {len(beside.panel.cells)} cells have no clip by both runs."] if left else []
    )
    return BlindPanel(
        panel=beside.panel, a=a, b=b, cells=cells, notes=tuple(notes),
        _candidates=(found[0], found[1]), _folder=folder,
    )  # fmt: skip


def _at_step(beside: SideBySide, number: int, steps: tuple[int, int] | None) -> Candidate:
    called = list(beside.runs)[number]
    found = beside.candidates[called].steps
    if steps is None:
        return found[-1]
    at = next((one for one in found if one.step.step == steps[number]), None)
    if at is None:
        raise PanelError(f"run {called} has no samples of step {steps[number]}")
    return at


def _contender(beside: SideBySide, candidate: Candidate) -> Contender:
    run = beside.runs[candidate.run]
    return Contender(run_id=run.info.run_id, called=candidate.run, step=candidate.step.step)


def unlike(pairs: Sequence[tuple[Film, Film]]) -> Iterator[str]:
    """What tells the two runs' clips apart for who looks for it; a sentence each."""
    differing = [
        any(_plain(first)[what] != _plain(second)[what] for first, second in pairs)
        for what in range(3)
    ]
    names = ("size", "number of frames", "frame rate")
    for name, differs in zip(names, differing, strict=True):
        if differs:
            yield f"The runs' clips differ in {name}, by which a voter can tell them apart."


def _plain(film: Film) -> tuple[object, ...]:
    return (film.width, film.height), film.frames, film.fps


def _without_texts(film: Film, path: Path) -> Film:
    """The same pictures in a file that says nothing else; sound is left out."""
    with ffmpeg_errors("the clip cannot be read as video"), opened(film.path) as container:
        codec = _CODECS.get(codec_name(container.streams.video[0]))
    if codec is None:
        raise VideoError("the clip is neither H.264 nor VP9, which browsers play")
    repackage(film.path, path, codec=codec, metadata={}, audio=frozenset())
    return film_at(path)


def log_result(client: MlflowClient, result: BlindResult) -> None:
    """Log what came of votes to both runs: `ab/<panel>-<session>.json`, and a tag of the session.

    Logged again it takes the place of what was logged before. Voters are counted, not named.

    Raises:
        RegistryError: MLflow refused, or did not answer for long.
    """
    content = result.to_dict()
    content["voters"] = len(result.voters)
    content["notes"] = [one for one in result.notes if not one.startswith("Voter ")]
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    tag = one_line(result.sentence, at_most=_MOST_TAG_CHARACTERS)
    for one in (result.a, result.b):
        _log(client, one.run_id, result, text, tag)


def _log(client: MlflowClient, run_id: str, result: BlindResult, text: str, tag: str) -> None:
    what, file = f"cannot log the votes to run {run_id}", f"ab/{result.panel}-{result.session}.json"
    patiently(what, lambda: client.log_text(run_id, text, file))
    patiently(what, lambda: client.set_tag(run_id, f"opusclip.ab.{result.session}", tag))

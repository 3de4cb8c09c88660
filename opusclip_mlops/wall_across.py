"""One wall for several runs: their samples of one panel, side by side."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.errors import PanelError
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.panel_steps import panel_titles, repository_of, titles_called
from opusclip_mlops.panels import Panel
from opusclip_mlops.redaction import one_line
from opusclip_mlops.wall_page import Wall, write_page
from opusclip_mlops.walls import Candidates, RunOfWall, Show, Steps, lay_out

_ID_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class MadeWall:
    """A wall that was written.

    Attributes:
        file: The page.
        size_bytes: Its length.
        title: The panel's.
        run_ids: Whose samples are on it, from left to right.
        steps: Of each column, from left to right.
        holes: Why places are empty, each once with how many there are.
        notes: What the page says about itself.
    """

    file: Path
    size_bytes: int
    title: str
    run_ids: tuple[str, ...]
    steps: tuple[int, ...]
    holes: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """What several runs have of one panel.

    Attributes:
        runs: By what they are called, in the order they were named in.
        candidates: The steps of each run, by what it is called.
        panel: The one that all of them sampled.
    """

    runs: Mapping[str, Run]
    candidates: Mapping[str, Candidates]
    panel: Panel


def wall_of_runs(
    runs: Sequence[str],
    *,
    panel: str,
    file: Path | None = None,
    steps: Steps = "all",
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
) -> MadeWall:
    """Write the samples of one panel by several runs as one page.

    Args:
        runs: Ids, names or unique beginnings; the columns stand in this order.
        panel: The panel's name, or its title.
        file: The page, `wall-<title>.html` in this folder when None. It appears whole.
        steps: Those that are wanted; "last" is the last of each run.
        tracking_uri: Where the runs are, MLflow's default when None.
        show: Is told what is being done, how much is done, and how much there is.

    Raises:
        RegistryError: no such run, or MLflow did not answer.
        PanelError: a run has no such panel, or the runs' panels are not the same.
    """
    with (
        told_in_one_line("cannot read the samples"),
        tempfile.TemporaryDirectory(prefix="opusclip-wall-") as folder,
    ):
        beside = side_by_side(
            client_of(tracking_uri, None),
            runs,
            panel=panel,
            steps=steps,
            folder=Path(folder),
            show=show,
        )
        wall = _laid_out(beside, show)
        path = file or Path(f"wall-{wall.panel.title}.html")
        _write(wall, path)
        return _made(wall, path, tuple(one.info.run_id for one in beside.runs.values()))


def side_by_side(
    client: MlflowClient,
    runs: Sequence[str],
    *,
    panel: str,
    steps: Steps,
    folder: Path,
    show: Show,
) -> SideBySide:
    """Read what several runs have of one panel; no clip is fetched.

    Args:
        client: Asks MLflow.
        runs: Ids, names or unique beginnings; one that is named twice counts once.
        panel: The panel's name, or its title.
        steps: Those that are wanted, of each run.
        folder: Keeps the clips that are fetched later, as long as it is there.
        show: Is told what is being done.

    Raises:
        RegistryError: No such run.
        PanelError: A run has no such panel or steps, or the runs' panels are not the same.
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    found = {one.info.run_id: one for one in (run_called(client, name) for name in runs)}
    names = _names(list(found.values()))
    titles = {id_: _titles(client, run, panel, names[id_]) for id_, run in found.items()}
    every: dict[str, Candidates] = {}
    for run_id, run in found.items():
        title = _one_title(titles, run_id, names[run_id])
        reading = RunOfWall.of(client, run, title, Path(tempfile.mkdtemp(dir=folder)))
        every[names[run_id]] = _candidates(reading, title, names[run_id], steps, show)
    panels = {name: one.steps[0].step.panel for name, one in every.items()}
    _check_alike(panels)
    called = {names[run_id]: run for run_id, run in found.items()}
    return SideBySide(runs=called, candidates=every, panel=next(iter(panels.values())))


def _candidates(
    reading: RunOfWall, title: str, called: str, steps: Steps, show: Show
) -> Candidates:
    """What a run has of a panel, at least one step."""
    found = reading.candidates(title, called=called, steps=steps, show=show)
    if not found.steps:
        why = f": {found.notes[0].rstrip('.')}" if found.notes else ""
        raise PanelError(f"run {called} has no such samples of panel {title}{why}")
    return found


def _laid_out(beside: SideBySide, show: Show) -> Wall:
    """The wall of all runs, in their order."""
    every = beside.candidates.values()
    steps = [one for found in every for one in found.steps]
    notes = dict.fromkeys(note for found in every for note in found.notes)
    return lay_out(beside.panel, steps, list(notes), show=show)


def _made(wall: Wall, path: Path, run_ids: tuple[str, ...]) -> MadeWall:
    samples = [one for column in wall.columns for one in column.samples.values()]
    return MadeWall(
        file=path,
        size_bytes=path.stat().st_size,
        title=wall.panel.title,
        run_ids=run_ids,
        steps=tuple(one.step for one in wall.columns),
        holes=dict(Counter(one.missing for one in samples if one.film is None)),
        notes=tuple(wall.notes),
    )


def _names(runs: Sequence[Run]) -> dict[str, str]:
    """What the runs are called on the page: by their names, with the id where several have one."""
    names = [one_line(run.info.run_name or "", at_most=120) for run in runs]
    return {
        run.info.run_id: f"{name} {run.info.run_id[:_ID_DIGITS]}".strip()
        if names.count(name) > 1 or not name
        else name
        for run, name in zip(runs, names, strict=True)
    }


def _titles(client: MlflowClient, run: Run, panel: str, called: str) -> list[str]:
    """The titles in a run that a panel's name means, at least one."""
    known = panel_titles(repository_of(client, run))
    found = titles_called(panel, known)
    if not found:
        there = f"it has {', '.join(known)}" if known else "it has samples of no panel"
        raise PanelError(one_line(f"run {called} has no panel {panel!r}: {there}"))
    return found


def _one_title(titles: Mapping[str, list[str]], run_id: str, called: str) -> str:
    """The title that all runs have, else this run's own."""
    common = set.intersection(*(set(one) for one in titles.values()))
    of_run = sorted(common) or titles[run_id]
    if len(of_run) > 1:
        raise PanelError(
            f"run {called} has {len(of_run)} panels of this name, {', '.join(of_run)}: "
            "give one of these titles"
        )
    return of_run[0]


def _check_alike(panels: Mapping[str, Panel]) -> None:
    (first, mine), *others = panels.items()
    for name, panel in others:
        if panel.digest != mine.digest:
            found = "; ".join(mine.differences(panel))
            raise PanelError(
                one_line(
                    f"runs {first} and {name} sampled different panels {mine.name}: {found}",
                    at_most=600,
                )
            )


def _write(wall: Wall, path: Path) -> None:
    """Write a page whole or not at all; only a file is replaced, not what /dev/null is."""
    if path.exists() and not path.is_file():
        raise PanelError(f"{path} cannot be written: it is there and is no file")
    file = path.resolve()
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write_page(wall, temporary)
        temporary.replace(file)
    except OSError as error:
        raise PanelError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)

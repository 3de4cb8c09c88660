"""The samples of a comparison side by side: rows are prompts, columns are runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.compare_words import shortened, steps_in_common
from opusclip_mlops.comparing import Beside, PanelBeside, Show
from opusclip_mlops.errors import PanelError, RegistryError
from opusclip_mlops.page_charts import notes_of
from opusclip_mlops.page_media import Embedder, hole
from opusclip_mlops.page_text import escaped
from opusclip_mlops.panel_steps import SampledCell
from opusclip_mlops.panels import Cell
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, reason_of
from opusclip_mlops.wall_across import side_by_side
from opusclip_mlops.walls import GUESSED_CLIP_BYTES, LAST, Candidate

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_STEPS = 3
"""How many of the last common steps are shown; all but the newest are folded."""

_LONGEST_PROMPT = 1000
_WEBM = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class _Read:
    """A panel as it was read: what stands beside each other, the newest first, or why nothing."""

    panel: PanelBeside
    cells: Sequence[Cell] = ()
    views: Sequence[Mapping[str, Candidate]] = ()
    notes: Sequence[str] = ()


def samples_html(
    client: MlflowClient, found: Beside, *, embedder: Embedder, show: Show = lambda *_: None
) -> str:
    """All panels that several runs sampled; of one that cannot be read it is said why.

    The newest step of every panel is put in first: where the page is full older ones are left out.

    Args:
        client: Asks MLflow.
        found: The runs.
        embedder: Takes the clips.
        show: Is told what is being done.
    """
    before = embedder.left_out
    with tempfile.TemporaryDirectory(prefix="opusclip-compare-") as folder:
        read = [_read(client, found, one, Path(folder), show) for one in found.comparison.panels]
        places = [(age, one) for age in range(MOST_STEPS) for one in read if age < len(one.views)]
        tables: dict[str, list[str]] = {one.panel.title: [] for one in read}
        for done, (age, one) in enumerate(places):
            show("fetching clips", done, len(places))
            tables[one.panel.title].append(_folded(one, age, embedder))
    shown = "".join(_panel(one, tables[one.panel.title]) for one in read)
    return notes_of([embedder.note(since=before)]) + shown


def _read(
    client: MlflowClient, found: Beside, panel: PanelBeside, folder: Path, show: Show
) -> _Read:
    """The last steps that all have; where there is none the last of each."""
    labels = {str(found.runs[label].info.run_id): label for label in panel.steps}
    steps = set(panel.common[-MOST_STEPS:]) or LAST
    try:
        with told_in_one_line("the store does not answer"):
            beside = side_by_side(
                client, list(labels), panel=panel.title, steps=steps, folder=folder, show=show
            )
    except (PanelError, RegistryError) as error:
        return _Read(panel, notes=[one_line(f"these samples are not shown: {error}")])
    of_label = {
        labels[str(beside.runs[name].info.run_id)]: {one.step.step: one for one in several.steps}
        for name, several in beside.candidates.items()
    }
    notes = [note for several in beside.candidates.values() for note in several.notes]
    return _Read(panel, beside.panel.cells, _views(of_label, panel.common), notes)


def _views(
    of_label: Mapping[str, Mapping[int, Candidate]], common: Sequence[int]
) -> list[Mapping[str, Candidate]]:
    by_step = (
        {label: one[step] for label, one in of_label.items() if step in one}
        for step in reversed(common[-MOST_STEPS:])
    )
    last = {label: one[max(one)] for label, one in of_label.items()}
    return [one for one in by_step if one] or [last]


def _panel(read: _Read, tables: Sequence[str]) -> str:
    panel = read.panel
    steps = steps_in_common(panel.steps, panel.common)
    title = escaped(f"{shortened(panel.title, _LONGEST_PROMPT)}: {steps}")
    command = f"<p><code>{escaped(panel.command)}</code> shows all of them in step</p>"
    return f"<h3>{title}</h3>\n{''.join(tables)}{notes_of(map(one_line, read.notes))}{command}\n"


def _folded(read: _Read, age: int, embedder: Embedder) -> str:
    """The newest step, or an older one behind a line to click on."""
    view = read.views[age]
    steps = dict.fromkeys(one.step.step for one in view.values())
    title = f"step {next(iter(steps)):,}" if len(steps) == 1 else "the last of each run"
    table = _table(read, view, embedder)
    return f"<details{'' if age else ' open'}><summary>{title}</summary>{table}</details>\n"


def _table(read: _Read, view: Mapping[str, Candidate], embedder: Embedder) -> str:
    labels = [label for label in read.panel.steps if label in view]
    names = (f"{one} {view[one].run}, step {view[one].step.step:,}" for one in labels)
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in names)
    rows = "".join(_row(cell, view, labels, read.panel.command, embedder) for cell in read.cells)
    return (
        f'<div class="wide samples"><table><thead><tr><th scope="col">prompt</th>{head}</tr>'
        f"</thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _row(
    cell: Cell,
    view: Mapping[str, Candidate],
    labels: Sequence[str],
    command: str,
    embedder: Embedder,
) -> str:
    sampled = {label: view[label].step.cells.get(cell.name, SampledCell()) for label in labels}
    having = [label for label, one in sampled.items() if one.clip]
    lacking = f"only {having[0]} sampled it" if len(having) == 1 else "no clip was logged"
    shown = "".join(
        f"<td>{_clip(view[label], one, command, embedder) if one.clip else hole(lacking)}</td>"
        for label, one in sampled.items()
    )
    prompt = escaped(shortened(cell.prompt, _LONGEST_PROMPT))
    return f'<tr><th scope="row">{prompt}<br>seed {cell.seed}</th>{shown}</tr>\n'


def _clip(candidate: Candidate, cell: SampledCell, command: str, embedder: Embedder) -> str:
    """The clip, or why it is not there; one that has no room is not fetched."""
    caption = _scores(cell)
    if not embedder.has_room(cell.size_bytes or GUESSED_CLIP_BYTES):
        return embedder.left(cell.size_bytes, caption=caption, command=command)
    try:
        film = candidate.clips.film(cell.clip)
        if isinstance(film, str):
            return hole(film)
        kind = _kind_of(film.path)
        return embedder.clip(film.path, content_type=kind, caption=caption, command=command)
    except asking_faults() as error:
        return hole(f"this clip cannot be fetched: {reason_of(error)}")


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        return "video/webm" if file.read(len(_WEBM)) == _WEBM else "video/mp4"


def _scores(cell: SampledCell) -> str:
    """What was logged with the sample, then what was found in it."""
    given = [f"{name} {_value(one)}" for name, one in sorted(cell.scores.items())]
    found = [
        f"{name} {one.value:.3g}"
        for name, one in sorted(cell.measured.items())
        if name not in cell.scores
    ]
    return shortened(", ".join([*given, *found]), _LONGEST_PROMPT)


def _value(score: float | str) -> str:
    return score if isinstance(score, str) else f"{score:.5g}"

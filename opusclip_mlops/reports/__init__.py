"""Reports of runs: one HTML file that needs no network, and the same in short as Markdown."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import compare_page
from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.comparing import Beside, Comparison, Show, laid_beside, place_words
from opusclip_mlops.errors import ConfigError, DataError, RegistryError
from opusclip_mlops.layout import REPORTS
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.page_charts import notes_of
from opusclip_mlops.page_document import Section, check_place, parts_of, write_document
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.reports import markdown
from opusclip_mlops.reports.choosing import Chosen, named, of_experiment
from opusclip_mlops.reports.curve_charts import curves_html
from opusclip_mlops.reports.reading import RunReader
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.run_sections import sections_of
from opusclip_mlops.reports.unread import Asking, Unread
from opusclip_mlops.reports.wording import plain

MOST_RUNS = 50
"""Of how many runs a report is made; of an experiment the newest."""

MOST_CLIP_BYTES = 24 * 2**20
"""How much of clips and pictures a report holds: a third more of the page."""

VIEWER_BYTES = 50 * 2**20
"""What MLflow's artifact viewer shows at most."""

_PANEL_BYTES = 16 * 2**20
_MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class MadeReport:
    """A report that was made.

    Attributes:
        file: The page.
        size_bytes: Its length.
        markdown: The same in short.
        run_ids: The runs it is of, in their order.
        logged: Where it stands in MLflow: run id and artifact paths; empty where it was not logged.
        not_logged: Why it could not be logged, "" where it was, or was not to be.
        unread: What could not be read of which run, and why.
        notes: What else is said about it.
    """

    file: Path
    size_bytes: int
    markdown: str
    run_ids: tuple[str, ...]
    logged: tuple[str, ...] = ()
    not_logged: str = ""
    unread: tuple[Unread, ...] = ()
    notes: tuple[str, ...] = ()


def report(
    runs: Sequence[str] = (),
    *,
    experiment: str | None = None,
    file: Path | None = None,
    metrics: Sequence[str] = (),
    logs: bool = True,
    log_to: str | None = None,
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
) -> MadeReport:
    """Write a report of runs, or of an experiment, and log it as an artifact.

    What cannot be read, because the store is away or this user may not, is named in the report
    with the reason. A report of the same runs that is logged again takes the place of the first.
    One that MLflow does not take is there as a file all the same: see `MadeReport.not_logged`.

    Args:
        runs: Ids, names or unique beginnings; the others are compared with the first.
        experiment: In place of runs: its name or id. Its newest runs, at most `MOST_RUNS`.
        file: The page; `report-<id>.html` in this folder when None. It appears whole.
        metrics: Patterns like "val/*" of the metrics that are drawn, and of several runs compared;
            all when there is none.
        logs: Whether it is put into MLflow: under `reports/` in the first run, of an experiment in
            the oldest.
        log_to: The run it is put into instead.
        tracking_uri: Where the runs are, MLflow's default when None.
        show: Is told what is being done.

    Raises:
        ConfigError: Neither runs nor an experiment, or both; too many; the page cannot be written.
        SelectionError: There is no such experiment.
        RegistryError: No such run, or MLflow did not answer.
        DataError: The experiment has no runs, or no run has a metric that is called so.
    """
    if bool(runs) == bool(experiment):
        raise ConfigError("name runs, or an --experiment, and not both")
    if file is not None:
        check_place(file)
    client = client_of(tracking_uri, None)
    found = _chosen(client, runs, experiment, log_to)
    _check_metrics(found, metrics)
    path = file or Path(f"{found.file_stem}.html")
    check_place(path)
    with tempfile.TemporaryDirectory(prefix="opusclip-report-") as folder:
        maker = _Maker(client, found, Path(folder), metrics, _place(client, tracking_uri), show)
        made = maker.made(path)
        return maker.logged(made) if logs else made


def _place(client: MlflowClient, tracking_uri: str | None) -> Sequence[str]:
    """Where the runs are, for a command: a server even where nobody named it here."""
    known = str(client.tracking_uri)
    return place_words(tracking_uri or (known if known.startswith("http") else None))


def _chosen(
    client: MlflowClient, runs: Sequence[str], experiment: str | None, log_to: str | None
) -> Chosen:
    with told_in_one_line("cannot find the runs"):
        found = (
            of_experiment(client, experiment, most=MOST_RUNS)
            if experiment
            else named(client, runs, most=MOST_RUNS)
        )
        return replace(found, home=run_called(client, log_to)) if log_to else found


def _check_metrics(found: Chosen, patterns: Sequence[str]) -> None:
    """What was asked for must be there in one run; MLflow names the metrics with the runs."""
    keys = {key for run in found.runs for key in run.data.metrics}
    if patterns and not any(_is_wanted(key, patterns) for key in keys):
        who = f"{found.title} has no metric" if found.is_alone else "no run has a metric"
        raise DataError(f"{who} called {', '.join(map(plain, patterns))}")


def _is_wanted(key: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(key, one) for one in patterns)


@dataclass(frozen=True)
class _Maker:
    """Makes one report."""

    client: MlflowClient
    found: Chosen
    folder: Path
    metrics: Sequence[str]
    place: Sequence[str]
    show: Show

    def made(self, path: Path) -> MadeReport:
        """Read the runs, one after the other, and write the page."""
        page, ask = Embedder(most_bytes=MOST_CLIP_BYTES), Asking()
        # Before the runs' own, so that clips side by side are the last to be left out.
        compared, several = (None, []) if self.found.is_alone else self._of_all(page, ask)
        read, own = self._runs(page, ask)
        unread = (*ask.unread, *(one for each in read for one in each.unread))
        sections = [*several, *self._not_read(unread), *own]
        notes = [one for one in (*self.found.notes, page.note()) if one]
        size_bytes = self._write(path, sections, notes)
        if size_bytes > VIEWER_BYTES:
            notes.append("It is too long for MLflow's viewer: open the file, or draw fewer metrics")
        return MadeReport(
            file=path,
            size_bytes=size_bytes,
            markdown=self._markdown(read, compared, notes, unread),
            run_ids=tuple(self._ids),
            unread=unread,
            notes=tuple(notes),
        )

    def logged(self, made: MadeReport) -> MadeReport:
        """Put page and Markdown into a run; those of the same name are replaced."""
        if lost := [one for one in made.unread if self._is_main(one)]:
            why = f"not logged, where it could replace a better one: not read: {lost[0].line}"
            return replace(made, not_logged=why)
        self.show("logging the report", 0, 1)
        run_id, stem = str(self.found.home.info.run_id), self.found.stem
        files = {f"{stem}.html": made.file.read_bytes(), f"{stem}.md": made.markdown.encode()}
        try:
            with told_in_one_line(f"cannot be logged in run {run_id}"):
                for name, content in files.items():
                    self._log(run_id, name, content)
        except RegistryError as error:
            return replace(made, not_logged=str(error))
        return replace(made, logged=tuple(f"{run_id}/{REPORTS}/{name}" for name in files))

    def _is_main(self, one: Unread) -> bool:
        """Whether a report without it is a poor one; of several runs some may lack their files."""
        is_of_metrics = one.part in ("comparison", "curves") or one.part.startswith("curves of ")
        return is_of_metrics or (self.found.is_alone and one.part in ("params and tags", "files"))

    def _log(self, run_id: str, name: str, content: bytes) -> None:
        here = self.folder / name
        here.write_bytes(content)
        self.client.log_artifact(run_id, str(here), REPORTS)

    @property
    def _ids(self) -> list[str]:
        return [str(one.info.run_id) for one in self.found.runs]

    def _write(self, path: Path, sections: Sequence[Section], notes: Sequence[str]) -> int:
        subtitle = _subtitle(self.found, notes)
        write_document(path, parts_of(self.found.title, sections, subtitle=subtitle))
        return path.stat().st_size

    # Each run

    def _runs(self, page: Embedder, ask: Asking) -> tuple[list[RunRead], list[Section]]:
        """What was read of each run, in short where there are several, and its sections.

        Points and fetched files are held of one run at a time.
        """
        reader = self._reader(page, ask)
        every, sections = [], []
        for number, run in enumerate(self.found.runs):
            read, own = self._run(reader, run, page)
            sections += own if self.found.is_alone else [_folded(read, own, number)]
            every.append(read if self.found.is_alone else read.in_short())
        return every, sections

    def _reader(self, page: Embedder, ask: Asking) -> RunReader:
        return RunReader(
            client=self.client,
            compares=self.found.is_alone,
            most_clip_bytes=_PANEL_BYTES // len(self.found.runs),
            has_room=page.has_room,
            place=self.place,
            before=ask,
            show=self.show,
        )

    def _run(self, reader: RunReader, run: Run, page: Embedder) -> tuple[RunRead, list[Section]]:
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.folder) as folder:
            read = reader.read(run, Path(folder))
            curves = curves_html(
                read,
                runs=len(self.found.runs),
                wanted=lambda key: _is_wanted(key, self.metrics),
            )
            return read, sections_of(read, curves, page)

    # All of them

    def _of_all(self, page: Embedder, ask: Asking) -> tuple[Comparison | None, list[Section]]:
        """What the runs have in common, and in what they differ."""
        beside = ask.part("comparison", self._beside, None)
        if beside is None:
            return None, []
        uri, show = self.client.tracking_uri, self.show
        sections = ask.part(
            "comparison",
            lambda: compare_page.sections_of(beside, tracking_uri=uri, embedder=page, show=show),
            list[Section](),
        )
        return beside.comparison, sections

    def _beside(self) -> Beside | None:
        uri, first = self.client.tracking_uri, str(self.found.reference.info.run_id)
        ids = [first, *(one for one in self._ids if one != first)]
        return laid_beside(ids, metrics=self.metrics, tracking_uri=uri, show=self.show)

    def _not_read(self, unread: Sequence[Unread]) -> Iterator[Section]:
        """Of several runs before their own sections, which are folded."""
        if unread and not self.found.is_alone:
            said = notes_of(f"Not read: {one.line}" for one in unread)
            yield Section(id="not-read", title="Not read", html=said)

    # In short

    def _markdown(
        self,
        read: list[RunRead],
        compared: Comparison | None,
        notes: list[str],
        unread: Sequence[Unread],
    ) -> str:
        if self.found.is_alone:
            return markdown.of_run(read[0], list(self._commands(read[0])))
        commands = list(self._commands(None))
        return markdown.of_several(self.found.title, read, compared, notes, commands, unread=unread)

    def _commands(self, alone: RunRead | None) -> Iterator[list[str]]:
        """What shows more; not where it would say a password, or what a terminal turns round."""
        if all(map(str.isprintable, self.found.words)):
            yield ["opusclip", "report", *self.found.words, *self.place]
        if alone and alone.bottlenecks:
            yield ["opusclip", "bottlenecks", *self._ids, *self.place]
        if alone is None and len(self._ids) <= _MOST_NAMED:
            yield ["opusclip", "compare", *self._ids, *self.place]


def _folded(read: RunRead, sections: Sequence[Section], number: int) -> Section:
    """A run among several: what it has of its own, folded."""
    parts = "".join(f"<h3>{html.escape(one.title)}</h3>\n{one.html}" for one in sections)
    text = f"<details><summary>all of it</summary>\n{parts}</details>\n"
    return Section(id=f"run-{number + 1}", title=f"Run {read.called}", html=text)


def _subtitle(found: Chosen, notes: Sequence[str]) -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = "" if found.is_alone else f" of {len(found.runs)} runs"
    return " ".join(filter(None, (f"Report{count}, made {made}.", *notes)))

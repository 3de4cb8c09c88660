"""Reports of runs: one HTML file that needs no network, and the same in short as Markdown."""

from __future__ import annotations

import hashlib
import html
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from opusclip_mlops import compare_page
from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.comparing import Beside, Show, laid_beside
from opusclip_mlops.errors import ConfigError, DataError
from opusclip_mlops.layout import REPORTS
from opusclip_mlops.lookout import experiment_ids
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.page_charts import notes_of
from opusclip_mlops.page_document import Section, check_place, document, write_document
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.redaction import redacted
from opusclip_mlops.reports import markdown
from opusclip_mlops.reports.curve_charts import curves_html
from opusclip_mlops.reports.reading import Asking, RunRead, RunReader, Unread
from opusclip_mlops.reports.run_sections import sections_of
from opusclip_mlops.reports.wording import plain

MOST_RUNS = 50
"""Of how many runs a report is made; of an experiment the newest."""

MOST_CLIP_BYTES = 24 * 2**20
"""How much of clips and pictures a report holds: a third more of the page."""

VIEWER_BYTES = 50 * 2**20
"""What MLflow's artifact viewer shows at most."""

_PANEL_BYTES = 16 * 2**20
_ID_DIGITS = 8
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
        unread: What could not be read of which run, and why.
        notes: What else is said about it.
    """

    file: Path
    size_bytes: int
    markdown: str
    run_ids: tuple[str, ...]
    logged: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The runs that are reported.

    Attributes:
        runs: In their order.
        title: What the report is of.
        stem: The name of its files in MLflow, without an ending; the same each time.
        words: What follows `opusclip report` to make it again.
        notes: What was left out.
    """

    runs: tuple[Run, ...]
    title: str
    stem: str
    words: tuple[str, ...]
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

    Args:
        runs: Ids, names or unique beginnings; the others are compared with the first.
        experiment: In place of runs: its name or id. Its newest runs, at most `MOST_RUNS`.
        file: The page; `report-<id>.html` in this folder when None. It appears whole.
        metrics: Patterns like "val/*" of the curves that are drawn; all when there is none.
        logs: Whether it is put into MLflow: under `reports/` in the first run.
        log_to: The run it is put into instead.
        tracking_uri: Where the runs are, MLflow's default when None.
        show: Is told what is being done.

    Raises:
        ConfigError: Neither runs nor an experiment, or both; too many; the page cannot be written.
        SelectionError: There is no such experiment.
        RegistryError: No such run, or MLflow did not answer; or it takes no report: the page is
            written then.
        DataError: The experiment has no runs, or no run has a metric that is called so.
    """
    if bool(runs) == bool(experiment):
        raise ConfigError("name runs, or an --experiment, and not both")
    if file is not None:
        check_place(file)
    client = client_of(tracking_uri, None)
    with told_in_one_line("cannot find the runs"):
        found = _of_experiment(client, experiment) if experiment else _named(client, runs)
        place = run_called(client, log_to) if log_to else found.runs[0]
    path = file or Path(f"report-{_mark(found)}.html")
    check_place(path)
    with tempfile.TemporaryDirectory(prefix="opusclip-report-") as folder:
        maker = _Maker(client, found, Path(folder), metrics, tracking_uri, show)
        made = maker.made(path)
        if logs:
            show("logging the report", 0, 1)
            return _logged(client, made, str(place.info.run_id), found.stem, Path(folder))
        return made


# Which runs


def _named(client: MlflowClient, names: Sequence[str]) -> _Chosen:
    found: dict[str, Run] = {}
    for name in names:
        run = run_called(client, name)
        found.setdefault(str(run.info.run_id), run)
    if len(found) > MOST_RUNS:
        raise ConfigError(f"{len(found)} runs are too many for a report: give {MOST_RUNS} or fewer")
    first = plain(next(iter(found.values())).info.run_name or next(iter(found)))
    if len(found) == 1:
        runs, words = tuple(found.values()), tuple(found)
        return _Chosen(runs=runs, title=f"Run {first}", stem="report", words=words)
    digest = hashlib.sha256(" ".join(found).encode()).hexdigest()
    title = f"{first} and {len(found) - 1} more"
    return _Chosen(
        runs=tuple(found.values()),
        title=title,
        stem=f"runs-{digest[:_ID_DIGITS]}",
        words=tuple(found),
    )


def _of_experiment(client: MlflowClient, name: str) -> _Chosen:
    [experiment_id] = experiment_ids(client, [name])
    newest = client.search_runs(
        [experiment_id], "", ViewType.ACTIVE_ONLY, MOST_RUNS, ["attributes.start_time DESC"]
    )
    if not newest:
        raise DataError(f"experiment {plain(name)!r} has no runs to report")
    notes = [f"The newest {MOST_RUNS} runs of the experiment; it has more."] if newest.token else []
    called = client.get_experiment(experiment_id).name
    return _Chosen(
        runs=tuple(newest),
        title=f"Experiment {plain(called)}",
        stem=f"experiment-{experiment_id}",
        words=("--experiment", called),
        notes=tuple(notes),
    )


def _mark(found: _Chosen) -> str:
    """What tells the files of two reports apart where none was named."""
    is_alone = len(found.runs) == 1 and found.stem == "report"
    return str(found.runs[0].info.run_id)[:_ID_DIGITS] if is_alone else found.stem


# The report itself


@dataclass(frozen=True)
class _Maker:
    """Makes one report."""

    client: MlflowClient
    found: _Chosen
    folder: Path
    metrics: Sequence[str]
    tracking_uri: str | None
    show: Show

    def made(self, path: Path) -> MadeReport:
        """Read the runs, one after the other, and write the page."""
        page, ask, is_alone = Embedder(most_bytes=MOST_CLIP_BYTES), Asking(), self._is_alone
        beside = None if is_alone else ask.part("comparison", self._beside, None)
        # Before the runs' own, so that clips side by side are the last to be left out.
        several = [] if is_alone else list(self._of_all(beside, page, ask))
        read, sections = self._runs(page)
        notes = [one for one in (*self.found.notes, page.note()) if one]
        subtitle = _subtitle(self.found, notes)
        write_document(path, document(self.found.title, [*several, *sections], subtitle=subtitle))
        size_bytes = path.stat().st_size
        if size_bytes > VIEWER_BYTES:
            notes.append("It is too long for MLflow's viewer: open the file, or draw fewer metrics")
        return MadeReport(
            file=path,
            size_bytes=size_bytes,
            markdown=self._markdown(read, beside, notes),
            run_ids=tuple(str(one.info.run_id) for one in self.found.runs),
            unread=(*ask.unread, *(one for each in read for one in each.unread)),
            notes=tuple(notes),
        )

    @property
    def _is_alone(self) -> bool:
        return len(self.found.runs) == 1

    def _beside(self) -> Beside | None:
        ids = [str(one.info.run_id) for one in self.found.runs]
        return laid_beside(
            ids, metrics=self.metrics, tracking_uri=self.client.tracking_uri, show=self.show
        )

    def _runs(self, page: Embedder) -> tuple[list[RunRead], list[Section]]:
        """What was read of each run, and its sections; points are held of one run at a time."""
        runs = self.found.runs
        reader = RunReader(
            client=self.client,
            folder=self.folder,
            wanted=_wanted(self.metrics),
            compares=self._is_alone,
            most_clip_bytes=_PANEL_BYTES // len(runs),
            show=self.show,
        )
        every, sections = [], []
        for number, run in enumerate(runs):
            read = reader.read(run)
            self._check(read)
            own = sections_of(read, curves_html(read, runs=len(runs)), page)
            sections += own if self._is_alone else [_folded(read, own, number)]
            every.append(read if self._is_alone else read.in_short())
        return every, sections

    def _check(self, read: RunRead) -> None:
        is_known = all(one.part != "curves" for one in read.unread)
        if self.metrics and is_known and not read.curves and self._is_alone:
            names = ", ".join(map(plain, self.metrics))
            raise DataError(f"run {read.called} has no metric called {names}")

    def _of_all(self, beside: Beside | None, page: Embedder, ask: Asking) -> Iterator[Section]:
        """What the runs have in common, and in what they differ."""
        if beside is not None:
            uri, show = self.client.tracking_uri, self.show

            def read() -> list[Section]:
                return compare_page.sections_of(beside, tracking_uri=uri, embedder=page, show=show)

            yield from ask.part("comparison", read, list[Section]())
        if ask.unread:
            said = notes_of(f"Not read: {one.part}: {one.reason}" for one in ask.unread)
            yield Section(id="not-read", title="Not read", html=said)

    def _markdown(self, read: list[RunRead], beside: Beside | None, notes: list[str]) -> str:
        commands = list(self._commands(beside))
        if len(read) == 1:
            return markdown.of_run(read[0], commands)
        comparison = beside.comparison if beside else None
        return markdown.of_several(self.found.title, read, comparison, notes, commands)

    def _commands(self, beside: Beside | None) -> Iterator[list[str]]:
        """What shows more; not where it would say a password."""
        ids = [str(one.info.run_id) for one in self.found.runs]
        uri = self.tracking_uri
        place = ["--tracking-uri", uri] if uri and redacted(uri) == uri else []
        yield ["opusclip", "report", *self.found.words, *place]
        if beside is None:
            yield ["opusclip", "bottlenecks", ids[0], *place]
        elif len(ids) <= _MOST_NAMED:
            yield ["opusclip", "compare", *ids, *place]


def _wanted(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda key: not patterns or any(fnmatchcase(key, one) for one in patterns)


def _folded(read: RunRead, sections: Sequence[Section], number: int) -> Section:
    """A run among several: what it has of its own, folded."""
    parts = "".join(f"<h3>{html.escape(one.title)}</h3>\n{one.html}" for one in sections)
    text = f"<details><summary>all of it</summary>\n{parts}</details>\n"
    return Section(id=f"run-{number + 1}", title=f"Run {read.called}", html=text)


def _subtitle(found: _Chosen, notes: Sequence[str]) -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = "" if len(found.runs) == 1 else f" of {len(found.runs)} runs"
    return " ".join(filter(None, (f"Report{count}, made {made}.", *notes)))


def _logged(
    client: MlflowClient, made: MadeReport, run_id: str, stem: str, folder: Path
) -> MadeReport:
    """Put page and Markdown into a run; those of the same name are replaced."""
    files = {f"{stem}.html": made.file.read_bytes(), f"{stem}.md": made.markdown.encode()}
    with told_in_one_line(f"{made.file} is written, but cannot be logged in run {run_id}"):
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
            client.log_artifact(run_id, str(folder / name), REPORTS)
    places = tuple(f"{run_id}/{REPORTS}/{name}" for name in files)
    return replace(made, logged=places)

"""Runs of MLflow beside each other: in what they differ, how their metrics went, their samples.

The first run, A, is what the others are compared with. Of a run that went on from a checkpoint only
what it looks back on now counts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.contrasts import Contrast, Facts, contrasts, facts_of
from opusclip_mlops.curves import By, Curve, curves_of
from opusclip_mlops.errors import ConfigError, DataError, RegistryError
from opusclip_mlops.generations import generations_of, line_of
from opusclip_mlops.layout import LOCAL_ID_TAG
from opusclip_mlops.metric_rows import MetricRow, rows_of
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.panel_steps import listed, panel_titles, repository_of, that_count
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.redaction import one_line, redacted
from opusclip_mlops.refusals import asking_faults, reason_of
from opusclip_mlops.run_history import open_history

Branch = Literal["now", "all"]
"""Which points count: those the run looks back on now, or all that were ever logged."""

Show = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""

LEFT_OUT = ("system/*", "performance/*", "profiling/*")
"""Metrics that are compared only when they are asked for."""

MOST_POINTS = 20_000_000
"""How many points of all runs are held at once: 24 bytes each."""


@dataclass(frozen=True, kw_only=True)
class PanelBeside:
    """A panel that several runs sampled.

    Attributes:
        title: The panel's.
        steps: At which steps each of the runs has samples, by its label.
        common: The steps that all of these have.
        command: Shows them side by side.
    """

    title: str
    steps: Mapping[str, tuple[int, ...]]
    common: tuple[int, ...]
    command: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: By their labels, "A" first.
        differences: By `contrasts.SECTIONS`: what is not alike in all runs.
        by: Over what the means are.
        metrics: By key; of one key several where runs measured it unlike.
        panels: Those that two runs or more sampled.
        notes: What else has to be known.
    """

    runs: Mapping[str, Facts]
    differences: Mapping[str, tuple[Contrast, ...]]
    by: By
    metrics: tuple[MetricRow, ...]
    panels: tuple[PanelBeside, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside:
    """Runs that were read, for pages that draw their curves as well.

    Attributes:
        comparison: What is told of them.
        runs: As MLflow has them, by label.
        curves: Of each run, by label and key.
        branch: Which points the curves hold.
    """

    comparison: Comparison
    runs: Mapping[str, Run]
    curves: Mapping[str, Mapping[str, Curve]]
    branch: Branch


def compare(
    runs: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    by: By = "step",
    branch: Branch = "now",
    allow_unlike: bool = False,
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
) -> Comparison:
    """Compare runs of one MLflow with the first of them.

    Args:
        runs: Ids, names, unique beginnings or local ids of two runs or more.
        metrics: Patterns like "val/*"; all but `LEFT_OUT` when there is none.
        by: Over what a metric's mean is taken.
        branch: Which points count.
        allow_unlike: Put values side by side without a look at how they were measured.
        tracking_uri: Where the runs are, MLflow's default when None.
        show: Is told what is being done.

    Raises:
        ConfigError: There are less than two runs, or one is named twice.
        RegistryError: No such run, or MLflow did not answer.
        HistoryError: A database cannot be read.
        DataError: No metric is called so, or there are more points than `MOST_POINTS`.
    """
    return laid_beside(
        runs,
        metrics=metrics,
        by=by,
        branch=branch,
        allow_unlike=allow_unlike,
        tracking_uri=tracking_uri,
        show=show,
    ).comparison


def laid_beside(
    runs: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    by: By = "step",
    branch: Branch = "now",
    allow_unlike: bool = False,
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
) -> Beside:
    """The same as `compare`, with the runs and curves that it is made of."""
    client = client_of(tracking_uri, None)
    with told_in_one_line("cannot compare the runs"):
        found = _found(client, runs)
        every = _curves(client, found, _wanted(metrics), branch, show)
        if metrics and not any(every.values()):
            raise DataError(one_line(f"no run has a metric called {', '.join(metrics)}"))
    files = {} if allow_unlike else _passport_files(client, found)
    rows = _metrics(found, every, files, by, show)
    facts = {label: facts_of(run) for label, run in found.items()}
    place = place_words(tracking_uri)
    panels, notes = _panels(client, found, place, show)
    comparison = Comparison(
        runs=facts,
        differences=contrasts(list(facts.values())),
        by=by,
        metrics=rows,
        panels=tuple(panels),
        notes=(*_changed_code(facts), *notes),
    )
    return Beside(comparison=comparison, runs=found, curves=every, branch=branch)


# Which runs, and which points


def _found(client: MlflowClient, names: Sequence[str]) -> dict[str, Run]:
    if len(names) < 2:
        raise ConfigError("give two runs or more to compare")
    found: dict[str, Run] = {}
    named: dict[str, str] = {}
    for name in names:
        run = _run(client, name)
        first = named.setdefault(run.info.run_id, name)
        if run.info.run_id in {one.info.run_id for one in found.values()}:
            raise ConfigError(one_line(f"{first!r} and {name!r} are one run: {run.info.run_id}"))
        found[_label(len(found))] = run
    return found


def _run(client: MlflowClient, name: str) -> Run:
    """The run that is called so in MLflow, else the one whose folder on a machine is."""
    try:
        return run_called(client, name)
    except RegistryError:
        local = list(_by_local_id(client, name))
        if len(local) != 1:
            raise
        return local[0]


def _by_local_id(client: MlflowClient, name: str) -> Iterator[Run]:
    if not name.isalnum():
        return
    experiments = [one.experiment_id for one in client.search_experiments()]
    if experiments:
        yield from client.search_runs(
            experiments, f"tags.`{LOCAL_ID_TAG}` = '{name}'", max_results=2
        )


def _label(number: int) -> str:
    """A, B … Z, AA, AB …, as columns of a spreadsheet are called."""
    before = _label(number // 26 - 1) if number >= 26 else ""
    return before + chr(ord("A") + number % 26)


def _wanted(patterns: Sequence[str]) -> Callable[[str], bool]:
    if patterns:
        return lambda key: any(fnmatchcase(key, one) for one in patterns)
    return lambda key: not any(fnmatchcase(key, one) for one in LEFT_OUT)


def _curves(
    client: MlflowClient,
    runs: Mapping[str, Run],
    wanted: Callable[[str], bool],
    branch: Branch,
    show: Show,
) -> dict[str, dict[str, Curve]]:
    """The curves of each run; one run's points are read at a time."""
    history = open_history(client)
    found: dict[str, dict[str, Curve]] = {}
    count = 0
    for label, run in runs.items():
        show(f"reading run {one_line(run.info.run_name or label)}", len(found), len(runs))
        begun = generations_of(run.data.tags)
        line = line_of(begun, len(begun)) if branch == "now" else None
        found[label] = curves_of(history.read(run)[0], wanted=wanted, line=line)
        count += sum(len(one) for one in found[label].values())
        if count > MOST_POINTS:
            raise DataError(
                f"the runs have more than {MOST_POINTS:,} points: give fewer metrics by --metric"
            )
    return found


def _metrics(
    runs: Mapping[str, Run],
    every: Mapping[str, Mapping[str, Curve]],
    files: Mapping[str, PassportFiles],
    by: By,
    show: Show,
) -> tuple[MetricRow, ...]:
    starts = {label: int(run.info.start_time or 0) for label, run in runs.items()}
    keys = sorted({key for curves in every.values() for key in curves})
    rows: list[MetricRow] = []
    with told_in_one_line("cannot read how values were measured (--allow-unlike does without)"):
        for done, key in enumerate(keys):
            show("comparing metrics", done, len(keys))
            curves = {label: one[key] for label, one in every.items() if key in one}
            rows += rows_of(key, curves, files, by=by, starts=starts)
    return tuple(rows)


def _passport_files(client: MlflowClient, runs: Mapping[str, Run]) -> dict[str, PassportFiles]:
    return {label: PassportFiles(client, run.info.run_id) for label, run in runs.items()}


# What else there is


def _changed_code(facts: Mapping[str, Facts]) -> Iterator[str]:
    changed = [label for label, one in facts.items() if one.code.get("dirty") == "true"]
    if changed:
        yield f"files of {', '.join(changed)} were changed since the commit: their code may differ"


def _panels(
    client: MlflowClient, runs: Mapping[str, Run], place: Sequence[str], show: Show
) -> tuple[list[PanelBeside], list[str]]:
    """The panels that several runs sampled; why they are not known, where the store is away."""
    steps: dict[str, dict[str, tuple[int, ...]]] = {}
    show("looking for samples", 0, len(runs))
    try:
        for label, run in runs.items():
            repository = repository_of(client, run)
            for title in panel_titles(repository):
                count, _ = that_count(listed(repository, title), run)
                steps.setdefault(title, {})[label] = tuple(one.step for one in count)
    except asking_faults() as error:
        return [], [f"samples are not compared: {reason_of(error)}"]
    beside = {title: {k: v for k, v in one.items() if v} for title, one in sorted(steps.items())}
    shared = {title: one for title, one in beside.items() if len(one) > 1}
    return [_panel(title, one, runs, place) for title, one in shared.items()], []


def place_words(tracking_uri: str | None) -> tuple[str, ...]:
    """Where the runs are, for a command; not what has a password in it."""
    is_told = tracking_uri is not None and redacted(tracking_uri) == tracking_uri
    return ("--tracking-uri", tracking_uri) if is_told and tracking_uri else ()


def _panel(
    title: str,
    steps: Mapping[str, tuple[int, ...]],
    runs: Mapping[str, Run],
    place: Sequence[str],
) -> PanelBeside:
    common = sorted(set.intersection(*(set(one) for one in steps.values())))
    is_all = all(list(one) == common for one in steps.values())
    chosen = () if is_all or not common else ("--steps", ",".join(map(str, common)))
    ids = [str(runs[label].info.run_id) for label in steps]
    return PanelBeside(
        title=title,
        steps=steps,
        common=tuple(common),
        command=shlex.join(["opusclip", "wall", *ids, "--panel", title, *chosen, *place]),
    )

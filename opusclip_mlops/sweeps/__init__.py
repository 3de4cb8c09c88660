"""Many trials of one program: W&B's own file of a sweep, run with no account.

schema, kinds              the file, checked
spaces, stopping_early     what a trial is given, and when it has fallen behind
commands, trial_process    a trial's program
storage, board, claims     the study that workers share, and who runs which trial
studies, worker            a sweep that is there, and what works at it
trial_runs, results        MLflow: a run a trial, below the sweep's own
mlflow_away                waits for it
outcome, plots             what came of it
"""

import contextlib
import re
import secrets
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops.errors import ConfigError, OpusclipError, RegistryError
from opusclip_mlops.faults import attempted
from opusclip_mlops.open_sweeps import FOLDER, Mark, OpenSweep, clear
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sweeps.board import GROUP, Slot
from opusclip_mlops.sweeps.claims import Claims
from opusclip_mlops.sweeps.commands import check_program
from opusclip_mlops.sweeps.crew import Crew, Show
from opusclip_mlops.sweeps.engines import check_for_optuna, check_for_wandb, trial_count
from opusclip_mlops.sweeps.outcome import SweepResult as SweepResult
from opusclip_mlops.sweeps.outcome import best_of, importances, outcomes
from opusclip_mlops.sweeps.schema import SweepConfig, read_sweep
from opusclip_mlops.sweeps.storage import Asker, insisted, open_storage
from opusclip_mlops.sweeps.studies import Study, begin_study, open_study
from opusclip_mlops.sweeps.telling import Say, reason_of, say_capped, status_of
from opusclip_mlops.sweeps.trial_process import end_left_group

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENGINES = ("optuna", "wandb")
"""Who searches."""

_MOST_WORKERS, _STORAGE_WAIT_S, _STOPPED_WAIT_S = 1000, 60.0, 5.0
_Read = tuple[SweepResult, bool, dict[tuple[int, int], tuple[str, str]]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def sweep(
    file: Path | None = None,
    *,
    engine: str = "optuna",
    count: int | None = None,
    workers: int = 1,
    resume: str | None = None,
    storage: str | None = None,
    experiment: str = "sweeps",
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
    say: Say = lambda *_: None,
) -> SweepResult:
    """Run the trials of a sweep, each as a child of the sweep's own run in MLflow.

    Ctrl-C and SIGTERM stop the workers: what they were at is tried again when the sweep goes on.

    Args:
        file: The sweep's file, in W&B's schema; not with `resume`.
        engine: `optuna` searches here; `wandb` leaves that to W&B, and needs an account.
        count: How many trials, `run_cap` and the whole grid at most; as many as these otherwise.
        workers: How many trials run at once, in processes of this machine.
        resume: The name of a sweep to go on with, here or begun on another machine.
        storage: Where the workers share the study: `postgresql://…` or `grpc://HOST:PORT` for
            several machines; a file of this machine otherwise.
        experiment: The MLflow experiment of a new sweep.
        tracking_uri: The MLflow server or store.
        show: Called as trials end.
        say: Called once, before the first trial, with the sweep's name and its run's id.

    Raises:
        ConfigError: the file, or an argument, is wrong; a worker could not begin.
        RegistryError: MLflow refused, or did not answer.
        OpusclipError: the workers, or the storage, could not go on; `resume` does.
    """
    _check(file, resume, storage, engine=engine, count=count, workers=workers)
    config = _checked(file, engine, count) if file else None
    place = _place_of(resume, storage) if resume else ""
    from opusclip_mlops.patience import ask_briefly, connected

    ask_briefly()
    client = connected(tracking_uri=tracking_uri)
    if config and engine == "wandb":
        from opusclip_mlops.sweeps.by_wandb import sweep_by_wandb

        say_capped(config.run_cap, count)
        name, asked = _new_name(), trial_count(config, count)
        return sweep_by_wandb(
            client, config, name=name, folder=FOLDER / name, experiment=experiment,
            count=asked, workers=workers, show=show, say=say,
        )  # fmt: skip
    if config:
        study, place = _begun(client, config, count, storage, experiment)
    else:
        study = _resumed(client, str(resume), place, count)
    say(study.name, study.parent_run_id)
    say_capped(study.config.run_cap, count)
    return _worked(client, study, place, workers, show)


def _check(
    file: Path | None,
    resume: str | None,
    storage: str | None,
    *,
    engine: str,
    count: int | None,
    workers: int,
) -> None:
    if (file is None) == (resume is None):
        raise ConfigError("give a sweep's file, or the name of one to go on with: one of both")
    if not 1 <= workers <= _MOST_WORKERS:
        raise ConfigError(f"workers must be from 1 to {_MOST_WORKERS}, not {workers}")
    if count is not None and count < 1:
        raise ConfigError(f"count must be 1 or more, not {count}")
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r:.60}: choose from {', '.join(ENGINES)}")
    if engine == "wandb" and (resume or storage):
        raise ConfigError("engine wandb has its study at W&B: leave out resume and storage")


def _checked(file: Path, engine: str, count: int | None) -> SweepConfig:
    """The sweep's file, with nothing in it that the engine can't do."""
    config = read_sweep(file)
    check_for_wandb(config) if engine == "wandb" else check_for_optuna(config)
    trial_count(config, count)
    check_program(config.command, config.program)
    return config


def _worked(
    client: "MlflowClient", study: Study, place: str, workers: int, show: Show
) -> SweepResult:
    """Have the workers of this machine work, and say what came of it."""
    folder = FOLDER / study.name
    wait_s, is_stopped = _STOPPED_WAIT_S, False
    try:
        mark = _marked(client, study, place)
    except OSError as error:
        # Others may work at it, or all be done: its run says how it stands.
        attempted(lambda: _ended(client, study, folder, wait_s=wait_s))
        why = one_line(str(error))
        raise OpusclipError(f"sweep {study.name} cannot begin: {why}") from None
    try:
        crew = Crew(study, place, folder=folder, tracking_uri=str(client.tracking_uri))
        crew.work(workers, show)
        wait_s = _STORAGE_WAIT_S
    except KeyboardInterrupt:
        # Who stops it is told what is left to do.
        is_stopped = True
    finally:
        with contextlib.closing(mark):
            result, is_open = _ended(client, study, folder, wait_s=wait_s, is_stopped=is_stopped)
            # Who still works at it here has a mark, too; else this one says that it is to be ended.
            if not (is_open and _is_file(place)):
                mark.take_away()
    return result


def _marked(client: "MlflowClient", study: Study, place: str) -> Mark:
    """For the case that this process is killed, and nobody goes on with the sweep."""
    uri, is_shared = str(client.tracking_uri), not _is_file(place)
    mark = Mark(
        OpenSweep(
            name=study.name, run_id=study.parent_run_id, tracking_uri=uri, is_shared=is_shared
        )
    )
    if not is_shared:
        _link(study.name, Path(place))
    return mark


def _is_file(place: str) -> bool:
    return "://" not in place


def _link(name: str, place: Path) -> None:
    """Have a study's file, where the user has named one, found by the sweep's name."""
    own = _place(name, is_new=True)
    with contextlib.suppress(OSError):
        if own.resolve() == place.resolve():
            return
        if own.is_symlink():
            own.unlink()
        own.symlink_to(place.resolve())


def settle(
    name: str, *, storage: str | None = None, tracking_uri: str | None = None
) -> SweepResult | None:
    """Say in MLflow how a sweep stands whose commands were killed; `resume` goes on with it.

    Args:
        name: The sweep's.
        storage: Where its study is; a file of this machine otherwise.
        tracking_uri: The MLflow server or store.

    Returns:
        What came of it so far; None where somebody still works at it.

    Raises:
        ConfigError: there is no such sweep, or its storage does not answer.
        OpusclipError: MLflow, or the storage, refused or did not answer.
    """
    from opusclip_mlops.patience import ask_briefly, connected
    from opusclip_mlops.sweeps.trial_runs import TrialRuns
    from opusclip_mlops.sweeps.worker import end_left

    place = _place_of(name, storage)
    study = open_study(place, name)
    ask_briefly()
    client = connected(tracking_uri=tracking_uri)
    runs = TrialRuns(client, study.parent_run_id, name)
    claims = Claims(
        study.storage, name, study.config, on_lost=partial(end_left, runs), is_alone=_is_file(place)
    )
    if claims.is_worked_at():
        return None
    claims.reclaim(claims.board(), claims.count())
    result, _ = _ended(client, study, FOLDER / name, wait_s=_STOPPED_WAIT_S)
    clear((FOLDER / name).absolute())
    return result


def _new_name() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _begun(
    client: "MlflowClient", config: SweepConfig, count: int | None, storage: str | None, where: str
) -> tuple[Study, str]:
    from opusclip_mlops.sweeps.results import begin_run, or_failed

    name = _new_name()
    place = storage or str(_place(name, is_new=True))
    # Asked before a run is made that nobody would end.
    open_storage(place)
    run_id = begin_run(client, config, name=name, experiment=where)
    asked = trial_count(config, count)
    begin = partial(begin_study, place, name, config, parent_run_id=run_id, count=asked)
    return or_failed(client, run_id, name, begin), place


def _resumed(client: "MlflowClient", name: str, place: str, count: int | None) -> Study:
    from opusclip_mlops.sweeps.results import go_on

    study = open_study(place, name)
    check_program(study.config.command, study.config.program)
    if count is not None:
        study = open_study(place, name, count=trial_count(study.config, count))
    go_on(client, study.parent_run_id)
    return study


def _place_of(name: str, storage: str | None) -> str:
    """Where a sweep that goes on is shared; its name becomes a folder here in any case."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.60} is no name of a sweep")
    return storage or str(_place(name))


def _place(name: str, *, is_new: bool = False) -> Path:
    """The file of a sweep of this machine."""
    place = (FOLDER / name / "study.journal").absolute()
    if is_new:
        return place
    if not place.exists():
        raise ConfigError(f"no sweep {name} in {FOLDER}: give --storage where it is elsewhere")
    return place.resolve()


def _ended(
    client: "MlflowClient", study: Study, folder: Path, *, wait_s: float, is_stopped: bool = False
) -> tuple[SweepResult, bool]:
    """Say in MLflow what came of it so far; whether its run goes on, for others work at it."""
    from opusclip_mlops.sweeps.results import end_run
    from opusclip_mlops.sweeps.trial_runs import TrialRuns

    result, is_worked_at, ended = _read(study, folder, wait_s, is_stopped)
    try:
        TrialRuns(client, study.parent_run_id, study.name).settle(ended)
        end_run(
            client, study.parent_run_id, result.trials, metric=study.config.metric,
            best=result.best, shares=result.importances,
            status=None if is_worked_at else status_of(result), reason=reason_of(result),
        )  # fmt: skip
    except RegistryError as error:
        raise RegistryError(f"{error}; go on: opusclip sweep --resume {study.name}") from error
    return result, is_worked_at


def _read(study: Study, folder: Path, wait_s: float, is_stopped: bool) -> _Read:
    ask = partial(Asker().ask, partial(_result, study, folder, is_stopped), wait_s=wait_s)
    read: list[_Read] = []
    if fault := attempted(lambda: read.append(insisted(ask, wait_s=wait_s))):
        why = f"what came of sweep {study.name} cannot be read: {one_line(str(fault))}"
        raise OpusclipError(f"{why}; go on: opusclip sweep --resume {study.name}") from None
    return read[0]


def _result(study: Study, folder: Path, is_stopped: bool) -> _Read:
    """What came of it so far, whether others still work at it, and which attempts are over.

    What workers of this machine had that were killed is left to others; their runs end below.
    """
    claims = Claims(
        study.storage, study.name, study.config, on_lost=_end_program, is_stopped=is_stopped
    )
    attempted(lambda: claims.reclaim(claims.board(), claims.count()))
    found, count, metric = claims.board(), claims.count(), study.config.metric
    trials = outcomes(found, study.config, count)
    is_over = claims.is_over()
    result = SweepResult(
        name=study.name,
        run_id=study.parent_run_id,
        metric=metric.name if metric else None,
        trials=trials,
        best=best_of(trials, metric),
        importances=importances(found, study.config, count),
        is_over=is_over,
        folder=folder,
    )
    return result, not is_over and claims.is_worked_at(), found.ended()


def _end_program(slot: Slot) -> None:
    """End what is left of a trial of this machine."""
    end_left_group(slot.last.user_attrs.get(GROUP) or {})

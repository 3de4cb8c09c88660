"""Are MLflow and its mirrors equal? Point by point, and repaired where they are not."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from opusclip_mlops import mirror_processes
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.mirror_state import MirrorState
from opusclip_mlops.mirror_work import RunReport, Work
from opusclip_mlops.replay import Places, works_of

_UNREPAIRED = ("unequal", "absent")
_SENT = ("mirrored", "equal")


def verify(
    runs: str | Sequence[str] = (),
    *,
    to: str | Sequence[str] = (),
    experiments: str | Sequence[str] = (),
    repair: bool = False,
    places: Places | None = None,
    show: Callable[[RunReport], None] | None = None,
) -> list[RunReport]:
    """Compare runs in MLflow with their mirrors; the outcome of each is `equal` or not.

    Args:
        runs: Run ids.
        to: The mirrors to look at; by default all that a run was mirrored to from here, and those
            of the configuration that hold something of it.
        experiments: Names or ids of experiments, for all their runs.
        repair: Bring mirrors that are not equal up to date, and compare again.
        places: Where MLflow and the mirrors are, other than the configuration says.
        show: Is called with each report as it comes.

    Raises:
        ConfigError: no runs, or no mirror of theirs is known.
        DeliveryError: MLflow can't be read at all.
    """
    told = show or (lambda _: None)
    works = _works(runs, to, experiments, places)
    found = [one for one in mirror_processes.do(works, told) if to or one.outcome != "absent"]
    if not found:
        raise ConfigError("no mirror is known here: name it with --to, or mirror the run first")
    wrong = [one for one in found if one.outcome in _UNREPAIRED]
    if not repair or not wrong:
        return found
    again = list(_only(works, wrong))
    sent = mirror_processes.do([_sending(work) for work in again], told)
    unsent = {_place(one): one for one in sent if one.outcome not in _SENT}
    seen = {_place(one): one for one in mirror_processes.do(again, told)}
    return [(seen | unsent).get(_place(one), one) if one in wrong else one for one in found]


def _works(
    runs: str | Sequence[str],
    to: str | Sequence[str],
    experiments: str | Sequence[str],
    places: Places | None,
) -> list[Work]:
    if to:
        return works_of(runs, to=to, experiments=experiments, does="verify", places=places)
    config, given = TrackingConfig(), places or Places()
    usual = ["tensorboard:" + config.tensorboard_dir]
    if (given.wandb_mode or config.wandb_mode) != "disabled":
        entity = f"{config.wandb_entity}/" if config.wandb_entity else ""
        usual.append(f"wandb:{entity}{config.project_name}")
    works = works_of(runs, to=usual, experiments=experiments, does="verify", places=given)
    targets = dict.fromkeys(work.target for work in works)
    noted = MirrorState()
    targets |= dict.fromkeys(one for run in works[0].run_ids for one in noted.targets_of(run))
    return [msgspec.structs.replace(works[0], target=target) for target in targets]


def _only(works: Iterable[Work], wrong: Sequence[RunReport]) -> Iterable[Work]:
    """The works of those runs and places that are not equal."""
    for work in works:
        run_ids = [one.run_id for one in wrong if one.target == str(work.target)]
        if run_ids:
            yield msgspec.structs.replace(work, run_ids=run_ids, experiments=[])


def _sending(work: Work) -> Work:
    return msgspec.structs.replace(work, does="mirror")


def _place(report: RunReport) -> tuple[str, str]:
    return report.target, report.run_id


def is_equal(reports: Iterable[RunReport]) -> bool:
    """Whether every mirror that was looked at is equal."""
    return all(one.outcome == "equal" for one in reports)

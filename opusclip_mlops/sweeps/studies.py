"""The study of a sweep: what its workers share, wherever they are.

It holds the sweep's file, its MLflow run and how many trials are asked for, so that a worker needs
to know the place and the name only.
"""

import json
import warnings
from dataclasses import dataclass

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.claims import COUNT
from opusclip_mlops.sweeps.schema import SweepConfig, sweep_of
from opusclip_mlops.sweeps.storage import open_storage

STORAGE_VARIABLE = "OPUSCLIP_SWEEP_STORAGE"
"""Names the storage for a worker: it may hold a password, which no command line may show."""

NO_WORK_CODE, AWAY_CODE = 2, 3
"""A worker's exit codes: it cannot work at all, or MLflow refused or was away for long."""

_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
_DOCUMENT, _PARENT = "document", "parent_run_id"


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        storage: Where it is shared.
        name: The sweep's.
        config: The sweep's file.
        parent_run_id: The sweep's run in MLflow.
        count: How many trials are asked for.
    """

    storage: BaseStorage
    name: str
    config: SweepConfig
    parent_run_id: str
    count: int


def begin_study(
    place: str, name: str, config: SweepConfig, *, parent_run_id: str, count: int
) -> Study:
    """Make a study.

    Raises:
        ConfigError: the place does not answer, or has a study of this name.
    """
    storage = open_storage(place)
    maximizes = config.metric is not None and config.metric.maximizes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(
                storage=storage, study_name=name, direction=_DIRECTIONS[maximizes]
            )
    except DuplicatedStudyError:
        raise ConfigError(f"sweep {name} is there already: go on with --resume {name}") from None
    study.set_user_attr(_PARENT, parent_run_id)
    study.set_user_attr(COUNT, count)
    # The last: what has it is whole.
    study.set_user_attr(_DOCUMENT, json.dumps(config.document))
    return Study(storage, name, config, parent_run_id, count)


def open_study(place: str, name: str, *, count: int | None = None) -> Study:
    """Open a study that is there.

    Args:
        place: See `storage.open_storage`.
        name: The sweep's.
        count: How many trials are asked for from now on; as many as before by default.

    Raises:
        ConfigError: the place does not answer, or has no such study.
    """
    storage = open_storage(place)
    try:
        found = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except KeyError:
        raise ConfigError(f"there is no sweep {name} in this storage") from None
    if _DOCUMENT not in found:
        raise ConfigError(f"sweep {name} was never begun: begin a new one")
    if count is not None:
        storage.set_study_user_attr(storage.get_study_id_from_name(name), COUNT, count)
    config = sweep_of(json.loads(found[_DOCUMENT]), f"sweep {name}")
    return Study(storage, name, config, found[_PARENT], count or int(found[COUNT]))

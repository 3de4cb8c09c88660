"""A run of MLflow by what people call it: its id, its name, or a unique beginning of either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import MISSING

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_ID_BEGINNING = re.compile(r"[0-9a-f]{4,31}")
_PAGE = 500
_SHOWN = 5


def run_called(client: MlflowClient, name: str) -> Run:
    """The run that is meant; runs that were deleted are none.

    Raises:
        RegistryError: No run is called so, or several are.
        MlflowException: MLflow does not answer.
    """
    found = _by_id(client, name) or list(_by_name(client, name)) or list(_begun(client, name))
    if len(found) == 1:
        return found[0]
    what = one_line(repr(name), at_most=120)
    if not found:
        place = one_line(str(client.tracking_uri), at_most=200)
        raise RegistryError(
            f"no run in MLflow is called {what}: give its id, its name or a beginning of one, or "
            f"another --tracking-uri than {place}"
        )
    shown = ", ".join(f"{one.info.run_id} ({one.info.run_name})" for one in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise RegistryError(f"{len(found)} runs are called {what}: {shown}{more}; give an id")


def _by_id(client: MlflowClient, name: str) -> list[Run]:
    if not _RUN_ID.fullmatch(name):
        return []
    try:
        run = client.get_run(name)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return []
    if run.info.lifecycle_stage == "deleted":
        raise RegistryError(f"run {name} was deleted in MLflow: restore it first")
    return [run]


def _by_name(client: MlflowClient, name: str) -> Iterator[Run]:
    if (quoted := _quoted(name)) is not None:
        yield from _searched(client, f"attributes.run_name = {quoted}")


def _begun(client: MlflowClient, name: str) -> Iterator[Run]:
    """Runs whose id or name begins so, each once."""
    seen = set()
    for run in (*_begun_ids(client, name), *_begun_names(client, name)):
        if run.info.run_id not in seen:
            seen.add(run.info.run_id)
            yield run


def _begun_ids(client: MlflowClient, name: str) -> Iterable[Run]:
    if _ID_BEGINNING.fullmatch(name):
        yield from _searched(client, f"attributes.run_id LIKE '{name}%'")


def _begun_names(client: MlflowClient, name: str) -> Iterable[Run]:
    pattern = _quoted(f"{name}%")
    if name and pattern is not None:
        for run in _searched(client, f"attributes.run_name LIKE {pattern}"):
            # In a pattern `_` and `%` stand for others too.
            if (run.info.run_name or "").startswith(name):
                yield run


def _quoted(text: str) -> str | None:
    """As MLflow's filters hold a text; None where they can't."""
    sign = next((one for one in "'\"" if one not in text), None)
    is_plain = text.isprintable() and "\\" not in text
    return f"{sign}{text}{sign}" if sign and is_plain and text else None


def _searched(client: MlflowClient, wanted: str) -> Iterator[Run]:
    experiments = [one.experiment_id for one in _experiments(client)]
    token = None
    while experiments:
        page = client.search_runs(
            experiments, wanted, ViewType.ACTIVE_ONLY, _PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _experiments(client: MlflowClient) -> Iterator[Experiment]:
    token = None
    while True:
        page = client.search_experiments(ViewType.ACTIVE_ONLY, _PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return

"""How far webhooks have been told of decisions, as the runs of the histories keep it.

The histories are what is sent, so nothing has to be kept of a message but how far it got. That is
kept in tags, JSON each, which the server writes:

    opusclip.webhook.<name>                  of a history's run: told up to which record, what fails
    opusclip.webhook.<name>.failed.000012    of a history's run: a record that could not be told
    opusclip.webhook.<name>                  of the root run: the webhook is known, who is sending
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.store.entities import PagedList

from opusclip_mlops.chain import is_key, key_of
from opusclip_mlops.decisions import model_named, number_in
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import EXPERIMENT, MODEL_TAG, ROOT_TAG
from opusclip_mlops.patience import connected, patiently

TAG = "opusclip.webhook."
"""What the tags begin with; a webhook's name has no dot in it."""

_FAILED = ".failed."
_PAGE_RUNS = 200
_DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mssql")
_PREFIX = "opusclip+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What has been tried to tell a webhook of one record, and in vain.

    Attributes:
        tries: How often.
        first_ms: When first, in Unix milliseconds.
        last_ms: When last, in Unix milliseconds.
        next_ms: Not again before this, in Unix milliseconds.
        error: What was wrong the last time.
        again: Of a failed record: somebody asked to have it tried again.
    """

    tries: int = 0
    first_ms: int = 0
    last_ms: int = 0
    next_ms: int = 0
    error: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a webhook is in a history: told up to this record, and what the next one meets."""

    told: int = 0
    tried: Tried = Tried()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A record that a webhook was not told of, and is not, unless somebody asks for it."""

    number: int
    tried: Tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How far one webhook is in the history of one registered model.

    Attributes:
        webhook: Its name.
        model: The registered model.
        run_id: The run that holds the history.
        told: It has been told of everything up to this record, but for what failed.
        waiting: How many records are still to be told.
        tried: What the next of them has met so far.
        failed: The records that were given up.
    """

    webhook: str
    model: str
    run_id: str
    told: int
    waiting: int
    tried: Tried
    failed: tuple[Failure, ...] = ()


def progress_tag(webhook: str) -> str:
    """The tag of a history's run that says how far the webhook is."""
    return TAG + webhook


def failed_tag(webhook: str, number: int) -> str:
    """The tag of a history's run for a record that the webhook was not told of."""
    return f"{TAG}{webhook}{_FAILED}{key_of(number)}"


def failed_number(webhook: str, tag: str) -> int:
    """The record that such a tag is about, 0 for any other tag."""
    start = progress_tag(webhook) + _FAILED
    return (number_in(tag.removeprefix(start)) or 0) if tag.startswith(start) else 0


def to_tag(value: object) -> str:
    """How it is kept in a tag."""
    return msgspec.json.encode(value).decode()


_Kept = TypeVar("_Kept")


def from_tag(text: str | None, kind: type[_Kept]) -> _Kept:
    """What a tag says; nothing told and nothing tried where there is none, or rubbish."""
    try:
        return msgspec.json.decode(text or "{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return kind()


def deliveries(
    models: Sequence[str] = (), *, client: MlflowClient | None = None
) -> tuple[Delivery, ...]:
    """How far each webhook is in each history, by webhook and model.

    Args:
        models: Only the histories of these registered models; all of them when empty. A model that
            was deleted and made again has two.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        RegistryError: A model that has no history, or MLflow did not answer.
    """
    client, wanted = connected(client), {model_named(one) for one in models}
    root = _root(client)
    runs = list(_histories(client, root)) if root else []
    lacking = wanted - {_model_of(run) for run in runs}
    if lacking:
        raise RegistryError(f"there is no history of {sorted(lacking)[0]!r}: nothing was decided")
    told = [run for run in runs if not wanted or _model_of(run) in wanted]
    names = _webhooks(root.data.tags) if root else []
    return tuple(_delivery(name, run) for name in names for run in told)


def put_back(found: Iterable[Delivery], *, client: MlflowClient | None = None) -> int:
    """Have the failed records told again by the server; gives how many.

    Args:
        found: What `deliveries` gave.
        client: MLflow, which must be the database itself: a server lets nobody write histories.

    Raises:
        RegistryError: It is not a database, or did not take it.
    """
    client = connected(client)
    demand_database(client)
    failed = [(one, failure) for one in found for failure in one.failed]
    for one, failure in failed:
        _ask_again(client, one, failure)
    return len(failed)


def demand_database(client: MlflowClient) -> None:
    """Accept a client that writes to the database itself.

    Raises:
        RegistryError: It asks a server, which lets nobody write histories.
    """
    scheme = urlsplit(client.tracking_uri).scheme.partition("+")[0]
    if scheme not in _DATABASES:
        raise RegistryError(
            "failed records are put back in the database itself: give its URI as --tracking-uri, "
            "sqlite:///… or postgresql://…"
        )


def lost(found: Iterable[Delivery]) -> bool:
    """Whether something failed that nobody has put back."""
    return any(not failure.tried.again for one in found for failure in one.failed)


def plain_uri(uri: str | None) -> str | None:
    """A database as MLflow itself opens it, where its URI has `opusclip+` before it.

    The database is then read and written as it is, by who may do that.
    """
    return (uri or os.environ.get("MLFLOW_TRACKING_URI", "")).removeprefix(_PREFIX) or None


def _ask_again(client: MlflowClient, one: Delivery, failure: Failure) -> None:
    asked = replace(failure.tried, again=True, tries=0, first_ms=0, next_ms=0)
    key, value = failed_tag(one.webhook, failure.number), to_tag(asked)
    what = f"cannot put record {failure.number} of {one.model!r} back"
    patiently(what, lambda: client.set_tag(one.run_id, key, value))


def _root(client: MlflowClient) -> Run | None:
    what = "cannot read the histories"
    experiment: Experiment | None = patiently(
        what, lambda: client.get_experiment_by_name(EXPERIMENT)
    )
    root_id = experiment.tags.get(ROOT_TAG) if experiment else None
    return patiently(what, lambda: client.get_run(root_id)) if root_id else None


def _histories(client: MlflowClient, root: Run) -> Iterator[Run]:
    """The runs that the root run names, whoever made other ones beside them."""
    named = set(root.data.params.values())
    token: str | None = None
    while True:
        page = patiently("cannot read the histories", partial(_page, client, root, token))
        yield from (run for run in page if run.info.run_id in named)
        token = page.token
        if not token:
            return


def _page(client: MlflowClient, root: Run, token: str | None) -> PagedList[Run]:
    return client.search_runs(
        [root.info.experiment_id],
        run_view_type=ViewType.ALL,
        max_results=_PAGE_RUNS,
        page_token=token,
    )


def _model_of(run: Run) -> str:
    return str(run.data.tags.get(MODEL_TAG, ""))


def _webhooks(tags: Mapping[str, str]) -> list[str]:
    """The webhooks that are known, by the root run's tags."""
    return sorted(tag.removeprefix(TAG) for tag in tags if tag.startswith(TAG))


def _delivery(name: str, run: Run) -> Delivery:
    cursor = from_tag(run.data.tags.get(progress_tag(name)), Cursor)
    numbers = [int(key) for key in run.data.params if is_key(key)]
    tags = {failed_number(name, tag): text for tag, text in run.data.tags.items()}
    failed = [Failure(number=n, tried=from_tag(text, Tried)) for n, text in tags.items() if n]
    return Delivery(
        webhook=name,
        model=_model_of(run),
        run_id=run.info.run_id,
        told=cursor.told,
        waiting=sum(number > cursor.told for number in numbers),
        tried=cursor.tried,
        failed=tuple(sorted(failed, key=lambda one: one.number)),
    )
